"""How long a page of the app takes on a run with 350,000 test rows.

    python benchmarks/app_pages.py      # writes benchmarks/results/app_pages.json

A run is trained on the sample (briefly: only its files matter), and its test rows are repeated with other ids, times and scores until there are 350,000.
Every page is then rendered by Streamlit's own test runner, in this process: the first time, with files to read, and again, as after every click;
and in a headless Chromium where there is one, from the click on the page's name until Streamlit says that it has run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from recording import RESULTS, ROOT, record

from balancer.cli import main as balancer

PAGES = ("runs", "weights", "threshold", "transactions", "compare", "train", "model")
TITLES = {"weights": "Sampling weights", "compare": "Policies side by side"}
"""Headings of the pages that are not called as their links are."""
LIMIT = 1.0
"""Seconds that a page may take."""


def enlarged(run: Path, rows: int, seed: int) -> None:
    """Repeat the predictions of ``run`` until there are ``rows``, with noise on scores and amounts."""
    file = run / "predictions.parquet"
    small = pl.read_parquet(file)
    copies = -(-rows // small.height)
    rng = np.random.default_rng(seed)
    many = pl.concat([small.with_columns(copy=pl.lit(copy)) for copy in range(copies)]).head(rows)
    noise = rng.normal(0, 0.02, rows)
    many = many.with_columns(
        id=pl.int_range(rows),
        score=(pl.col("score") + pl.Series(noise)).clip(0, 1),
        amount=pl.col("amount") * pl.Series(np.exp(noise)),
        time=pl.col("time") + pl.duration(hours=pl.col("copy")),
    )
    many.drop("copy").sort("time").write_parquet(file)


def in_process(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of every page: first, and the median of ``repeats`` further ones."""
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_file(str(ROOT / "app" / "streamlit_app.py"), default_timeout=120).run()
    taken: dict[str, dict[str, float]] = {}
    for page in PAGES:
        started = time.perf_counter()
        app.switch_page(f"views/{page}.py").run()
        first = time.perf_counter() - started
        again = []
        for _ in range(repeats):
            started = time.perf_counter()
            app.run()
            again.append(time.perf_counter() - started)
        if app.exception:
            sys.exit(f"{page}: {app.exception[0].message}")
        taken[page] = {"first": first, "again": statistics.median(again)}
    return taken


def in_browser(runs: Path, repeats: int) -> dict[str, float]:
    """Median seconds from a click on each page's name until it has run, after a first visit; empty where there is no browser."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from app_server import CHROMIUM, page, served, settle
    except ImportError:
        return {}
    if CHROMIUM is None:
        return {}
    taken: dict[str, list[float]] = {name: [] for name in PAGES}
    with served(runs) as address, page() as opened:
        opened.goto(address)
        settle(opened)
        for visit in range(repeats + 1):
            for name in (*PAGES[1:], PAGES[0]):
                started = time.perf_counter()
                opened.get_by_test_id("stSidebarNav").get_by_role("link", name=name.capitalize(), exact=True).click()
                opened.get_by_role("heading", level=1, name=TITLES.get(name, name.capitalize()), exact=True).wait_for()
                opened.wait_for_selector("[data-testid='stApp'][data-test-script-state='notRunning']")
                if visit:
                    taken[name].append(time.perf_counter() - started)
                opened.wait_for_timeout(600)
    return {name: statistics.median(own) for name, own in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=350_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "app_pages.json")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="balancer-app-"))
    try:
        sample = ROOT / "data_samples" / "transactions.parquet"
        short = ["--policy", "auto", "--epochs", "2", "--steps-per-epoch", "20"]
        if balancer(["train", "--dataset", str(sample), "--out", str(folder / "large"), *short]):
            sys.exit(1)
        enlarged(folder / "large", given.rows, given.seed)
        os.environ["BALANCER_RUNS"] = str(folder)
        sys.argv = sys.argv[:1]  # the app reads the command line too
        pages, browser = in_process(given.repeats), in_browser(folder, given.repeats)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for page, own in pages.items():
        clicked = f"  in a browser {browser[page]:.2f} s" if page in browser else ""
        print(f"{page:14} first {own['first']:.2f} s  again {own['again']:.2f} s{clicked}")
    slowest = max(max(own.values()) for own in pages.values())
    slowest = max([slowest, *browser.values()])
    print(f"slowest {slowest:.2f} s, limit {LIMIT:.0f} s: {'kept' if slowest < LIMIT else 'MISSED'}")
    result = {"rows": given.rows, "seed": given.seed, "repeats": given.repeats, "pages": pages, "browser": browser}
    record(result | {"limit": LIMIT, "slowest": slowest, "kept": slowest < LIMIT}, given.out)


if __name__ == "__main__":
    main()
