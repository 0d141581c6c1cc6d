"""Check the columns that have a role; every error names the column, the first bad row and the remedy.

What is special: a check is a mask over the whole column, so the same code either raises on the first bad row
or, with `bad_rows="drop"`, counts the bad rows and leaves them out. Rows are counted from 1, without the
header.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.names import counted, quoted
from balancer.tables.numbers import currencies, read_numbers
from balancer.tables.options import ReadOptions
from balancer.tables.source import Opened
from balancer.tables.times import TimeForm, TimesResult, is_time, parse_times
from balancer.tables.type_names import type_name
from balancer.tables.values import is_nobody

BadRows = Literal["error", "drop"]
_NO_OPTIONS = ReadOptions()
_LONGEST_WORD = 30
_DROP_HINT = "or leave such rows out with --bad-rows drop"


@dataclass
class RowCheck:
    """Collects the bad rows of one table of `height` rows."""

    height: int
    bad_rows: BadRows
    where: str = "row"
    """The word for a row in messages: "row" or "past row"."""
    table: Opened | None = None
    """The table, whose file and line are named in messages."""
    roles: bool = True
    """Whether the command has flags for the roles of columns; one that scores has none."""
    notes: list[str] = field(default_factory=list)
    """What was done with values, for the user."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    keep: NDArray[np.bool_] = field(init=False)
    """(height,) whether a row has passed all checks so far."""

    def __post_init__(self) -> None:
        self.keep = np.ones(self.height, dtype=np.bool_)

    def reject(self, bad: NDArray[np.bool_], values: pl.Series, what: str, remedy: str) -> None:
        """Raise on the first bad row, or mark and count all bad rows.

        Args:
            bad: (height,) whether a row fails the check.
            values: (height,) the column.
            what: What is wrong, as the predicate of "row 3 ...".
            remedy: What to do.

        Raises:
            InputError: If a row is bad and `bad_rows` is "error".
        """
        bad = bad & self.keep
        if not bad.any():
            return
        if self.bad_rows == "drop":
            self.keep &= ~bad
            reason = f"{values.name}: {what}"
            self.dropped[reason] = self.dropped.get(reason, 0) + int(bad.sum())
            return
        row = int(np.argmax(bad))
        shown = "" if values[row] is None else f" ({quoted(values[row])})"
        raise InputError(f"{self.place(values.name, row)} {what}{shown}: {remedy}, {_DROP_HINT}")

    def place(self, column: str, row: int) -> str:
        """How a message names the row (from 0) of a column: with the file and line, if it has them."""
        if self.table is None:
            return f"column {column!r}: {self.where} {row + 1}"
        place = self.table.place(row)
        line = "" if place.line is None else f" (line {place.line})"
        return f"{place.file}: column {column!r}: {self.where} {place.row}{line}"


def _mask(values: pl.Series) -> NDArray[np.bool_]:
    return values.fill_null(False).to_numpy()


def check_number(values: pl.Series, check: RowCheck, *, optional: bool = False, read: ReadOptions = _NO_OPTIONS) -> NDArray[np.float64]:
    """Convert a numeric column, or a text column of numbers, to float64.

    Usual null words are null (:mod:`balancer.tables.numbers`). Other text is rejected, and infinite
    values are too unless they may be missing (`optional`).

    Args:
        values: (N,) the column.
        check: Collects the rejected rows.
        optional: Whether null and NaN are allowed; null becomes NaN. Otherwise they are rejected.
        read: How numbers are written.

    Returns:
        (N,) float64; 0 in rejected rows.

    Raises:
        InputError: If the column has another dtype, if its numbers can be read in two ways or are
            amounts in several currencies, or as `RowCheck.reject`.
    """
    name = values.name
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        found = read_numbers(values, read)
        numbers = found.values
        if found.marks.ambiguous is not None:
            row = found.marks.ambiguous
            raise InputError(
                f"{check.place(name, row)} ({values[row]!r}) can be a number of thousands or one with a decimal comma: "
                "give --thousands , or --decimal ,"
            )
        if not found.plain and len(several := currencies(values)) > 1:
            raise InputError(f"column {name!r} holds amounts in several currencies ({', '.join(several)}): convert them to one")
        if not found.plain and (cent := _other_unit(values, numbers)) is not None:
            raise InputError(
                f"{check.place(name, cent)} ({values[cent]!r}) has a per cent sign, and other rows have none: write all of them in one way, or "
                "leave the column out"
            )
        check.reject(_mask(found.wrong), values, "is text, not a number", "write a number" + _null_hint(values, found.wrong))
    elif values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null):
        numbers = values.cast(pl.Float64)
    else:
        raise InputError(f"column {name!r} is {type_name(values.dtype)}, not a number: name another column or convert it")
    if not optional:
        check.reject(_mask(numbers.is_null()), values, "is null", "give a value")
        check.reject(_mask(numbers.is_nan()), values, "is NaN", "give a value")
    infinite = numbers.is_infinite().fill_null(False)
    if optional and infinite.any():
        many = int((_mask(infinite) & check.keep).sum())
        check.notes.append(f"{counted(many, 'infinite value')} of column {name} {'is' if many == 1 else 'are'} read as missing")
        numbers = numbers.set(infinite, None)
    check.reject(_mask(numbers.is_infinite()), values, "is infinite", "give a finite value")
    if optional:
        too_large = _mask(numbers.fill_nan(None).abs() > float(np.finfo(np.float32).max))
        check.reject(too_large, values, "is beyond the range of 32-bit floats", "scale the column")
    out: NDArray[np.float64] = numbers.fill_null(float("nan") if optional else 0.0).to_numpy(writable=True)
    out[~check.keep] = 0.0
    return out


