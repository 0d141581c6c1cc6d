"""Budgets that train equally long on a small table are said to do so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from balancer.options.fit import BUDGETS, FitOptions
from balancer.training.costs import equal_budgets
from balancer.training.preparation import schedule_for


@pytest.mark.parametrize(
    ("rows", "names"),
    [(3_000, "every budget has 10 steps per epoch"), (60_000, "quick, standard and thorough"), (300_000, "standard and"), (10**7, None)],
)
def test_equal_budgets_are_said(rows: int, names: str | None) -> None:
    options = FitOptions()
    schedules = {name: schedule_for(replace(options, budget=name), rows) for name in BUDGETS}  # type: ignore[arg-type]
    note = equal_budgets(schedules, options)
    assert (note is None) == (names is None)
    assert names is None or names in str(note)
    assert equal_budgets(schedules, FitOptions(steps_per_epoch=9)) is None
