"""thinned_groups: what is kept, how many rows it represents, and which random numbers it takes."""

from __future__ import annotations

import numpy as np
import pytest

from balancer.sampling.pools import thinned_groups

ROWS = np.arange(100)


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_kept_rows_represent_all_rows_of_their_group(in_order: bool, shuffle: bool) -> None:
    weight = np.linspace(1, 2, 100)
    groups = [(ROWS[:80], 20), (ROWS[80:], 50)]
    rows, represented = thinned_groups(groups, np.random.default_rng(0), weight=weight, in_order=in_order, shuffle=shuffle)
    assert len(set(rows[:20]) & set(range(80))) == 20
    np.testing.assert_array_equal(rows[20:], ROWS[80:])
    np.testing.assert_allclose(represented, weight[rows] * np.repeat([4.0, 1.0], 20))
    assert in_order <= bool((np.diff(rows[:20]) > 0).all())


def test_a_group_that_is_kept_takes_no_random_number() -> None:
    one, two = np.random.default_rng(1), np.random.default_rng(1)
    first, _ = thinned_groups([(ROWS[:5], 5), (ROWS[5:], 9)], one)
    second, _ = thinned_groups([(ROWS[5:], 9)], two)
    np.testing.assert_array_equal(first[5:], second)


def test_an_empty_group() -> None:
    rows, represented = thinned_groups([(ROWS[:0], 5), (ROWS[:3], 5)], np.random.default_rng(0))
    assert (rows.tolist(), represented.tolist()) == ([0, 1, 2], [1.0, 1.0, 1.0])
