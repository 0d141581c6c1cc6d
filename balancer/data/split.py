"""Split a table by time into train, gap, two halves of validation, and test.

What is special: rows with the same timestamp always belong to the same split. The first `gap` seconds of
validation (by default the label delay) are used for neither training nor evaluation, because their labels
would not have been known when training ended. Rows of the gap still serve as history.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from balancer.data.spec import DAY, SplitSpec, parse_moment
from balancer.errors import InputError


class Split(IntEnum):
    """The split that a row belongs to, in time order."""

    TRAIN = 0
    GAP = 1
    """History only: the start of validation, and rows after the end of the test."""
    REWARD = 2
    """The first half of validation: rewards the policy and stops the fit."""
    THRESHOLD = 3
    """The second half of validation: fits the calibration and the decision threshold."""
    TEST = 4

    @property
    def title(self) -> str:
        """The name that messages use."""
        return {Split.REWARD: "validation (reward half)", Split.THRESHOLD: "validation (threshold half)"}.get(self, self.name.lower())


def split_by_time(time: NDArray[np.float64], labelled: NDArray[np.bool_], spec: SplitSpec, gap: float) -> NDArray[np.int8]:
    """Assign each row to a split.

    Args:
        time: (N,) seconds, in any order.
        labelled: (N,) whether the class of the row is known. Shares are shares of these rows; the other rows
            are assigned by their time.
        spec: Shares or dates.
        gap: Seconds at the start of validation that serve as history only.

    Returns:
        (N,) int8, a `Split` per row.

    Raises:
        InputError: If a split would have no labelled row, or if the gap is longer than half of validation.
    """
    known = np.sort(time[labelled])
    if spec.by_dates:
        train_end, validation_end = (
            parse_moment(str(value), key) for key, value in (("train", spec.train), ("validation", spec.validation))
        )
        test_end = parse_moment(spec.test, "test") if isinstance(spec.test, str) and spec.test else np.inf
    else:
        at_train = round(float(spec.train) * len(known))
        at_test = round((float(spec.train) + float(spec.validation)) * len(known))
        if not 0 < at_train < at_test < len(known):
            raise InputError(f"{len(known)} labelled rows are too few to split by time: give more rows, or change the shares in [split]")
        train_end, validation_end, test_end = float(known[at_train]), float(known[at_test]), np.inf
    if gap > (validation_end - train_end) / 2:
        raise InputError(
            f"the gap of {gap / DAY:.3g} days is longer than half of the validation span of {(validation_end - train_end) / DAY:.3g} days: "
            "lower [split] gap (--gap), or give validation a larger share"
        )
    begin = train_end + gap
    validation = known[(known >= begin) & (known < validation_end)]
    middle = float(validation[len(validation) // 2]) if len(validation) else validation_end
    # With side="right", a time equal to a border belongs to the later split.
    split = np.searchsorted(np.array([train_end, begin, middle, validation_end]), time, side="right").astype(np.int8)
    split[time >= test_end] = Split.GAP
    sizes = np.bincount(split[labelled], minlength=len(Split))
    for each in Split:
        if each != Split.GAP and sizes[each] == 0:
            raise InputError(f"the time split leaves no labelled row for {each.title}: change the shares, dates or gap in [split]")
    return split
