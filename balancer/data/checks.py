"""Check the columns that have a role; every error names the column, the first bad row and the remedy.

What is special: a check is a mask over the whole column, so the same code either raises on the first bad row
or, with `bad_rows="drop"`, counts the bad rows and leaves them out. Rows are counted from 1, without the
header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.spec import nearest
from balancer.errors import InputError, MissingClassError
from balancer.names import quoted
from balancer.tables.numbers import currencies, read_numbers
from balancer.tables.options import ReadOptions
from balancer.tables.source import Opened
from balancer.tables.times import TimeForm, TimesResult, is_time, parse_times
from balancer.tables.type_names import type_name
from balancer.tables.values import is_nobody, normal_form, normal_text

BadRows = Literal["error", "drop"]
_NO_OPTIONS = ReadOptions()
_DROP_HINT = "or leave such rows out with --bad-rows drop"
_NOT_FRAUD = ("legit", "legitimate", "genuine", "normal", "benign", "ok", "good", "nonfraud", "non-fraud", "non_fraud", "not_fraud")
_NO = ("no", "n", "non", "nein", "nee", "nej", "nei", "não", "nao", "ne", "nie", "hayır", "нет", "否")
_FALSE = ("false", "faux", "falsch", "falso", "falsk", "onwaar")
NEGATIVE_NAMES = frozenset({"0", "negative", *_NO, *_FALSE, *_NOT_FRAUD})
"""Usual names of the legitimate class, in lower case."""
_OPPOSITES = (("f", "t"), ("-1", "1"), ("-1", "+1"), ("-", "+"), ("off", "on"), ("neg", "pos"), ("legal", "fraud"))
"""Names that only mean the legitimate class beside their opposite."""
MAX_CLASSES = 50


@dataclass
class RowCheck:
    """Collects the bad rows of one table of `height` rows."""

    height: int
    bad_rows: BadRows
    where: str = "row"
    """The word for a row in messages: "row" or "past row"."""
    table: Opened | None = None
    """The table, whose file and line are named in messages."""
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

    Usual null words are null (:mod:`balancer.tables.numbers`). Other text and infinite values are rejected.

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
        check.reject(_mask(found.wrong), values, "is text, not a number", "write a number")
    elif values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null):
        numbers = values.cast(pl.Float64)
    else:
        raise InputError(f"column {name!r} is {type_name(values.dtype)}, not a number: name another column or convert it")
    if not optional:
        check.reject(_mask(numbers.is_null()), values, "is null", "give a value")
        check.reject(_mask(numbers.is_nan()), values, "is NaN", "give a value")
    check.reject(_mask(numbers.is_infinite()), values, "is infinite", "give a finite value")
    if optional:
        too_large = _mask(numbers.fill_nan(None).abs() > float(np.finfo(np.float32).max))
        check.reject(too_large, values, "is beyond the range of 32-bit floats", "scale the column")
    out: NDArray[np.float64] = numbers.fill_null(float("nan") if optional else 0.0).to_numpy(writable=True)
    out[~check.keep] = 0.0
    return out


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


_SAYS_NO, _SAYS_YES = ("0", "false", "no", "n", "f"), ("1", "true", "yes", "y", "t")
"""Words that mean no and yes, opposites at the same place."""


def label_names(values: pl.Series, unlabelled: str | None) -> pl.Series:
    """Convert labels to their normal form, with the same spelling for 1, 1.0 and "1".

    Args:
        values: (N,) the column.
        unlabelled: The value that means "unknown", besides null and NaN.

    Returns:
        (N,) text, null where a row is unlabelled.

    Raises:
        InputError: If the column has a dtype that can't be a label.
    """
    if values.dtype.is_float():
        values = values.fill_nan(None)
    if not (values.dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Null) or values.dtype.is_numeric()):
        raise InputError(f"column {values.name!r} is {type_name(values.dtype)}, which can't be a label: name another column with --label")
    text = normal_form(values)
    return text if unlabelled is None else text.set(text == normal_text(unlabelled), None)


def find_classes(text: pl.Series, negative: str | None) -> tuple[str, ...]:
    """List the class names, the negative class first, the others in numeric or else alphabetical order.

    Args:
        text: (N,) labels as text (`label_names`).
        negative: The negative class; None: the one with a usual name.

    Raises:
        MissingClassError: If there are fewer than two classes, or none with the name `negative`.
        InputError: If there are too many classes, or if the negative class is ambiguous.
    """
    counts = text.drop_nulls().value_counts(name="n").sort("n", descending=True)
    names = counts[text.name].to_list()
    if len(names) < 2:
        found = f"only the class {quoted(names[0])}" if names else "no value at all"
        raise MissingClassError(
            f"column {text.name!r} has {found}: training needs rows of at least two classes, check --label and --unlabelled"
        )
    if len(names) > MAX_CLASSES:
        raise InputError(f"column {text.name!r} has {len(names)} distinct values, too many for classes: name another column with --label")
    if negative is None:
        usual = [name for name in names if name.lower() in NEGATIVE_NAMES] or _opposite(names)
        if len(usual) != 1:
            raise InputError(f"column {text.name!r} has the classes {_few(names)}: name the legitimate one with --negative")
        negative = usual[0]
    negative = str(normal_text(negative))
    if negative not in names:
        raise InputError(f"column {text.name!r} has no row of the class given by --negative, {negative!r}: {nearest(negative, names)}")
    rest = [name for name in names if name != negative]
    numeric = all(name.lstrip("-").isdigit() for name in rest)
    return (negative, *sorted(rest, key=(lambda name: (int(name), name)) if numeric else (lambda name: (0, name))))


def _few(names: Sequence[str]) -> str:
    """The first names of classes, as a list."""
    return f"[{', '.join(map(quoted, names[:10]))}{', ...' if len(names) > 10 else ''}]"


def _opposite(names: list[str]) -> list[str]:
    """The negative one of two names that are opposites."""
    lower = {name.lower(): name for name in names}
    return next(([lower[no]] for no, yes in _OPPOSITES if len(names) == 2 and set(lower) == {no, yes}), [])


def check_label(text: pl.Series, classes: tuple[str, ...], check: RowCheck) -> NDArray[np.int16]:
    """Convert labels to (N,) int16 class indices, -1 where unlabelled; reject labels outside `classes`.

    Classes of an earlier version may have another spelling, so they are compared by their normal form too.
    """
    known = [str(normal_text(name)) for name in classes]
    pair = next((pair for pair in zip(_SAYS_NO, _SAYS_YES, strict=True) if tuple(name.lower() for name in known) == pair), None)
    if pair is not None:  # another file may say the same in other words: true for 1, no for 0
        lower = text.str.to_lowercase()
        for name, words in zip(known, (_SAYS_NO, _SAYS_YES), strict=True):
            text = text.set((lower.is_in(words) & ~text.is_in(known)).fill_null(False), name)
    codes = text.cast(pl.Enum(known if len(set(known)) == len(known) else list(classes)), strict=False).to_physical().cast(pl.Int16)
    check.reject(_mask(codes.is_null() & text.is_not_null()), text, f"is none of the known classes {_few(classes)}", "correct the label")
    return codes.fill_null(-1).to_numpy()


def check_unique(values: pl.Series, check: RowCheck) -> None:
    """Reject rows without an id, and rows that repeat the id of an earlier row."""
    missing = values.is_null()
    if values.dtype.is_float():
        missing = missing | values.is_nan()
    elif values.dtype == pl.String:
        missing = missing | (values.str.strip_chars() == "")
    check.reject(_mask(missing), values, "has no id (null)", "give one, or give --id none")
    check.reject(_mask(~values.is_first_distinct()), values, "repeats the id of an earlier row", "make the ids distinct, or give --id none")


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
