"""Load the C++ kernels by ctypes.

They are compiled when the package is installed and lie in the folder of the module that calls them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path


def load_library(folder: Path, stem: str, prepare: Callable[[ctypes.CDLL, str], str | None]) -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library whose file name begins with `stem`.

    Args:
        folder: folder of the library.
        stem: beginning of the file name.
        prepare: called with the library and its file name, to declare its functions. It returns None, or the
            reason why the library can't be used here.

    Returns:
        The library and None, or None and the reason why it can't be used.
    """
    found = sorted(path for path in folder.glob(f"{stem}*") if path.suffix in (".so", ".pyd", ".dylib"))
    if not found:
        return None, "it was not built: install a C++ compiler (g++ or clang++), then install balancer again"
    name = found[0].name
    try:
        library = ctypes.CDLL(str(found[0]))
        reason = prepare(library, name)
    except (OSError, AttributeError) as error:
        return None, f"{name} can't be loaded ({error}): install balancer again"
    return (library, None) if reason is None else (None, reason)
