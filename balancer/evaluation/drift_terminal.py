"""Print on a terminal what changed between the training rows and a table that was scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from balancer.evaluation.drift import LARGE, MODERATE
from balancer.names import counted

SHOWN = 10
"""Most rows of a table."""
WIDTH = 80
SMALLEST = 0.001
"""Share of unseen values from which a column is shown."""


def print_changes(drift: Mapping[str, Any] | None, console: Console) -> None:
    """Print the fields that changed most and the columns with unseen values; nothing where nothing changed.

    Args:
        drift: What :func:`balancer.runs.changes.changes` found.
        console: Where to print.
    """
    if drift is None:
        return
    notable = drift["notable"]
    if notable:
        table = _table(f"Fields that changed since training (PSI from {MODERATE:g}; from {LARGE:g} another population)")
        for head, justify in (("field", "left"), ("PSI", "right"), ("in training", "right"), ("here", "right")):
            table.add_column(head, justify=justify, overflow="fold" if head == "field" else "ellipsis")  # type: ignore[arg-type]
        for each in notable[:SHOWN]:
            table.add_row(each["field"], f"{each['psi']:.2f}", *_before_and_now(each))
        _print(table, console)
        if len(notable) > SHOWN:
            console.print(f"and {counted(len(notable) - SHOWN, 'field')} more; --json lists all", style="dim", highlight=False)
    if drift.get("growing"):
        console.print(f"not compared, they grow with time: {', '.join(drift['growing'])}", style="dim", highlight=False)
    unseen = [(column, each) for column, each in drift["unseen"].items() if each["share"] >= SMALLEST]
    if unseen:
        table = _table("Values without a code of their own: training had none, or few, of them")
        for head, justify in (("column", "left"), ("rows", "right"), ("share", "right"), ("for example", "left")):
            table.add_column(head, justify=justify, overflow="fold" if head == "column" else "ellipsis", no_wrap=head != "column")  # type: ignore[arg-type]
        for column, each in unseen[:SHOWN]:
            table.add_row(column, f"{each['rows']:,}", f"{100 * each['share']:.1f} %", ", ".join(each["examples"]))
        _print(table, console)
        if len(unseen) > SHOWN:
            console.print(f"and {counted(len(unseen) - SHOWN, 'column')} more; --json lists all", style="dim", highlight=False)


def _before_and_now(each: Mapping[str, Any]) -> tuple[str, str]:
    """What describes the change of a field best: its missing values, or its median."""
    before, now = each["missing"]
    if "shares" in each and abs(now - before) < 0.05:
        return tuple(f"{each['value']}: {100 * share:.1f} %" for share in each["shares"])  # type: ignore[return-value]
    if abs(now - before) >= 0.05 or each["median"] is None:
        return ("", "") if before == now else (f"missing {100 * before:.1f} %", f"missing {100 * now:.1f} %")
    return f"median {each['median'][0]:.4g}", f"median {each['median'][1]:.4g}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")


def _print(table: Table, console: Console) -> None:
    console.print()
    console.print(table, width=min(WIDTH, console.width), markup=False)
