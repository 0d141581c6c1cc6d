"""Detectors with trees in the service: the bits of the table, another model, its files, and its notes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from balancer.cli import main
from balancer.data.score_memory import memory_names
from balancer.data.simulation.stream import simulate, write_simulation
from balancer.errors import CorruptFileError, InputError
from balancer.runs.run_folder import RunFolder
from balancer.runs.tables import score_file
from balancer.runs.trained_run import TrainedRun
from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.http.schemas import ScoreAnswer
from balancer.serving.models.registry import LoadedModel, Registry, same_rows
from balancer.serving.scoring.scorer import NO_NETWORK, Scorer
from balancer.serving.storage.database import Database
from tests.conftest import TINY, fewer_trees
from tests.serving.test_scoring import card
from tests.serving.tools import opened, parsed, replay, sent

STORED = Path(__file__).parents[1] / "stored" / "0.1"
FAST = (*TINY, "--policy", "rule")
Trained = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Runs by their flags, each trained once."""
    done: dict[tuple[str, ...], Path] = {}

    def run(*flags: str, table: Path = tiny_table) -> Path:
        if (str(table), *flags) not in done:
            out = tmp_path_factory.mktemp("trained") / "run"
            with fewer_trees():
                assert main(["train", "--dataset", str(table), "--out", str(out), *flags]) == 0
            done[(str(table), *flags)] = out
        return done[(str(table), *flags)]

    return run


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with several kinds of fraud."""
    table = tmp_path_factory.mktemp("types") / "types.parquet"
    write_simulation(simulate(5_000, seed=3, fraud_rate=0.06, labels="types"), table)
    return table


@pytest.fixture(scope="module")
def rows(tiny_table: Path) -> pl.DataFrame:
    """Rows of the busiest entities before and after the end of training, in order of time."""
    table = pl.read_parquet(tiny_table).sort("time").slice(2000, 3500)
    busy = table["card_id"].value_counts(sort=True)["card_id"].head(8)
    return table.filter(pl.col("card_id").is_in(busy.implode()))


def expected(run: Path, rows: pl.DataFrame, folder: Path) -> dict[str, float]:
    """Scores by id of `balancer score --streaming`."""
    rows.write_parquet(folder / "in.parquet")
    how: dict[str, Any] = {"past": None, "bad_rows": "error", "streaming": True, "overwrite": True}
    score_file(TrainedRun.load(run, precision="auto"), folder / "in.parquet", folder / "out.parquet", **how)
    return dict(pl.read_parquet(folder / "out.parquet").select(pl.col("transaction_id").cast(pl.String), "score").iter_rows())


def stored(database: Database) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is kept of transactions by id, and of entities by name, that depends on trees."""
    rows = text("SELECT id, scores, sum_score FROM transactions")
    entities = text("SELECT name, first_stage, last_logits, sum_score FROM entities")
    return tuple(  # type: ignore[return-value]
        database.read(lambda connection, query=query: {row[0]: tuple(row[1:]) for row in connection.execute(query)})
        for query in (rows, entities)
    )


def test_trees_alone_have_the_bits_of_the_table_and_list_no_attention(
    database: Database, trained: Trained, rows: pl.DataFrame, tmp_path: Path
) -> None:
    run = trained("--learner", "trees")
    model = LoadedModel.load(run, "run")
    assert model.stream is None
    stages = model.detector.stages
    assert stages is not None
    seconds = rows["time"].dt.epoch("s").to_numpy()
    assert 100 < (seconds <= stages.train_end).sum() < len(rows) - 100  # trees by fold, and all of them
    assert replay(database, model, rows) == expected(run, rows, tmp_path)
    fields = np.stack([np.frombuffer(scores, np.float32) for scores, _ in stored(database)[0].values()])
    assert fields.shape[1] == len(memory_names(True)) == len(model.schema.score_fields)
    assert all(len(np.unique(column)) > 20 for column in fields.T)
    answer = Scorer(database).score("u", model, [parsed(card(), model)], explain=3).answers[0]
    assert (answer["weighed_most"], answer["note"]) == ([], NO_NETWORK)
    ScoreAnswer.model_validate({"decisions": [answer]})


