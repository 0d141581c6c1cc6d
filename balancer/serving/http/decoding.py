"""Decode the bodies of POST /v1/score and POST /v1/labels: strict JSON, within bounds, at most one error.

What is special: the number of rows is known before a row is built, and the decoder stops at the first value
of a wrong type. So a body costs little more than its bytes, whatever it holds. Keys that occur twice are
found by counting: a text has as many keys outside of strings as it has colons there.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.names import quoted
from balancer.serving.errors import TooLargeError
from balancer.serving.http import json_places
from balancer.serving.http.decode_errors import doubled_keys, explained, wrong_row
from balancer.serving.http.json_places import MOST_DIGITS
from balancer.serving.texts import check_text
from balancer.tables.values import normal_text

MOST_COLUMNS = 5_000
"""Most columns of a transaction, those that are ignored included."""
MOST_EXPLAINED = 100
"""Most earlier transactions, or reasons, of an answer."""
ON_ERROR = ("refuse", "skip")
_SCORE_KEYS = ("transactions", "explain", "reasons", "on_error")
_Scalar = str | int | float | bool | None
_DIGITS = re.compile(rb"[0-9]{%d}" % (MOST_DIGITS + 1))
_PIECE = 1 << 19
_BOM = b"\xef\xbb\xbf"


class ScoreRequestData(NamedTuple):
    """The content of a request to score."""

    transactions: list[dict[str, Any]]
    """Values by column, one dict per transaction."""
    explain: int = 0
    """Number of earlier transactions to list."""
    reasons: int = 0
    """Number of reasons to list."""
    on_error: Literal["refuse", "skip"] = "refuse"
    """Whether a transaction that can't be used refuses the request, or only gets an error in its place."""
    errors: dict[int, str] = {}  # noqa: RUF012 (a NamedTuple copies nothing, and nobody changes it)
    """With `skip`: what is wrong with a transaction that is no flat object, by its place; it is {} there."""


class LabelRequestData(NamedTuple):
    """The content of a request with labels."""

    labels: dict[str, str | int | float | bool | None]
    """A class by id, as text or as the number or truth value of its column; None removes a label."""


class _Score(Struct, forbid_unknown_fields=True):
    transactions: list[dict[str, _Scalar]]
    explain: int | float | UnsetType = UNSET
    reasons: int | float | UnsetType = UNSET
    on_error: str | UnsetType = UNSET


class _RawScore(Struct, forbid_unknown_fields=True):
    """The same, with rows that are only divided from each other."""

    transactions: list[Raw]
    explain: int | float | UnsetType = UNSET
    reasons: int | float | UnsetType = UNSET
    on_error: str | UnsetType = UNSET


class _Label(Struct, forbid_unknown_fields=True):
    id: str | int | float
    label: _Scalar


class _Labels(Struct, forbid_unknown_fields=True):
    labels: list[_Label]


_DECODE_SCORE = msgspec.json.Decoder(_Score).decode
_DECODE_RAW = msgspec.json.Decoder(_RawScore).decode
_DECODE_ROW = msgspec.json.Decoder(dict[str, _Scalar]).decode
_DECODE_LABELS = msgspec.json.Decoder(_Labels).decode


def decode_score(body: bytes, max_rows: int) -> ScoreRequestData:
    """Decode the body of POST /v1/score.

    Args:
        body: The body.
        max_rows: Most transactions.

    Raises:
        TooLargeError: If it has more transactions.
        EncodingError: If it is not UTF-8.
        InputError: If it is anything else than the JSON of such a request; the message names the place.
    """
    body = _checked(body, max_rows)
    try:
        request = _DECODE_SCORE(body)
    except (msgspec.DecodeError, RecursionError) as error:
        if isinstance(error, msgspec.ValidationError) and b'"skip"' in body:
            return _decoded_singly(body, error, max_rows)
        raise explained(error, body, "transactions", _SCORE_KEYS) from None
    rows = request.transactions
    options = _options(request)
    keys = sum(map(len, rows)) + 1 + sum(value is not UNSET for value in (request.explain, request.reasons, request.on_error))
    errors = {}
    if not _has_keys(body, keys):
        errors = doubled_keys(body, [len(row) for row in rows], "transactions", skip=options[2] == "skip")
        rows = [{} if place in errors else row for place, row in enumerate(rows)]
    if _has_long_number(body):
        errors = errors | _too_long(rows, skip=options[2] == "skip")
        rows = [{} if place in errors else row for place, row in enumerate(rows)]
    if not rows:
        raise InputError("transactions: the list is empty; give at least one transaction")
    return ScoreRequestData(rows, *options, errors)


