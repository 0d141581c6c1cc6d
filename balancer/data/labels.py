"""Read a column of labels: which values are one class, which are no label, which class is the legitimate one.

What is special: words such as `unknown` or `pending` beside two classes are no class, and words for yes and
no have one meaning in one column (`Y`, `yes` and `1`). `balancer inspect` and `balancer train` read labels
with the same functions, so that both count the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checks import RowCheck
from balancer.data.spec import nearest
from balancer.errors import InputError, MissingClassError
from balancer.names import counted, quoted
from balancer.tables.numbers import NULL_WORDS
from balancer.tables.type_names import type_name
from balancer.tables.values import normal_form, normal_text

MAX_CLASSES = 50
EMPTY = "empty"
"""Name of the class of the rows without a value, where `--negative empty` says that they are legitimate."""
_NOT_FRAUD = ("legit", "legitimate", "genuine", "normal", "benign", "ok", "good", "nonfraud", "non-fraud", "non_fraud", "not_fraud")
_NO = ("no", "n", "non", "nein", "nee", "nej", "nei", "não", "nao", "ne", "nie", "hayır", "нет", "否")
_FALSE = ("false", "faux", "falsch", "falso", "falsk", "onwaar")
NEGATIVE_NAMES = frozenset({"0", "negative", *_NO, *_FALSE, *_NOT_FRAUD})
"""Usual names of the legitimate class, in lower case."""
_OPPOSITES = (("f", "t"), ("-1", "1"), ("-1", "+1"), ("-", "+"), ("off", "on"), ("neg", "pos"), ("legal", "fraud"))
"""Names that only mean the legitimate class beside their opposite."""
_YES = ("1", "yes", "y", "oui", "ja", "si", "sí", "sim", "ano", "tak", "evet", "да", "是")
_TRUE = ("true", "t", "vrai", "wahr", "verdadero", "verdadeiro", "vero", "sand", "waar")
_SAYS_NO, _SAYS_YES = frozenset({"0", "f", *_NO, *_FALSE}), frozenset({*_YES, *_TRUE})
"""Words that mean no and yes."""
_PAIRS = (("0", "1"), ("no", "yes"), ("n", "y"), ("false", "true"))
"""Names of the two classes, where a column holds them in several spellings."""
_OPEN = (
    "unknown|unk|pending|n/a|?|??|tbd|tba|tbc|undetermined|undecided|unclear|unsure|uncertain|open|in progress|in review|under review|"
    "under investigation|investigating|not reviewed|unreviewed|not yet reviewed|to review|to be reviewed|review|not checked|unchecked|"
    "not labelled|not labeled|unlabelled|unlabeled|no label|not known|not available|unbekannt|offen|inconnu|en cours|desconocido|"
    "desconhecido|sconosciuto|maybe"
)
UNKNOWN_NAMES = frozenset({*_OPEN.split("|"), *NULL_WORDS} - {""})
"""Words that say that the class of a row is not known, in lower case."""

_NO_NUMBERS = frozenset({"-1", "-9", "-99", "-999", "-9999", "99", "999", "9999"})
"""Numbers that say the same beside 0 and 1."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of N rows."""

    text: pl.Series
    """(N,) name of the class as text; null where a row is unlabelled."""
    notes: tuple[str, ...] = ()
    """What was found in the column, for the user."""
    unknown: tuple[str, ...] = ()
    """Values that were taken as "unlabelled"."""
    missing: int = 0
    """Rows without a value, where they have no class."""


def read_labels(values: pl.Series, *, unlabelled: str | None, negative: str | None, classes: Sequence[str] | None = None) -> Labels:
    """Read a column of labels.

    Args:
        values: (N,) the column.
        unlabelled: The value that means "unknown", besides null and NaN.
        negative: The value that means legitimate; empty text or `empty` means the rows without a value.
        classes: Names of the classes, if they are known.

    Raises:
        InputError: If the column has a dtype that can't be a label.
    """
    return labels_of(label_names(values, unlabelled), negative=negative, classes=classes)


