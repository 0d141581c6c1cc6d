"""Progress of a run: stage, steps done, time left and current metrics; live on a terminal, as lines in a log.

The same can be written to a JSON file, so that another process, such as the app, can watch the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from balancer.files import read_json, write_json

LEAST_SHARE = 0.05
"""Share of a stage's steps before which no time left is estimated: the first steps take longer."""
LOG_SECONDS = 10.0
"""In a log, a stage prints at most one line in this time."""
FILE_SECONDS = 0.5
"""The file is written at most once in this time, and at the end of each stage."""
PROGRESS_FILE = "progress.json"

SECONDS_FILE = "seconds.json"

Advance = Callable[..., None]


class StageClock:
    """Seconds that each stage of a run took, in a file, so that those of an interrupted run are counted too.

    Both the time that passed and the time of all CPU threads are counted.

    Args:
        file: JSON file with the seconds by stage; None for none.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        known = read_json(file, what="it holds the seconds of the stages, delete it") if file is not None and file.is_file() else {}
        passed = known.get("passed", {name: value for name, value in known.items() if name != "cpu"})
        self.seconds: dict[str, float] = {name: float(value) for name, value in passed.items()}
        """Seconds by stage."""
        self.cpu_seconds: dict[str, float] = {name: float(value) for name, value in known.get("cpu", {}).items()}
        """CPU seconds by stage."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block for a stage, also where the block fails or is stopped."""
        started, cpu = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
            self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + time.process_time() - cpu
            if self.file is not None:
                write_json(self.file, {"passed": self.seconds, "cpu": self.cpu_seconds})

    def share(self, name: str) -> str:
        """The time of a stage and its share of all stages, in words."""
        own, whole = self.seconds.get(name, 0.0), max(sum(self.seconds.values()), 1e-9)
        return f"{own:.0f} s, {100 * own / whole:.0f} % of the run's {whole:.0f} s"


class TrainingProgress:
    """Progress of a run on a console, and optionally in a file.

    The file holds ``stage``, ``done``, ``total``, ``detail``, ``seconds`` (since the start of the stage),
    ``seconds_left`` (null before `LEAST_SHARE` of the steps is done) and ``stages``: the stages started so
    far, each with ``stage``, ``done`` and ``total``.

    Args:
        console: Where progress is shown.
        file: JSON file to write; None for none.
    """

    def __init__(self, console: Console, file: Path | None = None) -> None:
        self.console, self.file = console, file
        self.stages: list[dict[str, Any]] = []
        self.live: Progress | None = None

    def __enter__(self) -> TrainingProgress:
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}", style="bold"),
                BarColumn(bar_width=18),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                _TimeLeft(),
                TextColumn("{task.fields[detail]}", style="dim"),
                console=self.console,
                expand=False,
            )
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a line; on a terminal above the progress bars."""
        (self.live.console if self.live is not None else self.console).print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show a stage.

        Args:
            name: Title.
            total: Number of steps.
            done: Steps that were finished by an earlier process.

        Yields:
            A function to call after each step, with the number of steps done and a short text.
        """
        started, last, written = time.monotonic(), 0.0, 0.0
        state: dict[str, Any] = {"stage": name, "done": done, "total": total}
        self.stages.append(state)
        self._write(state, "", 0.0, None)
        task: TaskID | None = None
        if self.live is not None:
            task = self.live.add_task(name, total=total, completed=done, detail="")
        elif done:
            self.say(f"{name}: continuing at {done}/{total}")

        def advance(step: int, detail: str = "") -> None:
            nonlocal last, written
            state["done"], now = step, time.monotonic()
            known = step >= total or (step > done and step - done >= LEAST_SHARE * (total - done))
            left = (now - started) / max(1, step - done) * (total - step) if known else None
            if step >= total or now - written >= FILE_SECONDS:
                written = now
                self._write(state, detail, now - started, left)
            if self.live is not None and task is not None:
                self.live.update(task, completed=step, detail=detail)
                return
            if step >= total or now - last >= LOG_SECONDS:
                last = now
                time_said = f"  ({now - started:.0f} s)" if step >= total else "" if left is None else f"  ({left:.0f} s left)"
                self.say(f"{name} {step}/{total}  {detail}{time_said}")

        yield advance

    def _write(self, state: dict[str, Any], detail: str, seconds: float, left: float | None) -> None:
        if self.file is not None:
            write_json(self.file, state | {"detail": detail, "seconds": seconds, "seconds_left": left, "stages": self.stages})


class _TimeLeft(TimeRemainingColumn):
    """The time left, once `LEAST_SHARE` of the steps is done."""

    def render(self, task: Task) -> Text:
        if not task.total or (not task.finished and task.completed < LEAST_SHARE * task.total):
            return Text("-:--:--", style="progress.remaining")
        return super().render(task)


def describe_students(figures: dict[str, Any]) -> str:
    """The mean metrics and sampling weights of the students after a rollout of PPO, in one line."""
    return (
        f"AP {figures['average_precision']:.3f}  F1 {figures['f1']:.3f}"
        f"  share {100 * figures['minority_share']:.3g} %  hardness {figures['hardness']:.2f}"
    )


def describe(figures: dict[str, Any]) -> str:
    """The validation metrics and sampling weights of an epoch, in one line."""
    share = " ".join(f"{100 * value:.3g}" for value in figures["share"][1:])
    return (
        f"AP {figures['average_precision']:.3f}  F1 {figures['f1']:.3f}  FPR {100 * figures['fpr']:.2f} %"
        f"  share {share} %  hardness {figures['hardness']:.2f}"
    )
