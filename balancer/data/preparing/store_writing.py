"""Prepare a table as a store: the stages, their order, and what is kept of an earlier try."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from balancer.data.checks import BadRows
from balancer.data.preparing.chunks import REPEATED_IDS, check_chunk
from balancer.data.preparing.chunks import STAGE as CHUNKS
from balancer.data.preparing.contexts import STAGE as CONTEXTS
from balancer.data.preparing.contexts import tasks_of, write_context
from balancer.data.preparing.exchange import STAGE as EXCHANGE
from balancer.data.preparing.exchange import exchange_chunk
from balancer.data.preparing.learned import Learned, learn
from balancer.data.preparing.plan import LEARNED_FILE, TIME, Plan, marker, result_of
from balancer.data.preparing.shards import make_columns, shard_file, write_shard
from balancer.data.preparing.whole import expected_times, read_whole, repeated_ids
from balancer.data.roles import Roles
from balancer.data.sharded.files import COLUMNS, IDS, NAMES, SHARDS
from balancer.data.sharded.folder import StoreFolder
from balancer.data.sharded.info import StoreInfo
from balancer.data.sharded.kept_roles import ROLES_FILE, SAMPLE_FILE, write_roles
from balancer.data.spec import Spec, nearest
from balancer.errors import CorruptFileError, InputError, LostWorkerError, UnwritableFileError
from balancer.files import locked, read_json, write_json
from balancer.tables.joined import parts
from balancer.tables.kinds import PLAN_FILE, STORE_FILE, WORK, is_store
from balancer.tables.source import Opened, names_its_table, opened

Task = Callable[[str, int], None]
"""A task of a stage: the folder of the store and a number. It runs in any process that sees the folder."""
RunTasks = Callable[[Task, str, Sequence[int]], Iterator[int]]
"""Runs tasks and yields their numbers as they finish, in any order."""
CHUNK_ROWS = 1_000_000
"""Rows of the input that one task reads."""
SHARD_ROWS = 1_000_000
"""Rows of a shard, where the number of shards is not given."""
_FOLDERS = (WORK, COLUMNS, NAMES, IDS, SHARDS)


def in_this_process(task: Task, folder: str, numbers: Sequence[int]) -> Iterator[int]:
    """Run tasks one after the other."""
    for number in numbers:
        task(folder, number)
        yield number


@names_its_table
def prepare_store(
    source: Path,
    out: Path,
    roles: Roles,
    *,
    shards: int | None = None,
    bad_rows: BadRows = "error",
    hash_buckets: int = 0,
    run_tasks: RunTasks = in_this_process,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> StoreFolder:
    """Prepare a table as a store; tasks that an earlier try finished are not run again.

    Args:
        source: The table: a file or a folder.
        out: Folder of the store; it is made, or has an unfinished preparation of the same table.
        roles: Roles of the columns.
        shards: Number of shards; None: one for each `SHARD_ROWS` rows.
        bad_rows: Whether bad rows raise, or are left out and counted.
        hash_buckets: As for :func:`balancer.data.dataset.load_dataset`.
        run_tasks: How tasks are run: here, in other processes, or on a cluster.
        progress: Called with the name of a stage, its finished tasks and all of its tasks.

    Raises:
        InputError: The table can't be used, or the folder has something else.
    """
    _refuse_other(out)
    table = _checked(source, roles.spec)
    new = not out.exists()
    with _disk():
        out.mkdir(parents=True, exist_ok=True)
    with locked(out, "choose another folder"):
        try:
            plan = _plan(source, out, roles.spec, table, shards, bad_rows, hash_buckets)
            return _prepared(plan, out, roles, run_tasks, progress)
        except InputError as error:
            _forget_refused(out, error, new=new)
            raise


def _forget_refused(out: Path, error: InputError, *, new: bool) -> None:
    """Delete the work on rows that can't be used, so that the corrected table can be prepared here."""
    if (
        is_store(out)
        or isinstance(error, LostWorkerError | UnwritableFileError | CorruptFileError)
        or (out / WORK / LEARNED_FILE).is_file()
    ):
        return  # a try that lost a process or had no space continues
    for name in _FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (ROLES_FILE, SAMPLE_FILE):
        (out / name).unlink(missing_ok=True)
    if new:
        shutil.rmtree(out, ignore_errors=True)


def _prepared(plan: Plan, out: Path, roles: Roles, run_tasks: RunTasks, progress: Callable[[str, int, int], None]) -> StoreFolder:
    """Run the stages of a plan whose tasks are not finished."""

    def run(name: str, task: Task, total: int, finished: Callable[[int], Path]) -> None:
        done = [number for number in range(total) if finished(number).is_file()]
        progress(name, len(done), total)
        left = sorted({*range(total)} - {*done})
        for count, _ in enumerate(run_tasks(task, str(out), left), len(done) + 1):
            progress(name, count, total)

    with _disk():
        write_roles(out, roles)
        while True:
            run("checking rows", check_chunk, plan.chunks, lambda number: marker(out, CHUNKS, number))
            column = next((found for number in range(plan.chunks) if (found := result_of(out, CHUNKS, number).get("whole"))), None)
            if column is None:
                break
            plan = _with_whole(out, plan, column)
        learned = Learned.load(out) if (out / WORK / LEARNED_FILE).is_file() else learn(out, plan)
        run("sorting rows", exchange_chunk, plan.chunks, lambda number: marker(out, EXCHANGE, number))
        run("fields of contexts", write_context, tasks_of(plan), lambda number: marker(out, CONTEXTS, number))
        make_columns(out, plan, learned)
        run("writing shards", write_shard, plan.shards, lambda number: shard_file(out, number))
        _finish(out, plan, learned)
    return StoreFolder.open(out)


