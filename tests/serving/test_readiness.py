"""Several requests that ask at once whether the worker is ready."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from balancer.serving.http import health
from balancer.serving.http.health import Readiness
from tests.serving.tools import opened


def test_a_look_that_another_request_begins_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    database = opened(url)
    readiness = Readiness(url, database, lambda: False)
    wait = asyncio.wait

    async def wait_and_begin_another(looks: set[asyncio.Future[str | None]], *, timeout: float) -> object:
        found = await wait(looks, timeout=timeout)
        readiness._look = asyncio.get_running_loop().create_future()  # as a request that comes just now
        return found

    monkeypatch.setattr(health.asyncio, "wait", wait_and_begin_another)
    try:
        assert asyncio.run(readiness.problem()) is None
    finally:
        readiness.close()
        database.close()
