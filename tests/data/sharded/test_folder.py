"""Reading a store by shards and under other schemas; roles that differ; unfinished and damaged stores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from balancer.data.dataset import load_dataset
from balancer.data.inspection import inspect_table
from balancer.data.preparing import store_writing
from balancer.data.preparing.store_writing import Task, in_this_process, prepare_store
from balancer.data.reading import read_columns
from balancer.data.roles import Roles, inferred, resolve_spec
from balancer.data.sharded.columns import make_column, read_rows, write_rows
from balancer.data.sharded.folder import StoreFolder
from balancer.data.spec import SplitSpec
from balancer.data.split import Split
from balancer.errors import CorruptFileError, InputError, MissingFileError, UnsupportedError, UnwritableFileError
from balancer.tables.kinds import WORK, is_store
from tests.data.sharded.tables import equal, prepared, roles_of, table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Roles, StoreFolder]]:
    """A table, its roles, and its store of four shards; read them, don't write."""
    folder = tmp_path_factory.mktemp("made")
    path = folder / "table.parquet"
    table().write_parquet(path)
    roles = roles_of(path)
    with pytest.MonkeyPatch.context() as patch:
        yield path, roles, prepared(path, folder / "store", roles, patch, shards=4)


def test_shards_are_the_rows_of_the_table_one_after_the_other(made: tuple[Path, Roles, StoreFolder]) -> None:
    path, roles, store = made
    data = load_dataset(path, roles.spec)
    assert is_store(store.path)
    assert store.rows == len(data.store)
    assert store.shards == 4
    assert store.spec == roles.spec
    for number in range(4):
        first, last = store.range(number)
        assert 60 < last - first < 120
        shard, rows = store.shard(number), slice(first, last)
        for name in ("values", "time", "label", "amount", "row"):
            np.testing.assert_array_equal(getattr(shard.store, name), getattr(data.store, name)[rows])
        np.testing.assert_array_equal(shard.store.start, data.store.start[rows] - first)
        names = [data.entities[code] for code in data.store.entity[rows]]
        assert [shard.entities[code] for code in shard.store.entity] == names
        assert shard.ids.equals(data.ids[first:last])
        assert shard.split.tolist() == data.split[rows].tolist()
    with pytest.raises(InputError, match="give a number from 0 to 3"):
        store.shard(4)


def test_a_shard_is_scored_under_the_schema_of_a_run(made: tuple[Path, Roles, StoreFolder], tmp_path: Path) -> None:
    path, roles, store = made
    other = tmp_path / "other.parquet"
    table(300, seed=5).with_columns(distance=pl.lit(0.5), kind=pl.when(pl.col("kind") != "atm").then("kind")).write_parquet(other)
    schema = load_dataset(other, roles.spec, hash_buckets=3, score_fields=True).schema
    assert schema.missing != store.schema.missing
    data = load_dataset(path, schema.spec, schema=schema)
    whole = load_dataset(store.path, schema.spec, schema=schema)
    np.testing.assert_array_equal(data.store.values, whole.store.values)
    assert (whole.split == Split.TEST).all()
    values = [store.shard(number, schema=schema).store.values for number in range(store.shards)]
    np.testing.assert_array_equal(data.store.values, np.concatenate(values))
    frame = data.input_frame().select("id", "time", "card", "amount", "fraud")
    shown = whole.input_frame().select("id", "time", "card", "amount", pl.col("fraud").cast(pl.Int8))
    assert frame.equals(shown)


def test_what_training_learns_anew(made: tuple[Path, Roles, StoreFolder]) -> None:
    """Another split, hash buckets, score fields, or the codes of another run: as from the table."""
    path, roles, store = made
    codes = load_dataset(path, roles.spec, hash_buckets=2).schema
    for options in ({"hash_buckets": 4}, {"score_fields": True}, {"codes": codes}, {"like": codes}):
        one, two = (load_dataset(each, roles.spec, **options) for each in (path, store.path))
        two.notes = [note for note in two.notes if "copied to memory" not in note]
        equal(one, two)
    for split in (SplitSpec(0.5, 0.25, 0.25), SplitSpec(by="random", seed=2)):
        spec = replace(roles.spec, split=split)
        one, two = load_dataset(path, spec), load_dataset(store.path, spec)
        two.notes = [note for note in two.notes if "copied to memory" not in note]
        equal(one, two)


