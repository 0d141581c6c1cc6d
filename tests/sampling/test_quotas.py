"""Quotas: whole rows that add up in every batch and over the epoch, for any shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.sampling.quotas import batch_share, quotas

SHARES = st.lists(st.just(0.0) | st.floats(1e-6, 1), min_size=2, max_size=9).filter(lambda s: sum(s) > 0)


@settings(max_examples=300)
@given(SHARES, st.integers(1, 40), st.integers(1, 70), st.integers(0, 9))
def test_exact_in_every_batch_and_over_the_epoch(shares: list[float], num_batches: int, batch_size: int, seed: int) -> None:
    share = np.array(shares) / sum(shares)
    rows = quotas(share, num_batches, batch_size, np.random.default_rng(seed))
    ideal = batch_share(share, batch_size) * batch_size
    assert rows.shape == (num_batches, len(share))
    assert (rows.sum(axis=1) == batch_size).all()
    assert (rows >= np.floor(ideal + 1e-6)).all()
    assert (rows <= np.ceil(ideal - 1e-6)).all()
    assert np.abs(rows.sum(axis=0) - ideal * num_batches).max() < 1 + 1e-6
    assert not rows[:, share == 0].any()
    if batch_size >= (share > 0).sum():
        assert (rows[:, share > 0] >= 1).all()


@given(SHARES, st.integers(1, 70))
def test_raised_shares_sum_to_one_and_keep_the_others_apart(shares: list[float], batch_size: int) -> None:
    share = np.array(shares) / sum(shares)
    raised = batch_share(share, batch_size)
    assert raised.sum() == pytest.approx(1)
    free = raised > 1 / batch_size + 1e-9
    if batch_size < (share > 0).sum():
        np.testing.assert_allclose(raised, share)
    elif free.any():
        np.testing.assert_allclose(raised[free] / raised[free].sum(), share[free] / share[free].sum(), rtol=1e-6)


def test_totals_are_exact_in_expectation() -> None:
    share = np.array([0.531, 0.317, 0.152])
    totals = np.mean([quotas(share, 3, 8, np.random.default_rng(i)).sum(axis=0) for i in range(4_000)], axis=0)
    np.testing.assert_allclose(totals, share * 24, atol=0.03)


def test_refuses_no_batches() -> None:
    with pytest.raises(InputError, match="at least 1"):
        quotas(np.array([0.5, 0.5]), 0, 4, np.random.default_rng(0))
