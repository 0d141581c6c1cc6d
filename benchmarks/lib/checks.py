"""Check a claim: compare a measured figure with its limit."""

from __future__ import annotations

from typing import Any


def claim(text: str, figure: float | None, limit: float, *, above: bool = True) -> dict[str, Any]:
    """Compare ``figure`` with ``limit``.

    Args:
        text: the claim in words.
        figure: what was measured; None if it was not.
        limit: the claimed bound.
        above: whether the figure must be at least ``limit`` (True) or at most (False).

    Returns:
        ``claim`` and ``holds`` (``met``, ``not met`` or ``not measured``), and for a measured claim
        ``figure`` and ``limit``.
    """
    if figure is None:
        return {"claim": text, "holds": "not measured"}
    holds = (figure >= limit) == above or figure == limit
    return {"claim": text, "figure": figure, "limit": limit, "holds": "met" if holds else "not met"}