def test_values_are_mapped_and_the_files_are_never_changed(made: tuple[Path, Roles, StoreFolder]) -> None:
    _, roles, store = made
    data = load_dataset(store.path, roles.spec)
    assert not data.store.values.flags.writeable
    data.store.label[:] = 9
    assert load_dataset(store.path, roles.spec).store.label.max() < 9
    scored = load_dataset(store.path, roles.spec, score_fields=True)
    scored.fill_score_fields(np.ones(store.rows))
    assert (scored.store.values[:, 0] == 1).all()


def test_roles_come_from_the_store_and_may_not_differ(made: tuple[Path, Roles, StoreFolder]) -> None:
    _, roles, store = made
    found = inferred(store.path)
    assert (found.spec, found.notes, found.columns, found.table.rows) == (roles.spec, roles.notes, roles.columns, store.rows)
    given = {"entity": "card", "numeric": "score,distance", "label_delay": "2d", "train": 0.5, "validation": 0.25, "test": 0.25}
    assert resolve_spec(store.path, overrides=given) == replace(roles.spec, split=SplitSpec(0.5, 0.25, 0.25))
    with pytest.raises(
        InputError, match=r"other roles, the flags or the spec file give --entity shop instead of card, --label-delay 86400"
    ):
        resolve_spec(store.path, overrides={"entity": "shop", "label_delay": "1d"})
    with pytest.raises(InputError, match="leave --decimal out"):
        resolve_spec(store.path, overrides={"read": {"decimal": ","}})
    with pytest.raises(InputError, match="the run was trained with --context kind instead of shop,kind"):
        store.shard(0, schema=replace(store.schema, spec=replace(roles.spec, context=("kind",))))
    with pytest.raises(InputError, match="has the classes 0, 1, and the run 0, 2"):
        store.shard(0, schema=replace(store.schema, classes=("0", "2")))
    with pytest.raises(InputError, match="prepare them and the rows together"):
        load_dataset(store.path, roles.spec, past=store.path)
    with pytest.raises(UnsupportedError, match="is a store of balancer prepare"):
        read_columns(store.path)
    shown = inspect_table(store.path)
    assert shown.classes == dict(table()["fraud"].cast(pl.String).value_counts().sort("fraud").rows())
    assert shown.time["days"] == pytest.approx(60, abs=1)
    assert any(note.startswith("a store of 4 shards") for note in shown.notes)


