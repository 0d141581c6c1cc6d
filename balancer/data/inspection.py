"""What a table holds before anything is trained: roles with reasons, classes, time span, suspected leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.data.checks import RowCheck
from balancer.data.corrections import to_correct
from balancer.data.labels import find_classes, read_labels
from balancer.data.leaks import leak_notes, suspected_leaks
from balancer.data.reading import Source, column_names, read_columns
from balancer.data.roles import ColumnRole, Roles, inferred
from balancer.data.row_times import FOUND_NO_TIME, NO_TIME, RowTimes, read_reports, read_times, reported_early
from balancer.data.sharded.files import StoreFiles
from balancer.data.spec import Spec
from balancer.data.spec_text import spec_text
from balancer.data.splitting import table_notes
from balancer.errors import InputError
from balancer.names import counted
from balancer.tables.joined import parts
from balancer.tables.kinds import is_store
from balancer.tables.times import UNIT_NAMES, TimeForm

_DATED = 1e8
"""A time from here on, in seconds, is taken for a date (1973 and later)."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """A table as `balancer inspect` shows it."""

    roles: Roles
    """Roles, reasons and notes."""
    notes: tuple[str, ...]
    """How the file was read, and what is left out."""
    to_correct: tuple[str, ...]
    """What `balancer train` refuses, with column, row and remedy."""
    cautions: tuple[str, ...]
    """What is probably wrong, or was changed so that the table can be used."""
    leaks: dict[str, str]
    """Suspected leaks by column."""
    classes: dict[str, int]
    """Rows by class, the negative class first; empty without a label."""
    unlabelled: int
    """Rows without a label."""
    time: dict[str, Any]
    """First and last time, span in days, and how times were read; empty without a time."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What must be decided before a run can be trained."""
        return self.roles.doubts

    @property
    def warnings(self) -> list[str]:
        """What is probably wrong, and suspected leaks in words."""
        return [*self.cautions, *leak_notes(self.leaks)]

    @property
    def spec(self) -> str:
        """The text of a spec file to start from."""
        return spec_text(self.roles.spec)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        table = self.roles.table
        return {
            "rows": table.rows,
            "sampled_rows": table.sample.height,
            "columns": [_column(each) | {"leak": self.leaks.get(each.name)} for each in self.roles.columns],
            "doubts": list(self.doubts),
            "to_correct": list(self.to_correct),
            "cautions": list(self.cautions),
            "notes": list(self.notes),
            "leaks": dict(self.leaks),
            "classes": dict(self.classes),
            "unlabelled": self.unlabelled,
            "time": dict(self.time),
            "spec": self.roles.spec.to_dict(),
            "spec_toml": self.spec,
        }


def inspect_table(
    source: Source, *, spec_file: str | Path | None = None, overrides: Mapping[str, Any] | None = None, need_label: bool = True
) -> Inspection:
    """Inspect a table; roles that are not clear become doubts.

    Args:
        source: The table.
        spec_file: As for :func:`balancer.data.roles.resolve_spec`.
        overrides: As for :func:`balancer.data.roles.resolve_spec`.
        need_label: Whether a table without a label is a doubt.

    Raises:
        InputError: If the table can't be read, or a role that was given does not fit.
    """
    roles = inferred(source, spec_file=spec_file, overrides=overrides, need_label=need_label, doubtful=True)
    if is_store(source):
        return _of_store(roles, StoreFiles.open(str(source)))
    spec, notes = roles.spec, [*roles.table.opened.notes]
    time, times = ({}, None) if spec.time is None else _time(source, spec)
    if spec.time is None and not roles.doubts and FOUND_NO_TIME not in roles.notes:
        notes.append(NO_TIME)
    classes, unlabelled, wrong, early = _classes(source, spec, times)
    cautions = [*roles.cautions, *(times.cautions if times is not None else ()), *early]
    notes += [*(times.notes if times is not None else ()), *wrong, *roles.notes]
    wrong_rows = () if roles.doubts and spec.time is None else tuple(to_correct(source, spec))
    return Inspection(roles, tuple(notes), wrong_rows, tuple(cautions), suspected_leaks(roles), classes, unlabelled, time)


