"""The page Transactions: the queue of alarms, reasons, the history of a card, and exported labels."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from balancer.app.browsing import read_run
from balancer.app.label_export import column_names, corrected_table
from balancer.app.review_queue import (
    KINDS,
    RISK,
    card_chart,
    earlier_of_table,
    earlier_of_test,
    label_words,
    queue,
    review_sentence,
)
from balancer.data.dataset import load_dataset
from balancer.data.reading import read_input
from balancer.runs.reviews import Reviews, label_table, review
from balancer.runs.trained_run import TrainedRun, read_schema, training_table

APP = str(Path(__file__).resolve().parents[2] / "app" / "streamlit_app.py")


def opened() -> AppTest:
    app = AppTest.from_file(APP, default_timeout=600).run()
    return app.switch_page("views/transactions.py").run()


def press(app: AppTest, key: str) -> AppTest:
    return app.button(key=key).click().run()


def alarms_of(run: Path) -> pl.DataFrame:
    """All alarms by money at risk, the largest first."""
    rows = pl.read_parquet(run / "predictions.parquet").filter("decision")
    return rows.with_columns(risk=pl.col("score") * pl.col("amount").clip(0)).sort("risk", "score", descending=True)


def test_alarms_come_by_money_at_risk_and_are_said_in_words(runs: Path) -> None:
    app, alarms = opened(), alarms_of(runs / "first")
    assert not app.exception and not app.error and not app.warning
    listed = app.dataframe[0].value
    assert listed["id"].tolist() == alarms["id"].head(500).to_list()
    assert set(listed["label"]) <= {"fraud", "legitimate"}
    assert RISK in listed.columns and "card" in listed.columns
    first = alarms.row(0, named=True)
    assert app.header[0].value == f"Transaction {first['id']}"
    (label,) = (metric.value for metric in app.metric if metric.label == "Label")
    assert label == ("fraud" if first["label"] == "1" else "legitimate")
    run = TrainedRun.load(runs / "first", precision="auto")
    data = training_table(run.folder)
    (place,) = (data.ids == first["id"]).arg_true().to_list()
    ((strongest, _), *_) = run.contributions(data, pl.Series([place]).to_numpy()).strongest(data, 1)[0] or [("", 0.0)]
    reasons = next(text.value for text in app.markdown if text.value.startswith("- "))
    assert re.sub(r"\\(.)", r"\1", reasons.split("\n")[0]) == f"- {strongest}", "open by default, without a click"
    assert not re.search(r"\w+_log|stage1_", reasons), "no names of derived fields"
    assert listed["why"][0].startswith(strongest)
    history = app.dataframe[-1].value
    assert history["id"].iloc[0] == first["id"]
    assert not history[["amount", "label", "score", "kind"]].isna().any().any(), "no row of None"


def test_confirm_dismiss_and_undo_survive_a_reload(runs: Path) -> None:
    app, ids = opened(), alarms_of(runs / "first")["id"].to_list()
    assert app.button(key="undo").disabled
    app = press(app, "confirm")
    assert Reviews.load(runs / "first").labels == {ids[0]: "1"}
    assert app.header[0].value == f"Transaction {ids[1]}", "the next alarm follows"
    app = press(app, "dismiss")
    assert Reviews.load(runs / "first").labels == {ids[0]: "1", ids[1]: "0"}
    app = opened()
    assert "2 of" in app.caption[0].value and "1 confirmed as fraud, 1 dismissed" in app.caption[0].value
    assert app.dataframe[0].value["id"].iloc[0] == ids[2]
    app.get_by_key("kind").set_value("reviewed").run()  # type: ignore[attr-defined]
    shown = app.dataframe[0].value
    assert dict(zip(shown["id"], shown["reviewed"], strict=True)) == {ids[0]: "fraud", ids[1]: "legitimate"}
    app = press(app, "undo")
    assert Reviews.load(runs / "first").labels == {ids[0]: "1"}
    assert not app.exception
    (runs / "first" / "reviews.json").write_text("[]")
    assert "reviews.json" in opened().error[0].value


def test_the_queue_ends(runs: Path) -> None:
    for identity in alarms_of(runs / "first")["id"].to_list():
        review(runs / "first", identity, "0", classes=("0", "1"))
    app = opened()
    assert not app.exception
    assert "No alarm is left to review" in app.info[0].value
    assert not app.header


def test_exports_are_read_by_training_and_by_the_service(runs: Path, tmp_path: Path) -> None:
    folder, ids = runs / "first", alarms_of(runs / "first")["id"].to_list()
    wrong = {ids[0]: "0", ids[1]: "0", ids[2]: "1"}
    for identity, label in wrong.items():
        review(folder, identity, label, classes=("0", "1"))
    app = opened()
    assert not app.exception
    assert {"Labels, CSV", "Labels, Parquet", "For the service, JSON", "Training table with these labels"} <= {
        button.label for button in app.get("download_button")
    }
    spec, schema = json.loads((folder / "schema.json").read_text())["spec"], read_schema(folder)
    assert column_names(spec) == {"id": "transaction_id", "label": "is_fraud", "time": "time"}
    frame = label_table(Reviews.load(folder), pl.read_parquet(folder / "predictions.parquet"), names=column_names(spec))
    file = tmp_path / "labels.csv"
    frame.write_csv(file)
    found = read_input(file)
    assert found["transaction_id"].cast(pl.Int64).to_list() == list(wrong)
    assert found["is_fraud"].cast(pl.String).to_list() == list(wrong.values())
    table = pl.read_parquet(io.BytesIO(corrected_table(read_run(folder), Reviews.load(folder))))
    again = load_dataset(table, schema.spec, bad_rows="error", like=schema)
    labels = dict(zip(again.ids.to_list(), [again.schema.classes[code] for code in again.store.label.tolist()], strict=True))
    before = training_table(TrainedRun.load(folder).folder)
    known = dict(zip(before.ids.to_list(), [before.schema.classes[code] for code in before.store.label.tolist()], strict=True))
    assert labels == known | wrong


def test_a_table_that_is_gone_leaves_the_queue_and_the_known_rows(runs: Path) -> None:
    content = json.loads((runs / "first" / "run.json").read_text())
    content["config"]["dataset"] = str(runs / "gone.parquet")
    content["table"] = {}
    (runs / "first" / "run.json").write_text(json.dumps(content))
    app = opened()
    assert not app.exception and not app.error
    assert "gone.parquet" in app.warning[0].value
    assert app.dataframe[0].value.shape[0]
    assert "why" not in app.dataframe[0].value.columns


@pytest.mark.usefixtures("runs")
def test_filters_stay_when_the_page_is_left() -> None:
    app = opened()
    app.get_by_key("kind").set_value("missed").run()  # type: ignore[attr-defined]
    app.number_input(key="least-amount").set_value(50.0).run()
    app = app.switch_page("views/threshold.py").run().switch_page("views/transactions.py").run()
    assert app.get_by_key("kind").value == "missed"  # type: ignore[attr-defined]
    assert app.number_input(key="least-amount").value == 50.0


ROWS = pl.DataFrame(
    {
        "id": [1, 2, 3, 4],
        "entity": ["a", "a", "a", "b"],
        "time": pl.Series([1, 2, 3, 4]).cast(pl.Datetime("us")),
        "amount": [10.0, 1_000.0, -5.0, 50.0],
        "label": ["0", "1", None, "1"],
        "score": [0.9, 0.6, 0.8, 0.1],
    }
)


def test_money_at_risk_and_reviews_of_the_queue() -> None:
    found = queue(ROWS, 0.5, "0", amounts=True, reviewed={2: "1"}).collect()
    assert found[RISK].to_list() == pytest.approx([9.0, 600.0, 0.0, 5.0])
    assert found["alarm"].to_list() == [True, True, True, False]
    assert found["reviewed"].to_list() == [None, "1", None, None]
    assert found["outcome"].to_list() == ["false alarm", "caught", None, "missed"]
    assert queue(ROWS, 0.5, "0", amounts=False, reviewed={}).collect()[RISK].to_list() == ROWS["score"].to_list()
    assert review_sentence(found.lazy(), "0") == "1 of 3 alarms reviewed: 1 confirmed as fraud, 0 dismissed."
    assert review_sentence(queue(ROWS, 0.5, "0", amounts=True, reviewed={}), "0") == "3 alarms, none reviewed yet."


def test_labels_in_words() -> None:
    assert label_words(["0", "1"]) == {"0": "legitimate", "1": "fraud"}
    assert label_words(["no", "theft", "loan"]) == {"no": "legitimate", "theft": "fraud: theft", "loan": "fraud: loan"}


def test_the_timeline_ends_with_the_transaction_and_marks_alarms() -> None:
    frame, left_out = earlier_of_test(ROWS, ROWS.row(2, named=True), 0.5, "0", most=2)
    assert (frame["id"].to_list(), left_out) == ([3, 2], 1)
    assert frame["kind"].to_list() == [KINDS[2], KINDS[0]]
    assert frame["chosen"].to_list() == [True, False]
    for amounts in (True, False):
        spec = card_chart(frame, amounts=amounts).to_dict()
        assert KINDS[0] in json.dumps(spec) and KINDS[4] not in json.dumps(spec["layer"][0]["encoding"])


def test_the_history_is_that_of_the_whole_table(tiny_run: Path) -> None:
    data, rows = training_table(TrainedRun.load(tiny_run).folder), pl.read_parquet(tiny_run / "predictions.parquet")
    chosen = rows.row(rows.height - 1, named=True)
    (place,) = (data.ids == chosen["id"]).arg_true().to_list()
    frame, left_out = earlier_of_table(data, place, rows, 0.5, most=5)
    assert frame["id"].to_list()[0] == chosen["id"]
    assert frame["time"].is_sorted(descending=True)
    assert left_out == place - int(data.store.start[place]) - (frame.height - 1)
    scored = set(rows["id"])
    assert all((score is not None) == (name in scored) for name, score in frame.select("id", "score").iter_rows())
    assert all(("before" in kind) == (name not in scored) for name, kind in frame.select("id", "kind").iter_rows())
