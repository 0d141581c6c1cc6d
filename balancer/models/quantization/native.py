"""INT8 linear layer in C++ (kernels/): rounding, product and scaling in one pass, with AVX512-VNNI.

The results are bit-identical to those of the operator in `modules.py`, so both are interchangeable; the
kernel is faster, especially for few rows. It is compiled when the package is installed, if there is a
compiler. Without it, or on another processor, torch's kernels are used.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from balancer.native_library import load_library

STEM = "_native_int8"


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library, or return the reason why it can't be used here."""
    return load_library(Path(__file__).parent, STEM, _declare)


def _declare(library: ctypes.CDLL, _name: str) -> str | None:
    """Declare the types of the library's functions; return the reason if this processor can't run them."""
    supported = bool(library.balancer_int8_supported())
    library.balancer_int8_packed_bytes.restype = ctypes.c_int64
    library.balancer_int8_packed_channels.restype = ctypes.c_int64
    library.balancer_int8_packed_bytes.argtypes = [ctypes.c_int64] * 2
    library.balancer_int8_packed_channels.argtypes = [ctypes.c_int64]
    library.balancer_int8_pack.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 2]
    library.balancer_int8_pack.restype = None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.balancer_int8_linear.argtypes = [pointer, size, size, *[pointer] * 5, size, ctypes.c_int32, pointer]
    library.balancer_int8_linear.restype = ctypes.c_int32
    return None if supported else "this processor has no AVX512-VNNI"


def _find_thread_team() -> int | None:
    """Address of GOMP_parallel in torch's copy of libgomp, which runs a function on torch's threads.

    None if torch has no such library; the kernel then uses one thread.
    """
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


_LIBRARY, _ABSENCE = _load()
_THREAD_TEAM = _find_thread_team()


def absence() -> str | None:
    """Return the reason why the kernel can't be used here, or None if it can."""
    return _ABSENCE


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a weight int8 (N, K) on the CPU for the kernel.

    Returns:
        The panels (bytes,) int8, and the sums of the channels, int32 (N padded,).
    """
    assert _LIBRARY is not None
    weight = weight.contiguous()
    n, k = weight.shape
    packed = torch.empty(_LIBRARY.balancer_int8_packed_bytes(n, k), dtype=torch.int8)
    sums = torch.empty(_LIBRARY.balancer_int8_packed_channels(n), dtype=torch.int32)
    _LIBRARY.balancer_int8_pack(weight.data_ptr(), n, k, packed.data_ptr(), sums.data_ptr())
    return packed, sums


def linear(x: Tensor, packed: Tensor, sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply ``x`` (..., K) float32 on the CPU by a packed weight.

    Args:
        x: input.
        packed: panels from :func:`pack`.
        sums: sums from :func:`pack`.
        scale: (N,) float32.
        bias: (N,) float32 or None.

    Returns:
        (..., N) float32.
    """
    assert _LIBRARY is not None
    rows = x.contiguous()
    n, k = scale.shape[0], x.shape[-1]
    out = torch.empty(*x.shape[:-1], n)
    count = out.numel() // n
    failed = _LIBRARY.balancer_int8_linear(
        rows.data_ptr(),
        count,
        k,
        packed.data_ptr(),
        sums.data_ptr(),
        scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        n,
        torch.get_num_threads(),
        _THREAD_TEAM,
    )
    if failed:
        raise MemoryError("the INT8 kernel could not allocate memory for its rows; give smaller batches")
    return out
