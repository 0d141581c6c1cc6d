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

from balancer.data.checks import BadRows, RowCheck, check_time
from balancer.data.dataset import Dataset, load_dataset
from balancer.data.reading import read_columns
from balancer.data.roles import resolve_spec
from balancer.data.spec import Spec, SplitSpec
from balancer.errors import InputError
from balancer.names import counted


@dataclass(frozen=True)
class Fold:
    """The rows with ``begin <= time < end``, in seconds."""

    index: int
    begin: float
    end: float
    rows: int

    def describe(self) -> dict[str, Any]:
        """Index, number of rows, first day and end as values that JSON can hold."""
        moments = {"begin": self.begin} | ({} if np.isinf(self.end) else {"end": self.end})
        return {"fold": self.index, "rows": self.rows} | {key: _date(value) for key, value in moments.items()}


class FoldedTable:
    """A table that is read once, and its folds.

    Args:
        source: Path of the table, or a frame.
        folds: Number of folds; 1 is the whole table.
        spec_file: TOML file with roles and split.
        roles: Roles from flags; they override the file.
        bad_rows: ``error`` or ``drop``.

    Raises:
        InputError: The table or the roles can't be used, or a fold is too small to be split.
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
        if folds > 1 and self.spec.split.by_dates:  # the dates refer to the whole table
            self.spec = replace(self.spec, split=SplitSpec(gap=self.spec.split.gap))
        frame = read_columns(source, self.spec.columns())
        check = RowCheck(frame.height, bad_rows)
        time = check_time(frame[self.spec.time], check)
        self._frame, self._time = (frame, time) if check.keep.all() else (frame.filter(pl.Series(check.keep)), time[check.keep])
        self.folds = rolling(self._time, folds)
        for fold in self.folds:
            self._check(fold)

    def load(self, fold: Fold) -> Dataset:
        """Load the rows of a fold as a data set."""
        return load_dataset(self._rows(fold), self.spec, bad_rows=self.bad_rows)

    def _rows(self, fold: Fold) -> pl.DataFrame:
        return self._frame.filter(pl.Series((self._time >= fold.begin) & (self._time < fold.end)))

    def _check(self, fold: Fold) -> None:
        """Check that a fold can be split and has the classes it needs, by loading time and label alone."""
        assert self.spec.label is not None
        narrow = replace(self.spec, entity=None, amount=None, id=None, numeric=(), categorical=(), context=())
        try:
            load_dataset(self._rows(fold).select(self.spec.time, self.spec.label), narrow, bad_rows=self.bad_rows)
        except InputError as error:
            if len(self.folds) == 1:
                raise
            place = f"fold {fold.index + 1} of {len(self.folds)} ({counted(fold.rows, 'row')} from {_date(fold.begin)})"
            raise InputError(f"{place}: {error}; --folds 1 compares on the whole table") from error


def rolling(time: np.ndarray, count: int) -> list[Fold]:
    """``count`` folds over the times (n,) of rows in any order; rows of the same time stay together."""
    ordered = np.sort(time)
    size = len(ordered) if count == 1 else len(ordered) // 2
    folds = []
    for index in range(count):
        first = round(index * (len(ordered) - size) / max(count - 1, 1))
        end = float(ordered[first + size]) if first + size < len(ordered) else np.inf
        begin = float(ordered[first])
        folds.append(Fold(index, begin, end, int(((ordered >= begin) & (ordered < end)).sum())))
    return folds


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
