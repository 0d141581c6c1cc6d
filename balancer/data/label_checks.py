"""Check the labels of a split table: errors where a part can't be used, warnings where labels look wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from balancer.data.spec import Spec
from balancer.data.split import PARTS, Split
from balancer.errors import MissingClassError
from balancer.names import counted

FEW_ROWS = 10
"""A class with fewer training rows than this is named in a warning."""


def check_splits(label: NDArray[np.int16], split: NDArray[np.int8], classes: tuple[str, ...], spec: Spec) -> None:
    """Check that every part has both kinds of rows, and training every class.

    Args:
        label: (N,) class index; -1 is unlabelled.
        split: (N,) part of each row.
        classes: Class names, the negative one first.
        spec: Roles of the columns.

    Raises:
        MissingClassError: If a part has only one kind; the message names the remedy.
    """
    column = f"column {(spec.label or spec.label_date)!r}"
    remedy = "change [split]" if spec.split.by == "random" else "draw the parts at random with --split random, change [split]"
    for each in PARTS:
        inside = label[split == each]
        if not (inside > 0).any():
            raise MissingClassError(f"{column}: {each.title} has no positive row, only {classes[0]!r}: {remedy}, or give more rows")
        if not (inside == 0).any():
            raise MissingClassError(
                f"{column}: {each.title} has no row of the negative class {classes[0]!r}: check --negative, or {remedy}"
            )
    learned = np.bincount(label[(split == Split.TRAIN) & (label >= 0)], minlength=len(classes))
    if (learned == 0).any():
        name = classes[int(np.argmin(learned))]
        raise MissingClassError(f"{column}: the class {name!r} has no row in train: {remedy}, or rename or drop its rows")


def label_cautions(classes: tuple[str, ...], label: NDArray[np.int16], split: NDArray[np.int8]) -> list[str]:
    """Warnings about labels that are probably not what the user means.

    Args:
        classes: Class names, the negative one first.
        label: (N,) class index; -1 is unlabelled.
        split: (N,) part of each row.
    """
    found = []
    counts = np.bincount(label[label >= 0], minlength=len(classes))
    share = 1 - counts[0] / counts.sum()
    if share > 0.5:
        found.append(f"{100 * share:.1f} % of the labelled rows are positive, that is, not {classes[0]!r}: is --negative right?")
    learned = np.bincount(label[(split == Split.TRAIN) & (label >= 0)], minlength=len(classes))
    few = [f"{name!r} ({number})" for name, number in zip(classes, learned.tolist(), strict=True) if number < FEW_ROWS]
    if few:
        found.append(f"{counted(len(few), 'class', 'classes')} with fewer than {FEW_ROWS} training rows: {', '.join(few)}")
    return found


def split_notes(spec: Spec) -> list[str]:
    """Say what a random split means; nothing for a split by time."""
    if spec.split.by != "random":
        return []
    what = f"entities ({spec.entity})" if spec.entity is not None else "rows"
    given = "" if spec.split.gap in (None, 0.0) else "; the gap has no meaning and is left out"
    return [
        f"the parts are drawn at random from whole {what}, not by time: results on later rows may be lower than those on the test rows{given}"
    ]
