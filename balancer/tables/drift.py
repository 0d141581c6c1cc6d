"""Columns whose type differs from file to file of one table, and columns that some files lack.

What is special: only a type that holds every value of all files exactly is chosen. Where the types alone do
not show it (whole numbers beside floats), the values are examined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from balancer.errors import InputError
from balancer.tables.type_names import type_name
from balancer.tables.values import normal_form

_EXACT = 1 << 53
_ISO = r"^(?:\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?)?$"
_UNITS = ("ms", "us", "ns")


@dataclass(frozen=True)
class Part:
    """One file of a table."""

    name: str
    frame: pl.LazyFrame
    types: dict[str, pl.DataType]


@dataclass(frozen=True)
class United:
    """The files of a table as one frame."""

    frame: pl.LazyFrame
    changed: dict[str, str]
    """Columns of several types, and the type they have now."""
    absent: dict[str, list[str]]
    """Columns that some files lack, and the names of these files."""


def unite(parts: list[Part]) -> United:
    """Put the rows of several files below each other.

    Args:
        parts: The files, in the order of their rows.

    Raises:
        InputError: If a column has types that no type holds exactly; the message names both files, the column
            and both types. Also if files have no column in common.
    """
    columns = list(dict.fromkeys(name for part in parts for name in part.types))
    _check_names(parts, columns)
    targets: dict[str, pl.DataType] = {}
    changed: dict[str, str] = {}
    absent: dict[str, list[str]] = {}
    for name in columns:
        holders = [part for part in parts if name in part.types]
        if len(holders) < len(parts):
            absent[name] = [part.name for part in parts if name not in part.types]
        targets[name] = holders[0].types[name]
        if any(part.types[name] != targets[name] for part in holders):
            targets[name] = _common(name, holders)
            changed[name] = type_name(targets[name])
    frames = [part.frame.select(_converted(part, name, targets[name]) for name in columns) for part in parts]
    return United(pl.concat(frames), changed, absent)


def _check_names(parts: list[Part], columns: list[str]) -> None:
    first = parts[0]
    for part in parts[1:]:
        common = len(part.types.keys() & first.types.keys())
        if 2 * common <= min(len(part.types), len(first.types)):
            raise InputError(
                f"{first.name} and {part.name} are different tables, {common} of their columns have the same name: "
                "give one table, or one folder for each"
            )
    by_case: dict[str, str] = {}
    for name in columns:
        other = by_case.setdefault(name.strip().lower(), name)
        if other != name and not any(name in part.types and other in part.types for part in parts):
            files = [next(part.name for part in parts if each in part.types) for each in (other, name)]
            raise InputError(f"column {other!r} of {files[0]} is {name!r} in {files[1]}: write the name in one way")


def _common(name: str, holders: list[Part]) -> pl.DataType:
    """The type that holds the values of a column in all files."""
    first: dict[pl.DataType, Part] = {}
    for part in holders:
        first.setdefault(part.types[name], part)
    first.pop(pl.Null(), None)
    types = list(first)
    result = types[0]
    for dtype in types[1:]:
        wider = _wider(result, dtype)
        if wider is None:
            raise _lossy(name, first[types[0]], first[dtype], types[0], dtype)
        result = wider
    timed = any(isinstance(part.types[name], pl.Date | pl.Datetime) for part in holders)
    for part in holders:
        for check in _checks(name, part.types[name], result, timed=timed):
            if not part.frame.select(check.fill_null(True).all()).collect().item():
                other = next(other for other in holders if other.types[name] != part.types[name])
                raise _lossy(name, other, part, other.types[name], part.types[name])
    return result


def _lossy(name: str, first: Part, second: Part, a: pl.DataType, b: pl.DataType) -> InputError:
    return InputError(
        f"column {name!r} is {type_name(a)} in {first.name} and {type_name(b)} in {second.name}, and no type holds the values of both: "
        "write the column with one type"
    )


def _wider(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    """The type that may hold the values of two types; the values decide where it may not."""
    if a == b:
        return a
    for first, second in ((a, b), (b, a)):
        for rule in _RULES:
            found = rule(first, second)
            if found is not None:
                return found
    return None


def _texts(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    scalar = b.is_numeric() or isinstance(b, pl.Boolean | pl.Date | pl.Datetime | pl.Categorical | pl.Enum | pl.String)
    return pl.String() if isinstance(a, pl.String | pl.Categorical | pl.Enum) and scalar else None


def _numbers(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    if a.is_integer() and (b.is_integer() or isinstance(b, pl.Boolean)):
        unsigned = all(isinstance(dtype, pl.UInt8 | pl.UInt16 | pl.UInt32 | pl.UInt64 | pl.Boolean) for dtype in (a, b))
        return pl.UInt64() if unsigned and isinstance(a, pl.UInt64) else pl.Int64()
    if a.is_float() and (b.is_numeric() or isinstance(b, pl.Boolean)):
        return pl.Float64()
    if isinstance(a, pl.Decimal) and isinstance(b, pl.Decimal):
        return pl.Decimal(38, max(a.scale, b.scale))
    if isinstance(a, pl.Decimal) and b.is_integer():
        return pl.Decimal(38, a.scale)
    return None


def _times(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    if isinstance(a, pl.Datetime) and isinstance(b, pl.Date):
        return None if a.time_zone else a
    if isinstance(a, pl.Datetime) and isinstance(b, pl.Datetime) and (a.time_zone is None) == (b.time_zone is None):
        unit = max(a.time_unit, b.time_unit, key=_UNITS.index)
        return pl.Datetime(unit, a.time_zone if a.time_zone == b.time_zone else "UTC")
    return None


_RULES: tuple[Callable[[pl.DataType, pl.DataType], pl.DataType | None], ...] = (_texts, _numbers, _times)


def _checks(name: str, dtype: pl.DataType, target: pl.DataType, *, timed: bool) -> list[pl.Expr]:
    """Conditions on the values of a file under which `target` holds them exactly."""
    column = pl.col(name)
    if isinstance(dtype, pl.String) and timed:  # times of other files are written in this form
        return [column.str.strip_chars().str.contains(_ISO)]
    if dtype == target or isinstance(dtype, pl.Null):
        # Text that stands beside times must be written as they are converted.
        return []
    if dtype.is_integer() and target.is_float():
        return [column.is_between(-_EXACT, _EXACT)]
    if isinstance(dtype, pl.Decimal) and target.is_float():
        return [column.cast(pl.Float64).cast(dtype, strict=False) == column]
    if isinstance(dtype, pl.UInt64) and isinstance(target, pl.Int64):
        return [column <= (1 << 63) - 1]
    if isinstance(dtype, pl.Datetime | pl.Date) and isinstance(target, pl.Datetime):
        return [column.cast(target, strict=False).is_not_null() & (column.cast(target, strict=False).cast(dtype) == column)]
    return []


def _converted(part: Part, name: str, target: pl.DataType) -> pl.Expr:
    dtype = part.types.get(name)
    if dtype is None:
        return pl.lit(None, dtype=target).alias(name)
    column = pl.col(name)
    if dtype == target:
        return column
    if isinstance(target, pl.String):
        return column.cast(pl.String) if isinstance(dtype, pl.Categorical | pl.Enum) else _as_text(column, dtype)
    if isinstance(dtype, pl.Datetime) and isinstance(target, pl.Datetime) and dtype.time_zone != target.time_zone:
        column = column.dt.convert_time_zone("UTC")
    return column.cast(target)


def _as_text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is None:
        return column.dt.to_string("%Y-%m-%d %H:%M:%S%.f")
    return column.map_batches(normal_form, return_dtype=pl.String)
