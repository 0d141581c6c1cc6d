"""Ages of training rows from their times; a hundred million rows, in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.sampling.inputs import plain
from balancer.sampling.labels import pieces


def ages(times: ArrayLike, labelled: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N,) age of each row as a fraction of the time span of the labelled rows, 0 for the newest of them.

    Args:
        times: (N,) or (N, 1) numbers, dates, or ``datetime64``.
        labelled: (N,) whether a row has a label; the age of the others is 0.

    Raises:
        InputError: Another number of times, or a time of a labelled row that is missing.
    """
    given = np.asarray(plain(times))
    if given.dtype.kind == "O":
        try:
            given = given.astype("datetime64[us]")
        except (TypeError, ValueError) as error:
            raise InputError(f"times must be numbers, dates or datetime64, one for each row ({error}); convert them first") from error
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.shape != labelled.shape or given.dtype.kind not in "iufMm":
        raise InputError(
            f"times must be {len(labelled)} numbers, dates or datetime64, one for each row, not {given.dtype} of shape {given.shape}"
        )
    newest, oldest = -np.inf, np.inf
    for place in pieces(len(given)):
        number = _as_float(given[place])
        missing = ~np.isfinite(number) & labelled[place]
        if missing.any():
            row = place.start + int(np.flatnonzero(missing)[0])
            raise InputError(f"times has no time for row {row}; give a time for each labelled row")
        known = number[labelled[place]]
        newest, oldest = max(newest, known.max(initial=-np.inf)), min(oldest, known.min(initial=np.inf))
    span = max(newest - oldest, np.finfo(np.float64).tiny)
    result = np.zeros(len(given), dtype=np.float32)
    for place in pieces(len(given)):
        here = labelled[place]
        result[place][here] = (newest - _as_float(given[place])[here]) / span
    return result


def _as_float(times: NDArray[Any]) -> NDArray[np.float64]:
    """Times as float64, NaN where one is missing.

    Nanoseconds since 1970 are exact to 256 of them.
    """
    if times.dtype.kind not in "mM":
        return times.astype(np.float64)
    return np.where(np.isnat(times), np.nan, times.astype(np.int64))
