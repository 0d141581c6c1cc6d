"""A folder of runs for the tests of pages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def runs(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with one real run, `first`."""
    folder = tmp_path / "runs"
    shutil.copytree(tiny_run, folder / "first")
    monkeypatch.setenv("BALANCER_RUNS", str(folder))
    monkeypatch.setattr("sys.argv", ["streamlit_app.py"])
    return folder
