"""The role of one column as a feature, from its profile and its name, with the reason.

What is special: a number is a measure or a code. Codes (a merchant category, a postal code, a device) have
no order, so they are categories whatever their type. They are known by their name, or by digits of one width
that repeat and leave most numbers between them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from balancer.data.role_names import is_code, is_context, is_count, is_id, is_personal, is_second_label, is_time, may_be_second_label, rank
from balancer.names import listed
from balancer.tables.profile import ColumnProfile

MAX_CATEGORIES = 100
"""Most distinct values of any text column that is inferred to be categorical."""
MAX_REPEATED = 1_000
"""Most distinct values of a text column that is inferred to be categorical where its values repeat often."""
FEW_VALUES = 10
"""Most distinct values of an integer column that is inferred to be categorical whatever its name."""
_OFTEN = 20
"""Rows of a value, on average, in a column whose values repeat often."""
_SELDOM = 5
"""Fewest rows of a value, on average, in a column of codes: rarer values can't be learned."""
_KEY_DIGITS = 9
"""A whole number of as many digits in every row is a key: a card, an account, a phone."""

EMPTY = "empty, or the same in every row"
UNIQUE = "different in nearly every row"
DATE = "dates and times of day besides the time"
TEXT = "text or codes with too many distinct values"
LATER = "a second label, or known only after it"
STATIC = "the same in all rows of one {entity}, so that accounts would be memorised"
OTHER = "lists, structures, bytes or durations (give these as numbers)"
UNNAMED = "without a role"
KINDS = (LATER, EMPTY, UNIQUE, DATE, TEXT, STATIC, OTHER, UNNAMED)
"""Why columns are left out, in the order of the notes."""
_NAMED = 5
"""Names that a note lists."""


@dataclass(frozen=True)
class Choice:
    """The role of a column."""

    role: str
    """A key of the spec, or "" where the column is left out."""
    reason: str
    """Why, in a few words."""
    kind: str = ""
    """One of `KINDS` where the column is left out."""


def out(kind: str, reason: str = "") -> Choice:
    """Leave a column out."""
    return Choice("", reason or kind, kind)


def is_fact(column: ColumnProfile) -> bool:
    """Whether a column whose name has a word of the label may be a fact about the past or about others."""
    many = column.numeric and column.distinct > FEW_VALUES and rank("label", column.name) is None
    return may_be_second_label(column.name) and (many or not is_second_label(column.name)) and column.kind not in ("date", "time")


def was_feature(column: ColumnProfile) -> bool:
    """Whether a version that used no column of integers took the column as a feature."""
    return column.kind == "number" or (column.kind in ("text", "boolean") and column.distinct <= MAX_CATEGORIES)


def feature_role(column: ColumnProfile, *, context: bool = True, separates: bool = False) -> Choice:
    """Decide what a column is for the model.

    Args:
        column: Its profile.
        context: Whether columns may become context, whose earlier labels are features.
        separates: Whether the column alone separates the classes; asked of a fact only (`is_fact`).
    """
    name, kind = column.name, column.kind
    if is_fact(column):
        if separates:
            return out(LATER, "by its name about the label, and it alone separates the classes")
    elif is_second_label(name) or (may_be_second_label(name) and kind in ("date", "time")):
        return out(LATER, "by its name known after the label" if kind in ("date", "time") else "by its name a second label")
    if kind == "empty":
        return out(EMPTY, "empty")
    if kind == "constant":
        return out(EMPTY, "the same in every row")
    if kind == "other":
        return out(OTHER, OTHER)
    if kind in ("date", "time"):
        return out(DATE, "a date besides the time" if kind == "date" else "a time of day besides the time")
    fraction = column.numeric and not column.whole
    if context and is_context(name) and not fraction and kind != "boolean" and not (column.unique and column.rows >= _OFTEN):
        return Choice("context", "by its name the other side of a row")
    if kind == "boolean":
        return Choice("categorical", "yes or no")
    return _number(column) if column.numeric else _text(column)


def _number(column: ColumnProfile) -> Choice:
    name, often = column.name, column.repeats >= _OFTEN
    if not column.whole:
        return Choice("numeric", "numbers")
    if is_time(name) and column.kind != "constant" and column.distinct > MAX_CATEGORIES:
        return out(DATE, "by its name a time besides the time")
    if column.unique and column.rows >= _OFTEN:
        if is_id(name) or (column.digits or 0) >= _KEY_DIGITS or _is_row_number(column):
            return out(UNIQUE, "a number of its own in each row")
        if is_code(name):
            return out(TEXT, "by its name a code, too many values")
        return Choice("numeric", "whole numbers")
    if is_code(name) or (column.digits or 0) >= _KEY_DIGITS:
        return _code(column, "by its name a code" if is_code(name) else f"keys of {column.digits} digits")
    measure = is_count(name)
    if column.kind == "integer" and not measure and (column.distinct <= 2 or (column.distinct <= FEW_VALUES and often)):
        return Choice("categorical", "whole numbers, few values")
    if not measure and (column.digits or 0) >= 4 and column.repeats >= _SELDOM and _is_sparse(column):
        return _code(column, f"codes of {column.digits} digits")
    # A column of a float type is a measure, even where its values happen to be whole and few.
    return Choice("numeric", "whole numbers" if column.kind == "integer" else "numbers with decimals, all whole")


def _code(column: ColumnProfile, why: str) -> Choice:
    if column.distinct > MAX_CATEGORIES and column.repeats < _SELDOM:
        return out(TEXT, f"{why}, too many values")
    return Choice("categorical", why)


def _is_row_number(column: ColumnProfile) -> bool:
    assert column.low is not None
    assert column.high is not None
    return column.high - column.low + 1 <= 1.02 * column.rows


def _is_sparse(column: ColumnProfile) -> bool:
    assert column.low is not None
    assert column.high is not None
    return column.distinct < 0.5 * (column.high - column.low + 1)


def _text(column: ColumnProfile) -> Choice:
    name = column.name
    if column.unique and column.rows >= _OFTEN:
        return out(UNIQUE, "a text of its own in each row")
    if column.distinct <= MAX_CATEGORIES:
        return Choice("categorical", "text, few values")
    if not is_personal(name):
        if column.distinct <= MAX_REPEATED and column.repeats >= _OFTEN:
            return Choice("categorical", "text, values repeat often")
        if column.words < 0.1 and column.repeats >= _SELDOM and (is_code(name) or column.length <= 40):
            return Choice("categorical", "codes; the most frequent count")
    return out(TEXT, "text, too many values")


def notes(choices: Iterable[tuple[str, Choice]], entity: str | None) -> list[str]:
    """One line for each reason for which columns are left out.

    Args:
        choices: Name and choice of each column.
        entity: Name of the entity column.
    """
    found: dict[str, list[str]] = {}
    for name, choice in choices:
        if not choice.role:
            found.setdefault(choice.kind, []).append(name)
    return [f"left out, {kind.format(entity=entity)}: {some(found[kind])}" for kind in KINDS if kind in found]


def some(names: list[str]) -> str:
    """List the first names, and count the others.

    >>> some(["a", "b"]), some(list("abcdefgh"))
    ('a, b', 'a, b, c, d, e and 3 more')
    """
    more = len(names) - _NAMED
    return listed((name if name.strip() else repr(name) for name in names[:_NAMED]), _NAMED) + (f" and {more} more" if more > 0 else "")
