"""Examine a table before its roles are known: its size, the profile of every column, and rows to look at.

What is special: a table of up to `MAX_ROWS` rows is examined whole. Of a larger one, rows at equal distances
decide the kinds of the columns, and the number of distinct values is estimated on all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from balancer.data.reading import Source, collect, source_name
from balancer.errors import InputError
from balancer.tables.options import ReadOptions
from balancer.tables.profile import ColumnProfile, is_null_word, profile
from balancer.tables.source import Opened, opened

MAX_ROWS = 200_000
"""Rows from which a table is sampled."""
_MAX_CELLS = 20_000_000
_LEAST_ROWS = 20_000
_FLAG = 0.5
"""Share of missing values from which a column is a flag: that it is missing says more than its value."""


@dataclass(frozen=True, eq=False)
class Examined:
    """A table as it was examined."""

    source: Source
    """The table."""
    opened: Opened
    """The same as it was opened."""
    rows: int
    """Rows of the table."""
    sample: pl.DataFrame
    """The rows that were looked at, in their order; columns of a CSV file as text."""
    profiles: dict[str, ColumnProfile]
    """Profile of each column."""

    @property
    def read(self) -> ReadOptions:
        """How its text is read."""
        return self.opened.read

    @property
    def sampled(self) -> bool:
        """Whether only some of the rows were looked at."""
        return self.sample.height < self.rows

    def columns_of(self, entity: tuple[str, ...], names: list[str]) -> pl.DataFrame:
        """Read columns of all rows of some entities; of all entities where the table was not sampled.

        Args:
            entity: The columns that name an entity.
            names: Further columns.
        """
        wanted = list(dict.fromkeys((*entity, *names)))
        if not self.sampled:
            return self.sample.select(wanted)
        share = -(-self.rows // self.sample.height)
        key = pl.struct(entity) if len(entity) > 1 else pl.col(entity[0])
        query = self.opened.frame.select(wanted).filter(key.hash(0) % share == 0)
        return collect(query, self.source)


def examine(source: Source, read: ReadOptions | None = None) -> Examined:
    """Examine a table.

    Args:
        source: The table.
        read: How text is read, as far as it is given.

    Raises:
        InputError: The table can't be read, or has no rows.
    """
    table = opened(source, read or ReadOptions())
    query, read = table.frame, table.read
    rows = int(collect(query.select(pl.len()), source).item())
    if not rows:
        raise InputError(f"{source_name(source)} is empty: it has no rows")
    names = list(query.collect_schema())
    most = max(_LEAST_ROWS, min(MAX_ROWS, _MAX_CELLS // max(1, len(names))))
    if rows <= most:
        sample = collect(query, source)
        return Examined(source, table, rows, sample, profile(sample, read))
    sample = collect(query.gather_every(-(-rows // most)), source)
    # The estimate is of hashes, so it takes one pass without any table of values.
    simple = [name for name, dtype in query.collect_schema().items() if not dtype.is_nested()]
    counts = collect(query.select(pl.col(name).approx_n_unique() for name in simple), source)
    distinct = {name: int(count) for name, count in counts.row(0, named=True).items()}
    return Examined(source, table, rows, sample, profile(sample, read, rows=rows, distinct=distinct))


def varied(table: Examined, entity: tuple[str, ...], names: list[str]) -> set[str]:
    """Select the columns that have two values within some entity.

    Args:
        table: The table.
        entity: The columns that name an entity.
        names: Columns to select from. A missing value is a value of its own in flags, that is, in columns
            with one value besides, or with a value in less than half of the rows.
    """
    if not names:
        return set()
    flags = {name for name in names if table.profiles[name].distinct == 1 or table.profiles[name].missing > _FLAG}
    frame = table.columns_of(entity, names)
    frame = frame.with_columns(
        frame[name].set(is_null_word(frame[name].str.strip_chars(), table.read), None) for name in names if frame[name].dtype == pl.String
    )
    kinds = {name: pl.col(name).cast(pl.String) if frame[name].dtype in (pl.Categorical, pl.Enum) else pl.col(name) for name in names}
    changes = []
    for name, value in kinds.items():
        differs = (value.min() != value.max()).fill_null(False)
        if name in flags:
            differs = differs | ((value.null_count() > 0) & (value.null_count() < pl.len()))
        if not frame[name].dtype.is_nested():
            changes.append(differs.alias(name))
    found = frame.lazy().group_by(entity).agg(changes).select(pl.col(name).any() for name in kinds).collect().row(0, named=True)
    return {name for name in names if found[name]}
