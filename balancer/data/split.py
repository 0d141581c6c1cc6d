"""Split a table by time, or at random, into train, gap, two halves of validation, and test.

What is special: by time, rows with the same timestamp always belong to the same split. The first `gap`
seconds of validation (by default the label delay) are used for neither training nor evaluation, because their
labels would not have been known when training ended. Rows of the gap still serve as history. At random, whole
entities are drawn by their names, so an entity stays in its part whatever the order of the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
        return {Split.REWARD: "the first half of validation", Split.THRESHOLD: "the second half of validation"}.get(self, self.name.lower())


def split_by_time(
    time: NDArray[np.float64], labelled: NDArray[np.bool_], spec: SplitSpec, gap: float, *, assumed: str | None = None
) -> NDArray[np.int8]:
    """Assign each row to a split.

    Args:
        time: (N,) seconds, in any order.
        labelled: (N,) whether the class of the row is known. Shares are shares of these rows; the other rows
            are assigned by their time.
        spec: Shares or dates.
        gap: Seconds at the start of validation that serve as history only.
        assumed: What the numbers of the time column are taken as ("'step' are taken as hours"), for messages.

    Returns:
        (N,) int8, a `Split` per row.

    Raises:
        InputError: If a split would have no labelled row, or if the gap is longer than half of validation.
    """
    known = np.sort(time[labelled])
    train_end, validation_end, test_end = _borders(known, spec)
    if gap > (validation_end - train_end) / 2:
        remedy = "lower --label-delay or [split] gap (--gap), or give validation a larger share"
        if assumed is not None:
            whole = (float(known[-1]) - float(known[0])) / DAY
            remedy = f"the numbers in {assumed}, so the table spans {whole:.3g} days; give their unit with --time-unit, or {remedy}"
        raise InputError(
            f"the gap of {gap / DAY:.3g} days is longer than half of the validation span of {(validation_end - train_end) / DAY:.3g} days: "
            f"{remedy}"
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


def validation_span(known: NDArray[np.float64], spec: SplitSpec) -> float:
    """Seconds from the end of training to the begin of the test.

    Args:
        known: (n,) sorted times of the labelled rows.
        spec: Shares or dates.

    Raises:
        InputError: There are too few rows.
    """
    train_end, validation_end, _ = _borders(known, spec)
    return validation_end - train_end


def _borders(known: NDArray[np.float64], spec: SplitSpec) -> tuple[float, float, float]:
    """Ends of training, validation and test, from the sorted times (n,) of the labelled rows."""
    if spec.by_dates:
        train_end, validation_end = (
            parse_moment(str(value), key) for key, value in (("train", spec.train), ("validation", spec.validation))
        )
        return train_end, validation_end, parse_moment(spec.test, "test") if isinstance(spec.test, str) and spec.test else np.inf
    at_train = round(float(spec.train) * len(known))
    at_test = round((float(spec.train) + float(spec.validation)) * len(known))
    if not 0 < at_train < at_test < len(known):
        raise InputError(f"{len(known)} labelled rows are too few to split by time: give more rows, or change the shares in [split]")
    return float(known[at_train]), float(known[at_test]), np.inf


PARTS = (Split.TRAIN, Split.REWARD, Split.THRESHOLD, Split.TEST)
"""The parts that a random split fills."""


def split_at_random(
    entity: NDArray[np.integer], names: Sequence[str], label: NDArray[np.int16], row: NDArray[np.int64], spec: SplitSpec
) -> NDArray[np.int8]:
    """Draw whole entities, or rows where the table has no entity, for each part.

    Entities are drawn separately for each class, that of their rarest label, so that every part has about the
    same share of it. A class with at least four entities is in every part.

    Args:
        entity: (N,) entity code; without names every row is an entity of its own.
        names: Names of the entities by code, or none.
        label: (N,) class index; -1 is unlabelled.
        row: (N,) position in the input, which stands for the name of a row without an entity.
        spec: Shares and seed.

    Returns:
        (N,) int8, a `Split` per row; no row is in the gap.

    Raises:
        InputError: If the parts are given as dates, or there are too few entities.
    """
    if spec.by_dates:
        raise InputError("[split] has dates and by = random: give shares, or split by time")
    size = int(entity.max(initial=-1)) + 1
    what = "entities" if names else "rows"
    if size < len(PARTS):
        raise InputError(f"{size} {what} are too few to split at random: give more rows")
    counts = np.bincount(label[label >= 0], minlength=1)
    rarity = np.empty(len(counts) + 1, dtype=np.int64)
    rarity[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    rarity[-1] = -1
    stratum = np.full(size, -1, dtype=np.int64)
    np.maximum.at(stratum, entity, rarity[label])
    weight = np.bincount(entity, minlength=size).astype(np.float64)
    drawn = _draws(names, entity, row, size, spec.seed)
    ends = np.cumsum([float(spec.train), float(spec.validation) / 2, float(spec.validation) / 2])
    part = np.zeros(size, dtype=np.int8)
    for each in np.unique(stratum):
        members = np.flatnonzero(stratum == each)
        members = members[np.argsort(drawn[members], kind="stable")]
        total = np.cumsum(weight[members])
        middle = (total - weight[members] / 2) / total[-1]
        part[members] = _filled(np.searchsorted(ends, middle, side="right"), len(PARTS))
    codes: NDArray[np.int8] = np.array(PARTS, dtype=np.int8)[part][entity]
    return codes


def _draws(names: Sequence[str], entity: NDArray[np.integer], row: NDArray[np.int64], size: int, seed: int) -> NDArray[np.uint64]:
    """A random number (size,) for each entity, from its name and the seed alone."""
    if names:
        digests = (hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names)
        return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    numbers = np.random.default_rng(seed).integers(0, 2**63, size=int(row.max(initial=-1)) + 1, dtype=np.uint64)
    out = np.zeros(size, dtype=np.uint64)
    out[entity] = numbers[row]
    return out


def _filled(part: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """Give an empty part the first member of the largest, where there are enough members (n,)."""
    counts = np.bincount(part, minlength=parts)
    while len(part) >= parts and (counts == 0).any():
        giver, taker = int(np.argmax(counts)), int(np.argmin(counts))
        part[int(np.flatnonzero(part == giver)[0])] = taker
        counts = np.bincount(part, minlength=parts)
    return part
