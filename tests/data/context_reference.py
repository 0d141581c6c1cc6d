"""The fields of a context value, row by row from their definitions; slow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from balancer.data.spec import DAY

NEVER = math.log1p(3650.0)


class Row(NamedTuple):
    """A row, or a row whose label is not known (None)."""

    time: float
    value: object
    amount: float
    fraud: bool | None


def level(amount: float) -> float:
    return math.copysign(math.log1p(abs(amount)), amount)


def reference(earlier: Sequence[Row], row: Row, labelled: Sequence[Row], delay: float) -> dict[str, float]:
    """Fields of `row`, whose earlier rows are `earlier`; `labelled` are all rows with a label."""
    known = [
        each
        for each in sorted(labelled, key=lambda each: (each.time, bool(each.fraud)))
        if each.value == row.value is not None and (each.time <= row.time - delay if delay else each.time < row.time)
    ]
    return _labels(row, known) | _activity(row, [each for each in earlier if each.value == row.value is not None])


def _labels(row: Row, known: list[Row]) -> dict[str, float]:
    def share(number: int) -> float:
        last = [bool(each.fraud) for each in known[-number:]]
        return sum(last) / len(last) if last else 0.0

    legitimate = run = 0
    for each in reversed(known):
        if run and not each.fraud:
            break
        run += bool(each.fraud)
        legitimate += not each.fraud
    frauds = [each.time for each in known if each.fraud]
    return {
        "last_label": share(1),
        "fraud_share_last_3": share(3),
        "fraud_share_last_10": share(10),
        "days_since_fraud": math.log1p((row.time - frauds[-1]) / DAY) if frauds else NEVER,
        "legitimate_since_fraud": math.log1p(legitimate),
        "fraud_run_length": math.log1p(run),
        "fraud_run_days": math.log1p((row.time - frauds[-run]) / DAY) if frauds else NEVER,
        "first_fraud_35d": float(bool(frauds) and row.time - frauds[0] <= 35 * DAY),
    }


def _activity(row: Row, past: list[Row]) -> dict[str, float]:
    def within(seconds: float) -> list[Row]:
        return [each for each in past if each.time > row.time - seconds]

    levels = [level(each.amount) for each in past]
    week = [level(each.amount) for each in within(7 * DAY)]
    z = (level(row.amount) - np.mean(levels)) / math.hypot(np.std(levels), 0.1) if len(past) > 1 else 0.0
    return {
        "gap_log": math.log1p(row.time - past[-1].time if past else 3650 * DAY),
        "rows_1h": math.log1p(len(within(3600.0))),
        "rows_1d": math.log1p(len(within(DAY))),
        "rows_7d": math.log1p(len(within(7 * DAY))),
        "amount_z_all": math.copysign(math.log1p(abs(z)), z),
        "level_shift_7d": float(np.mean(week) - np.mean(levels)) if week else 0.0,
    }
