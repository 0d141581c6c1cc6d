"""The application on a real run, an empty folder and a broken run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

APP = str(Path(__file__).resolve().parents[1] / "app" / "streamlit_app.py")


def opened(monkeypatch: pytest.MonkeyPatch, folder: Path) -> AppTest:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["streamlit_app.py"])
    return AppTest.from_file(APP, default_timeout=30).run()


def test_a_run_is_shown_with_the_figures_of_its_report(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "first")
    page = opened(monkeypatch, tmp_path)
    assert not page.exception
    report = json.loads((tiny_run / "report.json").read_text())
    assert page.metric[0].value == f"{report['test']['average_precision']:.3f}"
    shown = page.dataframe[0].value
    assert list(shown["model"]) == ["this run", "no sampling", "1:1 over-sampling", "class weights", "LightGBM"]
    assert shown["average precision"].iloc[4] == report["baselines"]["lightgbm"]["average_precision"]


def test_an_empty_folder_says_how_to_make_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = opened(monkeypatch, tmp_path)
    assert not page.exception
    assert "balancer train" in page.info[0].value


def test_a_broken_run_is_named_and_no_traceback(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "torn")
    (tmp_path / "runs" / "torn" / "report.json").write_text('{"test": ')
    page = opened(monkeypatch, tmp_path)
    assert not page.exception
    assert "torn" in page.error[0].value
