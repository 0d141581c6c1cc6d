"""The parent process: starts the workers, says when they answer, and replaces one that ends.

What is special: the parent loads no model and needs no torch. The first workers check the model; what they
find is read from a file, so that a command that can't work ends with one clear error.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from balancer.errors import InputError
from balancer.serving.http.logs import LOGGER

LOG = logging.getLogger(LOGGER)
_START_ERROR = "BALANCER_START_ERROR"
"""Environment variable with the file for the error of a worker that can't start, until all have started."""
_RETRY_SECONDS = 5.0
"""Seconds before a worker is started again that could not start."""


def report_start_error(error: InputError) -> bool:
    """In a worker: tell the parent why it can't start.

    Returns:
        Whether the parent ends because of it and says why; otherwise the log must.
    """
    path = os.environ.get(_START_ERROR)
    if path is None:
        return False
    temporary = Path(f"{path}-{os.getpid()}")
    temporary.write_text(json.dumps({"error": str(error)}), encoding="utf-8")
    temporary.replace(path)
    return True


class Supervisor(Multiprocess):
    """Runs the workers until SIGTERM or Ctrl-C.

    Args:
        config: Of uvicorn.
        sockets: What the workers listen on.
        folder: For the error of a worker.
        fields: What the log says when the workers answer.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], folder: Path, fields: dict[str, Any]) -> None:
        super().__init__(config, sockets)
        self._error, self._fields = folder / "start-error.json", fields
        os.environ[_START_ERROR] = str(self._error)
        self._begun, self._running = time.monotonic(), False
        self._next_start, self._failed = 0.0, False

    def run(self) -> None:
        """Run the workers.

        Raises:
            InputError: They can't start.
        """
        self.init_processes()
        while not self.should_exit.wait(0.5 if self._running else 0.05):
            self.handle_signals()
            self.keep_subprocess_alive()
        self.terminate_all()
        self.join_all()
        if self._failed:
            if self._error.is_file():
                raise InputError(json.loads(self._error.read_text(encoding="utf-8"))["error"])
            raise InputError("the workers can't start; the log says why")

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have ended or hang."""
        if self.should_exit.is_set():
            return
        ready = 0
        for place, process in enumerate(self.processes):
            started = _answer_of(process, self.config.timeout_worker_healthcheck)
            if started is not None:
                ready += started
                continue
            process.kill()
            process.process.join()  # `Process.join` says so in the log each time
            self._forget(process)
            failed = process.exitcode == STARTUP_FAILURE
            if failed and not self._running:
                self._failed = True
                self.should_exit.set()
                return
            if failed:
                self._next_start = time.monotonic() + _RETRY_SECONDS
            LOG.error("a worker has ended; another one starts", extra={"fields": {"worker": process.pid, **_reason(process)}})
            self.should_exit.wait(max(0.0, self._next_start - time.monotonic()))
            fresh = Process(self.config, self.sockets)
            fresh.start()
            self.processes[place] = fresh
        if not self._running and ready == len(self.processes):
            self._running = True
            os.environ.pop(_START_ERROR, None)
            LOG.info("running", extra={"fields": self._fields | {"seconds": round(time.monotonic() - self._begun, 1)}})

    def terminate_all(self) -> None:
        """End the workers; they finish their requests, unless the service has not started."""
        if not self._failed:
            super().terminate_all()
            return
        for process in self.processes:
            process.kill()

    def join_all(self) -> None:
        """Wait until all workers have ended."""
        for process in self.processes:
            process.process.join()

    def _forget(self, process: Process) -> None:
        """Remove the gauges of a worker that has ended."""
        if process.pid is not None:
            mark_process_dead(process.pid)  # type: ignore[no-untyped-call]


def _answer_of(process: Process, seconds: float) -> bool | None:
    """Ask a worker whether its server has started; None if it has ended or does not answer in time."""
    try:
        process.parent_conn.send(b"ping")
        until = time.monotonic() + seconds
        while time.monotonic() < until and process.process.is_alive():
            if process.parent_conn.poll(0.05):
                return bool(process.parent_conn.recv())
    except (OSError, EOFError):
        return None
    return None


def _reason(process: Process) -> dict[str, Any]:
    code = process.exitcode
    if code is not None and code < 0:
        try:
            return {"signal": signal.Signals(-code).name}
        except ValueError:
            pass  # a signal without a name
    return {"exit_code": code}
