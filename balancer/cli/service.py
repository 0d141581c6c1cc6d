"""``balancer service migrate|purge|backup|restore|import|export|monitor``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from balancer.cli import run_command
from balancer.cli.early import check_run, check_table
from balancer.cli.messages import say
from balancer.data.spec import parse_duration
from balancer.errors import InputError
from balancer.files import check_new_file
from balancer.names import counted
from balancer.options.checks import check_names, check_whole
from balancer.options.data import TABLE_KINDS, ReadingOptions
from balancer.options.database import DatabaseOptions
from balancer.options.flags import Flag, read_flags

if TYPE_CHECKING:
    from balancer.serving.models.registry import LoadedModel
    from balancer.serving.storage.database import Database

COMMANDS = {
    "migrate": "create the tables of the database, or move them to another revision",
    "purge": "delete what is older than a given age and not needed any more",
    "backup": "copy the database to a file while the service runs",
    "restore": "fill a database from a file of balancer service backup",
    "import": "score and store the transactions of a table, as if they had been sent",
    "export": "write decisions or fields of transactions to a table",
    "monitor": "show alert rate, estimated precision and drift by day",
}


@dataclass(frozen=True, kw_only=True)
class MigrateConfig(DatabaseOptions):
    """Create the tables of the database, or move them to another revision.

    balancer serve does this at its start; with --no-migrate it does not, so that a job of its own can do it
    before.
    """

    to: Annotated[str | None, Flag("Revision of the tables.", metavar="REVISION", default="the newest one")] = None
    check: Annotated[bool, "Change nothing; the exit code is 1 if the tables are not those of this version."] = False
    allow_loss: Annotated[bool, "Allow an older revision; what later versions have stored is dropped."] = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DatabaseOptions):
    """Options of commands that need the models of the service."""

    run: Annotated[Path | None, Flag("Run folder of the model in service.", metavar="RUN")] = None
    models: Annotated[Path | None, Flag("Folder of run folders, as for balancer serve.", metavar="FOLDER")] = None
    precision: Annotated[Literal["auto", "full", "quantized"], "Precision of the model in service, as for balancer serve."] = "auto"


@dataclass(frozen=True, kw_only=True)
class PurgeConfig(ModelOptions):
    """Delete what is older than a given age and not needed any more, in small steps; the service may run.

    Later scores stay the same to the last bit: what the history of a model, a window or the labels of a
    terminal still need is kept. Entities without a transaction of the last days of that age go with all they
    have, and so do decisions. A purge that was stopped is started again.
    """

    older_than: Annotated[str, Flag("Age from which transactions and decisions are deleted, such as 400d.", metavar="TIME")]
    dry_run: Annotated[bool, "Only count what would be deleted."] = False
    json: Annotated[bool, "Print the result as JSON."] = False


@dataclass(frozen=True, kw_only=True)
class BackupConfig(DatabaseOptions):
    """Copy the database to a file that only its owner can read; the service may run.

    PostgreSQL is copied by its program pg_dump.
    """

    file: Annotated[Path, Flag("File to write.", metavar="FILE", positional=True)]
    overwrite: Annotated[bool, "Replace the file if it exists."] = False


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(DatabaseOptions):
    """Fill a database from a file of balancer service backup; stop the service first.

    Either all of it is restored, or nothing changes.
    """

    file: Annotated[Path, Flag("File of balancer service backup.", metavar="FILE", positional=True)]
    overwrite: Annotated[bool, "Replace the tables if there are any."] = False


@dataclass(frozen=True, kw_only=True)
class ImportConfig(ReadingOptions, DatabaseOptions):
    """Score and store the transactions of a table in order of time, as if they had been sent to the service.

    Labels of the table are stored when they become known, so scores are those of balancer score --streaming.
    An import that was stopped is started again: rows that are stored already do not count twice.
    """

    table: Annotated[Path, Flag(f"Table to import: {TABLE_KINDS}.", metavar="TABLE", positional=True)]
    run: Annotated[Path, Flag("Run folder of the model that scores the rows; use the one in service.", metavar="RUN")]
    precision: Annotated[Literal["auto", "full", "quantized"], "Precision of the model, as for balancer serve."] = "auto"
    labels: Annotated[Literal["table", "none"], "Whether the labels of the table are stored."] = "table"
    bad_rows: Annotated[Literal["error", "drop"], "What to do with rows that can't be used: stop, or drop and count them."] = "error"
    tenant: Annotated[str | None, Flag("Tenant whose transactions they are.", metavar="NAME", default="that of a service without keys")] = (
        None
    )
    clock_tolerance: Annotated[
        str, Flag("How far the time of a row may be ahead of this machine's clock: 10min, 1h, or seconds.", metavar="TIME")
    ] = "1h"
    json: Annotated[bool, "Print the result as JSON."] = False


@dataclass(frozen=True, kw_only=True)
class ExportConfig(DatabaseOptions):
    """Write decisions (the audit) or fields of stored transactions to a Parquet file; the service may run.

    Decisions are chosen by the time at which they were received, fields by the time of the transaction.
    """

    what: Annotated[str, Flag("decisions, or features (needs --run).", metavar="{decisions,features}", positional=True)]
    out: Annotated[Path, Flag("File to write, .parquet.", metavar="FILE")]
    run: Annotated[Path | None, Flag("Run folder of the model in service, which names the fields.", metavar="RUN")] = None
    since: Annotated[str | None, Flag("First moment (UTC): 2026-05-01, or 2026-05-01T12:00.", metavar="DATE")] = None
    until: Annotated[str | None, Flag("Moment (UTC) before which rows are written.", metavar="DATE")] = None
    tenant: Annotated[str | None, Flag("Only this tenant.", metavar="NAME")] = None
    overwrite: Annotated[bool, "Replace the file if it exists."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names((self.what,), ("decisions", "features"), "the first argument", "table")
        if self.what == "features" and self.run is None:
            raise InputError("features need the run that names them: give --run")
        if self.out.suffix.lower() != ".parquet":
            raise InputError(f"--out {self.out}: give a file name that ends in .parquet")


@dataclass(frozen=True, kw_only=True)
class MonitorConfig(ModelOptions):
    """Show alert rate, an estimate of the precision, and drift by day (UTC), before labels arrive.

    The estimate follows from calibrated scores. Drift needs the run of the model: give --run or --models.
    """

    days: Annotated[int, "Number of days, up to today."] = 30
    json: Annotated[bool, "Print the result as JSON."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "days", most=366)


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands; returns the exit code."""
    actions = {
        "migrate": _migrate,
        "purge": _purge,
        "backup": _backup,
        "restore": _restore,
        "import": _import,
        "export": _export,
        "monitor": _monitor,
    }
    summary = "Look after the database of the service."
    return run_command("balancer service", summary, COMMANDS, arguments, lambda name, rest: actions[name](rest))


