"""What is decided before a body arrives, and how much running requests may take."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from balancer.serving.config import ServeConfig
from balancer.serving.http import auth
from balancer.serving.http.app import create_app
from balancer.serving.http.auth import Access
from balancer.serving.http.limits import SMALL, ByteLimit, RefusalError, RequestLimit
from balancer.serving.http.middleware import RequestMiddleware
from balancer.serving.http.route_table import Found, RouteTable
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.deadline import REQUEST, Deadline
from tests.serving.tools import opened

Send = Callable[[Any], Awaitable[None]]


class Caller:
    """Calls an ASGI application, and says whether it asked for the body."""

    def __init__(self, parts: list[bytes] | None = None, *, ends: bool = True) -> None:
        self.parts, self.ends = parts or [], ends
        self.asked = 0
        self.status, self.headers, self.body = 0, {}, b""

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        if self.parts:
            part = self.parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self.parts) or not self.ends}
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message.get("body", b"")

    async def call(self, app: Any, path: str = "/v1/score", method: str = "POST", **headers: str) -> Caller:
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost"), *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())],
        }
        await app(scope, self.receive, self.send)
        return self


@pytest.fixture
def database(tmp_path: Path) -> Any:
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    yield database
    database.close()


class OneRoute:
    """A route table with a single route, which needs the scope `score`."""

    def find(self, _: Any) -> Found:
        return Found("/v1/score", "score")


def around(app: Any, database: Database, **options: Any) -> RequestMiddleware:
    async def allowed(_: str) -> bool:
        return True

    access = Access(database, 0.0, open_allowed=True)
    settings: dict[str, Any] = {"max_body": 1_000_000, "max_held": 1_000_000, "max_concurrent": 4, "timeout": 4.0}
    return RequestMiddleware(app, access=access, routes=OneRoute, host_allowed=allowed, direct={}, **(settings | options))


async def answers(_: Any, receive: Any, send: Send, status: int = 200) -> None:
    body = (await receive())["body"]
    content = json.dumps({"bytes": len(body)}).encode()
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": content})


def test_no_byte_of_a_body_is_read_before_the_key_is_known_to_be_valid(database: Database) -> None:
    _, token = keys.create(database, "t", ("sessions",))
    app = create_app(ServeConfig(database=database.shown))
    tried = 0
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            table, url = RouteTable(app.routes), path.replace("{", "").replace("}", "")
            scope = table.find({"method": method.upper(), "path": url, "type": "http"}).scope
            if scope is None:
                assert path in ("/healthz", "/readyz")
                continue
            refused = {None: 401, "Bearer wrong": 401, f"Bearer {token[:-1]}~": 401, "Basic YTpi": 401}
            if scope != "sessions":
                refused[f"Bearer {token}"] = 403
            for key, status in refused.items():
                headers = {"content_length": "3900000"} | ({} if key is None else {"authorization": key})
                caller = asyncio.run(Caller().call(app, url, method.upper(), **headers))
                assert caller.asked == 0, (method, path, key)
                assert caller.status == status, (method, path, key, caller.body)
                assert caller.headers[b"connection"] == b"close"
                assert json.loads(caller.body)["error"]
                tried += 1
    assert tried > 40


def test_routes_without_a_key_read_no_body(database: Database) -> None:
    app = create_app(ServeConfig(database=database.shown))
    for path, method in (("/healthz", "GET"), ("/openapi.json", "GET"), ("/nowhere", "POST"), ("/v1/score", "PATCH")):
        caller = asyncio.run(Caller().call(app, path, method, transfer_encoding="chunked"))
        assert caller.asked == 0, path
        assert caller.status in (200, 404, 405), (path, caller.status)
        assert caller.headers[b"connection"] == b"close"


def test_a_key_is_looked_up_once_a_second_and_refused_a_second_after_it_was_revoked(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, token = keys.create(database, "t", ("sessions",))
    looked = []
    verify = keys.verify
    monkeypatch.setattr(keys, "verify", lambda *arguments: looked.append(1) or verify(*arguments))
    with TestClient(create_app(ServeConfig(database=database.shown))) as client:
        headers = {"Authorization": f"Bearer {token}"}
        begun = time.monotonic()
        assert {client.get("/v1/sessions", headers=headers).status_code for _ in range(20)} == {200}
        assert len(looked) <= 1 + (time.monotonic() - begun) / 0.5
        keys.revoke(database, key.id)
        time.sleep(auth.REMEMBERED_SECONDS)
        looked.clear()
        assert {client.get("/v1/sessions", headers=headers).status_code for _ in range(20)} == {401}
        assert len(looked) <= 2


def test_wrong_keys_do_not_delay_one_that_is_in_use(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    _, token = keys.create(database, "t", ("score",))
    verify = keys.verify

    def slow(database: Database, given: str) -> keys.Key | None:
        time.sleep(0.0 if given == token else 0.2)
        return verify(database, given)

    monkeypatch.setattr(keys, "verify", slow)

    async def run() -> float:
        access = Access(database, 0.0, open_allowed=False)
        right = [(b"authorization", f"Bearer {token}".encode())]
        await access.check(right, "score")
        await asyncio.sleep(auth.REMEMBERED_SECONDS)
        wrong = [[(b"authorization", b"Bearer bk_%012x_%b" % (number, b"a" * 43))] for number in range(6)]
        flood = [asyncio.create_task(access.check(each, "score")) for each in wrong]
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        await access.check(right, "score")
        seconds = time.monotonic() - begun
        refused = await asyncio.gather(*flood, return_exceptions=True)
        assert {each.status for each in refused if isinstance(each, RefusalError)} == {401}
        access.close()
        return seconds

    assert asyncio.run(run()) < 0.15


def test_a_service_is_closed_for_good_once_a_key_has_existed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "REMEMBERED_SECONDS", 0.1)
    config = ServeConfig(database=database.shown)
    with TestClient(create_app(config)) as client:
        assert client.get("/v1/sessions").status_code == 200
        key, _ = keys.create(database, "t", ("sessions",))
        time.sleep(auth.REMEMBERED_SECONDS)
        assert client.get("/v1/sessions").status_code == 401
        keys.revoke(database, key.id)
        time.sleep(auth.REMEMBERED_SECONDS)
        assert client.get("/v1/sessions").status_code == 401
    with TestClient(create_app(config)) as restarted:
        assert restarted.get("/v1/sessions").status_code == 401


def test_more_requests_than_allowed_are_refused_and_one_key_has_three_quarters() -> None:
    limit = RequestLimit(4)
    with limit.running("a"), limit.running("a"), limit.running("a"):
        with pytest.raises(RefusalError) as refused, limit.running("a"):
            pass
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
        with limit.running("b"), pytest.raises(RefusalError) as full, limit.running("c"):
            pass
        assert full.value.status == 503
    with limit.running("a"):
        pass


def test_requests_beyond_the_limit_get_503_with_retry_after(database: Database) -> None:
    release = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Send) -> None:
        await release.wait()
        await answers(scope, receive, send)

    async def run() -> list[Caller]:
        app = around(waits, database, timeout=60.0)
        tasks = [asyncio.create_task(Caller().call(app)) for _ in range(6)]
        while sum(task.done() for task in tasks) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert sum(task.done() for task in tasks) == 2
        release.set()
        return list(await asyncio.gather(*tasks))

    callers = asyncio.run(run())
    assert sorted(each.status for each in callers) == [200, 200, 200, 200, 503, 503]
    assert all(each.headers[b"retry-after"] == b"1" for each in callers if each.status == 503)


def test_large_bodies_wait_for_each_other_and_small_ones_do_not(database: Database) -> None:
    held, most = 0, 0

    async def counts(_: Any, receive: Any, send: Send) -> None:
        nonlocal held, most
        size = len((await receive())["body"])
        held += size
        most = max(most, held)
        await asyncio.sleep(0.05)
        held -= size
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> list[Caller]:
        app = around(counts, database, max_concurrent=64)
        large = [Caller([b"x" * 300_000, b"x" * 100_000]).call(app, content_length="400000") for _ in range(10)]
        small = [Caller([b"x" * 1000]).call(app, content_length="1000") for _ in range(10)]
        return list(await asyncio.gather(*large, *small))

    assert {each.status for each in asyncio.run(run())} == {200}
    assert 400_000 < most <= 1_000_000 + 10 * 1000


@pytest.mark.parametrize("headers", [{"content_length": "900000"}, {"transfer_encoding": "chunked"}])
def test_a_large_body_that_stalls_makes_way_for_others(database: Database, headers: dict[str, str]) -> None:
    async def run() -> tuple[Caller, Caller]:
        app = around(answers, database)
        stalls = asyncio.create_task(Caller([b"x" * 2 * SMALL], ends=False).call(app, **headers))
        await asyncio.sleep(0.05)
        other = await Caller([b"x" * 400_000, b"x" * 400_000]).call(app, content_length="800000")
        return await stalls, other

    stalls, other = asyncio.run(run())
    assert (stalls.status, other.status) == (408, 200)
    assert stalls.headers[b"connection"] == b"close"


def test_a_body_that_does_not_arrive_gets_408(database: Database) -> None:
    caller = asyncio.run(Caller([b"x"], ends=False).call(around(answers, database, timeout=0.3), content_length="10"))
    assert caller.status == 408
    large = asyncio.run(Caller([b"x" * 600_000, b"x" * 600_000]).call(around(answers, database), transfer_encoding="chunked"))
    assert large.status == 413


def test_bytes_are_given_back_when_who_waits_gives_up() -> None:
    async def run() -> None:
        limit = ByteLimit(10)
        assert await limit.take("a", 10) == 10
        waits = [asyncio.create_task(limit.take("b", 5)) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()
        await asyncio.sleep(0)
        limit.give_back("a", 10)
        assert await waits[1] == 5
        waits[2].cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        limit.give_back("b", 5)
        assert await asyncio.wait_for(limit.take("c", 99), 1) == 10

    asyncio.run(run())


def test_what_has_not_begun_in_time_is_answered_with_503_and_never_carried_out(database: Database) -> None:
    deadlines: list[Deadline] = []

    async def waits(*_: Any) -> None:
        deadline = REQUEST.get()
        assert deadline is not None
        deadlines.append(deadline)
        await asyncio.sleep(30)

    begun = time.monotonic()
    caller = asyncio.run(Caller().call(around(waits, database, timeout=0.6)))
    assert caller.status == 503
    assert "nothing was done" in json.loads(caller.body)["error"]
    assert 0.25 < time.monotonic() - begun < 2
    assert not deadlines[0].begin()


def test_what_has_begun_is_answered_however_long_it_takes(database: Database) -> None:
    async def begins(scope: Any, receive: Any, send: Send) -> None:
        deadline = REQUEST.get()
        assert deadline is not None
        assert deadline.begin()
        await asyncio.sleep(0.8)
        await answers(scope, receive, send)

    assert asyncio.run(Caller().call(around(begins, database, timeout=0.3))).status == 200


def test_a_request_that_waited_too_long_does_not_reach_the_database(database: Database) -> None:
    deadline = Deadline(1.0)
    assert deadline.expire()
    token = REQUEST.set(deadline)
    try:
        with pytest.raises(Exception, match="waited too long to begin"):
            database.write(lambda _: pytest.fail("it must not run"))
    finally:
        REQUEST.reset(token)
