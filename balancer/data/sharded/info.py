"""What a store says about itself: the file `store.json`, which is written last and makes a folder a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from balancer.data.schema import Schema
from balancer.data.spec import Spec
from balancer.errors import CorruptFileError, InputError
from balancer.files import read_json
from balancer.tables.kinds import STORE_FILE
from balancer.tables.times import TimeForm

VERSION = 1


@dataclass(frozen=True)
class StoreInfo:
    """Contents of `store.json`."""

    spec: Spec
    """Roles of the columns, and the split at which the schema was learned."""
    schema: Schema
    """The fields of the column `values`; without score fields."""
    offsets: tuple[int, ...]
    """(S + 1,) first row of each of the S shards, and the number of rows."""
    has_split: bool
    """Whether the rows could be split. Otherwise vocabularies are those of all rows."""
    found: TimeForm
    """How the times were read."""
    fingerprint: str
    """The fingerprint of the table with `spec`, as `Dataset` has it."""
    source: str
    """The table."""
    columns: tuple[str, ...]
    """All columns of the table, used or not."""
    opening: tuple[str, ...]
    """Notes about how the table was opened."""
    notes: tuple[str, ...]
    """Notes of the check of the rows."""
    cautions: tuple[str, ...]
    """Warnings of the check of the rows."""
    dropped: Mapping[str, int]
    """Rows left out, by reason."""
    absent: tuple[str, ...]
    """Numeric columns with a missing number."""
    has_ids: bool
    """Whether there are ids of rows."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.offsets[-1]

    @property
    def keys(self) -> tuple[str, ...]:
        """The categorical and context columns, in the order of their files."""
        return tuple(dict.fromkeys((*self.spec.categorical, *self.spec.context)))

    def to_dict(self) -> dict[str, Any]:
        """Convert to values that JSON can hold."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        found = {key: value for key, value in vars(self.found).items() if value is not None}
        converted = {"spec": self.spec.to_dict(), "schema": self.schema.to_dict(), "found": found, "dropped": dict(self.dropped)}
        return {"version": VERSION} | {
            key: list(value) if isinstance(value, tuple) else value for key, value in (plain | converted).items()
        }

    @classmethod
    def read(cls, folder: Path) -> StoreInfo:
        """Read the file of a store.

        Raises:
            CorruptFileError: It is damaged, or of a version that is not known.
        """
        path = folder / STORE_FILE
        raw = read_json(path, what="it describes the store")
        if raw.get("version") != VERSION:
            raise CorruptFileError(
                f"{path} has version {raw.get('version')!r}, and this version of balancer reads {VERSION}: prepare it again"
            )
        try:
            values: dict[str, Any] = {each.name: raw[each.name] for each in fields(cls)}
            values |= {"spec": Spec.from_dict(raw["spec"]), "schema": Schema.from_dict(raw["schema"]), "found": TimeForm(**raw["found"])}
            held: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            return cls(**held)
        except (KeyError, TypeError, AttributeError, InputError) as error:
            raise CorruptFileError(f"{path} can't be used ({error}): the store is damaged, run balancer prepare again") from error
