"""Options that every training command has: where it runs, its seed and its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from balancer.errors import InputError
from balancer.options.checks import check_whole
from balancer.options.flags import Flag, Options

MAX_SEED = 2**31 - 1
MAX_THREADS = 1024
"""More threads than any machine has cores for one training; far more of them can't be started.

It does not depend on this machine, so that a run can be read on any other one.
"""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Machine, random seed and run folder."""

    HEADING: ClassVar[str] = "Run"

    device: Annotated[Literal["auto", "cpu", "cuda"], "Device to train on; auto is CUDA where there is a CUDA device."] = "auto"
    threads: Annotated[
        int,
        "CPU threads; more than one rarely helps a small model, and changes the last bits of the results.",
    ] = 1
    seed: Annotated[int, "Random seed; the same seed reproduces the run exactly."] = 0
    out: Annotated[Path | None, Flag("Run folder to write.", metavar="FOLDER", default="runs/NAME-DATE-TIME")] = None
    resume: Annotated[bool, "Continue the run in --out; other flags may be repeated but not changed."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "threads", most=MAX_THREADS)
        check_whole(self, "seed", least=0, most=MAX_SEED)
        if self.resume:
            folder_to_resume(self.out)


def folder_to_resume(out: Path | None) -> Path:
    """The folder that ``--resume`` continues, which is the value of ``--out``.

    Raises:
        InputError: ``--out`` was not given.
    """
    if out is None:
        raise InputError("--resume needs --out: name the folder to continue")
    return out