def labels_of(text: pl.Series, *, negative: str | None, classes: Sequence[str] | None = None, rows: pl.Series | None = None) -> Labels:
    """As `read_labels`, for labels as `label_names` gives them.

    Args:
        text: (N,) names as text; null where a row is unlabelled.
        negative: As for `read_labels`.
        classes: As for `read_labels`.
        rows: (N,) rows that each value stands for; None: one each.
    """
    notes: list[str] = []
    if negative is not None and (negative.strip() or EMPTY).lower() == EMPTY and not (text.str.to_lowercase() == EMPTY).any():
        text = text.fill_null(EMPTY)
    counts = _counts(text, rows)
    text, unknown = _without_unknown(text, counts, negative, classes)
    if unknown:
        number = sum(counts[name] for name in unknown)
        listed = ", ".join(map(quoted, unknown))
        notes.append(f"{text.name}: {counted(number, 'row')} with {listed} count as unlabelled (--unlabelled names one such value)")
    text, note = _one_spelling(text, {name: count for name, count in counts.items() if name not in unknown}, classes)
    return Labels(text, (*notes, *([note] if note else [])), unknown, _nulls(text, rows))


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


def _counts(text: pl.Series, rows: pl.Series | None = None) -> dict[str, int]:
    """Rows of each name, the most frequent first; each of (N,) values stands for (N,) `rows`, or for one."""
    if rows is None:
        counts = text.drop_nulls().value_counts(name="n").rows()
    else:
        counts = pl.DataFrame({"name": text, "n": rows}).drop_nulls("name").group_by("name").agg(pl.col("n").sum()).rows()
    return dict(sorted(((str(name), int(count)) for name, count in counts), key=lambda each: (-each[1], each[0])))


def _nulls(text: pl.Series, rows: pl.Series | None) -> int:
    """Rows without a value, counted as `_counts` does."""
    return text.null_count() if rows is None else int(rows.filter(text.is_null()).sum())


def _without_unknown(
    text: pl.Series, counts: dict[str, int], negative: str | None, classes: Sequence[str] | None
) -> tuple[pl.Series, tuple[str, ...]]:
    """Take words that say "not known" as no label, unless they may be a class."""
    kept = {str(normal_text(name)).lower() for name in (classes or ())} | ({str(normal_text(negative)).lower()} if negative else set())
    words = UNKNOWN_NAMES | _NO_NUMBERS if {"0", "1"} <= set(counts) else UNKNOWN_NAMES
    unknown = tuple(name for name in counts if name.lower() in words and name.lower() not in kept)
    if not unknown or len(counts) > MAX_CLASSES:
        return text, ()
    rest = [name for name in counts if name not in unknown]
    # `none` beside kinds of attacks, and `-` beside `+`, are the legitimate class and not "unknown".
    if classes is None and negative is None and not (_usual(rest) or (len(rest) == 1 and rest[0].lower() in _SAYS_YES)):
        return text, ()
    if classes is None and _opposite(list(counts)):
        return text, ()
    return text.set(text.is_in(unknown).fill_null(False), None), unknown


def _one_spelling(text: pl.Series, counts: dict[str, int], classes: Sequence[str] | None) -> tuple[pl.Series, str | None]:
    """Give all words for no one name, and all words for yes, where the column holds nothing else."""
    names = list(counts)
    if classes is not None or len(names) < 3 or not {name.lower() for name in names} <= _SAYS_NO | _SAYS_YES:
        return text, None
    lower = text.str.to_lowercase()
    groups = [[name for name in names if name.lower() in words] for words in (_SAYS_NO, _SAYS_YES)]
    if not all(groups):
        return text, None
    spelled = {name.lower(): name for name in reversed(names)}
    pair = next((pair for pair in _PAIRS if set(pair) <= set(spelled)), (groups[0][0].lower(), groups[1][0].lower()))
    for group, name in zip(groups, pair, strict=True):
        text = text.set(lower.is_in([each.lower() for each in group]).fill_null(False), spelled[name])
    what = " and ".join(f"{', '.join(map(quoted, group))} are one class" for group in groups if len(group) > 1)
    return text, f"{text.name}: words for yes and no in several spellings: {what}"


