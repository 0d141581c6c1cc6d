"""Decode the JSON bodies of the routes that are described by pydantic models.

What is special: the framework would parse a body while all other requests wait, list every error in it, and
take the last of two equal keys. Here a route gets the bytes, and decodes them in its own thread: strict JSON
with few objects, and the first error as one sentence.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Request
from pydantic import BaseModel, TypeAdapter, ValidationError

from balancer.errors import InputError
from balancer.names import quoted
from balancer.serving.http.decode_errors import malformed
from balancer.serving.http.decoding import check_content_type, without_mark
from balancer.serving.http.json_places import MOST_DIGITS, count_marks, find_places, key_before
from balancer.serving.http.validation import sentence_of

MOST_KEYS = 10_000
"""Most keys, and most objects, of a body."""
MOST_LISTS = 400_000
"""Most lists of a body, such as rows of scores with one number per class."""
_DECODE = msgspec.json.Decoder().decode
Model = TypeVar("Model", bound=BaseModel)


async def _body(request: Request) -> bytes:
    check_content_type(request.headers.get("content-type"))
    return await request.body()


JsonBody = Annotated[bytes, Depends(_body)]
"""The body of a route that decodes it by itself; its type is checked."""


def body_of(model: Any) -> dict[str, Any]:
    """The `openapi_extra` of a route with a `JsonBody`: the type of its body in the OpenAPI document."""
    schema = TypeAdapter(model).json_schema()
    parts = schema.pop("$defs", {})

    def whole(part: Any) -> Any:
        if isinstance(part, dict):
            name = str(part.get("$ref", "")).rpartition("/")[2]
            return whole(parts[name]) if name in parts else {key: whole(each) for key, each in part.items()}
        return [whole(each) for each in part] if isinstance(part, list) else part

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": whole(schema)}}}}


def decode_model(model: type[Model], body: bytes) -> Model:
    """Decode a body as a pydantic model.

    Raises:
        EncodingError: If it is not UTF-8.
        InputError: If it is not the JSON of the model; the message names the key.
    """
    try:
        return model.model_validate(decode_object(body))
    except ValidationError as error:
        raise InputError(sentence_of(error.errors(include_url=False)[0])) from None


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a body that is any object.

    Raises:
        EncodingError: If it is not UTF-8.
        InputError: If it is no strict JSON, no object, or has too many keys or lists.
    """
    body = without_mark(body)
    for mark, most, name in ((b":", MOST_KEYS, "keys"), (b"{", MOST_KEYS, "objects"), (b"[", MOST_LISTS, "lists")):
        if body.count(mark) > most and count_marks(body, mark) > most:
            raise InputError(f"the body has more than {most:,} {name}; send less per request")
    try:
        content = _DECODE(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(error, body) from None
    if not isinstance(content, dict):
        raise InputError("the body is no object; send a JSON object")
    if count_marks(body, b":") != _keys(content, count_marks(body, b"{")):
        raise InputError(f"the key {quoted(_first_twice(body))} occurs twice in one object; give it once")
    return content


def _keys(content: dict[str, Any], objects: int) -> int:
    """Count the keys of an object and of all objects inside, which are so many; lists come last."""
    keys, waiting, lists = 0, [content], list[list[Any]]()
    while waiting or lists:
        if not waiting:
            if not objects:
                break
            for each in lists.pop():
                if isinstance(each, dict):
                    waiting.append(each)
                elif isinstance(each, list):
                    lists.append(each)
            continue
        one = waiting.pop()
        objects -= 1
        keys += len(one)
        for value in one.values():
            if isinstance(value, dict):
                waiting.append(value)
            elif isinstance(value, list):
                lists.append(value)
            elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
                raise InputError("a number of the body is beyond the range of numbers; give a smaller one")
    return keys


def _first_twice(body: bytes) -> str:
    """The first key that an object has twice."""
    places = find_places(body)
    marks = sorted([(int(place), "{") for place in places.opens] + [(int(place), "}") for place in places.closes])
    marks = sorted(marks + [(int(place), ":") for place in places.colons])
    levels: list[set[str]] = []
    for place, mark in marks:
        if mark == "{":
            levels.append(set())
        elif mark == "}":
            levels.pop()
        else:
            name = key_before(body, place + 1) or ""
            if name in levels[-1]:
                return name
            levels[-1].add(name)
    return ""
