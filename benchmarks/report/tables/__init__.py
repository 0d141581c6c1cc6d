"""Tables of the README in Markdown, made from the recorded results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.lib.recording import RESULTS, recorded

__all__ = ["RESULTS", "load", "signed", "table"]


def load(name: str) -> dict[str, Any]:
    """The recorded result ``name``."""
    content = recorded(RESULTS / f"{name}.json")
    assert content, f"{name}.json is missing: run python -m benchmarks.claims.{name}"
    return content


def table(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown; an empty string is an empty cell."""

    def line(cells: Iterable[object]) -> str:
        return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)

    heading = list(heading)
    return "\n".join([line(heading), "|" + "---|" * len(heading), *map(line, rows)])


def signed(
    value: dict[str, float], key: str = "difference", digits: int = 3, between: str = ", ", ends: tuple[str, str] = ("[", "]")
) -> str:
    """A difference with its sign and its interval, e.g. ``+0.012 [-0.003, +0.027]``."""
    first, last = ends
    return f"{value[key]:+.{digits}f} {first}{value['low']:+.{digits}f}{between}{value['high']:+.{digits}f}{last}"