def _other_unit(values: pl.Series, numbers: pl.Series) -> int | None:
    """The first row with a per cent sign in a column (N,) in which other numbers have none."""
    cent = values.str.contains("[%‰]").fill_null(False) & numbers.is_not_null()
    if not cent.any() or not (~cent & numbers.is_not_null() & (numbers != 0)).any():
        return None
    return int(np.argmax(_mask(cent)))


def _null_hint(values: pl.Series, wrong: pl.Series) -> str:
    """The flag that makes a word mean "missing", where the first text (N,) that is no number has no digit."""
    first = str(values[int(np.argmax(_mask(wrong)))]).strip() if wrong.any() else ""
    if (
        not first.isprintable()
        or not first
        or "," in first
        or any(character.isdigit() for character in first)
        or len(first) > _LONGEST_WORD
    ):
        return ""
    return f", or --null-values {shlex.quote(first)} if it means missing"


def check_time(
    values: pl.Series, check: RowCheck, *, form: str | None = None, unit: str | None = None, usual: TimeForm | None = None
) -> NDArray[np.float64]:
    """Convert a column of times to seconds (:func:`balancer.tables.times.parse_times`).

    Null and values that can't be read are rejected.

    Args:
        values: (N,) the column.
        check: Collects the rejected rows.
        form: The format that was given.
        unit: The unit that was given.
        usual: How the training table was read.

    Returns:
        (N,) float64 seconds; 0 in rejected rows.

    Raises:
        InputError: If the column has another dtype, if its format is ambiguous, or as `RowCheck.reject`.
    """
    return accept_times(parse_times(values, form=form, unit=unit, usual=usual), values, check)


def accept_times(result: TimesResult, values: pl.Series, check: RowCheck) -> NDArray[np.float64]:
    """Reject the rows of `values` (N,) that have no time, and return the seconds of the others.

    Raises:
        InputError: As `RowCheck.reject`; a column with times in two formats is named as such.
    """
    check.reject(result.missing, values, "has no time (null)", "give a time")
    bad = result.bad & check.keep
    text = values.dtype == pl.String and result.found.form is not None and "--time-format" not in result.why
    if bad.any() and text and check.bad_rows == "error" and not (good := ~result.bad & ~result.missing).all() and good.any():
        row, other = int(np.argmax(bad)), int(np.argmax(good))
        what = "has times in two formats" if is_time(str(values[row])) else "has text that is not a time"
        raise InputError(
            f"column {values.name!r} {what}: {quoted(values[other])} ({check.where} {other + 1}) but {quoted(values[row])} ({check.where} {row + 1}): "
            f"write all times in one format, {_DROP_HINT}"
        )
    check.reject(result.bad, values, result.why, "write all times in one way" if result.found else "give a time")
    return np.where(check.keep, result.seconds, 0.0)


def check_unique(values: pl.Series, check: RowCheck, *, repeated: NDArray[np.bool_] | None = None) -> None:
    """Reject rows without an id, and rows that repeat the id of an earlier row.

    Args:
        values: (N,) the ids.
        check: Collects the rejected rows.
        repeated: (N,) whether a row repeats the id of an earlier row, where it was found before.
    """
    missing = values.is_null()
    if values.dtype.is_float():
        missing = missing | values.is_nan()
    elif values.dtype == pl.String:
        missing = missing | (values.str.strip_chars() == "")
    flag = ", or give --id none" if check.roles else ""
    check.reject(_mask(missing), values, "has no id (null)", f"give one{flag}")
    repeated = _mask(~values.is_first_distinct()) if repeated is None else repeated
    check.reject(repeated, values, "repeats the id of an earlier row", f"make the ids distinct{flag}")


def check_entity(forms: Sequence[pl.Series], shown: pl.Series, check: RowCheck) -> None:
    """Reject rows without an entity, because their history would be that of all such rows.

    Args:
        forms: (N,) normal forms of the column of the entity, or of the columns that it is joined from. An
            entity needs at least one of them.
        shown: (N,) values for the message.
        check: Collects the rejected rows.

    Raises:
        InputError: As `RowCheck.reject`.
    """
    missing = [form.is_null() for form in forms]
    no_name = [null | is_nobody(form) for null, form in zip(missing, forms, strict=True)]
    nothing, nobody = (np.logical_and.reduce([_mask(each) for each in masks]) for masks in (missing, no_name))
    check.reject(nothing, shown, "has no entity (null, NaN or blank)", "give one")
    check.reject(nobody, shown, "has a word for a missing value as its entity, so all such rows would be one", "give the entity")
