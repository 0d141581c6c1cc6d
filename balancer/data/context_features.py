"""Causal fields of a context value (a terminal, a merchant): its known labels, and its activity.

What is special: the labels are those at least a delay old, and the activity needs no label, so it shows a
value that is misused before the first label comes. The formulas read the statistics of earlier rows through
an interface (`balancer.data.context_past`), so a table and the service share them. A null has the fields of
a value without earlier rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from balancer.data.context_past import ACTIVITY_WINDOWS, LEVEL_WINDOW, RECENT_LABELS, ContextPast, Flag
from balancer.data.features import NEVER_DAYS, Field, deviation
from balancer.data.past import Float, signed_log
from balancer.data.spec import DAY

FIRST_FRAUD_DAYS = 35
"""A first known fraud at most this old counts as recent: the value may have been misused since then."""
LABEL_FIELDS = (
    "last_label",
    *(f"fraud_share_last_{number}" for number in RECENT_LABELS[1:]),
    "days_since_fraud",
    "legitimate_since_fraud",
    "fraud_run_length",
    "fraud_run_days",
    f"first_fraud_{FIRST_FRAUD_DAYS}d",
)
"""Names of the fields from known labels, after the name of the column."""
ACTIVITY_FIELDS = ("gap_log", *(f"rows_{name}" for name in ACTIVITY_WINDOWS))
"""Names of the fields from all earlier rows, after the name of the column."""
ACTIVITY_AMOUNT_FIELDS = ("amount_z_all", f"level_shift_{LEVEL_WINDOW}")
"""Further ones where the table has an amount."""
CONTEXT_FIELDS = (*LABEL_FIELDS, *ACTIVITY_FIELDS, *ACTIVITY_AMOUNT_FIELDS)
"""All of them."""


def has_label_fields(column: str, names: Collection[str]) -> bool:
    """Whether `names` has the fields of `column` from known labels."""
    return all(f"{column}_{name}" in names for name in LABEL_FIELDS)


def has_activity_fields(column: str, names: Collection[str]) -> bool:
    """Whether `names` has the fields of `column` from all earlier rows."""
    return all(f"{column}_{name}" in names for name in ACTIVITY_FIELDS)


def context_fields(past: ContextPast, column: str, wanted: Collection[str] | None = None) -> Iterator[Field]:
    """Compute the fields of one context column.

    Args:
        past: Statistics of the earlier rows.
        column: A context column.
        wanted: Names of the fields that are needed; others may be left out. None: all are needed.

    Yields:
        Name and (N,) float32 values of each field.
    """
    if wanted is None or has_label_fields(column, wanted):
        for name, values in zip(LABEL_FIELDS, _label_fields(past, column), strict=True):
            yield f"{column}_{name}", values.astype(np.float32)
    if wanted is None or has_activity_fields(column, wanted):
        names = ACTIVITY_FIELDS if past.amount is None else (*ACTIVITY_FIELDS, *ACTIVITY_AMOUNT_FIELDS)
        for name, values in zip(names, _activity_fields(past, column), strict=True):
            yield f"{column}_{name}", values.astype(np.float32)


def _label_fields(past: ContextPast, column: str) -> Iterator[Float]:
    """Compute the `LABEL_FIELDS`."""
    labels = past.labels(column)
    for number, frauds in zip(RECENT_LABELS, labels.recent_frauds, strict=True):
        yield frauds / np.maximum(np.minimum(labels.known, number), 1)
    yield _days_since(past.time, labels.fraud_time, labels.any_fraud)
    yield np.log1p(labels.legitimate)
    yield np.log1p(labels.run_length)
    yield _days_since(past.time, labels.run_time, labels.any_fraud)
    yield (labels.any_fraud & (past.time - labels.first_time <= FIRST_FRAUD_DAYS * DAY)).astype(np.float64)


def _activity_fields(past: ContextPast, column: str) -> Iterator[Float]:
    """Compute the `ACTIVITY_FIELDS`, and with amounts the `ACTIVITY_AMOUNT_FIELDS`."""
    activity = past.activity(column)
    rows = activity.rows
    yield np.log1p(np.where(rows > 0, past.time - activity.last_time, NEVER_DAYS * DAY))
    for name in ACTIVITY_WINDOWS:
        yield np.log1p(activity.within[name])
    if past.amount is None:
        return
    count = np.maximum(rows, 1)
    mean = activity.level / count
    score = signed_log((signed_log(past.amount) - mean) / deviation(activity.square / count - mean * mean))
    yield np.where(rows > 1, score, 0.0)
    inside = activity.within[LEVEL_WINDOW]
    yield np.where(inside > 0, activity.recent_level / np.maximum(inside, 1) - mean, 0.0)


def _days_since(time: Float, past_time: Float, happened: Flag) -> Float:
    """Compute log(1 + days) since `past_time` where it `happened`, else since never."""
    return np.log1p(np.where(happened, time - past_time, NEVER_DAYS * DAY) / DAY)
