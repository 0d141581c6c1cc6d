"""Positions in a timeline against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from balancer.data.timeline import Timeline


@pytest.mark.parametrize("inclusive", [True, False])
def test_positions_agree_with_counting(inclusive: bool) -> None:
    rng = np.random.default_rng(1)
    key, time = rng.integers(0, 6, 200), rng.integers(0, 30, 200).astype(np.float64)
    order = np.lexsort((time, key))
    key, time = key[order], time[order]
    asked, bound = rng.integers(0, 8, 100), rng.integers(-5, 40, 100).astype(np.float64)
    found = Timeline(key, time).position(asked, bound, inclusive=inclusive)
    for k, b, position in zip(asked, bound, found, strict=True):
        within = time <= b if inclusive else time < b
        assert position == np.sum(key < k) + np.sum((key == k) & within)


def test_no_rows() -> None:
    none = Timeline(np.zeros(0, np.int64), np.zeros(0))
    assert none.position(np.array([0, 3]), np.array([1.0, 2.0])).tolist() == [0, 0]
