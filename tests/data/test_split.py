"""The time split: shares, dates, gap, ties."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.data.spec import DAY, SplitSpec
from balancer.data.split import Split, split_by_time
from balancer.errors import InputError


def test_shares_and_gap() -> None:
    time = np.arange(1000, dtype=np.float64) * 0.1 * DAY
    split = split_by_time(time, np.ones(1000, np.bool_), SplitSpec(), 4 * DAY)
    assert np.bincount(split).tolist() == [600, 40, 80, 80, 200]
    assert (np.diff(split) >= 0).all()


@given(seed=st.integers(0, 1000), shuffled=st.booleans())
def test_splits_are_disjoint_in_time_and_no_moment_straddles(seed: int, shuffled: bool) -> None:
    rng = np.random.default_rng(seed)
    time = np.floor(rng.random(400) * 60)
    time = time if shuffled else np.sort(time)
    split = split_by_time(time, rng.random(400) < 0.7, SplitSpec(), 2.0)
    for moment in np.unique(time):
        assert len(np.unique(split[time == moment])) == 1
    spans = [time[split == each] for each in Split]
    assert all(a.max() < b.min() for a, b in pairwise(spans))
    gap = time[split == Split.GAP]
    assert time[split == Split.REWARD].min() >= gap.min() + 2.0


def test_shares_are_of_labelled_rows() -> None:
    time = np.arange(200.0)
    labelled = time >= 100
    split = split_by_time(time, labelled, SplitSpec(), 0.0)
    assert np.bincount(split[labelled])[Split.TRAIN] == 60


def test_dates_are_exclusive_ends() -> None:
    time = np.arange(40, dtype=np.float64) * DAY
    spec = SplitSpec(train="1970-01-11", validation="1970-01-21", test="1970-01-31")
    split = split_by_time(time, np.ones(40, np.bool_), spec, 2 * DAY)
    assert np.bincount(split[:30]).tolist() == [10, 2, 4, 4, 10]
    assert (split[30:] == Split.GAP).all()


def test_too_long_a_gap_names_the_flag() -> None:
    with pytest.raises(InputError, match=r"\[split\] gap \(--gap\)"):
        split_by_time(np.arange(100.0), np.ones(100, np.bool_), SplitSpec(), 15.0)


def test_too_few_rows() -> None:
    with pytest.raises(InputError, match="too few to split"):
        split_by_time(np.arange(2.0), np.ones(2, np.bool_), SplitSpec(), 0.0)
    with pytest.raises(InputError, match="no labelled row"):
        split_by_time(np.zeros(50), np.ones(50, np.bool_), SplitSpec(), 0.0)
