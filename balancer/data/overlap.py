"""Rows of the past that are rows of the input too: a row must not be its own past.

A nightly export holds all rows so far, those to score among them. They are recognized by the id column.
Without one, rows that are equal in time, entity, amount and all other used columns but the label are taken
for the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checked import CheckedTable
from balancer.data.spec import Spec
from balancer.names import counted
from balancer.tables.values import normal_form


@dataclass(frozen=True)
class Overlap:
    """What was left out of the past."""

    past: CheckedTable
    """The other rows of the past."""
    note: str | None = None
    """What was left out, for the user."""
    caution: str | None = None
    """Why that may be wrong, for the user."""


def without_overlap(past: CheckedTable, table: CheckedTable, spec: Spec) -> Overlap:
    """Leave the rows of a table out of its past.

    Args:
        past: Rows before those of the table.
        table: The table.
        spec: Roles of the columns.
    """
    if past.ids is not None and table.ids is not None:
        return _by_id(past, table, spec)
    return Overlap(past) if spec.time is None else _by_content(past, table)


def _by_id(past: CheckedTable, table: CheckedTable, spec: Spec) -> Overlap:
    assert past.ids is not None
    assert table.ids is not None
    earlier, own = normal_form(past.ids), normal_form(table.ids)
    same = earlier.is_in(own.drop_nulls().implode()).fill_null(False)
    if not same.any():
        return Overlap(past)
    pairs = _who(past, spec, earlier).filter(same).join(_who(table, spec, own), on="id", maintain_order="left")
    other = pairs.filter(pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_right")) for name in ("time", "entity"))).height
    caution = None
    if other:
        caution = (
            f"{counted(other, 'row')} of --past with an id of the input {'has' if other == 1 else 'have'} another time or entity there: "
            f"is {spec.id!r} unique over both tables?"
        )
    return Overlap(_kept(past, ~same.to_numpy()), _note(int(same.sum()), f"same {spec.id}"), caution)


def _who(table: CheckedTable, spec: Spec, ids: pl.Series) -> pl.DataFrame:
    """Id, time and entity of each row; without a time column all times are 0."""
    nobody = pl.Series("entity", [None] * table.size, dtype=pl.String)
    entity = nobody if spec.entity is None else table.texts[spec.entity]
    time = table.time if spec.time is not None else np.zeros(table.size)
    return pl.DataFrame({"id": ids, "time": time, "entity": entity})


def _by_content(past: CheckedTable, table: CheckedTable) -> Overlap:
    wanted = table.time  # most past rows are earlier than all of the table, and need no comparison
    possible = np.flatnonzero((past.time >= wanted.min()) & (past.time <= wanted.max())) if table.size else np.zeros(0, np.int64)
    if not len(possible):
        return Overlap(past)
    earlier, own = _content(past)[possible], _content(table)
    names = earlier.columns
    counts = own.group_by(names).len("rows")
    found = earlier.with_row_index("at").join(counts, on=names, nulls_equal=True)
    if not found.height:
        return Overlap(past)
    same = np.zeros(past.size, dtype=np.bool_)
    same[possible[found["at"].to_numpy()]] = True
    caution = None
    twins = int((found["rows"] > 1).sum()) + found.height - found.select(names).unique().height
    if twins:
        caution = (
            "some of these rows are equal to each other in every used column, so they may be different transactions: "
            "name a column that tells rows apart with --id when the run is trained"
        )
    return Overlap(_kept(past, ~same), _note(int(same.sum()), "equal in every used column but the label"), caution)


def _content(table: CheckedTable) -> pl.DataFrame:
    """The used columns but label and id; a missing number is null."""
    columns = {f"text {name}": values for name, values in table.texts.items()}
    columns |= {f"number {name}": pl.Series(values).fill_nan(None) for name, values in table.numeric.items()}
    amount = {} if table.amount is None else {"amount": pl.Series(table.amount)}
    return pl.DataFrame({"time": pl.Series(table.time)} | amount | columns)


def _kept(table: CheckedTable, keep: NDArray[np.bool_]) -> CheckedTable:
    """The chosen rows of a table."""
    chosen = pl.Series(keep)
    return replace(
        table,
        row=table.row[keep],
        time=table.time[keep],
        amount=None if table.amount is None else table.amount[keep],
        label=table.label[keep],
        numeric={name: values[keep] for name, values in table.numeric.items()},
        reports=None if table.reports is None else table.reports[keep],
        texts={name: values.filter(chosen) for name, values in table.texts.items()},
        ids=None if table.ids is None else table.ids.filter(chosen),
    )


def _note(rows: int, why: str) -> str:
    are, left = ("is a row", "is") if rows == 1 else ("are rows", "are")
    return f"{counted(rows, 'row')} of --past {are} of the input too ({why}) and {left} left out of it"
