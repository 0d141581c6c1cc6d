"""Rows that are in two files of one folder, as where a table was saved in two formats."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

import polars as pl

from balancer.names import counted
from balancer.tables.drift import Part
from balancer.tables.values import normal_form

_FIRST = 100
"""Rows at the beginning of a file that are compared first."""
_COMPARED = 4
"""Most files with the same beginning that are compared with each other."""
_SHOWN = 3


def repeated_rows(parts: list[Part]) -> list[str]:
    """Notes about pairs of files with equal rows.

    A copy has as many rows as the file that it was made of, and the same first rows. Only such pairs are
    compared as a whole, so that a folder of many files is not read twice.

    Args:
        parts: The files.
    """
    alike: dict[tuple[int, ...], list[Part]] = {}
    found = []
    with suppress(pl.exceptions.PolarsError):  # a damaged file is reported when its rows are read
        for part in parts:
            size = int(part.frame.select(pl.len()).collect().item())
            if size:
                first = _hashes(part.frame.head(_FIRST).collect())
                alike.setdefault((size, *first.to_list()), []).append(part)
        for (size, *_), group in alike.items():
            for one, other in itertools.combinations(group[:_COMPARED], 2):
                equal = int(_hashes(one.frame.collect()).is_in(_hashes(other.frame.collect()).implode()).sum())
                if equal >= 0.5 * size:
                    names = f"{Path(one.name).name} and {Path(other.name).name}"
                    found.append(f"{counted(equal, 'row')} of {names} are equal: if one file is a copy of the other, remove it")
    return found[:_SHOWN]


def _hashes(rows: pl.DataFrame) -> pl.Series:
    """(N,) hashes of rows, the same for the same values in other formats and another order of the columns."""
    return rows.select(_plain(rows[name]) for name in sorted(rows.columns)).hash_rows(seed=0)


def _plain(values: pl.Series) -> pl.Series:
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        return values.cast(pl.String, strict=False)
    text = normal_form(values)
    # Times have a T or a space in the middle, and may have parts of seconds that are 0.
    text = text.str.replace(r"^(\d{4}-\d\d-\d\d)T(\d\d:)", "${1} ${2}").str.replace(r"(\d:\d\d)\.0+$", "${1}")
    return text.str.replace(r"^(\d{4}-\d\d-\d\d) 00:00(:00)?$", "${1}")
