"""What the commands of the service say when the database or a flag can't be used."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DatabaseError, OperationalError

from balancer.cli import main
from balancer.errors import InputError
from balancer.options.flags import from_dict, parameters, to_dict
from balancer.serving.config import ServeConfig
from balancer.serving.http import app as application
from balancer.serving.http.logs import JsonLines
from balancer.serving.operations.migration import revisions
from balancer.serving.storage.database import Database, DiskFullError, UnavailableError
from balancer.serving.storage.troubles import reason_of
from tests.serving.test_migrations import move
from tests.serving.tools import opened

COMMANDS = {
    "create": ["keys", "create", "--tenant", "t"],
    "list": ["keys", "list"],
    "revoke": ["keys", "revoke", "0123456789ab"],
    "migrate": ["service", "migrate"],
    "check": ["service", "migrate", "--check"],
    "purge": ["service", "purge", "--older-than", "400d", "--run", "RUN"],
    "import": ["service", "import", "TABLE", "--run", "RUN"],
    "export": ["service", "export", "decisions", "--out", "OUT"],
    "monitor": ["service", "monitor"],
    "backup": ["service", "backup", "BACKUP"],
    "serve": ["serve", "--port", "8000"],
}
"""All commands that open the database of the service, but `restore`, which reads a backup first."""


def command(name: str, url: str, folder: Path, run: Path, table: Path) -> list[str]:
    places = {"RUN": run, "TABLE": table, "OUT": folder / "out.parquet", "BACKUP": folder / "backup"}
    return [str(places.get(word, word)) for word in COMMANDS[name]] + ["--database", url]


@pytest.mark.parametrize("name", ["create", "list", "revoke"])
def test_commands_for_keys_leave_older_tables_to_migrate(url: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A service of the older version may be running."""
    database = Database(url)
    move(database, "0003")
    assert main(command(name, url, tmp_path, tmp_path, tmp_path)) == 2
    said = capsys.readouterr().err
    assert "revision 0003" in said
    assert "run balancer service migrate" in said
    assert revisions(database).current == "0003"
    database.close()


