"""Columns that alone separate the classes: nearly always something that is known only after the label."""

from __future__ import annotations

from collections.abc import Mapping

from balancer.data.column_roles import some
from balancer.data.roles import Roles
from balancer.data.separation import positives, rows_to_judge, suspicion

_OUT = "take it out of the spec file that balancer inspect --out writes"


def suspected_leaks(roles: Roles) -> dict[str, str]:
    """Find the features that alone tell frauds from legitimate rows.

    Args:
        roles: The roles of the table. With a label date and no label, a row with a date is a fraud.

    Returns:
        What was found by column, as the predicate of a sentence; empty where there are too few labelled rows.
    """
    spec, sample = roles.spec, roles.table.sample
    positive = positives(roles.table, spec.label, spec.label_date, negative=spec.negative, unlabelled=spec.unlabelled)
    if positive is None:
        return {}
    chosen = rows_to_judge(positive)
    if chosen is None:
        return {}
    y = (positive[chosen] == 1).to_numpy()
    found = {}
    names = dict.fromkeys([*([spec.amount] if spec.amount else []), *spec.numeric, *spec.categorical, *spec.context])
    for name in names:
        if name in sample.columns:
            text = suspicion(sample[name].gather(chosen), y, roles.table.read, number=name == spec.amount or name in spec.numeric)
            if text:
                found[name] = text
    return found


def leak_notes(found: Mapping[str, str], out: str = _OUT) -> list[str]:
    """Warnings of suspected leaks, one line for each kind.

    Args:
        found: What :func:`suspected_leaks` found.
        out: How a column is left out.
    """
    kinds: dict[str, list[str]] = {}
    for name, text in found.items():
        what, _, area = text.partition(" (")
        kinds.setdefault(what, []).append(f"{name} ({area}" if area else name)
    remedy = f"check that it is known when a row is scored, or {out}"
    return [f"suspected leak, {what}: {some(names)}: {remedy}" for what, names in kinds.items()]
