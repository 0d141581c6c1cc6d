"""What all parts of the input say together: names, classes, split, schema, and which rows a shard has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checked import UNKNOWN_CLASSES
from balancer.data.checks import RowCheck
from balancer.data.labels import EMPTY, NEGATIVE_NAMES, check_label, find_classes, labels_of
from balancer.data.preparing.chunks import STAGE
from balancer.data.preparing.coding import Codes, coded, cuts_of, distinct_names, translated
from balancer.data.preparing.plan import LEARNED_FILE, Plan, place_of, result_of
from balancer.data.row_times import NO_TIME, assumed, dated_labels, examined_times, reported_early
from balancer.data.schema import Schema
from balancer.data.sharded.columns import make_column, rows_of, write_rows
from balancer.data.sharded.files import COLUMNS, ENTITY, NAMES, key_file, number_file
from balancer.data.sharded.fingerprints import fingerprint
from balancer.data.sharded.loading import counted_codes
from balancer.data.split import Split
from balancer.data.splitting import Parts, SplitRows, split_rows
from balancer.data.table_fields import learn_schema, with_codes
from balancer.errors import InputError
from balancer.files import read_json, write_json
from balancer.tables.kinds import WORK
from balancer.tables.source import opened
from balancer.tables.values import normal_text

TO_SCORE = "the store can be scored, and not be trained on"
NO_LABEL = f"the table has no label: {TO_SCORE}"


@dataclass(frozen=True)
class Learned:
    """What the tasks that write shards need to know."""

    chunk_offsets: tuple[int, ...]
    """(chunks + 1,) number of the first good row of each part of the input, and the number of good rows."""
    schema: Schema
    has_split: bool
    notes: tuple[str, ...]
    cautions: tuple[str, ...]
    dropped: Mapping[str, int]
    fingerprint: str
    absent: tuple[str, ...]
    entity_cuts: tuple[int, ...]
    """(S + 1,) first entity code of each shard, and the number of entities."""
    offsets: tuple[int, ...]
    """(S + 1,) first row of each shard, and the number of rows."""
    context_cuts: Mapping[str, tuple[int, ...]]
    """(S + 1,) first code of each part of the values of a context column."""

    def write(self, folder: Path) -> None:
        """Write the file that the tasks read."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        write_json(folder / WORK / LEARNED_FILE, plain | {"schema": self.schema.to_dict()})

    @classmethod
    def load(cls, folder: Path) -> Learned:
        """Read the file."""
        raw = read_json(folder / WORK / LEARNED_FILE, what="it says how a table is cut in shards")
        values: dict[str, Any] = {
            each.name: tuple(raw[each.name]) if isinstance(raw[each.name], list) else raw[each.name] for each in fields(cls)
        }
        values |= {
            "schema": Schema.from_dict(raw["schema"]),
            "context_cuts": {name: tuple(cuts) for name, cuts in raw["context_cuts"].items()},
        }
        return cls(**values)


