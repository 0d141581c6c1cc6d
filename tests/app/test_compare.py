"""The page Compare: a comparison that is started, watched, stopped, resumed and read; the forest plot; how
runs differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from balancer.app import comparisons, jobs, loading
from balancer.app.browsing import Run, find_comparisons, read_run
from balancer.app.comparison_charts import forest_chart, parallel_chart
from balancer.app.comparisons import configuration_differences, find_unfinished, forest_rows, parallel_rows, unfinished
from balancer.comparison.summary import document
from tests.app.test_jobs import until
from tests.app.test_pages import opened
from tests.app.test_pages import typed as typed
from tests.comparison.test_summary import _results as results

TINY = ("--gap", "1d", "--folds", "1", "--seeds", "6", "--epochs", "4", "--steps-per-epoch", "20", "--device", "cpu", "--threads", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder."""
    monkeypatch.setenv("BALANCER_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.mark.slow
def test_started_watched_stopped_resumed_and_read(folder: Path, tiny_table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "SIZES", {"short": TINY})
    monkeypatch.setattr(comparisons, "TREATMENTS", ("none", "one_to_one", "auto", "bandit"))
    monkeypatch.setattr(loading, "sample_table", lambda: tiny_table)
    app = opened("compare")
    next(button for button in app.button if button.label == "Compare").click().run()
    assert not app.exception and not app.error
    assert "comparison" in [each.value for each in app.subheader]
    assert "Stop" in [button.label for button in app.button], "it is shown at once, without a reload"
    (job,) = jobs.find_jobs(folder)
    until(lambda: ((now := unfinished(job.out)) is not None and now.done > 0) or not job.alive, 120)
    app = opened("compare")
    assert not app.exception and not app.error
    next(button for button in app.button if button.label == "Stop").click().run()
    assert not app.exception
    assert not job.alive
    assert find_comparisons(folder) == []
    assert "trainings are finished" in app.warning[0].value
    state = unfinished(job.out)
    assert state is not None and 0 < state.done < state.planned == 24
    next(button for button in app.button if button.label == "Resume").click().run()
    assert not app.exception and not app.error
    (again,) = jobs.find_jobs(folder)
    assert again.arguments == job.arguments
    until(lambda: not again.alive, 120)
    app = opened("compare")
    assert not app.exception and not app.error, again.tail()
    assert [path.parent.name for path in find_comparisons(folder)] == ["comparison"]
    assert "the best fixed ratio here" in " ".join(text.value for text in app.markdown)
    assert not app.info
    assert any(each.value.startswith("Over 1 fold") and "one\\_to\\_one" not in each.value for each in app.caption)
    assert app.text_input(key="compare-name").value == "comparison-2"


def test_a_job_that_failed_before_its_folder_can_be_started_again(folder: Path, tmp_path: Path) -> None:
    job = jobs.start(folder, "bad", "compare", ["--dataset", str(tmp_path / "missing.parquet")])
    until(lambda: not job.alive)
    app = opened("compare")
    assert not app.exception
    assert "missing" in app.error[0].value
    assert "Start again" in [button.label for button in app.button]
    next(button for button in app.button if button.label == "Remove from this list").click().run()
    assert not app.exception and not app.error
    assert jobs.find_jobs(folder) == []


def written(folder: Path, cells: list[dict[str, Any]]) -> Path:
    """A finished comparison in a runs folder."""
    (folder / "c").mkdir(parents=True)
    (folder / "c" / "comparison.json").write_text(json.dumps(document(cells, "one_to_one")))
    return folder / "c" / "comparison.json"


def test_the_verdict_and_the_reference_at_zero(folder: Path) -> None:
    cells = results({"one_to_one": 0.0, "none": -0.05, "auto": 0.02, "ppo": 0.06, "lightgbm": 0.2})
    picked = written(folder, cells)
    (folder / ".jobs").mkdir()
    shutil.copy(picked, folder / ".jobs" / "comparison.json")
    app = opened("compare")
    assert not app.exception and not app.error
    assert app.selectbox(key="comparison").options == ["c"]
    assert "beat the best fixed ratio here, the constant of the package (auto), by 0.04" in " ".join(text.value for text in app.markdown)
    reference = next(each for each in app.selectbox if each.label == "Reference, at zero")
    assert reference.value == "auto"
    reference.set_value("lightgbm").run()
    assert not app.exception


def test_rows_of_the_forest_plot_are_sorted_and_say_what_is_clear() -> None:
    cells = results({"one_to_one": 0.0, "none": -0.05, "auto": 0.004, "ppo": 0.06}, wobble=0.02)
    rows = forest_rows(cells, "one_to_one", "average_precision")
    assert rows["treatment"].to_list() == ["ppo", "auto", "one_to_one", "none"]
    assert rows["verdict"].to_list() == ["better", "no clear difference", "reference", "worse"]
    assert rows["kind"].to_list() == ["learned weights", "fixed ratio", "fixed ratio", "fixed ratio"]
    alarms = forest_rows(cells, "one_to_one", "false_alarms_per_10k_at_recall_0.60")
    assert alarms["treatment"][0] == "ppo" and alarms["difference"][0] < 0, "fewer false alarms are better"
    assert forest_rows(cells, "one_to_one", "brier").is_empty()
    chart = forest_chart(rows, "one_to_one", "average_precision").to_dict()
    assert len(chart["layer"]) == 3
    assert chart["layer"][1]["encoding"]["y"]["sort"] == rows["title"].to_list()


def test_settings_in_which_runs_differ(tiny_run: Path, trees_run: Path) -> None:
    runs = [read_run(tiny_run), read_run(trees_run)]
    found = configuration_differences(runs)
    assert found.columns == ["setting", "run", "trees_run"]
    values = {row["setting"]: (row["run"], row["trees_run"]) for row in found.to_dicts()}
    assert values["learner"] == ("hybrid", "trees")
    assert values["policy"] == ("ppo", "auto")
    assert "out" not in values
    assert configuration_differences(runs[:1]).is_empty()
    assert configuration_differences([runs[0], Run(Path("gone"), "broken")]).is_empty()


def test_parallel_coordinates_of_runs(tiny_run: Path, trees_run: Path) -> None:
    rows = parallel_rows([read_run(tiny_run), read_run(trees_run)])
    assert rows["place"].is_between(0, 1).all()
    assert rows.sort("order")["axis"].unique(maintain_order=True).to_list()[-2:] == ["recall", "average precision"]
    learner = rows.filter(pl.col("axis") == "learner")
    assert dict(zip(learner["value"], learner["place"], strict=True)) == {"hybrid": 0.0, "trees": 1.0}
    assert len(parallel_chart(rows).to_dict()["layer"]) == 4


def test_several_runs_on_the_page(folder: Path, tiny_run: Path, trees_run: Path) -> None:
    for name, run in (("a", tiny_run), ("b", trees_run), ("c [x]", tiny_run)):
        shutil.copytree(run, folder / name)
    app = opened("compare")
    assert not app.exception and not app.error
    (table,) = (frame.value for frame in app.dataframe if "setting" in frame.value.columns)
    assert {"a", "b", "c [x]"} <= set(table.columns)
    app.multiselect(key="compare-runs").set_value(["a", "c [x]"]).run()
    assert not app.exception
    assert "same settings" in " ".join(text.value for text in app.markdown)


def test_damaged_and_other_folders_are_no_unfinished_comparison(tmp_path: Path) -> None:
    for name, content in (("x", "{"), (".y", "{}"), ("z", json.dumps({"format": 1, "flags": {}}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "compare.json").write_text(content)
    assert find_unfinished(tmp_path) == []
