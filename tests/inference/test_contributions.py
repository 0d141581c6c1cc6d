"""Contributions add up to the detector's log-odds, and are what the members say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.split import Split
from balancer.inference.contributions import AVERAGE, OWN_PART, Contributions, _first_stage, _passed_on, contributions_of
from balancer.inference.decision import NETWORK, STAGE2
from balancer.inference.detector import Detector, log_odds
from balancer.inference.scoring import score_rows
from balancer.inference.tree_stages import TreeStages, row_folds
from balancer.trees import TreeEnsemble
from tests.data.test_features import SPEC, make_table
from tests.inference.hand_stages import TRAIN_END, stages_of
from tests.inference.test_detector import network
from tests.trees.models import train

CPU = torch.device("cpu")


def trained_stages(dataset: Dataset) -> TreeStages:
    """Stages of many trees that LightGBM fitted; the score fields of the data set are filled."""

    def trees(values: np.ndarray, seed: int) -> TreeEnsemble:
        return TreeEnsemble.from_text(train(values, rounds=12, seed=seed).model_to_string())

    base = dataset.without_score_fields().store.values
    first = tuple(trees(base, seed) for seed in range(3))
    TreeStages(first, (), TRAIN_END).fill(dataset)
    second = tuple(trees(dataset.store.values, seed) for seed in (3, 4))
    return TreeStages(first, second, TRAIN_END)


def loaded(classes: int = 2, **changes: object) -> Dataset:
    table = make_table(300, 1)
    if classes > 2:
        kinds = np.random.default_rng(0).integers(1, classes, table.height)
        table = table.with_columns(fraud=pl.Series(table["fraud"].to_numpy() * kinds))
    return load_dataset(table, replace(SPEC, **changes), score_fields=True)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return loaded()


@pytest.fixture(scope="module")
def stages(dataset: Dataset) -> TreeStages:
    return trained_stages(dataset)


def summed(found: Contributions) -> np.ndarray:
    whole: np.ndarray = found.fields.sum(axis=1) + found.average + found.own_part
    return whole


SOME = np.arange(0, 300, 9)


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
@pytest.mark.parametrize(("form", "margin"), [("rows", "stage1_logit"), ("histories", "stage1_logit"), ("rows", "")])
def test_contributions_add_up_to_the_score(dataset: Dataset, stages: TreeStages, weight: float, form: str, margin: str) -> None:
    model = network(dataset, form=form, margin=margin)
    detector = Detector(model, stages, {NETWORK: weight, STAGE2: 1 - weight})
    found = contributions_of(detector, dataset, SOME, device=CPU)
    assert found.adds_up
    np.testing.assert_allclose(found.total, log_odds(detector.scores(dataset, SOME, device=CPU)), atol=1e-9)
    np.testing.assert_allclose(summed(found), found.total, atol=1e-9)
    assert found.fields.std(axis=0).max() > 0.01
    assert (weight > 0) or not found.own_part.any()


def test_contributions_of_six_classes_add_up() -> None:
    data = loaded(6)
    stages = trained_stages(data)
    detector = Detector(network(data, head="multiclass", classes=data.schema.classes), stages, {NETWORK: 0.5, STAGE2: 0.5}, 6)
    found = contributions_of(detector, data, SOME, device=CPU)
    np.testing.assert_allclose(summed(found), log_odds(detector.scores(data, SOME, device=CPU)), atol=1e-6)


@pytest.mark.parametrize("entity", ["card", None])
def test_trees_alone_add_up_with_and_without_entity(entity: str | None) -> None:
    data = loaded(entity=entity)
    detector = Detector(None, trained_stages(data), {STAGE2: 1.0})
    found = contributions_of(detector, data, SOME, device=CPU)
    np.testing.assert_allclose(summed(found), log_odds(detector.scores(data, SOME, device=CPU)), atol=1e-9)
    assert not found.own_part.any()


@pytest.mark.parametrize("entity", ["card", None])
def test_the_first_stage_is_explained_by_the_trees_that_scored_the_row(entity: str | None, tmp_path: Path) -> None:
    data = loaded(entity=entity)
    stages, base = stages_of(data, tmp_path), data.without_score_fields()
    rows = np.arange(300)
    found = _first_stage(stages, data, rows)
    early = data.store.time <= TRAIN_END
    assert 0 < early.sum() < 300
    expected = stages.first_logit(base.store.values, base.store.time, row_folds(base))
    np.testing.assert_allclose(found.sum(axis=1), expected, atol=1e-12)
    assert len(np.unique(np.abs(expected[early]).round(6))) > 1
    assert not found[:, 1:-1].any()  # these trees read the first field alone


def test_a_clipped_first_stage_score_adds_up(tmp_path: Path) -> None:
    data = loaded()
    stages = stages_of(data, tmp_path, folds=(50.0, 20.0, 4.0))
    stages.fill(data)
    assert (np.abs(data.store.values[:, 0]) == 12).any()
    detector = Detector(network(data), stages, {NETWORK: 0.5, STAGE2: 0.5})
    found = contributions_of(detector, data, SOME, device=CPU)
    np.testing.assert_allclose(summed(found), found.total, atol=1e-9)


def test_what_the_second_stage_takes_from_the_first_is_that_of_the_fields_of_the_first(tmp_path: Path) -> None:
    data = loaded()
    stages = stages_of(data, tmp_path)
    stages.fill(data)
    later = np.flatnonzero(data.store.time > TRAIN_END)[:20]
    found = contributions_of(Detector(None, stages, {STAGE2: 1.0}), data, later, device=CPU)
    base, second = len(data.schema.score_fields), stages.second[0].contributions(data.store.values[later])
    first = _first_stage(stages, data, later)
    # Both leaves have as many rows. The first stage gives +-7/3, the second +-3, as one of two members.
    np.testing.assert_allclose(np.abs(first[:, 0]), 7 / 3)
    np.testing.assert_allclose(np.abs(second[:, 0]), 3.0)
    np.testing.assert_allclose(found.fields[:, base], second[:, 0] / 2)
    np.testing.assert_allclose(found.fields[:, 0], 0, atol=1e-12)


@given(total=st.floats(-20, 20), parts=st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_what_is_passed_on_adds_up_and_never_grows(total: float, parts: list[float]) -> None:
    given_parts = np.array([parts])
    passed, rest = _passed_on(np.array([total]), given_parts)
    assert passed.sum() + rest[0] == pytest.approx(total, abs=1e-9)
    assert (np.abs(passed) <= np.abs(given_parts) + 1e-12).all()
    whole = sum(parts)
    if abs(whole) > 1e-6 and 0 < total / whole <= 1:
        assert rest[0] == pytest.approx(0, abs=1e-9)
    elif abs(whole) > 1e-6 and total * whole < 0:
        assert not passed.any()


@pytest.mark.parametrize("form", ["rows", "histories"])
def test_the_networks_own_part_is_its_change_without_the_margin(dataset: Dataset, stages: TreeStages, form: str) -> None:
    model = network(dataset, form=form)
    row = np.array([int(dataset.rows(Split.TEST)[20])])
    found = contributions_of(Detector(model, stages, {NETWORK: 1.0, STAGE2: 0.0}), dataset, row, device=CPU)

    def own(values: np.ndarray) -> float:
        hidden = replace(dataset, store=replace(dataset.store, values=values))
        margin = np.nan_to_num(values[row[0], 0])
        return float(log_odds(score_rows(model, hidden, row, device=CPU))[0] - margin)

    store, first = dataset.store, _first_stage(stages, dataset, row)
    changes = []
    for field in range(store.values.shape[1]):
        values = store.values.copy()
        values[:, field] = np.nan if field < store.num_numeric else 0.0
        changes.append(own(store.values) - own(values))
    passed, rest = _passed_on(np.array([own(store.values)]), np.array([changes]))
    expected, base = passed[0], len(dataset.schema.score_fields)
    expected[base:] += first[0, :-1]
    np.testing.assert_allclose(found.fields[0], expected, atol=1e-5)
    assert found.own_part[0] == pytest.approx(rest[0], abs=1e-4)


def frame_of(detector: Detector, dataset: Dataset, rows: np.ndarray) -> pl.DataFrame:
    return contributions_of(detector, dataset, rows, device=CPU).frame(dataset)


def test_the_table_has_every_field_of_every_row_and_adds_up(dataset: Dataset, stages: TreeStages) -> None:
    detector = Detector(network(dataset), stages, {NETWORK: 0.5, STAGE2: 0.5})
    frame = frame_of(detector, dataset, SOME[:3])
    fields = {*dataset.schema.numeric_fields, *dataset.schema.categorical_fields}
    sums = frame.group_by("row", maintain_order=True).agg(pl.col("contribution").sum(), pl.col("field"))
    assert sums["row"].to_list() == SOME[:3].tolist()
    np.testing.assert_allclose(sums["contribution"], log_odds(detector.scores(dataset, SOME[:3], device=CPU)), atol=1e-6)
    for names in sums["field"].to_list():
        assert names[0] == AVERAGE
        assert fields <= set(names) <= fields | {AVERAGE, OWN_PART}
        assert len(names) == len(set(names))
    for part in frame.partition_by("row"):
        assert (np.diff(part["contribution"].abs().to_numpy()[1:]) <= 0).all()
    assert frame.filter(pl.col("field") == "count_1h")["words"].unique().to_list() == ["transactions of this card in the last hour"]
    assert set(frame.filter(pl.col("field") == "kind")["value"]) <= {"a", "b", "c"}


def test_a_network_alone_says_that_it_does_not_add_up(dataset: Dataset) -> None:
    detector = Detector(network(dataset, margin=""), None)
    found = contributions_of(detector, dataset, SOME[:2], device=CPU)
    assert not found.adds_up
    assert "do not add up" in found.note()
    assert AVERAGE not in found.frame(dataset)["field"].to_list()


def test_the_note_names_the_sum_and_the_own_part(dataset: Dataset, stages: TreeStages) -> None:
    found = contributions_of(Detector(None, stages, {STAGE2: 1.0}), dataset, SOME[:1], device=CPU)
    assert f"{found.total[0]:+.2f}" in found.note()
    assert "own part" not in found.note()
    assert "own part" in replace(found, own_part=np.array([0.3])).note()


def test_reasons_are_the_strongest_towards_fraud(dataset: Dataset) -> None:
    names = (*dataset.schema.numeric_fields, *dataset.schema.categorical_fields)
    fields = np.zeros((2, len(names)))
    set_to: Callable[[str, float], None] = lambda name, value: fields[0].__setitem__(names.index(name), value)  # noqa: E731
    set_to("count_1h", 0.5)
    set_to("kind", 2.0)
    set_to("amount_log", -3.0)
    set_to("hour", 0.1)
    found = Contributions(np.array([5, 6]), fields, np.zeros(2), np.array([1.0, 0.0]), fields.sum(axis=1), adds_up=True)
    kind = found.frame(dataset).filter((pl.col("field") == "kind") & (pl.col("row") == 5))["value"].item()
    first, second = found.reasons(dataset, 3)
    parts = first.split("; ")
    assert parts[0] == f"kind: {kind} (+2.00)"
    assert parts[1] == "the network's own part (+1.00)"
    assert parts[2].startswith("transactions of this card in the last hour: ") and parts[2].endswith("(+0.50)")
    assert len(parts) == 3
    assert second == ""
    assert len(found.reasons(dataset, 9)[0].split("; ")) == 4


def test_no_rows_give_no_contributions(dataset: Dataset, stages: TreeStages) -> None:
    detector = Detector(network(dataset), stages, {NETWORK: 0.5, STAGE2: 0.5})
    found = contributions_of(detector, dataset, SOME[:0], device=CPU)
    assert found.frame(dataset).height == 0
    assert found.reasons(dataset, 3) == []


def test_fields_that_say_the_same_are_one_reason(dataset: Dataset) -> None:
    names = (*dataset.schema.numeric_fields, *dataset.schema.categorical_fields)
    first = int(np.flatnonzero(dataset.store.values[:, names.index("is_first")] > 0.5)[0])
    fields = np.zeros((1, len(names)))
    for name, value in {
        "hour": 0.1,
        "hour_sin": 0.2,
        "hour_cos": -0.05,
        "is_first": 0.3,
        "previous_amount_log": 0.4,
        "gap_log": 0.1,
    }.items():
        fields[0, names.index(name)] = value
    found = Contributions(np.array([first]), fields, np.zeros(1), np.zeros(1), fields.sum(axis=1), adds_up=True)
    (text,) = found.reasons(dataset, 5)
    none, hour = text.split("; ")
    assert none == "no earlier transaction of this card (+0.80)"
    assert hour.startswith("hour of the day: ") and hour.endswith(" (+0.25)")
    table = found.frame(dataset).filter(pl.col("field") == "previous_amount_log")
    assert table["value"].item() == "no earlier transaction of this card"
