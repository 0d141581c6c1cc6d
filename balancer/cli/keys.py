"""``balancer keys create|list|revoke``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from balancer.cli import run_command
from balancer.errors import InputError
from balancer.options.database import DatabaseOptions
from balancer.options.flags import Flag, read_flags

if TYPE_CHECKING:
    from rich.table import Table

    from balancer.serving.storage.database import Database
    from balancer.serving.storage.keys import Key

_WIDEST = 2_000
"""Columns of a terminal on which any table fits."""

COMMANDS = {
    "create": "create an API key and print it once",
    "list": "list all API keys, including revoked ones, without the keys themselves",
    "revoke": "revoke an API key",
}


@dataclass(frozen=True, kw_only=True)
class CreateConfig(DatabaseOptions):
    """Create an API key of the service and print it.

    The key is shown only once: the database keeps its hash.
    """

    tenant: Annotated[str, Flag("Name of the tenant whose data the key opens: letters, digits, dots and dashes.", metavar="NAME")]
    scopes: Annotated[
        tuple[str, ...],
        "What the key allows: score, sessions, admin (deletion and audit of the tenant), operator (models and metrics of all tenants).",
    ] = ("score", "sessions")
    name: Annotated[str, "Name of the key in balancer keys list."] = ""
    expires: Annotated[str, Flag("When the key ends: 90d, 12h, or a date such as 2027-01-31; without it never.", metavar="TIME")] = ""
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


def _opened(url: str, *, create: bool = False) -> AbstractContextManager[Database]:
    """The database at ``url``, with tables of this version, closed at the end.

    Tables of an older version are left as they are, because a service of that version may be running.

    Args:
        url: Its URL.
        create: Whether tables are created in a database that has none, or does not exist.

    Raises:
        InputError: It can't be opened, has tables of another version, or does not exist and ``create`` is
            False.
    """
    path = url.removeprefix("sqlite:///")
    if not create and path not in (url, "", ":memory:") and "?" not in path and not Path(path).is_file():  # before SQLAlchemy is imported
        raise InputError(f"--database {url} does not exist: balancer keys create makes it, or name another one")
    from balancer.serving.operations.migration import open_database, used

    return used(open_database(url, create=create))


def _create(arguments: Sequence[str]) -> int:
    config = read_flags(CreateConfig, "balancer keys create", arguments)
    from balancer.serving.storage import keys

    expires = keys.parse_expiry(config.expires)
    keys.check(config.tenant, config.scopes, config.name)  # before a database is created
    with _opened(config.database_url, create=True) as database:
        key, token = keys.create(database, config.tenant, config.scopes, config.name, expires=expires)
    if config.json:
        row = {"id": key.id, "tenant": key.tenant, "scopes": list(key.scopes), "expires": key.expires, "key": token}
        print(json.dumps(row, indent=2))
    else:
        until = "" if key.expires is None else f", until {keys.shown_day(key.expires)} UTC"
        print(token)  # alone on stdout, so that a shell can keep it: KEY=$(balancer keys create ...)
        about = f"key {key.id} of {key.tenant} for {', '.join(key.scopes)}{until}; store it now, it is not shown again"
        print(about, file=sys.stderr)
    return 0


def _list(arguments: Sequence[str]) -> int:
    config = read_flags(ListConfig, "balancer keys list", arguments)
    with _opened(config.database_url) as database:
        from balancer.serving.storage import keys

        found = keys.list_keys(database)
    if config.json:
        rows = [{"id": key.id, "tenant": key.tenant, "name": key.name, "scopes": list(key.scopes), "created": key.created} for key in found]
        limits = [{"expires": key.expires, "expired": key.has_expired, "revoked": key.revoked} for key in found]
        print(json.dumps([row | limit for row, limit in zip(rows, limits, strict=True)], indent=2))
        return 0
    from rich.console import Console

    console = Console(markup=False)
    if not found:
        console.print("no keys yet: balancer keys create --tenant NAME")
        return 0
    wide = _table(found, compact=False)
    fits = console.measure(wide, options=console.options.update(width=_WIDEST)).maximum <= console.width
    console.print(wide if fits else _table(found, compact=True))
    return 0


def _table(found: Sequence[Key], *, compact: bool) -> Table:
    """The keys as a table.

    Args:
        found: The keys.
        compact: Whether it must be narrow: days without a time, and what has ended in the column of the end.
    """
    from rich import box
    from rich.table import Column, Table

    from balancer.serving.storage.keys import shown_day

    day = len("2027-01-31") if compact else len("2027-01-31 08:00")

    def moment(seconds: float | None) -> str:
        return "" if seconds is None else shown_day(seconds)[:day]

    columns = [Column("id", no_wrap=True, min_width=12), *(Column(name, overflow="fold") for name in ("tenant", "name", "scopes"))]
    columns += [Column(name, no_wrap=True, min_width=day) for name in ("created", "expires", "revoked")]
    columns[3].min_width = len("sessions,")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0)) if compact else Table(*columns, box=box.HEAVY_HEAD)
    for key in found:
        ended = "(expired)" if key.has_expired else "(soon)" if key.expires_soon else ""
        ends = moment(key.expires) + (f"{chr(10) if compact else ' '}{ended}" if ended else "")
        table.add_row(key.id, key.tenant, key.name, ", ".join(key.scopes), moment(key.created), ends, moment(key.revoked))
    return table


def _revoke(arguments: Sequence[str]) -> int:
    config = read_flags(RevokeConfig, "balancer keys revoke", arguments)
    with _opened(config.database_url) as database:
        from balancer.serving.storage import keys

        keys.revoke(database, config.id)
    print(f"key {config.id} is revoked")
    return 0
