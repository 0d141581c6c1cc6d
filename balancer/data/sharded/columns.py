"""Columns as NumPy files: written and read in ranges of rows, so that no more than a range is in memory.

What is special: ranges are written and read with plain file operations and not through a memory map, whose
pages would count as memory of the process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from balancer.errors import CorruptFileError, UnwritableFileError, reason_of

Shape = tuple[int, ...]


def make_column(path: Path, dtype: DTypeLike, shape: Shape) -> None:
    """Make a file of `shape` zeros; the file system does not store what was not written.

    Raises:
        UnwritableFileError: The file can't be written.
    """
    kind = np.dtype(dtype)
    try:
        with path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + kind.itemsize * int(np.prod(shape, dtype=np.int64)))
    except OSError as error:
        raise UnwritableFileError(f"cannot write {path}: {error.strerror or error}; free some space, or choose another folder") from error


def write_rows(path: Path, first: int, values: NDArray[Any]) -> None:
    """Write rows of a column that `make_column` made.

    Args:
        path: The file.
        first: Row of the column that the first of `values` goes to.
        values: (n, ...) rows; converted to the dtype of the column.

    Raises:
        UnwritableFileError: The disk is full.
    """
    dtype, shape, start = _header(path)
    rows = np.ascontiguousarray(values, dtype=dtype)
    try:
        with path.open("r+b") as file:
            file.seek(start + first * _row_bytes(dtype, shape))
            rows.tofile(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UnwritableFileError(f"cannot write {path}: {error.strerror or error}; free some space, or choose another folder") from error


def read_rows(path: Path, first: int, last: int) -> NDArray[Any]:
    """Read rows from `first` to before `last` of a column to memory.

    Raises:
        CorruptFileError: The file is missing or truncated.
    """
    dtype, shape, start = _header(path)
    size = int(np.prod(shape[1:], dtype=np.int64))
    try:
        values = np.fromfile(path, dtype=dtype, count=(last - first) * size, offset=start + first * _row_bytes(dtype, shape))
    except OSError as error:
        raise _damaged(path, error) from error
    if len(values) != (last - first) * size:
        raise CorruptFileError(f"{path} is truncated: run balancer prepare again")
    return values.reshape((last - first, *shape[1:]))


def read_column(path: Path) -> NDArray[Any]:
    """Read a whole column to memory."""
    return read_rows(path, 0, rows_of(path))


def mapped(path: Path, *, writable: bool = False) -> NDArray[Any]:
    """A column that is read from the file as it is used.

    Args:
        path: The file.
        writable: Whether the array may be changed. Changes stay in memory; the file is never changed.

    Raises:
        CorruptFileError: The file is missing or damaged.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="c" if writable else "r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def rows_of(path: Path) -> int:
    """Number of rows of a column."""
    return _header(path)[1][0]


def _header(path: Path) -> tuple[np.dtype[Any], Shape, int]:
    """Dtype, shape and first byte of the values of a file."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            return dtype, shape, file.tell()
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _row_bytes(dtype: np.dtype[Any], shape: Shape) -> int:
    return dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))


def _damaged(path: Path, error: Exception) -> CorruptFileError:
    return CorruptFileError(f"{path} can't be read ({reason_of(error)}): the store is damaged, run balancer prepare again")
