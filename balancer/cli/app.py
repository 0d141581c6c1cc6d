"""`balancer app`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from balancer.dependencies import require
from balancer.errors import InputError
from balancer.options.flags import parse


@dataclass(frozen=True)
class AppConfig:
    """Look at runs in a browser, choose thresholds, compare, and train."""

    runs: Path = Path("runs")
    """Folder of the runs."""
    port: int = 8501
    """Port to listen on."""
    address: str = "127.0.0.1"
    """Address to listen on; the app has no log-in, so leave others out unless something in front of it asks for one."""
    headless: bool = False
    """Open no browser."""


def main(arguments: Sequence[str]) -> int:
    """Parse, hand over to Streamlit, wait for its end."""
    config = AppConfig(**parse(AppConfig, "balancer app", AppConfig.__doc__ or "", arguments))
    require("streamlit", "balancer app")
    if config.runs.exists() and not config.runs.is_dir():
        raise InputError(f"--runs {config.runs} is a file: give a folder")
    if not 0 < config.port < 65536:
        raise InputError(f"--port {config.port} is none: give a number from 1 to 65535")
    found = find_spec("balancer.app")  # the layers keep the command line from importing the app
    assert found is not None
    assert found.submodule_search_locations
    script = Path(next(iter(found.submodule_search_locations))) / "streamlit_app.py"
    options = ["--server.port", str(config.port), "--server.address", config.address, "--server.headless", str(config.headless).lower()]
    command = [sys.executable, "-m", "streamlit", "run", str(script), *options, "--", "--runs", str(config.runs)]
    return subprocess.run(command, check=False).returncode
