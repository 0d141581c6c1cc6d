"""Time folds of a table: splits, features and encodings are computed inside each fold.

F folds of half the rows each start at equal distances from the first row to the middle one. With the usual
split of 60, 20 and 20 % the test rows of up to six folds don't overlap. Training rows overlap, so folds are
not independent, and intervals over them are a little too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from balancer.data.checks import BadRows, RowCheck
from balancer.data.dataset import Dataset, load_dataset
from balancer.data.delay import delay_given, in_words
from balancer.data.reading import column_names, read_columns
from balancer.data.roles import resolve_spec
from balancer.data.row_times import read_times
from balancer.data.sharded.files import StoreFiles
from balancer.data.sharded.frames import table_frame
from balancer.data.spec import Spec, SplitSpec
from balancer.errors import InputError
from balancer.names import counted
from balancer.tables.joined import parts
from balancer.tables.kinds import is_store
from balancer.tables.source import opened
from balancer.tables.times import TimeForm

HALF = 0.5
LONGER = ((3, 2 / 3), (2, 3 / 4), (1, 1.0))
"""Fewer folds with more of the rows each, for a table where half of the rows can't be split.

The test rows, the last fifth of each, still don't overlap.
"""


@dataclass(frozen=True)
class Fold:
    """The rows with ``begin <= time < end``, in seconds, or all rows where the parts are drawn at random."""

    index: int
    begin: float
    end: float
    rows: int
    timed: bool = True
    """Whether the rows have times; otherwise they are numbered from 0."""

    def describe(self) -> dict[str, Any]:
        """Index, number of rows, first day and end as values that JSON can hold."""
        moments = {"begin": self.begin} | ({} if np.isinf(self.end) else {"end": self.end})
        return {"fold": self.index, "rows": self.rows} | {key: self._shown(value) for key, value in moments.items()}

    @property
    def place(self) -> str:
        """Where the fold begins, in words."""
        return self._shown(self.begin)

    def _shown(self, value: float) -> str:
        return datetime.fromtimestamp(value, UTC).date().isoformat() if self.timed else f"row {int(value) + 1}"


class FoldedTable:
    """A table that is read once, and its folds.

    A split by time has folds over time. A random split has no order: each of its folds is the whole table,
    whose parts are drawn with a seed of its own.

    Args:
        source: Path of the table, or a frame.
        folds: Most folds; 1 is the whole table. There are fewer where the table is too short for so many.
        spec_file: TOML file with roles and split.
        roles: Roles from flags; they override the file.
        bad_rows: ``error`` or ``drop``.

    Raises:
        InputError: The table or the roles can't be used, or the whole table is too small to be split.
    """

    def __init__(
        self,
        source: Path | pl.DataFrame,
        *,
        folds: int,
        spec_file: Path | None = None,
        roles: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
    ) -> None:
        self.bad_rows: BadRows = bad_rows
        self.spec: Spec = resolve_spec(source, spec_file=spec_file, overrides=roles)
        stored = is_store(source)
        if stored:  # a fold is a table of its own, whose fields know nothing of the rows outside it
            source, read = table_frame(StoreFiles.open(str(source)))
            self.spec = replace(read, split=self.spec.split)
        if folds > 1 and self.spec.split.by_dates:  # the dates refer to the whole table
            self.spec = replace(self.spec, split=SplitSpec(gap=self.spec.split.gap))
        self.spec = replace(self.spec, read=opened(source, self.spec.read).read)  # the folds are frames
        types = column_names(source, self.spec.read)
        self._time_columns = () if self.spec.time is None else parts(self.spec.time, types)
        used = dict.fromkeys(part for name in self.spec.columns() for part in parts(name, types))
        frame = read_columns(source, list(used), self.spec.read)
        check = RowCheck(frame.height, bad_rows)
        times = read_times(frame, self.spec, self._time_columns, check)
        self.spec = _as_found(self.spec, times.found)
        time = times.seconds
        self._frame, self._time = (frame, time) if check.keep.all() else (frame.filter(pl.Series(check.keep)), time[check.keep])
        self.notes: list[str] = [*times.notes]
        if not stored and self.spec.label_delay != Spec.label_delay and not delay_given(spec_file, roles):
            self.notes.append(
                f"label delay: {in_words(self.spec.label_delay)}, because the default of {in_words(Spec.label_delay)} does not fit the table; "
                "--label-delay gives another"
            )
        self.folds = self._most(folds)

    def load(self, fold: Fold) -> Dataset:
        """Load the rows of a fold as a data set."""
        return load_dataset(self._rows(fold), self._spec_of(fold, self.spec), bad_rows=self.bad_rows)

    @property
    def drawn(self) -> bool:
        """Whether the parts are drawn at random."""
        return self.spec.split.by == "random"

    def _spec_of(self, fold: Fold, spec: Spec) -> Spec:
        return replace(spec, split=replace(spec.split, seed=spec.split.seed + fold.index)) if self.drawn else spec

    def _folds(self, count: int, share: float) -> list[Fold]:
        timed = self.spec.time is not None
        if self.drawn:
            whole = replace(rolling(self._time, 1)[0], timed=timed)
            return [replace(whole, index=index) for index in range(count)]
        return [replace(fold, timed=timed) for fold in rolling(self._time, count, share)]

    def _most(self, wanted: int) -> list[Fold]:
        """As many folds as can be split, at most ``wanted``, and a note on what that means."""
        first: InputError | None = None
        for count, share in [(wanted, HALF), *((each, share) for each, share in LONGER if each < wanted and wanted > 1)]:
            folds = self._folds(count, share)
            try:
                for fold in folds:
                    self._check(fold, count)
            except InputError as error:
                first = first or error
                if count == 1:
                    raise
                continue
            if first is not None:
                self.notes.append(f"{counted(count, 'fold')} instead of {wanted}, because the table is too short for more: {first}")
            if self.drawn and count > 1:
                self.notes.append(
                    f"a random split has no folds over time: each of the {count} folds is the whole table, with parts drawn anew, so test "
                    "rows of different folds overlap and the intervals are too narrow"
                )
            return folds
        raise AssertionError("the last count is 1")

    def _rows(self, fold: Fold) -> pl.DataFrame:
        return self._frame.filter(pl.Series((self._time >= fold.begin) & (self._time < fold.end)))

    def _check(self, fold: Fold, count: int) -> None:
        """Check that a fold can be split and has the classes it needs, by loading time and label alone."""
        narrow = replace(self.spec, amount=None, id=None, numeric=(), categorical=(), context=())
        keys: tuple[str, ...] = ()
        if self.drawn and self.spec.entity is not None:
            keys = parts(self.spec.entity, self._frame.columns)
        else:
            narrow = replace(narrow, entity=None)
        labels = [name for name in (self.spec.label, self.spec.label_date) if name is not None]
        columns = list(dict.fromkeys((*self._time_columns, *labels, *keys)))
        try:
            load_dataset(self._rows(fold).select(columns), self._spec_of(fold, narrow), bad_rows=self.bad_rows)
        except InputError as error:
            if count == 1:
                raise
            place = f"fold {fold.index + 1} of {count} ({counted(fold.rows, 'row')} from {fold.place})"
            raise InputError(f"{place}: {error}") from error


def _as_found(spec: Spec, found: TimeForm) -> Spec:
    """The spec with what was found about the times of the whole table, so that a fold is read in this way."""
    form = found.form if found.form is not None and not found.form.startswith("%Y-") else None
    unit = found.unit if found.unit != "s" else None
    return replace(spec, time_format=spec.time_format or form, time_unit=spec.time_unit or unit)


def rolling(time: np.ndarray, count: int, share: float = HALF) -> list[Fold]:
    """``count`` folds over the times (n,) of rows in any order; rows of the same time stay together.

    Each has ``share`` of the rows; a single fold has all of them.
    """
    ordered = np.sort(time)
    size = len(ordered) if count == 1 else int(len(ordered) * share)
    folds = []
    for index in range(count):
        first = round(index * (len(ordered) - size) / max(count - 1, 1))
        end = float(ordered[first + size]) if first + size < len(ordered) else np.inf
        begin = float(ordered[first])
        folds.append(Fold(index, begin, end, int(((ordered >= begin) & (ordered < end)).sum())))
    return folds