def _migrate(arguments: Sequence[str]) -> int:
    config = read_flags(MigrateConfig, "balancer service migrate", arguments)
    from balancer.serving.operations.migration import MIGRATE, NO_TABLES, check_file_exists, migrate, revisions, used
    from balancer.serving.storage.database import Database

    with used(Database(config.database_url)) as database:
        if config.check:
            check_file_exists(database)
            found = revisions(database)
            wanted = found.newest if config.to is None else config.to
            if found.current == wanted:
                print(f"the tables are those of revision {wanted}")
                return 0
            print(f"the tables are of revision {found.current or NO_TABLES}, not {wanted}: run {MIGRATE}")
            return 1
        before, after = migrate(database, config.to, allow_loss=config.allow_loss)
    if before.current == after.current:
        print(f"the tables are those of revision {after.current} already")
    else:
        print(f"the tables were moved from revision {before.current or NO_TABLES} to {after.current}")
    return 0


def _purge(arguments: Sequence[str]) -> int:
    config = read_flags(PurgeConfig, "balancer service purge", arguments)
    age = parse_duration(config.older_than, "--older-than")
    _check_models(config)
    from balancer.serving.operations.migration import open_database, used
    from balancer.serving.operations.retention import check_models, purge

    missing = "which rows a model needs follows from its run: give --run or --models, as for balancer serve"
    if config.run is None and config.models is None:
        raise InputError(missing)
    with used(open_database(config.database_url)) as database, _progress("purging") as progress:
        models = _models(config, database, registered=True)
        check_models(database, models)
        if not models:
            raise InputError(missing)
        done = purge(
            database, models, age, time.time(), dry_run=config.dry_run, progress=lambda what, count, total: progress(count, total, what)
        )
    if config.json:
        print(json.dumps(done.to_dict() | {"dry_run": config.dry_run}, indent=2))
    else:
        parts = [
            counted(done.transactions, "transaction"),
            counted(done.decisions, "decision"),
            counted(done.challenger_scores, "score of challengers", "scores of challengers"),
            counted(done.entities, "entity", "entities"),
        ]
        print(f"{', '.join(parts[:-1])} and {parts[-1]} {'would be' if config.dry_run else 'were'} deleted")
    return 0


def _backup(arguments: Sequence[str]) -> int:
    config = read_flags(BackupConfig, "balancer service backup", arguments)
    from balancer.serving.operations.backup import backup
    from balancer.serving.operations.migration import check_file_exists, used
    from balancer.serving.storage.database import Database

    with used(Database(config.database_url)) as database:
        check_file_exists(database)
        found = backup(database, config.file, overwrite=config.overwrite)
    print(f"{config.file} has all of {database.shown}, {config.file.stat().st_size / 1e6:.1f} MB, with tables of revision {found.current}")
    return 0


def _restore(arguments: Sequence[str]) -> int:
    config = read_flags(RestoreConfig, "balancer service restore", arguments)
    from balancer.serving.operations.backup import restore
    from balancer.serving.operations.migration import MIGRATE, used
    from balancer.serving.storage.database import Database

    with used(Database(config.database_url)) as database:
        found = restore(database, config.file, overwrite=config.overwrite)
    print(f"{database.shown} has all of {config.file}, with tables of revision {found.current}")
    if not found.is_newest:
        say("note", f"this version needs tables of revision {found.newest}: run {MIGRATE}")
    return 0


