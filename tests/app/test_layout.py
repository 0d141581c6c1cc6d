"""Every page in a browser, in light and dark, on narrow and wide screens: what is measured in the page.

No plot is narrower than 220 pixels, nothing is cut off in a tile, the page does not scroll sideways, no
request leaves the machine, and axe-core finds no serious or critical violation in any part of a page.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.lib.browser import CHROMIUM, page, served, settle, wait_until_run
from tests.app.service_stub import answering, month

pytest.importorskip("playwright", reason="the browser tests need playwright")
pytest.importorskip("axe_playwright_python", reason="the rules for accessible pages need axe-playwright-python")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, Request

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")]
PAGES = ("Runs", "Weights", "Threshold", "Transactions", "Compare", "Train", "Model", "Service")
WIDTHS = {"light": (390, 800, 1024, 1440, 2560), "dark": (390, 800, 1024, 1440)}
NARROWEST, LOWEST = 220, 90
"""Pixels that every plot has at least."""
MEASURE = """() => {
  const plots = [], cut = [], main = document.querySelector("[data-testid='stMain']");
  const seen = element => element.checkVisibility() && !element.closest("details:not([open])");
  for (const chart of document.querySelectorAll("[data-testid='stVegaLiteChart']")) {
    if (!seen(chart)) continue;
    const drawn = chart.querySelector("svg, canvas");
    const name = chart.closest("[class*='st-key-']")?.className.match(/st-key-\\S+/)[0];
    const right = drawn ? drawn.getBoundingClientRect().right : 0;
    const views = [...chart.querySelectorAll(".mark-group > g > path.background")].filter(each => !each.closest(".role-legend"));
    const of = role => views.filter(each => each.closest(".mark-group").classList.contains(role));
    // Stacked charts have a view for each panel; a canvas has no views to measure, only itself.
    const found = of("role-scope").length ? of("role-scope") : of("role-frame").length ? of("role-frame") : [drawn];
    const frame = drawn ? drawn.getBoundingClientRect() : null;
    for (const text of drawn ? drawn.querySelectorAll("text") : []) {
      const box = text.getBoundingClientRect();
      const out = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom);
      if (box.width && out > 4) cut.push(`${name}: ${text.textContent}`);
    }
    for (const view of found) {
      const box = view ? view.getBoundingClientRect() : {width: 0, height: 0};
      plots.push({name, width: Math.round(box.width), height: Math.round(box.height), outside: Math.round(right - innerWidth)});
    }
  }
  for (const tile of document.querySelectorAll("[data-testid='stMetric'], [data-testid='stMetric'] *")) {
    const style = getComputedStyle(tile);
    if (tile.clientWidth && tile.scrollWidth > tile.clientWidth + 1 && style.overflowX !== "visible") cut.push(tile.textContent);
    if (style.textOverflow === "ellipsis" && style.overflowX !== "visible") cut.push("ellipsis: " + tile.textContent);
    const box = tile.closest("[data-testid='stMetric']").getBoundingClientRect();
    if (tile.getBoundingClientRect().right > box.right + 1) cut.push("outside: " + tile.textContent);
  }
  const sideways = Math.max(main.scrollWidth - main.clientWidth, document.documentElement.scrollWidth - innerWidth);
  return {plots, cut, sideways};
}"""


@pytest.fixture(scope="module")
def opened(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str, list[str]]]:
    """A page of the app on a folder with one run, its address, and the requests to other hosts."""
    runs = tmp_path_factory.mktemp("layout") / "runs"
    shutil.copytree(tiny_run, runs / "first")
    grid = [(share, power) for share in (0.02, 0.1, 0.5) for power in (0.0, 1.0)]
    cells = [{"share": share, "hardness": power, "class_importance": 0.5, "average_precision": share, "f1": 0.5} for share, power in grid]
    pl.DataFrame(cells).write_parquet(runs / "first" / "surface.parquet")  # a map, so that it is measured too
    elsewhere: list[str] = []
    with answering(month()) as service, served(runs, service=service, key="right") as address, page() as shown:

        def note(request: Request) -> None:
            if not request.url.startswith((address, address.replace("http", "ws"), "data:", "blob:")):
                elsewhere.append(request.url)

        shown.on("request", note)
        yield shown, address, elsewhere


def open_expanders(shown: Page) -> None:
    """Open what is closed, so that charts and tables in it are measured too."""
    closed = shown.get_by_test_id("stMain").locator("details:not([open]) > summary")
    while closed.count():
        closed.first.click()
        shown.wait_for_timeout(50)
    wait_until_run(shown)


def groups(shown: Page) -> list[Locator]:
    """The buttons of the details of the page Threshold, each of which shows other charts; none elsewhere."""
    return shown.locator(".st-key-details").get_by_role("radio").or_(shown.locator(".st-key-details").get_by_role("button")).all()


def fits(shown: Page, where: str) -> None:
    """Nothing is too small, cut off or outside of the page."""
    found = measured(shown)
    assert found["sideways"] <= 0, f"{where} scrolls sideways by {found['sideways']} pixels"
    assert not found["cut"], f"{where}: cut off in tiles or charts: {found['cut']}"
    small = [plot for plot in found["plots"] if plot["width"] < NARROWEST or plot["height"] < LOWEST]
    assert not small, f"{where}: plots too small: {small}"
    outside = [plot for plot in found["plots"] if plot["outside"] > 0 and "st-key-wide-" not in (plot["name"] or "")]
    assert not outside, f"{where}: plots outside the page: {outside}"


def measured(shown: Page) -> dict[str, Any]:
    """What the page measures once it rests: charts are drawn anew some time after a change of the width."""
    before: dict[str, Any] | None = None
    same = 0
    for _ in range(40):
        shown.wait_for_timeout(250)
        now: dict[str, Any] = shown.evaluate(MEASURE)
        same = same + 1 if now == before else 0
        if same > (10 if now["cut"] else 0) and all(plot["width"] for plot in now["plots"]):
            return now
        before = now
    raise AssertionError(f"the page does not come to rest: {before}")


def violations(shown: Page) -> list[str]:
    """The serious and critical violations of the rules of axe-core, each with the first elements."""
    found = Axe().run(shown, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']}: {[(node['target'], (node['any'] or node['all'] or node['none'])[0]['message']) for node in rule['nodes'][:3]]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_every_width_in_light_and_dark(opened: tuple[Page, str, list[str]], name: str) -> None:
    shown, address, elsewhere = opened
    shown.emulate_media(color_scheme="light")
    shown.set_viewport_size({"width": 1440, "height": 1000})
    shown.goto(f"{address}/{'' if name == 'Runs' else name.lower()}")
    shown.get_by_role("heading", level=1).first.wait_for()
    wait_until_run(shown)
    links = shown.get_by_test_id("stSidebarNav").get_by_role("link").all_inner_texts()
    assert {text.split("\n")[-1] for text in links} == set(PAGES), "every page is tested"
    open_expanders(shown)
    for scheme, widths in WIDTHS.items():
        shown.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for width in widths:
            shown.set_viewport_size({"width": width, "height": 1000})
            where = f"{name} at {width} pixels, {scheme}"
            fits(shown, where)
            if (scheme, width) in (("light", 390), ("light", 1440), ("dark", 1440)):
                assert not violations(shown), where
    for width in (390, 1440):
        shown.set_viewport_size({"width": width, "height": 1000})
        for group in groups(shown)[1:]:
            group.click()
            wait_until_run(shown)
            fits(shown, f"{name}, {group.inner_text()}, at {width} pixels")
    assert not elsewhere


def test_the_run_is_in_the_address_and_a_choice_survives_a_change_of_the_page(opened: tuple[Page, str, list[str]]) -> None:
    shown, address, elsewhere = opened
    shown.set_viewport_size({"width": 1440, "height": 1000})
    shown.goto(f"{address}/weights")
    shown.get_by_role("heading", level=1).first.wait_for()
    shown.wait_for_url("**/weights?run=first")
    slider = shown.get_by_role("slider", name="Hardness exponent")
    slider.focus()
    slider.press("ArrowRight")
    settle(shown)  # a slider sends its value after a moment
    for name in ("Model", "Weights"):
        shown.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
        shown.wait_for_url(f"**/{name.lower()}?run=first")
        wait_until_run(shown)
    assert float(shown.get_by_role("slider", name="Hardness exponent").input_value()) == pytest.approx(0.1)
    assert not elsewhere
