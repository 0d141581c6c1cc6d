"""Time folds: where they lie, that each is independent of other rows, and errors of small folds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.comparison.folds import FoldedTable, rolling
from balancer.data.simulation.stream import simulate
from balancer.data.split import Split
from balancer.errors import InputError


@given(st.lists(st.integers(0, 50), min_size=8, max_size=80), st.integers(1, 6))
def test_folds_cover_half_the_rows_each_and_all_together(times: list[int], count: int) -> None:
    time = np.array(times, dtype=np.float64)
    folds = rolling(time, count)
    assert len(folds) == count
    assert folds[0].begin == time.min()
    assert np.isinf(folds[-1].end)
    most = np.bincount(np.array(times)).max()  # rows of one moment stay together
    for fold in folds:
        inside = (time >= fold.begin) & (time < fold.end)
        assert fold.rows == inside.sum()
        if count > 1:
            assert abs(int(inside.sum()) - len(time) // 2) <= most
    assert sorted(w.begin for w in folds) == [w.begin for w in folds]


def test_test_parts_of_five_folds_have_no_row_in_common() -> None:
    frame = simulate(8_000, seed=5, fraud_rate=0.05)
    table = FoldedTable(frame, folds=5, roles={"gap": "1d"})
    seen: set[str] = set()
    for fold in table.folds:
        dataset = table.load(fold)
        ids = set(dataset.ids.to_numpy()[dataset.rows(Split.TEST)].tolist())
        assert not ids & seen
        seen |= ids


def test_a_fold_is_its_own_table() -> None:
    """The first fold's data set is the same whatever comes after it."""
    frame = simulate(6_000, seed=3, fraud_rate=0.05)
    table = FoldedTable(frame, folds=3, roles={"gap": "1d"})
    first = table.folds[0]
    time = frame["timestamp"] if "timestamp" in frame.columns else frame[table.spec.time]
    cut = frame.filter(time.dt.epoch("ms").to_numpy() / 1000 < first.end)
    alone = FoldedTable(cut, folds=1, roles={"gap": "1d"})
    one, other = table.load(first), alone.load(alone.folds[0])
    np.testing.assert_array_equal(one.store.values, other.store.values)
    np.testing.assert_array_equal(one.split, other.split)


def test_csv_and_dates_in_the_split(tmp_path: Path) -> None:
    frame = simulate(6_000, seed=3, fraud_rate=0.05)
    path = tmp_path / "t.csv"
    frame.write_csv(path)
    spec = tmp_path / "spec.toml"
    spec.write_text('[split]\ntrain = "2025-03-01"\nvalidation = "2025-04-01"\ntest = "2025-05-01"\ngap = "1d"\n')
    whole = FoldedTable(path, folds=1, spec_file=spec)
    assert whole.spec.split.by_dates
    rolled = FoldedTable(path, folds=2, spec_file=spec)
    assert not rolled.spec.split.by_dates
    assert rolled.spec.split.gap == 86_400
    assert rolled.load(rolled.folds[0]).store.values.shape[0] == rolled.folds[0].rows
    assert rolled.folds[0].describe()["begin"] == "2025-01-01"


def test_a_short_table_has_fewer_folds_and_says_so() -> None:
    table = FoldedTable(simulate(6_000, seed=3, fraud_rate=0.05), folds=5)
    assert 1 <= len(table.folds) < 5
    (note,) = table.notes
    assert re.search(r"instead of 5.*fold 1 of 5 \(3,000 rows from 2025-01-01\): the gap of 7 days", note)
    assert FoldedTable(simulate(6_000, seed=3, fraud_rate=0.05), folds=2, roles={"gap": "1d"}).notes == []


def test_too_small_a_table_is_said_before_anything_is_made() -> None:
    with pytest.raises(InputError, match=r"no row of|no positive row|too few"):
        FoldedTable(simulate(300, seed=3, fraud_rate=0.01), folds=5, roles={"gap": "0"})


def test_rows_without_a_time() -> None:
    frame = simulate(4_000, seed=3, fraud_rate=0.05)
    name = FoldedTable(frame, folds=1, roles={"gap": "1d"}).spec.time
    corrupt = frame.with_columns(pl.when(pl.int_range(pl.len()) == 7).then(None).otherwise(pl.col(name)).alias(name))
    with pytest.raises(InputError, match="row 8"):
        FoldedTable(corrupt, folds=2, roles={"gap": "1d"})
    table = FoldedTable(corrupt, folds=2, roles={"gap": "1d"}, bad_rows="drop")
    assert table.folds[0].rows == 1_999


def test_a_shorter_label_delay_is_said() -> None:
    rows = 800
    frame = pl.DataFrame(
        {
            "time": [1_700_000_000 + 3_600 * row for row in range(rows)],
            "amount": [float(row % 37) for row in range(rows)],
            "is_fraud": [int(row % 7 == 0) for row in range(rows)],
        }
    )
    plan = FoldedTable(frame, folds=1)
    assert plan.spec.label_delay == 43_200.0
    assert any("label delay: 12 hours, because the default of 7 days does not fit" in note for note in plan.notes)
    assert not any("label delay" in note for note in FoldedTable(frame, folds=1, roles={"label_delay": "6h"}).notes)
