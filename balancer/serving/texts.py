"""One rule for every text of a request that reaches the database: ids, entities, values, names.

What is special: the rule is that of the stricter database, so that both give the same answer. PostgreSQL
stores neither NUL nor halves of characters, and an index of it holds at most 2,704 bytes a row.
"""

from __future__ import annotations

import unicodedata

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from balancer.errors import InputError

LONGEST_TEXT = 1_000
"""Most characters of a text."""
MOST_BYTES = 2_000
"""Most bytes of a text as UTF-8."""
_UNPRINTABLE = ("Cc", "Cs")
"""Unicode categories that no text has: control characters, and halves of characters."""


def is_text(text: str, most: int = LONGEST_TEXT) -> bool:
    """Whether a text can be stored: printable, and neither too long in characters nor in bytes.

    >>> is_text("Caf\\u00e9\\u00a0Paris"), is_text("a\\x00"), is_text("\\ud800"), is_text("a" * 1001)
    (True, False, False, False)
    """
    if len(text) > most:
        return False
    if text.isascii():
        return text.isprintable()
    if not text.isprintable() and any(unicodedata.category(each) in _UNPRINTABLE for each in text):
        return False
    return 4 * len(text) <= MOST_BYTES or len(text.encode()) <= MOST_BYTES


def check_text(text: str, where: str, most: int = LONGEST_TEXT) -> str:
    """Return a text that can be stored.

    Args:
        text: The text.
        where: What has the text, for the message.
        most: Most characters.

    Raises:
        InputError: If it can't be stored.
    """
    if not is_text(text, most):
        raise InputError(f"{where} {remedy_of(most)}")
    return text


def remedy_of(most: int = LONGEST_TEXT) -> str:
    """The rest of a message about a text that can't be stored; it follows the name of what has the text."""
    return f"is not a printable text of at most {most} characters and {MOST_BYTES} bytes; shorten or correct it"


def stored_text(most: int = LONGEST_TEXT) -> AfterValidator:
    """A check for the type of a pydantic field: a text that can be stored, or None where the field allows it.

    Args:
        most: Most characters.
    """

    def checked(text: str | None) -> str | None:
        if text is not None and not is_text(text, most):
            raise PydanticCustomError("text", "{remedy}", {"remedy": remedy_of(most)})
        return text

    return AfterValidator(checked)
