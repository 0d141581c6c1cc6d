"""Check the rows of a part of the input, with the checks that a table in memory has.

What is special: a part is checked alone only where its result can't depend on other rows. What decides for a
whole column (the marks of written numbers, the format of dates, repeated ids) is found for the whole column
before, and read here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checks import RowCheck, accept_times, check_entity, check_number, check_unique
from balancer.data.labels import label_names
from balancer.data.preparing.coding import coded, distinct_names
from balancer.data.preparing.plan import REPORTS, TIME, Plan, Whole, marker, place_of
from balancer.data.reading import collect
from balancer.data.row_times import parsed_times, read_reports
from balancer.data.sharded.columns import read_rows
from balancer.data.sharded.files import ENTITY, key_file, number_file
from balancer.files import write_json
from balancer.tables.keys import join_columns
from balancer.tables.kinds import WORK
from balancer.tables.numbers import read_numbers
from balancer.tables.source import opened
from balancer.tables.time_forms import result_of
from balancer.tables.time_text import read_text
from balancer.tables.values import normal_form

STAGE = "chunks"
REPEATED_IDS = "repeated_ids.npy"
"""Rows that repeat the id of an earlier row, sorted."""


class NeedsWholeError(Exception):
    """A column must be read whole; the argument is its name, `TIME` or `REPORTS`."""


@dataclass
class ChunkCheck(RowCheck):
    """Collects the bad rows of a part of the input, and names them by their place in the whole input."""

    plan: Plan | None = None
    first: int = 0
    """Row of the input that is the first of the part."""

    def place(self, column: str, row: int) -> str:
        """See `RowCheck`; the table is opened only for a message."""
        assert self.plan is not None
        whole = RowCheck(0, self.bad_rows, self.where, opened(Path(self.plan.source), self.plan.spec.read))
        return whole.place(column, row + self.first)

    def repeat(self, bad: NDArray[np.int8], reasons: tuple[str, ...]) -> None:
        """Leave out rows that were found bad in the whole column: (n,) number of the reason, 0 for none."""
        for number, reason in enumerate(reasons, 1):
            rows = (bad == number) & self.keep
            if rows.any():
                self.keep &= ~rows
                self.dropped[reason] = self.dropped.get(reason, 0) + int(rows.sum())


def check_chunk(folder: str, number: int) -> None:
    """Check a part of the input and write its columns, without bad rows.

    Args:
        folder: The folder of the store.
        number: Number of the part.

    Raises:
        InputError: A row is bad, or a column can't be used.
    """
    root = Path(folder)
    plan, place = Plan.load(root), place_of(root, STAGE, number)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    first, last = plan.chunk(number)
    frame = collect(plan.frame(root).select(plan.used).slice(first, last - first), plan.source)
    check = ChunkCheck(frame.height, plan.bad_rows, plan=plan, first=first)
    try:
        found = _Chunk(root, plan, frame, check).write(place)
    except NeedsWholeError as error:
        found = {"whole": str(error)}
    write_json(marker(root, STAGE, number), found)


class _Chunk:
    """A part of the input while it is checked."""

    def __init__(self, root: Path, plan: Plan, frame: pl.DataFrame, check: ChunkCheck) -> None:
        self.root, self.plan, self.frame, self.check = root, plan, frame, check
        self.spec = plan.spec

    def write(self, place: Path) -> dict[str, Any]:
        """Check the columns in the order of :func:`balancer.data.checked.read_table`, and write them."""
        plan, spec, frame, check = self.plan, self.spec, self.frame, self.check
        arrays: dict[str, NDArray[Any]] = {"time": self._times()}
        # Times are interpreted together later, from all rows that have one.
        np.save(place / "accepted.npy", np.where(check.keep, arrays["time"], np.nan))
        names = dict.fromkeys((*([] if spec.entity is None else [spec.entity]), *plan.keys))
        texts = {name: join_columns([normal_form(frame[part]) for part in plan.made_of[name]], name) for name in names}
        if spec.entity is not None:
            parts = [frame[part] for part in plan.made_of[spec.entity]]
            alone = len(parts) == 1
            forms = [texts[spec.entity]] if alone else [normal_form(part) for part in parts]
            check_entity(forms, parts[0] if alone else texts[spec.entity], check)
        if spec.id is not None:
            check_unique(frame[spec.id], check, repeated=self._repeated())
        if spec.amount is not None:
            arrays["amount"] = self._number(spec.amount)
        for column, name in enumerate(spec.numeric):
            arrays[number_file(column)] = self._number(name, optional=True).astype(np.float32)
        if spec.label is not None:
            arrays["label"] = self._labels(spec.label, place)
        if spec.label_date is not None:
            arrays["reports"] = self._reports(spec.label_date)
        keep, chosen = check.keep, pl.Series(check.keep)
        kept = frame if keep.all() else frame.filter(chosen)
        for name, values in arrays.items():
            np.save(place / f"{name}.npy", values[keep])
        np.save(place / "row.npy", check.first + np.flatnonzero(keep))
        np.save(place / "hash.npy", kept.hash_rows(seed=0).to_numpy())
        if spec.id is not None:
            kept.select(spec.id).write_ipc(place / "ids.arrow")
        files = {name: key_file(at) for at, name in enumerate(plan.keys)}
        for name, file in [*([] if spec.entity is None else [(spec.entity, ENTITY)]), *files.items()]:
            text = texts[name] if keep.all() else texts[name].filter(chosen)
            distinct = distinct_names(text)
            np.save(place / f"{file}.npy", coded(text, distinct))
            distinct.to_frame().write_parquet(place / f"{file}.parquet")
        return {"rows": kept.height, "dropped": check.dropped}

    def _times(self) -> NDArray[np.float64]:
        """(n,) seconds; those of rows without a time are bad."""
        plan, spec, check = self.plan, self.spec, self.check
        if spec.time is None:
            return np.arange(check.first, check.first + check.height, dtype=np.float64)
        if (found := self._whole(TIME)) is not None:
            return found
        values = self.frame[plan.made_of[spec.time][0]]
        if plan.time_form is None:
            return accept_times(parsed_times([values], spec.time, spec.time_format, spec.time_unit, None), values, check)
        text = (values if values.dtype == pl.String else values.cast(pl.String)).str.strip_chars()
        micro = read_text(text, plan.time_form)
        if micro.null_count() != text.null_count():
            raise NeedsWholeError(TIME)
        return accept_times(result_of(micro, text, found=plan.found), values, check)

    def _reports(self, name: str) -> NDArray[np.float64]:
        """(n,) when a fraud was reported; NaN where none was."""
        if (found := self._whole(REPORTS)) is not None:
            return found
        if self.frame[name].dtype not in (pl.Datetime, pl.Date):
            raise NeedsWholeError(REPORTS)
        return read_reports(self.frame[name], self.spec, self.plan.found, self.check)

    def _number(self, name: str, *, optional: bool = False) -> NDArray[np.float64]:
        if (found := self._whole(name)) is not None:
            return found
        values, notes = self.frame[name], len(self.check.notes)
        if values.dtype in (pl.String, pl.Categorical, pl.Enum) and not read_numbers(values.cast(pl.String), self.plan.read).plain:
            raise NeedsWholeError(name)
        numbers = check_number(values, self.check, optional=optional, read=self.plan.read)
        if len(self.check.notes) > notes:  # a note counts rows of the whole column
            raise NeedsWholeError(name)
        return numbers

    def _labels(self, name: str, place: Path) -> NDArray[np.int32]:
        """(n,) codes of the labels as they are written, with the rows of each."""
        text = label_names(self.frame[name], self.spec.unlabelled)
        names = distinct_names(text)
        counts = text.alias("name").value_counts(name="rows")
        counts.write_parquet(place / "label.parquet")
        names.to_frame().write_parquet(place / "label_names.parquet")
        return coded(text, names)

    def _repeated(self) -> NDArray[np.bool_]:
        """(n,) whether a row repeats the id of an earlier row of the whole input."""
        rows = np.load(self.root / WORK / REPEATED_IDS)
        first, last = self.check.first, self.check.first + self.check.height
        found = np.zeros(self.check.height, np.bool_)
        found[rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)] - first] = True
        return found

    def _whole(self, name: str) -> NDArray[np.float64] | None:
        """(n,) values of a column that was read whole, after its bad rows are left out; else None."""
        held: Whole | None = self.plan.whole.get(name)
        if held is None:
            return None
        folder, first, last = self.root / WORK / "whole", self.check.first, self.check.first + self.check.height
        self.check.repeat(read_rows(folder / f"{held.file}_bad.npy", first, last), held.reasons)
        return read_rows(folder / f"{held.file}.npy", first, last)
