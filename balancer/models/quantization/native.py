"""INT8 linear layer in C++ (kernels/): rounding, product and scaling in one pass.

The library contains versions of the kernel for AVX512-VNNI, AVX-512, AVX-VNNI, AVX2, NEON with and without
dot products, and the compiler's baseline. All give the bits of the operator in `modules.py`, so they are
interchangeable; the best one of the processor is used. The library is compiled when the package is installed,
if there is a compiler. Without it torch's kernels are used, which are slower, especially for few rows.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from balancer.native_library import allowed_version, load_library

STEM = "_native_int8"
VERSIONS = (
    ("portable", "neon", "dotprod")
    if platform.machine().lower() in ("arm64", "aarch64")
    else ("portable", "avx2", "avxvnni", "avx512", "avx512vnni")
)
"""Instruction sets of the kernel's versions, in the order of the library."""


class _Layer(ctypes.Structure):
    """Mirror of the struct `Layer` in kernels/int8_linear.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("packed", "sums", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("channels", "inputs", "version")),
    )


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library, or return the reason why it can't be used here."""
    return load_library(Path(__file__).parent, STEM, _declare)


def _declare(library: ctypes.CDLL, name: str) -> str | None:
    """Declare the library's functions; return the reason if its `Layer` differs from `_Layer`."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for function, arguments, result in (
        ("layout", [], size),
        ("supported", [], size),
        ("use_team", [pointer], None),
        ("packed_bytes", [size, pointer, size, size], size),
        ("packed_channels", [size] * 2, size),
        ("pack", [size, pointer, size, size, pointer, pointer], None),
        ("linear", [pointer, pointer, size, pointer, ctypes.c_int32], ctypes.c_int32),
    ):
        declared = getattr(library, f"balancer_int8_{function}")
        declared.argtypes, declared.restype = arguments, result
    if library.balancer_int8_layout() != ctypes.sizeof(_Layer):
        return f"{name} is from another version: install balancer again"
    library.balancer_int8_use_team(_find_thread_team())
    return None


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
_RUN = None if _LIBRARY is None else _LIBRARY.balancer_int8_linear


def absence() -> str | None:
    """Return the reason why the kernel can't be used here, or None if it can."""
    return _ABSENCE


def supported_versions() -> tuple[str, ...]:
    """Names in :data:`VERSIONS` of those that this processor can run, the best one last."""
    if _LIBRARY is None:
        return ()
    bits = int(_LIBRARY.balancer_int8_supported())
    return tuple(name for index, name in enumerate(VERSIONS) if bits >> index & 1)


@functools.cache
def instruction_set() -> str | None:
    """Return the name in :data:`VERSIONS` of the version that is used, or None without the library.

    Raises:
        InputError: ``BALANCER_INSTRUCTIONS`` has a value that can't be used here.
    """
    supported = supported_versions()
    return supported[allowed_version(supported, len(supported) - 1)] if supported else None


class PackedLinear:
    """A linear layer as the kernel takes it. It keeps the tensors alive to which it points.

    Args:
        weight: int8 (N, K) on the CPU.
        scale: (N,) float32, one per channel.
        bias: (N,) float32 or None.
        instructions: name in :data:`VERSIONS`; by default that of :func:`instruction_set`.
    """

    __slots__ = ("_address", "_channels", "_given", "_inputs", "_kept", "_layer")

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, instructions: str | None = None) -> None:
        assert _LIBRARY is not None
        version = VERSIONS.index(instructions or instruction_set() or "portable")
        n, k = weight.shape
        rows = weight.contiguous()
        size = _LIBRARY.balancer_int8_packed_bytes(version, rows.data_ptr(), n, k)
        packed = rows.new_empty(size) if size else rows
        sums = rows.new_empty(_LIBRARY.balancer_int8_packed_channels(version, n), dtype=torch.int32)
        _LIBRARY.balancer_int8_pack(version, rows.data_ptr(), n, k, packed.data_ptr(), sums.data_ptr())
        self._given = weight, scale, bias
        self._kept = packed, sums, scale.float().contiguous(), None if bias is None else bias.float().contiguous()
        self._layer = _Layer(*(None if each is None else each.data_ptr() for each in self._kept), n, k, version)
        self._address = ctypes.addressof(self._layer)
        self._inputs, self._channels = k, n

    def is_of(self, buffers: Mapping[str, Tensor | None]) -> bool:
        """Whether this was made of the tensors of a layer, which may have been replaced since."""
        weight, scale, bias = self._given
        return buffers["stored"] is weight and buffers["scale"] is scale and buffers["stored_bias"] is bias

    def takes(self, x: Tensor, buffers: Mapping[str, Tensor | None]) -> bool:
        """Whether :meth:`multiply` takes ``x``, and this was made of the tensors of the layer."""
        weight, scale, bias = self._given
        return (
            x.dtype is torch.float32
            and x.is_cpu
            and x.numel() > 0
            and x.ndim > 0
            and x.shape[-1] == self._inputs
            and buffers["stored"] is weight
            and buffers["scale"] is scale
            and buffers["stored_bias"] is bias
        )

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply ``x`` (..., K) float32 on the CPU; returns (..., N) float32."""
        x = x.contiguous()
        shape = x.shape
        out = x.new_empty((*shape[:-1], self._channels))
        if _RUN(self._address, x.data_ptr(), x.numel() // shape[-1], out.data_ptr(), torch.get_num_threads()):  # type: ignore[misc]
            raise MemoryError("the INT8 kernel could not allocate memory for its rows; give smaller batches")
        return out
