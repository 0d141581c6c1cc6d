"""Read a table: Parquet, CSV, a folder of Parquet, a Delta table.

What is special: scans are lazy and fetch only the columns that have a role. A CSV file is read as text and
cast by `balancer.data.checks`, so that a bad cell is reported by column and row. The number of fields per row
is checked on the bytes first, because polars silently fills a row that has too few.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from balancer.data.spec import nearest
from balancer.dependencies import require
from balancer.errors import CorruptFileError, InputError, MissingFileError

Source = str | Path | pl.DataFrame
PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".txt")
_CHUNK_BYTES = 1 << 24
_SEPARATORS = (",", ";", "\t", "|")


def scan(source: Source, *, typed: bool = False) -> pl.LazyFrame:
    """Open the table as a lazy frame, rows in file order.

    Args:
        source: File, folder or frame.
        typed: Whether to infer the dtypes of a CSV file (to infer roles). Otherwise its columns stay text.

    Raises:
        InputError: If the file is missing, empty, malformed, or of an unknown kind.
    """
    if isinstance(source, pl.DataFrame):
        return source.lazy()
    path = Path(source)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist: check the path of the table")
    if path.is_dir():
        return _scan_folder(path)
    if path.suffix.lower() in PARQUET:
        return pl.scan_parquet(path)
    if path.suffix.lower() in CSV:
        separator = _csv_separator(path)
        if typed:
            return pl.scan_csv(path, separator=separator, infer_schema_length=10_000, try_parse_dates=True, ignore_errors=True)
        check_csv_shape(path, separator)
        return pl.scan_csv(path, separator=separator, infer_schema=False)
    raise InputError(f"{path} is of an unknown kind ({path.suffix!r}): give a .parquet or .csv file, a folder of Parquet or a Delta table")


def column_types(source: Source) -> dict[str, pl.DataType]:
    """Return the names and dtypes of the columns; the dtypes of a CSV file are inferred.

    Raises:
        InputError: If the table can't be read.
    """
    try:
        return dict(scan(source, typed=True).collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(source, error) from error


def collect(query: pl.LazyFrame, source: Source) -> pl.DataFrame:
    """Run a query over `source`.

    Raises:
        CorruptFileError: If the file is damaged; the message names it.
    """
    try:
        return query.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(source, error) from error


def read_columns(source: Source, columns: list[str] | None = None) -> pl.DataFrame:
    """Read the named columns (all by default) of every row, in file order; CSV columns as text.

    Raises:
        InputError: If a column is missing (the message suggests the nearest name), or if the file is empty or
            damaged.
    """
    try:
        query = scan(source)
        names = query.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(source, error) from error
    for column in columns or []:
        if column not in names:
            raise InputError(f"{source_name(source)} has no column {column!r}: {nearest(column, names)}")
    frame = collect(query if columns is None else query.select(columns), source)
    if frame.height == 0:
        raise InputError(f"{source_name(source)} is empty: it has no rows")
    return frame


def read_input(source: Source) -> pl.DataFrame:
    """Read every column of every row, in the order that `Dataset.store.row` indexes; CSV columns as text."""
    return read_columns(source)


def check_csv_shape(path: Path, separator: str) -> None:
    """Check that every row of a CSV file has as many fields as the header.

    The check works on bytes, 16 MiB at a time. Separators and line ends inside quotes (after an odd number of
    quotes) are ignored.

    Raises:
        InputError: If the file is empty.
        CorruptFileError: If a row has another number of fields (the message names the first such row), or if
            a quote is not closed.
    """
    fields_in_header: int | None = None
    row = open_fields = quotes = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            data = np.frombuffer(chunk, dtype=np.uint8)
            outside = (quotes + np.cumsum(data == ord('"'))) % 2 == 0
            ends = np.flatnonzero((data == ord("\n")) & outside)
            separators = np.concatenate(([0], np.cumsum((data == ord(separator)) & outside)))
            counts = np.diff(separators[ends], prepend=0)
            quotes += int(np.count_nonzero(data == ord('"')))
            if len(ends):
                counts[0] += open_fields
                blank = np.diff(ends, prepend=-1) <= 1 if open_fields == 0 else np.zeros(len(ends), np.bool_)
                if fields_in_header is None:
                    fields_in_header = int(counts[0])
                malformed = np.flatnonzero((counts != fields_in_header) & ~blank)
                if len(malformed):
                    raise _wrong_field_count(path, row + int(malformed[0]), int(counts[malformed[0]]) + 1, fields_in_header + 1)
                row += len(ends)
                open_fields = int(separators[-1] - separators[ends[-1]])
                tail = len(data) - int(ends[-1]) - 1
            else:
                open_fields += int(separators[-1])
                tail = len(data)
    if row == 0 and quotes == 0 and path.stat().st_size == 0:
        raise InputError(f"{path} is empty: it has no rows")
    if quotes % 2:
        raise InputError(f"{path}: a quote is opened and never closed, the file is damaged or truncated: write it again")
    if fields_in_header is not None and tail and open_fields != fields_in_header:
        raise _wrong_field_count(path, row, open_fields + 1, fields_in_header + 1)


def _wrong_field_count(path: Path, row: int, found: int, expected: int) -> CorruptFileError:
    return CorruptFileError(f"{path}: row {row} (line {row + 1}) has {found} fields, but the header has {expected}: correct the row")


def _csv_separator(path: Path) -> str:
    with path.open("rb") as file:
        header = file.readline(1 << 16).decode("utf-8", errors="replace")
    if not header.strip():
        raise InputError(f"{path} is empty: it has no header and no rows")
    return max(_SEPARATORS, key=header.count)


def _scan_folder(path: Path) -> pl.LazyFrame:
    if (path / "_delta_log").is_dir():
        require("deltalake", f"{path} is a Delta table, which")
        return pl.scan_delta(str(path))
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PARQUET)
    if not files:
        raise InputError(f"{path} has no .parquet file: give a folder of Parquet files, or a single file")
    return pl.scan_parquet(files)


def source_name(source: Source) -> str:
    """Return the name of a table for messages."""
    return "the frame" if isinstance(source, pl.DataFrame) else str(source)


def _unreadable(source: Source, error: Exception) -> CorruptFileError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CorruptFileError(
        f"{source_name(source)} can't be read, it is damaged, truncated or of another format than its name says ({reason}): write it again"
    )