@pytest.mark.parametrize("kind", ["trees", "hybrid", "no entity"])
def test_kinds_of_fraud_and_tables_without_entity(trained: Trained, types: Path, tmp_path: Path, kind: str) -> None:
    table = pl.read_parquet(types)
    busy = table["card_id"].value_counts(sort=True)["card_id"].head(6)
    rows = table.sort("time").filter(pl.col("card_id").is_in(busy.implode()))
    if kind == "no entity":
        types = types.with_name("no_entity.parquet")
        rows = rows.drop("card_id")
        table.drop("card_id").write_parquet(types)
    run = trained("--learner", "hybrid", *FAST, table=types) if kind == "hybrid" else trained("--learner", "trees", table=types)
    model, database = LoadedModel.load(run, "run"), opened(f"sqlite:///{tmp_path / 'a.db'}")
    assert len(model.schema.classes) == 5
    assert len(model.schema.score_fields) == (1 if kind == "no entity" else len(memory_names(True)))
    assert (model.stream is None) == (kind != "hybrid")
    found = replay(database, model, rows)
    assert found == expected(run, rows, tmp_path)
    assert len(set(found.values())) > 50
    wanted = pl.read_parquet(tmp_path / "out.parquet").select(pl.col("transaction_id").cast(pl.String), "class")
    answers = database.read(lambda connection: connection.execute(text("SELECT id, answer FROM transactions")).all())
    assert {name: json.loads(answer)["class"] for name, answer in answers} == dict(wanted.iter_rows())


def test_several_rows_of_an_entity_in_a_request(trained: Trained, rows: pl.DataFrame, tmp_path: Path) -> None:
    model = LoadedModel.load(trained("--learner", "trees"), "run")
    rows = rows.head(200).with_columns(is_fraud=pl.lit(None, pl.Int8))
    one, many = (opened(f"sqlite:///{tmp_path / name}.db") for name in ("one", "many"))
    assert replay(one, model, rows) == replay(many, model, rows, size=50)
    assert stored(one) == stored(many)


