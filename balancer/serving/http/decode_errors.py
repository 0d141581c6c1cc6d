"""Say what is wrong with the body of a request, in one sentence with the row, the column and the remedy.

What is special: the decoder names at most the row, so the column is looked for in the text of that row. Where
a message of the decoder is not understood, as after a new version of it, the sentence is a general one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import numpy as np

from balancer.errors import InputError
from balancer.names import quoted
from balancer.serving.errors import EncodingError
from balancer.serving.http.json_places import count_marks, find_places, key_before, twice, wrong_value

_BYTE = re.compile(r"\(byte (\d+)\)")
_WRONG_TYPE = re.compile(r"Expected `([^`]*)`, got `(\w+)`(?: - at `\$([^`]*)`)?")
_AT = re.compile(r" - at `\$\.\w+\[(\d+)\]([^`]*)`")
_UNKNOWN = re.compile(r"unknown field `(.*?)`(?: - at `\$[^`]*`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`(?: - at `\$([^`]*)`)?")
_NOT_JSON = ((b"NaN", "NaN"), (b"Infinity", "infinite"), (b"-Infinity", "infinite"))
_KINDS = {"array": "a list", "object": "an object", "str": "text", "bool": "true or false", "null": "null", "int": "a number"}
_KINDS |= {"float": _KINDS["int"]}
_WANTED = {"transactions": "an object with a value for each column", "labels": "an object with an id and a label"}
_NOUN = {"transactions": "column", "labels": "key"}
_REMEDY = "give a text, a number, true, false or null"


def explained(error: Exception, body: bytes, rows: str, keys: Sequence[str]) -> InputError:
    """The error for the sender of a body.

    Args:
        error: What the decoder raised.
        body: The body.
        rows: The key of its list: transactions or labels.
        keys: All keys that it may have.
    """
    if isinstance(error, msgspec.ValidationError):
        return InputError(_wrong(str(error), body, rows, keys))
    return malformed(error, body, rows)


def malformed(error: Exception, body: bytes, rows: str = "") -> InputError:
    """The error for the sender of a body that is no JSON; `rows` is the key of its list, if there is one."""
    if isinstance(error, RecursionError):
        return InputError("the body is nested too deeply; send values that are neither lists nor objects")
    if isinstance(error, msgspec.ValidationError):
        return InputError("a number of the body is beyond the range of numbers; give a smaller one")
    try:
        body.decode()
    except UnicodeDecodeError as wrong:
        return EncodingError(f"the body is not UTF-8 at byte {wrong.start}; send UTF-8")
    return InputError(_malformed(str(error), body, rows))


def wrong_row(text: bytes, position: int, where: str) -> str:
    """What is wrong with the row of a position of a text, where its decoder refused it."""
    if text[position : position + 1] != b"{":
        kind = {b"[": "a list", b'"': "text", b"n": "null", b"t": "true or false", b"f": "true or false"}.get(text[position : position + 1])
        return f"{where} is {kind or 'a number'}; give {_WANTED['transactions']}"
    found = wrong_value(text, position)
    if found is None:
        return f"{where} has a value that can't be used; {_REMEDY}"
    return f"{where}: column {quoted(found[0])} is {found[1]}; {_REMEDY if found[1] != 'beyond the range of numbers' else 'give a smaller one'}"


def doubled_keys(body: bytes, sizes: Sequence[int], rows: str, *, skip: bool) -> dict[int, str]:
    """Find the keys that occur twice in a body that was decoded.

    Args:
        body: The body.
        sizes: Number of different keys of each of its rows.
        rows: The key of its list: transactions or labels.
        skip: Whether to return what is wrong with rows rather than to raise it.

    Returns:
        What is wrong with a row, by its place.

    Raises:
        InputError: If a key of the request itself occurs twice, or one of a row and `skip` is False.
    """
    places = find_places(body)
    begins, ends = places.opens[1:], places.closes[:-1]  # rows hold no objects, so the n-th } ends the n-th row
    if len(begins) != len(sizes):
        raise InputError(f"the key {rows!r} occurs twice; give it once")
    inside = np.searchsorted(places.colons, ends) - np.searchsorted(places.colons, begins)
    seen: set[str | None] = set()
    row_of = np.searchsorted(begins, places.colons) - 1  # the row that begins before a colon, and ends behind it where it is inside
    outside = (row_of < 0) | (places.colons > ends[row_of]) if len(ends) else np.ones(len(places.colons), np.bool_)
    for colon in places.colons[outside].tolist():
        name = key_before(body, colon + 1)
        if name in seen:
            raise InputError(f"the key {quoted(name)} occurs twice; give it once")
        seen.add(name)
    errors: dict[int, str] = {}
    for place in np.flatnonzero(inside > np.asarray(sizes, np.int64)).tolist():
        name = twice(body, int(begins[place]))
        errors[place] = f"{rows}[{place}]: {_NOUN[rows]} {quoted(name or '')} occurs twice; give it once"
        if not skip:
            raise InputError(errors[place])
    return errors


def _wrong(message: str, body: bytes, rows: str, keys: Sequence[str]) -> str:
    """The sentence for a value of a wrong type, or a key that is unknown or missing."""
    at = _AT.search(message)
    where = None if at is None else f"{rows}[{at[1]}]"
    if (unknown := _UNKNOWN.search(message)) is not None:
        known = ", ".join(keys) if where is None else "id, label"
        return f"{'' if where is None else where + ': '}unknown key {quoted(unknown[1])}; known: {known}"
    if (missing := _MISSING.search(message)) is not None:
        return f"{'the request' if where is None else where} has no {missing[1]!r}; give it"
    if at is not None and at[2] == "[...]":
        begin = find_places(body).opens[1 + int(at[1])]
        return wrong_row(body, int(begin), str(where))
    kinds = _WRONG_TYPE.search(message)
    kind = "of a wrong type" if kinds is None else _KINDS.get(kinds[2], "of a wrong type")
    if where is not None and at is not None:
        remedy = {".id": "give a text", ".label": "give a class of the model, or null"}.get(at[2], f"give {_WANTED[rows]}")
        return f"{where}{at[2]} is {kind}; {remedy}"
    path = "" if kinds is None or kinds[3] is None else kinds[3].lstrip(".")
    if path == "":
        return f"the body is {kind}; send an object with {' and '.join(keys[:1])}"
    remedies = {rows: f"give a list of {rows}", "on_error": "give refuse or skip"}
    return f"{path} is {kind}; {remedies.get(path, 'give a whole number')}"


def _malformed(message: str, body: bytes, rows: str) -> str:
    """The sentence for text that is no JSON."""
    found = _BYTE.search(message)
    if found is None:
        return "the body is no complete JSON text, or a text in it has half of a character (a surrogate); correct it"
    position = int(found[1])
    for word, meaning in _NOT_JSON:
        begin = position - (word[:1] == b"-" and body[position : position + 1] == b"I")
        if body.startswith(word, begin):
            name, row = _key_of(body, begin), count_marks(body[:begin], b"{") - 2
            inside = rows and row >= 0 and count_marks(body[:begin], b"}") <= row
            where = f"{rows}[{row}]: column " if inside else ""
            return f"{where}{quoted(name)} is {meaning}, which JSON does not have; give null where it is not known"
    return f"the body is no JSON at byte {position}; correct it"


def _key_of(body: bytes, position: int) -> str:
    """The key of a value, or that of the lists around it, which is the last one before it."""
    for _ in range(3):
        name = key_before(body, position)
        if name is not None:
            return name
        position = body.rfind(b":", 0, max(position - 1, 0)) + 1
    return ""
