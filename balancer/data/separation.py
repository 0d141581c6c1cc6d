"""How well one column alone separates frauds from legitimate rows.

What is special: the share of frauds of a value is measured on every second row, and evaluated on the rest, so
that a column with many values does not separate the classes by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.examining import Examined
from balancer.data.labels import find_classes, read_labels
from balancer.errors import InputError
from balancer.tables.numbers import parse_numbers
from balancer.tables.options import ReadOptions
from balancer.tables.profile import is_null_word
from balancer.tables.values import normal_form

SUSPECT = 0.99
"""Area under the ROC curve of one column from which it is suspected."""
LEAST = 20
"""Fewest rows of each class; with fewer, a column can separate them by chance."""
_CHANCE = 1e-6
"""Probability below which it is no chance that only frauds have a value."""
_ROWS = 20_000
_BINS = 50

Values = NDArray[np.float64]
Codes = NDArray[np.int64]


def positives(
    table: Examined, label: str | None, label_date: str | None, *, negative: str | None, unlabelled: str | None
) -> pl.Series | None:
    """Which rows are frauds.

    Args:
        table: The table.
        label: Column of the label.
        label_date: Column of dates of reports; without a label, a row with a date is a fraud.
        negative: As in the spec.
        unlabelled: As in the spec.

    Returns:
        (n,) of the sample: 1 fraud, 0 legitimate, null unlabelled; None where that can't be said.
    """
    sample = table.sample
    if label is not None and label in sample.columns:
        found = None
        with suppress(InputError):  # the check of the label reports it
            text = read_labels(sample[label], unlabelled=unlabelled, negative=negative).text
            found = (text != find_classes(text, negative)[0]).cast(pl.Int8)
        return found
    if label_date is not None and label_date in sample.columns:
        dates = sample[label_date]
        missing = dates.is_null()
        if dates.dtype == pl.String:
            missing = missing | is_null_word(dates.str.strip_chars(), table.read)
        return (~missing).cast(pl.Int8)
    return None


def separating(table: Examined, given: Mapping[str, Any], names: Sequence[str]) -> set[str]:
    """Those of some columns that alone separate the classes.

    Args:
        table: The table.
        given: Keys of a spec.
        names: The columns.
    """
    if not names:
        return set()
    label, date = given.get("label"), given.get("label_date")
    known = positives(table, label, date, negative=given.get("negative"), unlabelled=given.get("unlabelled"))
    rows = None if known is None else rows_to_judge(known)
    if known is None or rows is None:
        return set()
    y = (known[rows] == 1).to_numpy()
    number = {name: table.profiles[name].numeric for name in names}
    return {name for name in names if suspicion(table.sample[name].gather(rows), y, table.read, number=number[name])}


def rows_to_judge(positive: pl.Series) -> Codes | None:
    """Positions of at most `_ROWS` labelled rows; None where a class has too few."""
    y = positive.fill_null(-1).to_numpy()
    ones, zeros = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    if min(len(ones), len(zeros)) < LEAST:
        return None

    def some(rows: Codes) -> Codes:
        return rows[:: max(1, -(-2 * len(rows) // _ROWS))]

    return np.sort(np.concatenate((some(ones), some(zeros))))


def suspicion(values: pl.Series, y: NDArray[np.bool_], read: ReadOptions, *, number: bool) -> str:
    """What is suspicious about a column (n,) of rows with labels y (n,); empty if nothing is."""
    if number:
        numbers = parse_numbers(values, read)[0] if values.dtype == pl.String else values.cast(pl.Float64)
        x = numbers.fill_nan(None).fill_null(np.nan).to_numpy()
        x = np.where(np.isinf(x), np.copysign(np.finfo(np.float64).max / 4, x), x)  # quantiles subtract
        missing = np.isnan(x)
        codes = np.zeros(len(x), np.int64)
        if not missing.all():
            edges = np.unique(np.quantile(x[~missing], np.linspace(0, 1, _BINS + 1)[1:-1]))
            codes = np.where(missing, 0, 1 + np.searchsorted(edges, np.where(missing, 0.0, x), side="right"))
    else:
        text = normal_form(values)
        missing = text.is_null().to_numpy()
        codes = text.fill_null("").rank("dense").cast(pl.Int64).to_numpy()
    empty = area(missing.astype(np.float64), y)
    if max(empty, 1 - empty) >= SUSPECT:
        return "is missing in the rows of one class only"
    if only_frauds(missing, y):
        return "has values, or none, in frauds only"
    best = _shares_area(codes, y)
    there = ~missing if number else np.zeros(len(y), np.bool_)
    if min(int(y[there].sum()), int((~y[there]).sum())) >= max(LEAST, int(y.sum()) // 2):
        ranked = area(x[there], y[there])
        best = max(best, ranked, 1 - ranked)
    return f"alone separates the classes (AUC {min(best, 0.9999):.3f})" if best >= SUSPECT else ""


def only_frauds(missing: NDArray[np.bool_], y: NDArray[np.bool_]) -> bool:
    """Whether all rows (n,) with a value, or all rows without one, are frauds, beyond chance."""
    share = float(y.mean())
    counts = ((int(rows.sum()), int(y[rows].sum())) for rows in (missing, ~missing))
    return any(rows == frauds >= LEAST and share**rows < _CHANCE for rows, frauds in counts)


def _shares_area(codes: Codes, y: NDArray[np.bool_]) -> float:
    """Area of the shares of frauds by value, measured on one half of each class, evaluated on the other."""
    half = np.zeros(len(y), np.bool_)
    for each in (np.flatnonzero(y), np.flatnonzero(~y)):
        half[each[::2]] = True
    size = int(codes.max()) + 1
    rows = np.bincount(codes[half], minlength=size)
    frauds = np.bincount(codes[half & y], minlength=size)
    share = (frauds + y.mean()) / (rows + 1.0)
    return area(share[codes[~half]], y[~half])


def area(score: Values, y: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of scores (n,); ties count one half."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    ones = int(y.sum())
    zeros = len(y) - ones
    if not ones or not zeros:
        return 0.5
    return float((rank[place][y].sum() - ones * (ones + 1) / 2) / (ones * zeros))
