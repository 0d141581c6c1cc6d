"""Delayed context risk at the borders of its windows."""

from __future__ import annotations

import numpy as np
import pytest

from balancer.data.risk import risk_fields
from balancer.data.spec import DAY


def fields(key: list[int], days: list[float], label: list[int], delay: float = 7.0) -> dict[str, np.ndarray]:
    time = np.array(days) * DAY
    return dict(risk_fields("shop", np.array(key), time, np.array(label, dtype=np.int16), delay * DAY))


def test_a_label_appears_with_the_delay_and_leaves_with_the_window() -> None:
    query = [6.999, 7.0, 7.999, 8.0, 13.999, 14.0, 36.999, 37.0]
    found = fields([0] * 9, [0.0, *query], [2, *[-1] * 8])
    seen_1d = [0, 1, 1, 0, 0, 0, 0, 0]
    seen_7d = [0, 1, 1, 1, 1, 0, 0, 0]
    seen_30d = [0, 1, 1, 1, 1, 1, 1, 0]
    for window, seen in (("1d", seen_1d), ("7d", seen_7d), ("30d", seen_30d)):
        np.testing.assert_allclose(found[f"shop_count_{window}"][1:], np.log1p(seen), rtol=1e-6)
        np.testing.assert_allclose(found[f"shop_fraud_rate_{window}"][1:], np.array(seen) / 2, rtol=1e-6)


def test_unlabelled_rows_count_nowhere_and_legitimate_ones_in_the_count() -> None:
    found = fields([0] * 5, [0.0, 0.1, 0.2, 0.3, 7.5], [1, 0, -1, -1, -1])
    assert found["shop_count_1d"][4] == pytest.approx(np.log1p(2))
    assert found["shop_fraud_rate_1d"][4] == pytest.approx(1 / 3)


def test_other_keys_and_null_keys_are_apart() -> None:
    found = fields([0, 1, -1, 1, 0, -1], [0.0, 0.0, 0.0, 8.0, 8.0, 8.0], [1, 0, 1, -1, -1, -1])
    np.testing.assert_allclose(found["shop_fraud_rate_30d"], [0, 0, 0, 0, 0.5, 0])
    np.testing.assert_allclose(found["shop_count_30d"], np.log1p([0, 0, 0, 1, 1, 0]), rtol=1e-6)


def test_input_order_is_no_matter() -> None:
    rng = np.random.default_rng(0)
    key, time = rng.integers(-1, 5, 300), rng.random(300) * 60 * DAY
    label = rng.integers(-1, 3, 300).astype(np.int16)
    shuffled = rng.permutation(300)
    straight = dict(risk_fields("shop", key, time, label, DAY))
    mixed = dict(risk_fields("shop", key[shuffled], time[shuffled], label[shuffled], DAY))
    for name, column in straight.items():
        np.testing.assert_array_equal(column[shuffled], mixed[name])
