"""The files of a folder that are one table.

What is special: hidden files and what Spark leaves beside its parts are no tables. Text and Parquet in one
folder are one table only if they are not two copies of the same rows. Folders such as `country=FR` give a
column that the files lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from balancer.errors import InputError
from balancer.tables.kinds import kind

_TIME_KEYS = ("date", "day", "dt", "ds", "year", "month", "hour", "week", "time", "y", "m", "d", "h")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_TIME_NAMES = ("date", "time", "timestamp", "datetime", "moment", "ts", "_at", "_on")


def table_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its table, sorted by path.

    Raises:
        InputError: If there are none, or if two files seem to be the same rows in two formats.
    """
    files = [file for file in folder.rglob("*") if file.is_file() and not _hidden(file.relative_to(folder))]
    files = sorted(file for file in files if kind(file) is not None and (file.suffix or _extra(file)))
    main = [file for file in files if kind(file) != "plain" and _ending(file) != ".json"]
    chosen = main or [file for file in files if _ending(file) == ".json"] or files
    if not chosen:
        raise InputError(f"{folder} has no .parquet file, CSV or JSON lines: give a folder of such files, or a single file")
    stems: dict[str, Path] = {}
    for file in chosen:
        stem = str(file)[: -len("".join(_endings(file)))]
        other = stems.setdefault(stem, file)
        if other is not file:
            raise InputError(f"{other} and {file} have the same name, so that rows may be there twice: remove one of them")
    return chosen


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _extra(file: Path) -> bool:
    return file.suffix == "" and file.name.startswith("part")


def _endings(file: Path) -> list[str]:
    packed = file.suffix.lower() in (".gz", ".zst")
    inner = Path(file.stem).suffix if packed else ""
    return [inner, file.suffix]


def _ending(file: Path) -> str:
    return next((ending.lower() for ending in _endings(file) if ending), "")


def partitions(folder: Path, file: Path, types: Mapping[str, pl.DataType]) -> dict[str, str | None]:
    """The values that the names of folders such as `country=FR` give to a file.

    A key that the file has as a column is left out, and so is a part of the date where the file has a time.

    Args:
        folder: The folder of the table.
        file: A file in it.
        types: The columns of the file.
    """
    found: dict[str, str | None] = {}
    for part in file.relative_to(folder).parts[:-1]:
        key, equals, value = part.partition("=")
        if equals and key and key not in types:
            found[key] = None if value == _NO_VALUE else unquote(value)
    timed = any(isinstance(dtype, pl.Datetime | pl.Date) or _names_time(name) for name, dtype in types.items())
    return {key: value for key, value in found.items() if not (timed and key.lower() in _TIME_KEYS)}


def _names_time(name: str) -> bool:
    lower = name.lower()
    return any(lower == word or lower.endswith(word) for word in _TIME_NAMES)
