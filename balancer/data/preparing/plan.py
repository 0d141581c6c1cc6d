"""What every task of a preparation needs to know, as a file in the folder of the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import polars as pl

from balancer.data.checks import BadRows
from balancer.data.spec import Spec
from balancer.errors import CorruptFileError
from balancer.files import read_json, write_json
from balancer.tables.kinds import PLAN_FILE, WORK
from balancer.tables.options import ReadOptions
from balancer.tables.source import opened
from balancer.tables.times import TimeForm

LEARNED_FILE = "learned.json"
"""What the rows say, in the folder `WORK` of a preparation."""
TIME, REPORTS = "\0time", "\0reports"
"""Names of the times and of the dates of reports among columns that are read whole; no column has them."""


@dataclass(frozen=True)
class Whole:
    """A column that was read whole, because a part of its values does not show what they mean."""

    file: str
    """Its values, in a file of the folder `whole`; the reasons of bad rows are beside it."""
    reasons: tuple[str, ...] = ()
    """Why rows are bad; the number of a reason, from 1, stands in the file of the bad rows."""
    notes: tuple[str, ...] = ()
    """What was found."""


@dataclass(frozen=True)
class Plan:
    """How a table is prepared."""

    source: str
    """The table."""
    spec: Spec
    bad_rows: BadRows
    hash_buckets: int
    shards: int
    chunk_rows: int
    """Rows of the input that are read at a time."""
    files: str
    """Digest of the files of the table; only a preparation with the same is continued."""
    options: str
    """Digest of the roles and the other options, likewise."""
    height: int
    """Rows of the input."""
    columns: tuple[str, ...]
    """All columns of the table."""
    made_of: Mapping[str, tuple[str, ...]]
    """The columns of each used name, several where it is joined."""
    copy: str | None
    """A Parquet copy of the used columns, where the table can't be read in ranges of rows."""
    read: ReadOptions
    """How text is read, as given or found."""
    opening: tuple[str, ...]
    """Notes about how the table was opened."""
    time_form: str | None = None
    """The format that all times are expected to have, where they are text with the year first."""
    found: TimeForm = field(default_factory=TimeForm)
    """How times are read."""
    time_note: str | None = None
    whole: Mapping[str, Whole] = field(default_factory=dict)
    """Columns that were read whole, by name, `TIME` or `REPORTS`."""

    @property
    def used(self) -> list[str]:
        """The columns that are read, each once."""
        return list(dict.fromkeys(part for each in self.made_of.values() for part in each))

    @property
    def keys(self) -> tuple[str, ...]:
        """The categorical and context columns, in the order of their files."""
        return tuple(dict.fromkeys((*self.spec.categorical, *self.spec.context)))

    @property
    def contexts(self) -> tuple[str, ...]:
        """The context columns that have fields."""
        return self.spec.context if self.spec.time is not None else ()

    @property
    def chunks(self) -> int:
        """Number of parts of the input."""
        return -(-self.height // self.chunk_rows)

    def chunk(self, number: int) -> tuple[int, int]:
        """First row of a part of the input, and the row after its last one."""
        return number * self.chunk_rows, min((number + 1) * self.chunk_rows, self.height)

    def frame(self, folder: Path) -> pl.LazyFrame:
        """The table, which is read in ranges of rows."""
        if self.copy is not None:
            return pl.scan_parquet(folder / WORK / self.copy, glob=False)
        return opened(Path(self.source), self.spec.read).frame

    def write(self, folder: Path) -> None:
        """Write the file of the plan."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain |= {
            "spec": self.spec.to_dict(),
            "read": self.read.to_dict(),
            "found": {key: value for key, value in vars(self.found).items() if value is not None},
            "made_of": {name: list(parts) for name, parts in self.made_of.items()},
            "whole": {name: vars(each) for name, each in self.whole.items()},
        }
        write_json(folder / WORK / PLAN_FILE, plain)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read the file of the plan.

        Raises:
            CorruptFileError: It is damaged.
        """
        path = folder / WORK / PLAN_FILE
        raw = read_json(path, what="it says how a table is prepared")
        try:
            values: dict[str, Any] = {each.name: raw[each.name] for each in fields(cls)}
            values |= {
                "spec": Spec.from_dict(raw["spec"]),
                "read": ReadOptions.from_dict(raw["read"]),
                "found": TimeForm(**raw["found"]),
                "made_of": {name: tuple(parts) for name, parts in raw["made_of"].items()},
                "whole": {name: Whole(each["file"], tuple(each["reasons"]), tuple(each["notes"])) for name, each in raw["whole"].items()},
            }
            held: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            return cls(**held)
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(f"{path} can't be used ({error}): delete the folder, and run balancer prepare again") from error


def place_of(folder: Path, stage: str, number: int) -> Path:
    """The folder of the files that a task makes."""
    return folder / WORK / stage / f"{number:05d}"


def marker(folder: Path, stage: str, number: int) -> Path:
    """The file that a task writes last: with it, the task is finished."""
    return folder / WORK / stage / f"{number:05d}.json"


def result_of(folder: Path, stage: str, number: int) -> dict[str, Any]:
    """What a finished task found."""
    return read_json(marker(folder, stage, number), what="it is the result of a finished task of balancer prepare")
