"""Columns that alone separate the classes: nearly always something that is known only after the label.

What is special: the share of frauds of a value is measured on every second row and judged on the others, so
that a column with many values does not look like a leak by chance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.column_roles import some
from balancer.data.labels import find_classes, read_labels
from balancer.data.roles import Roles
from balancer.errors import InputError
from balancer.tables.numbers import parse_numbers
from balancer.tables.profile import is_null_word
from balancer.tables.values import normal_form

SUSPECT = 0.99
"""Area under the ROC curve of one column from which it is suspected."""
LEAST = 20
"""Fewest rows of each class; with fewer, a column can separate them by chance."""
_OUT = "take it out of the spec file that balancer inspect --out writes"
_ROWS = 20_000
_BINS = 50

Values = NDArray[np.float64]
Codes = NDArray[np.int64]


def suspected_leaks(roles: Roles) -> dict[str, str]:
    """Find the features that alone tell frauds from legitimate rows.

    Args:
        roles: The roles of the table. With a label date and no label, a row with a date is a fraud.

    Returns:
        What was found by column, as the predicate of a sentence; empty where there are too few labelled rows.
    """
    spec, sample = roles.spec, roles.table.sample
    positive = _positive(roles)
    if positive is None:
        return {}
    chosen = _rows(positive)
    if chosen is None:
        return {}
    y = (positive[chosen] == 1).to_numpy()
    found = {}
    names = dict.fromkeys([*([spec.amount] if spec.amount else []), *spec.numeric, *spec.categorical, *spec.context])
    for name in names:
        if name in sample.columns:
            text = _suspicion(sample[name].gather(chosen), y, roles, number=name == spec.amount or name in spec.numeric)
            if text:
                found[name] = text
    return found


def leak_notes(found: Mapping[str, str], out: str = _OUT) -> list[str]:
    """Warnings of suspected leaks, one line for each kind.

    Args:
        found: What :func:`suspected_leaks` found.
        out: How a column is left out.
    """
    kinds: dict[str, list[str]] = {}
    for name, text in found.items():
        what, _, area = text.partition(" (")
        kinds.setdefault(what, []).append(f"{name} ({area}" if area else name)
    remedy = f"check that it is known when a row is scored, or {out}"
    return [f"suspected leak, {what}: {some(names)}: {remedy}" for what, names in kinds.items()]


def _positive(roles: Roles) -> pl.Series | None:
    """(n,) of the sample: 1 fraud, 0 legitimate, null unlabelled."""
    spec, sample = roles.spec, roles.table.sample
    if spec.label is not None and spec.label in sample.columns:
        try:
            text = read_labels(sample[spec.label], unlabelled=spec.unlabelled, negative=spec.negative).text
            classes = find_classes(text, spec.negative)
        except InputError:
            return None
        return (text != classes[0]).cast(pl.Int8)
    if spec.label_date is not None:
        dates = sample[spec.label_date]
        missing = dates.is_null()
        if dates.dtype == pl.String:
            missing = missing | is_null_word(dates.str.strip_chars(), roles.table.read)
        return (~missing).cast(pl.Int8)
    return None


def _rows(positive: pl.Series) -> Codes | None:
    """Positions of at most `_ROWS` labelled rows; None where a class has too few."""
    y = positive.fill_null(-1).to_numpy()
    ones, zeros = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    if min(len(ones), len(zeros)) < LEAST:
        return None

    def some(rows: Codes) -> Codes:
        return rows[:: max(1, -(-2 * len(rows) // _ROWS))]

    return np.sort(np.concatenate((some(ones), some(zeros))))


def _suspicion(values: pl.Series, y: NDArray[np.bool_], roles: Roles, *, number: bool) -> str:
    """What is suspicious about a column (n,) of rows with labels y (n,); empty if nothing is."""
    if number:
        numbers = parse_numbers(values, roles.table.read)[0] if values.dtype == pl.String else values.cast(pl.Float64)
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
    empty = _area(missing.astype(np.float64), y)
    if max(empty, 1 - empty) >= SUSPECT:
        return "is missing in the rows of one class only"
    best = _shares_area(codes, y)
    there = ~missing if number else np.zeros(len(y), np.bool_)
    if min(int(y[there].sum()), int((~y[there]).sum())) >= max(LEAST, int(y.sum()) // 2):
        ranked = _area(x[there], y[there])
        best = max(best, ranked, 1 - ranked)
    return f"alone separates the classes (AUC {min(best, 0.9999):.3f})" if best >= SUSPECT else ""


def _shares_area(codes: Codes, y: NDArray[np.bool_]) -> float:
    """Area of the shares of frauds by value, measured on one half of each class and judged on the other."""
    half = np.zeros(len(y), np.bool_)
    for each in (np.flatnonzero(y), np.flatnonzero(~y)):
        half[each[::2]] = True
    size = int(codes.max()) + 1
    rows = np.bincount(codes[half], minlength=size)
    frauds = np.bincount(codes[half & y], minlength=size)
    share = (frauds + y.mean()) / (rows + 1.0)
    return _area(share[codes[~half]], y[~half])


def _area(score: Values, y: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of scores (n,); ties count one half."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    ones = int(y.sum())
    zeros = len(y) - ones
    if not ones or not zeros:
        return 0.5
    return float((rank[place][y].sum() - ones * (ones + 1) / 2) / (ones * zeros))
