"""Rows held out of training: one part pays the policy, the other tunes calibration and threshold.

Special: too few rows are no error. A class that can't spare rows stays in training whole, and where fewer than two classes could be held
out everything is validated on the training rows; each of these is told in ``notes``, for its figures flatter the learner.
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
"""Rows of a class in each held-out part; with fewer the class is not held out."""


@dataclass(frozen=True)
class Holdout:
    """Row numbers of a table, split."""

    train: Rows
    """(n,) rows to train on, ascending."""
    parts: tuple[Rows, ...]
    """Rows of each held-out part, ascending; the training rows themselves where nothing could be held out."""
    notes: list[str] = field(default_factory=list)

    @property
    def separate(self) -> bool:
        """Whether the parts are others than the training rows."""
        return not any(part is self.train for part in self.parts)


def hold_out(labels: NDArray[np.integer[Any]], fraction: float, *, parts: int, shuffle: bool, seed: int, names: list[str]) -> Holdout:
    """Split the rows of a table with ``labels`` (n,) 0 .. K - 1.

    Args:
        labels: class index of each row; every class has a row.
        fraction: share of the rows to hold out, over all parts, in (0, .5].
        parts: number of held-out parts, equally large.
        shuffle: True: each class by chance and in proportion. False: rows are in the order of time; the parts follow the training rows.
        seed: of the shuffle.
        names: (K,) class names for the notes.

    Raises:
        InputError: ``fraction`` out of range.
    """
    if not 0 < fraction <= 0.5:
        raise InputError(f"validation_fraction must be above 0 and at most .5, not {fraction}")
    return _by_chance(labels, fraction, parts, seed, names) if shuffle else _by_order(labels, fraction, parts, names)


def _by_chance(labels: NDArray[np.integer[Any]], fraction: float, parts: int, seed: int, names: list[str]) -> Holdout:
    place = np.zeros(len(labels), dtype=np.int64)  # 0 trains, 1 .. parts is held out
    kept: list[str] = []
    for c, name in enumerate(names):
        own = np.flatnonzero(labels == c)
        each = int(np.round(len(own) * fraction)) // parts
        if each < MIN_HELD_OUT:
            kept.append(name)
            continue
        shuffled = generator(seed, "holdout", c).permutation(own)
        for part in range(parts):
            place[shuffled[part * each : (part + 1) * each]] = part + 1
    if len(names) - len(kept) < 2:
        return _all_rows(labels, parts, "too few rows per class to hold any out")
    notes = [f"too few rows of class {', '.join(kept)} to hold any out: it has no validation figures"] if kept else []
    return Holdout(np.flatnonzero(place == 0), tuple(np.flatnonzero(place == part + 1) for part in range(parts)), notes)


def _by_order(labels: NDArray[np.integer[Any]], fraction: float, parts: int, names: list[str]) -> Holdout:
    each = int(np.round(len(labels) * fraction)) // parts
    first = len(labels) - each * parts
    train = np.arange(first)
    held = tuple(np.arange(first + part * each, first + (part + 1) * each) for part in range(parts))
    counts = [np.bincount(labels[part], minlength=len(names)) for part in held]
    if np.bincount(labels[train], minlength=len(names)).min() == 0:
        return _all_rows(labels, parts, "the last rows can't be held out, a class would be missing from training")
    commonest = int(np.bincount(labels[train]).argmax())
    if any((c >= MIN_HELD_OUT).sum() < 2 or c[commonest] == 0 for c in counts):
        return _all_rows(labels, parts, f"a held-out part has {MIN_HELD_OUT} rows of fewer than two classes, or none of the commonest")
    missing = sorted({names[c] for count in counts for c in np.flatnonzero(count == 0)})
    notes = [f"no row of class {', '.join(missing)} in a held-out part: it has no validation figures there"] if missing else []
    return Holdout(train, held, notes)


def _all_rows(labels: NDArray[np.integer[Any]], parts: int, reason: str) -> Holdout:
    rows = np.arange(len(labels))
    return Holdout(rows, (rows,) * parts, [f"{reason}: validated on the training rows, figures and threshold flatter the learner"])
