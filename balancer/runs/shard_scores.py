"""Score the shards of a store, one after another or in several processes; finished shards are kept.

The result is a folder with one Parquet file a shard. Memory is bounded by the largest shard.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from balancer.cluster.connection import connected
from balancer.cluster.tasks import Tell, run_tasks
from balancer.data.sharded.folder import StoreFolder
from balancer.errors import InputError
from balancer.files import atomic_path, file_digest, read_json, write_json
from balancer.inference.decision import DECISION_FILE
from balancer.runs.changes import changes
from balancer.runs.run_folder import make_folder
from balancer.runs.scored_rows import ScoredRows
from balancer.runs.tables import scored_frame
from balancer.runs.trained_run import TrainedRun, chosen_precision

STATE_FILE = "_scores.json"
"""What is scored into a folder. Its name tells readers of folders that it is no table."""
ROW = "row"
"""Column of the position in the table, from 0, where the rows have no id."""
_PART = "part-{:05d}.parquet"
_COMPARED = "_compared-{:05d}.npz"
"""What is kept of the rows of a shard to compare them with those of training."""
DRIFT_ROWS = 100_000
"""About how many rows of a store drift is measured on: all, or rows at equal distances."""


@dataclass
class ShardScoring:
    """What all tasks have in common; a process loads the run and the store once."""

    run: Path
    store: Path
    output: Path
    precision: str
    streaming: bool
    explain: int
    _loaded: tuple[TrainedRun, StoreFolder] | None = field(default=None, repr=False)

    def loaded(self) -> tuple[TrainedRun, StoreFolder]:
        """The run and the store.

        Raises:
            InputError: One of them can't be read, on a cluster because a machine does not see its folder.
        """
        if self._loaded is None:
            self._loaded = TrainedRun.load(self.run, precision=self.precision), StoreFolder.open(self.store)
        return self._loaded

    def part(self, number: int) -> Path:
        """File of a shard."""
        return self.output / _PART.format(number)

    def compared(self, number: int) -> Path:
        """File with what is compared of a shard."""
        return self.output / _COMPARED.format(number)

    def finished(self, number: int) -> bool:
        """Whether a shard is scored."""
        return self.part(number).is_file() and self.compared(number).is_file()

    def settings(self, store: StoreFolder) -> dict[str, Any]:
        """What the scores depend on; a folder is continued only with the same."""
        decision = file_digest(self.run / DECISION_FILE)
        asked = {"precision": chosen_precision(self.run, self.precision), "streaming": self.streaming, "explain": self.explain}
        return {"run": decision, "store": store.info.fingerprint, "shards": store.shards} | asked


def score_store(
    scoring: ShardScoring,
    *,
    overwrite: bool = False,
    cluster: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Score the shards of a store that are not scored yet.

    Args:
        scoring: What is scored with which run, and the folder to write. On a cluster all machines must see
            the three folders under the same paths.
        overwrite: Whether scores of something else in the folder may be replaced.
        cluster: Address of a cluster; None for this machine.
        workers: Most shards at once; None: one on this machine.
        progress: Called with the number of finished shards and of all.

    Returns:
        A summary: rows, alarms, threshold, dropped rows by reason, output, notes and warnings.

    Raises:
        InputError: The run, the store or the folder can't be used.
    """
    run, store = scoring.loaded()
    _refuse_other(scoring, store, overwrite=overwrite)
    left = any(not scoring.finished(number) for number in range(store.shards))
    with connected(cluster, workers) if cluster is not None and left else nullcontext():  # nothing is written where nobody answers
        return _scored(scoring, run, store, cluster=cluster, workers=workers, progress=progress)


def _scored(
    scoring: ShardScoring,
    run: TrainedRun,
    store: StoreFolder,
    *,
    cluster: str | None,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    _begin(scoring, store)
    missing = [number for number in range(store.shards) if not scoring.finished(number)]
    shared = ShardScoring(scoring.run, scoring.store, scoring.output, scoring.precision, scoring.streaming, scoring.explain)
    progress(store.shards - len(missing), store.shards)
    tasks = run_tasks(score_shard, missing, shared=shared, cluster=cluster, workers=workers, cpus=run.threads)
    with closing(tasks) as results:
        for done, _ in enumerate(results, start=store.shards - len(missing) + 1):
            progress(done, store.shards)
    scored = ScoredRows.joined([ScoredRows.read(scoring.compared(number)) for number in range(store.shards)])
    found = changes(run, scored)
    return {
        "rows": scored.rows,
        "alarms": scored.alarms,
        "threshold": run.decision.threshold,
        "dropped": dict(store.info.dropped),
        "output": str(scoring.output),
        **found,
        "notes": [*store.info.notes, *found["notes"]],
    }


def score_shard(shared: ShardScoring, number: int, tell: Tell) -> None:
    """Score one shard and write its file.

    Args:
        shared: What is scored.
        number: The shard.
        tell: Called with a text when the rows are read.

    Raises:
        InputError: The run does not fit the store, or a file can't be used.
    """
    run, store = shared.loaded()
    dataset = run.filled(store.shard(number, schema=run.schema))
    tell(f"shard {number + 1}/{store.shards}: {len(dataset.store):,} rows")
    frame = scored_frame(run, dataset, streaming=shared.streaming, explain=shared.explain)
    every = max(1, -(-store.rows // DRIFT_ROWS))
    ScoredRows.of(dataset, frame, run.schema, every).write(shared.compared(number))
    if store.spec.id is None:
        if ROW in frame.columns:
            raise InputError(f"column {ROW!r} of {store.path} has the name of a result: rename it, or name an id column with --id")
        frame = frame.insert_column(0, pl.Series(ROW, dataset.store.row[dataset.scored_rows()]))
    with atomic_path(shared.part(number)) as temporary:
        frame.write_parquet(temporary)


def _refuse_other(scoring: ShardScoring, store: StoreFolder, *, overwrite: bool) -> None:
    """Check that the folder is new or has scores of the same store and run; nothing is written.

    Raises:
        InputError: It holds something else.
    """
    settings, state, output = scoring.settings(store), scoring.output / STATE_FILE, scoring.output
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file, and the scores of a store are a folder: name another")
    if output.resolve() == scoring.store.resolve():
        raise InputError(f"--output {output} is also --input: name another folder")
    if output.resolve().is_relative_to(scoring.store.resolve()):
        raise InputError(f"--output {output} is in the folder of --input {scoring.store}: name another folder")
    held = [] if not output.exists() else [entry for entry in output.iterdir() if not entry.name.startswith(".")]
    if held and not state.is_file():
        raise InputError(f"--output {output} is not empty: name another folder")
    if held and not overwrite and read_json(state, what="it says what is scored here") != settings:
        raise InputError(
            f"--output {output} holds scores of another store or run, or with other flags: name another folder, or add --overwrite"
        )


def _begin(scoring: ShardScoring, store: StoreFolder) -> None:
    """Make the folder, and delete scores of something else in it."""
    settings, state, output = scoring.settings(store), scoring.output / STATE_FILE, scoring.output
    if state.is_file() and read_json(state, what="it says what is scored here") != settings:
        for file in (*output.glob("part-*.parquet"), *output.glob("_compared-*.npz")):
            file.unlink()
    make_folder(output)
    write_json(state, settings)