def find_classes(text: pl.Series, negative: str | None, rows: pl.Series | None = None) -> tuple[str, ...]:
    """List the class names, the negative class first, the others in numeric or else alphabetical order.

    Args:
        text: (N,) labels as text (`read_labels`).
        negative: The negative class; None: the one with a usual name. Empty text: the rows without a value.
        rows: (N,) rows that each value stands for; None: one each.

    Raises:
        MissingClassError: If there are fewer than two classes, or none with the name `negative`.
        InputError: If there are too many classes, or if the negative class is ambiguous.
    """
    names = list(_counts(text, rows))
    if len(names) < 2:
        found = f"only the class {quoted(names[0])}" if names else "no value at all"
        empty = _nulls(text, rows)
        also = ""
        if empty and names and names[0].lower() not in NEGATIVE_NAMES:
            also = f"; if the {counted(empty, 'row')} without a label are legitimate, give --negative empty"
        raise MissingClassError(
            f"column {text.name!r} has {found}: training needs rows of at least two classes, check --label and --unlabelled{also}"
        )
    if len(names) > MAX_CLASSES:
        raise InputError(f"column {text.name!r} has {len(names)} distinct values, too many for classes: name another column with --label")
    if negative is None:
        usual = _usual(names)
        if len(usual) != 1:
            open_ = [name for name in names if name.lower() in UNKNOWN_NAMES]
            also = f", and with --unlabelled what is no label ({', '.join(map(quoted, open_))}?)" if open_ else ""
            raise InputError(f"column {text.name!r} has the classes {few_names(names)}: name the legitimate one with --negative{also}")
        negative = usual[0]
    negative = str(normal_text(negative) or EMPTY)
    negative = EMPTY if negative not in names and negative.lower() == EMPTY else negative
    if negative not in names:
        same = _same_meaning(negative, names)
        if same is None:
            raise InputError(f"column {text.name!r} has no row of the class given by --negative, {negative!r}: {nearest(negative, names)}")
        negative = same
    rest = [name for name in names if name != negative]
    numeric = all(name.lstrip("-").isdigit() for name in rest)
    return (negative, *sorted(rest, key=(lambda name: (int(name), name)) if numeric else (lambda name: (0, name))))


def _same_meaning(negative: str, names: list[str]) -> str | None:
    """The one of two words for yes and no that means the same as a name of the class that is not there."""
    for words in (_SAYS_NO, _SAYS_YES):
        found = [name for name in names if name.lower() in words]
        if negative.lower() in words and len(found) == 1 and all(name.lower() in _SAYS_NO | _SAYS_YES for name in names):
            return found[0]
    return None


def few_names(names: Sequence[str]) -> str:
    """The first names of classes in alphabetical order, as a list."""
    names = sorted(names)
    return f"[{', '.join(map(quoted, names[:10]))}{', ...' if len(names) > 10 else ''}]"


def _usual(names: Sequence[str]) -> list[str]:
    """The names that mean the legitimate class."""
    return [name for name in names if name.lower().rstrip(".") in NEGATIVE_NAMES] or _opposite(names)


def _opposite(names: Sequence[str]) -> list[str]:
    """The negative one of two names that are opposites."""
    lower = {name.lower(): name for name in names}
    return next(([lower[no]] for no, yes in _OPPOSITES if len(names) == 2 and set(lower) == {no, yes}), [])


def check_label(text: pl.Series, classes: tuple[str, ...], check: RowCheck) -> NDArray[np.int16]:
    """Convert labels to (N,) int16 class indices, -1 where unlabelled; reject labels outside `classes`.

    Classes of an earlier version may have another spelling, so they are compared by their normal form too.
    """
    known = [str(normal_text(name)) for name in classes]
    lowered = [name.lower() for name in known]
    if len(known) == 2 and lowered[0] in _SAYS_NO and lowered[1] in _SAYS_YES:
        # Another file may say the same in other words: true for 1, no for 0.
        lower = text.str.to_lowercase()
        for name, words in zip(known, (_SAYS_NO, _SAYS_YES), strict=True):
            text = text.set((lower.is_in(list(words)) & ~text.is_in(known)).fill_null(False), name)
    codes = text.cast(pl.Enum(known if len(set(known)) == len(known) else list(classes)), strict=False).to_physical().cast(pl.Int16)
    wrong = (codes.is_null() & text.is_not_null()).fill_null(False).to_numpy()
    check.reject(wrong, text, f"is none of the known classes {few_names(classes)}", "correct the label")
    return codes.fill_null(-1).to_numpy()
