"""The run folder of a training: made or opened, locked, and the same for all processes that train the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from balancer.devices import torch_threads
from balancer.errors import InputError
from balancer.files import check_writable_folder
from balancer.options.train import TrainConfig
from balancer.runs.run_folder import RunFolder
from balancer.training.distributed import ALONE, Workers
from balancer.training.micro_batches import MicroBatches, default_count
from balancer.training.preparation import Prepared, describe_data, prepare

VISIBLE_SECONDS = 20.0
"""Time in which a file that one machine wrote must be visible on the others; network file systems keep what
they know of a folder for some seconds."""


@contextmanager
def opened_run(
    config: TrainConfig,
    console: Console,
    *,
    saved: RunFolder | None,
    given: dict[str, Any] | None = None,
    need_label: bool = True,
    workers: Workers = ALONE,
) -> Iterator[tuple[Prepared, RunFolder]]:
    """Make a run folder, or open the one to resume, and hold it until the block ends.

    Inside the block the folder is locked and torch uses the run's number of threads.

    Args:
        config: Configuration of a new run.
        console: Where progress is printed.
        saved: The run to resume; its own configuration is used, but for the path of the table. None for a new
            run.
        given: Fields of ``config`` that were typed, see :func:`prepare`.
        need_label: False for a table to pretrain on.
        workers: The processes that train the run; their leader makes and locks the folder.

    Yields:
        What the stages need, and the folder.

    Raises:
        InputError: The options, the table or the folder can't be used. No file was written then.
    """
    if saved is None:
        path, threads = config.out or RunFolder.default_path(config.dataset), config.threads
        workers.lead(lambda: _check_new(path))
        if workers.together and config.micro_batches is None:
            config = replace(config, micro_batches=default_count(workers))
    else:
        path, config, threads = saved.path, replace(saved.config(), dataset=config.dataset), int(saved.content["threads"])
    MicroBatches(config.micro_batches or 1, config.deterministic, workers)  # its error comes before the table is read
    with torch_threads(threads), ExitStack() as held:
        prepared = replace(workers.each(lambda: _prepared(config, console, saved, given, need_label)), workers=workers)
        if not workers.all_same(prepared.dataset.fingerprint):
            raise InputError(f"--dataset {config.dataset} is not the same table for all workers: give a path that every one of them sees")
        created = workers.lead(lambda: saved or _created(path, prepared))
        folder = workers.each(lambda: created or _seen(path))
        console.print(f"run folder {folder.path}", highlight=False, soft_wrap=True)
        workers.lead(lambda: held.enter_context(folder.locked()))
        yield prepared, folder


def _check_new(path: Path) -> None:
    RunFolder.refuse_existing(path)
    check_writable_folder(path, "--out")


def _prepared(config: TrainConfig, console: Console, saved: RunFolder | None, given: dict[str, Any] | None, need_label: bool) -> Prepared:
    """What the stages need, of a new run or of one to resume."""
    if saved is None:
        return prepare(config, console, given=given, need_label=need_label)
    prepared = prepare(
        config,
        console,
        device=saved.content["device"],
        threads=int(saved.content["threads"]),
        need_label=need_label,
        before_trees=saved.before_trees,
        plain_values=saved.plain_values,
    )
    if prepared.dataset.fingerprint != saved.content["fingerprint"]:
        raise InputError(f"--dataset {config.dataset} has changed since the run in {saved.path} was started: start a new run")
    return prepared


def _created(path: Path, prepared: Prepared) -> RunFolder:
    return RunFolder.create(
        path,
        prepared.config,
        fingerprint=prepared.dataset.fingerprint,
        device=prepared.device,
        threads=prepared.threads,
        data=describe_data(prepared.dataset),
    )


def _seen(path: Path) -> RunFolder:
    """The run folder that the leader made, as another process sees it.

    Raises:
        InputError: It is not there.
    """
    last = time.monotonic() + VISIBLE_SECONDS
    while not (path / "run.json").is_file():
        if time.monotonic() > last:
            raise InputError(f"--out {path} is not the folder that worker 0 writes: name a folder on storage that all workers share")
        time.sleep(0.1)
    return RunFolder.open(path)
