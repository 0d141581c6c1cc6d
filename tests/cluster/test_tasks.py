"""Tasks on two nodes: the same results as in this process, errors, lost workers, stopping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from balancer.cluster.connection import check_address
from balancer.cluster.tasks import Tell, run_tasks
from balancer.errors import InputError, MissingDependencyError
from balancer.options.cluster import ClusterOptions
from balancer.options.train import ProcessOptions
from benchmarks.lib.ports import free_port

pytestmark = pytest.mark.xdist_group("ray")


def _sum(shared: np.ndarray, item: int, tell: Tell) -> tuple[float, int]:
    tell(f"item {item}")
    return float(shared[item:].sum()), os.getpid()


def _read(name: str, _item: int, _tell: Tell) -> str:
    return Path(name).read_text()


def _refused(_shared: None, item: int, _tell: Tell) -> int:
    if item == 2:
        raise InputError("column 'x' is missing: name another")
    return item


def _dies_once(folder: Path, item: int, _tell: Tell) -> int:
    """Kill the own process, the first time that an item is run."""
    (folder / f"{item}-{os.getpid()}").touch()
    if len(list(folder.glob(f"{item}-*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def test_tasks_are_done_on_both_nodes_with_the_results_of_one_process(cluster: Any) -> None:
    shared, texts = np.arange(100.0), {}
    alone = dict(run_tasks(_sum, range(6), shared=shared))
    found = dict(run_tasks(_sum, range(6), shared=shared, cluster=cluster.address, tell=texts.__setitem__))
    assert {index: value for index, (value, _) in found.items()} == {index: value for index, (value, _) in alone.items()}
    assert {process for _, process in alone.values()} == {os.getpid()}
    assert os.getpid() not in {process for _, process in found.values()}
    assert all(text == f"item {index}" for index, text in texts.items())


def test_paths_are_those_of_the_folder_of_the_command(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here.txt").write_text("found")
    monkeypatch.chdir(tmp_path)
    assert list(run_tasks(_read, [0], shared="here.txt", cluster=cluster.address)) == [(0, "found")]


def test_an_input_error_of_a_task_is_one_here(cluster: Any) -> None:
    with pytest.raises(InputError, match=r"^column 'x' is missing: name another$"):
        list(run_tasks(_refused, range(4), shared=None, cluster=cluster.address, workers=1))


def test_a_lost_task_is_run_again(cluster: Any, tmp_path: Path) -> None:
    found = dict(run_tasks(_dies_once, range(2), shared=tmp_path, cluster=cluster.address))
    assert found == {0: 0, 1: 1}
    assert len(list(tmp_path.iterdir())) == 4


def test_no_machine_has_room(cluster: Any) -> None:
    with pytest.raises(InputError, match="a task takes 3 CPU, and no machine of the cluster has more than 1: use --threads 1"):
        next(run_tasks(_sum, [0], shared=None, cluster=cluster.address, cpus=3))


@pytest.mark.parametrize("address", ["localhost", "ray:/x:1", "http://a:1", ""])
def test_addresses_of_another_form(address: str) -> None:
    with pytest.raises(InputError, match="no address of a Ray cluster"):
        check_address(address)


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_nothing_answers(form: str) -> None:
    address = form.format(port=free_port())
    code = f"from balancer.cluster.connection import connected\nwith connected({address!r}): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert f"UnsupportedError: --cluster {address}: no Ray cluster answers there" in done.stderr


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.dependencies.is_installed", lambda _: False)
    with pytest.raises(MissingDependencyError, match=r"--cluster local needs ray: pip install 'balancer\[cluster\]'"):
        ProcessOptions(workers=2).address()


def test_several_workers_need_ray_only_where_they_exchange_data() -> None:
    assert [ProcessOptions(workers=number).address() for number in (None, 1, 2)] == [None, None, "local"]
    assert [ClusterOptions(workers=number).address() for number in (None, 1, 2)] == [None, None, None]
    assert {ClusterOptions(cluster="auto", workers=2).address(), ProcessOptions(cluster="auto").address()} == {"auto"}


@pytest.mark.slow
def test_sigterm_ends_a_ray_of_its_own() -> None:
    """As the button Stop of the app sends it: the process ends orderly, and its Ray with it."""
    script = (
        "import os, time\n"
        "from balancer.cluster.connection import connected\n"
        "with connected('local', 1) as ray:\n"
        "    print(ray.nodes()[0]['NodeID'], flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline().strip()
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM" not in said
    assert psutil.wait_procs(children, timeout=20)[1] == []
