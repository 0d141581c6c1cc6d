"""Tasks in several processes of this machine: results, errors, lost processes, stopping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from balancer.cluster.processes import Processes
from balancer.cluster.tasks import Tell, run_tasks
from balancer.errors import InputError, LostWorkerError


def _product(shared: int, item: int, tell: Tell) -> tuple[int, int]:
    tell(f"item {item}")
    return shared * item, os.getpid()


def _refused(_shared: None, item: int, _tell: Tell) -> int:
    if item == 2:
        raise InputError("column 'x' is missing: name another")
    return item


def _warns(_shared: None, item: int, _tell: Tell) -> tuple[int, int]:
    warnings.warn("it was not trained for this", UserWarning, stacklevel=1)
    time.sleep(0.3)  # so that each process has a task
    return item, os.getpid()


def _dies_once(folder: Path, item: int, _tell: Tell) -> int:
    """Kill the own process, the first time that an item is run."""
    if not (folder / str(item)).exists():
        (folder / str(item)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def _dies(_shared: None, _item: int, _tell: Tell) -> None:
    os._exit(9)


def _long(folder: Path, item: int, _tell: Tell) -> int:
    """Write a temporary file, wait, and remove it; item 0 is done at once."""
    file = folder / f"{item}-{os.getpid()}"
    if item:
        file.touch()
        try:
            time.sleep(60)
        finally:
            file.unlink()
    else:
        while len(list(folder.iterdir())) < 1:
            time.sleep(0.01)
    return item


def test_results_are_those_of_one_process() -> None:
    texts: dict[int, str] = {}
    alone = dict(run_tasks(_product, [3, 4, 5], shared=7))
    found = dict(run_tasks(_product, [3, 4, 5], shared=7, workers=2, tell=texts.__setitem__))
    assert {index: value for index, (value, _) in found.items()} == {index: value for index, (value, _) in alone.items()}
    assert os.getpid() not in {process for _, process in found.values()}
    assert texts == {0: "item 3", 1: "item 4", 2: "item 5"}


def test_an_input_error_of_a_task_is_one_here() -> None:
    with pytest.raises(InputError, match=r"^column 'x' is missing: name another$"):
        list(run_tasks(_refused, range(4), shared=None, workers=2))


def test_a_warning_of_several_processes_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
        found = dict(run_tasks(_warns, range(4), shared=None, workers=2))
    assert len({process for _, process in found.values()}) == 2
    assert shown == ["it was not trained for this"]


def test_processes_stay_for_several_lists_of_tasks_and_lost_ones_are_replaced(tmp_path: Path) -> None:
    with Processes(2, tmp_path) as processes:
        assert dict(processes.run(_dies_once, [2, 3])) == {0: 4, 1: 9}
        assert dict(processes.run(_dies_once, [2, 3])) == {0: 4, 1: 9}
    assert not [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]


def test_tasks_that_are_lost_too_often() -> None:
    with pytest.raises(LostWorkerError, match="a process was lost 4 times, perhaps because memory ran out"):
        list(run_tasks(_dies, range(2), shared=None, workers=2))


def test_a_closed_generator_stops_running_tasks(tmp_path: Path) -> None:
    begin = time.monotonic()
    with closing(run_tasks(_long, range(4), shared=tmp_path, workers=2)) as results:
        assert next(results) == (0, 0)
    assert time.monotonic() - begin < 30
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
from pathlib import Path
from tests.cluster.test_processes import _long
from balancer.cluster.tasks import run_tasks

def tasks():
    try:
        list(run_tasks(_long, [1, 2], shared=Path("tasks"), workers=2))
    except KeyboardInterrupt:
        print("stopped")
"""
GUARDED = SCRIPT + "if __name__ == '__main__':\n    tasks()\n"


def _start(folder: Path, script: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(script)
    (folder / "tasks").mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "script.py"], env=environment, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


@pytest.mark.parametrize(("number", "printed"), [(signal.SIGKILL, ""), (signal.SIGTERM, "stopped\n")])
def test_processes_end_with_the_one_that_started_them(number: signal.Signals, printed: str, tmp_path: Path) -> None:
    process = _start(tmp_path, GUARDED)
    while len(list((tmp_path / "tasks").iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.communicate(timeout=20) == (printed, "")
    assert psutil.wait_procs(children, timeout=20)[1] == []
    assert list((tmp_path / "tasks").iterdir()) == []


def test_ctrl_c_while_processes_start(tmp_path: Path) -> None:
    """They are importing modules then, and must not print where each of them was interrupted."""
    process = _start(tmp_path, GUARDED)
    while len(psutil.Process(process.pid).children()) < 3:  # with the one that tracks semaphores
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20) == ("stopped\n", "")


def test_a_script_that_its_processes_can_not_import(tmp_path: Path) -> None:
    """They end before they read what all tasks get, which is more than a pipe holds: that must not block."""
    process = _start(tmp_path, SCRIPT.replace('Path("tasks")', "bytes(1 << 20)") + "tasks()\n")
    error = process.communicate(timeout=20)[1].strip().splitlines()
    assert [line for line in error if line.startswith("Traceback")] == error[:1]
    assert "none of 2 processes could start: in a script, make this call below the line if __name__ == '__main__':" in error[-1]
