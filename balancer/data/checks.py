"""Check the columns that have a role; every error names the column, the first bad row and the remedy.

What is special: a check is a mask over the whole column, so the same code either raises on the first bad row
or, with `bad_rows="drop"`, counts the bad rows and leaves them out. Rows are counted from 1, without the
header.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.spec import label_text, nearest
from balancer.errors import InputError, MissingClassError

BadRows = Literal["error", "drop"]
_DROP_HINT = "or leave such rows out with --bad-rows drop"
_LATEST = 1e11
"""Latest numeric time in seconds (the year 5138); a larger number must be in milliseconds or a smaller
unit."""
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y%m%d")
_TIMES = ("", " %H:%M", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S%.f")
_ZONES = ("T%H:%M:%S%.f%#z", " %H:%M:%S%.f%#z", "T%H:%M:%S%.fZ")
TIME_FORMATS = tuple([day + time for time in _TIMES for day in _DATES] + [_DATES[0] + zone for zone in _ZONES])
_NOT_FRAUD = ("legit", "legitimate", "genuine", "normal", "benign", "ok", "good", "nonfraud", "non-fraud", "non_fraud", "not_fraud")
NEGATIVE_NAMES = frozenset({"0", "false", "no", "n", "negative", *_NOT_FRAUD})
MAX_CLASSES = 50


@dataclass
class RowCheck:
    """Collects the bad rows of one table of `height` rows."""

    height: int
    bad_rows: BadRows
    where: str = "row"
    """The word for a row in messages: "row" or "past row"."""
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
        shown = "" if values[row] is None else f" ({values[row]!r})"
        raise InputError(f"column {values.name!r}: {self.where} {row + 1} {what}{shown}: {remedy}, {_DROP_HINT}")


def _mask(values: pl.Series) -> NDArray[np.bool_]:
    return values.fill_null(False).to_numpy()


def check_number(values: pl.Series, check: RowCheck, *, optional: bool = False) -> NDArray[np.float64]:
    """Convert a numeric column, or a text column of numbers, to float64.

    Other text and infinite values are rejected.

    Args:
        values: (N,) the column.
        check: Collects the rejected rows.
        optional: Whether null and NaN are allowed; null becomes NaN. Otherwise they are rejected.

    Returns:
        (N,) float64; 0 in rejected rows.

    Raises:
        InputError: If the column has another dtype, or as `RowCheck.reject`.
    """
    name = values.name
    if values.dtype == pl.String:
        numbers = values.str.strip_chars().cast(pl.Float64, strict=False)
        check.reject(_mask(numbers.is_null() & values.is_not_null()), values, "is text, not a number", "write a number")
    elif values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null):
        numbers = values.cast(pl.Float64)
    else:
        raise InputError(f"column {name!r} is {values.dtype}, not a number: name another column or convert it")
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


def check_time(values: pl.Series, check: RowCheck) -> NDArray[np.float64]:
    """Convert a column of datetimes, dates, numbers of seconds, or text in one format to seconds.

    Null and values that can't be read are rejected.

    Args:
        values: (N,) the column.
        check: Collects the rejected rows.

    Returns:
        (N,) float64 seconds; 0 in rejected rows.

    Raises:
        InputError: If the column has another dtype, if its format is ambiguous, or as `RowCheck.reject`.
    """
    check.reject(_mask(values.is_null()), values, "has no time (null)", "give a time")
    if values.dtype == pl.String:
        seconds = values.str.strip_chars().cast(pl.Float64, strict=False)
        if seconds.null_count() > 0.5 * len(values):
            return _moments(_parse_times(values, check), check)
        check.reject(
            _mask(seconds.is_null() & values.is_not_null()),
            values,
            "is not a number of seconds, although other rows are",
            "write all times in one format",
        )
        values = seconds
    if values.dtype in (pl.Datetime, pl.Date):
        return _moments(values, check)
    if not values.dtype.is_numeric():
        raise InputError(f"column {values.name!r} is {values.dtype}, not a time: give a datetime, a date, a number of seconds or text")
    numbers = values.cast(pl.Float64)
    check.reject(_mask(~numbers.is_finite()), values, "is not a finite time", "give a time")
    check.reject(_mask(numbers.abs() > _LATEST), values, "is after the year 5000 if read as seconds", "convert milliseconds to seconds")
    return np.where(check.keep, numbers.fill_null(0.0).to_numpy(), 0.0)


def _moments(values: pl.Series, check: RowCheck) -> NDArray[np.float64]:
    micro = values.cast(pl.Datetime("us", getattr(values.dtype, "time_zone", None))).to_physical()
    return np.where(check.keep, micro.fill_null(0).to_numpy() / 1e6, 0.0)


def _parse_times(values: pl.Series, check: RowCheck) -> pl.Series:
    """Convert text to datetimes with the one format that reads all rows.

    Raises:
        InputError: If no format reads the text, if rows have different formats, or if day and month can't be
            distinguished.
    """
    text = values.str.strip_chars()
    head = text.drop_nulls().head(200)
    read = {form: int(_parse(head, form).is_not_null().sum()) for form in TIME_FORMATS}
    best = max(read.values())
    if best == 0:
        raise InputError(
            f"column {values.name!r}: {head[0]!r} can't be read as a time: write times as 2024-05-31 13:45:00, or as a number of seconds"
        )
    parsed = {form: _parse(text, form) for form, count in read.items() if count == best}
    form = min(parsed, key=lambda name: (parsed[name].null_count(), parsed[name][0] is None))
    # Two formats read the same text as different times: day and month can't be distinguished.
    rival = next((name for name, other in parsed.items() if bool((other != parsed[form]).any())), None)
    if rival is not None:
        raise InputError(f"column {values.name!r}: {head[0]!r} can be read as {form!r} or {rival!r}: write times as 2024-05-31 13:45:00")
    unreadable = _mask(parsed[form].is_null() & values.is_not_null())
    if unreadable.any() and check.bad_rows == "error":
        row, good = int(np.argmax(unreadable)), int(np.argmin(unreadable))
        other = any(_parse(text[row : row + 1], name)[0] is not None for name in TIME_FORMATS)
        what = "has times in two formats" if other else "has text that is not a time"
        raise InputError(
            f"column {values.name!r} {what}: {values[good]!r} ({check.where} {good + 1}) but {values[row]!r} ({check.where} {row + 1}): "
            f"write all times in one format, {_DROP_HINT}"
        )
    check.reject(unreadable, values, "can't be read in the time format of the column", "write all times in one format")
    return parsed[form]


def _parse(text: pl.Series, form: str) -> pl.Series:
    zoned = form.endswith("z")
    moments = text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC" if zoned else None)
    return moments.dt.replace_time_zone(None) if zoned else moments


def label_names(values: pl.Series, unlabelled: str | None) -> pl.Series:
    """Convert labels to text, with the same spelling for 1, 1.0 and "1".

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
        raise InputError(f"column {values.name!r} is {values.dtype}, which can't be a label: name another column with --label")
    text = values.cast(pl.String).str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "${1}")
    text = text.set(text == "", None)
    return text if unlabelled is None else text.set(text == label_text(unlabelled), None)


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
        found = f"only the class {names[0]!r}" if names else "no value at all"
        raise MissingClassError(
            f"column {text.name!r} has {found}: training needs rows of at least two classes, check --label and --unlabelled"
        )
    if len(names) > MAX_CLASSES:
        raise InputError(f"column {text.name!r} has {len(names)} distinct values, too many for classes: name another column with --label")
    if negative is None:
        usual = [name for name in names if name.lower() in NEGATIVE_NAMES]
        if len(usual) != 1:
            raise InputError(f"column {text.name!r} has the classes {names[:10]}: name the legitimate one with --negative")
        negative = usual[0]
    elif negative not in names:
        raise InputError(f"column {text.name!r} has no row of the class given by --negative, {negative!r}: {nearest(negative, names)}")
    rest = [name for name in names if name != negative]
    numeric = all(name.lstrip("-").isdigit() for name in rest)
    return (negative, *sorted(rest, key=(lambda name: (int(name), name)) if numeric else (lambda name: (0, name))))


def check_label(text: pl.Series, classes: tuple[str, ...], check: RowCheck) -> NDArray[np.int16]:
    """Convert labels to (N,) int16 class indices, -1 where unlabelled; reject labels outside `classes`."""
    codes = text.cast(pl.Enum(list(classes)), strict=False).to_physical().cast(pl.Int16)
    check.reject(
        _mask(codes.is_null() & text.is_not_null()), text, f"is none of the known classes {list(classes)[:10]}", "correct the label"
    )
    return codes.fill_null(-1).to_numpy()


def check_unique(values: pl.Series, check: RowCheck) -> None:
    """Reject null ids, and rows that repeat the id of an earlier row."""
    check.reject(_mask(values.is_null()), values, "has no id (null)", "give one, or give --id none")
    check.reject(_mask(~values.is_first_distinct()), values, "repeats the id of an earlier row", "make the ids distinct, or give --id none")


def check_present(values: pl.Series, check: RowCheck) -> None:
    """Reject rows without an entity."""
    check.reject(_mask(values.is_null()), values, "has no entity (null)", "give one")
