"""The stages of trees: which trees score which row, the score fields they fill, and their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.score_memory import memory_names
from balancer.errors import CorruptFileError, InputError
from balancer.inference import tree_stages
from balancer.inference.tree_stages import (
    STAGES_FILE,
    TREES_FOLDER,
    TreeStages,
    digest_of,
    fold_of,
    has_every_fold,
    load_stages,
    row_folds,
    time_folds,
)
from balancer.trees import TreeEnsemble
from tests.data.test_features import SPEC, make_table
from tests.inference.hand_stages import TRAIN_END, stages_of, two_leaves
from tests.trees.models import random_values, train


@pytest.fixture
def dataset() -> Dataset:
    return load_dataset(make_table(300, 1), SPEC, score_fields=True)


@pytest.fixture
def stages(dataset: Dataset, tmp_path: Path) -> TreeStages:
    return stages_of(dataset, tmp_path / "fitted")


def test_the_fold_of_an_entity_follows_from_its_name_alone(dataset: Dataset) -> None:
    # Pinned: the runs that are stored depend on it.
    assert [fold_of(name) for name in ("", "1", "4", "card 17", "é")] == [0, 2, 1, 2, 0]
    counts = np.bincount([fold_of(f"card {number}") for number in range(3000)], minlength=3)
    assert counts.min() > 900
    assert {fold_of(str(number), 5) for number in range(50)} == set(range(5))
    expected = [fold_of(dataset.entities[code]) for code in dataset.store.entity]
    assert row_folds(dataset).tolist() == expected and len(set(expected)) > 1
    part = make_table(300, 1).filter(pl.col("card") != 0).sample(fraction=1.0, shuffle=True, seed=2)
    again = load_dataset(part, SPEC)
    assert again.entities != dataset.entities
    by_name = {dataset.entities[code]: fold for code, fold in zip(dataset.store.entity, row_folds(dataset), strict=True)}
    assert [by_name[again.entities[code]] for code in again.store.entity] == row_folds(again).tolist()


def test_without_entities_the_fold_follows_from_the_time() -> None:
    table = make_table(300, 1, days=900.0).drop("card")
    data = load_dataset(table, replace(SPEC, entity=None))
    assert row_folds(data).tolist() == time_folds(data.store.time).tolist()
    part = load_dataset(table.tail(100), replace(SPEC, entity=None), schema=data.schema)
    assert row_folds(part).tolist() == row_folds(data)[-100:].tolist()
    for step in (1.0, 60.0, 3600.0, 86400.0, 0.001):
        time = (1.7e9 + np.arange(3000) * step).astype(np.float64)
        folds = time_folds(time)
        assert np.bincount(folds, minlength=3).min() > 850, step
        assert (folds == time_folds(time)).all()
    assert len(set(time_folds(np.full(20, 1.7e9)).tolist())) == 1


def test_every_fold_and_the_rows_outside_it_need_frauds_and_others() -> None:
    fold, fraud = np.array([0, 0, 1, 1, 2, 2], np.int8), np.array([True, False] * 3)
    assert has_every_fold(fold, fraud, 3, 1)
    assert not has_every_fold(fold, fraud, 3, 2)
    assert not has_every_fold(fold, np.array([True, False, True, False, False, False]), 3, 1)
    assert not has_every_fold(fold, np.array([True, False, True, False, True, True]), 3, 1)
    assert not has_every_fold(fold[:4], fraud[:4], 3, 1)


def test_an_early_row_is_scored_by_its_own_fold_and_a_later_one_by_the_mean(dataset: Dataset, stages: TreeStages) -> None:
    base = dataset.without_score_fields().store
    fold, early = row_folds(dataset), base.time <= TRAIN_END
    assert 50 < early.sum() < 250 and (base.time == TRAIN_END).any()
    each = np.column_stack([trees.raw(base.values) for trees in stages.folds])
    expected = np.where(early, each[np.arange(300), fold], each.sum(1) / 3)
    np.testing.assert_array_equal(stages.first_logit(base.values, base.time, fold), expected)
    assert {abs(value) for value in expected[early]} == {(1.0, 2.0, 4.0)[number] for number in set(fold.tolist())}
    np.testing.assert_allclose(np.abs(expected[~early]), 7 / 3)
    for at in (0, 150, 299):  # a row alone, as in the service
        one = slice(at, at + 1)
        assert stages.first_logit(base.values[one], base.time[one], fold[one])[0] == expected[at]
    assert stages.first_logit(base.values[:0], base.time[:0], fold[:0]).shape == (0,)


def test_scores_do_not_depend_on_how_many_rows_are_scored_at_once(
    dataset: Dataset, stages: TreeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = dataset.without_score_fields().store
    whole = stages.first_logit(base.values, base.time, row_folds(dataset))
    monkeypatch.setattr(tree_stages, "AT_ONCE", 37)
    np.testing.assert_array_equal(stages.first_logit(base.values, base.time, row_folds(dataset)), whole)


def test_filling_writes_the_score_fields_and_nothing_else(dataset: Dataset, stages: TreeStages) -> None:
    width = len(dataset.schema.score_fields)
    before = dataset.store.values.copy()
    stages.fill(dataset)
    np.testing.assert_array_equal(dataset.store.values[:, width:], before[:, width:])
    base = dataset.without_score_fields().store
    logit = stages.first_logit(base.values, base.time, row_folds(dataset))
    np.testing.assert_array_equal(dataset.store.values[:, 0], logit.astype(np.float32))
    second = dataset.store.start < np.arange(300)
    np.testing.assert_array_equal(dataset.store.values[second, 1], dataset.store.values[np.flatnonzero(second) - 1, 0])
    once = dataset.store.values.copy()
    stages.fill(dataset)
    np.testing.assert_array_equal(dataset.store.values, once)


def test_a_part_of_the_table_with_the_rest_as_past_has_the_same_score_fields(dataset: Dataset, stages: TreeStages) -> None:
    stages.fill(dataset)
    table = make_table(300, 1)
    later = load_dataset(table.tail(120), SPEC, schema=dataset.schema, past=table.head(180))
    stages.fill(later)
    whole = dataset.store.values[np.argsort(dataset.store.row)][180:]
    np.testing.assert_array_equal(later.store.values[later.scored_rows()], whole)


def test_the_second_stage_is_the_mean_of_its_members(dataset: Dataset, stages: TreeStages) -> None:
    stages.fill(dataset)
    values = dataset.store.values
    expected = (np.where(values[:, 0] > 0, 3.0, -3.0) + np.where(values[:, 1] > -1, 0.5, -0.5)) / 2
    np.testing.assert_array_equal(stages.second_logit(values), expected)


def test_shares_of_kinds_are_a_softmax_and_even_without_trees(stages: TreeStages) -> None:
    values = random_values(np.random.default_rng(0), 300, 4)
    kinds = TreeEnsemble.from_text(train(values, classes=3).model_to_string())
    shares = replace(stages, kinds=kinds).kind_shares(values, 3)
    raw = kinds.raw(values)
    np.testing.assert_allclose(shares, np.exp(raw) / np.exp(raw).sum(1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_array_equal(stages.kind_shares(values, 4), np.full((300, 4), 0.25))


@pytest.fixture
def stored(dataset: Dataset, stages: TreeStages, tmp_path: Path) -> Path:
    """The folder of a run with trees."""
    stages.save(tmp_path / TREES_FOLDER, dataset.schema, tmp_path / "fitted")
    return tmp_path


def test_what_is_stored_scores_the_same(dataset: Dataset, stages: TreeStages, stored: Path) -> None:
    again = load_stages(stored, dataset.schema)
    assert again is not None and again.train_end == TRAIN_END and again.kinds is None
    stages.fill(dataset)
    values = dataset.store.values.copy()
    again.fill(dataset)
    np.testing.assert_array_equal(dataset.store.values, values)
    np.testing.assert_array_equal(again.second_logit(values), stages.second_logit(values))
    assert load_stages(stored, dataset.schema.without_score_fields()) is None


def test_trees_of_kinds_are_stored_too(dataset: Dataset, stages: TreeStages, tmp_path: Path) -> None:
    values = random_values(np.random.default_rng(0), 300, dataset.store.values.shape[1])
    (tmp_path / "fitted" / "kinds.txt").write_text(train(values, classes=3).model_to_string())
    kinds = TreeEnsemble.read(tmp_path / "fitted" / "kinds.txt")
    schema = replace(dataset.schema, classes=("no", "x", "y", "z"))
    replace(stages, kinds=kinds).save(tmp_path / TREES_FOLDER, schema, tmp_path / "fitted")
    again = load_stages(tmp_path, schema)
    assert again is not None
    np.testing.assert_array_equal(again.kind_shares(values, 3), replace(stages, kinds=kinds).kind_shares(values, 3))
    # Two kinds where the trees tell three apart.
    with pytest.raises(CorruptFileError, match=r"kinds\.txt"):
        load_stages(tmp_path, replace(schema, classes=("no", "x", "y")))


Damage = Callable[[Path], object]


def truncated(folder: Path) -> None:
    content = (folder / "first-1.txt").read_bytes()
    (folder / "first-1.txt").write_bytes(content[: len(content) // 2])


def foreign(folder: Path) -> None:
    (folder / "second-0.txt").write_text('{"hello": "world"}')


def swapped(folder: Path) -> None:
    one, two = (folder / f"first-{number}.txt" for number in (0, 2))
    first, second = one.read_text(), two.read_text()
    one.write_text(second)
    two.write_text(first)


def one_digit(folder: Path) -> None:
    lines = (folder / "first-0.txt").read_text().split("\n")
    at = next(number for number, line in enumerate(lines) if line.startswith("leaf_value="))
    lines[at] = lines[at][:-1] + str((int(lines[at][-1]) + 1) % 10)
    (folder / "first-0.txt").write_text("\n".join(lines))


def other_fields(folder: Path) -> None:
    text = two_leaves(5, 0, 0.0, -1.0, 1.0)
    (folder / "second-1.txt").write_text(text)
    edited(folder, digests=stages_json(folder)["digests"] | {"second-1.txt": TreeEnsemble.from_text(text).digest})


def stages_json(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / STAGES_FILE).read_text())
    return content


def edited(folder: Path, **values: object) -> None:
    (folder / STAGES_FILE).write_text(json.dumps(stages_json(folder) | values))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a truncated tree file": (truncated, "first-1.txt"),
    "a foreign tree file": (foreign, "second-0.txt"),
    "swapped tree files": (swapped, "first-0.txt"),
    "a changed digit": (one_digit, "first-0.txt"),
    "trees with other fields": (other_fields, "second-1.txt"),
    "another schema": (lambda folder: edited(folder, fields="0" * 64), STAGES_FILE),
    "another format": (lambda folder: edited(folder, format=2), STAGES_FILE),
    "no first stage": (lambda folder: edited(folder, first=[]), STAGES_FILE),
    "no second stage": (lambda folder: edited(folder, second=[]), STAGES_FILE),
    "names that are no names": (lambda folder: edited(folder, first=[1, 2, 3]), STAGES_FILE),
    "a time that is none": (lambda folder: edited(folder, train_end="noon"), STAGES_FILE),
    "a time that is not finite": (lambda folder: edited(folder, train_end=float("nan")), STAGES_FILE),
    "digests of other files": (lambda folder: edited(folder, digests={}), STAGES_FILE),
    "no JSON": (lambda folder: (folder / STAGES_FILE).write_text("first second"), STAGES_FILE),
    "no object": (lambda folder: (folder / STAGES_FILE).write_text("[1, 2]"), STAGES_FILE),
    "a truncated list": (lambda folder: (folder / STAGES_FILE).write_text((folder / STAGES_FILE).read_text()[:80]), STAGES_FILE),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_folder_of_trees_is_refused_by_the_name_of_the_file(case: str, dataset: Dataset, stored: Path) -> None:
    damage, named = DAMAGES[case]
    damage(stored / TREES_FOLDER)
    with pytest.raises(CorruptFileError) as caught:
        load_stages(stored, dataset.schema)
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["first-2.txt", "second-0.txt", STAGES_FILE])
def test_a_missing_file_of_trees_is_named(name: str, dataset: Dataset, stored: Path) -> None:
    (stored / TREES_FOLDER / name).unlink()
    with pytest.raises(InputError, match=name):
        load_stages(stored, dataset.schema)


def test_the_digest_of_a_schema_is_that_of_its_fields_and_codes(dataset: Dataset) -> None:
    schema = dataset.schema
    assert digest_of(schema) == digest_of(type(schema).from_dict(schema.to_dict()))
    others = [
        schema.without_score_fields(),
        replace(schema, vocabularies={"kind": [*schema.vocabularies["kind"], "z"]}),
        replace(schema, vocabularies={"kind": schema.vocabularies["kind"][::-1]}),
        replace(schema, hash_buckets=4),
        replace(schema, numeric_fields=(*memory_names(True), *schema.numeric_fields[len(memory_names(True)) :][::-1])),
    ]
    assert len({digest_of(other) for other in (schema, *others)}) == 1 + len(others)
