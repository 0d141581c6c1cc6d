"""Errors of pydantic as sentences of the service: the key, what is wrong with its value, and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from balancer.names import quoted

_LONGEST_KEY = 60
_WRONG = {
    "bool": "is not true or false; give one of them",
    "dict": "is not an object; give one",
    "extra_forbidden": "is unknown; leave it out, or correct it",
    "finite_number": "is not finite; give a finite number",
    "float": "is not a number; give one",
    "int": "is not a whole number; give one",
    "list": "is not a list; give one",
    "missing": "is missing; give it",
    "model": "is not an object; give one",
    "string": "is not a text; give one",
}
"""What is wrong by the type of an error, or by the first word of it."""
_BOUND = {
    "greater_than": ("gt", "is too small; give more than {}"),
    "greater_than_equal": ("ge", "is too small; give at least {}"),
    "less_than": ("lt", "is too large; give less than {}"),
    "less_than_equal": ("le", "is too large; give at most {}"),
    "too_short": ("min_length", "is too short; give at least {}"),
    "too_long": ("max_length", "is too long; give at most {}"),
    "string_too_short": ("min_length", "is too short; give at least {} characters"),
    "string_too_long": ("max_length", "is too long; give at most {} characters"),
}
_OUTSIDE = ("body", "path", "query", "header", "[key]", "EpochScores", "EpochHistograms")
"""Parts of a location that are no keys of the request."""


def sentence_of(error: Mapping[str, Any]) -> str:
    """The sentence for one error of pydantic."""
    kind = str(error["type"])
    bound = _BOUND.get(kind)
    if bound is not None:
        what = bound[1].format(error.get("ctx", {}).get(bound[0], ""))
    elif kind in ("literal_error", "enum"):
        what = f"is not one of {error['ctx']['expected']}; give one of them"
    elif kind == "text":
        what = str(error["msg"])
    else:
        what = _WRONG.get(kind) or _WRONG.get(kind.partition("_")[0], "can't be used; see /docs for what it may be")
    return f"{_place(error['loc'])} {what}"


def _place(location: tuple[int | str, ...]) -> str:
    place = ""
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in _OUTSIDE and "[" not in part:
            shown = part if part.isidentifier() and len(part) < _LONGEST_KEY else quoted(part, _LONGEST_KEY)
            place += f".{shown}" if place else shown
    return place or "the body"
