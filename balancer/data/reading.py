"""Reading a table: Parquet, CSV, a folder of Parquet, a Delta table.

What is special: scans are lazy and fetch only the columns that have a role. CSV is read as text and cast by `balancer.data.checks`, so
that a bad cell is reported by column and row, and its shape is checked on the bytes first: polars fills a row with too few fields
silently.
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
_CHUNK = 1 << 24
_SEPARATORS = (",", ";", "\t", "|")


def scan(source: Source, *, typed: bool = False) -> pl.LazyFrame:
    """A lazy frame over the table, rows in file order.

    Args:
        source: file, folder or frame.
        typed: guess the dtypes of a CSV (to infer roles); otherwise its columns stay text.

    Raises:
        InputError: where the file is absent, empty, torn, or of an unknown kind.
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
    raise InputError(f"{path} is of an unknown kind {path.suffix!r}: give a .parquet or .csv file, a folder of Parquet or a Delta table")


def column_types(source: Source) -> dict[str, pl.DataType]:
    """Names and dtypes of the columns (those of a CSV guessed); raises `InputError` where the table can't be read."""
    try:
        return dict(scan(source, typed=True).collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(source, error) from error


def collect(query: pl.LazyFrame, source: Source) -> pl.DataFrame:
    """Run a query over `source`; a damaged file raises `InputError` naming it."""
    try:
        return query.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(source, error) from error


def read_columns(source: Source, columns: list[str] | None = None) -> pl.DataFrame:
    """The named columns (all by default) of every row, in file order; CSV columns as text.

    Raises:
        InputError: naming the missing column and the nearest one, or the file that is empty or damaged.
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
    """Every column of every row, in input order: what `Dataset.store.row` points into. CSV columns stay text, as they were written."""
    return read_columns(source)


def check_csv_shape(path: Path, separator: str) -> None:
    """Raise `InputError` naming the first row whose number of fields differs from the header's.

    Works on bytes, 16 MiB at a time: separators and line ends within quotes (odd number of quotes so far) don't count.
    """
    fields_in_header: int | None = None
    row = open_fields = quotes = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
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
                torn = np.flatnonzero((counts != fields_in_header) & ~blank)
                if len(torn):
                    raise _torn(path, row + int(torn[0]), int(counts[torn[0]]) + 1, fields_in_header + 1)
                row += len(ends)
                open_fields = int(separators[-1] - separators[ends[-1]])
                tail = len(data) - int(ends[-1]) - 1
            else:
                open_fields += int(separators[-1])
                tail = len(data)
    if row == 0 and quotes == 0 and path.stat().st_size == 0:
        raise InputError(f"{path} is empty: it has no rows")
    if quotes % 2:
        raise InputError(f"{path}: a quote is opened and never closed, the file is torn: write it again")
    if fields_in_header is not None and tail and open_fields != fields_in_header:
        raise _torn(path, row, open_fields + 1, fields_in_header + 1)


def _torn(path: Path, row: int, found: int, wanted: int) -> CorruptFileError:
    return CorruptFileError(f"{path}: row {row} (line {row + 1}) has {found} fields where the header has {wanted}, the row is torn: mend it")


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
        raise InputError(f"{path} holds no .parquet file: give a folder of Parquet, or a single file")
    return pl.scan_parquet(files)


def source_name(source: Source) -> str:
    """How messages call a table."""
    return "the frame" if isinstance(source, pl.DataFrame) else str(source)


def _unreadable(source: Source, error: Exception) -> CorruptFileError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CorruptFileError(f"{source_name(source)} can't be read, it is damaged, truncated or not what its name says ({reason}): write it again")
