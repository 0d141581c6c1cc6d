"""Delayed context risk: the fraud rate of a terminal or merchant, from labels that are already known.

What is special: at time t only the labels of rows at or before t - delay are known, so the window of W days
is (t - delay - W, t - delay]. Rows without a label count in neither numerator nor denominator. Some frauds
can be detected in no other way: a compromised terminal leaves no trace in the row itself. Source of the
feature: Le Borgne et al., Fraud Detection Handbook, chapter 3 (terminal risk with a delay period).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from balancer.data.spec import DAY
from balancer.data.timeline import Index, Moments, Timeline

WINDOW_DAYS = (1, 7, 30)
PSEUDO_COUNT = 1.0
"""Legitimate rows added to every window: a rate over few rows shrinks to 0 and does not depend on other
windows."""

Field = tuple[str, NDArray[np.float32]]


def risk_fields(
    name: str,
    key: Index,
    time: NDArray[np.float64],
    label: NDArray[np.int16],
    delay: float,
    label_time: NDArray[np.float64] | None = None,
    moments: Moments | None = None,
) -> Iterator[Field]:
    """Compute the smoothed fraud rate and the log count of labelled rows of a context column, per window.

    Args:
        name: Prefix of the field names.
        key: (N,) code of the context value; -1 is null, with rate and count 0.
        time: (N,) seconds.
        label: (N,) class; 0 is negative, -1 is unknown.
        delay: Seconds after which a label is known. With 0, the labels of strictly earlier rows are known.
        label_time: (N,) as in `known_labels`; None where every label is known after the delay.
        moments: The same times as `time`, if they were found already.

    Yields:
        Name and (N,) values of each field.
    """
    size = len(key)
    order = np.lexsort((time, key))
    order = order[np.searchsorted(key[order], 0) :]
    known = order[label[order] >= 0]
    moments = Moments.of(time) if moments is None else moments
    fraud = label[known] > 0
    if label_time is None:
        timeline = Timeline(key[known], moments.take(known))
    else:
        labels = known_labels(key[known], time[known], fraud, label_time[known])
        timeline, fraud = Timeline(labels.key, labels.time), labels.fraud
    frauds: Index = np.concatenate((np.zeros(1, np.int64), np.cumsum(fraud, dtype=np.int64)))
    key = key[order]
    bound = moments.take(order).minus(delay)
    last = timeline.position(key, bound, inclusive=delay > 0)
    for days in WINDOW_DAYS:
        first = timeline.position(key, bound.minus(days * DAY))
        for field, values in rate_fields(name, days, frauds[last] - frauds[first], last - first):
            yield field, _in_input_order(size, order, values)


class Labels(NamedTuple):
    """Labels of M rows with a context value, sorted by (value, time)."""

    key: Index
    time: NDArray[np.float64]
    fraud: NDArray[np.bool_]


def known_labels(key: Index, time: NDArray[np.float64], fraud: NDArray[np.bool_], label_time: NDArray[np.float64]) -> Labels:
    """The labels as they become known, where some are reported late.

    A fraud that is reported late counts as legitimate at its own time, as it was then believed to be, and as
    a fraud at its later time.

    Args:
        key: (M,) code of the context value.
        time: (M,) seconds.
        fraud: (M,) whether a row is a fraud.
        label_time: (M,) times that count for the labels, later than `time` for late reports.
    """
    late = fraud & (label_time > time)
    key, fraud = np.concatenate((key, key[late])), np.concatenate((fraud, np.zeros(int(late.sum()), np.bool_)))
    moments = np.concatenate((label_time, time[late]))
    order = np.lexsort((moments, key))
    return Labels(key[order], moments[order], fraud[order])


def rate_fields(name: str, days: int, frauds: Index, known: Index) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Compute the fields of one window.

    Args:
        name: Prefix of the field names.
        days: Length of the window.
        frauds: (N,) fraud rows in the window.
        known: (N,) labelled rows in the window.

    Yields:
        Name and (N,) values of each field.
    """
    yield f"{name}_fraud_rate_{days}d", frauds / (known + PSEUDO_COUNT)
    yield f"{name}_count_{days}d", np.log1p(known)


def _in_input_order(size: int, order: Index, values: NDArray[np.float64]) -> NDArray[np.float32]:
    out = np.zeros(size, dtype=np.float32)
    out[order] = values
    return out
