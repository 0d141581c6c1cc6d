"""Windows by gather against slicing."""

from __future__ import annotations

import numpy as np
import pytest

from balancer.data.store import TransactionStore


def make_store(sizes: list[int]) -> TransactionStore:
    rows = sum(sizes)
    entity = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    start = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes).astype(np.int64)
    values = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
    zeros = np.zeros(rows)
    return TransactionStore(values, 3, zeros, entity, start, np.zeros(rows, np.int16), zeros, np.arange(rows))


@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_windows_agree_with_slices(length: int) -> None:
    store = make_store([1, 4, 20, 1])
    target = np.array([25, 0, 1, 4, 24, 10, 10])
    values, lengths = store.windows(target, length)
    assert values.shape == (7, length, 5)
    assert values.dtype == np.float32
    assert lengths.dtype == np.int64
    for row, window, n in zip(target, values, lengths, strict=True):
        first = max(int(store.start[row]), row - length + 1)
        np.testing.assert_array_equal(window[:n], store.values[first : row + 1])
        assert n == row + 1 - first
        assert not window[n:].any()


def test_no_targets_and_no_length() -> None:
    store = make_store([3])
    values, lengths = store.windows(np.zeros(0, np.int64), 4)
    assert values.shape == (0, 4, 5)
    assert len(lengths) == 0
    with pytest.raises(ValueError, match="at least the target row"):
        store.windows(np.array([0]), 0)


@pytest.mark.parametrize("length", [2, 3, 8, 9, 64])
def test_segments_are_a_function_of_the_target_and_show_enough(length: int) -> None:
    store = make_store([1, 4, 50, 9])
    every = np.arange(len(store))
    segments = store.segments(every, length)
    half = length // 2
    begin = segments.first[segments.segment]
    assert (begin + segments.position == every).all()
    assert (store.entity[begin] == store.entity).all()
    assert (segments.last[segments.segment] >= every).all()
    assert (segments.last - segments.first < length).all()
    passed = every - store.start
    assert (segments.position[passed < 2 * half] == passed[passed < 2 * half]).all()  # all of a short past
    assert (segments.position[passed >= half] >= half).all()
    alone = store.segments(np.array([40]), length)
    assert alone.first[0] + alone.position[0] == 40
    assert alone.position[0] == segments.position[40]
    assert alone.last[0] == 40
    with pytest.raises(ValueError, match="at least two"):
        store.segments(every, 1)


def test_slices_agree_with_slices() -> None:
    store = make_store([3, 30])
    first, last = np.array([0, 5, 20]), np.array([2, 5, 29])
    values = store.slices(first, last, 12)
    for begin, end, rows_of_slice in zip(first, last, values, strict=True):
        np.testing.assert_array_equal(rows_of_slice[: end - begin + 1], store.values[begin : end + 1])
        assert not rows_of_slice[end - begin + 1 :].any()
