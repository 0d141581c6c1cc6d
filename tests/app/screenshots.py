"""Pictures of every page for README and docs: trains on the sample, compares, starts the app, takes them.

    make screenshots            # docs/images/*.png; runs are kept in runs/.screenshots and made once

What is shown is what the code at hand computes; nothing is touched up. The page Service alone shows fixed
numbers, from the stub of its tests.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from balancer.app.service import SCORING
from balancer.cli import main as balancer
from benchmarks.lib.browser import CHROMIUM, go, page, served, settle
from tests.app.service_stub import answering, busy, month

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data_samples" / "transactions.parquet"
PAGES = {
    "Runs": 1250, "Weights": 1250, "Threshold": 1280, "Transactions": 1180, "Compare": 1100, "Train": 1100, "Model": 1500, "Service": 1330,
}  # fmt: skip
"""Height of each picture."""
DARK = ("Threshold", "Transactions")
"""Pages that are shown in the dark too."""
WIDTH = 1360
LARGEST = 250_000
"""Bytes that a picture may have."""
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


def take(opened: Page, file: Path) -> None:
    """Write what is on the screen as a small PNG.

    Raises:
        SystemExit: The picture is too large.
    """
    from PIL import Image

    opened.mouse.move(0, 0)
    settle(opened)
    Image.open(io.BytesIO(opened.screenshot())).convert("RGB").save(file, optimize=True)
    if file.stat().st_size > LARGEST:
        sys.exit(f"{file} has {file.stat().st_size:,} bytes, more than {LARGEST:,}: make the picture lower")


def show(opened: Page, heading: str) -> None:
    """Scroll until the heading that begins so is at the top."""
    opened.get_by_role("heading").filter(has_text=re.compile(f"^{heading}")).last.evaluate("heading => heading.scrollIntoView()")


def weights(opened: Page, out: Path) -> None:
    """Measure the map, play the game to its end, and take both."""
    if (measure := opened.get_by_role("button", name="Measure the map")).count():
        measure.click()
        opened.get_by_text("Best constant weights on these students").wait_for(timeout=300_000)
    settle(opened)
    show(opened, "Expected results")
    take(opened, out / "app-map.png")
    opened.get_by_role("button", name="Train to the end").click()
    opened.get_by_text("The game is over").wait_for(timeout=120_000)
    settle(opened)
    show(opened, "Play against the policy")
    take(opened, out / "app-play.png")
    opened.get_by_role("heading", level=1).scroll_into_view_if_needed()


def transactions(opened: Page, out: Path) -> None:
    """Take the reasons of a transaction."""
    opened.get_by_role("heading", name="Why").wait_for()
    opened.get_by_text("What each field adds").click()
    settle(opened)
    show(opened, "Transaction ")
    take(opened, out / "app-why.png")
    opened.get_by_text("What each field adds").click()
    opened.get_by_role("heading", level=1).scroll_into_view_if_needed()


def threshold(opened: Page) -> None:
    """Propose the cheapest threshold."""
    opened.get_by_role("radio", name="cost", exact=True).or_(opened.get_by_role("button", name="cost", exact=True)).first.click()
    settle(opened)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / ".screenshots")
    parser.add_argument("--pages", nargs="+", choices=list(PAGES), default=list(PAGES), help="only these pages")
    given = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("no Chromium on this machine: apt-get install chromium")
    given.runs.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    prepare(given.runs)
    for dark in (False, True):
        shown = [name for name in given.pages if name in (DARK if dark else PAGES)]
        with (
            answering(month(), metrics=busy(SCORING)) as service,
            served(given.runs, service=service, key="right") as address,
            page(width=WIDTH, dark=dark) as opened,
        ):
            opened.goto(f"{address}/?run=sample")
            settle(opened)
            for name in shown:
                opened.set_viewport_size({"width": WIDTH, "height": PAGES[name]})
                go(opened, name)
                if name == "Threshold":
                    threshold(opened)
                if name == "Weights":
                    weights(opened, given.out)
                if name == "Transactions":
                    opened.get_by_role("heading", name="Why").wait_for()
                    if not dark:
                        transactions(opened, given.out)
                if name == "Model":
                    opened.get_by_role("button", name="Measure").click()
                    opened.get_by_text("Median of").wait_for()
                    settle(opened)
                    opened.get_by_role("heading", level=1).scroll_into_view_if_needed()
                take(opened, given.out / f"app-{name.lower()}{'-dark' if dark else ''}.png")


if __name__ == "__main__":
    main()
