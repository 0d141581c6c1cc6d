"""A checked transaction, before it is stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A checked transaction."""

    id: str
    entity: str
    time: float
    """Effective time in seconds: not before the previous transaction of the entity."""
    sent_time: float
    """Time in seconds, as sent."""
    amount: float | None
    numeric: dict[str, float]
    """Values of the numeric columns; NaN where no value was sent."""
    texts: dict[str, str | None]
    """Values of the categorical and context columns."""
    digest: str
    """SHA-256 of the content, to tell a repeated transaction from a contradicting one."""


def value_key(text: str | None) -> str:
    """Convert a text or null to a key of the table `used_values`."""
    return "" if text is None else f"={text}"
