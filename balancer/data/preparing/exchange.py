"""Sort the rows of a part of the input by shard, and by part of each context column.

What is special: every task writes one file for each stage that follows, sorted by receiver, and a receiver
reads one range of each file. The rows of a receiver are in the order of the input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.preparing.chunks import STAGE as CHUNKS
from balancer.data.preparing.learned import Learned, chunk_codes
from balancer.data.preparing.plan import Plan, marker, place_of, result_of
from balancer.data.sharded.columns import read_rows
from balancer.data.sharded.files import ENTITY, NAMES, key_file, number_file
from balancer.data.spec import Spec
from balancer.files import write_json
from balancer.tables.kinds import WORK

STAGE = "exchange"
Record = NDArray[Any]


def row_type(spec: Spec, keys: tuple[str, ...]) -> np.dtype[Any]:
    """What is known of a row before its fields are computed."""
    columns: list[tuple[str, str]] = [("row", "i8"), ("time", "f8"), ("entity", "i4"), ("label", "i2"), ("learned", "i2"), ("split", "i1")]
    columns += [("amount", "f8")] if spec.amount is not None else []
    columns += [("reports", "f8")] if spec.label_date is not None else []
    columns += [(number_file(place), "f4") for place in range(len(spec.numeric))]
    return np.dtype(columns + [(key_file(place), "i4") for place in range(len(keys))])


def context_type(spec: Spec) -> np.dtype[Any]:
    """What the fields of a context column need to know of a row, and the shard that it goes to."""
    columns: list[tuple[str, str]] = [("row", "i8"), ("time", "f8"), ("code", "i4"), ("shard", "i4"), ("label", "i2")]
    columns += [("amount", "f8")] if spec.amount is not None else []
    return np.dtype(columns + ([("reports", "f8")] if spec.label_date is not None else []))


def exchange_chunk(folder: str, number: int) -> None:
    """Sort the good rows of a part of the input by receiver.

    Args:
        folder: The folder of the store.
        number: Number of the part.
    """
    root = Path(folder)
    plan, learned = Plan.load(root), Learned.load(root)
    spec, source, place = plan.spec, place_of(root, CHUNKS, number), place_of(root, STAGE, number)
    place.mkdir(parents=True, exist_ok=True)
    first, last = learned.chunk_offsets[number], learned.chunk_offsets[number + 1]
    rows = np.zeros(last - first, row_type(spec, plan.keys))
    for name in ("row", "time", *(name for name in ("amount", "reports") if name in (rows.dtype.names or ()))):
        rows[name] = np.load(source / f"{name}.npy")
    for column in range(len(spec.numeric)):
        rows[number_file(column)] = np.load(source / f"{number_file(column)}.npy")
    for column in range(len(plan.keys)):
        names = pl.read_parquet(root / NAMES / f"{key_file(column)}.parquet", glob=False).to_series()
        rows[key_file(column)] = chunk_codes(root, key_file(column), number, names)
    if spec.entity is None:
        rows["entity"] = read_rows(root / WORK / "rank.npy", first, last)
    else:
        rows["entity"] = chunk_codes(root, ENTITY, number, pl.read_parquet(root / NAMES / f"{ENTITY}.parquet", glob=False).to_series())
    rows["label"] = read_rows(root / WORK / "label.npy", first, last)
    if learned.has_split:
        rows["split"] = read_rows(root / WORK / "split.npy", first, last)
        rows["learned"] = read_rows(root / WORK / "learned.npy", first, last)
    shard = (np.searchsorted(learned.entity_cuts, rows["entity"], side="right") - 1).astype(np.int32)
    ends = {"shards": _write(place / "shards.bin", rows, shard, plan.shards)}
    if spec.id is not None:
        order = np.argsort(shard, kind="stable")
        pl.scan_ipc(source / "ids.arrow", glob=False).collect()[order].write_ipc(place / "ids.arrow")
    for column, name in enumerate(plan.contexts):
        given = np.zeros(len(rows), context_type(spec))
        for field in given.dtype.names or ():
            if field not in ("code", "shard"):
                given[field] = rows[field]
        given["code"], given["shard"] = rows[key_file(plan.keys.index(name))], shard
        part = np.searchsorted(learned.context_cuts[name], np.maximum(given["code"], 0), side="right") - 1
        part = np.minimum(part, plan.shards - 1)  # a column without any value has no ranges
        ends[f"context_{column}"] = _write(place / f"context_{column}.bin", given, part, plan.shards)
    write_json(marker(root, STAGE, number), {"ends": ends})


def _write(path: Path, rows: Record, receiver: NDArray[np.integer], receivers: int) -> list[int]:
    """Write rows sorted by receiver; returns where each range begins, and where the last one ends."""
    rows[np.argsort(receiver, kind="stable")].tofile(path)
    return [0, *np.cumsum(np.bincount(receiver, minlength=receivers)).tolist()]


def received(root: Path, plan: Plan, name: str, dtype: np.dtype[Any], receiver: int) -> Record:
    """The rows of a receiver from all parts of the input, in the order of the input."""
    parts = []
    for number in range(plan.chunks):
        ends = result_of(root, STAGE, number)["ends"][name]
        first, last = ends[receiver], ends[receiver + 1]
        path = place_of(root, STAGE, number) / f"{name}.bin"
        parts.append(np.fromfile(path, dtype, count=last - first, offset=first * dtype.itemsize))
    return np.concatenate(parts)


def received_ids(root: Path, plan: Plan, receiver: int) -> pl.DataFrame:
    """The ids of the rows of a shard, in the order of the input."""
    parts = []
    for number in range(plan.chunks):
        ends = result_of(root, STAGE, number)["ends"]["shards"]
        query = pl.scan_ipc(place_of(root, STAGE, number) / "ids.arrow", glob=False)
        parts.append(query.slice(ends[receiver], ends[receiver + 1] - ends[receiver]).collect())
    return pl.concat(parts)
