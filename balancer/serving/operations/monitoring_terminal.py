"""Show the numbers of days on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

_WIDEST = 2_000
"""Columns of a terminal on which any table fits."""
_WIDE = ("day (UTC)", "model", "transactions", "alert rate", "frauds expected", "precision estimated", "true", "largest drift")
_NARROW = ("day (UTC)", "model", "rows", "alerts", "frauds", "precision", "true", "drift")


def print_days(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the answer of `Monitoring.by_day` as a table, and its notes.

    Args:
        found: The answer.
        console: Where to; None: stdout. Where the table does not fit, its headers are shorter and intervals
            stand below their numbers; days are never cut.
    """
    console = Console(markup=False) if console is None else console
    if not found["days"]:
        console.print("no decisions on these days")
    else:
        wide = _table(found["days"], compact=False)
        fits = console.measure(wide, options=console.options.update(width=_WIDEST)).maximum <= console.width
        console.print(wide if fits else _table(found["days"], compact=True))
        if not fits:
            console.print("rows: transactions; frauds: expected; precision: estimated; drift: the largest")
    for note in found["notes"]:
        console.print(f"note: {note}")


def _table(days: list[Mapping[str, Any]], *, compact: bool) -> Table:
    day, model, rows, alerts, *others = _NARROW if compact else _WIDE
    columns = [Column(day, no_wrap=True, min_width=10), Column(model, overflow="fold", min_width=6)]
    columns += [Column(name, no_wrap=True) for name in (rows, alerts)]
    columns += [Column(name, overflow="fold") for name in others]
    table = Table(*columns, box=None, padding=(0, 1, 0, 0)) if compact else Table(*columns, box=box.HEAVY_HEAD)
    between, interval = ("\n", "{}–{}") if compact else (" ", "({} to {})")
    for each in days:
        largest = each["largest_drift"]
        table.add_row(
            each["day"],
            each["model"],
            f"{each['transactions']:,}",
            f"{100 * each['alert_rate']:.2f} %",
            _number(each["expected_frauds"], between + interval),
            _share(each["estimated_precision"], between + interval),
            _share(each["true_precision"], between + interval),
            "–" if largest is None else f"{largest['index']:.2f}{between}{largest['field']}",
        )
    return table


def _share(each: Mapping[str, Any], interval: str) -> str:
    if each["value"] is None:
        return "–"
    low_high = "" if each["interval"] is None else interval.format(*(f"{end:.2f}" for end in each["interval"]))
    return f"{each['value']:.2f}{low_high}"


def _number(each: Mapping[str, Any], interval: str) -> str:
    low, high = each["interval"]
    return f"{each['value']:,.0f}{interval.format(f'{low:,.0f}', f'{high:,.0f}')}"
