"""Open a table: Parquet, CSV and other text, JSON lines, a folder of such files, a Delta table, a frame.

What is special: whatever the file is, its rows are the same ones in the same order for every reader, and a
lazy frame fetches only the columns that have a role. Text stays text, because its types can't be known from a
part of a column; what was found in the file (encoding, separator, decimal mark) is said in a note.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import polars as pl

from balancer.dependencies import require
from balancer.errors import CorruptFileError, InputError, MissingClassError, MissingFileError, UnsupportedError, reason_of
from balancer.names import counted, listed
from balancer.tables.copies import repeated_rows
from balancer.tables.csv_text import Shape, check_rows, cleaned, line_of, with_name
from balancer.tables.decoding import as_utf8
from balancer.tables.drift import Part, unite
from balancer.tables.folders import partitions, table_files
from balancer.tables.json_lines import read_json
from balancer.tables.kinds import is_begun_store, is_store, kind, known_kind
from balancer.tables.magic import PARQUET, held_instead_of_parquet
from balancer.tables.numbers import find_marks, parse_numbers
from balancer.tables.options import ReadOptions
from balancer.tables.sniffing import Head, read_head, separator_name
from balancer.tables.temporary import TemporaryCopy, written

Source = str | Path | pl.DataFrame
Given = ParamSpec("Given")
Result = TypeVar("Result")
_SAMPLE_ROWS = 2_000
_MOST_CACHED = 8
_SHOWN = 5
_NO_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class Opened:
    """A table that can be read."""

    name: str
    """Its name in messages."""
    frame: pl.LazyFrame
    """Its rows, in file order."""
    text: bool
    """Whether columns are text as it is written in a file, numbers included."""
    notes: tuple[str, ...]
    """What was found rather than given, and what was left out; one note a kind."""
    read: ReadOptions
    """The options that hold for the file, given or found."""
    keep: tuple[object, ...] = field(default=(), repr=False)
    """Temporary copies, which are deleted with this object."""
    parts: tuple[Opened, ...] = field(default=(), repr=False)
    """The files of a folder whose rows are below each other."""
    line: Callable[[int], int] | None = field(default=None, repr=False)
    """The line on which a row (from 0) of a text file begins."""

    def place(self, row: int) -> Place:
        """Where a row (from 0) comes from, for a message."""
        for part in self.parts:
            size = part.frame.select(pl.len()).collect().item()
            if row < size:
                return part.place(row)
            row -= size
        return Place(self.name, row + 1, None if self.line is None else self.line(row))


@dataclass(frozen=True)
class Place:
    """A row of a file."""

    file: str
    row: int
    """Number of the row, from 1, without the header."""
    line: int | None
    """Line of a text file."""


@dataclass(frozen=True)
class _File:
    """One file of a table, and what was found in it."""

    opened: Opened
    found: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


_cache: OrderedDict[object, Opened] = OrderedDict()
_lock = threading.Lock()


def opened(source: Source, read: ReadOptions = _NO_OPTIONS) -> Opened:
    """Open a table. A file that has not changed is examined once.

    Args:
        source: A file, a folder of files, a Delta table, or a frame.
        read: How text is read; what is None is found in the file.

    Raises:
        InputError: If the table is missing, empty, malformed, or of an unknown kind. The message names the
            file and the remedy.
    """
    if isinstance(source, pl.DataFrame):
        return Opened("the frame", _without_nulls(source.lazy(), read), False, (), read)
    path = Path(source)
    try:
        key = _key(path, read)
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise MissingFileError(f"{path} does not exist: check the path of the table") from error
        raise InputError(f"{path} can't be read ({reason_of(error)}): check the path of the table and the right to read it") from error
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    try:
        result = _folder(path, read) if path.is_dir() else _single(path, read)
    except OSError as error:
        raise InputError(f"{path} can't be read ({reason_of(error)}): check the path of the table and the right to read it") from error
    result = replace(result, frame=_without_nulls(result.frame, read))
    with _lock:
        _cache[key] = result
        while len(_cache) > _MOST_CACHED:
            _cache.popitem(last=False)
    return result


def source_name(source: Source) -> str:
    """Return the name of a table for messages."""
    return "the frame" if isinstance(source, pl.DataFrame) else str(source)


def names_its_table(read: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let the errors of a function name the file that is its first argument."""

    @wraps(read)
    def named(*arguments: Given.args, **options: Given.kwargs) -> Result:
        try:
            return read(*arguments, **options)
        except InputError as error:
            source = arguments[0] if arguments else options.get("source")
            known = type(error) in (InputError, MissingClassError) and isinstance(source, str | Path)
            if not known or str(source) in str(error):
                raise
            raise type(error)(f"{source}: {error}") from error

    return named


