"""A click on the curve proposes a threshold, and a confirmed alarm is downloaded, in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import polars as pl
import pytest

from balancer.app.jobs import JOBS
from benchmarks.lib.browser import CHROMIUM, go, page, served, settle

pytest.importorskip("playwright", reason="the browser tests need playwright")
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")]
expect.set_options(timeout=60_000)


def test_a_click_on_the_curve_and_a_confirmed_alarm(tiny_run: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(tiny_run, runs / "first")
    with served(runs) as address, page(height=1600) as opened:
        opened.goto(f"{address}/threshold?run=first")
        settle(opened)
        curve = opened.get_by_test_id("stVegaLiteChart").first
        curve.scroll_into_view_if_needed()
        settle(opened)
        curve.click(position={"x": 400, "y": 150})
        opened.wait_for_url("**threshold=*")
        settle(opened)
        (link,) = parse_qs(urlparse(opened.url).query)["threshold"]
        tile = opened.get_by_test_id("stMetric").filter(has_text="Threshold").first.get_by_test_id("stMetricValue")
        expect(tile).to_have_text(f"{float(link):.4g}")
        opened.goto(f"{address}/threshold?run=first&threshold=0.25")
        settle(opened)
        expect(tile).to_have_text("0.25")
        go(opened, "Transactions")
        opened.get_by_role("heading", name="Why").wait_for()
        settle(opened)
        opened.get_by_role("button", name="Confirm fraud").click()
        opened.get_by_text("Export 1 label").click()
        with opened.expect_download() as download:
            opened.get_by_role("button", name="For the service, JSON").click()
        sent = json.loads(Path(download.value.path()).read_text())
        expect(opened.get_by_test_id("stException")).to_have_count(0)
    rows = pl.read_parquet(runs / "first" / "predictions.parquet").filter("decision")
    first = rows.sort(pl.col("score") * pl.col("amount").clip(0), descending=True)["id"][0]
    assert sent == {"labels": [{"id": first, "label": "1"}]}


def test_the_results_of_a_run_that_has_ended_follow_a_click(tiny_run: Path, tmp_path: Path) -> None:
    """A part of the page that repeats itself while the next page opens would leave that page blank."""
    runs = tmp_path / "runs"
    shutil.copytree(tiny_run, runs / "first")
    (runs / JOBS).mkdir()
    (runs / JOBS / "first.log").write_text("done")
    (runs / JOBS / "first.json").write_text(json.dumps({"kind": "train", "pid": 1, "started": "2026-05-01T00:00:00+00:00"}))
    with served(runs) as address, page() as opened:
        opened.goto(address)
        settle(opened)
        for moment in (1_100, 1_350, 1_600):
            go(opened, "Train")
            opened.wait_for_timeout(moment)
            opened.get_by_role("button", name="See the results").click()
            expect(opened.get_by_role("heading", name="Runs: first")).to_be_visible()
            settle(opened)
            opened.wait_for_timeout(1_000)
            expect(opened.get_by_role("heading", name="Runs: first")).to_be_visible()
