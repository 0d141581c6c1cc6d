"""Tables of the service on narrow terminals: ids and days are never cut."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import update

from balancer.cli import main
from balancer.serving.operations.monitoring_terminal import print_days
from balancer.serving.storage import keys
from balancer.serving.storage.tables import keys as table
from tests.serving.tools import opened


def words(text: str) -> set[str]:
    return set(text.replace("│", " ").replace("┃", " ").split())


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_ids_and_ends_of_keys_are_whole(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    url = f"sqlite:///{tmp_path / 'service.db'}"
    database = opened(url)
    names = ["a-bank-with-a-long-name", "b" * 100]
    made = [keys.create(database, each, keys.SCOPES, "name of " * 9, expires=time.time() + 86_400)[0] for each in names]
    keys.create(database, "c", ("score",))
    keys.revoke(database, made[1].id)
    expired = time.time() - 86_400
    database.write(lambda connection: connection.execute(update(table).where(table.c.id == made[1].id).values(expires=expired)))
    database.close()
    assert main(["keys", "list", "--database", url]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns
    assert "…" not in said
    found = words(said)
    for key in made:
        assert key.id in found
    assert made[0].expires is not None
    for day in (made[0].expires, expired, time.time()):
        assert keys.shown_day(day)[:10] in found
    assert {"(expired)", "(soon)"} <= found
    assert columns < 80 or {"expires", "revoked"} <= found


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_days_of_the_monitoring_are_whole(columns: int) -> None:
    share = {"value": 0.5213, "interval": [0.4, 0.6123]}
    day: dict[str, Any] = {
        "day": "2026-11-29",
        "model": "a-model-with-a-rather-long-name",
        "transactions": 1_234_567,
        "alert_rate": 0.0123,
        "expected_frauds": {"value": 12_345.0, "interval": [10_000.0, 15_000.0]},
        "estimated_precision": share,
        "true_precision": share,
        "largest_drift": {"index": 0.31, "field": "amount_over_30_days_of_the_card"},
    }
    out = io.StringIO()
    print_days({"days": [day, day | {"day": "2026-11-28", "largest_drift": None}], "notes": ["a note"]}, Console(file=out, width=columns))
    said = out.getvalue()
    assert max(map(len, said.splitlines())) <= columns
    assert "…" not in said
    assert {"2026-11-29", "2026-11-28", "0.52", "0.31", "1,234,567", "12,345"} <= words(said)
    assert columns > 80 or {"0.40–0.61", "precision"} <= words(said)
