"""The report: its files, that they repeat byte for byte, and that worse results are reported too."""

from __future__ import annotations

import copy
import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from balancer.errors import InputError
from balancer.evaluation.metrics import evaluate_scores
from balancer.evaluation.report_content import (
    AVERAGE_PRECISION,
    FALSE_ALARMS,
    Column,
    baselines_of,
    differences,
    members_sentence,
    models_of,
    parts_of,
    standard_error,
    summary,
)
from balancer.evaluation.report_json import build_report, compare_reports, write_report
from balancer.evaluation.report_markdown import render_page
from balancer.evaluation.report_terminal import print_metrics, print_report

BASELINES = {"none": 2.0, "one_to_one": 1.6, "class_weight": 1.8, "lightgbm": 3.2}
PARTS = {"stage1": 2.7, "stage2": 3.6, "network": 2.2}
CLASSES = ["legitimate", "burst", "takeover"]
N = 3_000


def rows() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels of the test rows, and a fraud score of each model."""
    rng = np.random.default_rng(0)
    label = np.where(rng.random(N) < 0.03, rng.integers(1, 3, N), 0)
    noise = rng.normal(size=N)
    scores = {name: 1 / (1 + np.exp(3 - noise - skill * (label > 0))) for name, skill in {"run": 2.6, **BASELINES}.items()}
    return label, scores


def part_scores(label: np.ndarray) -> dict[str, np.ndarray]:
    """A fraud score of each part of a detector; that of stage 2 is the best of all models."""
    noise = np.random.default_rng(1).normal(size=N)
    return {name: 1 / (1 + np.exp(3 - noise - skill * (label > 0))) for name, skill in PARTS.items()}


def metrics(label: np.ndarray, score: np.ndarray, *, entities: bool = True) -> dict[str, Any]:
    time, entity = np.linspace(0, 6 * 86_400, N), np.arange(N) % 40 if entities else None
    return evaluate_scores(label, score, threshold=0.3, raw_score=score, classes=CLASSES, time=time, entity=entity)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    label, scores = rows()
    by_name = {name: metrics(label, score) for name, score in scores.items()}
    counts = {"rows": 600, "unlabelled": 3, "classes": {"legitimate": 590, "burst": 4, "takeover": 3}}
    run = {
        "configuration": {"budget": "quick", "seed": 0, "history": None},
        "data": {"parts": dict.fromkeys(("train", "gap", "reward", "threshold", "test"), counts), "split": {"train": 0.6, "gap": None}},
        "policy": {"name": "ppo"},
        "timing": {"seconds": {"policy": 12.5}},
    }
    return build_report(by_name.pop("run"), by_name, run=run)


@pytest.fixture(scope="module")
def hybrid(report: dict[str, Any]) -> dict[str, Any]:
    """The report of a detector with network and trees."""
    label, _ = rows()
    parts = {name: metrics(label, score) for name, score in part_scores(label).items()}
    run = report["run"] | {"members": {"network": 0.35, "stage2": 0.65}}
    return report | {"baselines": report["baselines"] | parts, "run": run}


def printed(report: dict[str, Any], width: int, folder: Path | None = None) -> str:
    console = Console(file=StringIO(), width=width, force_terminal=False)
    print_report(report, console, folder=folder)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_top_level_and_timing(report: dict[str, Any]) -> None:
    assert list(report) == ["test", "baselines", "run", "timing"]
    assert list(report["baselines"]) == list(BASELINES)
    assert report["timing"] == {"seconds": {"policy": 12.5}}
    assert "timing" not in report["run"]


def test_files_are_complete_and_repeat_byte_for_byte(report: dict[str, Any], tmp_path: Path) -> None:
    label, scores = rows()
    content = []
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        write_report(report | {"timing": {"seconds": seconds}}, tmp_path / name, label=label, scores=scores)
        content.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert sorted(content[0]) == ["curves.parquet", "report.json", "report.md"]
    assert content[0]["report.md"] == content[1]["report.md"]
    assert content[0]["curves.parquet"] == content[1]["curves.parquet"]
    first, second = (json.loads(files["report.json"]) for files in content)
    assert compare_reports(first, second) == []
    assert first["test"] == report["test"]
    curves = pl.read_parquet(tmp_path / "a" / "curves.parquet")
    assert curves.columns == ["model", "threshold", "recall", "precision", "fpr"]
    assert set(curves["model"]) == set(scores)
    assert curves.group_by("model").len()["len"].max() <= 500


def test_a_folder_that_is_not_there_is_named(report: dict[str, Any], tmp_path: Path) -> None:
    label, scores = rows()
    with pytest.raises(InputError, match=r"curves\.parquet"):
        write_report(report, tmp_path / "gone", label=label, scores=scores)


def test_compare_reports_names_every_difference(report: dict[str, Any]) -> None:
    other = copy.deepcopy(report)
    other["test"]["recall_at_fpr"]["0.001"] = 2.0
    other["run"]["device"] = "cuda"
    other["timing"] = {}
    del other["baselines"]["none"]
    assert compare_reports(report, other) == ["baselines.none", "run.device", "test.recall_at_fpr.0.001"]


def test_differences_report_worse_and_better_results_alike(report: dict[str, Any]) -> None:
    outcomes = {name: {item.name: item for item in differences(report["test"], report["baselines"][name])} for name in BASELINES}
    assert {item.outcome for item in outcomes["lightgbm"].values()} == {"worse"}
    assert {item.outcome for item in outcomes["one_to_one"].values()} == {"better"}
    assert {item.outcome for item in differences(report["test"], report["test"])} == {"equal"}
    alarms = outcomes["one_to_one"]["false alarms at recall 0.60"]
    this, other = FALSE_ALARMS["0.60"].value(report["test"]), FALSE_ALARMS["0.60"].value(report["baselines"]["one_to_one"])
    assert this is not None
    assert other
    assert alarms.change == f"{100 * (this / other - 1):+.0f} %"
    sentence = summary(report)
    assert sentence.index("below LightGBM (-") < sentence.index("above no sampling (+")
    assert "LightGBM with" in sentence


def test_best_value_and_missing_values() -> None:
    models: list[dict[str, Any]] = [{"average_precision": 0.70004}, {"average_precision": 0.7}, {"average_precision": None}]
    assert AVERAGE_PRECISION.best(models) is None  # equal as shown
    assert AVERAGE_PRECISION.best([*models, {"average_precision": 0.8}]) == 0.8
    assert AVERAGE_PRECISION.text(models[2]) == "–"
    assert Column(("a", "b"), "", 2).value({"a": None}) is None
    assert standard_error({"average_precision": None, "positives": 0}) is None


def test_page_has_every_model_class_and_split(report: dict[str, Any]) -> None:
    page = render_page(report)
    for text in (
        "| this run (ppo) |",
        "| 1:1 over-sampling |",
        "| LightGBM |",
        "| burst |",
        "| validation, threshold half |",
        "budget quick, seed 0",
    ):
        assert text in page
    heads = [line for line in page.splitlines() if line.startswith("| model")]
    assert "F1, tuned" in heads[0]
    assert "F1 at .5" in heads[0]
    assert "12.5" not in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables[:7]} == {heads[0].count("|")}


def test_models_are_the_run_its_baselines_from_the_best_and_its_parts(hybrid: dict[str, Any]) -> None:
    baselines, parts = baselines_of(hybrid), parts_of(hybrid)
    assert list(models_of(hybrid)) == ["this run", *baselines, *parts]
    found = [AVERAGE_PRECISION.value(metrics) or 0.0 for metrics in baselines.values()]
    assert found == sorted(found, reverse=True)
    assert list(baselines) == ["LightGBM", "no sampling", "class weights", "1:1 over-sampling"]
    assert list(parts) == ["network on trees", "trees, stage 2", "trees, stage 1"]


def test_parts_are_no_rivals(report: dict[str, Any], hybrid: dict[str, Any]) -> None:
    assert summary(hybrid) == summary(report)
    assert members_sentence(report) == ""
    sentence = members_sentence(hybrid)
    assert "0.35 × network on trees + 0.65 × trees, stage 2" in sentence
    page = render_page(hybrid)
    assert sentence in page
    assert "- **LightGBM**." in page
    assert "- **trees, stage 2**." not in page
    assert page.index("| LightGBM |") < page.index("| *parts of this run:* |") < page.index("| trees, stage 2 |")
    text = printed(hybrid, 80)
    assert text.index("LightGBM") < text.index("parts of this run:") < text.index("trees, stage 2")
    assert "best other AP" in text
    classes = text[text.index("Each fraud class") : text.index("Average precision")]
    assert "LightGBM" in classes
    assert "stage" not in classes


def test_the_summary_compares_with_lightgbm_first(report: dict[str, Any]) -> None:
    test = report["test"]
    better = test | {"average_precision": test["average_precision"] + 0.1}
    worse = test | {"average_precision": test["average_precision"] - 0.1}
    for lightgbm, other, text in ((worse, better, ", above LightGBM (+0.100); below no"), (test, better, ", equal to LightGBM; below no")):
        assert text in summary(report | {"baselines": {"none": other, "lightgbm": lightgbm}})
    assert "LightGBM" not in summary(report | {"baselines": {"none": better}})


def test_trees_alone_are_named_in_words(hybrid: dict[str, Any]) -> None:
    run = hybrid["run"] | {"members": {"stage2": 1.0}, "policy": {"asked": "ppo", "name": "none"}}
    alone = hybrid | {"run": run, "baselines": {name: hybrid["baselines"][name] for name in ("lightgbm", "stage1", "stage2")}}
    assert "no network" in members_sentence(alone)
    assert "| this run |" in render_page(alone)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_terminal_with_eight_models_fits_its_width(hybrid: dict[str, Any], width: int) -> None:
    text = printed(hybrid, width)
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for name, model in models_of(hybrid).items():
        line = next(line for line in text.splitlines() if line.strip().startswith(name))
        assert AVERAGE_PRECISION.text(model) in line
    best = next(line for line in text.splitlines() if line.strip().startswith("trees, stage 2"))
    assert AVERAGE_PRECISION.text(hybrid["baselines"]["stage2"]) + "*" in best


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_terminal_fits_its_width_and_cuts_no_number(report: dict[str, Any], width: int, tmp_path: Path) -> None:
    (tmp_path / "report.md").touch()
    text = printed(report, width, tmp_path)
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines() if str(tmp_path) not in line) <= width
    for name, model in models_of(report).items():
        line = next(line for line in text.splitlines() if line.strip().startswith(name))
        assert AVERAGE_PRECISION.text(model) in line
    best = next(line for line in text.splitlines() if line.strip().startswith("LightGBM"))
    assert AVERAGE_PRECISION.text(report["baselines"]["lightgbm"]) + "*" in best
    assert "report.md" in text
    assert "report.json" not in text  # named only where it is


def test_terminal_without_entities_has_no_card_column(report: dict[str, Any]) -> None:
    label, scores = rows()
    alone = {name: metrics(label, score, entities=False) for name, score in scores.items()}
    assert "P@100" in printed(report, 100)
    assert "P@100" not in printed(build_report(alone.pop("run"), alone, run={}), 100)


def test_report_without_frauds_says_so() -> None:
    label, scores = rows()
    empty = metrics(np.zeros_like(label), scores["run"])
    report = build_report(empty, {"none": empty}, run={})
    assert "no fraud" in printed(report, 100)
    assert "no fraud" in render_page(report)


def test_figures_of_evaluate(report: dict[str, Any]) -> None:
    console = Console(file=StringIO(), width=100)
    print_metrics({"part": "all", "dataset": "july.parquet", "dropped": {"amount is no number": 3}, "test": report["test"]}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "july.parquet" in text
    assert "dropped 3 rows: amount is no number" in text
    assert AVERAGE_PRECISION.text(report["test"]) in text
    assert "the threshold with the best F1 on validation" in " ".join(text.split())


def test_figures_of_evaluate_name_a_threshold_that_was_chosen(report: dict[str, Any]) -> None:
    console = Console(file=StringIO(), width=100)
    result = {"part": "all", "dataset": "july.parquet", "dropped": {}, "test": report["test"]}
    print_metrics(result, console, chosen="at most 5 alarms per day")
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "tuned: at the threshold that was saved in the run (at most 5 alarms per day)" in text
    assert "best F1" not in text


def test_figures_of_evaluate_count_their_nouns(report: dict[str, Any]) -> None:
    console = Console(file=StringIO(), width=100)
    test = report["test"] | {"rows": 1, "positives": 1}
    print_metrics({"part": "all", "dataset": "july.parquet", "dropped": {"amount is no number": 1}, "test": test}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "All labelled rows: 1 row, 1 fraud" in text
    assert "1 frauds" not in text
    assert "dropped 1 row: amount is no number" in text
