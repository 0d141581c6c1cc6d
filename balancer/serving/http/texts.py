"""Types of the texts in paths, queries and bodies that reach the database; every route uses them.

A path or query is declared as `entity: EntityName`, a field of a pydantic model as `name: ModelName` or
`Annotated[str, stored_text(MOST)]`. A text that can't be stored gets status 422 on both databases.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query

from balancer.serving.texts import LONGEST_TEXT, stored_text

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
