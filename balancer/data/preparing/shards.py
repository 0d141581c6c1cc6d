"""Compute the fields of the rows of a shard and write them to the columns of the store."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import DTypeLike, NDArray

from balancer.data.features import Field
from balancer.data.past import Events
from balancer.data.preparing.contexts import STAGE as CONTEXTS
from balancer.data.preparing.contexts import context_fields_of, field_type, task_number
from balancer.data.preparing.exchange import received, received_ids, row_type
from balancer.data.preparing.learned import Learned
from balancer.data.preparing.plan import Plan, place_of, result_of
from balancer.data.risk import WINDOW_DAYS
from balancer.data.schema import Schema, field_codes
from balancer.data.sharded.columns import make_column, write_rows
from balancer.data.sharded.files import COLUMNS, IDS, NAMES, SHARDS, key_file, number_file
from balancer.data.table_fields import field_values
from balancer.data.timeline import first_of_key
from balancer.files import atomic_path, write_json

_RISK = 2 * len(WINDOW_DAYS)
"""Fields of a context column that come before those of all context columns."""


def columns_of(plan: Plan, learned: Learned) -> dict[str, tuple[DTypeLike, tuple[int, ...]]]:
    """Dtype and further dimensions of the columns of a store that shards are written to, by name."""
    spec, schema = plan.spec, learned.schema
    fields = len(schema.numeric_fields) + len(schema.categorical_fields)
    found: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {"values": (np.float32, (fields,)), "time": (np.float64, ())}
    found |= {"entity": (np.int32, ()), "start": (np.int64, ()), "label": (np.int16, ()), "row": (np.int64, ())}
    found |= {"amount": (np.float64, ())} if spec.amount is not None else {}
    found |= {"reports": (np.float64, ())} if spec.label_date is not None else {}
    found |= {"split": (np.int8, ())} if learned.has_split else {}
    found |= {"learned": (np.int16, ())} if learned.has_split and spec.label_date is not None else {}
    found |= {number_file(place): (np.float32, ()) for place in range(len(spec.numeric))}
    return found | {key_file(place): (np.int32, ()) for place in range(len(plan.keys))}


def make_columns(folder: Path, plan: Plan, learned: Learned) -> None:
    """Make the files of the columns, where they are not there."""
    for name, (dtype, shape) in columns_of(plan, learned).items():
        path = folder / COLUMNS / f"{name}.npy"
        if not path.is_file():
            make_column(path, dtype, (learned.offsets[-1], *shape))


def write_shard(folder: str, number: int) -> None:
    """Compute the fields of a shard and write its rows to the store.

    Args:
        folder: The folder of the store.
        number: Number of the shard.
    """
    root = Path(folder)
    plan, learned = Plan.load(root), Learned.load(root)
    spec, schema = plan.spec, learned.schema
    given = received(root, plan, "shards", row_type(spec, plan.keys), number)
    order = np.lexsort((given["time"], given["entity"]))
    rows = given[order]
    first = learned.offsets[number]
    start = first_of_key(rows["entity"])
    columns: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
    keys = {name: columns[key_file(place)].astype(np.int64) for place, name in enumerate(plan.keys)}
    events = Events(columns["time"], start, columns.get("amount"), keys, spec.categorical)
    numbers = {name: columns[number_file(place)] for place, name in enumerate(spec.numeric)}
    contexts = _contexts(root, plan, given["row"], order, number)
    values = field_values(schema, events, contexts, _coded(root, plan, schema, columns), numbers)
    columns |= {"values": values, "start": start + first}
    sums = {}
    for name in columns_of(plan, learned):
        write_rows(root / COLUMNS / f"{name}.npy", first, columns[name])
        sums[name] = zlib.crc32(np.ascontiguousarray(columns[name]).data)
    if spec.id is not None:
        with atomic_path(root / IDS / f"{number:05d}.arrow") as temporary:
            received_ids(root, plan, number)[order].write_ipc(temporary)
    write_json(shard_file(root, number), {"first": first, "rows": len(rows), "checksums": sums})


def shard_file(folder: Path, number: int) -> Path:
    """The file that is written when a shard is finished."""
    return folder / SHARDS / f"{number:05d}.json"


def _coded(root: Path, plan: Plan, schema: Schema, columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """(n,) codes by categorical field."""
    found = {}
    for field, column in schema.categorical_columns.items():
        file = key_file(plan.keys.index(column))
        names = pl.read_parquet(root / NAMES / f"{file}.parquet", glob=False).to_series()
        table = field_codes(names, schema.vocabularies[field], schema.hash_buckets)
        found[field] = np.append(table, 0).astype(np.float32)[columns[file]]
    return found


def _contexts(root: Path, plan: Plan, row: NDArray[np.int64], order: NDArray[np.int64], shard: int) -> Iterator[Field]:
    """The fields of context columns that were computed for the rows of a shard.

    Args:
        root: The folder of the store.
        plan: The plan.
        row: (n,) rows of the input in the shard, ascending.
        order: (n,) their order in the shard.
        shard: Number of the shard.
    """
    values = []
    for column, name in enumerate(plan.contexts):
        dtype = field_type(plan.spec, name)
        found = np.zeros((len(row), dtype["fields"].shape[0]), np.float32)
        for part in range(plan.shards):
            number = task_number(plan, column, part)
            ends = result_of(root, CONTEXTS, number)["ends"]
            begin, end = ends[shard], ends[shard + 1]
            path = place_of(root, CONTEXTS, number).with_suffix(".bin")
            sent = np.fromfile(path, dtype, count=end - begin, offset=begin * dtype.itemsize)
            found[np.searchsorted(row, sent["row"])] = sent["fields"]
        values.append((context_fields_of(plan.spec, name), found[order]))
    for chosen in (slice(None, _RISK), slice(_RISK, None)):
        for names, found in values:
            for name, field in zip(names[chosen], found.T[chosen], strict=True):
                yield name, field
