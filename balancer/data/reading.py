"""Read the columns of a table that have a role.

What is special: the columns of a text file are read as text and converted by `balancer.data.checks`, so that
a bad cell is reported by column and row. What a table can be is in `balancer.tables.source`.
"""

from __future__ import annotations

import io

import polars as pl

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.tables.numbers import parse_numbers
from balancer.tables.options import ReadOptions
from balancer.tables.source import Source, opened, source_name, unreadable

__all__ = ["Source", "collect", "column_names", "column_types", "read_columns", "read_input", "scan", "source_name"]

_NO_OPTIONS = ReadOptions()
_SAMPLE_ROWS = 10_000


def scan(source: Source, *, typed: bool = False, read: ReadOptions = _NO_OPTIONS) -> pl.LazyFrame:
    """Open the table as a lazy frame, rows in file order.

    Args:
        source: File, folder or frame.
        typed: Whether to infer the dtypes of the columns of a text file. Otherwise they stay text.
        read: How text is read.

    Raises:
        InputError: If the file is missing, empty, malformed, or of an unknown kind.
    """
    table = opened(source, read)
    if not (typed and table.text):
        return table.frame
    sample = collect(table.frame.head(_SAMPLE_ROWS), source)
    # polars infers dates and truth values; numbers are read with the marks of the file.
    inferred = pl.read_csv(io.BytesIO(sample.write_csv().encode()), try_parse_dates=True, infer_schema_length=None)
    return table.frame.with_columns(_typed(sample[name], dtype, table.read) for name, dtype in inferred.schema.items())


def _typed(values: pl.Series, dtype: pl.DataType, read: ReadOptions) -> pl.Expr:
    column = pl.col(values.name)
    if values.dtype != pl.String:
        return column
    if dtype == pl.Boolean:
        return column.str.to_lowercase() == "true"
    if dtype.is_temporal() and dtype != pl.Time:
        return column.str.to_datetime(strict=False) if dtype == pl.Datetime else column.str.to_date(strict=False)
    numbers, wrong = parse_numbers(values, read)
    if numbers.null_count() == len(numbers) or wrong.any():
        return column
    number = pl.Int64() if dtype.is_integer() else pl.Float64()
    return column.map_batches(lambda text: parse_numbers(text, read)[0].cast(number, strict=False), return_dtype=number)


def column_types(source: Source, read: ReadOptions = _NO_OPTIONS) -> dict[str, pl.DataType]:
    """Return the names and dtypes of the columns; the dtypes of a text file are inferred.

    Raises:
        InputError: If the table can't be read.
    """
    try:
        return dict(scan(source, typed=True, read=read).collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(source_name(source)) from error


def column_names(source: Source, read: ReadOptions = _NO_OPTIONS) -> list[str]:
    """Return the names of the columns, in order.

    Raises:
        InputError: If the table can't be read.
    """
    query = opened(source, read).frame
    try:
        return query.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(source_name(source)) from error


def collect(query: pl.LazyFrame, source: Source) -> pl.DataFrame:
    """Run a query over `source`.

    Raises:
        CorruptFileError: If the file is damaged; the message names it.
    """
    try:
        return query.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(source_name(source)) from error


def read_columns(source: Source, columns: list[str] | None = None, read: ReadOptions = _NO_OPTIONS) -> pl.DataFrame:
    """Read the named columns (all by default) of every row, in file order; those of a text file as text.

    Raises:
        InputError: If a column is missing (the message suggests the nearest name), or if the file is empty or
            damaged.
    """
    query, names = opened(source, read).frame, column_names(source, read)
    for column in columns or []:
        if column not in names:
            raise InputError(f"{source_name(source)} has no column {column!r}: {nearest(column, names)}")
    frame = collect(query if columns is None else query.select(columns), source)
    if frame.height == 0:
        raise InputError(f"{source_name(source)} is empty: it has no rows")
    return frame


def read_input(source: Source, read: ReadOptions = _NO_OPTIONS) -> pl.DataFrame:
    """Read every column of every row, in the order that `Dataset.store.row` indexes."""
    return read_columns(source, None, read)