def unreadable(name: str) -> CorruptFileError:
    """The error of a file that a library refuses to read; its own words are of no use to the reader."""
    return CorruptFileError(f"{name} can't be read, it is damaged, truncated or of another format than its name says: write it again")


def _key(path: Path, read: ReadOptions) -> object:
    """A key that changes with the content of a file or folder."""
    status = path.stat()
    if not path.is_dir():
        return (path.absolute(), status.st_size, status.st_mtime_ns, status.st_ino, read)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(file, file.stat()) for file in files]
    return (path.absolute(), tuple((file, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in stats), read)


def _single(path: Path, read: ReadOptions) -> Opened:
    file = _file(path, read)
    notes = []
    if file.found:
        notes.append(f"{path} is read with {_listed(file.found)}, as found in the file")
    if file.left_out:
        notes.append(f"left out of {path}: {_listed(file.left_out)}")
    return replace(file.opened, notes=(*file.opened.notes, *notes))


def _file(path: Path, read: ReadOptions) -> _File:
    found = known_kind(path)
    if found == "parquet":
        return _File(Opened(str(path), _parquet([path]), False, (), read))
    if found == "json" or (found == "plain" and _looks_like_json(path)):
        return _json(path, read)
    return _csv(path, read)


def _looks_like_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(256).lstrip().startswith((b'{"', b'[{"'))


def _parquet(files: list[Path]) -> pl.LazyFrame:
    for file in files:
        with file.open("rb") as content:
            head = content.read(1 << 12)
        if not head.startswith(PARQUET):
            found = held_instead_of_parquet(head)
            if found is None:
                raise unreadable(str(file))
            raise CorruptFileError(f"{file} is {found[0]}, not the Parquet that its name says: {found[1]}")
        try:
            pl.scan_parquet(file, glob=False).collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(str(file)) from error
    return pl.scan_parquet(files, hive_partitioning=False, glob=False)


def _json(path: Path, read: ReadOptions) -> _File:
    text = as_utf8(path, read.encoding)
    frame = read_json(path, text.path)
    copy = TemporaryCopy(".parquet")
    with written():
        frame.write_parquet(copy.path, compression="lz4")
    found = (f"encoding {text.encoding}",) if text.encoding != "utf-8" and read.encoding is None else ()
    options = replace(read, encoding=text.encoding)
    return _File(Opened(str(path), pl.scan_parquet(copy.path, glob=False), False, (), options, (copy,)), found)


def _csv(path: Path, read: ReadOptions) -> _File:
    text = as_utf8(path, read.encoding)
    head = read_head(path, text.path, read.separator)
    said: tuple[str, ...] = ()
    if head.row_names:
        names_of_rows = next(name for name in ("row_names", "row_names_", "names_of_rows") if name not in head.names)
        named = with_name(text.path, head.start, f'"{names_of_rows}"{head.separator}')
        text = replace(text, path=named.path, copy=named)
        head = read_head(path, text.path, head.separator)
        said = (f"rows of {path} have a name before their first field, as R writes them: column {names_of_rows}",)
    names, notes = _column_names(path, head)
    shape = check_rows(path, text.path, head)
    copy = cleaned(text.path, shape) if shape.cuts else text.copy
    scanned = text.path if copy is None else copy.path
    frame = pl.scan_csv(
        scanned,
        glob=False,
        separator=head.separator,
        infer_schema=False,
        new_columns=names,
        quote_char='"' if shape.quoted else None,
        raise_if_empty=False,
    )
    try:
        sample = frame.head(max(_SAMPLE_ROWS // max(len(names) // 100, 1), 100)).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(str(path)) from error
    decimal, commas = _decimal(sample, read)
    found = []
    if text.encoding != "utf-8" and read.encoding is None:
        found.append(f"encoding {text.encoding}")
    if head.separator != "," and read.separator is None and not (head.separator == "\t" and ".tsv" in path.suffixes):
        found.append(f"separator {separator_name(head.separator)}")
    if commas and read.decimal is None:
        shown = ", ".join(commas[:_SHOWN]) + (", ..." if len(commas) > _SHOWN else "")
        found.append(f"a decimal comma ({shown})")
    options = replace(read, encoding=text.encoding, separator=head.separator, decimal=decimal)
    line = partial(line_of, scanned=scanned, text=text.path, shape=shape)
    result = Opened(str(path), frame, True, (*notes, *said), options, (copy, text.copy), line=line)
    return _File(result, tuple(found), tuple(_left_out(head, shape)))


def _column_names(path: Path, head: Head) -> tuple[list[str], tuple[str, ...]]:
    """The names of the columns; a column without a name gets one, and a note says so."""
    names = [name or f"column_{number}" for number, name in enumerate(head.names, 1)]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
    if repeated:
        raise InputError(f"{path} has several columns with the name {', '.join(map(repr, repeated[:_SHOWN]))}: rename them")
    unnamed = [name for name, given in zip(names, head.names, strict=True) if not given]
    return names, (f"columns of {path} without a name are called {', '.join(unnamed)}",) if unnamed else ()


def _left_out(head: Head, shape: Shape) -> list[str]:
    result = []
    if number := head.comments + shape.comments:
        result.append(f"{number} comment line{'s' if number > 1 else ''}")
    if head.left_out:
        result.append(f"the line{'s' if len(head.left_out) > 1 else ''} before the header ({_short(head.left_out[0])})")
    if shape.footers:
        result.append(f"the last line{'s' if len(shape.footers) > 1 else ''} ({_short(shape.footers[0])})")
    if shape.trailing:
        result.append("separators after the last field")
    return result


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _listed(items: tuple[str, ...]) -> str:
    return " and ".join([*([", ".join(items[:-1])] if items[:-1] else []), items[-1]])


def _decimal(sample: pl.DataFrame, read: ReadOptions) -> tuple[str | None, list[str]]:
    """The decimal mark of the file where its columns agree, and the columns with decimal commas."""
    seen: dict[str, list[str]] = {".": [], ",": []}
    # All columns are looked at in one query, and only those with commas or other marks one by one.
    number = pl.all().str.contains(r"\d[.,]\d")
    plain = pl.all().str.contains(r"^\s*[-+]?\d+\.\d{1,2}\s*$")
    numbers, plains = sample.select(number.sum()).row(0), sample.select(plain.sum()).row(0)
    for name, count, plain_count in zip(sample.columns, numbers, plains, strict=True):
        if not count:
            continue
        if plain_count > 0.9 * count:
            seen["."].append(name)
            continue
        cells = sample[name].filter(sample[name].str.contains(r"\d[.,]\d").fill_null(False))
        marks = find_marks(cells, read)
        if marks.evident and marks.decimal is not None and parse_numbers(cells, read)[1].mean() < 0.1:  # type: ignore[operator]
            seen[marks.decimal].append(name)
    agreed = "," if seen[","] and not seen["."] else "." if seen["."] and not seen[","] else None
    return read.decimal or agreed, seen[","]


def _without_nulls(frame: pl.LazyFrame, read: ReadOptions) -> pl.LazyFrame:
    """The frame without the texts that the user gives for "missing"."""
    if not read.null_values:
        return frame
    words = sorted({word.strip().lower() for word in read.null_values})
    column = pl.col(pl.String)
    return frame.with_columns(pl.when(~column.str.strip_chars().str.to_lowercase().is_in(words)).then(column))


def _folder(path: Path, read: ReadOptions) -> Opened:
    if is_store(path):
        raise UnsupportedError(
            f"{path} is a store of balancer prepare, which train, score, evaluate, compare and inspect read: give the table here"
        )
    if is_begun_store(path):
        raise MissingFileError(f"{path} is a store that is not finished: run the same balancer prepare command again, it continues")
    if (path / "_delta_log").is_dir():
        require("deltalake", f"{path} is a Delta table, which")
        return Opened(str(path), pl.scan_delta(str(path)), False, (), read)
    every = table_files(path)
    names = [file for file in every if file.stat().st_size or kind(file) == "parquet"] or every
    files = [_file(file, read) for file in names]
    opened_files = tuple(file.opened for file in files)
    parts = [_part(path, name, file) for name, file in zip(names, files, strict=True)]
    if all(part.types == parts[0].types for part in parts) and all(kind(name) == "parquet" for name in names):
        plain = all(part.frame is file.opened.frame for part, file in zip(parts, files, strict=True))
        frame = pl.scan_parquet(names, hive_partitioning=False, glob=False) if plain else pl.concat([part.frame for part in parts])
        return Opened(str(path), frame, False, (), read, parts=opened_files)
    decimals = {file.opened.read.decimal: name for name, file in zip(names, files, strict=True) if file.opened.text}
    if "," in decimals and "." in decimals:
        raise InputError(
            f"numbers have a decimal comma in {decimals[',']} and a decimal point in {decimals['.']}: write all files with the same mark"
        )
    if "," in decimals and not all(file.opened.text for file in files):
        raise InputError(f"{path} holds text with decimal commas ({decimals[',']}) beside other formats: write all files in one format")
    united = unite(parts)
    notes = []
    for phrases, text in (("found", "are read with {0}, as found in the files"), ("left_out", "have lines that are left out: {0}")):
        held = [file for file in files if getattr(file, phrases)]
        if held:
            notes.append(f"{len(held)} of {len(files)} files of {path} " + text.format(_listed(getattr(held[0], phrases))))
    notes.extend(repeated_rows(parts))
    if united.changed:
        shown = listed((f"{name} ({dtype})" for name, dtype in united.changed.items()), _SHOWN, longest=80)
        notes.append(f"columns whose type differs between the files of {path} are read with one that holds all values: {shown}")
    if united.absent:
        lacks = (f"{name} ({len(lacking)} of {len(files)}, first {Path(lacking[0]).name})" for name, lacking in united.absent.items())
        shown = listed(lacks, _SHOWN, longest=80)
        notes.append(f"columns that some files of {path} lack are empty there: {shown}")
    if len(names) < len(every):
        notes.append(f"left out of {path}: {counted(len(every) - len(names), 'empty file')}")
    notes.extend(dict.fromkeys(note for file in files[:_SHOWN] for note in file.opened.notes))
    first = next((file.opened.read for file in files if file.opened.text), read)
    options = replace(first, decimal=read.decimal or next((mark for mark in (",", ".") if mark in decimals), None))
    keep = tuple(kept for file in files for kept in file.opened.keep)
    return Opened(str(path), united.frame, any(file.opened.text for file in files), tuple(notes), options, keep, opened_files)


def _part(folder: Path, name: Path, file: _File) -> Part:
    frame = file.opened.frame
    types = dict(frame.collect_schema())
    added = partitions(folder, name, types)
    if added:
        frame = frame.with_columns(pl.lit(value, dtype=pl.String).alias(key) for key, value in added.items())
        types |= dict.fromkeys(added, pl.String())
    return Part(str(name), frame, types)
