"""Reasons of a score: their words for every field, and their contributions."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.data.dataset import load_dataset
from balancer.data.schema import Schema
from balancer.data.spec import Spec
from balancer.runs.trained_run import TrainedRun
from balancer.serving.models.registry import LoadedModel
from balancer.serving.reasons.reason_words import TEMPLATES, ReasonWords
from balancer.serving.reasons.reasons import explain, leaves_out
from tests.data.test_features import SPEC, make_table

EXACT = 1e-6


def _own(spec: Spec) -> Schema:
    table = make_table(200, 1).with_columns(pl.lit(1.5).alias("distance"), pl.col("shop").alias("till_id"), pl.lit(2.0).alias("hour"))
    return load_dataset(table, spec, score_fields=True).schema


def _walk(schema: Schema, rows: np.ndarray) -> set[str]:
    """Say every field of every row; the kinds of fields that were said."""
    words, names = ReasonWords(schema), (*schema.numeric_fields, *schema.categorical_fields)
    columns = dict.fromkeys((*schema.spec.categorical, *schema.spec.context), "x-1")
    for values in rows:
        row = dict(zip(names, values.tolist(), strict=True))
        for name in names:
            for texts in (None, columns):
                said = words.sentence(name, row, "USUAL" if words.compares(name) else None, texts)
                assert said
                assert not set("{}_") & set(said), (name, said)
    return {words.kinds[name][0] for name in names}


def test_every_field_of_a_simulated_run_has_a_sentence(tiny_run: Path, tiny_table: Path) -> None:
    run = TrainedRun.load(tiny_run, precision="auto")
    dataset = run.table(tiny_table)
    rows = dataset.store.values[np.random.default_rng(0).integers(0, len(dataset.store), 40)]
    said = _walk(run.schema, np.concatenate((rows, np.zeros_like(rows[:1]), np.full_like(rows[:1], np.nan), np.full_like(rows[:1], 9.0))))
    assert said == set(TEMPLATES)  # a simulated table has fields of every kind


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, numeric=("distance", "hour"), context=("shop", "till_id")),
        replace(SPEC, entity=None, context=("shop",)),
        replace(SPEC, amount=None, categorical=(), context=()),
        replace(SPEC, entity="till_id", categorical=("kind", "shop"), context=("shop",)),
    ],
)
def test_every_field_of_a_run_with_own_columns_has_a_sentence(spec: Spec) -> None:
    schema = _own(spec)
    width = len(schema.numeric_fields) + len(schema.categorical_fields)
    _walk(schema, np.stack([np.full(width, value, np.float32) for value in (0.0, 1.0, 3.5, np.nan)]))


def test_sentences_are_those_of_an_analyst(tiny_run: Path) -> None:
    model = LoadedModel.load(tiny_run, "run")
    words, row = ReasonWords(model.schema), {name: float(np.log1p(3)) for name in model.schema.numeric_fields}
    row |= dict.fromkeys(model.schema.categorical_fields, 1.0) | {"is_first": 0.0, "merchant_id_fraud_rate_30d": 0.12, "history_count": 3.0}
    texts = {"merchant_id": "m-4", "merchant_category": "grocery"}

    def say(field: str, value: float, usual: str | None = None) -> str:
        return words.sentence(field, row | {field: value}, usual, texts)

    assert say("count_1h", np.log1p(7), "1") == "7 transactions of this card in the last hour; usually 1"
    assert say("count_1h", np.log1p(1)) == "1 transaction of this card in the last hour"
    assert say("amount_log", np.log1p(1920), "about 25.00") == "amount 1,920.00; usually about 25.00"
    assert say("merchant_id_fraud_rate_30d", 0.12, "0 %") == "merchant m-4: 12 % fraud in 30 days of known labels; usually 0 %"
    assert say("merchant_id_used", 0.0) == "first transaction of this card with merchant m-4"
    assert say("merchant_id_days_since_fraud", np.log1p(412)) == "merchant m-4: 412 days since the last known fraud"
    assert say("merchant_id_days_since_fraud", np.log1p(3650)) == "merchant m-4: no known fraud"
    assert say("is_first", 1.0) == "first transaction of this card"
    assert say("distance_km", 812, "2.5") == "distance km 812; usually 2.5"
    assert say("merchant_category", 0.0, "online") == "merchant category grocery (not seen in training); usually online"
    assert say("history_count", 0.0) == "first transaction of this card"


@pytest.mark.parametrize("fixture", ["tiny_run", "trees_run", "network_run"])
def test_reasons_are_the_contributions_of_the_run(fixture: str, tiny_table: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    run, model = TrainedRun.load(folder, precision="auto"), LoadedModel.load(folder, "run")
    dataset = run.table(tiny_table)
    store = dataset.store
    row = int(np.flatnonzero(np.arange(len(store)) - store.start >= 8)[100])
    frame = run.contributions(dataset, np.array([row])).frame(dataset)
    expected = dict(frame.filter(pl.col("field") != "(average)").select("field", "contribution").iter_rows())
    texts: dict[str, str | None] = dict.fromkeys((*run.schema.spec.categorical, *run.schema.spec.context), "x")
    given: dict[str, Any] = {"time": float(store.time[row]), "entity": dataset.entities[store.entity[row]], "texts": texts}
    begin = row if model.stream is None else max(row - model.stream.model.config.history_length + 1, store.start[row])
    earlier = store.values[store.start[row] : row]
    found = explain(model, store.values[row], **given, earlier=earlier, read=row - begin, count=1000, thorough=True)
    assert [abs(each["contribution"]) for each in found] == sorted((abs(each["contribution"]) for each in found), reverse=True)
    assert sum(each["contribution"] for each in found) == pytest.approx(sum(expected.values()), abs=EXACT)
    words, names = ReasonWords(run.schema), (*run.schema.numeric_fields, *run.schema.categorical_fields)
    values, merged = dict(zip(names, store.values[row].tolist(), strict=True)), dict[str, float]()
    for name, contribution in expected.items():  # fields that say the same are one reason
        said = name if name == "(network)" else words.sentence(name, values, texts=texts)
        merged[said] = merged.get(said, 0.0) + contribution
    strongest = sorted((each for each in merged.values() if abs(each) > EXACT), key=lambda each: -abs(each))
    np.testing.assert_allclose([each["contribution"] for each in found][: len(strongest)], strongest, atol=EXACT)
    assert next(each for each in found if each["usual_of"] == "entity")["usual"]
    assert explain(model, store.values[row], **given, earlier=earlier, read=row - begin) == found[:5]

    quick = explain(model, store.values[row], **given)
    assert bool(quick) == (fixture != "network_run")  # a network alone needs its earlier rows
    begun = time.perf_counter()
    for _ in range(10):
        explain(model, store.values[row], **given)
    assert time.perf_counter() - begun < 1.0  # seconds for ten rows, on a busy machine


def test_a_network_that_reads_many_rows_is_left_out_beside_trees(tiny_run: Path, trees_run: Path, network_run: Path) -> None:
    hybrid, trees, network = (LoadedModel.load(each, "run") for each in (tiny_run, trees_run, network_run))
    assert hybrid.detector.members["network"] > 0
    assert [leaves_out(hybrid, rows) for rows in (5, 16, 17)] == [False, False, True]
    assert [leaves_out(hybrid, rows, thorough=True) for rows in (17, 100, 5_000)] == [False, False, True]
    assert not any(leaves_out(model, 5_000) for model in (trees, network))
    values = np.zeros((21, len(hybrid.schema.numeric_fields) + len(hybrid.schema.categorical_fields)), np.float32)
    given: dict[str, Any] = {"time": 2e9, "entity": "c", "count": 1000}
    assert explain(hybrid, values[-1], **given, earlier=values[:-1]) == explain(hybrid, values[-1], **given, earlier=values[:-1], read=20)
    without = {each["field"]: each["contribution"] for each in explain(hybrid, values[-1], **given)}
    assert {each["field"]: each["contribution"] for each in explain(hybrid, values[-1], **given, earlier=values[:-1])} == without
