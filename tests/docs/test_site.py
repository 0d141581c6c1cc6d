"""The site is built without a warning, asks no other host for anything, and has every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import balancer
from balancer.cli.flags_of import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)[^>]*\ssrc=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|<link(?![^>]*rel=[\"']?(?:canonical|next|prev))[^>]*\shref=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|@import[^;]*//[^;]+|url\([\"']?(?:https?:)?//[^)]+"
)
"""What a browser would load from another host; links that a person may follow are none of it."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    pages = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(pages) > 40
    found = {f"{path.relative_to(site)}: {each[:120]}" for path in pages for each in LOADED.findall(path.read_text(encoding="utf-8"))}
    assert found == set()


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (site / "reference" / "api.html").read_text(encoding="utf-8")
    errors = {name for name in balancer.__all__ if name.endswith("Error")}
    for name in {*balancer.__all__} - errors - {"__version__"}:
        assert f'id="balancer.{name}"' in page, name
    for name in errors:
        assert f'id="balancer.errors.{name}"' in page, name


def test_the_reference_has_every_command_and_route(site: Path) -> None:
    commands = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert all(f'id="{name.replace(" ", "-")}"' in commands for name in CONFIGS)
    assert "/v1/score" in (site / "reference" / "http.html").read_text(encoding="utf-8")


def test_results_are_files_of_the_site(site: Path) -> None:
    page = (site / "results" / "detector.html").read_text(encoding="utf-8")
    assert 'href="../files/benchmarks/results/main_job.json"' in page
    assert (site / "files" / "benchmarks" / "results" / "main_job.json").is_file()


def test_graphs_are_listed_as_arrows(site: Path) -> None:
    """What draws the graphs of Mermaid would be a script of another host."""
    page = (site / "architecture.html").read_text(encoding="utf-8")
    assert "flowchart" not in page
    assert "<td>roles, checks: causal features" in page
