"""The stability index is small for rows like the training rows and large for others; damaged references are
rejected."""

from __future__ import annotations

import json

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.evaluation.drift import LEAST, LiveDrift, Reference, stability_index


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
