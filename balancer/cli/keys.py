"""`balancer keys create|list|revoke`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from balancer.options.flags import parse

DATABASE = "sqlite:///balancer-service.db"


@dataclass(frozen=True)
class CreateConfig:
    """Make a key for the service and print it, once: only its hash is kept."""

    tenant: str
    """Whose data it opens: letters, digits, dots, dashes."""
    scopes: tuple[str, ...] = ("score", "sessions")
    """What it is for: score, sessions, admin."""
    name: str = ""
    """What to call it in the list."""
    database: str = DATABASE
    """The service's database."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class ListConfig:
    """All keys of a service, revoked ones too; never the keys themselves."""

    database: str = DATABASE
    """The service's database."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class RevokeConfig:
    """Refuse a key from now on."""

    id: str = field(metadata={"positional": True, "metavar": "ID"})
    """The key's id, as balancer keys list shows it."""
    database: str = DATABASE
    """The service's database."""


def main(arguments: Sequence[str]) -> int:
    """Choose the action and do it."""
    actions = {"create": _create, "list": _list, "revoke": _revoke}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: balancer keys {create,list,revoke} [--flags]\n\nAPI keys of the service; balancer keys ACTION --help lists the flags."
        )
        return 0 if arguments else 2
    if arguments[0] not in actions:
        print(f"error: unknown action {arguments[0]!r}: one of {', '.join(actions)}", file=sys.stderr)
        return 2
    return actions[arguments[0]](arguments[1:])


def _create(arguments: Sequence[str]) -> int:
    config = CreateConfig(**parse(CreateConfig, "balancer keys create", CreateConfig.__doc__ or "", arguments))
    from balancer.serving.storage import keys
    from balancer.serving.storage.database import Database

    database = Database(config.database)
    database.upgrade()
    key, token = keys.create(database, config.tenant, config.scopes, config.name)
    if config.json:
        print(json.dumps({"id": key.id, "tenant": key.tenant, "scopes": list(key.scopes), "key": token}, indent=2))
    else:
        print(f"{token}\n\nkey {key.id} of {key.tenant} for {', '.join(key.scopes)}; keep it now, it is not shown again")
    return 0


def _list(arguments: Sequence[str]) -> int:
    config = ListConfig(**parse(ListConfig, "balancer keys list", ListConfig.__doc__ or "", arguments))
    from balancer.serving.storage import keys
    from balancer.serving.storage.database import Database

    database = Database(config.database)
    database.upgrade()
    found = keys.listed(database)
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
    config = RevokeConfig(**parse(RevokeConfig, "balancer keys revoke", RevokeConfig.__doc__ or "", arguments))
    from balancer.serving.storage import keys
    from balancer.serving.storage.database import Database

    database = Database(config.database)
    database.upgrade()
    keys.revoke(database, config.id)
    print(f"key {config.id} is refused from now on")
    return 0


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
