"""Restrict a benchmark to an instruction set, as on a smaller processor."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from balancer.native_library import VARIABLE

LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avxvnni": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "portable": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
"""Variables that restrict torch, oneDNN and MKL in the same way as our kernels."""


def restart(instructions: str, module: str, arguments: Sequence[str] | None = None) -> None:
    """Start a script again under a restriction.

    Libraries choose their instructions when they are loaded. Without effect where the restriction holds
    already.

    Args:
        instructions: name of the set, a key of `balancer.native_library.INSTRUCTIONS`.
        module: module of the script.
        arguments: arguments of the script; by default those of this process.
    """
    if os.environ.get(VARIABLE) == instructions:
        return
    environment = os.environ | {VARIABLE: instructions} | LIMITS.get(instructions, {})
    os.execve(sys.executable, [sys.executable, "-m", module, *(sys.argv[1:] if arguments is None else arguments)], environment)
