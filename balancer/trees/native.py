"""The evaluator in C++ (kernels/), called by ctypes.

It is compiled when the package is installed, if there is a compiler. Without it `balancer.trees.reference`
gives the same bits slowly.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from balancer.native_library import load_library
from balancer.trees.layout import NODE, Nodes, Paths

STEM = "_native_trees"


class _Trees(ctypes.Structure):
    """Mirror of the struct `Trees` in kernels/trees.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("nodes", "values", "words", "roots", "special", "sources", "kinds")),
        *((name, ctypes.c_int64) for name in ("trees", "outputs", "features", "columns")),
    )


class _Paths(ctypes.Structure):
    """Mirror of the struct `Paths` in kernels/trees.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("parent", "previous", "feature", "share", "points", "rules", "expected")),
        *((name, ctypes.c_int64) for name in ("most_points", "most_nodes")),
    )


def _declare(library: ctypes.CDLL, name: str) -> str | None:
    """Declare the library's functions; return the reason if its structures differ from those here."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.balancer_trees_layout.restype = size
    library.balancer_trees_raw.argtypes = [pointer, pointer, size, size, ctypes.c_int32, pointer]
    library.balancer_trees_raw.restype = ctypes.c_int32
    library.balancer_trees_contributions.argtypes = [pointer, pointer, pointer, size, size, ctypes.c_int32, pointer]
    library.balancer_trees_contributions.restype = ctypes.c_int32
    expected = NODE.itemsize + 1000 * ctypes.sizeof(_Trees) + 1000000 * ctypes.sizeof(_Paths)
    return None if library.balancer_trees_layout() == expected else f"{name} is from another version: install balancer again"


_LIBRARY, _ABSENCE = load_library(Path(__file__).parent, STEM, _declare)


def absence() -> str | None:
    """Return the reason why the kernel can't be used here, or None if it can."""
    return _ABSENCE


class NativeTrees:
    """Trees in the form that the kernel takes. It keeps the arrays alive to which it points."""

    def __init__(self, nodes: Nodes, outputs: int, features: int) -> None:
        self._nodes = nodes
        self._outputs, self._features = outputs, features
        arrays = (nodes.nodes, nodes.values, nodes.words, nodes.roots, nodes.special, nodes.sources, nodes.kinds)
        self._trees = _Trees(*(array.ctypes.data for array in arrays), len(nodes.special), outputs, features, len(nodes.sources))
        self._address = ctypes.addressof(self._trees)

    def raw(self, values: NDArray[np.float32], threads: int) -> NDArray[np.float64]:
        """Compute raw scores (n, K) of values (n, F), whose columns are side by side."""
        assert _LIBRARY is not None
        out = np.empty((len(values), self._outputs))
        if _LIBRARY.balancer_trees_raw(self._address, _address(values), len(values), values.strides[0] // 4, threads, _address(out)):
            raise MemoryError(f"the trees could not allocate memory for {len(values)} rows; give smaller batches")
        return out

    def contributions(self, values: NDArray[np.float32], paths: Paths, threads: int) -> NDArray[np.float64]:
        """Compute contributions (n, K, F + 1) of values (n, F), whose columns are side by side."""
        assert _LIBRARY is not None
        out = np.empty((len(values), self._outputs, self._features + 1))
        arrays = (paths.parent, paths.previous, paths.feature, paths.share, paths.points, paths.rules, paths.expected)
        given = _Paths(*(array.ctypes.data for array in arrays), int(paths.points.max()), paths.most_nodes)
        if _LIBRARY.balancer_trees_contributions(
            self._address, ctypes.addressof(given), _address(values), len(values), values.strides[0] // 4, threads, _address(out)
        ):
            raise MemoryError(f"the contributions of {len(values)} rows need more memory than there is; give smaller batches")
        return out


def _address(array: NDArray[np.generic]) -> int:
    address: int = array.__array_interface__["data"][0]  # a quarter of the time of array.ctypes
    return address
