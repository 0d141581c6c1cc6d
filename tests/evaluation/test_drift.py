"""The stability index is small for rows like the training rows and large for others; damaged references are
rejected."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.evaluation.drift import LARGE, LEAST, LiveDrift, Reference, stability_index, table_drift


def table(rng: np.random.Generator, rows: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    values = np.column_stack([rng.normal(shift, 1, rows), rng.integers(0, 2, rows), rng.choice([1, 2, 3], rows, p=[0.7, 0.2, 0.1])])
    return values.astype(np.float32), rng.beta(1, 20, rows)


def test_shifted_fields_stand_out_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    reference = Reference.of(("x", "flag"), ("kind",), *table(rng, 20_000))
    assert Reference.from_dict(json.loads(json.dumps(reference.to_dict()))) == reference
    live = LiveDrift(reference)
    values, score = table(rng, 4000, shift=1.0)
    for number in range(4000):
        live.add(values[number], float(score[number]))
        assert bool(live.indices()) == (live.rows >= LEAST) or number % 100
    found = live.indices()
    assert set(found) == {"x", "flag", "kind", "score"}
    assert found["x"] > 0.5
    assert max(found["flag"], found["kind"], found["score"]) < 0.05


def test_the_index_by_hand() -> None:
    assert stability_index(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
    assert stability_index(np.array([0.5, 0.5]), np.array([0.8, 0.2])) == pytest.approx(0.3 * np.log(1.6) + 0.3 * np.log(2.5))
    assert np.isfinite(stability_index(np.array([1.0, 0.0]), np.array([0.0, 1.0])))


@pytest.mark.parametrize(
    "content", [{"x": {"edges": [1.0]}}, {"x": {"edges": [1.0], "shares": [1.0]}}, {"x": {"edges": ["a"], "shares": [0.5, 0.5]}}]
)
def test_a_damaged_reference_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(InputError, match="damaged"):
        Reference.from_dict(content)


def test_missing_values_have_a_bin_of_their_own() -> None:
    rng = np.random.default_rng(1)
    values, score = table(rng, 8000)
    few, many = values.copy(), values.copy()
    few[rng.random(8000) < 0.1, 0] = np.nan
    many[rng.random(8000) < 0.6, 0] = np.nan
    many[:, 1] = np.nan
    reference = Reference.of(("x", "flag"), ("kind",), few, score)
    assert Reference.from_dict(json.loads(json.dumps(reference.to_dict()))) == reference
    same, changed = (table_drift(reference, each, score) for each in (few, many))
    assert not any(each.notable for each in same)
    assert [each.name for each in changed if each.notable] == ["x", "flag"]
    assert changed[0].missing == pytest.approx((0.1, 0.6), abs=0.02)
    live = LiveDrift(reference)
    for number in range(1000):
        live.add(many[number], float(score[number]))
    assert live.indices()["x"] > LARGE and live.indices()["flag"] > LARGE > live.indices()["kind"]


def test_a_field_without_any_value_can_be_a_reference() -> None:
    values = np.full((50, 1), np.nan, np.float32)
    reference = Reference.of(("x",), (), values, np.linspace(0, 1, 50))
    assert [each.index for each in table_drift(reference, values, np.linspace(0, 1, 50))] == [0, 0]


@given(st.integers(1, 3000), st.integers(0, 99))
def test_a_table_like_the_training_rows_has_no_notable_field(rows: int, seed: int) -> None:
    reference = Reference.of(("x", "flag"), ("kind",), *table(np.random.default_rng(7), 20_000))
    found = table_drift(reference, *table(np.random.default_rng([3, seed]), rows))
    assert not [each for each in found if each.notable]
    assert all(each.index >= 0 for each in found)


def test_a_shifted_table_shows_both_medians() -> None:
    rng = np.random.default_rng(0)
    reference = Reference.of(("x", "flag"), ("kind",), *table(rng, 20_000))
    shifted = table_drift(reference, *table(rng, 300, shift=4.0))
    assert [each.name for each in shifted if each.notable] == ["x"]
    assert shifted[0].median == pytest.approx((0, 4), abs=0.3)
    assert table_drift(reference, np.zeros((0, 3)), np.zeros(0)) == []
