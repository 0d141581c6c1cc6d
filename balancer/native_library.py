"""Load the C++ kernels by ctypes, and choose the instruction set they use.

The kernels are compiled when the package is installed and lie in the folder of the module that calls them. A
library contains versions of its kernel for several instruction sets and uses the best one of the processor.
The environment variable ``BALANCER_INSTRUCTIONS`` restricts all kernels to a smaller set.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from balancer.errors import InputError, UnsupportedError

VARIABLE = "BALANCER_INSTRUCTIONS"
"""Environment variable with the largest instruction set that kernels may use."""
INSTRUCTIONS = {
    "portable": ("portable",),
    "avx2": ("portable", "avx2"),
    "avxvnni": ("portable", "avx2", "avxvnni"),
    "avx512": ("portable", "avx2", "avx512"),
    "avx512vnni": ("portable", "avx2", "avx512", "avx512vnni"),
    "neon": ("portable", "neon"),
    "dotprod": ("portable", "neon", "dotprod"),
}
"""Names of the instruction sets, each with the sets that it includes.

``portable`` is the compiler's baseline.
"""
_FLAGS = {
    "portable": set[str](),
    "avx2": {"avx2", "fma"},
    "avxvnni": {"avx2", "fma", "avx_vnni"},
    "avx512": {"avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl"},
    "avx512vnni": {"avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni"},
    "neon": {"asimd"},
    "dotprod": {"asimd", "asimddp"},
}
"""What Linux calls the instructions of each set."""


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


def forced_instructions() -> str | None:
    """Return the instruction set of ``BALANCER_INSTRUCTIONS``, or None if the variable is not set.

    Kernels read it once, when they are first used.

    Raises:
        InputError: No instruction set has this name.
        UnsupportedError: The processor does not have these instructions.
    """
    name = os.environ.get(VARIABLE, "").strip().lower()
    if not name:
        return None
    if name not in INSTRUCTIONS:
        raise InputError(f"{VARIABLE}={name}: no such instruction set; use one of {', '.join(INSTRUCTIONS)}, or unset it")
    available = processor_instructions()
    if name not in available:
        raise UnsupportedError(f"{VARIABLE}={name}: this processor does not have these instructions; use one of {', '.join(available)}")
    return name


def allowed_version(versions: Sequence[str], best: int) -> int:
    """Choose the version of a kernel.

    Args:
        versions: instruction sets of the kernel's versions, the best one last; the first is ``portable``.
        best: index of the best version that the processor can run.

    Returns:
        ``best``, or the index of the best version that :func:`forced_instructions` allows.
    """
    forced = forced_instructions()
    if forced is None:
        return best
    return max(index for index, name in enumerate(versions[: best + 1]) if name in INSTRUCTIONS[forced])


@functools.cache
def processor_instructions() -> tuple[str, ...]:
    """Names in :data:`INSTRUCTIONS` of the sets that the processor has.

    Only Linux tells which instructions there are. Elsewhere every set of the architecture is returned, and
    each kernel uses its best version that the processor can run.
    """
    flags = processor_flags()
    if flags:
        return tuple(name for name, needed in _FLAGS.items() if needed <= flags)
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return tuple(name for name in INSTRUCTIONS if name == "portable" or (name in ("neon", "dotprod")) == arm)


@functools.cache
def processor_flags() -> frozenset[str]:
    """Instructions of the processor under Linux's names, such as ``avx2``; empty on other systems."""
    file = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not file.exists():
        return frozenset()
    for line in file.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
