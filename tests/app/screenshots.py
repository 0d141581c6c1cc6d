"""Pictures of every page for README and docs: trains on the sample, compares, starts the app, takes them.

    make screenshots            # docs/images/*.png; runs are kept in runs/.screenshots and made once

What is shown is what the code at hand computes; nothing is touched up.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from balancer.cli import main as balancer
from benchmarks.lib.browser import CHROMIUM, go, page, served, settle

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data_samples" / "transactions.parquet"
PAGES = {"Runs": 1250, "Weights": 1250, "Threshold": 1180, "Transactions": 1180, "Compare": 1180, "Train": 900, "Model": 1700}
"""Height of each picture."""
COMPARED = ("--folds", "1", "--seeds", "3", "--search-trials", "8", "--ppo-rollouts", "4")
POLICIES = ("--treatments", "none,one_to_one,constant_share,auto,ppo,lightgbm")


def prepare(runs: Path) -> None:
    """Two runs, one of them quantized, and a comparison on the sample; what is there is kept."""
    for name, flags in (("sample-auto", ["--policy", "auto"]), ("sample", [])):
        if not (runs / name / "report.json").exists() and balancer(["train", "--dataset", str(SAMPLE), "--out", str(runs / name), *flags]):
            sys.exit(1)
    if not (runs / "sample" / "precision.json").exists():
        balancer(["quantize", str(runs / "sample")])
    if not (runs / "comparison" / "comparison.json").exists():
        balancer(["compare", "--dataset", str(SAMPLE), "--out", str(runs / "comparison"), *COMPARED, *POLICIES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / ".screenshots")
    given = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("no Chromium on this machine: apt-get install chromium")
    given.runs.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    prepare(given.runs)
    with served(given.runs) as address, page(width=1360) as opened:
        opened.goto(address)
        settle(opened)
        opened.get_by_test_id("stSidebar").get_by_role("combobox").click()
        opened.get_by_role("option", name="sample", exact=True).click()
        settle(opened)
        for name, height in PAGES.items():
            opened.set_viewport_size({"width": 1360, "height": height})
            go(opened, name)
            if name == "Weights":
                if (measure := opened.get_by_role("button", name="Measure the map")).count():
                    measure.click()
                    opened.get_by_text("Best constant weights on these students").wait_for(timeout=300_000)
                opened.get_by_role("button", name="Train to the end").click()
                opened.get_by_text("The game is over").wait_for(timeout=120_000)
                settle(opened)
                opened.get_by_role("heading", name="Expected results of constant weights").scroll_into_view_if_needed()
                opened.screenshot(path=given.out / "app-play.png")
                opened.get_by_role("heading", level=1).scroll_into_view_if_needed()
            if name == "Transactions":
                opened.get_by_role("button", name="false alarm").or_(opened.get_by_role("radio", name="false alarm")).first.click()
                settle(opened)
                opened.get_by_role("heading", name="Why").wait_for()
                opened.get_by_text("What each field adds").click()
                settle(opened)
                opened.get_by_role("heading", name="Why").scroll_into_view_if_needed()
                settle(opened)
                opened.screenshot(path=given.out / "app-why.png")
                opened.get_by_role("heading", level=1).scroll_into_view_if_needed()
            if name == "Model":
                opened.get_by_role("button", name="Measure").click()
                opened.get_by_text("Median of").wait_for()
            settle(opened)
            opened.screenshot(path=given.out / f"app-{name.lower()}.png")
    with served(given.runs) as address, page(width=1360, height=PAGES["Threshold"], dark=True) as opened:
        opened.goto(address)
        settle(opened)
        go(opened, "Threshold")
        opened.screenshot(path=given.out / "app-dark.png")


if __name__ == "__main__":
    main()
