"""Compute the fields of a context column for a range of its values.

What is special: they depend on rows of the same value only, of whatever entity. So each range of values is
computed alone, with the functions of a table in memory, and the fields are sent to the shards of their rows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from balancer.data.past import Events
from balancer.data.preparing.exchange import context_type, received
from balancer.data.preparing.learned import Learned
from balancer.data.preparing.plan import Plan, marker, place_of
from balancer.data.row_times import label_times
from balancer.data.spec import Spec
from balancer.data.table_fields import fields_of_contexts
from balancer.files import write_json

STAGE = "contexts"


def context_fields_of(spec: Spec, column: str) -> tuple[str, ...]:
    """Names of the fields of a context column."""
    rows = np.zeros(0, np.int64)
    empty = Events(np.zeros(0), rows, None if spec.amount is None else np.zeros(0), {column: rows})
    return tuple(name for name, _ in fields_of_contexts(replace(spec, context=(column,)), empty, np.zeros(0, np.int16), None))


def field_type(spec: Spec, column: str) -> np.dtype[Any]:
    """A row and its fields of a context column."""
    return np.dtype([("row", "i8"), ("fields", "f4", (len(context_fields_of(spec, column)),))])


def tasks_of(plan: Plan) -> int:
    """Number of tasks: as many for each context column as there are shards."""
    return len(plan.contexts) * plan.shards


def task_number(plan: Plan, column: int, part: int) -> int:
    """The task of a part of the values of a context column, by its position among the context columns."""
    return column * plan.shards + part


def write_context(folder: str, number: int) -> None:
    """Compute the fields of one context column for a range of its values.

    Args:
        folder: The folder of the store.
        number: Number of the task (`task_number`).
    """
    root = Path(folder)
    plan, learned = Plan.load(root), Learned.load(root)
    column, part = divmod(number, plan.shards)
    name, spec = plan.contexts[column], replace(plan.spec, context=(plan.contexts[column],))
    rows = received(root, plan, f"context_{column}", context_type(plan.spec), part)
    order = np.argsort(rows["shard"], kind="stable")
    found = np.zeros(len(rows), field_type(plan.spec, name))
    found["row"] = rows["row"][order]
    time, label = rows["time"].copy(), rows["label"].copy()
    amount = rows["amount"].copy() if plan.spec.amount is not None else None
    reports = rows["reports"].copy() if plan.spec.label_date is not None else None
    # The rows are in the order of the input, so no order of arrival is given.
    events = Events(time, np.zeros(len(rows), np.int64), amount, {name: rows["code"].astype(np.int64)})
    times = label_times(time, reports, label, spec.label_delay)
    for place, (_, values) in enumerate(fields_of_contexts(spec, events, label, times)):
        found["fields"][:, place] = values[order]
    place_of(root, STAGE, number).parent.mkdir(parents=True, exist_ok=True)
    found.tofile(place_of(root, STAGE, number).with_suffix(".bin"))
    ends = [0, *np.cumsum(np.bincount(rows["shard"], minlength=len(learned.offsets) - 1)).tolist()]
    write_json(marker(root, STAGE, number), {"ends": ends})
