"""Odd values in every place of a request: none of them may be answered with a status of 500 or more."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from benchmarks.lib.service import START, transaction
from benchmarks.lib.service_client import Connection

if TYPE_CHECKING:
    from benchmarks.lib.service_abuse import Target

REQUESTS = 1500
EXAMPLES = 5
"""Requests with a status of 500 or more that are shown."""
NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    "-0.0",
    "1e308",
    "-1e11",
    "1e16",
    "3",
    "3.0",
    "true",
    "null",
)
TEXTS = (
    *('""', '" "', '"a\\u0000b"', '"\\ud800"', '"e\\u0301"', '"\\u202ex"', '"\\u200b"', '"\\ud83d\\ude00"', '"nan"', '"0x10"', '"1_000"'),
    *('"../../etc/passwd"', '"\' OR 1=1 --"', '"bk_17"', f'"{"a" * 1000}"', f'"{"a" * 1001}"', '"2026-W22"', '"9999-12-31T23:59:59"'),
)
SHAPES = ("[]", "{}", "[[]]", '{"a":1}', "[" * 900 + "]" * 900, '["a",1]')
VALUES = (*NUMBERS, *TEXTS, *SHAPES)
PATHS = (
    *("/v1/entities/{}", "/v1/entities/x?limit={}", "/v1/sessions/{}", "/v1/sessions?after={}", "/v1/decisions/{}"),
    *("/v1/decisions?since={}", "/v1/decisions?after={}", "/v1/transactions/{}", "/v1/models/{}", "/{}"),
)
METHODS = ("GET", "DELETE", "PATCH", "PUT", "POST", "HEAD", "OPTIONS", "TRACE", "FOO")
BODIES = ("", "{", "null", "[]", "\ufeff{}", '{"transactions":[]}', '{"transactions":[],"transactions":[]}', "[" * 100_000)
MARK = "VALUE HERE"


def odd_values(target: Target) -> dict[str, Any]:
    """Send odd values, drawn at random; statuses, and examples of what failed."""
    rng, failed = random.Random(0), list[str]()
    with Connection(target.service.port, target.key) as client:
        for number in range(target.times(REQUESTS)):
            method, path, body = drawn(number, rng)
            try:
                status = str(client.request(method, path, body.encode("utf-8", "surrogatepass"))[0])
            except OSError:
                status = "closed"
            target.statuses[status] += 1
            if status >= "500":
                failed.append(f"{method} {path[:80]} {body[:200]}: {status}")
    return {"requests": target.times(REQUESTS), "failed": len(failed), "failed_first": failed[:EXAMPLES]}


def drawn(number: int, rng: random.Random) -> tuple[str, str, str]:
    """A method, a path and a body."""
    kind = rng.randrange(10)
    if kind < 5:
        one = transaction(number, f"odd{rng.randrange(20)}", START + 50.0 * number, rng)
        return "POST", "/v1/score", json.dumps({"transactions": [with_odd(one, rng)]}).replace(f'"{MARK}"', rng.choice(VALUES))
    if kind == 5:
        one = with_odd({"id": f"odd{number % 20}-{number}", "label": "1"}, rng)
        return "POST", "/v1/labels", json.dumps({"labels": [one]}).replace(f'"{MARK}"', rng.choice(VALUES))
    if kind == 6:
        one = with_odd({"classes": {"a": 100, "b": 2}, "epochs": 3, "policy": "constant", "num_samples": 10}, rng)
        return "POST", "/v1/sessions", json.dumps(one).replace(f'"{MARK}"', rng.choice(VALUES))
    if kind == 7:
        return "POST", rng.choice(("/v1/score", "/v1/labels", "/v1/sessions", "/v1/models")), rng.choice((*BODIES, *VALUES))
    text = rng.choice(("%00", "a%00b", "%ED%A0%80", "%FF", "..%2f..%2fetc%2fpasswd", "bk_17", "", "a" * 1001, "9" * 30, "-1", quote("é💶")))
    method = "GET" if kind == 8 else rng.choice(METHODS)
    return method, rng.choice(PATHS).format(text), rng.choice(("", "{}", '{"amount":1e999}')) if method in ("PATCH", "POST", "PUT") else ""


def with_odd(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The content with a mark in place of one of its values, or with one value more."""
    place = rng.choice([*content, "another"])
    return content | {place: MARK}
