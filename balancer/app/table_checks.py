"""Check a table for the page Train: uploads, roles that are not clear, a gap that fits, results at chance.

What is special: messages of the command line name flags. `page_words` replaces them by the fields of the
page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from balancer.data.delay import fitting_gap, in_words
from balancer.data.reading import collect, read_columns
from balancer.data.roles import resolve_spec
from balancer.data.spec import COLUMN_ROLES, LIST_ROLES
from balancer.errors import InputError
from balancer.evaluation.report_content import chance_warning
from balancer.tables.source import opened

FIELDS = {
    "entity": "Entity",
    "time": "Time",
    "label": "Label",
    "amount": "Amount",
    "id": "ID",
    "numeric": "Numeric",
    "categorical": "Categorical",
    "context": "Context",
    "negative": "Legitimate class",
    "label_delay": "Label delay",
    "split": "Split",
    "gap": "Gap",
    "train": "Training rows, %",
    "validation": "Validation rows, %",
    "test": "Test rows, %",
    "time_unit": "Unit of the time",
    "time_format": "Format of the time",
    "bad_rows": "Bad rows",
    "learner": "Detector",
    "policy": "Sampling weights",
    "history_length": "History length",
    "seed": "Seed",
    "budget": "Budget",
}
"""Titles of the fields of the page, by field of `TrainConfig`."""
_GAP_TOO_LONG = "the gap of "
_FLAG = r"--([a-z][a-z_-]*[a-z])"
_ENCODING = ((r"(?:name|give) (?:its|the|another) --encoding", "save it as UTF-8"), (r"the --encoding", "the encoding"))
_NEAR, _LIFT = 0.1, 2.0


def check_upload(path: Path) -> None:
    """Read an uploaded table whole, and delete it if it can't be used.

    Raises:
        InputError: It can't be read; the message is in the words of the page and names the remedy.
    """
    try:
        if opened(path).text:
            _refuse_zero_bytes(read_columns(path), path)
        elif not collect(opened(path).frame.head(1), path).height:
            raise InputError(f"{path} is empty: it has no rows")
    except InputError as error:
        path.unlink(missing_ok=True)
        raise InputError(page_words(str(error).replace(str(path), path.name))) from error


def _refuse_zero_bytes(frame: pl.DataFrame, path: Path) -> None:
    """Refuse a zero byte behind the part of a file from which its encoding is found."""
    for name in frame.columns:
        if frame[name].dtype == pl.String:
            row = frame[name].str.contains("\0", literal=True).arg_true()
            if len(row):
                raise InputError(
                    f"{path}: column {name}, row {row[0] + 1:,} holds a zero byte (NUL), which no text has: write the file again"
                )


def page_words(text: str) -> str:
    """Replace the flags in a message of the command line by the fields of the page.

    >>> page_words("name it with --label (or give --time none)")
    'name it with the field “Label” (or choose no column for “Time”)'
    """
    for pattern, words in _ENCODING:
        text = re.sub(pattern, words, text)
    text = text.replace(", or give validation a larger share", ", give validation a larger share, or draw the parts at random")
    text = re.sub(r"change (?:the shares(?:, dates or gap)? in )?\[split\]", "change the shares of the parts or the field “Gap”", text)
    text = re.sub(rf"\[split\] \w+ \({_FLAG}\)", lambda found: _field(found[1]), text)
    text = re.sub(r"\[split\] gap\b|\bgap(?= is ')", "“Gap”", text)
    text = re.sub(r"\blabel_delay\b", "“Label delay”", text)
    text = re.sub(rf"give {_FLAG} none\b", lambda found: f"choose no column for {_field(found[1], '')}", text)
    text = re.sub(rf"give (?:it|them|their unit|the unit) with {_FLAG}", lambda found: f"fill in {_field(found[1])}", text)
    return re.sub(_FLAG, lambda found: _field(found[1]), text)


def as_sentence(text: str) -> str:
    """Begin with a capital letter, unless the first word has an underscore, and end with a period."""
    first = text.split(" ", 1)[0]
    text = text if "_" in first else text[:1].upper() + text[1:]
    return text if text.endswith((".", ":", "!", "?")) else f"{text}."


def _field(flag: str, article: str = "the field ") -> str:
    name = flag.replace("-", "_")
    return f"{article}“{FIELDS[name]}”" if name in FIELDS else f"--{flag} of balancer train"


def unclear_roles(doubts: Sequence[str]) -> dict[str, str]:
    """The role that each doubt of an inspection is about, and the doubt; the first one of each role.

    A doubt about features belongs to the role `numeric`.
    """
    found: dict[str, str] = {}
    for doubt in doubts:
        names = (name.replace("-", "_") for name in re.findall(_FLAG, doubt))
        role = next((name for name in names if name in (*COLUMN_ROLES, *LIST_ROLES)), None)
        if role is not None:
            found.setdefault(role, doubt)
    return found


def candidates(doubt: str, columns: Sequence[str]) -> list[str]:
    """Sort the columns so that those which a doubt proposes are first."""
    proposed = re.search(r"\(([^()]*)\)", doubt)
    names = [] if proposed is None else [name.strip(" ?") for name in proposed[1].split(",")]
    return sorted(columns, key=lambda column: (column not in names, columns.index(column)))


def kept_lists(
    shown: Mapping[str, Sequence[str]], before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]], taken: set[str]
) -> dict[str, list[str]]:
    """The lists of features after another choice of the single roles.

    What was added or removed by hand stays so; what was found follows the new choice.

    Args:
        shown: Columns on the page, by role.
        before: Columns found with the single roles of before.
        now: Columns found with those of now.
        taken: Columns that have a single role.
    """
    by_hand = {name for role in LIST_ROLES for name in shown[role] if name not in before[role]}
    removed = {name for role in LIST_ROLES for name in before[role] if name not in shown[role]}
    kept: dict[str, list[str]] = {}
    for role in LIST_ROLES:
        found = [name for name in now[role] if name not in removed and name not in by_hand]
        kept[role] = [name for name in dict.fromkeys((*found, *(each for each in shown[role] if each in by_hand))) if name not in taken]
    return kept


def shorter_gap(source: Path, given: Mapping[str, Any], problems: Sequence[str]) -> tuple[str, str] | None:
    """A gap that fits, where a problem is that the gap is too long.

    Args:
        source: The table.
        given: Roles as `resolve_spec` takes them.
        problems: What the check of the table found.

    Returns:
        The gap as the field takes it and in words, or None.
    """
    if not any(_GAP_TOO_LONG in problem for problem in problems):
        return None
    gap = fitting_gap(source, resolve_spec(source, overrides=given))
    return None if gap is None else (f"{gap / 3600:g}h" if gap % 3600 == 0 and gap else f"{gap:g}", in_words(gap))


def weak_result(test: Mapping[str, Any]) -> str:
    """Say that a result is at or near the share of frauds, which a random ranking reaches; else empty."""
    chance = chance_warning(test)
    if chance:
        return page_words(chance.removeprefix("Warning: ")[:1].upper() + chance.removeprefix("Warning: ")[1:])
    precision, frauds, rows = test.get("average_precision"), test.get("positives"), test.get("rows")
    if precision is None or not frauds or not rows:
        return ""
    share = frauds / rows
    if precision >= _LIFT * share or (precision - share) / max(1e-9, 1 - share) >= _NEAR:
        return ""
    return (
        f"Average precision {precision:.3f} is hardly above the share of frauds, {share:.3f}, which a random ranking reaches: the fields say "
        "little about the label. Check the roles of the columns and the label."
    )
