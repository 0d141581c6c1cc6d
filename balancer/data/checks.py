"""Checks of the columns that have a role: each complaint names the column, the first bad row and the remedy.

What is special: a check is a mask over the whole column, so the same code either raises on its first row or, with `bad_rows="drop"`, counts
its rows and leaves them out. Rows are counted from 1, without a header.
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
_DROP_HINT = "or leave such rows out by --bad-rows drop"
_LATEST = 1e11
"""Seconds (the year 5138) beyond which a numeric time is surely in milliseconds or finer."""
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
    """How a row is called in messages: "row", or "history row"."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    keep: NDArray[np.bool_] = field(init=False)
    """(height,) rows without fault so far."""

    def __post_init__(self) -> None:
        self.keep = np.ones(self.height, dtype=np.bool_)

    def reject(self, bad: NDArray[np.bool_], values: pl.Series, what: str, remedy: str) -> None:
        """Raise `InputError` on the first bad row, or mark and count all of them."""
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
    """(N,) float64 of a numeric column, or of text that spells numbers; text, infinite, and (unless `optional`) null and NaN are rejected.

    With `optional`, null becomes NaN. Rejected rows hold 0.
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
    """(N,) float64 seconds of a datetime, date, number of seconds, or text in one format; null and unreadable rows are rejected."""
    check.reject(_mask(values.is_null()), values, "has no time (null)", "give a time")
    if values.dtype == pl.String:
        seconds = values.str.strip_chars().cast(pl.Float64, strict=False)
        if seconds.null_count() > 0.5 * len(values):
            return _moments(_parse_times(values, check), check)
        check.reject(
            _mask(seconds.is_null() & values.is_not_null()),
            values,
            "is no number of seconds as other rows are",
            "write all times in one form",
        )
        values = seconds
    if values.dtype in (pl.Datetime, pl.Date):
        return _moments(values, check)
    if not values.dtype.is_numeric():
        raise InputError(f"column {values.name!r} is {values.dtype}, not a time: give a datetime, a date, a number of seconds or text")
    numbers = values.cast(pl.Float64)
    check.reject(_mask(~numbers.is_finite()), values, "is no finite time", "give a time")
    check.reject(_mask(numbers.abs() > _LATEST), values, "lies beyond the year 5000 as seconds", "convert milliseconds to seconds")
    return np.where(check.keep, numbers.fill_null(0.0).to_numpy(), 0.0)


def _moments(values: pl.Series, check: RowCheck) -> NDArray[np.float64]:
    micro = values.cast(pl.Datetime("us", getattr(values.dtype, "time_zone", None))).to_physical()
    return np.where(check.keep, micro.fill_null(0).to_numpy() / 1e6, 0.0)


def _parse_times(values: pl.Series, check: RowCheck) -> pl.Series:
    """Text to datetime by the one format that reads it all; raises on two formats, and where day and month can't be told apart."""
    text = values.str.strip_chars()
    head = text.drop_nulls().head(200)
    reads = {form: int(_parse(head, form).is_not_null().sum()) for form in TIME_FORMATS}
    best = max(reads.values())
    if best == 0:
        raise InputError(
            f"column {values.name!r}: {head[0]!r} can't be read as a time: write times as 2024-05-31 13:45:00, or as a number of seconds"
        )
    parsed = {form: _parse(text, form) for form, count in reads.items() if count == best}
    form = min(parsed, key=lambda name: (parsed[name].null_count(), parsed[name][0] is None))
    # Both read a row, to different moments: day and month can't be told apart.
    rival = next((name for name, other in parsed.items() if bool((other != parsed[form]).any())), None)
    if rival is not None:
        raise InputError(f"column {values.name!r}: {head[0]!r} may be {form!r} or {rival!r}: write times as 2024-05-31 13:45:00")
    unread = _mask(parsed[form].is_null() & values.is_not_null())
    if unread.any() and check.bad_rows == "error":
        row, good = int(np.argmax(unread)), int(np.argmin(unread))
        other = any(_parse(text[row : row + 1], name)[0] is not None for name in TIME_FORMATS)
        what = "has times in two formats" if other else "holds text that is no time"
        raise InputError(
            f"column {values.name!r} {what}: {values[good]!r} ({check.where} {good + 1}) but {values[row]!r} ({check.where} {row + 1}): "
            f"write all times in one format, {_DROP_HINT}"
        )
    check.reject(unread, values, "can't be read as a time of the column's format", "write all times in one format")
    return parsed[form]


def _parse(text: pl.Series, form: str) -> pl.Series:
    zoned = form.endswith("z")
    moments = text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC" if zoned else None)
    return moments.dt.replace_time_zone(None) if zoned else moments


def label_names(values: pl.Series, unlabelled: str | None) -> pl.Series:
    """Labels as text, in one spelling for 1, 1.0 and "1"; null where unlabelled (null, NaN, or the value `unlabelled`)."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
    if not (values.dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Null) or values.dtype.is_numeric()):
        raise InputError(f"column {values.name!r} is {values.dtype}, which can't be a label: name another by --label")
    text = values.cast(pl.String).str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "${1}")
    text = text.set(text == "", None)
    return text if unlabelled is None else text.set(text == label_text(unlabelled), None)


def find_classes(text: pl.Series, negative: str | None) -> tuple[str, ...]:
    """Class names, the negative one first, the others in numeric or else alphabetical order; raises `InputError` where it is in doubt."""
    counts = text.drop_nulls().value_counts(name="n").sort("n", descending=True)
    names = counts[text.name].to_list()
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no value at all"
        raise MissingClassError(f"column {text.name!r} has {found}: training needs rows of at least two classes, check --label and --unlabelled")
    if len(names) > MAX_CLASSES:
        raise InputError(f"column {text.name!r} has {len(names)} distinct values, too many for classes: name another column by --label")
    if negative is None:
        usual = [name for name in names if name.lower() in NEGATIVE_NAMES]
        if len(usual) != 1:
            raise InputError(f"column {text.name!r} has the classes {names[:10]}: name the legitimate one by --negative")
        negative = usual[0]
    elif negative not in names:
        raise InputError(f"column {text.name!r} has no row of the class given by --negative, {negative!r}: {nearest(negative, names)}")
    rest = [name for name in names if name != negative]
    numeric = all(name.lstrip("-").isdigit() for name in rest)
    return (negative, *sorted(rest, key=(lambda name: (int(name), name)) if numeric else (lambda name: (0, name))))


def check_label(text: pl.Series, classes: tuple[str, ...], check: RowCheck) -> NDArray[np.int16]:
    """(N,) int16 class index, -1 = unlabelled; a label outside `classes` is rejected."""
    codes = text.cast(pl.Enum(list(classes)), strict=False).to_physical().cast(pl.Int16)
    check.reject(_mask(codes.is_null() & text.is_not_null()), text, f"is none of the known classes {list(classes)[:10]}", "mend the label")
    return codes.fill_null(-1).to_numpy()


def check_unique(values: pl.Series, check: RowCheck) -> None:
    """Reject null ids, and each row whose id an earlier row has."""
    check.reject(_mask(values.is_null()), values, "has no id (null)", "give one, or name no --id")
    check.reject(
        _mask(~values.is_first_distinct()), values, "repeats the id of an earlier row", "ids must be distinct: mend it, or name no --id"
    )


def check_present(values: pl.Series, check: RowCheck) -> None:
    """Reject rows without an entity."""
    check.reject(_mask(values.is_null()), values, "has no entity (null)", "give one")
