"""Keys that expire, the scope of operators, and whether there was ever a key."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from sqlalchemy import text, update

from balancer.cli import main
from balancer.errors import InputError
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import keys as table
from tests.serving.test_migrations import move

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ("", None),
        ("90d", NOW + 90 * 86_400),
        (" 12h ", NOW + 43_200),
        ("2027-01-31", 1_801_440_000.0),  # the whole day counts
        ("2027-01-31T06:00", 1_801_375_200.0),
        ("2027-01-31T06:00:00+02:00", 1_801_368_000.0),
    ],
)
def test_an_end_is_a_duration_or_a_date(given: str, ends: float | None) -> None:
    assert keys.parse_expiry(given, NOW) == ends


@pytest.mark.parametrize(
    "given",
    ["2026-12-31", "2027-13-01", "2027-02-30", "20270131", "3600", "0d", "-1d", "soon", "nan", "9999999d", "9999-12-31", "90 weeksx"],
)
def test_other_ends_are_refused(given: str) -> None:
    with pytest.raises(InputError, match=r"^--expires .* give a duration such as 90d, or a date such as 2027-01-31"):
        keys.parse_expiry(given, NOW)


def test_an_expired_key_is_refused_with_its_own_message(database: Database) -> None:
    key, token = keys.create(database, "t", ("score",), expires=time.time() + 3600)
    assert keys.verify(database, token) == key
    assert key.expires_soon and not key.has_expired
    assert keys.any_in_use(database)
    past = time.time() - 1
    database.write(lambda connection: connection.execute(update(table).values(expires=past)))
    assert keys.verify(database, token) is None
    assert keys.refusal(database, token).startswith("the key expired on 20")
    other = token[:-1] + ("A" if not token.endswith("A") else "B")
    assert keys.refusal(database, other) == "the key is wrong or was revoked"  # says nothing to who has no key
    assert not keys.any_in_use(database)
    assert keys.any_ever(database)
    keys.revoke(database, key.id)
    assert keys.refusal(database, token) == "the key is wrong or was revoked"
    assert keys.any_ever(database)
    with pytest.raises(InputError, match="in the past"):
        keys.create(database, "t", ("score",), expires=past)


def test_a_database_without_keys_never_had_one(database: Database) -> None:
    assert not keys.any_ever(database)
    assert not keys.any_in_use(database)


def test_the_command_line_shows_when_a_key_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = ["--database", f"sqlite:///{tmp_path / 'service.db'}"]
    create = ["keys", "create", "--tenant", "bank", *database]
    assert main([*create, "--expires", "3d", "--scopes", "operator", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["expires"] == pytest.approx(time.time() + 3 * 86_400, abs=60)
    assert made["scopes"] == ["operator"]
    assert main(create) == 0
    assert "until" not in capsys.readouterr().out
    assert main(["keys", "list", *database, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(key["expires"], key["expired"]) for key in listed] == [(made["expires"], False), (None, False)]
    assert main(["keys", "list", *database]) == 0
    assert "expires" in capsys.readouterr().out
    assert main([*create, "--expires", "yesterday"]) == 2
    assert "--expires 'yesterday' can't be used" in capsys.readouterr().err


def test_keys_of_earlier_versions_with_admin_keep_what_they_could_do(url: str) -> None:
    database = Database(url)
    move(database, "0003")
    add = text("INSERT INTO api_keys (id, tenant, name, scopes, digest, created) VALUES (:id, 't', '', :scopes, 'd', 1)")
    rows = [{"id": "a", "scopes": "score,admin"}, {"id": "b", "scopes": "score,sessions"}, {"id": "c", "scopes": "admin"}]
    database.write(lambda connection: connection.execute(add, rows))
    database.upgrade()
    found = {key.id: key.scopes for key in keys.list_keys(database)}
    assert found == {"a": ("score", "admin", "operator"), "b": ("score", "sessions"), "c": ("admin", "operator")}
    # Without the column an expired key would work again.
    for name, expires in (("a", 5.0), ("b", time.time() + 1e6)):
        ended = update(table).where(table.c.id == name).values(expires=expires)
        database.write(lambda connection, ended=ended: connection.execute(ended))  # type: ignore[misc]
    move(database, "0003", up=False)
    revoked = text("SELECT id, revoked FROM api_keys ORDER BY id")
    assert [tuple(row) for row in database.read(lambda connection: connection.execute(revoked).all())] == [
        ("a", 5.0),
        ("b", None),
        ("c", None),
    ]
    database.close()


def test_the_database_may_be_named_by_a_file_or_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its password is not on the command line."""
    url = f"sqlite:///{tmp_path / 'service.db'}"
    (tmp_path / "url").write_text(url + "\n")
    assert main(["keys", "create", "--tenant", "bank", "--database-file", str(tmp_path / "url")]) == 0
    monkeypatch.setenv("BALANCER_DATABASE", url)
    capsys.readouterr()
    assert main(["keys", "list", "--json"]) == 0
    assert [key["tenant"] for key in json.loads(capsys.readouterr().out)] == ["bank"]
