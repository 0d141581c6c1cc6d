"""The application in a process of its own and a headless Chromium before it, for the browser tests and the screenshots."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
READY = 60.0


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """`balancer app` on ``runs``; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "balancer", "app", "--runs", str(runs), "--port", str(port), "--headless"]
    process = subprocess.Popen(command, env=os.environ | {"BROWSER": "none"}, stdout=subprocess.DEVNULL, start_new_session=True)
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
    """A page of a fresh headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        try:
            opened = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
            opened.set_default_timeout(60_000)
            yield opened
        finally:
            browser.close()


def settle(opened: Page) -> None:
    """Wait until Streamlit has run the page and its charts are drawn."""
    opened.wait_for_selector("[data-testid='stApp'][data-test-script-state='notRunning']")
    opened.wait_for_timeout(700)


def go(opened: Page, name: str) -> None:
    """Open one of the pages by the links beside them."""
    opened.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
    opened.get_by_role("heading", level=1).wait_for()
    settle(opened)
