"""Tables in JSON: one object a line, or an array of flat objects.

What is special: polars reads the file; only where it can't is the file read again an object at a time, to
name the column and row, or to bring numbers and text in one column to text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from balancer.errors import CorruptFileError, InputError
from balancer.tables.values import normal_text

_EXACT = 1 << 53


def read_json(path: Path, text: Path) -> pl.DataFrame:
    """Read a file of flat JSON objects, one row each.

    Args:
        path: The file, for messages.
        text: The same in UTF-8.

    Raises:
        CorruptFileError: If it is damaged; the message names the row.
        InputError: If a value is an object or a list, or if the file holds something else than objects.
    """
    with text.open("rb") as file:
        start = file.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"":
        raise InputError(f"{path} is empty: it has no rows")
    if start not in (b"{", b"["):
        raise CorruptFileError(f"{path} is not JSON, as its name says: give one object a line, or rename it")
    if start == b"{":
        try:
            frame = pl.read_ndjson(text, infer_schema_length=None)
        except (pl.exceptions.PolarsError, OSError):
            return _frame(path, list(_lines(path, text)))
        if all(dtype in (pl.Int64, pl.String, pl.Boolean, pl.Null) for dtype in frame.dtypes):
            return frame
        if not any(dtype.is_nested() for dtype in frame.dtypes) and not _rounded(frame):
            return frame
        return _frame(path, list(_lines(path, text)))
    try:
        content = json.loads(text.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise CorruptFileError(f"{path}: line {error.lineno} is not JSON, the file is damaged or truncated: write it again") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply: give flat objects, one row each") from error
    return _frame(path, [_object(path, number, row) for number, row in enumerate(content, 1)])


def _rounded(frame: pl.DataFrame) -> bool:
    """Whether a column of floats may hold whole numbers that were rounded."""
    floats = [name for name, dtype in frame.schema.items() if dtype.is_float()]
    return any(bool((frame[name].abs() >= _EXACT).any()) for name in floats)


def _lines(path: Path, text: Path) -> Iterator[dict[str, Any]]:
    row = 0
    with text.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row += 1
            try:
                yield _object(path, row, json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                raise CorruptFileError(
                    f"{path}: row {row} (line {number}) is not a JSON object: correct the line, or write one object a line"
                ) from error


def _object(path: Path, row: int, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: row {row} is not a JSON object: give one object a row, with the names of the columns as keys")
    for name, cell in value.items():
        if isinstance(cell, dict | list):
            what = "an object" if isinstance(cell, dict) else "a list"
            raise InputError(f"{path}: column {name!r}: row {row} holds {what}: give flat objects, with one value a column")
    return value


def _frame(path: Path, rows: list[dict[str, Any]]) -> pl.DataFrame:
    if not rows:
        raise InputError(f"{path} is empty: it has no rows")
    names = dict.fromkeys(name for row in rows for name in row)
    return pl.DataFrame([_column(name, [row.get(name) for row in rows]) for name in names])


def _column(name: str, values: list[Any]) -> pl.Series:
    types = {type(value) for value in values if value is not None}
    if not types:
        return pl.Series(name, values, dtype=pl.Null)
    if types == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if types == {int} and all(value is None or -(1 << 63) <= value < 1 << 63 for value in values):
        return pl.Series(name, values, dtype=pl.Int64)
    if types <= {int, float} and not any(isinstance(value, int) and abs(value) > _EXACT for value in values):
        return pl.Series(name, values, dtype=pl.Float64, strict=False)
    if types <= {bool, int} and all(value in (None, 0, 1) for value in values):
        return pl.Series(name, [None if value is None else int(value) for value in values], dtype=pl.Int64)
    texts = [value if isinstance(value, str) else normal_text(value) for value in values]
    return pl.Series(name, texts, dtype=pl.String)
