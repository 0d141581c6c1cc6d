"""Show the numbers of days on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_days(found: Mapping[str, Any]) -> None:
    """Print the answer of `Monitoring.by_day` as a table, and its notes."""
    console = Console()
    if not found["days"]:
        console.print("no decisions on these days")
    else:
        names = ("day (UTC)", "model", "transactions", "alert rate", "frauds expected", "precision estimated", "true", "largest drift")
        table = Table(*names)
        for each in found["days"]:
            largest = each["largest_drift"]
            table.add_row(
                each["day"],
                each["model"],
                f"{each['transactions']:,}",
                f"{100 * each['alert_rate']:.2f} %",
                _number(each["expected_frauds"]),
                _share(each["estimated_precision"]),
                _share(each["true_precision"]),
                "–" if largest is None else f"{largest['index']:.2f} {largest['field']}",
            )
        console.print(table)
    for note in found["notes"]:
        console.print(f"note: {note}")


def _share(each: Mapping[str, Any]) -> str:
    if each["value"] is None:
        return "–"
    between = "" if each["interval"] is None else f" ({each['interval'][0]:.2f} to {each['interval'][1]:.2f})"
    return f"{each['value']:.2f}{between}"


def _number(each: Mapping[str, Any]) -> str:
    low, high = each["interval"]
    return f"{each['value']:,.0f} ({low:,.0f} to {high:,.0f})"
