"""``balancer app``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from balancer.dependencies import require
from balancer.errors import InputError
from balancer.options.flags import Flag, read_flags

SERVICE, SERVICE_KEY = "BALANCER_SERVICE", "BALANCER_SERVICE_KEY"
"""Environment variables of `balancer.app.service`, which is not imported here."""


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Open the app in a browser: look at runs, choose thresholds, compare and train."""

    runs: Annotated[Path, Flag("Folder with the runs.", metavar="FOLDER")] = Path("runs")
    port: Annotated[int, "Port to listen on."] = 8501
    address: Annotated[
        str,
        Flag("Address to listen on. The app has no log-in: use another address only behind a proxy that has one.", metavar="ADDRESS"),
    ] = "127.0.0.1"
    service: Annotated[
        str,
        Flag(
            f"Address of a running service, which the page Service shows; its key of scope operator is read from {SERVICE_KEY}.",
            metavar="URL",
            default=f"{SERVICE}, or no such page",
        ),
    ] = ""
    headless: Annotated[bool, "Do not open a browser."] = False


def main(arguments: Sequence[str]) -> int:
    """Become Streamlit; on Windows, start it, wait until it ends, and return its exit code."""
    config = read_flags(AppConfig, "balancer app", arguments)
    require("streamlit", "balancer app")
    if config.runs.exists() and not config.runs.is_dir():
        raise InputError(f"--runs {config.runs} is a file: give a folder")
    if not 0 < config.port < 65536:
        raise InputError(f"--port {config.port} is not a port: give a number from 1 to 65535")
    service = config.service or os.environ.get(SERVICE, "")
    if service and (not service.startswith(("http://", "https://")) or "@" in service):
        raise InputError(
            f"{'--service' if config.service else SERVICE} is no address of a service: give one such as https://balancer.example"
        )
    found = find_spec("balancer.app")  # the app is not imported: Streamlit runs it in a process of its own
    assert found is not None
    assert found.submodule_search_locations
    script = Path(next(iter(found.submodule_search_locations))) / "streamlit_app.py"
    options = ["--server.port", str(config.port), "--server.address", config.address, "--server.headless", str(config.headless).lower()]
    command = [sys.executable, "-m", "streamlit", "run", str(script), *options, "--", "--runs", str(config.runs)]
    command += ["--service", config.service] if config.service else []
    if os.name == "nt":  # Windows has no exec: the process would end before Streamlit
        return subprocess.run(command, check=False).returncode
    # Streamlit takes the place of this process, so that any signal to it ends the app.
    sys.stdout.flush()
    sys.stderr.flush()
    return os.execv(command[0], command)
