"""Tables of any kind: NumPy, SciPy sparse, pandas, polars, lists.

Selecting rows keeps the container, the dtypes and the names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix, issparse, isspmatrix

from balancer.errors import InputError


def is_frame(table: Any) -> bool:
    """Whether ``table`` is a data frame (pandas, polars)."""
    return hasattr(table, "columns") and hasattr(table, "shape")


def take_rows(table: Any, rows: NDArray[np.integer[Any]]) -> Any:
    """Select rows of ``table`` without changing its type.

    A pandas index is selected too, so its labels may repeat.
    """
    if hasattr(table, "iloc"):
        return table.iloc[rows]
    if isinstance(table, (list, tuple)):
        return [table[row] for row in rows]
    if isinstance(table, np.ndarray) or issparse(table) or type(table).__module__.split(".")[0] == "polars":
        return table[rows]
    return np.asarray(table)[rows]


def sparse_matrix(table: Any) -> Any:
    """Convert a SciPy sparse array to a sparse matrix, which LightGBM accepts without a warning.

    Anything else is returned unchanged.
    """
    if not issparse(table) or isspmatrix(table):
        return table
    return csc_matrix(table) if table.format == "csc" else csr_matrix(table)


def label_codes(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Encode labels.

    Args:
        y: (n,) labels of any type.

    Returns:
        The sorted classes (K,) and the class index (n,) of each label.

    Raises:
        InputError: A label is missing, or all labels are of one class.
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
            f"Input y contains NaN or another missing label (row {int(np.flatnonzero(missing)[0])}); drop the rows without a label"
        )
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"y has 1 class only ({classes.tolist()[0]!r}); sampling needs rows of at least two classes")
    return classes, codes.astype(np.int64)


def class_index(y: Any, classes: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Index into the sorted ``classes`` (K,) of each label of ``y`` (n,).

    Raises:
        InputError: ``y`` has a label that is none of them; the message calls it ``name``.
    """
    labels = np.asarray(y)
    try:
        codes = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
        unknown = np.flatnonzero(classes[codes] != labels)
    except TypeError as error:
        raise InputError(f"{name} has labels of another type than y ({error}); name classes alike") from error
    if len(unknown):
        raise InputError(
            f"{name} has the label {labels[unknown[:1]].tolist()[0]!r} in row {int(unknown[0])}, which y lacks; leave such rows out"
        )
    return codes.astype(np.int64)


def row_weights(weight: Any, rows: int, name: str) -> NDArray[np.float64] | None:
    """Check the weights of rows.

    Args:
        weight: (n,) weights, a number for all rows, or None.
        rows: n.
        name: Name of the argument, for errors.

    Returns:
        (n,) a copy, or None.

    Raises:
        InputError: They are no numbers, not one for each row, negative, not finite, or all 0.
    """
    if weight is None:
        return None
    try:
        values = np.array(weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers ({error})") from error
    if values.ndim == 0:
        values = np.full(rows, float(values))
    if values.shape != (rows,):
        raise InputError(f"{name} must be one number for each of the {rows} rows, not an array of shape {values.shape}")
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise InputError(f"{name} must be finite and not negative, found {values[bad[0]]} in row {int(bad[0])}")
    if not values.any():
        raise InputError(f"{name} is zero for all rows; give at least the rows of two classes a weight")
    return values


def numeric_matrix(table: Any) -> Any:
    """Convert a table to numbers (n, F) for a tree learner.

    Numeric arrays and sparse matrices stay as they are. In every other column a value becomes its rank among
    the column's values. The ranks hold for this table only; they are good enough to score its rows.
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
        return column.astype(np.float64)  # numbers stored as objects, with None for a missing one
    except (TypeError, ValueError):
        return np.unique(column.astype(str), return_inverse=True)[1].astype(np.float64)
