"""What the parts of ``benchmarks/gpu.sh`` have in common: device, time limit, result file, failures.

Each part runs in a separate process and writes a file of its own. The file is replaced atomically whenever
something was measured, so a part that is stopped keeps what it has. A dry run does the same on the CPU with
tiny sizes; its figures mean nothing.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from balancer.files import write_json
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import environment, rounded

SEED = 0
NEEDS_CUDA = "skipped: needs CUDA"
REFUSALS = ("UnsupportedError", "NotImplementedError", "RuntimeError")
"""Errors by which a kernel refuses the CPU. Any other error in a dry run is a fault of the code."""
ALSO = ("bitsandbytes", "transformers", "pytest")
"""Libraries whose versions are recorded besides those of ``benchmarks.lib.recording``."""
T = TypeVar("T")


class Part:
    """The result of one part, and the device and the time that it has.

    Args:
        name: name of the part.
        out: file of the result.
        dry: whether to run on the CPU with tiny sizes.
        limit: seconds after which the part is stopped from outside.
    """

    def __init__(self, name: str, out: Path, *, dry: bool, limit: float) -> None:
        self.out, self.dry = out, dry
        self.device = "cpu" if dry else "cuda"
        self.failed: dict[str, str] = {}
        """Reason by what could not be measured."""
        self.skipped: dict[str, str] = {}
        """The same for what a dry run can't do without CUDA."""
        self.strict = dry
        """Whether the exit status tells of any failure; else only of a part without any figure."""
        self._end = time.monotonic() + limit
        self._found: dict[str, Any] = {"part": name, "dry": dry, "complete": False, "headline": "", "seed": SEED}

    @property
    def seconds_left(self) -> float:
        """Seconds until the part is stopped."""
        return self._end - time.monotonic()

    def keep(self, headline: str = "", **found: Any) -> None:
        """Add figures to the result and write it.

        Args:
            headline: the result so far, in a few words for a table; empty leaves it as it is. A dry run
                has none, because its figures are not those of a GPU.
            **found: figures; floats are rounded, and those that are not finite become None.
        """
        self._found |= found
        if headline and not self.dry:
            self._found["headline"] = headline
        facts = {"device": device_facts(self.device), "failed": self.failed, "skipped": self.skipped}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.out, finite(rounded(self._found | facts, 5)) | environment())

    def fail(self, what: str, reason: str, *, needs_cuda: bool = False) -> None:
        """Note that something could not be measured.

        Args:
            what: what it is.
            reason: result of :func:`reason_of`.
            needs_cuda: whether it exists on CUDA only, so that its refusal of the CPU is no failure.
        """
        if self.dry and needs_cuda and reason.startswith(REFUSALS):
            self.skipped[what] = f"{NEEDS_CUDA} ({reason})"
        else:
            self.failed[what] = reason
            print(f"{what}: {reason}", file=sys.stderr, flush=True)

    def attempt(self, what: str, action: Callable[[], T], *, needs_cuda: bool = False) -> T | None:
        """The result of ``action``, or None if it failed; the failure is noted, and the part goes on."""
        try:
            return action()
        except Exception as problem:  # noqa: BLE001  # one failure must not stop what can still be measured
            traceback.print_exc()
            self.fail(what, reason_of(problem), needs_cuda=needs_cuda)
            return None

    def finish(self) -> int:
        """Write the complete result; return the exit status.

        It is 1 if nothing was measured, and with ``strict``, as in a dry run, if anything failed; else 0.
        """
        measured = self.out.is_file() and self._found.keys() > {"part", "dry", "complete", "headline", "seed"}
        self.keep(complete=True)
        return int(not measured or (self.strict and bool(self.failed)))


def reason_of(problem: BaseException) -> str:
    """Type and first line of an error."""
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]


def device_facts(device: str) -> dict[str, Any]:
    """Name, compute capability, memory and libraries of the device."""
    libraries = {}
    for name in ALSO:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    facts: dict[str, Any] = {"name": "cpu", "libraries": libraries}
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        facts |= {"name": about.name, "compute_capability": f"{about.major}.{about.minor}", "gib": about.total_memory / 2**30}
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return facts


def finite(value: Any) -> Any:
    """Replace every float in nested dicts and lists that is NaN or infinite, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def main(name: str, measure: Callable[[Part], None], description: str | None) -> int:
    """Run a part with the command line that ``benchmarks.lib.gpu`` gives it; return the exit status."""
    options = parser(description)
    options.add_argument("--out", type=Path, required=True, help="file of the result")
    options.add_argument("--dry", action="store_true", help="run on the CPU with tiny sizes")
    options.add_argument("--limit", type=float, default=300.0, help="seconds after which the part is stopped from outside")
    given = options.parse_args()
    part = Part(name, given.out.absolute(), dry=given.dry, limit=given.limit)
    measure(part)
    return part.finish()
