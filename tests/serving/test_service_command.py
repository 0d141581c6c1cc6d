"""`balancer service`: migrations, backup and restore, import, purge and monitor, as they are typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from balancer.cli import main
from balancer.errors import InputError
from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.http.server import serve
from balancer.serving.models import model_states
from balancer.serving.models.registry import LoadedModel
from balancer.serving.operations import backup as backups
from balancer.serving.operations.backup import backup, restore
from balancer.serving.operations.migration import migrate, open_database, require_newest, revisions
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database, head_revision
from balancer.serving.storage.tables import transactions
from benchmarks.lib.postgres import Postgres
from tests.serving.tools import replay


@pytest.fixture(scope="module")
def rows(tiny_table: Path) -> pl.DataFrame:
    table = pl.read_parquet(tiny_table).sort("time")
    busy = table["card_id"].value_counts(sort=True)["card_id"].head(2)
    return table.filter(pl.col("card_id").is_in(busy.implode())).head(150)


@pytest.fixture
def empty(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> str:
    """The URL of another database of the same kind, without tables."""
    if url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database(f"e{abs(hash(str(tmp_path))) % 10**9}")


def service(*arguments: str) -> int:
    return main(["service", *arguments])


def test_migrations_are_a_command_of_their_own(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="balancer service migrate"):
        serve(ServeConfig(database=url, no_migrate=True))
    if url.startswith("sqlite"):
        assert service("migrate", "--check", "--database", url) == 2  # no file
        assert not (tmp_path / "service.db").exists()
    assert service("migrate", "--to", "0002", "--database", url) == 0
    assert service("migrate", "--check", "--database", url) == 1
    assert "0002" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"revision 0002.*balancer service migrate"):
        serve(ServeConfig(database=url, no_migrate=True))
    (tmp_path / "url").write_text(f"{url}\n")
    assert service("migrate", "--database-file", str(tmp_path / "url")) == 0
    assert service("migrate", "--check", "--database", url) == 0
    capsys.readouterr()
    assert service("migrate", "--to", "0001", "--database", url) == 2
    assert "--allow-loss" in capsys.readouterr().err
    assert service("migrate", "--to", "0001", "--allow-loss", "--database", url) == 0
    assert service("migrate", "--to", "0815", "--database", url) == 2
    database = Database(url)
    assert migrate(database)[1].current == head_revision()
    require_newest(database)
    database.close()


def test_the_database_is_taken_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BALANCER_DATABASE", url)
    assert service("migrate") == 0
    assert "moved from revision none" in capsys.readouterr().out
    assert service("migrate", "--database", url, "--database-file", "x") == 2
    assert service("migrate", "--database-file", "missing") == 2


def test_a_restored_backup_scores_as_the_database_itself(url: str, empty: str, tiny_run: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    model = LoadedModel.load(tiny_run, "run")
    database = open_database(url, create=True)
    replay(database, model, rows.head(100), size=20)
    file = tmp_path / "backup"
    assert backup(database, file).is_newest
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="--overwrite"):
        backup(database, file)
    other = Database(empty)
    restore(other, file)
    later = rows.tail(50)
    assert replay(other, model, later) == replay(database, model, later)
    with pytest.raises(InputError, match="has tables already"):
        restore(other, file)
    restore(other, file, overwrite=True)
    count = select(func.count()).select_from(transactions)
    assert other.read(lambda connection: connection.execute(count).scalar_one()) == 100
    for each in (database, other):
        each.close()


def test_what_is_no_backup_changes_nothing(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"PGDMP" if url.startswith("sqlite") else b"SQLite format 3\0")
    assert service("restore", str(wrong), "--database", url) == 2
    assert "name a database of" in capsys.readouterr().err
    wrong.write_text("text")
    assert service("restore", str(wrong), "--database", url) == 2
    assert service("restore", str(tmp_path / "missing"), "--database", url) == 2
    whole = tmp_path / "whole"
    database = open_database(url, create=True)
    backup(database, whole)
    broken = tmp_path / "broken"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    capsys.readouterr()
    assert service("restore", str(broken), "--overwrite", "--database", url) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert revisions(database).is_newest
    database.close()


def test_missing_programs_of_postgresql_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "_PROGRAMS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"pg_dump is not installed.*postgresql-client"):
        backups._program("pg_dump")


def test_import_purge_and_monitor(
    url: str, tiny_run: Path, network_run: Path, rows: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write_csv(tmp_path / "rows.csv")
    command = ("import", str(tmp_path / "rows.csv"), "--run", str(tiny_run), "--database", url)
    assert service(*command) == 0
    assert "150 rows of local: 150 scored, 0 stored already" in capsys.readouterr().out
    assert service(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["scored"], found["repeated"], found["tenant"]) == (0, 150, "local")
    database = open_database(url)
    keys.create(database, "bank", ("score",))
    assert service(*command) == 2
    assert "--tenant" in capsys.readouterr().err

    for what, options in (("decisions", ()), ("features", ("--run", str(tiny_run)))):
        file = tmp_path / f"{what}.parquet"
        assert service("export", what, "--out", str(file), *options, "--database", url) == 0
        assert pl.read_parquet(file).height == 150
        assert service("export", what, "--out", str(file), *options, "--database", url) == 2  # it exists
        assert service("export", what, "--out", str(file), "--overwrite", *options, "--since", "2100-01-01", "--database", url) == 0
        assert pl.read_parquet(file).height == 0
    for wrong in (("labels",), ("features",), ("decisions", "--since", "May")):
        assert service("export", *wrong, "--out", str(tmp_path / "more.parquet"), "--database", url) == 2
    assert service("export", "decisions", "--out", str(tmp_path / "more.csv"), "--database", url) == 2
    capsys.readouterr()

    assert service("purge", "--older-than", "10d", "--run", str(tiny_run), "--database", url) == 2
    assert "38d or more" in capsys.readouterr().err
    assert service("purge", "--older-than", "400d", "--database", url) == 2
    with TestClient(create_app(ServeConfig(run=network_run, database=url))):  # another model is put in service
        pass
    capsys.readouterr()
    assert service("purge", "--older-than", "400d", "--run", str(tiny_run), "--database", url) == 2
    assert f"'{network_run.name}' of the service is not among the given runs" in capsys.readouterr().err
    models = ("--run", str(tiny_run), "--models", str(tiny_run.parent))
    assert service("purge", "--older-than", "40d", *models, "--database", url, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["transactions"] == 150  # of long ago
    assert service("purge", "--older-than", "40d", *models, "--database", url) == 0
    assert "150 transactions, 150 decisions" in capsys.readouterr().out
    count = select(func.count()).select_from(transactions)
    assert database.read(lambda connection: connection.execute(count).scalar_one()) == 0

    assert service("monitor", "--days", "3", "--database", url) == 0
    assert "no decisions" in capsys.readouterr().out
    assert service("monitor", "--days", "0", "--database", url) == 2
    database.close()


def test_a_purge_needs_only_the_models_that_score(
    tmp_path: Path, tiny_run: Path, network_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, runs = f"sqlite:///{tmp_path / 'service.db'}", tmp_path / "runs"
    for name, run in (("champion", tiny_run), ("candidate", network_run), ("damaged", tiny_run), ("other", network_run)):
        shutil.copytree(run, runs / name)
    with (runs / "other" / "decision.json").open("a") as file:
        file.write("\n")  # another model
    (runs / "damaged" / "decision.json").write_text("{")
    (runs / "unfinished").mkdir()
    shutil.copy(tiny_run / "schema.json", runs / "unfinished")
    database = open_database(url, create=True)
    command = ("purge", "--older-than", "400d", "--models", str(runs), "--database", url)

    def purged() -> list[str]:
        assert service(*command) == 0
        said = capsys.readouterr()
        assert "were deleted" in said.out
        return said.err.splitlines()

    notes = purged()  # nothing is registered, so all that can be loaded are considered
    assert ["damaged" in notes[0], "unfinished" in notes[1], len(notes)] == [True, True, 2]
    digests = {name: LoadedModel.load(runs / name, name).digest for name in ("champion", "candidate")}
    database.write(lambda connection: model_states.make_champion(connection, "champion", digests["champion"], None))
    database.write(lambda connection: model_states.set_state(connection, "candidate", digests["candidate"], "candidate", 0.0, None))
    notes = purged()
    assert len(notes) == 1
    assert notes[0].startswith("note: 3 runs of --models were left out")
    assert notes[0].endswith("'damaged', 'other', 'unfinished'")
    (runs / "candidate" / "decision.json").write_text("{")
    assert service(*command) == 2
    assert "the model 'candidate' of the service is not among the given runs" in capsys.readouterr().err
    assert service("monitor", "--models", str(runs), "--database", url) == 0  # says what it can't read
    assert "the run 'candidate' was left out, because it can't be loaded" in capsys.readouterr().err
    database.close()
