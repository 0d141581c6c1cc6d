"""Infer the roles of columns from their names and dtypes, where no role was given.

What is special: where two columns match a role, neither is chosen and the error names the flag. Columns that
are constant within each entity are left out even if they look useful: a model would memorise accounts with
them (which card already had a fraud) instead of learning behaviour.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from balancer.data.reading import Source, collect, column_types, scan
from balancer.data.spec import COLUMN_ROLES, LIST_ROLES, SPLIT_KEYS, Spec, SplitSpec, nearest, normalise, read_spec_file
from balancer.errors import InputError

__all__ = ["Spec", "SplitSpec", "resolve_spec"]

MAX_CATEGORIES = 100
"""Most distinct values of a text column that is inferred to be categorical."""

# The first pattern that matches any column decides; two columns that match the same pattern are ambiguous.
_NAMES: dict[str, tuple[str, ...]] = {
    "entity": (r"(card|customer|cust|account|acct|client|user|entity|cardholder)(_?(id|no|num|number|key))?|cc_num|pan",),
    "label": (r"is_?fraud|(tx_)?fraud(_?(label|flag|type|class))?|label|class|target|isfraud|fraud_bool",),
    "amount": (r"(tx_?|trans(action)?_?)?(amount|amt)|value",),
    "id": (r"(transaction|trans|tx|txn|event)_?(id|no|num|number)|id|row_?id",),
    "time": (
        r"(tx_?|trans(action)?_?|event_?)?(time|datetime|date_?time|timestamp|ts|unix_time|date|at)|time_?stamp|trans_date_trans_time",
    ),
}
_CONTEXT = re.compile(r"(terminal|merchant|shop|store|device|pos|atm|beneficiary|payee)(_?(id|no|num|number|name))?", re.IGNORECASE)
_LABEL_LIKE = re.compile(r"fraud|chargeback|label|target", re.IGNORECASE)


def resolve_spec(
    source: Source, *, spec_file: str | Path | None = None, overrides: Mapping[str, Any] | None = None, need_label: bool = True
) -> Spec:
    """Resolve the roles of the columns of a table.

    Flags take precedence over the spec file. The remaining roles are inferred from names and dtypes where
    they are unambiguous.

    Args:
        source: The table.
        spec_file: TOML file with the keys of `Spec`.
        overrides: The same keys, from flags. None means "not given", `"none"` means "no column has this
            role". `train`, `validation`, `test` and `gap` may be given here instead of in `split`.
        need_label: Whether a label column is required.

    Raises:
        InputError: If a key is unknown, a column is missing, or a role is ambiguous; the message names the
            flag.
    """
    types = column_types(source)
    given = read_spec_file(spec_file) if spec_file is not None else {}
    flags = {key: value for key, value in (overrides or {}).items() if value is not None}
    border = {key: flags.pop(key) for key in SPLIT_KEYS if key in flags}
    flags = normalise(flags)
    split = {**given.get("split", {}), **flags.get("split", {}), **border}
    given = {**given, **flags, "split": split, "read": {**given.get("read", {}), **flags.get("read", {})}}
    _check_columns(given, types)
    given["time"] = given["time"] if given.get("time") else _infer_time(given, types)
    for role in ("label", "entity", "amount", "id"):
        if role not in given:
            given[role] = _infer_by_name(role, given, types)
    if need_label and given["label"] is None:
        raise InputError(f"no label column was recognised: name it with --label; columns: {', '.join(types)}")
    _infer_lists(source, given, types)
    return Spec.from_dict(given)


def _check_columns(given: Mapping[str, Any], types: Mapping[str, pl.DataType]) -> None:
    for role in (*COLUMN_ROLES, *LIST_ROLES):
        columns = given.get(role) or ()
        for column in (columns,) if isinstance(columns, str) else columns:
            if column not in types:
                raise InputError(f"the table has no column {column!r} for the role {role} (--{role}): {nearest(column, types)}")


def _taken(given: Mapping[str, Any]) -> set[str]:
    taken = {given[role] for role in COLUMN_ROLES if given.get(role)}
    return taken.union(*(given.get(role, ()) for role in LIST_ROLES))


def _matches(role: str, names: list[str]) -> list[str]:
    for pattern in _NAMES[role]:
        found = [name for name in names if re.fullmatch(pattern, name, re.IGNORECASE)]
        if found:
            return found
    return []


def _infer_time(given: Mapping[str, Any], types: Mapping[str, pl.DataType]) -> str:
    free = [name for name in types if name not in _taken(given)]
    moments = [name for name in free if isinstance(types[name], pl.Datetime)]
    named = _matches("time", free)
    for found in (moments, [name for name in moments if name in named], named, [name for name in free if types[name] == pl.Date]):
        if len(found) == 1:
            return found[0]
    candidates = moments or named
    if candidates:
        raise InputError(f"several columns may be the time ({', '.join(candidates)}): name it with --time")
    raise InputError(f"no time column was recognised: name it with --time; columns: {', '.join(types)}")


def _infer_by_name(role: str, given: Mapping[str, Any], types: Mapping[str, pl.DataType]) -> str | None:
    free = [name for name in types if name not in _taken(given)]
    found = _matches(role, free)
    if role == "amount":
        found = [name for name in found if types[name].is_numeric() or types[name] == pl.String]
    if len(found) > 1:
        raise InputError(f"several columns may be the {role} ({', '.join(found)}): name it with --{role} (or give --{role} none)")
    return found[0] if found else None


def _infer_lists(source: Source, given: dict[str, Any], types: Mapping[str, pl.DataType]) -> None:
    """Infer `numeric`, `categorical` and `context` where they are not given, in one lazy scan."""
    # A second label column (a fraud type beside a fraud flag) must never become a field.
    free = [name for name in types if name not in _taken(given) and not _LABEL_LIKE.search(name) and name not in _matches("label", [name])]
    if "context" not in given:
        given["context"] = tuple(name for name in free if _CONTEXT.fullmatch(name) and not types[name].is_float())
    free = [name for name in free if name not in given["context"]]
    wanted: dict[str, list[str]] = {"numeric": [], "categorical": []}
    for name in free:
        if types[name].is_float():
            wanted["numeric"].append(name)
        elif types[name] in (pl.String, pl.Categorical, pl.Enum, pl.Boolean):
            wanted["categorical"].append(name)
    wanted = {role: names for role, names in wanted.items() if role not in given}
    candidates = [name for names in wanted.values() for name in names]
    kept = _varied(source, candidates, wanted.get("categorical", []), given.get("entity"))
    for role, names in wanted.items():
        given[role] = tuple(name for name in names if name in kept)


def _varied(source: Source, names: list[str], texts: list[str], entity: str | None) -> set[str]:
    """Select the columns that vary within an entity; text columns only with few distinct values."""
    if not names:
        return set()
    query = scan(source, typed=True)
    counts = collect(query.select(pl.col(name).n_unique() for name in names), source).row(0, named=True)
    names = [name for name in names if counts[name] > 1 and (name not in texts or counts[name] <= MAX_CATEGORIES)]
    if entity is None or not names:
        return set(names)
    changes = [(_comparable(name, texts).min() != _comparable(name, texts).max()).alias(name) for name in names]
    spread = query.group_by(entity).agg(changes).select(pl.col(name).any() for name in names)
    varied = collect(spread, source).row(0, named=True)
    return {name for name in names if varied[name]}


def _comparable(name: str, texts: list[str]) -> pl.Expr:
    return pl.col(name).cast(pl.String) if name in texts else pl.col(name)
