"""Tables as people hold them: NumPy, SciPy sparse, pandas, polars, lists; rows are taken without a change of container, dtype or name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix, issparse, isspmatrix

from balancer.errors import InputError


def is_frame(table: Any) -> bool:
    """Whether ``table`` is a data frame (pandas, polars) rather than an array."""
    return hasattr(table, "columns") and hasattr(table, "shape")


def take_rows(table: Any, rows: NDArray[np.integer[Any]]) -> Any:
    """The given rows of ``table``, which keeps its kind; a pandas index goes along, so its labels may repeat."""
    if hasattr(table, "iloc"):
        return table.iloc[rows]
    if isinstance(table, (list, tuple)):
        return [table[row] for row in rows]
    if isinstance(table, np.ndarray) or issparse(table) or type(table).__module__.split(".")[0] == "polars":
        return table[rows]
    return np.asarray(table)[rows]


def sparse_matrix(table: Any) -> Any:
    """A SciPy sparse array as the sparse matrix that LightGBM takes without a warning; anything else as it is."""
    if not issparse(table) or isspmatrix(table):
        return table
    return csc_matrix(table) if table.format == "csc" else csr_matrix(table)


def label_codes(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sorted classes (K,) and the class index (n,) of each label.

    Raises
    ------
    InputError
        When a label is missing, or all are of one class.
    """
    labels = np.asarray(y)
    if hasattr(y, "isna"):
        missing = np.asarray(y.isna())
    elif hasattr(y, "is_null"):
        missing = np.asarray(y.is_null())
    elif labels.dtype == object:
        missing = np.array([label is None or (isinstance(label, float) and label != label) for label in labels], dtype=bool)
    else:
        missing = np.zeros(len(labels), dtype=bool)
    if labels.dtype.kind == "f":
        missing = missing | ~np.isfinite(labels)
    if missing.any():
        raise InputError(
            f"Input y contains NaN or another missing label (row {int(np.flatnonzero(missing)[0])}); drop the rows without one"
        )
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"y has 1 class only ({classes[0]!r}); sampling needs rows of at least two classes")
    return classes, codes.astype(np.int64)


def numeric_matrix(table: Any) -> Any:
    """(n, F) numbers for a learner of trees: numeric arrays and sparse matrices as they are, every other column as the rank of its values.

    The ranks mean nothing beyond this table; they serve to score the rows it has.
    """
    if issparse(table):
        return sparse_matrix(table)
    if is_frame(table):
        columns = [np.asarray(table[name]) for name in table.columns]
    else:
        array = np.asarray(table)
        if array.dtype.kind in "biuf":
            return array
        columns = list(array.T)
    return np.column_stack([_numbers(column) for column in columns])


def _numbers(column: NDArray[Any]) -> NDArray[np.float64]:
    if column.dtype.kind in "biuf":
        return column.astype(np.float64)
    if column.dtype.kind in "mM":
        return np.where(np.isnat(column), np.nan, column.astype(np.int64).astype(np.float64))
    try:
        return column.astype(np.float64)  # numbers held as objects, None among them
    except (TypeError, ValueError):
        return np.unique(column.astype(str), return_inverse=True)[1].astype(np.float64)