def learn(folder: Path, plan: Plan) -> Learned:
    """Learn from all parts of the input, after they were checked.

    Arrays of all rows are held for the times, the labels and one further column at a time: up to about 40
    bytes a row. Writes the labels and parts of the rows, the names of entities and keys, and the hashes of
    the rows.

    Raises:
        InputError: No row is good, or the times or labels of the table can't be used.
    """
    found, spec = [result_of(folder, STAGE, number) for number in range(plan.chunks)], plan.spec
    dropped: dict[str, int] = {}
    for each in found:
        for reason, count in each["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    offsets = np.concatenate(([0], np.cumsum([each["rows"] for each in found])))
    size = int(offsets[-1])
    if not size:
        raise InputError(f"every row is bad and was dropped ({dropped}): check the roles of the columns")
    notes, cautions = _times(folder, plan)
    time = _column(folder, plan, "time")
    reports = None if spec.label_date is None else _column(folder, plan, "reports")
    classes, label, said = _labels(folder, plan, time, reports)
    notes += [*said, *(note for name in (spec.amount, *spec.numeric) if name in plan.whole for note in plan.whole[name or ""].notes)]
    if reports is not None and spec.time is not None:
        early = _early(folder, plan, reports, time)
        cautions += [early] if early else []
    labelled = spec.label is not None or spec.label_date is not None
    notes += [] if labelled else [NO_LABEL]
    names = {file: _merged_names(folder, plan, file) for file in ([] if spec.entity is None else [ENTITY]) + [*_key_files(plan).values()]}
    parts = _split(folder, plan, classes, SplitRows(time, label, np.zeros(0, np.int64), np.zeros(0, np.int32), (), reports), names)
    train = np.ones(size, np.bool_) if parts is None else parts.split == Split.TRAIN
    counts, known = _counts(folder, plan, names, train)
    numbers = _Numbers(folder, plan)
    schema = learn_schema(spec, classes, numbers, train, keys=plan.keys, has_amount=spec.amount is not None)
    schema = with_codes(schema, known, None, plan.hash_buckets)
    schema = replace(schema, joined={name: each for name, each in plan.made_of.items() if len(each) > 1}, time=plan.found)
    np.save(folder / WORK / "label.npy", label)
    if parts is not None:
        np.save(folder / WORK / "split.npy", parts.split)
        np.save(folder / WORK / "learned.npy", parts.label)
    del train, label, parts
    entities = counts[ENTITY] if spec.entity is not None else None
    if entities is None:
        np.save(folder / WORK / "rank.npy", time_ranks(time))
        cuts = np.array([size * number // plan.shards for number in range(plan.shards + 1)])
        rows = cuts
    else:
        cuts = cuts_of(entities, plan.shards)
        rows = np.concatenate((np.zeros(1, np.int64), np.cumsum(entities)))[cuts]
    files = _key_files(plan)
    result = Learned(
        chunk_offsets=tuple(offsets.tolist()),
        schema=schema,
        has_split=(folder / WORK / "split.npy").is_file(),
        notes=tuple(notes),
        cautions=tuple(cautions),
        dropped=dropped,
        fingerprint=_hashes(folder, plan, size),
        absent=numbers.absent(),
        entity_cuts=tuple(cuts.tolist()),
        offsets=tuple(rows.tolist()),
        context_cuts={name: tuple(cuts_of(counts[files[name]], plan.shards).tolist()) for name in plan.contexts},
    )
    result.write(folder)
    return result


def time_ranks(time: NDArray[np.float64]) -> NDArray[np.int32]:
    """(N,) the place of each row in time order: its entity where the table has none."""
    rank = np.empty(len(time), np.int32)
    rank[np.argsort(time, kind="stable")] = np.arange(len(time), dtype=np.int32)
    return rank


def _key_files(plan: Plan) -> dict[str, str]:
    return {name: key_file(place) for place, name in enumerate(plan.keys)}


def _parts(folder: Path, plan: Plan, name: str) -> Iterator[NDArray[Any]]:
    """A column of each part of the input, in order."""
    for number in range(plan.chunks):
        yield np.load(place_of(folder, STAGE, number) / f"{name}.npy")


def _column(folder: Path, plan: Plan, name: str) -> NDArray[Any]:
    """A column of all good rows, in the order of the input (`accepted`: of all rows)."""
    sizes = [rows_of(place_of(folder, STAGE, number) / f"{name}.npy") for number in range(plan.chunks)]
    found, first = np.zeros(0), 0
    for part in _parts(folder, plan, name):
        if not first:  # one array is filled, so that there are no two copies
            found = np.empty(sum(sizes), part.dtype)
        found[first : first + len(part)] = part
        first += len(part)
    return found


class _Numbers(Mapping[str, NDArray[np.float32]]):
    """The numeric columns, each read when it is asked for."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        self._absent: set[str] = set()

    def __getitem__(self, column: str) -> NDArray[np.float32]:
        values = _column(self._folder, self._plan, number_file(self._plan.spec.numeric.index(column)))
        if np.isnan(values).any():
            self._absent.add(column)
        return values

    def absent(self) -> tuple[str, ...]:
        """Those with a missing number, of the columns that were asked for."""
        return tuple(name for name in self if name in self._absent)

    def __iter__(self) -> Iterator[str]:
        return iter(self._plan.spec.numeric)

    def __len__(self) -> int:
        return len(self._plan.spec.numeric)


@dataclass(frozen=True)
class _Cells:
    """A column whose cells are read for a message."""

    folder: Path
    plan: Plan
    column: str
    name: str

    def __getitem__(self, row: int, /) -> Any:
        return self.plan.frame(self.folder).select(self.column).slice(row, 1).collect().item()


class _KeptRows(RowCheck):
    """Names good rows by their place in the input."""

    rows: NDArray[np.int64]

    def place(self, column: str, row: int) -> str:
        """See `RowCheck`."""
        return super().place(column, int(self.rows[row]))


def _times(folder: Path, plan: Plan) -> tuple[list[str], list[str]]:
    """Notes and cautions about the times of the table."""
    spec = plan.spec
    if spec.time is None:
        return [NO_TIME], []
    seconds = _column(folder, plan, "accepted")
    check = RowCheck(plan.height, plan.bad_rows, table=opened(Path(plan.source), spec.read))
    check.keep = ~np.isnan(seconds)
    seconds[~check.keep] = 0.0
    cells = _Cells(folder, plan, plan.made_of[spec.time][0], spec.time)
    times = examined_times(spec, plan.found, plan.time_note, cells, seconds, check)
    return [*times.notes], [*times.cautions]


def _early(folder: Path, plan: Plan, reports: NDArray[np.float64], time: NDArray[np.float64]) -> str | None:
    """A warning where frauds were reported before their rows."""
    check = _KeptRows(len(time), plan.bad_rows, table=opened(Path(plan.source), plan.spec.read))
    check.rows = _column(folder, plan, "row")
    name = plan.spec.label_date or ""
    return reported_early(_Cells(folder, plan, name, name), reports, time, check)


def _labels(
    folder: Path, plan: Plan, time: NDArray[np.float64], reports: NDArray[np.float64] | None
) -> tuple[tuple[str, ...], NDArray[np.int16], tuple[str, ...]]:
    """The classes, the (N,) class of each row, and notes."""
    spec = plan.spec
    if spec.label is None:
        if reports is None:
            return UNKNOWN_CLASSES, np.full(len(time), -1, np.int16), ()
        return UNKNOWN_CLASSES, dated_labels(reports, None if spec.time is None else time, spec.label_delay), ()
    counts = pl.concat([pl.read_parquet(place_of(folder, STAGE, number) / "label.parquet", glob=False) for number in range(plan.chunks)])
    counts = counts.group_by("name").agg(pl.col("rows").sum()).sort("name")
    names, rows = counts["name"].alias(spec.label), counts["rows"].cast(pl.Int64)
    labels = labels_of(names, negative=spec.negative, rows=rows)
    classes = _only_legitimate(labels.text, spec.negative)
    said = labels.notes
    if classes is None:
        classes = find_classes(labels.text, spec.negative, rows)
    else:
        held = f"only the class {classes[0]!r}" if classes else "no value"
        said = (*said, f"column {spec.label!r} has {held}: {TO_SCORE}")
    codes = check_label(labels.text, classes, RowCheck(len(names), "error"))
    empty = names.is_null().to_numpy()
    null, known, codes = np.int16(codes[empty][0] if empty.any() else -1), names.drop_nulls(), codes[~empty]
    label = []
    for number, own in enumerate(_parts(folder, plan, "label")):
        written = pl.read_parquet(place_of(folder, STAGE, number) / "label_names.parquet", glob=False).to_series()
        label.append(np.append(codes[coded(written, known)], null)[own].astype(np.int16))
    return classes, np.concatenate(label), said


def _only_legitimate(text: pl.Series, negative: str | None) -> tuple[str, ...] | None:
    """The classes of a table without a fraud: the legitimate one, or none; None for other tables.

    Such a table, of rows whose label is not known yet, can be scored.
    """
    names = [str(name) for name in text.drop_nulls().unique()]
    legitimate = NEGATIVE_NAMES if negative is None else {str(normal_text(negative) or EMPTY).lower()}
    return tuple(names) if len(names) < 2 and {name.lower() for name in names} <= legitimate else None


def _merged_names(folder: Path, plan: Plan, file: str) -> pl.Series:
    """The sorted distinct names of all parts of the input, which are written to the store."""
    merged = pl.Series("name", [], dtype=pl.String)
    for number in range(plan.chunks):
        part = pl.read_parquet(place_of(folder, STAGE, number) / f"{file}.parquet", glob=False).to_series()
        merged = pl.concat([merged, part.alias("name")]).unique()
    merged = distinct_names(merged)
    merged.to_frame().write_parquet(folder / NAMES / f"{file}.parquet", row_group_size=1 << 16)
    return merged


def chunk_codes(folder: Path, file: str, number: int, names: pl.Series) -> Codes:
    """Codes of the good rows of a part of the input in the merged names; -1 is null."""
    place = place_of(folder, STAGE, number)
    own = pl.read_parquet(place / f"{file}.parquet", glob=False).to_series()
    return translated(np.load(place / f"{file}.npy"), coded(own, names))


def _counts(
    folder: Path, plan: Plan, names: Mapping[str, pl.Series], train: NDArray[np.bool_]
) -> tuple[dict[str, NDArray[np.int64]], dict[str, pl.DataFrame]]:
    """Rows of each name by file, and training rows of each value by categorical column."""
    rows = {file: np.zeros(len(each), np.int64) for file, each in names.items()}
    known: dict[str, pl.DataFrame] = {}
    columns = {file: name for name, file in _key_files(plan).items()}
    for file, each in names.items():
        learned, first = np.zeros(len(each), np.int64), 0
        for number in range(plan.chunks):
            codes = chunk_codes(folder, file, number, each)
            rows[file] += np.bincount(codes[codes >= 0], minlength=len(each))
            if columns.get(file) in plan.spec.categorical:
                counted = counted_codes(codes, train[first : first + len(codes)], each)
                learned[coded(counted["name"], each)] += counted["n"].to_numpy()
            first += len(codes)
        if columns.get(file) in plan.spec.categorical:
            known[columns[file]] = pl.DataFrame({columns[file]: each, "n": learned}).filter(pl.col("n") > 0)
    return rows, known


def _split(folder: Path, plan: Plan, classes: tuple[str, ...], rows: SplitRows, names: Mapping[str, pl.Series]) -> Parts | None:
    """The parts of the rows in the order of the input; None where the table can't be split."""
    spec = plan.spec
    if spec.split.by == "random":
        row = _column(folder, plan, "row")
        if spec.entity is None:
            rows = replace(rows, row=row, entity=time_ranks(rows.time))
        else:
            codes = [chunk_codes(folder, ENTITY, number, names[ENTITY]) for number in range(plan.chunks)]
            rows = replace(rows, row=row, entity=np.concatenate(codes), entities=names[ENTITY].to_list())
    rows = replace(rows, reports=None) if spec.time is None else rows
    labelled = spec.label is not None or spec.label_date is not None
    parts = None
    if labelled and len(classes) < 2:
        return parts
    with suppress(InputError):  # training on the store reports it; a table to score need not be split
        parts = split_rows(rows, spec, classes, assumed=assumed(spec, plan.found), need_label=labelled)
    return parts


def _hashes(folder: Path, plan: Plan, size: int) -> str:
    """Write the hashes of the rows in the order of the input, and return the fingerprint of the table."""
    path, first = folder / COLUMNS / "hash.npy", 0
    make_column(path, np.uint64, (size,))
    for part in _parts(folder, plan, "hash"):
        write_rows(path, first, part)
        first += len(part)
    return fingerprint(plan.spec, _parts(folder, plan, "hash"))
