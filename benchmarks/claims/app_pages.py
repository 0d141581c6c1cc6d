"""The app: how long each page takes on a run with 350,000 test rows.

A run is trained on the sample for a short time, as only its files matter. Its test rows are repeated with
other ids, times and scores until there are 350,000. Every page is then rendered by Streamlit's test runner in
this process: the first time, when files are read, and again, as after every click. Where there is a Chromium,
the time from the click on the name of a page until Streamlit has finished is measured in a headless browser
as well.

Claim: no page takes longer than one second.

    python -m benchmarks.claims.app_pages               # -> benchmarks/results/app_pages.json
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from streamlit.testing.v1 import AppTest

from balancer.cli import main as balancer
from benchmarks.lib.browser import CHROMIUM, page, served, settle, wait_until_run
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, ROOT, record
from benchmarks.lib.streams import SAMPLE
from benchmarks.lib.timing import seconds

PAGES = ("runs", "weights", "threshold", "transactions", "compare", "train", "model")
TITLES = {"weights": "Sampling weights"}
"""Headings of the pages whose heading differs from the name of their link."""
LIMIT = 1.0
"""Seconds that a page may take."""


def enlarge(run: Path, rows: int, seed: int) -> None:
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
    """Seconds of every page in Streamlit's test runner: the first time, and the median of more times."""
    app = AppTest.from_file(str(ROOT / "balancer" / "app" / "streamlit_app.py"), default_timeout=120).run()
    taken: dict[str, dict[str, float]] = {}
    for name in PAGES:
        first = seconds(lambda name=name: app.switch_page(f"views/{name}.py").run())  # type: ignore[misc]
        again = [seconds(app.run) for _ in range(repeats)]
        if app.exception:
            sys.exit(f"{name}: {app.exception[0].message}")
        taken[name] = {"first": first, "again": statistics.median(again)}
    return taken


def in_browser(runs: Path, repeats: int) -> dict[str, float]:
    """Median seconds from a click on a page's name until it has run; empty without a browser."""
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
                opened.get_by_role("heading", level=1, name=TITLES.get(name, name.capitalize())).first.wait_for()
                wait_until_run(opened)
                if visit:
                    taken[name].append(time.perf_counter() - started)
                opened.wait_for_timeout(600)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=350_000, help="test rows of the run")
    options.add_argument("--repeats", type=int, default=5, help="further visits of each page")
    options.add_argument("--seed", type=int, default=0, help="seed of the noise on scores and amounts")
    options.add_argument("--out", type=Path, default=RESULTS / "app_pages.json", help="JSON file for the result")
    given = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="balancer-app-"))
    try:
        short = ["--policy", "auto", "--epochs", "2", "--steps-per-epoch", "20"]
        if balancer(["train", "--dataset", str(SAMPLE), "--out", str(folder / "large"), *short]):
            sys.exit(1)
        enlarge(folder / "large", given.rows, given.seed)
        os.environ["BALANCER_RUNS"] = str(folder)
        sys.argv = sys.argv[:1]  # the app reads the command line too
        pages, browser = in_process(given.repeats), in_browser(folder, given.repeats)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, times in pages.items():
        clicked = f"  in a browser {browser[name]:.2f} s" if name in browser else ""
        print(f"{name:14} first {times['first']:.2f} s  again {times['again']:.2f} s{clicked}")
    slowest = max([*browser.values(), *(value for times in pages.values() for value in times.values())])
    print(f"slowest {slowest:.2f} s, limit {LIMIT:.0f} s: {'met' if slowest < LIMIT else 'NOT MET'}")
    result = {"rows": given.rows, "seed": given.seed, "repeats": given.repeats, "pages": pages, "browser": browser}
    record(result | {"limit": LIMIT, "slowest": slowest, "kept": slowest < LIMIT}, given.out)


if __name__ == "__main__":
    main()
