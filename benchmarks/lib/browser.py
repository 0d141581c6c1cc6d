"""Start the app in a separate process, and open it in a headless Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.lib.commands import BALANCER
from benchmarks.lib.ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
READY = 300.0
"""Seconds that the app may take to start."""


@contextmanager
def served(runs: Path, *, service: str = "", key: str = "") -> Iterator[str]:
    """Run ``balancer app`` on the folder ``runs``, and yield its address.

    Args:
        runs: Folder with the runs.
        service: Address of a service, which the page Service shows.
        key: Key of that service.
    """
    port = free_port()
    command = [*BALANCER, "app", "--runs", str(runs), "--port", str(port), "--headless"]
    command += ["--service", service] if service else []
    environment = os.environ | {"BROWSER": "none"} | ({"BALANCER_SERVICE_KEY": key} if key else {})
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY
        while True:
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
                    if answer.read() == b"ok":
                        break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("balancer app did not start")
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@contextmanager
def page(*, dark: bool = False, width: int = 1440, height: int = 1000) -> Iterator[Page]:
    """Yield a page of a new headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        try:
            opened = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
            opened.set_default_timeout(60_000)
            yield opened
        finally:
            browser.close()


def wait_until_run(opened: Page) -> None:
    """Wait until Streamlit has run the page."""
    opened.wait_for_selector("[data-testid='stApp'][data-test-script-state='notRunning']")


def settle(opened: Page) -> None:
    """Wait until Streamlit has run the page and its charts are drawn."""
    wait_until_run(opened)
    opened.wait_for_timeout(700)


def go(opened: Page, name: str) -> None:
    """Open the page ``name`` by its link in the sidebar."""
    opened.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
    opened.get_by_role("heading", level=1).wait_for()
    settle(opened)
