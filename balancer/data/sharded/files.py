"""The files of a store: columns of all rows, names by code, and ids by shard."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.schema import Schema
from balancer.data.sharded.columns import mapped, read_rows
from balancer.data.sharded.info import StoreInfo
from balancer.data.spec import Spec
from balancer.errors import CorruptFileError, InputError, MissingFileError
from balancer.tables.kinds import STORE_FILE, is_store

COLUMNS, NAMES, IDS, SHARDS = "columns", "names", "ids", "shards"
"""Folders of a store."""
ENTITY = "entity"
"""The column of entity codes, and the file of their names."""


def key_file(place: int) -> str:
    """Name of the column of codes, and of the file of names, of a categorical or context column."""
    return f"key_{place:03d}"


def number_file(place: int) -> str:
    """Name of the column of a numeric column of the table, in which NaN is a missing value."""
    return f"number_{place:03d}"


@dataclass(frozen=True)
class StoreFiles:
    """A folder that `balancer prepare` wrote, as files."""

    path: Path
    info: StoreInfo

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a store.

        Raises:
            MissingFileError: The folder is missing, or is no store.
            CorruptFileError: A file is damaged.
        """
        folder = Path(path)
        if not is_store(folder):
            unfinished = f"; balancer prepare --out {folder} finishes it" if (folder / SHARDS).is_dir() else ""
            raise MissingFileError(f"{folder} is no store, it has no {STORE_FILE}: give a folder that balancer prepare wrote{unfinished}")
        return cls(folder, StoreInfo.read(folder))

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.info.offsets) - 1

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.info.rows

    @property
    def spec(self) -> Spec:
        """Roles of the columns."""
        return self.info.spec

    @property
    def schema(self) -> Schema:
        """The fields; vocabularies are those of the training rows of the split of `spec`."""
        return self.info.schema

    def range(self, number: int) -> tuple[int, int]:
        """First row of a shard, and the row after its last one; a shard may be empty.

        Raises:
            InputError: There is no such shard.
        """
        if not 0 <= number < self.shards:
            raise InputError(f"shard {number} of {self.path}: give a number from 0 to {self.shards - 1}")
        return self.info.offsets[number], self.info.offsets[number + 1]

    def column(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Read rows from `first` to before `last` of a column to memory."""
        return read_rows(self.file(name), first, self.rows if last is None else last)

    def mapped(self, name: str, *, writable: bool = False) -> NDArray[Any]:
        """A column that is read from disk as it is used; see :func:`balancer.data.sharded.columns.mapped`."""
        return mapped(self.file(name), writable=writable)

    def file(self, name: str) -> Path:
        """The file of a column."""
        return self.path / COLUMNS / f"{name}.npy"

    def names(self, name: str, first: int = 0, last: int | None = None) -> pl.Series:
        """Names by code of the entities, or of the values of a key (`key_file`), some of them or all."""
        path = self.path / NAMES / f"{name}.parquet"
        try:
            query = pl.scan_parquet(path, glob=False).slice(first, None if last is None else last - first)
            return query.collect().to_series()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise CorruptFileError(f"{path} can't be read: the store is damaged, run balancer prepare again") from error

    def ids(self, number: int) -> pl.Series:
        """Ids of the rows of a shard, with the name and dtype of the column."""
        path = self.path / IDS / f"{number:05d}.arrow"
        try:
            return pl.scan_ipc(path, glob=False).collect().to_series()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise CorruptFileError(f"{path} can't be read: the store is damaged, run balancer prepare again") from error

    @cached_property
    def entities(self) -> list[str]:
        """Names of all entities by code; empty where the table has no entity."""
        return [] if self.spec.entity is None else self.names(ENTITY).to_list()

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """(N,) hashes of the rows in the order of the input."""
        return self.mapped("hash")
