"""The default label delay is shortened for a short table; one that was given is not."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.data.dataset import load_dataset
from balancer.data.delay import check_gap, in_words
from balancer.data.inspection import inspect_table
from balancer.data.roles import inferred, resolve_spec
from balancer.data.spec import DAY
from balancer.errors import InputError

ROWS = 600


def table(days: float, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    step = timedelta(days=days) / ROWS
    return pl.DataFrame(
        {
            "time": [datetime(2024, 1, 1) + row * step for row in range(ROWS)],
            "card_id": rng.integers(0, 60, ROWS),
            "amount": rng.exponential(30, ROWS).round(2),
            "channel": rng.choice(["web", "pos"], ROWS),
            "is_fraud": (np.arange(ROWS) % 9 == 0).astype(int),
        }
    )


@given(st.floats(0.05, 400.0), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_what_inspect_proposes_is_accepted(days: float, seed: int) -> None:
    frame = table(days, seed)
    found = inspect_table(frame)
    assert found.doubts == () and found.to_correct == ()
    spec = found.roles.spec
    load_dataset(frame, spec)
    short = spec.label_delay < 7 * DAY
    assert short == any("default label delay" in text for text in found.warnings)
    assert short == (days * 0.2 < 14), "a gap of seven days fits where validation has 14"
    assert not short or spec.label_delay <= 0.1 * 0.21 * days * DAY


def test_the_file_that_inspect_writes_is_accepted(tmp_path: Path) -> None:
    for days in (0.3, 5, 40, 200):
        frame, file = table(days), tmp_path / "spec.toml"
        file.write_text(inspect_table(frame).spec)
        spec = resolve_spec(frame, spec_file=file)
        assert spec == inferred(frame).spec
        load_dataset(frame, spec)


def test_a_delay_that_was_given_is_kept_and_refused() -> None:
    frame = table(40)
    roles = inferred(frame, overrides={"label_delay": "7d"})
    assert roles.spec.label_delay == 7 * DAY and roles.cautions == ()
    for check in (check_gap, load_dataset):
        with pytest.raises(InputError, match="the gap of 7 days is longer than half"):
            check(frame, roles.spec)
    assert "the gap of 7 days is longer than half" in inspect_table(frame, overrides={"label_delay": "7d"}).to_correct[0]
    short = inferred(frame)
    assert short.spec.label_delay == 43_200.0
    assert "7 days does not fit a validation span of 8 days: 12 hours instead" in short.cautions[0]
    assert resolve_spec(frame).label_delay == short.spec.label_delay
    assert inferred(frame, overrides={"gap": "1d"}).spec.label_delay == 7 * DAY


def test_dates_of_reports_decide_which_rows_have_a_label() -> None:
    frame = table(40).with_columns(reported_on=pl.when(pl.col("is_fraud") == 1).then(pl.col("time") + timedelta(days=1))).drop("is_fraud")
    spec = resolve_spec(frame, overrides={"label_date": "reported_on"})
    assert 0 < spec.label_delay < DAY
    load_dataset(frame, spec)


def test_without_a_time_or_at_random_there_is_no_delay_to_fit() -> None:
    assert resolve_spec(table(9), overrides={"by": "random"}).label_delay == 7 * DAY
    assert resolve_spec(table(9), overrides={"time": "none"}).label_delay == 7 * DAY
    assert in_words(90.0) == "90 seconds"
