"""Rolling time windows of a table, each a data set of its own: split inside, features and encodings learned inside.

W windows of half the rows each start evenly from the first row to the middle one. With the usual split of 60, 20 and 20 % the test parts of up to six
windows have no row in common; training parts overlap, so windows are not independent, and intervals over them are a little too narrow.
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


@dataclass(frozen=True)
class Window:
    """Rows with ``begin <= time < end``, in seconds."""

    index: int
    begin: float
    end: float
    rows: int

    def describe(self) -> dict[str, Any]:
        """JSON-able: index, rows, and first and last moment as dates."""
        moments = {"begin": self.begin} | ({} if np.isinf(self.end) else {"end": self.end})
        return {"window": self.index, "rows": self.rows} | {key: _date(value) for key, value in moments.items()}


class WindowedTable:
    """A table read once, and its windows.

    Args:
        source: path of the table, or a frame.
        windows: how many; 1 is the whole table.
        spec_file: TOML with roles and split.
        roles: the same from flags.
        bad_rows: ``error`` or ``drop``.

    Raises:
        InputError: a table or roles that can't be used, or a window too small to be split; nothing else was done then.
    """

    def __init__(
        self,
        source: Path | pl.DataFrame,
        *,
        windows: int,
        spec_file: Path | None = None,
        roles: Mapping[str, Any] | None = None,
        bad_rows: BadRows = "error",
    ) -> None:
        self.bad_rows: BadRows = bad_rows
        self.spec: Spec = resolve_spec(source, spec_file=spec_file, overrides=roles)
        if windows > 1 and self.spec.split.by_dates:  # dates of the whole table say nothing of a window
            self.spec = replace(self.spec, split=SplitSpec(gap=self.spec.split.gap))
        frame = read_columns(source, self.spec.columns())
        check = RowCheck(frame.height, bad_rows)
        time = check_time(frame[self.spec.time], check)
        self._frame, self._time = (frame, time) if check.keep.all() else (frame.filter(pl.Series(check.keep)), time[check.keep])
        self.windows = rolling(self._time, windows)
        for window in self.windows:
            self._check(window)

    def load(self, window: Window) -> Dataset:
        """The window's rows as a data set."""
        return load_dataset(self._rows(window), self.spec, bad_rows=self.bad_rows)

    def _rows(self, window: Window) -> pl.DataFrame:
        return self._frame.filter(pl.Series((self._time >= window.begin) & (self._time < window.end)))

    def _check(self, window: Window) -> None:
        """Whether the window can be split and every part has what it needs: the same loading, of time and label alone."""
        assert self.spec.label is not None
        narrow = replace(self.spec, entity=None, amount=None, id=None, numeric=(), categorical=(), context=())
        try:
            load_dataset(self._rows(window).select(self.spec.time, self.spec.label), narrow, bad_rows=self.bad_rows)
        except InputError as error:
            if len(self.windows) == 1:
                raise
            place = f"window {window.index + 1} of {len(self.windows)} ({window.rows:,} rows from {_date(window.begin)})"
            raise InputError(f"{place}: {error}; --windows 1 compares on the whole table") from error


def rolling(time: np.ndarray, count: int) -> list[Window]:
    """``count`` windows over the times (n,) of rows in any order; a moment is never divided between two."""
    ordered = np.sort(time)
    size = len(ordered) if count == 1 else len(ordered) // 2
    windows = []
    for index in range(count):
        first = round(index * (len(ordered) - size) / max(count - 1, 1))
        end = float(ordered[first + size]) if first + size < len(ordered) else np.inf
        begin = float(ordered[first])
        windows.append(Window(index, begin, end, int(((ordered >= begin) & (ordered < end)).sum())))
    return windows


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
