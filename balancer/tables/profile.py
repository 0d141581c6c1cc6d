"""Profile of the columns of a table: what kind of values each one has, and how many.

What is special: columns of a CSV file are text, and examined by their distinct values, so that a column is
parsed once per value and not once per row. A null word (`NA`, `-`) does not change the kind of a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from balancer.tables.numbers import null_words, parse_numbers
from balancer.tables.options import ReadOptions

Kind = Literal["empty", "constant", "boolean", "integer", "number", "date", "time", "text", "other"]
"""`time` is a time of day without a date; `other` is a list, a struct or bytes."""

SHOWN = 3
"""Number of first values that a profile keeps."""
_MOST = 0.98
"""Share of the rows with a value that must be numbers (dates) in a column of numbers (dates). The other rows
are faults of the file, which the check of the column reports by row."""
_FAULTS = 0.05
"""Largest share of the distinct values that may be such faults: with more they are values of a category."""
_NEARLY_ALL, _FEW = 0.99, 5
"""Share of the rows that must be numbers (dates) where the others have one word, and most numbers of a
category, which a few numbers and a word are."""
_MANY = 100
"""Distinct numbers (dates) from which one word is a fault however frequent it is."""
_YES_NO = tuple(
    frozenset(pair.split())
    for pair in (
        *("yes no", "y n", "true false", "t f", "on off", "oui non", "o n", "ja nein", "j n", "ja nej", "ja nee"),
        *("si no", "sí no", "s n", "sim não", "sim nao", "tak nie", "ano ne", "да нет", "evet hayır"),
    )
)
_MOST_VERSIONS = 100
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[AaPp]\.?[Mm]\.?)?"
_DAY = "|".join(
    (
        r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}",
        r"\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})",
        r"\d{1,2}[-. ]?\p{L}{3,9}[-., ]{0,2}\d{2,4}",
        r"\p{L}{3,9}\.? \d{1,2},? \d{4}",
        r"(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])",
        # Months without a day.
        r"(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)\p{L}{0,6}[-/ ](?:\d{4}|\d{2})",
        r"(?:19|20)\d{2}[-/](?:0[1-9]|1[0-2])",
    )
)
_DATE = rf"^(?:\p{{L}}{{2,9}}\.?,? )?(?:{_DAY})(?:[T ,]{{1,2}}{_CLOCK}(?: ?(?:Z|UTC|GMT|[+-]\d{{2}}:?\d{{2}}))?)?$"
_COMPACT = r"^(?:19[7-9]\d|20\d{2})(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?)?$"


@dataclass(frozen=True)
class ColumnProfile:
    """What the values of a column are."""

    name: str
    """Name of the column."""
    kind: Kind
    """Kind of its values. `constant`: one value in every row."""
    rows: int
    """Rows of the table."""
    distinct: int
    """Distinct values, without missing ones; an estimate where the table was sampled."""
    missing: float
    """Share of the rows without a value."""
    first: tuple[str, ...]
    """The first distinct values, as text."""
    low: float | None = None
    """Smallest number."""
    high: float | None = None
    """Largest number."""
    whole: bool = False
    """Whether all numbers are whole."""
    digits: int | None = None
    """Number of digits, where every value is a whole number of as many digits."""
    clock: bool = False
    """Whether dates have a time of day."""
    words: float = 0.0
    """Share of the distinct texts that consist of several words."""
    length: float = 0.0
    """Mean number of characters of the distinct texts."""

    @property
    def present(self) -> int:
        """Rows with a value."""
        return round(self.rows * (1 - self.missing))

    @property
    def repeats(self) -> float:
        """Mean number of rows of a value."""
        return self.present / max(1, self.distinct)

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers."""
        return self.kind in ("integer", "number")

    @property
    def unique(self) -> bool:
        """Whether nearly every row has a value of its own."""
        return self.distinct >= 0.95 * self.present and self.present > 0


def profile(
    frame: pl.DataFrame, read: ReadOptions | None = None, *, rows: int | None = None, distinct: Mapping[str, int] | None = None
) -> dict[str, ColumnProfile]:
    """Profile every column.

    Args:
        frame: The table, or a sample of its rows.
        read: How numbers and null words are written, where columns are text.
        rows: Rows of the whole table; None: those of `frame`.
        distinct: Distinct values of the whole table by column; None: those of `frame`.

    Returns:
        The profiles by name, in the order of the columns.
    """
    read = read or ReadOptions()
    held = frame.height if rows is None else rows
    return {values.name: _column(values, read, held, None if distinct is None else distinct.get(values.name)) for values in frame}


def _column(values: pl.Series, read: ReadOptions, rows: int, distinct: int | None) -> ColumnProfile:
    dtype = values.dtype
    if dtype in (pl.List, pl.Array, pl.Struct, pl.Binary, pl.Object, pl.Duration):
        missing = values.null_count() / max(1, len(values))
        return ColumnProfile(values.name, "other", rows, distinct or 0, missing, ())
    if dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    elif dtype.is_float():
        values = values.fill_nan(None)
    counts = values.value_counts(name="\0n")
    given, times = counts[values.name], counts["\0n"]
    if values.dtype == pl.String:
        given = given.str.strip_chars()
        given = given.set(is_null_word(given, read), None)
    there = given.is_not_null()
    present = int(times.filter(there).sum())
    missing = 1 - present / max(1, len(values))
    given, times = given.filter(there), times.filter(there)
    here = given.n_unique()
    known = here
    if distinct is not None:
        # The estimate is some per cent off. Where no value of the sample is repeated, few are elsewhere.
        every = round(rows * (1 - missing))
        known = every if here == present and distinct >= 0.8 * every else max(here, distinct)
    head = values.head(2_000)
    head = head.drop_nulls()
    if head.dtype == pl.String:
        head = head.str.strip_chars()
        head = head.filter(~is_null_word(head, read))
    shown = (head if len(head) else given).unique(maintain_order=True).head(SHOWN)
    base = ColumnProfile(values.name, "empty", rows, known, missing, tuple(_shown(value) for value in shown))
    if not present:
        return base
    found = _text(given, times, read) if given.dtype == pl.String else _typed(given)
    if here == 1 and not missing:
        found["kind"] = "constant"
    return ColumnProfile(**{**vars(base), **found})


