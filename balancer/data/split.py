"""The time split: train, gap, two halves of validation, test.

What is special: a timestamp never straddles a border, and the first `gap` seconds of validation (the label delay, unless said otherwise)
belong to no part: their labels would not have been known when training ended. Rows of the gap still serve as history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from balancer.data.spec import DAY, SplitSpec, parse_moment
from balancer.errors import InputError

PART_TRAIN, PART_GAP, PART_REWARD, PART_THRESHOLD, PART_TEST = 0, 1, 2, 3, 4
PART_NAMES = ("train", "gap", "validation (reward half)", "validation (threshold half)", "test")


def split_by_time(time: NDArray[np.float64], labelled: NDArray[np.bool_], split: SplitSpec, gap: float) -> NDArray[np.int8]:
    """The part (N,) int8 of each row.

    Args:
        time: (N,) seconds, in any order.
        labelled: (N,) whether the row's class is known; shares are of these rows, others go with their time.
        split: shares or dates.
        gap: seconds at the start of validation that serve as history only.

    Raises:
        InputError: where a part would be empty, or the gap eats more than half of validation.
    """
    known = np.sort(time[labelled])
    if split.by_dates:
        train_end, validation_end = (
            parse_moment(str(value), key) for key, value in (("train", split.train), ("validation", split.validation))
        )
        test_end = parse_moment(split.test, "test") if isinstance(split.test, str) and split.test else np.inf
    else:
        at_train = round(float(split.train) * len(known))
        at_test = round((float(split.train) + float(split.validation)) * len(known))
        if not 0 < at_train < at_test < len(known):
            raise InputError(f"{len(known)} labelled rows are too few to split by time: give more rows or other shares in [split]")
        train_end, validation_end, test_end = float(known[at_train]), float(known[at_test]), np.inf
    if gap > (validation_end - train_end) / 2:
        raise InputError(
            f"the gap of {gap / DAY:.3g} days eats more than half of the validation span of {(validation_end - train_end) / DAY:.3g} days: "
            "set [split] gap (--gap) lower, or give validation a larger share"
        )
    begin = train_end + gap
    validation = known[(known >= begin) & (known < validation_end)]
    middle = float(validation[len(validation) // 2]) if len(validation) else validation_end
    # searchsorted with side="right" puts a time equal to a border into the later part.
    part = np.searchsorted(np.array([train_end, begin, middle, validation_end]), time, side="right").astype(np.int8)
    part[time >= test_end] = PART_GAP
    sizes = np.bincount(part[labelled], minlength=5)
    for code in (PART_TRAIN, PART_REWARD, PART_THRESHOLD, PART_TEST):
        if sizes[code] == 0:
            raise InputError(f"the time split leaves no labelled row for {PART_NAMES[code]}: change the shares, dates or gap in [split]")
    return part
