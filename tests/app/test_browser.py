"""The app in a real browser: open, pick a run, move the threshold, compare two runs, train the sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.lib.browser import CHROMIUM, go, page, served, settle

pytest.importorskip("playwright", reason="the browser tests need playwright")
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")]
expect.set_options(timeout=60_000)  # milliseconds; what is expected appears late on a slow machine


def value(opened: Page, label: str) -> Locator:
    return opened.get_by_test_id("stMetric").filter(has_text=label).first.get_by_test_id("stMetricValue")


def pick_run(opened: Page, name: str) -> None:
    opened.get_by_test_id("stSidebar").get_by_role("combobox").click()
    opened.get_by_role("option", name=name, exact=True).click()
    settle(opened)


def no_traceback(opened: Page) -> None:
    expect(opened.get_by_test_id("stException")).to_have_count(0)
    expect(opened.get_by_test_id("stAlertContentError")).to_have_count(0)


def test_from_the_first_look_to_a_threshold_that_is_saved(tiny_run: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("first", "second"):
        shutil.copytree(tiny_run, runs / name)
    report = json.loads((tiny_run / "report.json").read_text())["test"]
    with served(runs) as address, page() as opened:
        opened.goto(address)
        settle(opened)
        pick_run(opened, "first")
        expect(opened.get_by_role("heading", name="Models: first")).to_be_visible()
        expect(value(opened, "Frauds caught")).to_have_text(f"{report['alarms']['caught']:,} of {report['positives']:,}")
        for name in ("Weights", "Transactions", "Compare", "Train", "Model"):
            go(opened, name)
            no_traceback(opened)
        go(opened, "Threshold")
        before = f"{report['alarms']['alarms_per_day']:,.1f}"
        expect(value(opened, "Alarms per day")).to_have_text(before)
        opened.get_by_role("radio", name="score").or_(opened.get_by_role("button", name="score", exact=True)).first.click()
        settle(opened)
        slider = opened.get_by_role("slider").first
        slider.focus()
        slider.press("Home")  # a score of 0: everything is an alarm
        settle(opened)
        expect(value(opened, "Alarms per day")).not_to_have_text(before)
        opened.get_by_role("button", name="Save this threshold").click()
        expect(opened.get_by_text("saved on this page")).to_be_visible()
        saved = json.loads((runs / "first" / "decision.json").read_text())
        assert saved["tuned"] == report["threshold"] != saved["threshold"]
        go(opened, "Runs")
        opened.get_by_role("combobox", name="Compare with").click()
        opened.get_by_role("option", name="second").click()
        opened.keyboard.press("Escape")  # an open list hides the rest of the page from roles
        expect(opened.get_by_role("heading", name="Runs side by side")).to_be_visible()
        no_traceback(opened)


def test_the_sample_is_trained_across_a_reload_and_stopped(tmp_path: Path) -> None:
    with served(tmp_path / "runs") as address, page() as opened:
        opened.goto(address)
        settle(opened)
        opened.get_by_role("button", name="Train on the sample now").click()
        expect(opened.get_by_role("button", name="Stop")).to_be_visible()
        opened.reload()  # the run goes on without the page
        go(opened, "Train")
        expect(opened.get_by_role("heading", name="sample", exact=True)).to_be_visible()
        expect(opened.get_by_text("trees, first stage").first).to_be_visible()
        opened.get_by_role("button", name="Stop").click()
        expect(opened.get_by_text("Stopped; finished work is kept")).to_be_visible()
        expect(opened.get_by_role("button", name="Resume")).to_be_visible()
        no_traceback(opened)
