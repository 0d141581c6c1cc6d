"""Split a table into training rows and held-out parts.

The reward part measures the policy's reward, the other part is used to fit the calibration and the threshold.

Too few rows are no error. A class with too few rows stays in training completely. If fewer than two classes
could be held out, everything is validated on the training rows. Each of these is reported in ``notes``,
because metrics on training rows are optimistic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.seeding import generator

Rows = NDArray[np.int64]

MIN_HELD_OUT = 2
"""Minimum number of rows of a class in each held-out part; a class with fewer is not held out."""


@dataclass(frozen=True)
class Holdout:
    """A split of a table's rows."""

    train: Rows
    """(n,) row numbers to train on, in ascending order."""
    parts: tuple[Rows, ...]
    """Row numbers of each held-out part, ascending; the training rows if none could be held out."""
    notes: list[str] = field(default_factory=list)

    @property
    def separate(self) -> bool:
        """Whether the parts have no rows in common with the training rows."""
        return not any(part is self.train for part in self.parts)


def hold_out(labels: NDArray[np.integer[Any]], fraction: float, *, parts: int, shuffle: bool, seed: int, names: list[str]) -> Holdout:
    """Split the rows of a table.

    Args:
        labels: (n,) class index 0 .. K - 1 of each row; every class has a row.
        fraction: Share of the rows to hold out, all parts together, in (0, .5].
        parts: Number of held-out parts of equal size.
        shuffle: True: a stratified random split. False: the rows are in order of time, and the last ones are
            held out.
        seed: Random seed of the split.
        names: (K,) class names for the notes.

    Raises:
        InputError: ``fraction`` is out of range.
    """
    if not 0 < fraction <= 0.5:
        raise InputError(f"validation_fraction must be above 0 and at most .5, not {fraction}")
    return _random_split(labels, fraction, parts, seed, names) if shuffle else _split_by_time(labels, fraction, parts, names)


def _random_split(labels: NDArray[np.integer[Any]], fraction: float, parts: int, seed: int, names: list[str]) -> Holdout:
    place = np.zeros(len(labels), dtype=np.int64)  # 0: training, 1 .. parts: a held-out part
    kept: list[str] = []
    for c, name in enumerate(names):
        class_rows = np.flatnonzero(labels == c)
        each = int(np.round(len(class_rows) * fraction)) // parts
        if each < MIN_HELD_OUT:
            kept.append(name)
            continue
        shuffled = generator(seed, "holdout", c).permutation(class_rows)
        for part in range(parts):
            place[shuffled[part * each : (part + 1) * each]] = part + 1
    if len(names) - len(kept) < 2:
        return _all_rows(labels, parts, "too few rows per class to hold any out")
    notes = [f"too few rows of class {', '.join(kept)} to hold any out: it has no validation metrics"] if kept else []
    return Holdout(np.flatnonzero(place == 0), tuple(np.flatnonzero(place == part + 1) for part in range(parts)), notes)


def _split_by_time(labels: NDArray[np.integer[Any]], fraction: float, parts: int, names: list[str]) -> Holdout:
    each = int(np.round(len(labels) * fraction)) // parts
    first = len(labels) - each * parts
    train = np.arange(first)
    held = tuple(np.arange(first + part * each, first + (part + 1) * each) for part in range(parts))
    counts = [np.bincount(labels[part], minlength=len(names)) for part in held]
    if np.bincount(labels[train], minlength=len(names)).min() == 0:
        return _all_rows(labels, parts, "the last rows can't be held out, because a class would be missing from training")
    most_frequent = int(np.bincount(labels[train]).argmax())
    if any((c >= MIN_HELD_OUT).sum() < 2 or c[most_frequent] == 0 for c in counts):
        return _all_rows(
            labels, parts, f"a held-out part has {MIN_HELD_OUT} rows of fewer than two classes, or none of the most frequent class"
        )
    missing = sorted({names[c] for count in counts for c in np.flatnonzero(count == 0)})
    notes = [f"no row of class {', '.join(missing)} in a held-out part: it has no validation metrics there"] if missing else []
    return Holdout(train, held, notes)


def _all_rows(labels: NDArray[np.integer[Any]], parts: int, reason: str) -> Holdout:
    rows = np.arange(len(labels))
    return Holdout(rows, (rows,) * parts, [f"{reason}: validated on the training rows, so metrics and threshold are optimistic"])


def divide(labels: NDArray[np.integer[Any]], *, common: int, shuffle: bool, seed: int) -> Holdout:
    """Divide given validation rows into two halves.

    Args:
        labels: (n,) class index of each validation row.
        common: The class that both halves need, the most frequent one of the training rows.
        shuffle: True: at random, class by class. False: the rows are in order of time, and the second half is
            the later one.
        seed: Random seed.

    Returns:
        Halves as ``parts``, and no training rows. Where a half would lack ``common`` or have no other class,
        both halves are all rows, and a note says so.

    Raises:
        InputError: Even all rows lack ``common``, or have no other class.
    """
    if shuffle:
        rank = np.zeros(len(labels), dtype=np.int64)
        for c in np.unique(labels).tolist():
            rows = generator(seed, "divide", c).permutation(np.flatnonzero(labels == c))
            rank[rows] = np.arange(len(rows))
        halves = [np.flatnonzero(rank % 2 == half) for half in range(2)]
    else:
        halves = [np.arange(len(labels) // 2), np.arange(len(labels) // 2, len(labels))]
    if all(_measurable(labels[half], common) for half in halves):
        return Holdout(np.zeros(0, dtype=np.int64), tuple(halves))
    if not _measurable(labels, common):
        raise InputError("y_val must hold rows of the most frequent class and of another one; give validation more rows")
    rows = np.arange(len(labels))
    return Holdout(rows[:0], (rows, rows), ["too few validation rows to divide: the same rows measure the policy and tune the threshold"])


def _measurable(labels: NDArray[np.integer[Any]], common: int) -> bool:
    return bool((labels == common).any() and (labels != common).any())
