"""What is wrong with a database, in one line: without statements, values and addresses of a library."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError


def reason_of(error: BaseException) -> str:
    """Return the first line of what the database, or its driver, has said.

    Args:
        error: What a statement or a connection raised, or an error whose cause is such an error.
    """
    for each in (error, error.__cause__):
        if isinstance(each, DBAPIError) and each.orig is not None:
            lines = str(each.orig).strip().splitlines()
            return lines[0].strip().rstrip(".:") if lines else type(each.orig).__name__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
