"""Types of the texts in paths, queries and bodies that reach the database; every route uses them.

A path or query is declared as `entity: EntityName`, a field of a pydantic model as `name: ModelName` or
`Annotated[str, stored_text(MOST)]`. A text that can't be stored gets status 422 on both databases.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query

from balancer.errors import InputError
from balancer.serving.texts import LONGEST_TEXT, stored_text
from balancer.tables.times import TimeForm, parse_time

PATTERN = r"^[^\u0000-\u001F\u007F-\u009F]*$"
"""The rule for OpenAPI, without halves of characters, which no URL holds."""


def documented(most: int) -> dict[str, Any]:
    """The rule of `stored_text` as the OpenAPI document has it."""
    return {"maxLength": most, "pattern": PATTERN}


_LONG = documented(LONGEST_TEXT)
EntityName = Annotated[str, Path(description="Name of the entity, as in its column.", json_schema_extra=_LONG), stored_text()]
TransactionId = Annotated[str, Path(description="Id of the transaction.", json_schema_extra=_LONG), stored_text()]
SessionId = Annotated[str, Path(description="Id of the session.", json_schema_extra=documented(100)), stored_text(100)]
After = Annotated[
    str | None, Query(description="`next` of the previous page.", json_schema_extra={"maxLength": LONGEST_TEXT}), stored_text()
]
Moment = Annotated[
    str | None,
    Query(max_length=40, description="A time: ISO 8601 (UTC without a zone), or seconds since 1970.", examples=["2026-05-31T13:45:00"]),
]


def span_of(since: str | None, until: str | None) -> tuple[float | None, float | None]:
    """The ends of a span in a query, in seconds since 1970.

    Raises:
        InputError: If one is no time, or the span ends before it begins.
    """
    begin, end = _seconds(since, "since"), _seconds(until, "until")
    if begin is not None and end is not None and begin > end:
        raise InputError(f"since is {since!r}, after until, {until!r}; exchange them")
    return begin, end


def _seconds(text: str | None, name: str) -> float | None:
    if text is None:
        return None
    try:
        found = parse_time(text, usual=TimeForm(unit="s"))
    except InputError:
        raise InputError(f"{name} is {text!r}, which is no time; write it as 2026-05-31T13:45:00, or as seconds since 1970") from None
    if found < 0:
        raise InputError(f"{name} is {text!r}, which is before 1970, when nothing was received; leave it out")
    return found
