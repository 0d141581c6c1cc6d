"""Record a result as JSON, together with the machine, the library versions and the date."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from balancer.native_library import forced_instructions, processor_flags, processor_instructions

ROOT = Path(__file__).resolve().parents[2]
"""Root of the checkout."""
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = (
    "torch",
    "stable-baselines3",
    "gymnasium",
    "polars",
    "scikit-learn",
    "lightgbm",
    "xgboost-cpu",
    "catboost",
    "tabm",
    "numpy",
    "triton",
    "onnxruntime",
    "torchao",
    "openvino",
)


def processor() -> str:
    """Model name of the CPU, or its architecture where the operating system gives no name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Instruction sets of the processor that matter for products of matrices, of any precision."""
    further = {"avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16", "amx_int8": "amxint8", "amx_bf16": "amxbf16"}
    return [*processor_instructions(), *(name for flag, name in further.items() if flag in processor_flags())]


def today() -> str:
    """Date in UTC as YYYY-MM-DD."""
    return datetime.now(UTC).date().isoformat()


def environment() -> dict[str, Any]:
    """Machine, versions of Python and of the installed :data:`LIBRARIES`, and date."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.system(), "instructions": instructions()}
    forced = forced_instructions()
    if forced is not None:
        machine["instructions_of_our_kernels"] = forced
    return {"machine": machine, "versions": versions, "date": today()}


def record(result: dict[str, Any], path: Path) -> None:
    """Print a result and write it to ``path`` together with its :func:`environment`."""
    print(write(result, path), end="")


def write(result: dict[str, Any], path: Path) -> str:
    """Write a result to ``path`` as :func:`record` does, without printing it; return what was written."""
    content = json.dumps(result | environment(), indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return content


def recorded(path: Path) -> dict[str, Any]:
    """What an earlier run recorded in ``path``; empty if there is no such file."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def rounded(value: Any, digits: int) -> Any:
    """Round every float in nested dicts and lists to ``digits`` significant digits."""
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each, digits) for each in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
