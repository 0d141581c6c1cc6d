"""Functions that the callbacks for Lightning, Hugging Face and Keras share.

They turn logits into probabilities, choose the training rows to score, name the metrics to log, and save the
sampler's state.

A policy measures hardness and memorization on scores of training rows. So each callback scores a random
sample of the training rows, the pool, in addition to the validation rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import CorruptFileError, InputError
from balancer.files import read_arrays, write_arrays
from balancer.sampling.core import SamplerCore
from balancer.sampling.core_view import CoreView
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import SamplingWeights

if TYPE_CHECKING:
    from balancer.sampling.torch_base import AdaptiveBase  # Keras needs no torch

POOL = 10_000
"""Number of training rows to score after an epoch, by default; of a smaller table all rows."""
_ARRAY = "__array__"


def logits_to_scores(logits: Any) -> NDArray[np.float64]:
    """Convert logits to class probabilities.

    Args:
        logits: (n, K), or (n,) or (n, 1) for two classes.

    Returns:
        (n, K): the softmax. For one column (n, 2): the sigmoid is the probability of the second class.

    Raises:
        InputError: The shape is another one.

    >>> logits_to_scores(np.array([0.0])).tolist()
    [[0.5, 0.5]]
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.shape[1]:
        raise InputError(f"logits must be (rows, classes) or one column, not of shape {values.shape}; give a score function")
    if values.shape[1] == 1:
        values = np.concatenate([np.zeros_like(values), values], axis=1)
    with np.errstate(invalid="ignore"):  # the sampler reports a NaN or infinite logit together with its row
        power = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(power / power.sum(axis=1, keepdims=True), dtype=np.float64)


def sampler_scores(sampler: SamplerCore | CoreView, logits: Any) -> NDArray[np.float64]:
    """Class probabilities from a model's logits, for ``sampler.update``.

    Args:
        sampler: If its loss is used, the logits are those of a stream of equally frequent classes, and the
            probabilities those of the natural stream. Otherwise they are the softmax or sigmoid.
        logits: (n, K), or (n,) or (n, 1) for two classes.

    Returns:
        (n, K).
    """
    if not sampler.compensated:
        return logits_to_scores(logits)
    return np.asarray(sampler.probabilities(np.asarray(logits, dtype=np.float64)), dtype=np.float64)


def two_columns(probability: Any) -> NDArray[np.float64]:
    """Convert probabilities of the second of two classes, (n,) or (n, 1), to (n, 2).

    (n, K) is returned unchanged.
    """
    values = np.asarray(probability, dtype=np.float64)
    if values.ndim == 1 or values.shape[1:] == (1,):
        second = values.reshape(len(values))
        return np.stack([1.0 - second, second], axis=1)
    return values


def pool_rows(num_rows: int, pool: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Choose the training rows to score after ``epoch``.

    Returns:
        ``pool`` random rows in ascending order, or all rows if there are no more.
    """
    if num_rows <= pool:
        return np.arange(num_rows)
    return np.sort(generator(seed, "scored pool", epoch).choice(num_rows, pool, replace=False))


def rank_pool(sampler: AdaptiveBase[Any], pool: int, seed: int, epoch: int, rank: int, ranks: int) -> NDArray[np.int64]:
    """Choose the training rows that a rank scores after ``epoch``: its part of ``pool`` random rows.

    All parts together are the same for any number of ranks. A sampler of shards scores equally many rows of
    each of its shards.

    Returns:
        Numbers of rows, as the sampler numbers its items.
    """
    if not sampler.is_sharded:
        return pool_rows(sampler.num_rows, pool, seed, epoch)[rank::ranks]
    return np.concatenate(
        [
            start + pool_rows(rows, -(-pool // sampler.num_shards), integer_seed(seed, "shard", number), epoch)
            for number, start, rows in sampler.own_shards
        ]
    )


def check_pool(pool: int) -> int:
    """Return ``pool``; raise InputError unless it is a whole number of at least 0."""
    if isinstance(pool, bool) or not isinstance(pool, int) or pool < 0:
        raise InputError(f"pool must be a whole number of training rows, 0 for none, not {pool!r}")
    return pool


def sampling_metrics(
    classes: list[Any], weights: SamplingWeights, prefix: str, figures: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Metrics to log: ``<prefix>share_<class>`` for each class, and ``<prefix>hardness``.

    Args:
        classes: Names in the order of the shares.
        weights: Weights of the next epoch.
        prefix: Begins each name.
        figures: Validation figures to log too, by name, e.g. ``sampler.metrics``.
    """
    shares = {f"{prefix}share_{name}": float(share) for name, share in zip(classes, weights.share, strict=True)}
    named = {f"{prefix}{name}": float(value) for name, value in (figures or {}).items()}
    return shares | {f"{prefix}hardness": float(weights.hardness)} | named


def extract_arrays(state: Any, arrays: dict[str, NDArray[Any]], path: str = "state") -> Any:
    """Replace the arrays and tensors of a nested ``state`` by references.

    Args:
        state: Dicts, lists and plain values with arrays or tensors among them.
        arrays: The arrays are added to this dict, by their path within ``state``.
        path: Path of ``state`` itself.

    Returns:
        ``state`` as values that JSON can hold. :func:`insert_arrays` is the inverse.
    """
    if hasattr(state, "detach"):  # a tensor; recognized without importing torch
        state = state.detach().cpu().numpy()
    if isinstance(state, np.ndarray):
        arrays[path] = state
        return {_ARRAY: path}
    if isinstance(state, Mapping):
        return {str(key): extract_arrays(value, arrays, f"{path}.{key}") for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [extract_arrays(value, arrays, f"{path}.{i}") for i, value in enumerate(state)]
    return state


def insert_arrays(state: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Inverse of :func:`extract_arrays`; raises KeyError if an array is missing."""
    if isinstance(state, Mapping):
        if set(state) == {_ARRAY}:
            return arrays[state[_ARRAY]]
        return {key: insert_arrays(value, arrays) for key, value in state.items()}
    if isinstance(state, list):
        return [insert_arrays(value, arrays) for value in state]
    return state


def save_state(file: Path, state: dict[str, Any]) -> None:
    """Write ``state``, plain values and arrays or tensors, as one safetensors file."""
    arrays: dict[str, NDArray[Any]] = {}
    plain = extract_arrays(state, arrays)
    write_arrays(file, arrays, {"state": plain})


def read_state(file: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; tensors come back as arrays.

    Raises:
        InputError: The file is missing, corrupt, or something else.
    """
    arrays, meta = read_arrays(file, what="the state of the adaptive sampler")
    try:
        state: dict[str, Any] = insert_arrays(meta["state"], arrays)
    except KeyError as error:
        raise CorruptFileError(f"{file} is no state of an adaptive sampler ({error} is missing); resume from another checkpoint") from error
    return state
