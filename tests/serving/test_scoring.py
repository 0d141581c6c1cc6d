"""Scores of the service equal those of a table; late, repeated and contradicting transactions; two workers; a
swapped model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.cli import main
from balancer.errors import InputError
from balancer.models.step import absence
from balancer.runs.tables import score_file
from balancer.runs.trained_run import TrainedRun
from balancer.serving.errors import ConflictError, MissingError
from balancer.serving.models.registry import LoadedModel, Registry
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage.database import Database
from tests.serving.tools import SEQUENCE, opened, parsed, replay, sent


@pytest.fixture(scope="module")
def run(tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "run"
    assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *SEQUENCE]) == 0
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedModel:
    return LoadedModel.load(run, "run")


@pytest.fixture(scope="module")
def rows(tiny_table: Path) -> pl.DataFrame:
    """The latest rows of the busiest entities, in order of time."""
    table = pl.read_parquet(tiny_table).sort("time").tail(2500)
    busy = table["card_id"].value_counts(sort=True)["card_id"].head(14)
    return table.filter(pl.col("card_id").is_in(busy.implode()))


def card(**changes: Any) -> dict[str, Any]:
    values = {"transaction_id": "a", "card_id": "c", "time": "2026-01-05T10:00:00", "amount": 20.0, "merchant_id": "m"}
    return values | {"merchant_category": "grocery", "channel": "chip", "region": "r", "distance_km": 2.5} | changes


def test_scores_are_those_of_the_table_to_the_last_bit(
    database: Database, run: Path, model: LoadedModel, rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows.write_parquet(tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    score_file(TrainedRun.load(run, precision="auto"), tmp_path / "in.parquet", output, past=None, bad_rows="error", streaming=True)
    expected = dict(pl.read_parquet(output).select(pl.col("transaction_id").cast(pl.String), "score").iter_rows())
    assert replay(database, model, rows) == expected
    assert model.stream.has_state
    assert rows["card_id"].value_counts()["count"].max() > 24  # three segments of 8 rows: states were passed on

    score_file(TrainedRun.load(run, precision="auto"), tmp_path / "in.parquet", output, past=None, bad_rows="error", overwrite=True)
    whole = dict(pl.read_parquet(output).select(pl.col("transaction_id").cast(pl.String), "score").iter_rows())
    assert max(abs(expected[name] - whole[name]) for name in expected) < 1e-5


def test_a_model_with_windows_and_many_rows_per_request(tmp_path: Path, tiny_run: Path, rows: pl.DataFrame) -> None:
    model = LoadedModel.load(tiny_run, "window")
    assert not model.stream.has_state
    part = rows.head(300).with_columns(is_fraud=pl.lit(None, pl.Int8))  # no labels: requests may then hold any number of days
    trained = TrainedRun.load(tiny_run, precision="auto")
    dataset = trained.table(part)
    whole = trained.streamed_scores(dataset, dataset.scored_rows())
    scorer = Scorer(opened(f"sqlite:///{tmp_path / 'a.db'}"))
    many = [parsed(raw, model) for raw in sent(part, model)]
    shuffled = [many[place] for place in np.random.default_rng(0).permutation(len(many))]
    answers = {answer["id"]: answer for answer in scorer.score("t", model, shuffled).answers}
    assert all(answer["late_by"] == 0 for answer in answers.values())
    calibrated = model.decision.calibration.transform(1 - whole[:, 0].astype(np.float64))
    found = [answers[str(name)]["score"] for name in dataset.ids[dataset.scored_rows()]]
    np.testing.assert_allclose(found, calibrated, atol=1e-6)


def test_a_repeated_transaction_gets_the_same_answer_and_a_contradicting_one_is_refused(database: Database, model: LoadedModel) -> None:
    scorer = Scorer(database)
    first = scorer.score("t", model, [parsed(card(), model)]).answers[0]
    scorer.score("t", model, [parsed(card(transaction_id="b", time="2026-01-05T11:00:00"), model)])
    again = scorer.score("t", model, [parsed(card(), model)]).answers[0]
    assert again == first | {"repeated": True}
    assert Entities(database).get("t", "c", 5)["transactions"] == 2
    with pytest.raises(ConflictError, match="'a' is already stored with other content"):
        scorer.score("t", model, [parsed(card(transaction_id="z"), model), parsed(card(amount=21.0), model)])
    assert Entities(database).get("t", "c", 5)["transactions"] == 2  # nothing of the refused request was kept
    other = scorer.score("other", model, [parsed(card(amount=21.0), model)]).answers[0]
    assert not other["repeated"]
    with pytest.raises(MissingError):
        Entities(database).get("nobody", "c", 5)


def test_a_late_transaction_is_scored_at_the_last_time(database: Database, model: LoadedModel) -> None:
    scorer = Scorer(database)
    scorer.score("t", model, [parsed(card(), model)])
    late = scorer.score("t", model, [parsed(card(transaction_id="b", time="2026-01-05T09:30:00"), model)]).answers[0]
    assert late["late_by"] == 1800.0
    on_time = [card(card_id="d", transaction_id="x"), card(card_id="d", transaction_id="y")]
    second = [scorer.score("u", model, [parsed(raw, model)]).answers[0] for raw in on_time][1]
    assert late["score"] == second["score"]


def test_labels_enter_the_risk_of_their_context_when_known_and_can_be_taken_back(database: Database, model: LoadedModel) -> None:
    scorer, fraud = Scorer(database), model.schema.classes[1]
    delay = model.schema.spec.label_delay
    assert delay == 7 * 86_400

    # All tenants have the same transactions: only labels can make a difference.
    def score(name: str, day: int, merchant: str = "m") -> dict[str, float]:
        raw = card(transaction_id=name, card_id=name, time=f"2026-01-{day:02d}T12:00:00", merchant_id=merchant)
        return {tenant: float(scorer.score(tenant, model, [parsed(raw, model)]).answers[0]["score"]) for tenant in ("t", "once", "none")}

    for number in range(5):
        score(f"seed{number}", 2)
    labels = {f"seed{number}": fraud for number in range(5)}
    assert Entities(database).label("t", model.schema, labels | {"ghost": fraud}) == ["ghost"]
    assert Entities(database).label("once", model.schema, labels) == []
    early, known, apart = score("too-early", 8), score("known", 10), score("apart", 10, "elsewhere")
    assert early["t"] == early["none"]
    assert known["t"] != known["none"]
    assert apart["t"] == apart["none"]
    Entities(database).label("t", model.schema, labels)  # repeated labels count once
    again = score("again", 10)
    assert again["t"] == again["once"] != again["none"]
    Entities(database).label("t", model.schema, dict.fromkeys(labels))
    taken_back = score("taken-back", 10)
    assert taken_back["t"] == taken_back["none"] != taken_back["once"]
    with pytest.raises(InputError, match="the label of 'seed0' is 'maybe'"):
        Entities(database).label("t", model.schema, {"seed0": "maybe"})


def test_transactions_with_the_most_attention_are_listed(database: Database, model: LoadedModel) -> None:
    scorer = Scorer(database)
    names = [f"t{number}" for number in range(12)]
    for number, name in enumerate(names):
        answer = scorer.score(
            "t", model, [parsed(card(transaction_id=name, time=f"2026-01-05T10:{number:02d}:00"), model)], explain=3
        ).answers[0]
        listed = answer["weighed_most"]
        assert len(listed) == min(number, 3)
        assert {each["id"] for each in listed} <= set(names[:number])
        assert all(0 <= each["weight"] <= 1 for each in listed)


def test_an_entity_is_deleted_with_its_counts(database: Database, model: LoadedModel) -> None:
    scorer = Scorer(database)
    scorer.score("t", model, [parsed(card(), model)])
    Entities(database).label("t", model.schema, {"a": model.schema.classes[1]})
    Entities(database).delete("t", "c")
    with pytest.raises(MissingError):
        Entities(database).delete("t", "c")
    later = card(transaction_id="n", card_id="e", time="2026-01-20T10:00:00")
    fresh = scorer.score("u", model, [parsed(later, model)]).answers[0]["score"]
    assert scorer.score("t", model, [parsed(later, model)]).answers[0]["score"] == fresh


def test_another_model_reads_the_stored_rows_and_continues(tmp_path: Path, run: Path, tiny_run: Path, rows: pl.DataFrame) -> None:
    database = opened(f"sqlite:///{tmp_path / 'a.db'}")
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "one").symlink_to(run)
    (folder / "two").symlink_to(tiny_run)
    registry = Registry(database, None, folder)
    rows = rows.with_columns(is_fraud=pl.lit(None, pl.Int8))  # labels of the first half would come to one of the two only
    one, half = registry.activate("one"), len(rows) // 2
    replay(database, one, rows.head(half))
    two = registry.activate("two")
    assert registry.current is two
    assert one.digest != two.digest
    found = replay(database, two, rows.tail(len(rows) - half))
    other = opened(f"sqlite:///{tmp_path / 'b.db'}")
    expected = replay(other, two, rows)
    # A state read in one pass differs in its last bits only.
    assert max(abs(found[name] - expected[name]) for name in found) < 1e-5
    follower = Registry(database, None, folder)
    follower.begin()
    assert follower.current is not None
    assert follower.current.digest == two.digest
    with pytest.raises(InputError, match=r"there is no run '../one'"):
        registry.activate("../one")


@pytest.mark.skipif(absence() is not None, reason=f"the native step is not here: {absence()}")
@pytest.mark.parametrize("form", ["histories", "rows"])
def test_a_state_of_the_other_step_is_computed_again(
    tmp_path: Path, run: Path, tiny_run: Path, rows: pl.DataFrame, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were stored with torch's step and continued with the native step, and the other way round."""
    models = {}
    for step in ("torch", "native"):
        monkeypatch.setenv("BALANCER_STREAM_STEP", step)
        # With rounded layers the last bit of an input may decide a rounding.
        models[step] = LoadedModel.load(run if form == "histories" else tiny_run, "run", "full")
        assert models[step].stream.uses == step
    busiest = rows["card_id"].value_counts(sort=True)["card_id"].head(3)
    part = rows.filter(pl.col("card_id").is_in(busiest.implode())).with_columns(is_fraud=pl.lit(None, pl.Int8)).head(90)
    expected = {step: replay(opened(f"sqlite:///{tmp_path / step}.db"), model, part) for step, model in models.items()}
    mixed, database = {}, opened(f"sqlite:///{tmp_path / 'mixed.db'}")
    for first, step in ((0, "torch"), (30, "native"), (60, "torch")):
        found = replay(database, models[step], part.slice(first, 30))
        mixed |= found
        if step == "native":
            assert found == {name: expected["native"][name] for name in found}
    assert max(abs(mixed[name] - expected["torch"][name]) for name in mixed) < 1e-5
    assert 0 < max(abs(expected["native"][name] - expected["torch"][name]) for name in mixed) < 1e-5


WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.serving.tools import opened, parsed
from balancer.serving.models.registry import LoadedModel
from balancer.serving.scoring.scorer import Scorer
model, scorer = LoadedModel.load(Path(sys.argv[3]), "run"), Scorer(opened(sys.argv[2]))
for raw in json.load(open(sys.argv[4])):
    scorer.score("t", model, [parsed(raw, model)])
"""


def test_two_workers_at_once_on_one_entity(url: str, database: Database, run: Path, model: LoadedModel, tmp_path: Path) -> None:
    names = [[f"{worker}-{number}" for number in range(40)] for worker in range(2)]
    workers = []
    for worker, ids in enumerate(names):
        path = tmp_path / f"{worker}.json"
        path.write_text(json.dumps([card(transaction_id=name) for name in [*ids[:20], "both", *ids[20:]]]))
        command = [sys.executable, "-c", WORKER, str(Path(__file__).parents[2]), url, str(run), str(path)]
        workers.append(subprocess.Popen(command, stderr=subprocess.PIPE))
    for worker in workers:
        _, errors = worker.communicate(timeout=600)
        assert worker.returncode == 0, errors.decode()[-2000:]
    stored = Entities(database).get("t", "c", 1000)
    assert stored["transactions"] == 81  # 40 of each, and the one that both sent, once
    order = [each["id"] for each in reversed(stored["latest"])]
    for ids in names:
        assert [name for name in order if name in ids] == ids
    # The same order on one worker gives the same scores: no worker read uncommitted data.
    alone = opened(f"sqlite:///{tmp_path / 'alone.db'}")
    scores = [Scorer(alone).score("t", model, [parsed(card(transaction_id=name), model)]).answers[0]["score"] for name in order]
    assert scores == [each["score"] for each in reversed(stored["latest"])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amount": None}, "column 'amount' is null, not a number"),
        ({"amount": math.nan}, "column 'amount' is not finite"),
        ({"amount": "x"}, "column 'amount' is text, not a number"),
        ({"amount": True}, "column 'amount' is true or false, not a number"),
        ({"distance_km": 1e39}, "beyond the range of 32-bit floats"),
        ({"time": "yesterday"}, "column 'time' can't be read as a time"),
        ({"time": 9.1e12}, "ahead of the clock of the service"),  # read as milliseconds
        ({"time": "2126-01-01T00:00:00"}, "ahead of the clock of the service"),
        ({"card_id": None}, "column 'card_id' is null"),
        ({"card_id": "a\x00b"}, "column 'card_id' is not a printable text"),
        ({"channel": "x" * 1001}, "column 'channel' is not a printable text"),
    ],
)
def test_bad_values_name_their_column(model: LoadedModel, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_transaction(card(**changes), model.schema, "transactions[0]", 1.8e9, 3600.0)


def test_a_missing_column_is_named_and_other_columns_are_ignored(model: LoadedModel) -> None:
    raw = card(card_product="gold")
    assert parse_transaction(raw, model.schema, "x", 1.8e9, 0.0).id == "a"
    del raw["region"]
    with pytest.raises(InputError, match=r"x: column 'region' is missing; give null"):
        parse_transaction(raw, model.schema, "x", 1.8e9, 0.0)


def test_unusual_values_are_scored(database: Database, model: LoadedModel) -> None:
    scorer = Scorer(database)
    for number, changes in enumerate(
        [{"amount": 1e12}, {"amount": -5}, {"channel": "never seen"}, {"channel": None, "merchant_id": None}, {"distance_km": None}]
    ):
        answer = scorer.score("t", model, [parsed(card(transaction_id=str(number), **changes), model)]).answers[0]
        assert 0 <= answer["score"] <= 1
