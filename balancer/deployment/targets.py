"""Flags of `balancer quantize` and `balancer export`, checked before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from balancer.errors import InputError
from balancer.files import check_new_file

Target = Literal["onnx", "executorch"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "executorch": ".pte"}
LITE_FILE = "lite.json"
"""Description of a light model, beside it."""


def check_max_drop(max_drop: float) -> None:
    """Check the budget of average precision.

    Raises:
        InputError: If it is not from 0 to below 1.
    """
    if not 0 <= max_drop < 1:
        raise InputError(f"--max-drop is {max_drop}: give a share of average precision from 0 to below 1, for example 0.003")


def first_stage_file(file: Path) -> Path:
    """The file of the first stage beside ``file``: `model.first.onnx` beside `model.onnx`."""
    return file.with_name(f"{file.stem}.first{file.suffix}")


def export_file(run: Path, target: Target, *, lite: bool, out: Path | None, overwrite: bool) -> Path:
    """Check where a run is exported to.

    Args:
        run: The run folder.
        target: `onnx` or `executorch`.
        lite: Whether a light model is exported.
        out: The file that was named. None takes a file in the run folder, which replaces an earlier export.
        overwrite: Whether `out` and the files beside it may be replaced.

    Returns:
        The file.

    Raises:
        InputError: Its name has another ending, it exists, or it can't be written.
    """
    suffix = SUFFIXES[target]
    file = out or run / f"model{'.lite' if lite else ''}{suffix}"
    if file.suffix != suffix:
        raise InputError(f"--out {file}: give a file name that ends in {suffix} for --target {target}")
    replaces = overwrite or out is None
    check_new_file(file, "--out", overwrite=replaces)
    beside = file.with_name(LITE_FILE) if lite else first_stage_file(file)
    if target == "onnx" or lite:
        check_new_file(beside, "--out: the file beside it,", overwrite=replaces)
    return file