def test_a_stopped_preparation_continues(made: tuple[Path, Roles, StoreFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after each task, it runs only the tasks that are missing, and the store is the same."""
    path, roles, store = made
    monkeypatch.setattr(store_writing, "CHUNK_ROWS", 200)
    out, ran = tmp_path / "store", []

    class StoppedError(Exception):
        pass

    def one_task(task: Task, folder: str, numbers: Sequence[int]) -> Iterator[int]:
        for number in numbers:
            ran.append((task.__name__, number))
            yield from in_this_process(task, folder, [number])
            raise StoppedError

    for _ in range(30):
        try:
            prepare_store(path, out, roles, shards=4, run_tasks=one_task)
            break
        except StoppedError:
            with pytest.raises(MissingFileError, match=r"balancer prepare --out .* finishes it"):
                StoreFolder.open(out)
            with pytest.raises(MissingFileError, match="is a store that is not finished"):
                inspect_table(out)
    assert len(ran) == len(set(ran)) == 2 + 2 + 8 + 4
    assert not (out / WORK).exists()
    equal(load_dataset(store.path, roles.spec), load_dataset(out, roles.spec))
    with pytest.raises(UnwritableFileError, match=f"^{out} is a finished store"):
        prepare_store(path, out, roles, shards=4)


def test_only_a_preparation_of_the_same_table_is_continued(
    made: tuple[Path, Roles, StoreFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, roles, _ = made
    other = tmp_path / "table.parquet"
    shutil.copy(path, other)

    def stop(*_: object) -> Iterator[int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_writing, "CHUNK_ROWS", 200)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(other, tmp_path / "store", roles, shards=2, run_tasks=stop)
    for changed, shards, message in ((other, 3, "begun with other roles, --shards"), (path, 2, "has an unfinished store of another table")):
        with pytest.raises(UnwritableFileError, match=message):
            prepare_store(changed, tmp_path / "store", roles, shards=shards)
    with pytest.raises(UnwritableFileError, match="is not empty"):
        prepare_store(other, tmp_path, roles)
    (tmp_path / "store" / WORK / "plan.json").unlink()  # as if it was stopped before there was a plan
    assert prepare_store(other, tmp_path / "store", roles, shards=3).shards == 3


def test_a_folder_is_prepared_by_one_process_at_a_time(made: tuple[Path, Roles, StoreFolder], tmp_path: Path) -> None:
    path, roles, _ = made
    refused = []

    def another(task: Task, folder: str, numbers: Sequence[int]) -> Iterator[int]:
        if not refused:
            with pytest.raises(UnwritableFileError, match=f"^{tmp_path / 'store'} is being written by another balancer process") as raised:
                prepare_store(path, tmp_path / "store", roles, shards=2)
            refused.append(raised)
        yield from in_this_process(task, folder, numbers)

    assert prepare_store(path, tmp_path / "store", roles, shards=2, run_tasks=another).shards == 2
    assert refused
    assert not (tmp_path / "store" / ".lock").exists()


def test_a_refused_table_leaves_nothing_and_foreign_folders_are_kept(made: tuple[Path, Roles, StoreFolder], tmp_path: Path) -> None:
    _, roles, _ = made
    path, out, own = tmp_path / "table [1].parquet", tmp_path / "store [*]", tmp_path / "own"
    table().with_columns(card=pl.Series([None] + ["a"] * 359)).write_parquet(path)
    with pytest.raises(InputError, match="has no entity"):
        prepare_store(path, out, roles)
    assert not out.exists()
    store = prepare_store(path, out, roles, bad_rows="drop")
    assert store.rows == len(load_dataset(out, roles.spec).ids) == 359
    (own / "work").mkdir(parents=True)
    (own / "work" / "thesis.txt").write_text("mine")
    with pytest.raises(UnwritableFileError, match="is not empty"):
        prepare_store(path, own, roles, bad_rows="drop")
    assert (own / "work" / "thesis.txt").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"amount": pl.Series(["x"] + ["1"] * 359)}, r"column 'amount': row 1 is text, not a number \('x'\)"),
        ({"card": pl.Series(["a"] * 250 + [None] + ["b"] * 109)}, "column 'card': row 251 has no entity"),
        ({"id": pl.Series([*range(300), 7, *range(301, 360)])}, r"column 'id': row 301 repeats the id of an earlier row \(7\)"),
        ({"time": pl.Series(["2024-01-01"] * 359 + ["soon"])}, "column 'time' has text that is not a time: .*row 360"),
        ({"fraud": pl.Series([1] * 360)}, "column 'fraud' has only the class '1'"),
    ],
)
def test_a_bad_row_is_named_by_its_place_in_the_table(
    change: dict[str, pl.Series], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.parquet"
    frame = table().with_columns(**change)
    frame.write_parquet(path)
    with pytest.raises(InputError, match=message):
        prepared(path, tmp_path / "store", roles_of(path), monkeypatch)


def test_damaged_stores_are_refused(made: tuple[Path, Roles, StoreFolder], tmp_path: Path) -> None:
    _, roles, store = made
    with pytest.raises(MissingFileError, match="is no store"):
        StoreFolder.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(store.path, copy)
    (copy / "columns" / "values.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(CorruptFileError, match=r"values\.npy can't be read"):
        load_dataset(copy, roles.spec)
    with pytest.raises(CorruptFileError, match=r"values\.npy can't be read"):
        StoreFolder.open(copy).shard(0)
    content = json.loads((copy / "store.json").read_text())
    (copy / "store.json").write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(CorruptFileError, match="has version 99"):
        StoreFolder.open(copy)
    (copy / "store.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(CorruptFileError, match="can't be used"):
        StoreFolder.open(copy)


def test_a_column_is_written_in_ranges(tmp_path: Path) -> None:
    path = tmp_path / "column.npy"
    make_column(path, np.float32, (5, 2))
    write_rows(path, 3, np.ones((2, 2)))
    write_rows(path, 0, np.full((1, 2), 7.0))
    assert np.load(path).tolist() == [[7, 7], [0, 0], [0, 0], [1, 1], [1, 1]]
    assert read_rows(path, 2, 4).tolist() == [[0, 0], [1, 1]]
    with pytest.raises(CorruptFileError, match="is truncated"):
        read_rows(path, 4, 6)
