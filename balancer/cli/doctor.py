"""``balancer doctor``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from balancer.options.flags import read_flags


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Show the versions, the device and the attention backends of this machine.

    For each backend that does not work it says why, and it measures which one auto chooses for each length.
    """

    json: Annotated[bool, "Print JSON."] = False


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
    """Examine the machine and print the result; returns the exit code."""
    config = read_flags(DoctorConfig, "balancer doctor", arguments)
    result = examine()
    if config.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    return 0


def examine() -> dict[str, Any]:
    """Machine, versions, attention backends and the choices of ``auto``, as JSON-able values."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from balancer import __version__
    from balancer.errors import InputError
    from balancer.models.attention import flex_native
    from balancer.models.attention.backends import BACKENDS
    from balancer.models.attention.choice import LENGTHS, explain_choice, processor
    from balancer.models.attention.layout import Layout
    from balancer.models.quantization import native
    from balancer.models.step import INSTRUCTION_SETS, instruction_set
    from balancer.models.step import absence as absence_of_step
    from balancer.trees.native import absence as absence_of_trees

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
            choice = explain_choice(probe[:, :length], Layout())
            auto[str(length)] = {"backend": choice.name, "reason": choice.reason, "milliseconds": choice.milliseconds.get(str(length), {})}
        except InputError as error:  # an environment variable names a backend that does not work here
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
        "flex_attention": {
            "kernel in C++": flex_native.absence() or f"works, with {flex_native.INSTRUCTION_SETS[flex_native.instruction_set() or 0]}"
        },
        "quantization": {"INT8 kernel in C++": native.absence() or f"works, with {native.instruction_set()}"},
        "trees": {"evaluator in C++": absence_of_trees() or "works"},
        "streaming": {"step in C++": absence_of_step() or f"works, with {INSTRUCTION_SETS[instruction_set() or 0]}"},
    }


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    head = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name in ("balancer", "python", "system", "processor", "device", "threads"):
        head.add_row(name, str(result[name]))
    for name, version in result["versions"].items():
        head.add_row(name, version or "not installed")
    console.print(head)
    for title, rows in (
        ("\nattention backend", result["attention"]["backends"].items()),
        ("\nflex_attention", result["flex_attention"].items()),
        ("\nquantization", result["quantization"].items()),
        ("\nboosted trees", result["trees"].items()),
        ("\nscoring row by row", result["streaming"].items()),
        (
            "\nauto chooses, at this many tokens",
            ((length, f"{choice['backend'] or 'none'}: {choice['reason']}") for length, choice in result["attention"]["auto"].items()),
        ),
    ):
        console.print(title, style="bold")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for name, text in rows:
            table.add_row(name, text)
        console.print(table)
