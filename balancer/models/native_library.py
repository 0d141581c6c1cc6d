"""The kernels in C++ that are built when the package is installed: found beside the module that calls them, loaded by ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path


def load_library(folder: Path, stem: str) -> tuple[ctypes.CDLL | None, str]:
    """The library `stem` in `folder` and its file's name; or None, and why there is none."""
    found = sorted(path for path in folder.glob(f"{stem}*") if path.suffix in (".so", ".pyd", ".dylib"))
    if not found:
        return None, "it was not built: install balancer where a C++ compiler is (g++ or clang++)"
    try:
        return ctypes.CDLL(str(found[0])), found[0].name
    except OSError as error:
        return None, cant_load(found[0].name, error)


def cant_load(name: str, error: Exception) -> str:
    """What to say of a library that is there and no good."""
    return f"{name} can't be loaded ({error}): install balancer again"
