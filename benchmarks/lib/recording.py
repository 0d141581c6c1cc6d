"""What every benchmark writes beside its figures: machine, versions and date; shared by the scripts of this folder."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared" / "data"
LIBRARIES = ("torch", "stable-baselines3", "gymnasium", "polars", "scikit-learn", "lightgbm", "numpy")


def processor() -> str:
    """The model name of the CPU, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def surroundings() -> dict[str, Any]:
    """Machine, versions, date."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()}
    return {"machine": machine, "versions": versions, "date": datetime.now(UTC).date().isoformat()}


def record(result: dict[str, Any], path: Path) -> None:
    """Print a result and write it with its surroundings."""
    content = json.dumps(result | surroundings(), indent=2)
    print(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n")
