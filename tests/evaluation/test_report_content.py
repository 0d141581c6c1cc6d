"""What a report says about its own result."""

from __future__ import annotations

import pytest

from balancer.evaluation.report_content import chance_warning


@pytest.mark.parametrize(
    ("precision", "positives", "rows", "by_chance"),
    [
        (0.21, 480, 2_400, True),
        (0.25, 480, 2_400, False),
        (0.02, 20, 2_000, True),
        (0.05, 20, 2_000, False),
        (0.012, 40_000, 4_000_000, False),
    ],
)
def test_a_result_at_the_level_of_chance_is_said(precision: float, positives: int, rows: int, by_chance: bool) -> None:
    said = chance_warning({"average_precision": precision, "positives": positives, "rows": rows})
    assert bool(said) == by_chance
    assert not by_chance or "--negative" in said


def test_without_frauds_nothing_is_said_about_chance() -> None:
    assert chance_warning({"average_precision": None, "positives": 0, "rows": 10}) == ""
    assert chance_warning({"average_precision": 1.0, "positives": 10, "rows": 10}) == ""
