"""The INT8 linear in C++ (kernels/): rounding, product and scaling in one pass, with AVX512-VNNI.

Special: to the last bit it gives what the operator written in torch gives, so either may stand in for the other; it is only faster, most of all on few rows.
Built when the package is installed, where there is a compiler; without it, or on another processor, torch's own kernels do the work.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from balancer.models.native_library import cant_load, load_library

STEM = "_native_int8"


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    library, name = load_library(Path(__file__).parent, STEM)
    if library is None:
        return None, name
    try:
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
    except AttributeError as error:
        return None, cant_load(name, error)
    return (library, None) if supported else (None, "this processor has no AVX512-VNNI")


def _find_team() -> int | None:
    """Address of the function by which torch's own libgomp runs something on its threads; None where torch brings no such library (then one thread works)."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


_LIBRARY, _ABSENCE = _load()
_TEAM = _find_team()


def absence() -> str | None:
    """Why the kernel can't be used here, or None."""
    return _ABSENCE


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight int8 (N, K) on the CPU as the kernel reads it: its panels (bytes,) int8, and (N padded,) int32 sums."""
    assert _LIBRARY is not None
    weight = weight.contiguous()
    n, k = weight.shape
    packed = torch.empty(_LIBRARY.balancer_int8_packed_bytes(n, k), dtype=torch.int8)
    sums = torch.empty(_LIBRARY.balancer_int8_packed_channels(n), dtype=torch.int32)
    _LIBRARY.balancer_int8_pack(weight.data_ptr(), n, k, packed.data_ptr(), sums.data_ptr())
    return packed, sums


def linear(x: Tensor, packed: Tensor, sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` (..., K) float32 on the CPU to (..., N); the rest as `pack` and `modules.int8_linear` have it."""
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
        _TEAM,
    )
    if failed:
        raise MemoryError("the INT8 kernel found no memory for its rows")
    return out
