"""What a loop reports to its sampler, checked: scores of held-out rows, and indices of training rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.sampling.inputs import numbers, plain
from balancer.sampling.labels import Labels
from balancer.sampling.observation import ScoredRows

_TOLERANCE = 1e-6
"""How far a rounded probability may lie outside [0, 1]."""


def held_out_rows(labels: Labels, y_true: ArrayLike | Sequence[str], y_score: ArrayLike, y_weight: ArrayLike | None = None) -> ScoredRows:
    """Checked labels, scores and weights of held-out rows that have a label, commonest class first.

    Args:
        labels: Labels of the training rows.
        y_true: As for :meth:`.SamplerCore.update`.
        y_score: As for :meth:`.SamplerCore.update`.
        y_weight: As for :meth:`.SamplerCore.update`.

    Raises:
        InputError: As :meth:`.SamplerCore.update`.
    """
    codes = labels.encode(y_true, "y_true")
    held_out = scored_rows(labels, codes, y_score, "y_true", "y_score")
    if y_weight is not None:
        weight = numbers(y_weight, "y_weight")
        if weight.shape != codes.shape or not np.isfinite(weight).all() or not weight.min() >= 0 or not weight.max() > 0:
            raise InputError(f"y_weight must be {len(codes)} finite numbers of 0 or more, one for each of y_true, not all 0")
        held_out = dataclasses.replace(held_out, weight=weight[codes >= 0])
    check_measurable(labels, held_out)
    return held_out


def check_measurable(labels: Labels, held_out: ScoredRows) -> None:
    """Refuse held-out rows that lack the commonest class, or all others.

    Raises:
        InputError: They do.
    """
    counts = np.bincount(held_out.label, minlength=len(labels.counts))
    if not counts[0] or not counts[1:].any():
        common = labels.classes[labels.order[0]]
        lacks = f"no row of class {common!r}" if not counts[0] else f"rows of class {common!r} only"
        raise InputError(f"y_true holds {lacks}, so nothing can be measured; hold out rows of at least two classes, {common!r} among them")


def scored_rows(labels: Labels, codes: NDArray[np.int64], score: Any, rows_name: str, score_name: str) -> ScoredRows:
    """Labelled rows with their scores as (n, K), commonest class first.

    Args:
        labels: Labels of the training rows.
        codes: (m,) code of each row, -1 without a label.
        score: (m, K) probabilities in the order of the classes; of two classes also (m,) or (m, 1).
        rows_name: Name of the argument that holds the rows, for messages.
        score_name: Name of the argument that holds the scores.

    Raises:
        InputError: Another shape or length, or values that are no probabilities; or no row has a label.
    """
    return ScoredRows(*labelled_scores(labels, codes, score, rows_name, score_name))


def labelled_scores(
    labels: Labels, codes: NDArray[np.int64], score: Any, rows_name: str, score_name: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """As :func:`scored_rows`, but as codes (n,) and scores (n, K); n may be 0.

    Raises:
        InputError: Another shape or length, or values that are no probabilities.
    """
    num_classes = len(labels.counts)
    scores = numbers(score, score_name)
    if num_classes == 2 and scores.shape[1:] == (1,):
        scores = scores[:, 0]
    if scores.ndim not in (1, 2) or (scores.shape[1:] or (2,)) != (num_classes,):
        raise InputError(
            f"{score_name} must have one column for each of the {num_classes} classes"
            f"{' or be one vector' if num_classes == 2 else ''}, not shape {scores.shape}"
        )
    if len(scores) != len(codes):
        raise InputError(f"{score_name} has {len(scores)} rows and {rows_name} {len(codes)}; give one label and one score a row")
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(axis=1))[0])
        raise InputError(f"{score_name} of row {row} is not finite; check the model's output for NaN first")
    if len(scores) and (scores.min() < -_TOLERANCE or scores.max() > 1 + _TOLERANCE):
        raise InputError(
            f"{score_name} must be probabilities from 0 to 1, found {scores.min():.4g} to {scores.max():.4g}; apply the sigmoid or softmax"
        )
    scores = np.clip(scores, 0.0, 1.0)
    ranked = np.stack([1.0 - scores, scores], axis=1) if scores.ndim == 1 else scores[:, labels.order]
    return codes[codes >= 0], ranked[codes >= 0]


def row_indices(rows: ArrayLike, num_rows: int) -> NDArray[np.int64]:
    """(n,) indices of training rows, checked.

    Raises:
        InputError: They are no vector of whole numbers from 0 to ``num_rows - 1``.
    """
    chosen = np.asarray(plain(rows))
    if chosen.ndim == 2 and chosen.shape[1] == 1:
        chosen = chosen[:, 0]
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < num_rows):
        raise InputError(f"rows must be one vector of indices of training rows, from 0 to {num_rows - 1}")
    return chosen.astype(np.int64)