def test_another_first_stage_reads_the_stored_rows_once(database: Database, trained: Trained, rows: pl.DataFrame, tmp_path: Path) -> None:
    """Also after a model without trees, which leaves no scores."""
    runs = {
        "one": trained("--learner", "trees"),
        "network": trained("--learner", "network", *FAST),
        "two": trained("--learner", "trees", "--seed", "5"),
    }
    models = {name: LoadedModel.load(run, name) for name, run in runs.items()}
    assert len({model.first_stage for model in models.values()}) == 3
    # Labels would come to some of the databases only.
    rows = rows.gather_every(2).with_columns(is_fraud=pl.lit(None, pl.Int8))
    thirds = [rows.slice(len(rows) // 3 * part, len(rows) // 3) for part in range(3)]
    wanted: dict[str, Database] = {}
    for name, model in models.items():
        wanted[name] = opened(f"sqlite:///{tmp_path / name}.db")
        scores = replay(wanted[name], model, pl.concat(thirds))
        found = replay(database, model, thirds[len(wanted) - 1])
        # Of a network, a state that is read in one pass differs in its last bits.
        assert max(abs(found[each] - scores[each]) for each in found) <= (1e-5 if name == "network" else 0)
    assert stored(database) == stored(wanted["two"])
    assert stored(database)[0] != stored(wanted["one"])[0]


def test_a_hybrid_continues_after_trees(trained: Trained, tiny_run: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    trees, hybrid = LoadedModel.load(trained("--learner", "trees", "--seed", "5"), "trees"), LoadedModel.load(tiny_run, "hybrid")
    assert hybrid.stream is not None
    rows = rows.tail(240).with_columns(is_fraud=pl.lit(None, pl.Int8))
    database = opened(f"sqlite:///{tmp_path / 'a.db'}")
    replay(database, trees, rows.head(120))
    found = replay(database, hybrid, rows.tail(120))
    whole = expected(tiny_run, rows, tmp_path)
    # The state of the network was read in one pass, which differs in its last bits only.
    assert max(abs(found[name] - whole[name]) for name in found) < 1e-5
    other = opened(f"sqlite:///{tmp_path / 'b.db'}")
    assert replay(other, hybrid, rows) == whole
    assert stored(database) == stored(other)
    answer = Scorer(database).score("t", hybrid, [parsed(sent(rows.tail(1), hybrid)[0] | {"transaction_id": "new"}, hybrid)], explain=2)
    assert len(answer.answers[0]["weighed_most"]) == 2
    assert "note" not in answer.answers[0]


def test_a_run_of_the_first_version_is_served(tmp_path: Path) -> None:
    model = LoadedModel.load(STORED / "histories", "old")
    assert (model.first_stage, model.base) == (None, model.schema)
    table = pl.read_parquet(STORED / "transactions.parquet").sort("time").tail(150)
    database = opened(f"sqlite:///{tmp_path / 'a.db'}")
    assert replay(database, model, table) == expected(STORED / "histories", table, tmp_path)
    assert {row for row, _ in stored(database)[0].values()} == {None}


def test_a_model_with_the_same_fields_may_follow_and_one_of_another_version_may_not(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for name, flags in (("trees", ("--learner", "trees")), ("network", ("--learner", "network", *FAST))):
        (folder / name).symlink_to(trained(*flags))
    registry = Registry(opened(f"sqlite:///{tmp_path / 'a.db'}"), None, folder)
    registry.activate("trees")
    registry.activate("network")
    schema = registry.activate("trees").schema
    names = [name for name in schema.without_score_fields().numeric_fields if not name.endswith("_last_label")]
    old = type(schema).from_dict(schema.to_dict() | {"numeric_fields": names})
    message = "it was trained by another version of balancer and has other fields, for example {} 'merchant_id_last_label'"
    assert same_rows(old, schema) == message.format("with")
    assert same_rows(schema, old) == message.format("without")


def test_other_trees_make_another_model(trained: Trained, tmp_path: Path) -> None:
    run = trained("--learner", "trees")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = LoadedModel.load(run, "run")
    assert LoadedModel.load(copy, "copy").digest == before.digest
    content = json.loads((copy / "trees" / "stages.json").read_text())
    (copy / "trees" / "stages.json").write_text(json.dumps(content | {"train_end": content["train_end"] - 1}))
    with pytest.raises(CorruptFileError, match=r"stages\.json is not the file that the run was finished with"):
        LoadedModel.load(copy, "copy")
    about = json.loads((copy / "run.json").read_text())
    del about["parts"]  # as of a version without digests
    (copy / "run.json").write_text(json.dumps(about))
    after = LoadedModel.load(copy, "copy")
    assert after.digest != before.digest
    assert after.first_stage != before.first_stage
    shutil.copy(trained("--learner", "trees", "--seed", "5") / "trees" / "second-0.txt", copy / "trees" / "second-0.txt")
    with pytest.raises(CorruptFileError, match=r"second-0\.txt"):
        LoadedModel.load(copy, "copy")
    assert RunFolder.open(run).complete
    with pytest.raises(InputError, match="nothing quantized"):
        LoadedModel.load(run, "run", "quantized")


def test_without_the_compiled_evaluator_a_note_is_shown(
    trained: Trained,
    rows: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, url = trained("--learner", "trees"), f"sqlite:///{tmp_path / 'a.db'}"
    rows.head(20).write_parquet(tmp_path / "in.parquet")
    command = ["score", str(run), "--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out.parquet"), "--overwrite"]
    assert warnings_of(run, url, caplog) == []
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    before = pl.read_parquet(tmp_path / "out.parquet")
    monkeypatch.setattr("balancer.trees.native.absence", lambda: "no compiler")
    note = "trees are evaluated slowly, because the compiled evaluator can't be used: no compiler"
    assert warnings_of(run, url, caplog) == [note]
    assert main(command) == 0
    assert capsys.readouterr().err == f"note: {note}\n"
    assert pl.read_parquet(tmp_path / "out.parquet").equals(before)
    network = trained("--learner", "network", *FAST)
    assert warnings_of(network, f"sqlite:///{tmp_path / 'b.db'}", caplog) == []


def warnings_of(run: Path, url: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a worker says when it begins."""
    opened(url).close()
    caplog.clear()
    with TestClient(create_app(ServeConfig(run=run, database=url))):
        return [each.getMessage() for each in caplog.records if each.levelname == "WARNING" and each.name == "balancer.service"]
