"""Every page on a real run, an empty folder, broken runs, and runs of other versions; and what the pages show
against report.json."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from balancer.app.aggregates import operating_points
from balancer.app.charts import OUTCOMES
from balancer.app.comparisons import in_titles
from balancer.app.loading import plain
from balancer.app.threshold_curves import Basis
from balancer.cli import main
from balancer.evaluation.plain_numbers import daily, share
from balancer.evaluation.report_content import models_of
from balancer.inference.decision import Decision
from balancer.runs.trained_run import TrainedRun, training_table

APP = str(Path(__file__).resolve().parents[2] / "app" / "streamlit_app.py")
PAGES = ("runs", "weights", "threshold", "transactions", "compare", "train", "model")
ABOUT_A_RUN = ("runs", "weights", "threshold", "transactions", "model")


@pytest.fixture
def runs(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with one real run, `first`."""
    folder = tmp_path / "runs"
    shutil.copytree(tiny_run, folder / "first")
    monkeypatch.setenv("BALANCER_RUNS", str(folder))
    return folder


@pytest.fixture
def tree_runs(trees_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with one run of trees alone, `grove`."""
    folder = tmp_path / "runs"
    shutil.copytree(trees_run, folder / "grove")
    monkeypatch.setenv("BALANCER_RUNS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["streamlit_app.py"])


def opened(page: str = "runs") -> AppTest:
    app = AppTest.from_file(APP, default_timeout=600).run()
    return app if page == "runs" else app.switch_page(f"views/{page}.py").run()


def report_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def tile(app: AppTest, label: str) -> str:
    (found,) = (metric.value for metric in app.metric if metric.label == label)
    return str(found)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("runs")
def test_every_page_shows_a_real_run(page: str) -> None:
    app = opened(page)
    assert not app.exception
    assert not app.error
    assert app.title[0].value
    assert app.sidebar.selectbox[0].value == "first"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("tree_runs")
def test_every_page_shows_a_run_of_trees_alone(page: str) -> None:
    app = opened(page)
    assert not app.exception
    assert not app.error
    assert app.sidebar.selectbox[0].value == "grove"
    texts = " ".join(text.value for text in (*app.markdown, *app.info))
    if page in ("runs", "weights", "transactions", "model"):
        assert "network" in texts
    if page == "model":
        assert app.dataframe[0].value["member"].tolist() == ["trees, stage 2"]
        next(button for button in app.button if button.label == "Measure").click().run()
        assert not app.exception
        assert (app.dataframe[-1].value["median, ms"] > 0).all()
    if page == "transactions":
        app.toggle(key="deep").set_value(True).run()
        assert not app.exception
        assert not app.error
        assert any("add up to" in caption.value for caption in app.caption)
        assert "attention" not in app.dataframe[2].value.columns


@pytest.mark.usefixtures("tree_runs")
def test_a_run_of_trees_is_compared_with_lightgbm() -> None:
    app = opened()
    assert "LightGBM, the best alternative" in " ".join(text.value for text in app.markdown)
    assert app.dataframe[0].value["policy"].to_list() == ["–"]


@pytest.mark.usefixtures("tree_runs")
def test_a_run_of_trees_is_compared_with_others(tree_runs: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, tree_runs / "first")
    app = opened()
    listed = app.dataframe[0].value.set_index("run")
    assert listed["detector"].to_dict() == {"grove": "trees", "first": "hybrid"}
    app.multiselect(key="compare-with").select("first" if app.sidebar.selectbox[0].value == "grove" else "grove").run()
    assert not app.exception
    assert set(app.dataframe[1].value["model"]) == {"first", "grove"}


def test_members_and_trees_are_those_of_the_run(runs: Path) -> None:
    app = opened("model")
    members, trees = app.dataframe[0].value, app.dataframe[1].value
    stored = json.loads((runs / "first" / "decision.json").read_text())["members"]
    assert members["weight"].tolist() == list(stored.values())
    files = sorted((runs / "first" / "trees").glob("*.txt"))
    assert trees["bytes"].tolist() == [file.stat().st_size for file in files]
    assert trees["leaves"].tolist() == [
        sum(int(line.split("=")[1]) for line in file.read_text().splitlines() if line.startswith("num_leaves=")) for file in files
    ]
    assert trees["stage"].tolist()[0] == "stage 1, fold 1"


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_folder_offers_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setenv("BALANCER_RUNS", str(tmp_path / "none"))
    app = opened(page)
    assert not app.exception
    buttons = [button.label for button in app.button]
    if page in ABOUT_A_RUN:
        assert "balancer train" in app.info[0].value
        assert "Train on the sample now" in buttons
    else:
        assert {"train": "Start training", "compare": "Compare"}[page] in buttons


BREAKS = {
    "report.json": '{"test": ',
    "run.json": "[]",
    "decision.json": "no json",
    "epochs.parquet": "no parquet",
    "predictions.parquet": None,
    "model.safetensors": None,
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_run_is_named_with_the_reason_and_the_others_are_shown(runs: Path, tiny_run: Path, name: str) -> None:
    shutil.copytree(tiny_run, runs / "broken-run")
    content = BREAKS[name]
    if content is None:
        (runs / "broken-run" / name).unlink()
    else:
        (runs / "broken-run" / name).write_text(content)
    app = opened()
    assert not app.exception
    assert "broken-run" in app.error[0].value
    assert name in app.error[0].value
    assert "[Errno" not in app.error[0].value
    assert "os error" not in app.error[0].value
    assert "\n" not in app.error[0].value
    assert app.sidebar.selectbox[0].options == ["first"]


@pytest.mark.parametrize("page", ABOUT_A_RUN)
def test_damage_found_on_a_page_is_said_there(runs: Path, page: str) -> None:
    for name in ("schema.json", "curves.parquet", "model.json"):
        (runs / "first" / name).write_text("damaged")
    app = opened(page)
    assert not app.exception
    assert len(app.error) == (page != "weights")


@pytest.mark.parametrize("page", PAGES)
def test_a_run_of_an_older_version(runs: Path, page: str) -> None:
    """Before this version a run had no counts of alarms in its report, and before sparse attention no
    attended rows and no form."""
    folder = runs / "first"
    report = report_of(folder)
    for metrics in (report["test"], *report["baselines"].values()):
        del metrics["alarms"]
    (folder / "report.json").write_text(json.dumps(report))
    rows = pl.read_parquet(folder / "predictions.parquet")
    rows.drop("attended", "attended_mass", "global_nodes").write_parquet(folder / "predictions.parquet")
    model = json.loads((folder / "model.json").read_text())
    del model["config"]["form"]
    (folder / "model.json").write_text(json.dumps(model))
    app = opened(page)
    assert not app.exception
    assert not app.error
    if page == "runs":
        caught = rows.filter((pl.col("label") != "0") & pl.col("decision")).height
        assert tile(app, "Frauds caught").split()[0] == str(caught)


def test_a_run_of_a_later_version_is_refused_by_name(runs: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, runs / "later")
    content = json.loads((runs / "later" / "run.json").read_text())
    (runs / "later" / "run.json").write_text(json.dumps(content | {"format": 99}))
    app = opened()
    assert "run format 99" in app.error[0].value


def test_an_unfinished_run_is_listed_and_can_be_resumed(runs: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, runs / "half")
    content = json.loads((runs / "half" / "run.json").read_text())
    (runs / "half" / "run.json").write_text(json.dumps(content | {"status": "running"}))
    assert "--resume" in opened().info[0].value
    assert "Resume half" in [button.label for button in opened("train").button]


def test_a_pretrained_run_says_how_to_go_on(runs: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, runs / "before")
    content = json.loads((runs / "before" / "run.json").read_text())
    (runs / "before" / "run.json").write_text(json.dumps(content | {"status": "pretrained"}))
    assert "--from" in opened().info[0].value


def test_metrics_are_those_of_the_report(runs: Path) -> None:
    report, app = report_of(runs / "first"), opened()
    test, alarms = report["test"], report["test"]["alarms"]
    listed = app.dataframe[0].value
    for title, key in (("average precision", "average_precision"), ("F1", "f1"), ("false-positive rate", "fpr")):
        assert listed[title].iloc[0] == test[key]
    assert tile(app, "Frauds caught") == f"{alarms['caught']:,} of {alarms['caught'] + alarms['missed']:,}"
    assert tile(app, "False alarms a day") == daily(alarms["false_alarms_per_day"])
    whole = alarms["amount_caught"] + alarms["amount_missed"]
    assert tile(app, "Money caught") == share(alarms["amount_caught"] / whole)
    assert any(f"{alarms['amount_caught']:,.0f} of {whole:,.0f} in the currency" in caption.value for caption in app.caption)
    shown = app.dataframe[1].value
    models = models_of(report)
    assert list(shown["model"]) == list(models)
    assert list(shown["model"][:1]) == ["this run"]
    assert list(shown["model"][-3:]) == ["network on trees", "trees, stage 2", "trees, stage 1"]
    for row, metrics in enumerate(models.values()):
        assert shown["average precision"].iloc[row] == metrics["average_precision"]
        assert shown["F1"].iloc[row] == metrics["f1"]
        assert shown["false alarms at recall 0.60"].iloc[row] == metrics["false_alarms_per_10k_at_recall"]["0.60"]
        assert shown["calibration error"].iloc[row] == metrics["ece"]
    page = opened("threshold")
    expected = {
        "Threshold": f"{test['threshold']:.4g}",
        "Frauds caught": f"{alarms['caught']:,} of {test['positives']:,}",
        "Alarms per day": f"{alarms['alarms_per_day']:,.1f}",
        "Precision": f"{100 * test['precision']:.1f} %",
        "Recall": f"{100 * test['recall']:.1f} %",
        "F1": f"{test['f1']:.3f}",
        "False-positive rate": f"{100 * test['fpr']:.2f} %",
        "Amount caught": f"{alarms['amount_caught']:,.0f}",
        "Amount missed": f"{alarms['amount_missed']:,.0f}",
        "Total cost": f"{5 * (alarms['caught'] + alarms['false_alarms']) + alarms['amount_missed']:,.0f}",
    }
    assert {metric.label: metric.value for metric in page.metric} == expected


def test_several_runs_stand_side_by_side(runs: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, runs / "second")
    app = opened()
    app.multiselect(key="compare-with").select("first" if app.sidebar.selectbox[0].value == "second" else "second").run()
    assert not app.exception
    assert set(app.dataframe[1].value["model"]) == {"first", "second"}
    assert not app.metric


def choose_by(app: AppTest, name: str) -> AppTest:
    return app.get_by_key("criterion").set_value(name).run()  # type: ignore[attr-defined,no-any-return]


def test_a_threshold_chosen_by_a_limit_changes_the_metrics_and_is_saved(runs: Path) -> None:
    """A limit is met on the rows that tuned the threshold; the tiles count the test rows."""
    held, test = (
        operating_points(pl.read_parquet(runs / "first" / name), "0", amounts=True)
        for name in ("threshold_scores.parquet", "predictions.parquet")
    )
    basis, app = Basis(held, test, separate=True), opened("threshold")
    before = tile(app, "Alarms per day")
    app = choose_by(app, "alarms per day")
    app.number_input(key="budget").set_value(0.5).run()
    assert tile(app, "Threshold") == f"{basis.for_alarms(0.5):.4g}"
    found = held.metrics(basis.for_alarms(0.5))
    assert (found["caught"] + found["false_alarms"]) * basis.scale / test.days <= 0.5 < float(before)
    app = choose_by(app, "recall")
    app.slider(key="least").set_value(90).run()
    assert held.metrics(held.for_recall(0.9))["recall"] >= 0.9
    assert tile(app, "Threshold") == f"{held.for_recall(0.9):.4g}"
    assert tile(app, "Recall") == f"{100 * test.metrics(held.for_recall(0.9))['recall']:.1f} %"
    app = choose_by(app, "false-positive rate")
    app.number_input(key="cap").set_value(1.0).run()
    assert held.metrics(held.for_fpr(0.01))["fpr"] <= 0.01
    assert tile(app, "False-positive rate") == f"{100 * test.metrics(held.for_fpr(0.01))['fpr']:.2f} %"
    app = choose_by(app, "cost")
    app.number_input(key="price").set_value(1e9).run()
    assert float(tile(app, "Alarms per day")) == 0
    app = choose_by(app, "score")
    app.slider(key="score").set_value(0.4).run()
    tuned = Decision.load(runs / "first").threshold
    next(button for button in app.button if button.label == "Save this threshold").click().run()
    assert not app.exception
    saved = Decision.load(runs / "first")
    assert (saved.threshold, saved.tuned, saved.chosen) == (0.4, tuned, "a score of 0.4")
    assert TrainedRun.load(runs / "first").decision.threshold == 0.4  # what score and evaluate use
    next(button for button in app.button if button.label == "Restore the tuned threshold").click().run()
    assert Decision.load(runs / "first") == Decision(saved.calibration, tuned, members=saved.members)


def test_transactions_are_filtered_found_and_explained(runs: Path) -> None:
    app = opened("transactions")
    for kind in OUTCOMES:
        app.get_by_key("kind").set_value(kind).run()  # type: ignore[attr-defined]
        shown = app.dataframe[0].value if app.dataframe else None
        assert not app.exception
        assert shown is None or set(shown["outcome"]) == {kind}
    rows = pl.read_parquet(runs / "first" / "predictions.parquet")
    with_past = rows.filter(pl.col("attended").list.len() > 1).row(0, named=True)
    app.text_input(key="transaction").set_value("no such id").run()
    assert "no such id" in app.warning[0].value
    app.text_input(key="transaction").set_value(str(with_past["id"])).run()
    assert app.header[0].value == f"Transaction {with_past['id']}"
    assert tile(app, "Score") == f"{with_past['score']:.4f}"
    assert not app.exception
    assert not app.error
    fields, history = app.dataframe[-2].value, app.dataframe[-1].value
    assert history["id"].iloc[0] == with_past["id"]
    attention = history.dropna(subset="attention").set_index("id")["attention"].to_dict()
    assert attention == pytest.approx(dict(zip(with_past["attended"], with_past["attended_mass"], strict=True)))
    run = TrainedRun.load(runs / "first", precision="auto")  # what the app reads
    data = training_table(run.folder)
    (place,) = (data.ids == with_past["id"]).arg_true().to_list()
    score = run.scores(data, np.array([place]))[0, 1]
    total = math.log(score / (1 - score))
    assert fields["contribution"].sum() == pytest.approx(total, abs=1e-6)
    assert "transactions of this card in the last hour" in set(fields["words"])
    assert any(f"add up to {total:+.2f}" in caption.value for caption in app.caption)


def test_the_table_that_is_gone_or_has_changed_is_said(runs: Path) -> None:
    content = json.loads((runs / "first" / "run.json").read_text())
    content["config"]["dataset"] = str(runs / "gone.parquet")
    content["table"] = {}  # no other place where it may be
    (runs / "first" / "run.json").write_text(json.dumps(content))
    app = opened("transactions")
    assert "gone.parquet is not here" in app.warning[0].value
    content["config"]["dataset"] = str(Path(APP).parents[1] / "data_samples" / "transactions.parquet")
    (runs / "first" / "run.json").write_text(json.dumps(content))
    app = opened("transactions")
    assert "has changed since" in app.warning[0].value


@pytest.mark.parametrize("kept", ["policy", "constant"])
def test_the_page_says_what_was_kept(runs: Path, kept: str) -> None:
    file = runs / "first" / "policy" / "policy.json"
    content = json.loads(file.read_text())
    figures = {"f1": 0.5, "average_precision": 0.4, "partial_auc": 0.3, "minority_share": 0.2, "hardness": 1.0}
    content["training"]["evaluation"] = dict.fromkeys(("ppo", "constant", "one_to_one", "none", "start", "random"), figures)
    file.write_text(json.dumps(content | {"kept": kept}))
    app = opened("weights")
    assert not app.exception
    said = [text.value for text in app.markdown if "The constant was kept" in text.value]
    assert len(said) == (kept == "constant")
    (table,) = (table.value for table in app.dataframe if "last share" in table.value.columns)
    assert table["policy"].tolist()[:3] == ["PPO", "auto, the constant", "1:1 over-sampling"]


@pytest.mark.slow
def test_the_map_is_measured_and_the_game_is_played_to_its_end(runs: Path) -> None:
    # A map of version 0.1, measured with another loss, is not shown.
    old = pl.DataFrame({"share": [0.1], "hardness": [1.0], "average_precision": [0.9], "f1": [0.9]})
    old.write_parquet(runs / "first" / "surface.parquet")
    app = opened("weights")
    next(button for button in app.button if button.label.startswith("Measure the map")).click().run()
    assert not app.exception
    surface = pl.read_parquet(runs / "first" / "surface.parquet")
    assert surface.height == 35
    assert surface["class_importance"].unique().to_list() == [0.5]
    assert f"{surface['average_precision'].max():.3f}" in " ".join(caption.value for caption in app.caption)
    next(button for button in app.button if button.label == "Train one epoch").click().run()
    assert "you: AP" in [metric.label for metric in app.metric]
    app.slider(key="game-share").set_value(50.0).run()
    app.slider(key="game-importance").set_value(1.0).run()
    app.select_slider(key="game-half-life").set_value("1/4").run()
    next(button for button in app.button if button.label == "Train to the end").click().run()
    assert not app.exception
    assert any("The game is over" in said.value for said in (*app.success, *app.info, *app.warning))
    table = app.dataframe[-1].value
    assert table["epoch"].max() == 8
    values = table[table["player"] == "you"]
    assert values["share"].iloc[-1] == pytest.approx(0.5)
    assert values["class_importance"].tolist() == [0.5] + 7 * [1.0]
    assert values["half_life"].isna().tolist() == [True] + 7 * [False]
    assert values["half_life"].iloc[-1] == 0.25
    rivals = table[(table["player"] == "no sampling") & (table["epoch"] == 8)]
    assert (rivals["class_importance"].item(), rivals["hardness"].item()) == (0.0, 0.0)
    next(button for button in app.button if button.label == "Start again").click().run()
    assert not [metric for metric in app.metric if metric.label == "you: AP"]


def test_a_comparison_is_shown_with_its_sentence(runs: Path, tiny_table: Path) -> None:
    short = ("--gap", "1d", "--folds", "1", "--seeds", "2", "--epochs", "2", "--steps-per-epoch", "4", "--device", "cpu")
    assert main(["compare", "--dataset", str(tiny_table), "--out", str(runs / "c"), *short, "--treatments", "none,one_to_one,auto"]) == 0
    content = json.loads((runs / "c" / "comparison.json").read_text())
    app = opened("compare")
    assert not app.exception
    assert plain(in_titles(content["sentence"], content["means"])) in [each.value for each in app.caption]
    what_if = app.dataframe[0].value
    assert what_if["average precision"].tolist() == [content["means"][name]["average_precision"] for name in ("auto", "one_to_one", "none")]
    (runs / "c" / "comparison.json").write_text('{"results": []}')
    assert "lacks reference" in opened("compare").error[0].value


@pytest.mark.usefixtures("runs")
def test_roles_in_doubt_are_asked_for_and_a_mistake_is_one_line(tmp_path: Path) -> None:
    odd = tmp_path / "odd.csv"
    odd.write_text("when_a,when_b,who,seen\n1,2,x,0\n2,3,y,1\n")
    app = opened("train")
    assert not app.warning
    app.get_by_key("how").set_value("a path").run()  # type: ignore[attr-defined]
    app.text_input(key="path").set_value(str(odd)).run()
    assert "Not every role is clear" in app.warning[0].value
    assert next(button for button in app.button if button.label == "Start training").disabled
    few = tmp_path / "few.csv"
    few.write_text("when_a,when_b,who,bad\n1,2,x,0\n2,3,y,1\n")
    app.text_input(key="path").set_value(str(few)).run()
    assert "2 labelled rows are too few to split by time" in app.warning[0].value, "what train refuses is shown"
    app.text_input(key="path").set_value(str(tmp_path / "missing.csv")).run()
    assert "does not exist" in app.error[0].value
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 damaged")
    app.text_input(key="path").set_value(str(tmp_path / "damaged.parquet")).run()
    assert "can't be read" in app.error[0].value


@pytest.mark.usefixtures("runs")
def test_columns_leaks_and_the_spec_are_shown(tmp_path: Path) -> None:
    rows = range(400)
    odd = tmp_path / "odd.csv"
    pl.DataFrame(
        {
            "when": [f"{1 + row % 28:02}/01/2024 10:00" for row in rows],
            "sum": [row * 37 % 101 for row in rows],
            "f0": [row * 53 % 211 for row in rows],
            "status": ["blocked [*]" if row % 10 == 0 else "open" for row in rows],
            "empty": [None for _ in rows],
            "is_fraud": [int(row % 10 == 0) for row in rows],
        }
    ).write_csv(odd)
    app = opened("train")
    app.get_by_key("how").set_value("a path").run()  # type: ignore[attr-defined]
    app.text_input(key="path").set_value(str(odd)).run()
    assert not app.exception
    assert not app.error
    assert "suspected leak" in app.warning[0].value and "status" in app.warning[0].value
    shown = app.dataframe[-1].value.set_index("column")
    roles = {"when": "time", "sum": "amount", "f0": "numeric", "status": "categorical", "empty": "left out", "is_fraud": "label"}
    assert shown["role"].to_dict() == roles
    assert shown["why"]["f0"] == "whole numbers" and shown["missing"]["empty"] == 100
    assert any("empty" in caption.value and "left out" in caption.value.lower() for caption in app.caption)
    app.multiselect(key=f"role-categorical-{odd}").set_value([]).run()
    shown = app.dataframe[-1].value.set_index("column")
    assert (shown["role"]["status"], shown["why"]["status"]) == ("left out", "chosen here")
    assert not app.warning
    app.selectbox(key="learner").set_value("trees").run()
    assert app.selectbox(key="policy").disabled
    assert not app.exception


@pytest.mark.usefixtures("runs")
def test_budgets_are_priced_on_the_table(tiny_table: Path) -> None:
    app = opened("train")
    app.selectbox(key="known").set_value(tiny_table.resolve()).run()
    next(button for button in app.button if button.label.startswith("Check the table")).click().run()
    assert not app.exception
    assert not app.error
    assert all("min" in each for each in app.radio(key="budget").proto.captions)


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", "", "first"])
def test_a_name_that_leaves_the_folder_or_is_taken_is_refused(runs: Path, name: str) -> None:
    app = opened("train")
    app.text_input(key="run-name").set_value(name).run()
    next(button for button in app.button if button.label == "Start training").click().run()
    assert not app.exception
    assert ("already" if name == "first" else "can't be used for a run") in app.error[0].value
    assert {path.name for path in runs.parent.iterdir()} == {"runs"}


@pytest.mark.usefixtures("runs")
def test_latency_is_measured_on_demand() -> None:
    app = opened("model")
    next(button for button in app.button if button.label == "Measure").click().run()
    assert app.dataframe[-1].value["batch"].tolist() == [1, 32, 256]
    assert (app.dataframe[-1].value["median, ms"] > 0).all()


def test_the_precision_plan_is_shown_as_it_is_on_disk(runs: Path) -> None:
    assert main(["quantize", str(runs / "first"), "--max-drop", "0.5"]) == 0
    content = json.loads((runs / "first" / "precision.json").read_text())
    app = opened("model")
    assert not app.exception
    (before_after,) = (table.value for table in app.dataframe if "full" in table.value.columns)
    rows = before_after.set_index("")
    for side in ("before", "after"):
        values = content["about"][side]
        assert rows["full" if side == "before" else "quantized"]["average precision"] == values["test"]["average_precision"]
        assert rows["full" if side == "before" else "quantized"]["weights, kB"] == values["bytes"] / 1000
    (layers,) = (table.value for table in app.dataframe if "divergence with INT8" in table.value.columns)
    assert dict(zip(layers["layer"], layers["precision"], strict=True)) == content["got"]


def test_downloads_hold_what_the_table_shows() -> None:
    from balancer.app.loading import as_csv, as_parquet

    frame = pl.DataFrame({"id": [1, 2], "attended": [[3, 4], []]})
    assert as_csv(frame) == b"id,attended\n1,3 4\n2,\n" or as_csv(frame) == b'id,attended\n1,3 4\n2,""\n'
    assert pl.read_parquet(io.BytesIO(as_parquet(frame))).equals(frame)
