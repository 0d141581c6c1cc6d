"""`balancer doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from balancer.options.flags import parse


@dataclass(frozen=True)
class DoctorConfig:
    """Say what this machine has: versions, device, and which attention backends work and why not; auto's choice by length is measured on first use."""

    json: bool = False
    """Print it as JSON."""


LIBRARIES = (
    "torch",
    "triton",
    "numpy",
    "polars",
    "scikit-learn",
    "gymnasium",
    "stable-baselines3",
    "lightgbm",
    "streamlit",
    "bitsandbytes",
)


def main(arguments: Sequence[str]) -> int:
    """Parse, look, tell."""
    config = DoctorConfig(**parse(DoctorConfig, "balancer doctor", DoctorConfig.__doc__ or "", arguments))
    told = examine()
    if config.json:
        print(json.dumps(told, indent=2))
    else:
        _print(told)
    return 0


def examine() -> dict[str, Any]:
    """Machine, versions, attention backends, and what `auto` takes, as JSON-able values."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from balancer import __version__
    from balancer.errors import InputError
    from balancer.models.attention.backends import BACKENDS
    from balancer.models.attention.choice import LENGTHS, explain_choice, processor
    from balancer.models.attention.layout import Layout

    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    probe = torch.zeros(1, max(LENGTHS), 2, 32, device=device)
    auto: dict[str, dict[str, Any]] = {}
    for length in LENGTHS:
        try:
            own = explain_choice(probe[:, :length], Layout())
            auto[str(length)] = {"backend": own.name, "reason": own.reason, "milliseconds": own.milliseconds.get(str(length), {})}
        except InputError as error:  # the environment names a backend that can't be taken: to be told, not to be stopped by
            auto[str(length)] = {"backend": None, "reason": str(error), "milliseconds": {}}
    return {
        "balancer": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU, no CUDA device",
        "threads": torch.get_num_threads(),
        "versions": versions,
        "attention": {
            "backends": {name: backend.refuses(probe, Layout()) or "works" for name, backend in BACKENDS.items()},
            "auto": auto,
        },
    }


def _print(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    head = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name in ("balancer", "python", "system", "processor", "device", "threads"):
        head.add_row(name, str(told[name]))
    for name, own in told["versions"].items():
        head.add_row(name, own or "not installed")
    console.print(head)
    for title, rows in (
        ("\nattention backend", told["attention"]["backends"].items()),
        (
            "\nauto at this many tokens",
            ((length, f"{own['backend'] or 'none'}: {own['reason']}") for length, own in told["attention"]["auto"].items()),
        ),
    ):
        console.print(title, style="bold")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for name, text in rows:
            table.add_row(name, text)
        console.print(table)
