"""The processes of `balancer serve`: their start, their end, and what they say of themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient

from balancer.errors import InputError
from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.http.server import serve
from benchmarks.lib.ports import free_port
from tests.serving.tools import opened


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def started(arguments: list[str], folder: Path, **environment: str) -> tuple[subprocess.Popen[bytes], str, Path]:
    """Start a service, and wait until the log says that it runs."""
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "balancer", "serve", "--port", str(port), *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)
    until = time.monotonic() + 90
    while not any(line["message"] == "running" for line in lines_of(log)):
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    return process, f"http://127.0.0.1:{port}", log


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for each in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [each] if "spawn_main" in " ".join(each.cmdline()) else []
    return found


def test_running_is_said_when_the_workers_answer_and_the_parent_has_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "secret" / "service.db"
    path.parent.mkdir()
    process, url, log = started(["--workers", "2"], tmp_path, BALANCER_DATABASE=f"sqlite:///{path}")
    try:
        assert httpx.get(f"{url}/healthz", timeout=5).json() == {"status": "alive"}
        lines = lines_of(log)
        messages = [line["message"] for line in lines]
        assert messages.index("starting") < messages.index("running")
        running = lines[messages.index("running")]
        assert running["url"] == url
        assert running["database_from"] == "BALANCER_DATABASE"
        assert not any("running" in message for message in messages[: messages.index("running")])
        assert path.is_file()
        assert "torch" not in " ".join(each.path for each in psutil.Process(process.pid).memory_maps())
        assert psutil.Process(process.pid).memory_info().rss < 150e6

        # A worker that is killed is replaced, and its gauges disappear.
        workers = workers_of(process)
        assert len(workers) == 2
        folder = Path(psutil.Process(process.pid).environ().get("PROMETHEUS_MULTIPROC_DIR") or metrics_folder(workers[0]))
        for _ in range(40):
            httpx.get(f"{url}/healthz", timeout=5)
        time.sleep(1.0)
        gauges = {each.name for each in folder.glob("gauge_live*.db")}
        assert any(str(each.pid) in name for name in gauges for each in workers), gauges
        workers[0].send_signal(signal.SIGKILL)
        until = time.monotonic() + 60
        while len(workers_of(process)) < 2 or workers[0].pid in [each.pid for each in workers_of(process)]:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert not [each.name for each in folder.glob(f"gauge_live*_{workers[0].pid}.db")]
        ended = next(line for line in lines_of(log) if line["message"].startswith("a worker has ended"))
        assert (ended["worker"], ended["signal"]) == (workers[0].pid, "SIGKILL")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def metrics_folder(worker: psutil.Process) -> str:
    return worker.environ()["PROMETHEUS_MULTIPROC_DIR"]


def test_a_model_that_cannot_be_used_ends_the_command_with_one_error(tmp_path: Path, tiny_run: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_run, broken)
    (broken / "decision.json").write_text("{")
    command = [sys.executable, "-m", "balancer", "serve", "--run", str(broken), "--workers", "2", "--port", str(free_port())]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=90, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()
    assert [line for line in said if "error" in line] == said[-1:]
    assert said[-1].startswith("error: ")
    assert "decision.json" in said[-1]
    assert "child process" not in done.stderr


def test_an_address_that_is_in_use_is_an_error(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServeConfig(database=f"sqlite:///{tmp_path / 'service.db'}", port=taken.getsockname()[1])
        with pytest.raises(InputError, match=r"--port \d+: Address already in use"):
            serve(config)


def test_the_page_of_the_routes_names_no_other_host(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    opened(url).close()
    with TestClient(create_app(ServeConfig(database=url))) as client:
        page = client.get("/docs")
        assert page.status_code == 200
        assert not re.search(r"(https?:)?//[a-z]", page.text)
        files = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        assert len(files) == 3
        for each in files:
            assert each.startswith("/docs/files/")
            assert client.get(each).status_code == 200
        assert '"validatorUrl": null' in page.text
        assert client.get("/docs/files/../app.py").status_code == 404