@pytest.mark.parametrize("wrong", [["--tenant", "bad tenant"], ["--scopes", "all"], ["--name", "x" * 101], ["--expires", "yesterday"]])
def test_a_key_with_wrong_flags_creates_no_database(tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "service.db"
    flags = ["--tenant", "t", *wrong] if wrong[0] != "--tenant" else wrong
    assert main(["keys", "create", *flags, "--database", f"sqlite:///{file}"]) == 2
    assert wrong[0] in capsys.readouterr().err
    assert not file.exists()
    assert main(["keys", "create", "--tenant", "t", "--database", f"sqlite:///{file}"]) == 0
    assert file.exists()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", [DiskFullError, UnavailableError, DatabaseError])
def test_a_database_in_trouble_is_one_line(
    name: str,
    kind: Any,
    tmp_path: Path,
    tiny_run: Path,
    tiny_table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    opened(url).close()

    def fails(*_: object, **__: object) -> None:
        if kind is DatabaseError:
            raise DatabaseError("SELECT 1", {}, RuntimeError("the first line\nthe second line"))
        raise kind("the disk is full" if kind is DiskFullError else "the database did not answer in time")

    monkeypatch.setattr(Database, "_tried", fails)
    assert main(command(name, url, tmp_path, tiny_run, tiny_table)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("error: ")]) == 1
    assert said[-1].startswith(f"error: --database {url}")
    assert "start it again" in said[-1]
    assert "sqlalche" not in said[-1]


def test_a_trouble_that_begins_later_is_one_line_too(
    tmp_path: Path, tiny_run: Path, tiny_table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    opened(url).close()

    def fails(*_: object) -> None:
        raise DiskFullError("the disk of the database is full")

    monkeypatch.setattr(Database, "write", fails)
    for name in ("create", "revoke", "import", "purge"):
        assert main(command(name, url, tmp_path, tiny_run, tiny_table)) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert said[-1].startswith(f"error: --database {url}: the disk of the database is full")
        assert "nothing counts twice" in said[-1]


@pytest.mark.parametrize("name", ["create", "list", "migrate", "monitor", "serve"])
def test_a_postgresql_that_is_down_is_one_line_with_the_url_as_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = Database._tried

    def impatient(self: Database, *arguments: Any, **options: Any) -> Any:
        self.patience = 0.0
        return tried(self, *arguments, **options)

    monkeypatch.setattr(Database, "_tried", impatient)
    assert main(command(name, "postgresql://user:secret@127.0.0.1:9/bank", tmp_path, tmp_path, tmp_path)) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    assert said.startswith("error: --database postgresql://user:***@127.0.0.1:9/bank can't be used: ")
    assert "check that it is running" in said
    for word in ("sqlalche", "psycopg", "secret", "Background"):
        assert word not in said


def test_no_password_of_a_url_is_shown(tmp_path: Path) -> None:
    for url, shown in (
        ("postgresql://user:secret@host/bank?sslmode=require", "postgresql://user:***@host/bank?sslmode=require"),
        ("postgresql://host/bank?password=secret&user=u", "postgresql://host/bank?password=***&user=u"),
        ("postgresql+psycopg://host/bank", "postgresql+psycopg://host/bank"),
        (f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/a.db"),
    ):
        database = Database(url)
        assert database.shown == shown
        database.close()


def test_a_restore_into_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    opened(url).close()
    assert main(["service", "backup", str(tmp_path / "backup"), "--database", url]) == 0

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    assert main(["service", "restore", str(tmp_path / "backup"), "--overwrite", "--database", url]) == 2
    assert capsys.readouterr().err == f"error: --database {url} can't be written (permission denied): check its permissions\n"


def test_the_reason_is_what_the_driver_said() -> None:
    assert reason_of(OperationalError("SELECT 'a'", {}, RuntimeError("refused.\nIs it running?"))) == "refused"
    assert reason_of(UnavailableError("too long")) == "too long"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"timeout": float("nan")}, "--timeout is nan: give a number of seconds above 0"),
        ({"rate": float("nan")}, "--rate is nan: give"),
        ({"idle_timeout": -1.0}, "--idle-timeout is -1.0: give"),
        ({"max_held": 0}, "--max-held is 0: give"),
        ({"max_connections": 100, "max_connections_per_address": 101}, "--max-connections-per-address is 101, more than the 100 of --max-"),
    ],
)
def test_only_the_wrong_flag_is_named(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        ServeConfig(**flags)
    assert str(error.value).startswith(said)


def test_a_computed_default_is_the_only_one_in_the_help() -> None:
    helps = {each.name: each.help for each in parameters(ServeConfig)}
    assert helps["max_held"].endswith("(default: four times --max-body)")
    assert helps["max_connections_per_address"].endswith("(default: half of --max-connections)")
    assert not any("(default: 0)" in text for text in helps.values())
    config = ServeConfig()
    assert from_dict(ServeConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_messages_of_the_driver_become_lines_of_json_without_values() -> None:
    secret = RuntimeError("a value that was sent")
    record = logging.LogRecord("psycopg", logging.WARNING, "", 0, "error ignored terminating %r: %s", ("<Pipeline>", secret), None)
    line = json.loads(JsonLines().format(record))
    assert line["message"] == "driver of the database: error ignored terminating …: …"
    assert "sent" not in JsonLines().format(record)


def test_messages_of_the_driver_are_no_output_of_a_command() -> None:
    """Without a handler, Python writes warnings to stderr as they are."""
    lines = "from balancer.serving.storage import postgres; import logging; logging.getLogger('psycopg').warning('raw')"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_an_outage_is_said_once_and_not_blamed_on_the_model(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Registry:
        calls = 0

        def follow(self) -> None:
            self.calls += 1
            if self.calls in (1, 2, 3):
                raise UnavailableError("the database did not answer in time")

    monkeypatch.setattr(application, "FOLLOW_SECONDS", 0.01)
    registry: Any = Registry()

    async def followed() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(application._follow(registry), 0.5)

    with caplog.at_level(logging.INFO, "balancer.service"):
        asyncio.run(followed())
    said = [record.getMessage() for record in caplog.records if record.name == "balancer.service"]
    assert registry.calls > 4
    assert len(said) == 2
    assert "the database is unavailable" in said[0]
    assert said[1] == "the database answers again"
