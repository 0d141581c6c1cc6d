"""The rows of each class, found in pieces: many rows need no index of eight bytes each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.sampling.labels import CHUNK, code_type

_FEW_CLASSES = 8
"""Up to this number of classes, a pass for each class is faster than a sort."""


def groups(codes: NDArray[np.integer[Any]], num_classes: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each class that occurs among ``codes`` (n,) with the positions of its rows; -1 is left out."""
    if num_classes <= _FEW_CLASSES:
        for c in range(num_classes):
            chosen = np.flatnonzero(codes == c)
            if len(chosen):
                yield c, chosen
        return
    narrow = codes.astype(code_type(num_classes), copy=False)  # NumPy sorts small types by counting
    order = np.argsort(narrow, kind="stable")
    ends = np.searchsorted(narrow[order], np.arange(-1, num_classes), side="right")
    for c in np.flatnonzero(np.diff(ends)).tolist():
        yield c, order[ends[c] : ends[c + 1]]


def grouped(codes: NDArray[np.signedinteger[Any]], starts: NDArray[np.int64]) -> NDArray[Any]:
    """Rows by class, ascending within each class; class c begins at ``starts[c]``.

    A counting sort in pieces, so that no index of eight bytes for every row is needed.
    """
    result = np.empty(int(starts[-1]), dtype=index_type(len(codes)))
    free = starts[:-1].tolist()
    for first in range(0, len(codes), CHUNK):
        for c, rows in groups(codes[first : first + CHUNK], len(free)):
            result[free[c] : free[c] + len(rows)] = rows + first
            free[c] += len(rows)
    return result


def index_type(rows: int) -> type[np.integer[Any]]:
    """Smallest integer that holds the number of any of ``rows`` rows."""
    return np.uint32 if rows <= np.iinfo(np.uint32).max else np.int64
