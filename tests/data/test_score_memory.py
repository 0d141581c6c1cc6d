"""Score memory against a slow reference, causality to the last bit, one row at a time, and odd tables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.past import SCALE, VELOCITY
from balancer.data.schema import Schema
from balancer.data.score_memory import (
    LAST,
    LIMIT,
    RECENT,
    STAGE1_LOGIT,
    TOP,
    WINDOWS,
    TableScores,
    clipped,
    memory_fields,
    memory_names,
    probability,
)
from balancer.data.timeline import Index
from tests.data.test_features import SPEC, make_table

NAMES = memory_names(True)


def loaded(table: pl.DataFrame, **changes: object) -> Dataset:
    return load_dataset(table, replace(SPEC, **changes), score_fields=True)  # type: ignore[arg-type]


def random_logits(rows: int, seed: int) -> np.ndarray:
    """Log-odds as trees give them, some beyond the limit and some equal."""
    return np.round(np.random.default_rng(seed).normal(-3.0, 6.0, rows), 1)


def slow_fields(entity: list[int], time: list[float], logit: list[float], at: int) -> dict[str, float]:
    """The score fields of row `at` of rows in time order, from the definitions."""
    kept = [max(-LIMIT, min(LIMIT, float(np.float32(value)))) for value in logit]
    earlier = [row for row in range(at) if entity[row] == entity[at]]
    found = {STAGE1_LOGIT: kept[at]}
    for back in LAST:
        found[f"stage1_previous_{back}"] = kept[earlier[-back]] if len(earlier) >= back else -LIMIT
    for number in TOP:
        found[f"stage1_highest_{number}"] = max([-LIMIT, *(kept[row] for row in earlier[-number:])])
    for window in WINDOWS:
        inside = [row for row in earlier if time[row] > time[at] - VELOCITY[window]]
        total = sum(round(SCALE / (1 + math.exp(-kept[row]))) for row in inside) / SCALE
        found[f"stage1_sum_{window}"] = math.log1p(total)
        found[f"stage1_mean_{window}"] = total / len(inside) if inside else 0.0
    return found


def in_input_order(data: Dataset) -> np.ndarray:
    return data.store.values[np.argsort(data.store.row), : len(data.schema.score_fields)]


def filled(table: pl.DataFrame, logit: np.ndarray) -> np.ndarray:
    """Score fields in input order, from log-odds in input order."""
    data = loaded(table)
    data.fill_score_fields(logit[data.store.row])
    return in_input_order(data)


def test_the_names_say_what_is_remembered() -> None:
    assert NAMES[0] == STAGE1_LOGIT and len(set(NAMES)) == len(NAMES) == 1 + len(LAST) + len(TOP) + 2 * len(WINDOWS)
    assert memory_names(False) == (STAGE1_LOGIT,)
    assert max(*LAST, *TOP) <= RECENT


@pytest.mark.parametrize("seed", [0, 1])
def test_every_field_is_what_its_definition_says(seed: int) -> None:
    table, logit = make_table(400, seed, days=60.0), random_logits(400, seed)
    found = filled(table, logit)
    entity, time = table["card"].to_list(), table["time"].to_list()
    expected = [slow_fields(entity, time, logit.tolist(), at) for at in range(400)]
    for column, name in enumerate(NAMES):
        np.testing.assert_allclose(found[:, column], [row[name] for row in expected], rtol=3e-7, atol=1e-7, err_msg=name)
        assert len(np.unique(found[:, column])) > 20, name


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), place=st.floats(0, 0.999))
def test_a_score_changes_nothing_but_later_rows_of_its_entity(seed: int, place: float) -> None:
    table, logit = make_table(90, seed), random_logits(90, seed)
    changed = int(place * 90)
    other = logit.copy()
    other[changed] = 5.0 if logit[changed] < 0 else -7.0
    before, after = filled(table, logit), filled(table, other)
    same_card = (table["card"] == table["card"][changed]).to_numpy()
    later = np.arange(90) > changed
    np.testing.assert_array_equal(before[:, 1:][~(later & same_card)], after[:, 1:][~(later & same_card)])
    np.testing.assert_array_equal(np.flatnonzero(before[:, 0] != after[:, 0]), [changed])
    following = np.flatnonzero(later & same_card)
    assert not len(following) or (before[following[0], 1] != after[following[0], 1])


def test_a_later_row_changes_nothing_before_it() -> None:
    table, logit = make_table(200, 3), random_logits(200, 3)
    np.testing.assert_array_equal(filled(table.head(150), logit[:150]), filled(table, logit)[:150])


def test_rows_of_one_moment_follow_the_input_and_other_entities_do_not_matter() -> None:
    table, logit = make_table(200, 4, days=2.0), random_logits(200, 4)
    assert table.select(pl.struct("card", "time").is_duplicated().sum()).item() > 50
    whole = filled(table, logit)
    # Within an entity the order stays; rows of different entities with the same time change places.
    moved = np.lexsort((table["card"].to_numpy(), table["time"].to_numpy()))
    assert (moved != np.arange(200)).any()
    np.testing.assert_array_equal(filled(table[moved], logit[moved]), whole[moved])
    for card in table["card"].unique():
        own = np.flatnonzero((table["card"] == card).to_numpy())
        time, start = table["time"].to_numpy()[own], np.zeros(len(own), np.int64)
        alone = np.column_stack([values for _, values in memory_fields(TableScores(start, time, logit[own]))])
        np.testing.assert_array_equal(alone, whole[own, 1:])


class OneRow:
    """The past of one row of an entity, kept as a service keeps it: its scores, and sums in fixed point."""

    def __init__(self, time: list[float], logit: list[float], now: float) -> None:
        self._time, self._logit, self._now = time, logit, now
        self.seen: Index = np.array([len(time)])

    def _inside(self, window: str) -> list[float]:
        pairs = zip(self._time, self._logit, strict=True)
        return [logit for time, logit in pairs if time > self._now - VELOCITY[window]]

    def logit(self, back: int) -> np.ndarray:
        return np.array([self._logit[-back] if back <= len(self._logit) else np.nan])

    def count(self, window: str) -> Index:
        return np.array([len(self._inside(window))])

    def probability(self, window: str) -> np.ndarray:
        total = sum(int(np.rint(probability(np.array([logit])) * SCALE)[0]) for logit in self._inside(window))
        return np.array([total / SCALE])


def test_one_row_at_a_time_gives_the_bits_of_the_table() -> None:
    table, logit = make_table(250, 6, days=50.0), random_logits(250, 6)
    whole = filled(table, logit)
    kept: dict[int, tuple[list[float], list[float]]] = {}
    for at, (card, time) in enumerate(zip(table["card"], table["time"], strict=True)):
        times, logits = kept.setdefault(card, ([], []))
        single = np.array([values[0] for _, values in memory_fields(OneRow(times, logits, time))])
        assert single.tobytes() == whole[at, 1:].tobytes(), at
        times.append(time)
        logits.append(float(clipped(np.array([logit[at]]))[0]))
        assert np.float32(logits[-1]) == whole[at, 0]


def test_log_odds_are_clipped_as_float32() -> None:
    given = np.array([np.inf, -np.inf, 50.0, -12.0000001, 0.1, -0.0])
    expected = [LIMIT, -LIMIT, LIMIT, -LIMIT, float(np.float32(0.1)), 0.0]
    np.testing.assert_array_equal(clipped(given), expected)
    np.testing.assert_array_equal(clipped(given.astype(np.float32)), expected)


def test_without_an_entity_only_the_own_score_is_a_field() -> None:
    data = loaded(make_table(80, 2).drop("card"), entity=None)
    assert data.schema.score_fields == (STAGE1_LOGIT,)
    logit = random_logits(80, 2)
    data.fill_score_fields(logit)
    np.testing.assert_array_equal(data.store.values[:, 0], clipped(logit).astype(np.float32))
    plain = load_dataset(make_table(80, 2).drop("card"), replace(SPEC, entity=None))
    np.testing.assert_array_equal(data.store.values[:, 1:], plain.store.values)


def test_an_empty_table_has_all_fields_and_no_rows() -> None:
    fields = list(memory_fields(TableScores(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))))
    assert [name for name, _ in fields] == list(NAMES[1:])
    assert all(values.shape == (0,) and values.dtype == np.float32 for _, values in fields)


def test_score_fields_come_first_and_the_rest_is_a_view() -> None:
    table = make_table(120, 8)
    plain, data = load_dataset(table, SPEC), loaded(table)
    assert data.schema.numeric_fields == (*NAMES, *plain.schema.numeric_fields)
    assert data.schema.score_fields == NAMES and plain.schema.score_fields == ()
    assert not data.store.values[:, : len(NAMES)].any()
    base = data.without_score_fields()
    assert base.schema == plain.schema == data.schema.without_score_fields() and base.store.num_numeric == plain.store.num_numeric
    assert np.shares_memory(base.store.values, data.store.values)
    np.testing.assert_array_equal(base.store.values, plain.store.values)
    assert plain.without_score_fields() is plain
    before = base.store.values.copy()
    data.fill_score_fields(random_logits(120, 8))
    np.testing.assert_array_equal(base.store.values, before)
    rows, first, last = np.array([0, 40, 119]), np.array([0, 3]), np.array([2, 9])
    own = base.store.copied()
    assert own.values.flags.c_contiguous and not np.shares_memory(own.values, data.store.values)
    for one, two in zip(base.store.windows(rows, 5), own.windows(rows, 5), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(base.store.slices(first, last, 8), own.slices(first, last, 8))


def test_a_stored_schema_says_whether_there_are_score_fields() -> None:
    table = make_table(120, 8)
    schema = loaded(table).schema
    again = Schema.from_dict(schema.to_dict())
    assert again == schema and again.score_fields == NAMES
    scored = load_dataset(table.head(30), SPEC, schema=again)
    assert scored.schema.score_fields == NAMES and not scored.store.values[:, : len(NAMES)].any()
    # With the base schema no score field appears, whatever is asked for.
    base = load_dataset(table.head(30), SPEC, schema=schema.without_score_fields(), score_fields=True)
    assert base.schema.score_fields == ()


def test_a_column_of_the_table_with_the_name_of_a_score_field_is_kept_apart() -> None:
    table = make_table(80, 2).with_columns(stage1_previous_1=pl.lit(1.5))
    spec = replace(SPEC, numeric=("stage1_previous_1",))
    data = load_dataset(table, spec, score_fields=True)
    names = data.schema.numeric_fields
    assert names[-1] == "column:stage1_previous_1" and names.count("stage1_previous_1") == 1
    assert (data.store.values[:, data.store.num_numeric - 1] == 1.5).all()
    assert "stage1_previous_1 is column:stage1_previous_1" in data.notes[-1]
    assert load_dataset(table, spec).schema.score_fields == ()
