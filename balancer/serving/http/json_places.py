"""Where in a JSON text things are, without decoding it: counts of brackets and keys, the key of a value.

What is special: the text is examined by NumPy in pieces, so that neither its time nor its memory depends on
what it holds. It says how many rows a request has before any row is built, and which value is wrong after
the decoder has said only in which row it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 20
_KEY = re.compile(rb'[ \t\r\n,]*"((?:[^"\\]|\\.)*+)"[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*+"|[-+.0-9eE]++|[A-Za-z]++', re.DOTALL)
_LONGEST_KEY = 8_000
MOST_DIGITS = 100
"""A number with more digits is refused; the widest column of a table has 39."""


class Places(NamedTuple):
    """Positions of the marks of a text that are not inside of strings."""

    opens: NDArray[np.int64]
    """Of each `{`."""
    closes: NDArray[np.int64]
    """Of each `}`."""
    colons: NDArray[np.int64]
    """Of each `:`, one per key."""


def count_marks(text: bytes, mark: bytes) -> int:
    """Count a mark of one byte, such as `{`, outside of strings; that of `:` is the number of keys."""
    return sum(int((piece == mark[0]).sum()) for _, piece in _outside(text))


def count_elements(text: bytes, depth: int) -> int:
    """An upper bound of the number of elements of the lists at a depth; 1 is the text itself."""
    level, commas = 0, 0
    for _, piece in _outside(text):
        steps = np.zeros(len(piece), np.int8)
        steps[(piece == ord("{")) | (piece == ord("["))] = 1
        steps[(piece == ord("}")) | (piece == ord("]"))] = -1
        levels = np.cumsum(steps, dtype=np.int32) + np.int32(level)
        commas += int(((levels == depth) & (piece == ord(","))).sum())
        level = int(levels[-1])
    return commas + 1


def find_places(text: bytes) -> Places:
    """Find all `{`, `}` and `:` outside of strings."""
    found: list[list[NDArray[np.int64]]] = [[np.empty(0, np.int64)] for _ in "{}:"]
    for first, piece in _outside(text):
        for positions, mark in zip(found, b"{}:", strict=True):
            positions.append(np.flatnonzero(piece == mark) + first)
    return Places(*(np.concatenate(positions) for positions in found))


def key_before(text: bytes, position: int) -> str | None:
    """The key whose value begins at a position, or None where there is none."""
    before = text[max(0, position - _LONGEST_KEY) : position].rstrip(b" \t\r\n-")
    if not before.endswith(b":"):
        return None
    before = before[:-1].rstrip(b" \t\r\n")
    if not before.endswith(b'"'):
        return None
    end = len(before) - 1
    begin = before.rfind(b'"', 0, end)
    while begin > 0 and (begin - len(before[:begin].rstrip(b"\\"))) % 2:
        begin = before.rfind(b'"', 0, begin)
    return None if begin < 0 else _shown(before[begin + 1 : end])


def wrong_value(text: bytes, position: int) -> tuple[str, str] | None:
    """The first value of an object that is neither a text, a number, true, false nor null.

    Args:
        text: The JSON.
        position: Of the `{` of the object.

    Returns:
        The key, and what its value is; None where every value is one of these.
    """
    position += 1
    while (key := _KEY.match(text, position)) is not None:
        position = key.end()
        if (kind := {ord("["): "a list", ord("{"): "an object"}.get(text[position] if position < len(text) else 0)) is not None:
            return _shown(key[1]), kind
        value = _SCALAR.match(text, position)
        if value is None:
            return None
        if value[0][:1] in b"-0123456789" and _is_beyond(value[0]):
            return _shown(key[1]), "beyond the range of numbers"
        position = value.end()
    return None


def twice(text: bytes, position: int) -> str | None:
    """The first key of an object of texts, numbers, true, false and null that occurs twice."""
    seen: set[str] = set()
    position += 1
    while (key := _KEY.match(text, position)) is not None:
        name = _shown(key[1])
        if name in seen:
            return name
        seen.add(name)
        value = _SCALAR.match(text, key.end())
        if value is None:
            return None
        position = value.end()
    return None


def _outside(text: bytes) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The pieces of a text with their positions; the characters of strings are zero."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    odd = 0
    for first in range(0, len(text), _PIECE):
        piece = np.frombuffer(text, np.uint8, min(_PIECE, len(text) - first), first)
        quotes = np.cumsum(piece == ord('"'), dtype=np.uint8)  # it wraps at 256, which is even
        inside = (quotes + np.uint8(odd)) & 1
        odd = int(inside[-1])
        yield first, np.where(inside, np.uint8(0), piece)


def _is_beyond(number: bytes) -> bool:
    if len(number) > MOST_DIGITS and number.lstrip(b"-").isdigit():
        return True
    try:
        return not math.isfinite(float(number))
    except ValueError:
        return False


def _shown(key: bytes) -> str:
    """A key as it is decoded, for messages."""
    try:
        return str(json.loads(b'"' + key + b'"'))
    except ValueError:
        return key.decode(errors="replace")
