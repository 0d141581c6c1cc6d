"""Answer POST /v1/score: decode, check, score in the queue of the worker, encode.

What is special: this is the path whose time matters, so the middleware calls it directly. The route of the
same address calls it too; it declares scope and schema for the OpenAPI document.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from starlette.types import Scope, Send

from balancer.errors import InputError
from balancer.serving.config import ServeConfig
from balancer.serving.http.decoding import ScoreRequestData, check_content_type, decode_score
from balancer.serving.http.limits import SMALL, RefusalError
from balancer.serving.http.problems import status_of
from balancer.serving.models.registry import LoadedModel, Registry
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.queue import ScoringQueue
from balancer.serving.scoring.row import Row
from balancer.serving.scoring.scorer import Job, Models
from balancer.serving.storage.keys import Key
from balancer.serving.texts import LONGEST_TEXT

PATH = "/v1/score"
_ENCODE = msgspec.json.Encoder().encode


class _Checked(NamedTuple):
    """The content of a request."""

    rows: list[Row]
    places: list[int]
    """Place of each row in the request."""
    errors: Mapping[int, Any]
    """Answers to the transactions at the other places, which can't be used."""
    request: ScoreRequestData


class ScoreEndpoint:
    """Scores the transactions of requests.

    Args:
        config: Limits.
        registry: The models in service.
        queue: Scores the rows.
    """

    def __init__(self, config: ServeConfig, registry: Registry, queue: ScoringQueue) -> None:
        self._max_rows, self._tolerance = config.max_rows, config.tolerance
        self._registry, self._queue = registry, queue
        self._decoding = asyncio.Lock()

    async def __call__(self, scope: Scope, body: bytes, send: Send) -> None:
        """Answer an ASGI request whose key is known.

        Raises:
            RefusalError: A value can't be used, contradicts stored data, or there is no model.
            UnavailableError: The database did not answer in time.
        """
        state = scope["state"]
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        try:
            if kind != b"application/json":
                check_content_type(kind.decode("latin-1"))
            content = await self.answer(body, state["key"], state["request"])
        except InputError as error:
            raise RefusalError(status_of(error), str(error)) from error
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def answer(self, body: bytes, key: Key, request: str) -> bytes:
        """Return the JSON of the answer.

        Args:
            body: The JSON of the request.
            key: Who asks.
            request: Id of the request.

        Raises:
            InputError: A value can't be used, or contradicts stored data.
            RefusalError: There is no model.
            UnavailableError: The database did not answer in time.
        """
        serving = self._registry.serving
        if serving.champion is None:
            raise RefusalError(503, "no model is in service; start balancer serve with --run, or put a model in service")
        models, origin = Models(serving.champion, serving.challenger, serving.canary_share), Origin(key.id, request, time.time())
        if len(body) <= SMALL:
            checked = self._checked(body, serving.champion, origin.received)
        else:  # one at a time, so that the event loop gets its turns for other requests
            async with self._decoding:
                checked = await asyncio.to_thread(self._checked, body, serving.champion, origin.received)
        answers: list[Any] = []
        if checked.rows:
            asked = checked.request
            job = Job(checked.rows, asked.explain, origin, asked.reasons, skip=asked.on_error == "skip")
            answers = (await self._queue.score(key.tenant, models, job)).answers
        if checked.errors:
            by_place = dict(zip(checked.places, answers, strict=True)) | dict(checked.errors)
            answers = [by_place[place] for place in sorted(by_place)]
        return _ENCODE({"decisions": answers})

    def _checked(self, body: bytes, model: LoadedModel, now: float) -> _Checked:
        request = decode_score(body, self._max_rows)
        name = model.schema.spec.id or "id"
        rows, places = [], []
        errors = {place: _refused(None, error) for place, error in request.errors.items()}
        for place, raw in enumerate(request.transactions):
            if place in errors:
                continue
            try:
                rows.append(parse_transaction(raw, model.schema, f"transactions[{place}]", now, self._tolerance))
                places.append(place)
            except InputError as error:
                if request.on_error == "refuse":
                    raise
                errors[place] = _refused(raw.get(name), str(error))
        return _Checked(rows, places, errors, request)


def _refused(identifier: Any, error: str) -> dict[str, Any]:
    """The answer to a transaction that can't be used."""
    return {"id": None if identifier is None else str(identifier)[:LONGEST_TEXT], "error": error}
