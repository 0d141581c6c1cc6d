"""Attention to earlier transactions in predictions.parquet, compared with the attention of the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from balancer.cli import main
from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.split import Split
from balancer.inference.attribution import LEAST, SHOWN, explain
from balancer.inference.contributions import contributions_of
from balancer.inference.detector import Detector
from balancer.inference.scoring import score_rows
from balancer.models import ATTENTIONS, Attention, ModelConfig, SequenceBatch
from balancer.options.model import ModelOptions
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierTrainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tiny_table: Path) -> Dataset:
    return load_dataset(tiny_table, resolve_spec(tiny_table))


def student(dataset: Dataset, **given: object) -> ClassifierTrainer:
    flags = {"history_length": 24, "d_model": 16, "layers": 2, "attention_window": 4, "global_nodes": 2} | given
    return ClassifierTrainer(dataset, model_config(dataset, ModelOptions(**flags), seed=0), seed=0, total_steps=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["rows", "histories"])
@pytest.mark.parametrize("attention", ["dense", "window", "sparse"])
def test_names_earlier_transactions_of_the_same_entity_that_weighed_most(dataset: Dataset, attention: str, form: str) -> None:
    made = student(dataset, attention=attention, form=form)
    rows = dataset.rows(Split.TEST)[:60]
    columns = explain(made.model, dataset, rows, device=CPU)
    place = {name: row for row, name in enumerate(dataset.ids.to_list())}
    for row, ids, mass, nodes in zip(rows, columns["attended"], columns["attended_mass"], columns["global_nodes"], strict=True):
        assert len(ids) == len(mass) <= SHOWN
        assert (np.diff(mass.to_numpy()) <= 1e-7).all()
        assert mass.sum() <= 1 + 1e-5
        assert (mass.to_numpy() >= LEAST).all()
        for earlier in (*ids, *nodes):
            assert place[earlier] < row
            assert dataset.store.entity[place[earlier]] == dataset.store.entity[row]
        assert attention == "sparse" or not len(nodes)
    most = columns["attended"].list.len().max()
    assert most == {"dense": SHOWN, "attention_window": 3}.get(attention, most)
    if attention == "sparse":
        assert columns["global_nodes"].list.len().max() > 0


def test_mass_is_that_of_the_blocks(dataset: Dataset) -> None:
    made = student(dataset, attention="dense", layers=1)
    row = dataset.rows(Split.TEST)[-1:]
    values, lengths = dataset.store.windows(row, 24)
    batch = SequenceBatch.from_windows(values, lengths)
    made.model.eval()
    block = made.model.blocks[0]
    with torch.no_grad():
        x = block.normed(made.model.embedding(batch)).values[:, : int(lengths[0])]
        query = block.attention.query(x[:, -1]).unflatten(-1, (4, -1))[0]
        key = block.attention.key_value(x).chunk(2, -1)[0].unflatten(-1, (4, -1))[0]
        mass = torch.einsum("hd,nhd->hn", query, key).mul(query.shape[-1] ** -0.5).softmax(-1).mean(0)[:-1]
    given = explain(made.model, dataset, row, device=CPU)
    expected_mass = mass.topk(SHOWN)
    np.testing.assert_allclose(given["attended_mass"][0].to_numpy(), expected_mass.values.numpy(), rtol=1e-4)
    expected = dataset.ids.gather(row[0] - lengths[0] + 1 + expected_mass.indices.numpy()).to_list()
    assert given["attended"][0].to_list() == expected


def test_an_attention_that_cannot_tell_gives_no_columns(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(Attention):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__()

        def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
            return batch.last() if last_only else batch

    monkeypatch.setitem(ATTENTIONS, "still", Still)
    made = student(dataset, attention="still")
    assert explain(made.model, dataset, dataset.rows(Split.TEST)[:5], device=CPU) == {}


@pytest.mark.slow
def test_a_run_on_whole_histories_is_made_and_used(tiny_table: Path, tmp_path: Path) -> None:
    out, scored = tmp_path / "run", tmp_path / "scored.parquet"
    flags = ["--policy", "constant", "--history-length", "256", "--attention-window", "16", "--global-nodes", "4", "--d-model", "16"]
    assert main(["train", "--dataset", str(tiny_table), "--out", str(out), "--epochs", "2", "--steps-per-epoch", "4", *flags]) == 0
    predictions = pl.read_parquet(out / "predictions.parquet")
    assert predictions["global_nodes"].list.len().max() > 0
    assert predictions["attended_mass"].list.sum().max() <= 1 + 1e-5
    assert main(["score", str(out), "--input", str(tiny_table), "--output", str(scored)]) == 0
    again = pl.read_parquet(scored)
    joined = predictions.join(again, left_on="id", right_on=again.columns[0], how="inner", suffix="_again")
    assert joined.height == predictions.height


@pytest.mark.parametrize("form", ["rows", "histories"])
def test_field_contributions_are_the_change_in_log_odds_when_the_field_is_hidden(dataset: Dataset, form: str) -> None:
    made = student(dataset, form=form, attention="dense")
    row = int(dataset.rows(Split.TEST)[20])
    contributions = contributions_of(Detector(made.model, None), dataset, np.array([row]), device=CPU).frame(dataset)
    schema, store = dataset.schema, dataset.store
    assert set(contributions["field"]) == {*schema.numeric_fields, *schema.categorical_fields}
    assert (np.diff(np.abs(contributions["contribution"].to_numpy())) <= 0).all()

    def log_odds(values: np.ndarray) -> float:
        hidden = dataclasses.replace(dataset, store=dataclasses.replace(store, values=values))
        score = score_rows(made.model, hidden, np.array([row]), device=CPU)[0, 1]
        return float(np.log(score / (1 - score)))

    for field, missing in ((0, np.nan), (store.num_numeric, 0.0)):
        values = store.values.copy()
        values[:, field] = missing
        name = (*schema.numeric_fields, *schema.categorical_fields)[field]
        expected = log_odds(store.values) - log_odds(values)
        assert contributions.filter(pl.col("field") == name)["contribution"].item() == pytest.approx(expected, abs=1e-4)