@contextmanager
def _disk() -> Iterator[None]:
    """Say what to do where the disk is full."""
    try:
        yield
    except OSError as error:
        raise UnwritableFileError(
            f"cannot write the store ({error.strerror or error}): free some space and run the same command again, or choose another folder"
        ) from error


def _refuse_other(out: Path) -> None:
    """Check that a folder is new, empty, or has an unfinished store.

    Raises:
        InputError: It has something else.
    """
    if is_store(out):
        raise UnwritableFileError(f"{out} is a finished store: name another folder, or delete it")
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    begun = ".lock" in held or (out / WORK / PLAN_FILE).is_file()  # folders of somebody else may have the same names
    if {name for name in held if not name.startswith(".")} - ({*_FOLDERS, ROLES_FILE, SAMPLE_FILE} if begun else set()):
        raise UnwritableFileError(f"{out} is not empty and has no unfinished store: name another folder")


def _checked(source: Path, spec: Spec) -> Opened:
    """The table, which has rows and all columns of the roles.

    Raises:
        InputError: It has not.
    """
    table = opened(source, spec.read)
    names = table.frame.collect_schema().names()
    for name in spec.columns():
        each = parts(name, names)
        missing = next((part for part in each if part not in names), None)
        if missing is not None:
            raise InputError(f"{source} has no column {missing!r} (role {spec.role(name)}): {nearest(missing, names)}")
    if not table.frame.head(1).collect().height:
        raise InputError(f"{source} is empty: it has no rows")
    return table


def _plan(source: Path, out: Path, spec: Spec, table: Opened, shards: int | None, bad_rows: BadRows, hash_buckets: int) -> Plan:
    """The plan of an unfinished preparation of the same table, or a new one.

    Raises:
        InputError: The folder has an unfinished preparation of another table, or with other options.
    """
    _refuse_other(out)  # again: it may have been finished before it was locked
    names = table.frame.collect_schema().names()
    height = int(table.frame.select(pl.len()).collect().item())
    shards = shards or max(1, round(height / SHARD_ROWS))
    options, files = (_digest(each) for each in ([spec.to_dict(), bad_rows, hash_buckets, shards, CHUNK_ROWS], _files(source)))
    held = out / WORK / PLAN_FILE
    if held.is_file():
        begun = read_json(held, what="it says how a table is prepared")
        if begun.get("files") != files:
            raise UnwritableFileError(
                f"{out} has an unfinished store of another table, or of a table that has changed since: name another folder, or delete it"
            )
        if begun.get("options") != options:
            raise UnwritableFileError(
                f"{out} has an unfinished store that was begun with other roles, --shards, --bad-rows or --hash-buckets: "
                "give the same ones to finish it, name another folder, or delete it"
            )
        return Plan.load(out)
    _make_folders(out)
    plan = Plan(
        source=str(source.absolute()),
        spec=spec,
        bad_rows=bad_rows,
        hash_buckets=hash_buckets,
        shards=shards,
        chunk_rows=CHUNK_ROWS,
        files=files,
        options=options,
        height=height,
        columns=tuple(names),
        made_of={name: parts(name, names) for name in spec.columns()},
        copy=None,
        read=table.read,
        opening=table.notes,
    )
    if not _in_ranges(source, table):
        plan = replace(plan, copy="input.parquet")
        table.frame.select(plan.used).sink_parquet(out / WORK / "input.parquet", compression="lz4", row_group_size=1 << 18)
    plan = expected_times(out, plan)
    if spec.id is not None:
        np.save(out / WORK / REPEATED_IDS, repeated_ids(out, plan))
    plan.write(out)
    return plan


def _make_folders(out: Path) -> None:
    """Make the folders of a store; those of a try that was stopped before it had a plan are made again."""
    for name in _FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _in_ranges(source: Path, table: Opened) -> bool:
    """Whether a table can be read in ranges of rows without reading what is before them."""
    files = [source] if source.is_file() else [Path(part.name) for part in table.parts]
    return not table.text and bool(files) and all(file.suffix.lower() in (".parquet", ".pq") for file in files) and not table.keep


def _files(source: Path) -> list[list[object]]:
    """Name, size and time of change of each file of a table."""
    files = sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]
    return [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _with_whole(out: Path, plan: Plan, column: str) -> Plan:
    """Read a column whole, and forget the parts of the input that were checked without that."""
    plan = read_whole(out, plan, column)
    if column == TIME and plan.spec.label_date is not None:
        plan = replace(
            plan, whole={name: held for name, held in plan.whole.items() if name in (TIME, plan.spec.amount, *plan.spec.numeric)}
        )
    shutil.rmtree(out / WORK / CHUNKS, ignore_errors=True)
    (out / WORK / CHUNKS).mkdir()
    plan.write(out)
    return plan


def _finish(out: Path, plan: Plan, learned: Learned) -> None:
    """Write the file that makes the folder a store, and delete the files of the work."""
    info = StoreInfo(
        spec=plan.spec,
        schema=learned.schema,
        offsets=learned.offsets,
        has_split=learned.has_split,
        found=plan.found,
        fingerprint=learned.fingerprint,
        source=plan.source,
        columns=plan.columns,
        opening=plan.opening,
        notes=learned.notes,
        cautions=learned.cautions,
        dropped=learned.dropped,
        absent=learned.absent,
        has_ids=plan.spec.id is not None,
    )
    write_json(out / STORE_FILE, info.to_dict())
    shutil.rmtree(out / WORK, ignore_errors=True)
    (out / ".lock").unlink(missing_ok=True)
