"""The audit and the fields of transactions as Parquet files, in pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sqlalchemy import select

from balancer.errors import InputError
from balancer.serving.audit.amend import Amender
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.operations import export
from balancer.serving.operations.export import export_decisions, export_features
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage import tables
from balancer.serving.storage.database import Database
from tests.serving.test_scoring import card
from tests.serving.tools import parsed


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> LoadedModel:
    return LoadedModel.load(tiny_run, "run")


@pytest.fixture
def filled(database: Database, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setattr(export, "PAGE", 2)
    scorer = Scorer(database)
    for place in range(5):
        row = card(transaction_id=f"t{place}", time=f"2026-01-05T1{place}:00:00", channel=None if place == 3 else "chip")
        for tenant in ("bank", "else"):
            scorer.score(tenant, model, [parsed(row, model)], origin=Origin("k", f"r{place}", 1.8e9 + place))
    Entities(database).label("bank", model.schema, {"t1": "1"})
    return database


def test_decisions_are_exported_with_their_labels(filled: Database, model: LoadedModel, tmp_path: Path) -> None:
    Amender(filled, Actions()).amend("bank", model, "t4", {"amount": 1.0}, Origin("k", "later", 1.9e9))
    Amender(filled, Actions()).reverse("bank", model, "t0", Origin("k", "last", 1.95e9))
    path, counts = tmp_path / "out.parquet", list[int]()
    assert export_decisions(filled, "bank", None, None, path, counts.append) == 7
    assert counts == [2, 4, 6, 7]
    frame = pl.read_parquet(path)
    assert frame["id"].to_list() == ["t0", "t1", "t2", "t3", "t4", "t4", "t0"]
    assert frame["kind"].to_list() == ["scored"] * 5 + ["amended", "reversed"]
    assert frame["label"].to_list() == [None, "1", None, None, None, None, None]
    assert frame["received"].dt.epoch("s").to_list()[:2] == [1_800_000_000, 1_800_000_001]
    assert frame["time"][1].hour == 11
    assert frame["entity"].unique().to_list() == ["c"]
    assert export_decisions(filled, None, 1.8e9 + 1, 1.8e9 + 3, path) == 4
    assert set(pl.read_parquet(path)["tenant"]) == {"bank", "else"}
    assert export_decisions(filled, "nobody", None, None, path) == 0
    assert pl.read_parquet(path).schema == frame.schema
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".parquet"] == ["out.parquet"]
    for write in (lambda: export_decisions(filled, None, 2.0, 1.0, path), lambda: export_features(filled, model, None, 2.0, 1.0, path)):
        with pytest.raises(InputError, match="--since is after --until"):
            write()
    with pytest.raises(InputError, match=r"must end in \.parquet"):
        export_decisions(filled, None, None, None, tmp_path / "out.csv")


def test_fields_are_exported_as_they_were_computed(filled: Database, model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    assert export_features(filled, model, "bank", None, None, path) == 5
    frame = pl.read_parquet(path)
    stored = filled.read(
        lambda connection: connection.execute(
            select(tables.transactions).where(tables.transactions.c.tenant == "bank").order_by(tables.transactions.c.position)
        ).all()
    )
    base = np.stack([np.frombuffer(row.fields, np.float32) for row in stored])
    np.testing.assert_array_equal(frame.select(model.base.numeric_fields).to_numpy(), base)
    scores = np.stack([np.frombuffer(row.scores, np.float32) for row in stored])
    np.testing.assert_array_equal(frame.select(model.schema.score_fields).to_numpy(), scores)
    assert frame["channel"].to_list() == ["chip", "chip", "chip", None, "chip"]
    assert frame["amount"].to_list() == [20.0] * 5
    assert frame["score"].to_list() == [row.answer["score"] for row in stored]
    assert frame["label"].to_list() == [None, "1", None, None, None]
    amended = Amender(filled, Actions()).amend("bank", model, "t4", {"amount": 4000.0}, Origin("k", "later", 1.9e9))
    export_features(filled, model, "bank", None, None, path)
    assert pl.read_parquet(path)["score"].to_list() == [*frame["score"].to_list()[:4], amended["score"]]
    assert amended["score"] != frame["score"][4]
    since = frame["time"][1].timestamp()
    assert export_features(filled, model, None, since, since + 7200, path) == 4
    assert export_features(filled, model, "nobody", None, None, path) == 0
    assert pl.read_parquet(path).columns == frame.columns
