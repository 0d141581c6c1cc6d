"""``balancer keys create|list|revoke``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from balancer.cli import run_command
from balancer.errors import InputError
from balancer.options.flags import Flag, read_flags

if TYPE_CHECKING:
    from balancer.serving.storage.database import Database

COMMANDS = {
    "create": "create an API key and print it once",
    "list": "list all API keys, including revoked ones, without the keys themselves",
    "revoke": "revoke an API key",
}


@dataclass(frozen=True, kw_only=True)
class DatabaseOptions:
    """Which service."""

    database: Annotated[str, Flag("Database of the service, as for balancer serve.", metavar="URL")] = "sqlite:///balancer-service.db"


@dataclass(frozen=True, kw_only=True)
class CreateConfig(DatabaseOptions):
    """Create an API key of the service and print it.

    The key is shown only once: the database keeps its hash.
    """

    tenant: Annotated[str, Flag("Name of the tenant whose data the key opens: letters, digits, dots and dashes.", metavar="NAME")]
    scopes: Annotated[tuple[str, ...], "What the key allows: score, sessions, admin."] = ("score", "sessions")
    name: Annotated[str, "Name of the key in balancer keys list."] = ""
    json: Annotated[bool, "Print the key as JSON."] = False


@dataclass(frozen=True, kw_only=True)
class ListConfig(DatabaseOptions):
    """List all API keys of the service, including revoked ones, without the keys themselves."""

    json: Annotated[bool, "Print the list as JSON."] = False


@dataclass(frozen=True, kw_only=True)
class RevokeConfig(DatabaseOptions):
    """Revoke an API key of the service, at once."""

    id: Annotated[str, Flag("ID of the key, as shown by balancer keys list.", metavar="ID", positional=True)]


def main(arguments: Sequence[str]) -> int:
    """Run one of the three commands; returns the exit code."""
    actions = {"create": _create, "list": _list, "revoke": _revoke}
    return run_command("balancer keys", "Manage the API keys of the service.", COMMANDS, arguments, lambda name, rest: actions[name](rest))


def _opened(url: str, *, create: bool = False) -> Database:
    """The database at ``url``, its tables brought up to date.

    Raises:
        InputError: It can't be opened, or it is a file that does not exist and ``create`` is False.
    """
    path = url.removeprefix("sqlite:///")
    if not create and path not in (url, "", ":memory:") and "?" not in path and not Path(path).is_file():  # before SQLAlchemy is imported
        raise InputError(f"--database {url} does not exist: balancer keys create makes it, or name another one")
    from balancer.serving.storage.database import Database

    database = Database(url)
    file = database.engine.url.database
    if database.is_sqlite and not create and file is not None and not Path(file).is_file():
        raise InputError(f"--database {database.shown} does not exist: balancer keys create makes it, or name another one")
    database.upgrade()
    return database


def _create(arguments: Sequence[str]) -> int:
    config = read_flags(CreateConfig, "balancer keys create", arguments)
    from balancer.serving.storage import keys

    database = _opened(config.database, create=True)
    key, token = keys.create(database, config.tenant, config.scopes, config.name)
    if config.json:
        print(json.dumps({"id": key.id, "tenant": key.tenant, "scopes": list(key.scopes), "key": token}, indent=2))
    else:
        print(f"{token}\n\nkey {key.id} of {key.tenant} for {', '.join(key.scopes)}; store it now, it is not shown again")
    return 0


def _list(arguments: Sequence[str]) -> int:
    config = read_flags(ListConfig, "balancer keys list", arguments)
    database = _opened(config.database)
    from balancer.serving.storage import keys

    found = keys.list_keys(database)
    if config.json:
        rows = [{"id": key.id, "tenant": key.tenant, "name": key.name, "scopes": list(key.scopes), "created": key.created} for key in found]
        print(json.dumps([row | {"revoked": key.revoked} for row, key in zip(rows, found, strict=True)], indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "tenant", "name", "scopes", "created", "revoked")
    for key in found:
        table.add_row(
            key.id, key.tenant, key.name, ", ".join(key.scopes), _day(key.created), "" if key.revoked is None else _day(key.revoked)
        )
    Console().print(table if found else "no keys yet: balancer keys create --tenant NAME")
    return 0


def _revoke(arguments: Sequence[str]) -> int:
    config = read_flags(RevokeConfig, "balancer keys revoke", arguments)
    database = _opened(config.database)
    from balancer.serving.storage import keys

    keys.revoke(database, config.id)
    print(f"key {config.id} is revoked")
    return 0


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
