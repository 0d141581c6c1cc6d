"""The roles of a store with their reasons, as they were found when it was prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from balancer.data.column_roles import Choice
from balancer.data.examining import Examined
from balancer.data.label_role import no_label
from balancer.data.reading import Source
from balancer.data.role_table import ColumnRole, Roles
from balancer.data.sharded.agreement import refuse
from balancer.data.sharded.files import StoreFiles
from balancer.data.spec import SPLIT_KEYS, SplitSpec, normalise, read_spec_file
from balancer.errors import CorruptFileError, InputError
from balancer.files import atomic_path, read_json, write_json
from balancer.tables.options import ReadOptions
from balancer.tables.profile import ColumnProfile
from balancer.tables.source import Opened

ROLES_FILE, SAMPLE_FILE = "roles.json", "sample.parquet"


def write_roles(folder: Path, roles: Roles) -> None:
    """Write the roles to the folder of a store, with the rows that they were found in."""
    with atomic_path(folder / SAMPLE_FILE) as temporary:
        roles.table.sample.write_parquet(temporary)
    columns = [{"profile": vars(each.profile), "choice": vars(each.choice)} for each in roles.columns]
    said = {"notes": list(roles.notes), "doubts": list(roles.doubts), "cautions": list(roles.cautions)}
    write_json(folder / ROLES_FILE, {"columns": columns, "rows": roles.table.rows, "read": roles.table.read.to_dict()} | said)


def given_roles(spec_file: str | Path | None, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keys of a spec that a file and flags give; `split` and `read` are dicts.

    Args:
        spec_file: TOML file with the keys of `Spec`.
        overrides: The same keys, from flags, which come first. Keys of the split may stand beside them.

    Raises:
        InputError: A key is unknown, or a value has the wrong type.
    """
    given = read_spec_file(spec_file) if spec_file is not None else {}
    flags = {key: value for key, value in (overrides or {}).items() if value is not None}
    border = {key: flags.pop(key) for key in SPLIT_KEYS if key in flags}
    flags = normalise(flags)
    split = {**given.get("split", {}), **flags.get("split", {}), **border}
    return {**given, **flags, "split": split, "read": {**given.get("read", {}), **flags.get("read", {})}}


def stored_roles(source: Source, given: Mapping[str, Any], *, need_label: bool) -> Roles:
    """Read the roles of a store.

    Args:
        source: The folder of the store.
        given: Keys of a spec that flags and a file give. Those of the split replace those of the store.
        need_label: Whether a label is required.

    Raises:
        InputError: Another role is given than the store has, or it has no label.
    """
    assert isinstance(source, str | Path)
    store = StoreFiles.open(source)
    path = store.path / ROLES_FILE
    raw = read_json(path, what="it holds the roles of the columns")
    refuse(store, {key: value for key, value in given.items() if key not in ("split", "read")})
    own = store.spec.read.to_dict()
    other = [key for key, value in ReadOptions.from_dict(given["read"]).to_dict().items() if own.get(key) != value]
    if other:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in other)
        raise InputError(f"{store.path} is a store, whose text was read when it was prepared: leave {flags} out, or prepare another store")
    shares = store.spec.to_dict()["split"]
    if any(isinstance(value, str) and key in ("train", "validation") for key, value in given["split"].items()):
        shares = {key: value for key, value in shares.items() if key not in ("train", "validation", "test")}
    spec = replace(store.spec, split=SplitSpec.from_dict({**shares, **given["split"]}) if given["split"] else store.spec.split)
    if need_label and spec.label is None and spec.label_date is None:
        raise no_label(list(store.info.columns))
    try:
        columns = tuple(
            ColumnRole(ColumnProfile(**each["profile"] | {"first": tuple(each["profile"]["first"])}), Choice(**each["choice"]))
            for each in raw["columns"]
        )
        sample, rows = pl.read_parquet(store.path / SAMPLE_FILE, glob=False), int(raw["rows"])
        said = {name: tuple(raw[name]) for name in ("notes", "doubts", "cautions")}
        read = ReadOptions.from_dict(raw["read"])
    except (KeyError, TypeError, pl.exceptions.PolarsError, OSError) as error:
        raise CorruptFileError(f"{path} can't be used ({error}): the store is damaged, run balancer prepare again") from error
    opened = Opened(str(store.path), sample.lazy(), False, store.info.opening, read)
    table = Examined(store.path, opened, rows, sample, {each.name: each.profile for each in columns})
    return Roles(spec, columns, said["notes"], said["doubts"], table, said["cautions"])
