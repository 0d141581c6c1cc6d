"""A label delay that fits a short table, where none was given."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checks import RowCheck
from balancer.data.labels import read_labels
from balancer.data.reading import Source, collect, column_names
from balancer.data.row_times import assumed, dated_labels, read_reports, read_times, short_span
from balancer.data.spec import DAY, Spec, read_spec_file
from balancer.data.split import split_by_time, validation_span
from balancer.errors import InputError
from balancer.tables.joined import parts
from balancer.tables.source import opened

_ROUND = (5 * DAY, 3 * DAY, 2 * DAY, DAY, 43_200.0, 21_600.0, 10_800.0, 7_200.0, 3_600.0, 1_800.0, 600.0, 300.0, 60.0, 10.0, 1.0, 0.0)
"""Delays in seconds that are proposed, the longest first."""
_SHARE = 0.1
"""Longest delay that is proposed, as a share of the validation span."""
_GAP_SHARE = 0.25
"""Longest gap that is proposed, as a share of the validation span."""
_MAX_ROWS = 200_000
_NAMES = ((DAY, "day"), (3_600.0, "hour"), (60.0, "minute"), (1.0, "second"))


def delay_given(spec_file: str | Path | None, overrides: Mapping[str, Any] | None) -> bool:
    """Whether the file of a spec or the flags give the label delay."""
    return (overrides or {}).get("label_delay") is not None or (spec_file is not None and "label_delay" in read_spec_file(spec_file))


def fitting_delay(source: Source, spec: Spec) -> tuple[Spec, str | None]:
    """Shorten the default label delay where it does not fit the validation span of a table.

    Args:
        source: The table.
        spec: Its roles, with the default delay.

    Returns:
        The spec, and a note if the delay is another. A table that can't be read or split is left to the
        check that names what is wrong.
    """
    if spec.time is None or spec.split.by == "random" or spec.split.gap is not None:
        return spec, None
    found: tuple[Spec, str | None] = spec, None
    with suppress(InputError):  # the check of the table reports it
        found = _fitting(source, spec)
    return found


def check_gap(source: Source, spec: Spec) -> None:
    """Check that the gap between training and validation fits a table, before anything else is computed.

    Args:
        source: The table.
        spec: Its roles.

    Raises:
        InputError: The gap is too long, or the times or labels can't be read.
    """
    if spec.time is None or spec.split.by == "random":
        return
    table = _Labelled(source, spec)
    gap = spec.label_delay if spec.split.gap is None else spec.split.gap
    split_by_time(table.time, table.labelled(spec.label_delay), spec.split, gap, assumed=assumed(spec, table.found))


def fitting_gap(source: Source, spec: Spec) -> float | None:
    """The longest round gap that leaves every part of a split by time enough rows.

    Args:
        source: The table.
        spec: Its roles, with a time and a gap or label delay that is too long.

    Returns:
        Seconds, at most `_GAP_SHARE` of the validation span; None where no gap fits, or the table can't be
        read or is split at random.
    """
    if spec.time is None or spec.split.by == "random":
        return None
    with suppress(InputError):  # the check of the table reports it
        table = _Labelled(source, spec)
        labelled = table.labelled(spec.label_delay)
        span = validation_span(np.sort(table.time[labelled]), spec.split)
        for gap in _ROUND:
            if gap <= _GAP_SHARE * span:
                with suppress(InputError):  # a shorter one is tried
                    split_by_time(table.time, labelled, spec.split, gap)
                    return gap
    return None


class _Labelled:
    """Times of at most `_MAX_ROWS` rows of a table, and which of them have a label.

    Args:
        source: The table.
        spec: Its roles, with a time.

    Raises:
        InputError: A column can't be read.
    """

    def __init__(self, source: Source, spec: Spec) -> None:
        assert spec.time is not None
        query = opened(source, spec.read).frame
        names = parts(spec.time, column_names(source, spec.read))
        wanted = [*names, *(name for name in (spec.label, spec.label_date) if name is not None)]
        query = query.select(list(dict.fromkeys(wanted)))
        rows = int(collect(query.select(pl.len()), source).item())
        frame = collect(query.gather_every(max(1, -(-rows // _MAX_ROWS))), source)
        check = RowCheck(frame.height, "drop")
        times = read_times(frame, spec, names, check)
        known = np.ones(frame.height, np.bool_)
        self._reports: NDArray[np.float64] | None = None
        if spec.label is not None:
            labels = read_labels(frame[spec.label], unlabelled=spec.unlabelled, negative=spec.negative)
            known = labels.text.is_not_null().to_numpy()
        elif spec.label_date is not None:
            self._reports = read_reports(frame[spec.label_date], spec, times.found, check)[check.keep]
        self.found = times.found
        """How the times were read."""
        self.time = times.seconds[check.keep]
        """(n,) seconds."""
        known = known[check.keep]
        self._known = known if known.any() else np.ones(len(self.time), np.bool_)

    def labelled(self, delay: float) -> NDArray[np.bool_]:
        """(n,) whether a row has a label, with a delay in seconds."""
        return self._known if self._reports is None else dated_labels(self._reports, self.time, delay) >= 0


def _fitting(source: Source, spec: Spec) -> tuple[Spec, str | None]:
    table = _Labelled(source, spec)
    if short_span(spec, table.found, table.time) is not None:  # the unit may be another: the check asks for it
        return spec, None

    def fits(delay: float) -> bool:
        split = None
        with suppress(InputError):  # another delay is tried
            split = split_by_time(table.time, table.labelled(delay), spec.split, delay)
        return split is not None

    if fits(spec.label_delay):
        return spec, None
    span = validation_span(np.sort(table.time[table.labelled(0.0)]), spec.split)
    shorter = next((delay for delay in _ROUND if delay <= _SHARE * span and fits(delay)), None)
    if shorter is None:
        return spec, None
    unit = assumed(spec, table.found)
    taken = "" if unit is None else f" (the numbers in {unit}; --time-unit gives another unit)"
    note = (
        f"the default label delay of {in_words(spec.label_delay)} does not fit a validation span of {span / DAY:.3g} days{taken}: "
        f"{in_words(shorter)} instead; --label-delay gives another"
    )
    return replace(spec, label_delay=shorter), note


def in_words(seconds: float) -> str:
    """A duration with its unit.

    >>> in_words(604_800.0), in_words(3_600.0), in_words(0.0)
    ('7 days', '1 hour', '0 seconds')
    """
    size, name = next((each for each in _NAMES if seconds >= each[0] and seconds % each[0] == 0), _NAMES[-1])
    return f"{seconds / size:g} {name}{'' if seconds == size else 's'}"
