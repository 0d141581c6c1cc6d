"""What the callbacks of Lightning, Hugging Face and Keras share: scores out of logits, rows to score, figures to log, state to save.

A policy judges hardness and memorising by the scores of training rows, so each callback scores a pool of them beside the validation rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.files import read_arrays, write_arrays
from balancer.sampling.seeding import generator
from balancer.sampling.weights import SamplingWeights

POOL = 10_000
"""Training rows that a callback scores after each epoch unless told otherwise; a smaller table is scored as a whole."""
_ARRAY = "__array__"


def logits_to_scores(logits: Any) -> NDArray[np.float64]:
    """(n, K) class probabilities: the softmax of (n, K) logits; of (n,) or (n, 1) the sigmoid, that of the second class.

    >>> logits_to_scores(np.array([0.0])).tolist()
    [[0.5, 0.5]]
    """
    given = np.asarray(logits, dtype=np.float64)
    if given.ndim == 1:
        given = given[:, None]
    if given.ndim != 2 or not given.shape[1]:
        raise InputError(
            f"logits must be (rows, classes) or one column, not of shape {given.shape}; hand over a score function of your own"
        )
    if given.shape[1] == 1:
        given = np.concatenate([np.zeros_like(given), given], axis=1)
    with np.errstate(invalid="ignore"):  # a NaN or infinite logit is named by the sampler, with its row
        power = np.exp(given - given.max(axis=1, keepdims=True))
        return np.asarray(power / power.sum(axis=1, keepdims=True), dtype=np.float64)


def both_columns(probability: Any) -> NDArray[np.float64]:
    """(n, K) as it is; (n,) or (n, 1), the probability of the second of two classes, as (n, 2)."""
    given = np.asarray(probability, dtype=np.float64)
    if given.ndim == 1 or given.shape[1:] == (1,):
        second = given.reshape(len(given))
        return np.stack([1.0 - second, second], axis=1)
    return given


def pool_rows(num_rows: int, pool: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Training rows to score after ``epoch``: all of them, or ``pool`` by chance, in ascending order."""
    if num_rows <= pool:
        return np.arange(num_rows)
    return np.sort(generator(seed, "scored pool", epoch).choice(num_rows, pool, replace=False))


def check_pool(pool: int) -> int:
    """``pool`` as given; InputError unless it is a whole number from 0."""
    if isinstance(pool, bool) or not isinstance(pool, int) or pool < 0:
        raise InputError(f"pool must be a whole number of training rows, 0 for none, not {pool!r}")
    return pool


def sampling_figures(classes: list[Any], weights: SamplingWeights, prefix: str) -> dict[str, float]:
    """Numbers to log: ``<prefix>share_<class>`` for each class, ``<prefix>hardness``."""
    shares = {f"{prefix}share_{name}": float(share) for name, share in zip(classes, weights.share, strict=True)}
    return shares | {f"{prefix}hardness": float(weights.hardness)}


def take_apart(state: Any, arrays: dict[str, NDArray[Any]], path: str = "state") -> Any:
    """``state`` as JSON-able values, its arrays and tensors put into ``arrays``; :func:`put_together` is the inverse."""
    if hasattr(state, "detach"):  # a tensor; torch itself is not needed here
        state = state.detach().cpu().numpy()
    if isinstance(state, np.ndarray):
        arrays[path] = state
        return {_ARRAY: path}
    if isinstance(state, Mapping):
        return {str(key): take_apart(value, arrays, f"{path}.{key}") for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [take_apart(value, arrays, f"{path}.{i}") for i, value in enumerate(state)]
    return state


def put_together(state: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Inverse of :func:`take_apart`; KeyError where an array is missing."""
    if isinstance(state, Mapping):
        if set(state) == {_ARRAY}:
            return arrays[state[_ARRAY]]
        return {key: put_together(value, arrays) for key, value in state.items()}
    if isinstance(state, list):
        return [put_together(value, arrays) for value in state]
    return state


def save_state(file: Path, state: dict[str, Any]) -> None:
    """Write ``state``, JSON-able but for arrays and tensors, as one safetensors file."""
    arrays: dict[str, NDArray[Any]] = {}
    plain = take_apart(state, arrays)
    write_arrays(file, arrays, {"state": plain})


def read_state(file: Path) -> dict[str, Any]:
    """What :func:`save_state` wrote, tensors as arrays; InputError where the file is missing, torn or something else."""
    arrays, meta = read_arrays(file, what="the state of the adaptive sampler")
    try:
        state: dict[str, Any] = put_together(meta["state"], arrays)
    except KeyError as error:
        raise InputError(f"{file} is no state of an adaptive sampler ({error} is missing); resume from another checkpoint") from error
    return state
