"""``balancer prepare``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from balancer.cli.early import check_table
from balancer.cli.messages import say
from balancer.files import check_writable_folder
from balancer.names import counted
from balancer.options.flags import read_flags
from balancer.options.prepare import PrepareConfig

if TYPE_CHECKING:
    from balancer.cluster.processes import Processes
    from balancer.data.preparing.store_writing import RunTasks, Task


def main(arguments: Sequence[str]) -> int:
    """Prepare a table as a store and print a summary; returns the exit code."""
    config = read_flags(PrepareConfig, "balancer prepare", arguments)
    check_table(config.dataset)
    check_writable_folder(config.out, "--out")
    config.address()
    from rich.console import Console
    from rich.progress import Progress

    from balancer.data.leaks import leak_notes, suspected_leaks
    from balancer.data.preparing.store_writing import prepare_store
    from balancer.data.roles import inferred

    roles = inferred(config.dataset, spec_file=config.spec, overrides=config.role_overrides(), need_label=False)
    for text in (*roles.cautions, *leak_notes(suspected_leaks(roles))):
        say("warning", text)
    console = Console(markup=False, stderr=True)
    try:
        with _processes(config) as run_tasks, Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            stages: dict[str, Any] = {}

            def progress(stage: str, done: int, total: int) -> None:
                if stage not in stages:
                    stages[stage] = bar.add_task(stage, total=total)
                bar.update(stages[stage], completed=done, total=total)

            store = prepare_store(
                config.dataset,
                config.out,
                roles,
                shards=config.shards,
                bad_rows=config.bad_rows,
                hash_buckets=config.hash_buckets,
                run_tasks=run_tasks,
                progress=progress,
            )
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    info = store.info
    for kind, texts in (("note", (*info.opening, *info.notes, *roles.notes)), ("warning", info.cautions)):
        for text in texts:
            say(kind, text)
    if config.json:
        fields = [*info.schema.numeric_fields, *info.schema.categorical_fields]
        summary = {"out": str(config.out), "rows": store.rows, "shards": store.shards, "dropped": dict(info.dropped), "fields": fields}
        print(json.dumps(summary, indent=2))
        return 0
    print(f"{counted(store.rows, 'row')} in {counted(store.shards, 'shard')}: {config.out}")
    for reason, count in info.dropped.items():
        print(f"dropped {counted(count, 'row')}: {reason}")
    return 0


@contextmanager
def _processes(config: PrepareConfig) -> Iterator[RunTasks]:
    """Where the tasks run: in this process, in several of this machine, or on a cluster."""
    from balancer.data.preparing.store_writing import in_this_process

    if not config.several():
        yield in_this_process
        return
    with ExitStack() as stack:
        yield _side_by_side(config, stack)


def _side_by_side(config: PrepareConfig, stack: ExitStack) -> RunTasks:
    """Tasks in several processes, which the first stage starts or connects, after the checks, for all."""
    started: list[Processes] = []

    def run(task: Task, folder: str, numbers: Sequence[int]) -> Iterator[int]:
        from balancer.cluster.connection import connected
        from balancer.cluster.processes import Processes
        from balancer.cluster.tasks import run_tasks

        if not numbers:
            return
        items = [(task, folder, number) for number in numbers]
        if config.cluster is None:
            if not started:
                started.append(stack.enter_context(Processes(config.workers or 1)))
            tasks = started[0].run(_run_one, items)
        else:
            stack.enter_context(connected(config.cluster, config.workers))
            tasks = run_tasks(_run_one, items, shared=None, cluster=config.cluster, workers=config.workers)
        with closing(tasks) as results:
            for index, _ in results:
                yield numbers[index]

    return run


def _run_one(_shared: None, item: tuple[Task, str, int], _tell: object) -> None:
    task, folder, number = item
    task(folder, number)
