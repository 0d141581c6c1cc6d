"""Names of columns and lengths of time in a sentence."""

from __future__ import annotations

from balancer.data.spec import DAY
from balancer.tables.joined import JOINED


def spoken(column: str) -> str:
    """The name of a column in a sentence: without `_id` at its end, and spaces for underscores.

    >>> spoken("card_id"), spoken("merchant_category"), spoken("id"), spoken("card1+addr1")
    ('card', 'merchant category', 'id', 'card1 and addr1')
    """
    words = [(part.removesuffix("_id") or part).replace("_", " ").strip() or part for part in column.split(JOINED)]
    return " and ".join(words) if all(words) else column


def period(seconds: float) -> str:
    """A length of time in words: `hour`, `6 hours`, `day`, `30 days`."""
    number, unit = (round(seconds / DAY), "day") if seconds >= DAY else (round(seconds / 3600), "hour")
    return unit if number == 1 else f"{number} {unit}s"
