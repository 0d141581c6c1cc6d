"""``balancer inspect``."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from balancer.cli.early import check_table
from balancer.files import check_new_file, write_text
from balancer.options.flags import read_flags
from balancer.options.inspect import InspectConfig

if TYPE_CHECKING:
    from rich.console import Console

    from balancer.data.inspection import Inspection
    from balancer.data.roles import ColumnRole

_MOST_ROWS = 20
"""Columns that are left out for one reason and have a line each."""
_MOST_CLASSES = 10
LEFT_OUT = "–"
"""The role of a column that is left out."""


def main(arguments: Sequence[str]) -> int:
    """Show the roles of the columns of a table; returns the exit code."""
    config = read_flags(InspectConfig, "balancer inspect", arguments)
    overrides = config.role_overrides()
    check_table(config.dataset)
    if config.out is not None:
        check_new_file(config.out, "--out", overwrite=config.overwrite, inputs={"TABLE": config.dataset})
    from balancer.data.inspection import inspect_table

    found = inspect_table(config.dataset, spec_file=config.spec, overrides=overrides)
    if config.out is not None:
        write_text(config.out, found.spec)
    if config.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    with console.capture() as lines:
        _print(found, console)
    # Cells are padded to the width of the table, and lines are broken after a space.
    console.file.write(re.sub(r" +((?:\x1b\[[\d;]*m)*)$", r"\1", lines.get(), flags=re.MULTILINE))
    console.file.flush()
    if config.out is None:
        print(found.spec, end="")
    else:
        dataset, out = shlex.quote(str(config.dataset)), shlex.quote(str(config.out))
        print(f"spec written to {config.out}: balancer train --dataset {dataset} --spec {out}", file=sys.stderr)
    return 0


def _print(found: Inspection, console: Console) -> None:
    from balancer.names import counted

    roles = found.roles
    size = f"{counted(roles.table.rows, 'row')}, {counted(len(roles.columns), 'column')}"
    how = f"; kinds of values from {roles.table.sample.height:,} rows at equal distances" if roles.table.sampled else ""
    console.print(f"{roles.table.opened.name}: {size}{how}", soft_wrap=True, markup=False)
    _print_columns(roles.columns, console)
    for title, lines, style in (
        ("to decide", found.doubts, "yellow"),
        ("to correct", found.to_correct, "yellow"),
        ("warning", found.warnings, "yellow"),
        ("note", found.notes, None),
    ):
        for line in lines:
            console.print(f"{title}: {line}", style=style, markup=False)
    if found.classes:
        rows = max(1, sum(found.classes.values()))
        shown = list(found.classes.items())[:_MOST_CLASSES]
        listed = ", ".join(f"{_printable(name)} {count:,} ({100 * count / rows:.2f} %)" for name, count in shown)
        listed += f" and {len(found.classes) - len(shown)} more" if len(found.classes) > len(shown) else ""
        also = f"; {counted(found.unlabelled, 'row')} without a label" if found.unlabelled else ""
        console.print(f"classes: {listed}{also}", markup=False)
    if found.time:
        how = found.time["format"] or (f"numbers of {found.time['unit']}" if found.time["unit"] else "")
        dates = f"{found.time['first']} to {found.time['last']}, " if isinstance(found.time["first"], str) else ""
        console.print(f"time: {dates}{found.time['days']:,.4g} days{f' ({how})' if how else ''}", markup=False)
    console.print()


def _print_columns(columns: Sequence[ColumnRole], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1), width=min(console.width, 120))
    table.add_column("column", overflow="fold", max_width=20)
    table.add_column("role", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=3)
    table.add_column("values", justify="right", no_wrap=True)
    table.add_column("missing", justify="right", no_wrap=True)
    table.add_column("first", overflow="ellipsis", no_wrap=True, ratio=2)
    kinds = Counter(each.choice.kind for each in columns if not each.choice.role)
    grouped: set[str] = set()
    for each in columns:
        kind, number = each.choice.kind, kinds[each.choice.kind]
        if not each.choice.role and number > _MOST_ROWS:
            if kind not in grouped:
                grouped.add(kind)
                cells = (f"{each.name} and {number - 1} more", LEFT_OUT, kind.format(entity="entity"), "", "", "")
                table.add_row(*(Text(_printable(cell)) for cell in cells), style="dim")
            continue
        held, used = each.profile, bool(each.choice.role)
        missing = "" if not held.missing else f"{100 * held.missing:.1f} %" if held.missing >= 0.0005 else "<0.1 %"
        cells = (each.name, each.choice.role or LEFT_OUT, each.choice.reason, f"{held.distinct:,}", missing, ", ".join(held.first))
        table.add_row(*(Text(_printable(cell)) for cell in cells), style=None if used else "dim")
    console.print(table)


def _printable(text: str) -> str:
    """A text in one line: white space of any kind is a space, a line break is written as an escape."""
    text = text.replace("\r\n", "\\n").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return "".join(char if char.isprintable() else " " if char.isspace() else "�" for char in text)