def _of_store(roles: Roles, store: StoreFiles) -> Inspection:
    """What a store holds; its rows were checked when it was prepared."""
    info = store.info
    notes, cautions = table_notes(info.notes, info.cautions, roles.notes)
    classes, unlabelled, time = {}, 0, {}
    if roles.spec.label is not None or roles.spec.label_date is not None:
        label = store.mapped("label")
        counts = np.bincount(label[label >= 0], minlength=len(info.schema.classes))
        classes = dict(zip(info.schema.classes, counts.tolist(), strict=True))
        unlabelled = store.rows - int(counts.sum())
    if roles.spec.time is not None:
        time = _span(store.mapped("time"), info.found)
    shards = f"a store of {counted(store.shards, 'shard')}, prepared from {info.source}"
    dropped = [f"left out when the store was prepared, {counted(count, 'row')}: {reason}" for reason, count in info.dropped.items()]
    said = (shards, *dropped, *info.opening, *notes, *roles.notes)
    return Inspection(roles, said, (), (*roles.cautions, *cautions), suspected_leaks(roles), classes, unlabelled, time)


def _column(each: ColumnRole) -> dict[str, Any]:
    held = each.profile
    return {
        "name": each.name,
        "role": each.choice.role or None,
        "reason": each.choice.reason,
        "kind": held.kind,
        "distinct": held.distinct,
        "missing": round(held.missing, 6),
        "first": list(held.first),
        "low": _finite(held.low),
        "high": _finite(held.high),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _time(source: Source, spec: Spec) -> tuple[dict[str, Any], RowTimes | None]:
    """The span of the times, and the times of the rows; nothing where they can't be read."""
    assert spec.time is not None
    names = parts(spec.time, column_names(source, spec.read))
    frame = read_columns(source, list(names), spec.read)
    check = RowCheck(frame.height, "drop")
    times: RowTimes | None = None
    with suppress(InputError):  # `to_correct` reports it
        times = read_times(frame, spec, names, check)
    if times is None:
        return {}, None
    seconds = times.seconds[check.keep]
    return (_span(seconds, times.found) if len(seconds) else {}), times


def _span(seconds: NDArray[np.float64], found: TimeForm) -> dict[str, Any]:
    """First and last of (n,) times, days between them, and how they were read."""
    first, last = float(seconds.min()), float(seconds.max())
    unit = None if found.unit is None else UNIT_NAMES[found.unit]
    dated = abs(first) >= _DATED
    return {
        "first": _date(first) if dated else first,
        "last": _date(last) if dated else last,
        "days": round((last - first) / 86_400.0, 4),
        "format": found.form,
        "unit": unit,
    }


def _date(seconds: float) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")


def _classes(source: Source, spec: Spec, times: RowTimes | None) -> tuple[dict[str, int], int, list[str], list[str]]:
    """Rows by class, rows without a label, notes, and warnings about dates of reports."""
    if spec.label is None and spec.label_date is None:
        return {}, 0, [], []
    held = {name: read_columns(source, [name], spec.read)[name] for name in (spec.label, spec.label_date) if name is not None}
    found, early, reported = TimeForm() if times is None else times.found, [], None
    labels = None
    with suppress(InputError):  # `to_correct` reports it
        if spec.label_date is not None:
            check = RowCheck(len(held[spec.label_date]), "drop")
            reports = read_reports(held[spec.label_date], spec, found, check)
            reported = int((~np.isnan(reports))[check.keep].sum())
            if times is not None and (caution := reported_early(held[spec.label_date], reports, times.seconds, check)):
                early.append(caution)
        if spec.label is None:
            rows = len(held[spec.label_date or ""])
            return ({} if reported is None else {"no report": rows - reported, "reported": reported}), 0, [], early
        labels = read_labels(held[spec.label], unlabelled=spec.unlabelled, negative=spec.negative)
    if labels is None:
        return {}, 0, [], early
    counts = {str(name): int(count) for name, count in sorted(labels.text.drop_nulls().value_counts().rows())}
    names: Sequence[str] = list(counts)
    with suppress(InputError):  # `to_correct` reports it
        names = find_classes(labels.text, spec.negative)
    return {name: counts[name] for name in names}, labels.text.null_count(), list(labels.notes), early
