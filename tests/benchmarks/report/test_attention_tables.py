"""Tables and pictures of sparse attention, from made-up results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def kernels() -> dict[str, Any]:
    cells: list[dict[str, Any]] = []
    for tokens in (256, 512, 1024):
        for causal in (True, False):
            for passes in ("forward", "forward_backward"):
                times = {"torch block": tokens / 200, "native sliding": tokens / 80}
                milliseconds = {"dense": tokens**2 / 1e4, "torch block": tokens / 50, "native sliding": tokens / 125}
                about = {"tokens": tokens, "causal": causal, "passes": passes}
                cells.append(about | {"milliseconds": milliseconds, "times_faster": times})
    cells.append({"tokens": 2048, "causal": True, "passes": "forward", "milliseconds": {"torch block": 41.0}})
    slope = {"contender": "torch block", "causal": True, "passes": "forward", "tokens": [1024, 2048], "exponent": 1.0123}
    claims = [{"claim": "fast", "figure": 2.345, "limit": 2.0, "holds": "met"}, {"claim": "never tried", "holds": "not measured"}]
    return {"cells": cells, "growth": [slope], "claims": claims}


def model() -> dict[str, Any]:
    cells = [
        {"width": width, "tokens": tokens, "passes": "forward", "times_faster": {"sparse": tokens * width / 1e4}}
        for width in (64, 128)
        for tokens in (512, 2048)
    ]
    claims = [{"claim": "model", "from_tokens": at} for at in (2048, None)]
    rates = {"step": 12_345.6, "dense, 2048 again": 3.21}
    return {"cells": cells, "claims": claims, "streaming": {"cards": 32, "scores_per_second": rates}}


def quality() -> dict[str, Any]:
    figures = {
        "mean": {"dense": 0.81234, "sparse": 0.8111},
        "relative": {"difference": -0.0015, "low": -0.004, "high": 0.001},
        "claim": {"holds": "met"},
    }
    return {"streams": {"handbook": {"histories": {"1024": figures}}, "sparkov": {"skipped": "it is not there"}}}


def sweep() -> dict[str, Any]:
    points = [
        {"window": window, "global_nodes": nodes, "average_precision": 0.7 + window / 1e4, "times_faster": 100 / window}
        for window in (16, 64)
        for nodes in (0, 8)
    ]
    own = {"dense": {"average_precision": 0.75}, "points": points}
    return {"streams": {"handbook": own, "sparkov": {"skipped": "it is not there"}}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = tmp_path / "attention.json"
    file.write_text(json.dumps({"parts": {"kernels": kernels(), "model": model(), "quality": quality(), "sweep": sweep()}}))
    return file


@pytest.fixture
def tables(results: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("readme_tables")
    monkeypatch.setattr(module, "RESULTS", results.parent)
    return module


def rows(table: str) -> list[list[str]]:
    """The cells of each row; every table has one width."""
    for part in table.split("\n\n"):
        assert len({line.count("|") for line in part.splitlines()}) == 1, part
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_speed(tables: ModuleType) -> None:
    found = rows(tables.attention_speed())
    assert found[0] == ["", "tokens", "dense, ms", "torch block", "native sliding"]
    assert ["causal, forward", "512", "26.21", "2.6", "6.4"] in found
    assert ["causal, forward: exponent of the time", "1,024 to 2,048", "", "1.01", "-"] in found
    assert ["fast", "2.35", "met"] in found or ["fast", "2.34", "met"] in found
    assert not any("never tried" in row for row in found)
    assert not any("2,048" in row for row in found)


def test_model(tables: ModuleType) -> None:
    found = rows(tables.attention_model())
    assert found[0] == ["tokens", "d 64, forward", "d 128, forward"]
    assert ["2,048", "13.1", "26.2"] in found
    assert ["3.2 times from", "2,048 tokens", "-"] in found
    assert ["sparse, `step`", "12,300"] in found
    assert ["dense, reading the last 2,048 again", "3"] in found


def test_quality(tables: ModuleType) -> None:
    found = rows(tables.attention_quality())
    assert found[2:] == [["handbook", "1,024", "0.8123", "0.8111", "-0.15 % [-0.40, +0.10]", "met"]]


def test_sweep(tables: ModuleType) -> None:
    found = rows(tables.attention_sweep())
    assert found[0] == ["data", "window", "k = 0", "k = 8"]
    assert ["handbook", "16", "0.7016, 6.25x", "0.7016, 6.25x"] in found
    assert found[-1] == ["handbook", "dense", "0.7500", ""]


def test_planted(tables: ModuleType, results: Path) -> None:
    figures = {key: {"mean": 0.95, "least": 0.9, "most": 1.0} for key in ("auc_far", "auc_near", "probe_kept", "sign_kept")}
    (results.parent / "planted.json").write_text(json.dumps({"variants": {"landmark_entropy": figures | {"seeds": [0, 1]}}}))
    assert rows(tables.attention_planted())[2:] == [["landmark entropy", *["0.950 (0.900 to 1.000)"] * 4, "2"]]


def test_the_readme_takes_them_between_its_markers(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tables.TABLES, "attention_quality", tables.attention_quality)
    text = "before\n<!-- table attention_quality -->\nold\n<!-- end of table -->\nafter\n"
    assert tables.filled(text) == f"before\n<!-- table attention_quality -->\n{tables.attention_quality()}\n<!-- end of table -->\nafter\n"


@pytest.fixture
def chart(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("attention_chart")


def test_pictures(chart: ModuleType, results: Path, tmp_path: Path) -> None:
    files = chart.draw(results, tmp_path / "images")
    assert [file.name for file in files] == ["attention_speed.svg", "attention_sweep.svg"]
    speed, sweep = (file.read_text() for file in files)
    for words in ("times faster than dense", "tokens", "torch block", "native sliding", "causal, forward + backward"):
        assert words in speed
    for words in ("average precision, test", "window, tokens", "global nodes", "handbook: speed of judging"):
        assert words in sweep
    assert "sparkov" not in sweep
    assert all(colour.lower() in speed.lower() for colour in chart.COLOURS[:2])


def test_only_what_is_measured_is_drawn(chart: ModuleType, tmp_path: Path) -> None:
    assert chart.draw(tmp_path / "attention.json", tmp_path / "images") == []
    results = tmp_path / "attention.json"
    results.write_text(json.dumps({"parts": {"sweep": sweep()}}))
    assert [file.name for file in chart.draw(results, tmp_path / "images")] == ["attention_sweep.svg"]
