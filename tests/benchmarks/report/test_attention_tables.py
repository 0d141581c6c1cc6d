"""Tables and pictures of sparse attention, from made-up results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import attention_chart, readme_tables, tables
from benchmarks.report.tables import attention


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
    measured = {"dense": {"average_precision": 0.75}, "points": points}
    return {"streams": {"handbook": measured, "sparkov": {"skipped": "it is not there"}}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = tmp_path / "attention.json"
    file.write_text(json.dumps({"parts": {"kernels": kernels(), "model": model(), "quality": quality(), "sweep": sweep()}}))
    return file


@pytest.fixture
def stored(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables are made from `results`."""
    monkeypatch.setattr(tables, "RESULTS", results.parent)


def rows(table: str) -> list[list[str]]:
    """The cells of each row; every table has one width."""
    for part in table.split("\n\n"):
        assert len({line.count("|") for line in part.splitlines()}) == 1, part
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


@pytest.mark.usefixtures("stored")
def test_speed() -> None:
    found = rows(attention.attention_speed())
    assert found[0] == ["", "tokens", "dense, ms", "torch block", "native sliding"]
    assert ["causal, forward", "512", "26.21", "2.6", "6.4"] in found
    assert ["causal, forward: exponent of the time", "1,024 to 2,048", "", "1.01", "-"] in found
    assert ["fast", "2.35", "met"] in found or ["fast", "2.34", "met"] in found
    assert not any("never tried" in row for row in found)
    assert not any("2,048" in row for row in found)


@pytest.mark.usefixtures("stored")
def test_model() -> None:
    found = rows(attention.attention_model())
    assert found[0] == ["tokens", "d 64, forward", "d 128, forward"]
    assert ["2,048", "13.1", "26.2"] in found
    assert ["3.2 times from", "2,048 tokens", "-"] in found
    assert ["sparse, `step`", "12,300"] in found
    assert ["dense, reading the last 2,048 again", "3"] in found


@pytest.mark.usefixtures("stored")
def test_quality() -> None:
    found = rows(attention.attention_quality())
    assert found[2:] == [["handbook", "1,024", "0.8123", "0.8111", "-0.15 % [-0.40, +0.10]", "met"]]


@pytest.mark.usefixtures("stored")
def test_sweep() -> None:
    found = rows(attention.attention_sweep())
    assert found[0] == ["data", "window", "k = 0", "k = 8"]
    assert ["handbook", "16", "0.7016, 6.25x", "0.7016, 6.25x"] in found
    assert found[-1] == ["handbook", "dense", "0.7500", ""]


@pytest.mark.usefixtures("stored")
def test_planted(results: Path) -> None:
    figures = {key: {"mean": 0.95, "least": 0.9, "most": 1.0} for key in ("auc_far", "auc_near", "probe_kept", "sign_kept")}
    (results.parent / "planted.json").write_text(json.dumps({"variants": {"landmark_entropy": figures | {"seeds": [0, 1]}}}))
    assert rows(attention.attention_planted())[2:] == [["landmark entropy", *["0.950 (0.900 to 1.000)"] * 4, "2"]]


@pytest.mark.usefixtures("stored")
def test_the_readme_takes_them_between_its_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(readme_tables.TABLES, "attention_quality", attention.attention_quality)
    text = "before\n<!-- table attention_quality -->\nold\n<!-- end of table -->\nafter\n"
    assert (
        readme_tables.filled(text)
        == f"before\n<!-- table attention_quality -->\n{attention.attention_quality()}\n<!-- end of table -->\nafter\n"
    )


def test_pictures(results: Path, tmp_path: Path) -> None:
    files = attention_chart.draw(results, tmp_path / "images")
    assert [file.name for file in files] == ["attention_speed.svg", "attention_sweep.svg"]
    speed, sweep = (file.read_text() for file in files)
    for words in ("times faster than dense", "tokens", "torch block", "native sliding", "causal, forward + backward"):
        assert words in speed
    for words in ("average precision, test", "window, tokens", "global nodes", "handbook: speed of scoring"):
        assert words in sweep
    assert "sparkov" not in sweep
    assert all(colour.lower() in speed.lower() for colour in attention_chart.COLOURS[:2])


def test_only_what_is_measured_is_drawn(tmp_path: Path) -> None:
    assert attention_chart.draw(tmp_path / "attention.json", tmp_path / "images") == []
    results = tmp_path / "attention.json"
    results.write_text(json.dumps({"parts": {"sweep": sweep()}}))
    assert [file.name for file in attention_chart.draw(results, tmp_path / "images")] == ["attention_sweep.svg"]
