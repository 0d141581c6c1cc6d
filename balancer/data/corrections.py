"""What must be corrected before a table can be trained on: each check of `balancer train` on all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl

from balancer.data.checks import RowCheck, check_entity, check_number, check_unique
from balancer.data.dataset import load_dataset
from balancer.data.labels import check_label, find_classes, read_labels
from balancer.data.reading import Source, column_names, read_columns
from balancer.data.row_times import read_reports, read_times
from balancer.data.spec import Spec
from balancer.errors import InputError
from balancer.tables.joined import parts
from balancer.tables.keys import join_columns
from balancer.tables.source import opened
from balancer.tables.times import TimeForm
from balancer.tables.values import normal_form


def to_correct(source: Source, spec: Spec) -> list[str]:
    """Run the checks of training, and list what each one finds first.

    Args:
        source: The table.
        spec: Roles of its columns.

    Returns:
        The errors of `balancer train`, with column, row and remedy; empty where it accepts the table.
    """
    table = opened(source, spec.read)
    names = column_names(source, spec.read)
    made_of = {name: parts(name, names) for name in spec.columns()}
    frame = read_columns(source, list(dict.fromkeys(part for each in made_of.values() for part in each)), spec.read)
    found: list[str] = []
    form = TimeForm()

    def run(check: Callable[[RowCheck], object]) -> None:
        try:
            check(RowCheck(frame.height, "error", table=None if isinstance(source, pl.DataFrame) else table))
        except InputError as error:
            found.append(str(error))

    def time(check: RowCheck) -> None:
        nonlocal form
        form = read_times(frame, spec, made_of.get(spec.time or "", ()), check).found

    def entity(check: RowCheck) -> None:
        assert spec.entity is not None
        forms = [normal_form(frame[part]) for part in made_of[spec.entity]]
        check_entity(forms, frame[spec.entity] if len(forms) == 1 else join_columns(forms, spec.entity), check)

    def label(check: RowCheck) -> None:
        assert spec.label is not None
        labels = read_labels(frame[spec.label], unlabelled=spec.unlabelled, negative=spec.negative)
        check_label(labels.text, find_classes(labels.text, spec.negative), check)

    run(time)
    if spec.entity is not None:
        run(entity)
    if spec.id is not None:
        run(lambda check: check_unique(frame[spec.id or ""], check))
    if spec.amount is not None:
        run(lambda check: check_number(frame[spec.amount or ""], check, read=table.read))
    for name in spec.numeric:
        run(lambda check, name=name: check_number(frame[name], check, optional=True, read=table.read))  # type: ignore[misc]
    if spec.label is not None:
        run(label)
    if spec.label_date is not None:
        run(lambda check: read_reports(frame[spec.label_date or ""], spec, form, check))
    if not found and (spec.label is not None or spec.label_date is not None):
        found += _of_the_split(source, spec)
    return found


def _of_the_split(source: Source, spec: Spec) -> list[str]:
    """What is wrong with the parts of the split."""
    try:
        load_dataset(source, replace(spec, amount=None, id=None, numeric=(), categorical=(), context=()))
    except InputError as error:
        return [str(error)]
    return []