def _import(arguments: Sequence[str]) -> int:
    config = read_flags(ImportConfig, "balancer service import", arguments)
    read = config.read_options()
    tolerance = parse_duration(config.clock_tolerance, "--clock-tolerance")
    check_table(config.table)
    check_run(config.run)
    from balancer.serving.models.registry import LoadedModel
    from balancer.serving.operations.backfill import import_history, note_on_model, read_history, tenant_of
    from balancer.serving.operations.migration import open_database, used
    from balancer.tables.options import ReadOptions

    model = LoadedModel.load(config.run, config.run.resolve().name, config.precision)
    spec = model.schema.spec
    reading = replace(spec, read=ReadOptions.from_dict(spec.read.to_dict() | read.to_dict()))
    history = read_history(
        replace(model, schema=replace(model.schema, spec=reading)),
        config.table,
        labels=config.labels,
        bad_rows=config.bad_rows,
        tolerance=tolerance,
    )
    with used(open_database(config.database_url, create=True)) as database, _progress("importing") as progress:
        tenant = tenant_of(database, config.tenant)
        notes = [*history.notes, *(f"{counted(number, 'row')} dropped: {reason}" for reason, number in history.dropped.items())]
        if (note := note_on_model(database, model)) is not None:
            notes.append(note)
        for each in notes:
            say("note", each)
        done = import_history(database, tenant, model, history, progress=lambda count, total: progress(count, total, "importing"))
    if config.json:
        print(json.dumps(done.to_dict() | {"dropped": history.dropped, "tenant": tenant}, indent=2))
        return 0
    rate = done.to_dict()["rows_per_second"]
    print(
        f"{counted(done.rows, 'row')} of {tenant}: {done.scored:,} scored, {done.repeated:,} stored already, "
        f"{counted(done.labels, 'label')} stored; {done.seconds:.1f} s, {rate:,.0f} rows per second"
    )
    if done.late:
        say("warning", f"{counted(done.late, 'row')} earlier than stored ones of their entity were scored at the time of those")
    return 0


def _export(arguments: Sequence[str]) -> int:
    config = read_flags(ExportConfig, "balancer service export", arguments)
    since, until = _moment(config.since, "--since"), _moment(config.until, "--until")
    check_new_file(config.out, "--out", overwrite=config.overwrite)
    if config.run is not None:
        check_run(config.run)
    from balancer.serving.operations.export import export_decisions, export_features
    from balancer.serving.operations.migration import open_database, used

    with used(open_database(config.database_url)) as database:
        if config.what == "decisions":
            rows = export_decisions(database, config.tenant, since, until, config.out)
        else:
            from balancer.serving.models.loaded_model import LoadedModel

            assert config.run is not None
            model = LoadedModel.load(config.run, config.run.resolve().name)
            rows = export_features(database, model, config.tenant, since, until, config.out)
    print(f"{counted(rows, 'row')} written to {config.out}")
    return 0


def _moment(text: str | None, flag: str) -> float | None:
    """Convert a date, in UTC where it names no zone, to seconds since 1970.

    Raises:
        InputError: It is no date.
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{flag} is {text!r}: give a date such as 2026-05-01, or 2026-05-01T12:00") from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _monitor(arguments: Sequence[str]) -> int:
    config = read_flags(MonitorConfig, "balancer service monitor", arguments)
    _check_models(config)
    from balancer.serving.operations.migration import open_database, used
    from balancer.serving.operations.monitoring import Monitoring

    with used(open_database(config.database_url)) as database:
        models = _models(config, database)
        found = Monitoring(database, lambda: models).by_day(config.days)
    if config.json:
        print(json.dumps(found, indent=2))
        return 0
    from balancer.serving.operations.monitoring_terminal import print_days

    print_days(found)
    return 0


def _check_models(config: ModelOptions) -> None:
    """Check the flags of the models before anything slow is imported.

    Raises:
        InputError: A folder does not exist.
    """
    if config.run is not None:
        check_run(config.run)
    if config.models is not None and not config.models.is_dir():
        raise InputError(f"--models {config.models} is not a folder: give the one of balancer serve")


def _models(config: ModelOptions, database: Database, *, registered: bool = False) -> list[LoadedModel]:
    """The models of the runs that are named; what is left out is said."""
    if config.run is None and config.models is None:
        return []
    from balancer.serving.operations.chosen_models import chosen_models

    models, notes = chosen_models(database, config.run, config.models, config.precision, registered=registered)
    for note in notes:
        say("note", note)
    return models


class _Shown(Protocol):
    def __call__(self, done: int, total: int, what: str) -> Any: ...


@contextmanager
def _progress(what: str) -> Iterator[_Shown]:
    """Show on a terminal how far the work is, with the rate and the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(markup=False, stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
