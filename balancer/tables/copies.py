"""Rows that are in two files of one folder, as where a table was saved in two formats."""

from __future__ import annotations

import itertools
from pathlib import Path

import polars as pl

from balancer.names import counted
from balancer.tables.drift import Part
from balancer.tables.values import normal_form

_SHOWN = 3


def repeated_rows(parts: list[Part], whole: pl.LazyFrame) -> list[str]:
    """Notes about pairs of files with equal rows.

    Only files with the same number of rows are compared, so that a folder of many files is not read twice.

    Args:
        parts: The files.
        whole: Their rows below each other.
    """
    sizes = [part.frame.select(pl.len()).collect().item() for part in parts]
    starts = [0, *itertools.accumulate(sizes)]
    groups: dict[int, list[int]] = {}
    for place, size in enumerate(sizes):
        groups.setdefault(size, []).append(place)
    found = []
    for size, places in groups.items():
        if len(places) < 2 or not size:
            continue
        rows = [_hashes(whole.slice(starts[place], size).collect()) for place in places]
        for (one, first), (other, second) in itertools.combinations(zip(places, rows, strict=True), 2):
            equal = int(first.is_in(second.implode()).sum())
            if equal >= 0.5 * size:
                names = (Path(parts[place].name).name for place in (one, other))
                found.append(f"{counted(equal, 'row')} of {' and '.join(names)} are equal: if one file is a copy of the other, remove it")
    return found[:_SHOWN]


def _hashes(rows: pl.DataFrame) -> pl.Series:
    """(N,) hashes of rows, the same for the same values in other formats."""
    return rows.select(_plain(column) for column in rows).hash_rows(seed=0)


def _plain(values: pl.Series) -> pl.Series:
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        return values.cast(pl.String, strict=False)
    text = normal_form(values)
    # Times have a T or a space in the middle, and may have parts of seconds that are 0.
    text = text.str.replace(r"^(\d{4}-\d\d-\d\d)T(\d\d:)", "${1} ${2}").str.replace(r"(\d:\d\d)\.0+$", "${1}")
    return text.str.replace(r"^(\d{4}-\d\d-\d\d) 00:00(:00)?$", "${1}")