def is_null_word(values: pl.Series, read: ReadOptions) -> pl.Series:
    """Whether each text, without white space around it, means "missing" (null is False).

    Args:
        values: (N,) text.
        read: Further words.
    """
    words = sorted(null_words(read))
    short = values.str.len_bytes() <= max(map(len, (word.encode() for word in words)))
    return (values.str.to_lowercase().is_in(words) & short).fill_null(False)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def _typed(given: pl.Series) -> dict[str, object]:
    """Kind and figures of distinct values that have a type of their own."""
    dtype = given.dtype
    if dtype == pl.Boolean:
        return {"kind": "boolean"}
    if dtype in (pl.Date, pl.Datetime):
        return {"kind": "date", "clock": dtype == pl.Datetime}
    if dtype == pl.Time:
        return {"kind": "time"}
    return _figures(given.cast(pl.Float64), given.cast(pl.String) if dtype.is_integer() else None, integer=dtype.is_integer())


def _figures(numbers: pl.Series, text: pl.Series | None, *, integer: bool) -> dict[str, object]:
    """Range of distinct numbers, whether they are whole, and their digits.

    Args:
        numbers: (n,) the numbers.
        text: (n,) the numbers as written, if they are written without a decimal mark.
        integer: Whether they are of a type for whole numbers.
    """
    finite = numbers.filter(numbers.is_finite())
    whole = integer or bool((finite == finite.round(0)).all())
    found: dict[str, object] = {"kind": "integer" if integer else "number", "whole": whole}
    if len(finite):
        found |= {"low": finite.min(), "high": finite.max()}
    if whole and text is None and len(finite) and finite.abs().max() < 1e15:  # type: ignore[operator]
        text = finite.cast(pl.Int64).cast(pl.String)
    if whole and text is not None and bool(text.str.contains(r"^\d+$").all()):
        widths = text.str.len_bytes()
        found["digits"] = int(widths[0]) if widths.min() == widths.max() else None
        if found["digits"] in (8, 12, 14) and bool(text.str.contains(_COMPACT).all()):
            found |= {"kind": "date", "clock": found["digits"] != 8}
    return found


def _is_phone(given: pl.Series) -> bool:
    """Whether distinct texts (n,) are phone numbers with the prefix of a country."""
    return bool(given.str.contains(r"^\+[1-9][\d\u0020\u00a0()/.-]{6,}$").all()) and not given.str.contains(r"[.,]\d{1,2}$").any()


def _is_version(given: pl.Series, total: int) -> bool:
    """Whether distinct texts (n,) of `total` rows are versions, in which 1.10 is not 1.1.

    Numbers of a file have either all their zeros (1.10, 2.00) or none (1.1, 2.0).
    """
    if len(given) > _MOST_VERSIONS or total < 2 * len(given) or not given.str.contains(r"^\d{1,3}\.\d{1,3}$").all():
        return False
    digits = given.str.extract(r"\.(\d+)$", 1)
    return digits.str.len_bytes().n_unique() > 1 and bool(digits.str.contains(r"^\d+0$").any()) and bool(digits.str.contains(r"^\d$").any())


def _text(given: pl.Series, times: pl.Series, read: ReadOptions) -> dict[str, object]:
    """Kind and figures of distinct texts.

    Args:
        given: (n,) distinct texts.
        times: (n,) rows of each.
        read: How numbers are written.
    """
    total = int(times.sum())

    def mostly(good: pl.Series) -> bool:
        wrong = len(good) - int(good.sum())
        share = int(times.filter(good).sum()) / max(1, total)
        return (share >= _MOST and wrong <= _FAULTS * len(good)) or (
            wrong == 1 and ((share >= _NEARLY_ALL and len(good) > _FEW) or (share >= 0.5 and len(good) > _MANY))
        )

    if len(given) <= 8 and frozenset(given.str.to_lowercase()) in _YES_NO:
        return {"kind": "boolean"}
    numbers, wrong = parse_numbers(given, read)
    good = ~wrong & numbers.is_not_null()
    if mostly(good) and not _is_phone(given) and not _is_version(given, total):
        written = given.filter(good)
        integer = bool(written.str.contains(r"^[+-]?\d+$").all())
        found = _figures(numbers.filter(good), written if integer else None, integer=integer)
        # Digits after a leading zero are a code: 007 is not 7.
        if integer and bool(written.str.contains(r"^0\d").any()) and found["digits"] is not None:
            found["kind"] = "text"
        return found
    if mostly(given.str.contains(_DATE)):
        return {"kind": "date", "clock": bool(given.str.contains(_CLOCK).any())}
    if mostly(given.str.contains(f"^{_CLOCK}$")):
        return {"kind": "time"}
    words = float(given.str.contains(r"\S\s+\S").mean() or 0.0)  # type: ignore[arg-type]
    return {"kind": "text", "words": words, "length": float(given.str.len_chars().mean() or 0.0)}  # type: ignore[arg-type]
