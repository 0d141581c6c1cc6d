"""A temporary PostgreSQL server, for the benchmark of the service and for its tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psutil

from balancer.errors import UnsupportedError
from benchmarks.lib.ports import free_port


def postgres_programs() -> Path | None:
    """Folder of ``initdb`` and ``postgres``, as Debian installs them or on the PATH; None without them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Postgres:
    """A PostgreSQL server that stores its data below a given folder.

    PostgreSQL refuses to run as root, so as root its programs are run as the user ``postgres``.

    Args:
        folder: an empty folder for its data and its log.

    Raises:
        UnsupportedError: PostgreSQL is not installed.
    """

    def __init__(self, folder: Path) -> None:
        programs = postgres_programs()
        if programs is None:
            raise UnsupportedError("PostgreSQL is not installed: apt-get install postgresql")
        self._programs, self.folder, self.port = programs, folder / "data", free_port()
        self._prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        if self._prefix:
            self.folder.mkdir()
            shutil.chown(self.folder, "postgres", "postgres")
        self._run("initdb", "-D", str(self.folder), "-U", "balancer", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-D", str(self.folder), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server, if it runs, in a shutdown mode of ``pg_ctl``: smart, fast or immediate."""
        if not (self.folder / "postmaster.pid").exists():
            return
        self._run("pg_ctl", "-D", str(self.folder), "-w", "-m", mode, "stop")

    def database(self, name: str) -> str:
        """Create the empty database ``name``, and return its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "balancer", name)
        return f"postgresql://balancer@127.0.0.1:{self.port}/{name}"

    def processes(self) -> list[psutil.Process]:
        """The processes of the server, the first one first."""
        first = psutil.Process(int((self.folder / "postmaster.pid").read_text().splitlines()[0]))
        return [first, *first.children(recursive=True)]

    def _run(self, program: str, *arguments: str) -> None:
        if self._prefix:
            self._let_postgres_in()
        command = [*self._prefix, str(self._programs / program), *arguments]
        # The server keeps running after pg_ctl ends, so it must not inherit a pipe that somebody waits on.
        done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} failed; see {self.folder / 'log'}")

    def _let_postgres_in(self) -> None:
        """Let the user ``postgres`` enter the folders above the data.

        It is repeated before each program, because every start of pytest closes its temporary folders.
        """
        for parent in self.folder.parents:
            if parent == self.folder.parent or str(parent).startswith("/tmp/"):
                parent.chmod(0o755)