def decode_labels(body: bytes, max_rows: int) -> LabelRequestData:
    """Decode the body of POST /v1/labels.

    Raises:
        TooLargeError: If it has more than `max_rows` labels.
        EncodingError: If it is not UTF-8.
        InputError: If it is anything else than the JSON of such a request; the message names the place.
    """
    body = _checked(body, max_rows)
    try:
        request = _DECODE_LABELS(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise explained(error, body, "labels", ("labels",)) from None
    if not _has_keys(body, 2 * len(request.labels) + 1):
        doubled_keys(body, [2] * len(request.labels), "labels", skip=False)
    if not request.labels:
        raise InputError("labels: the list is empty; give at least one label")
    labels: dict[str, str | int | float | bool | None] = {}
    for place, each in enumerate(request.labels):
        name = _text(each.id, f"labels[{place}].id")
        if not name.strip():
            raise InputError(f"labels[{place}].id is empty; give the id of a transaction")
        if name in labels:
            raise InputError("labels: an id occurs twice; give each id once")
        if each.label is not None:
            _text(each.label, f"labels[{place}].label")
        labels[name] = each.label
    return LabelRequestData(labels)


def check_content_type(value: str | None) -> None:
    """Check the header Content-Type of a request with a JSON body.

    A web page can't send this type to another address without being asked, so it also keeps pages from using
    a service without keys.

    Raises:
        InputError: If the header is missing or names another type.
    """
    kind = (value or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise InputError("the body is not declared as JSON; send the header Content-Type: application/json")


def without_mark(body: bytes) -> bytes:
    """A body without the byte order mark that some programs write.

    Raises:
        InputError: If the body is empty.
    """
    if body.startswith(_BOM):
        body = body[len(_BOM) :]
    if not body.strip(b" \t\r\n"):
        raise InputError("the body is empty; send a JSON object")
    return body


def _checked(body: bytes, max_rows: int) -> bytes:
    """The body without a byte order mark, after checks that need no decoding.

    The counts of bytes are upper bounds, which decide nearly always; strings are looked at only where they do
    not.
    """
    body = without_mark(body)
    rows = body.count(b"{") - 1
    if rows > max_rows:
        rows = json_places.count_marks(body, b"{") - 1
        if rows > max_rows:
            raise TooLargeError(f"{rows} rows in one request, but at most {max_rows} are allowed; send less per request")
    most = MOST_COLUMNS * max(rows, 1)
    if body.count(b":") > most and json_places.count_marks(body, b":") > most:
        raise InputError(f"the request has rows with more than {MOST_COLUMNS} columns; send the columns of the table only")
    return body


def _options(request: _Score | _RawScore) -> tuple[int, int, Literal["refuse", "skip"]]:
    on_error = "refuse" if request.on_error is UNSET else request.on_error
    if on_error not in ON_ERROR:
        raise InputError(f"on_error is {quoted(on_error)}; {nearest(str(on_error)[:100], ON_ERROR)}")
    counts = [_count(value, name, MOST_EXPLAINED) for name, value in (("explain", request.explain), ("reasons", request.reasons))]
    return counts[0], counts[1], "skip" if on_error == "skip" else "refuse"


def _count(value: float | UnsetType, name: str, most: int) -> int:
    if value is UNSET:
        return 0
    if not 0 <= value <= most or int(value) != value:
        raise InputError(f"{name} is {quoted(value) if abs(value) < 1e15 else 'too large'}; give a whole number from 0 to {most}")
    return int(value)


def _text(value: object, where: str) -> str:
    """A text that can be stored, or the normal form of a number or a truth value."""
    if isinstance(value, str):
        return check_text(value, where)
    text = normal_text(value)
    if text is None or len(text) > MOST_DIGITS:
        raise InputError(f"{where} is beyond the range of numbers; give it as text")
    return text


def _has_keys(body: bytes, keys: int) -> bool:
    """Whether a text that was decoded to so many different keys has no more than these."""
    if not any(b'"' + white in body for white in (b" ", b"\n", b"\r", b"\t")) and body.count(b'":') == keys:
        return True  # each key ends with these two bytes, and so may a string
    return json_places.count_marks(body, b":") == keys


def _has_long_number(body: bytes) -> bool:
    """Whether there are many digits in a row; searched in pieces, so that other threads get their turns."""
    return any(_DIGITS.search(body, first, first + _PIECE + MOST_DIGITS) is not None for first in range(0, len(body), _PIECE))


def _too_long(rows: list[dict[str, Any]], *, skip: bool) -> dict[int, str]:
    """What is wrong with the rows that have a whole number of too many digits, by place."""
    errors = {}
    for place, row in enumerate(rows):
        for name, value in row.items():
            if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
                errors[place] = f"transactions[{place}]: column {quoted(name)} is beyond the range of numbers; give a smaller one"
                if not skip:
                    raise InputError(errors[place])
    return errors


def _decoded_singly(body: bytes, error: Exception, max_rows: int) -> ScoreRequestData:
    """Decode each row on its own, after `error`, where the request says that a bad row is skipped."""
    rows = json_places.count_elements(body, 2)
    if rows > max_rows:
        raise TooLargeError(f"{rows} rows in one request, but at most {max_rows} are allowed; send less per request")
    try:
        request = _DECODE_RAW(body)
    except (msgspec.DecodeError, RecursionError):
        raise explained(error, body, "transactions", _SCORE_KEYS) from None
    options = _options(request)
    given = 1 + sum(value is not UNSET for value in (request.explain, request.reasons, request.on_error))
    top = json_places.count_marks(body, b":") - sum(json_places.count_marks(bytes(raw), b":") for raw in request.transactions)
    if options[2] != "skip" or top != given:
        raise explained(error, body, "transactions", _SCORE_KEYS) from None
    decoded: list[dict[str, Any]] = []
    errors: dict[int, str] = {}
    for place, raw in enumerate(request.transactions):
        row: dict[str, Any] = {}
        text = bytes(raw).strip(b" \t\r\n")
        try:
            row = _DECODE_ROW(text)
            if not _has_keys(text, len(row)):
                errors[place] = f"transactions[{place}]: column {quoted(json_places.twice(text, 0))} occurs twice; give it once"
        except (msgspec.DecodeError, RecursionError):
            errors[place] = wrong_row(text, 0, f"transactions[{place}]")
        decoded.append({} if place in errors else row)
    errors |= _too_long(decoded, skip=True)
    return ScoreRequestData([{} if place in errors else row for place, row in enumerate(decoded)], *options, errors)
