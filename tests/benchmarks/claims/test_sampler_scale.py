"""The benchmark of large tables: its cases on a small one, and its claims."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.claims.sampler_scale import CASES, claims, labels, measured


@pytest.mark.parametrize("name", CASES)
def test_each_case_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.claims.sampler_scale.SCORED", 2_000)
    monkeypatch.setattr("benchmarks.claims.sampler_scale.PIECE", 30_000)
    found = measured(name, 60_000)
    assert found["bytes_a_row"] == pytest.approx(6.0 if "1000" in name else 5.0, abs=1.0)
    assert found["bytes_a_row_with_scores"] - found["bytes_a_row"] == pytest.approx(4.0, abs=0.1)
    assert all(value >= 0 for value in found.values())
    checked: list[dict[str, Any]] = claims({name: found}, {"even": 1.0, "hard": 2.0})
    assert [each["holds"] for each in checked[-2:]] == ["met", "not met"]
    assert claims({name: found}, None)[-1]["holds"] == "not measured"


def test_labels_are_the_same_each_time_and_of_the_asked_kind() -> None:
    for kind, classes in CASES.values():
        y = labels(kind, classes, 50_000)
        assert (y.dtype, y.min(), y.max()) == (kind, 0, classes - 1)
        assert (y == labels(kind, classes, 50_000)).all()
