"""The result of a comparison on a terminal: a table, best average precision first, and the summary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from balancer.comparison.statistics import FALSE_ALARMS
from balancer.comparison.summary import HEADLINE

COLUMNS = (
    (HEADLINE, "AP", "{:.3f}"),
    ("f1", "F1\ntun.", "{:.3f}"),
    ("f1_at_half", "F1\nat .5", "{:.3f}"),
    (f"{FALSE_ALARMS}_0.60", "FA\nat .60", "{:.1f}"),
    (f"{FALSE_ALARMS}_0.70", "FA\nat .70", "{:.1f}"),
    ("ece", "  ECE", "{:.4f}"),
    ("trainings", "runs", "{:.0f}"),
)

REST = 64
"""Characters of a line besides the treatment."""


def print_comparison(content: Mapping[str, Any], console: Console) -> None:
    """Print the document of :func:`balancer.comparison.summary.document`."""
    reference, averages, differences = content["reference"], content["means"], content["paired"]
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    widest = max(map(len, ("treatment", *averages)))
    table.add_column("treatment", no_wrap=True, overflow="ellipsis", width=min(widest, max(16, console.width - REST)))
    for _, title, _ in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True, min_width=max(4, *map(len, title.split("\n"))))
    table.add_column("AP, less\n" + reference, justify="right", no_wrap=True, width=20)
    for name in sorted(averages, key=lambda name: -averages[name].get(HEADLINE, -1.0)):
        figures = averages[name]
        cells = [_short(form.format(figures[key])) if key in figures else "-" for key, _, form in COLUMNS]
        table.add_row(name, *cells, "reference" if name == reference else _difference(differences.get(name, {})))
    console.print(table)
    console.print(
        "means over folds and seeds; FA: false alarms per 10,000 legitimate rows at a recall; runs: trainings per result; [95 % interval]",
        markup=False,
        highlight=False,
    )
    console.print(content["sentence"], highlight=False, markup=False)


def _difference(metrics: Mapping[str, Any]) -> str:
    """Difference in average precision with its interval."""
    if HEADLINE not in metrics:
        return "-"
    low, high = metrics[HEADLINE]["low"], metrics[HEADLINE]["high"]
    middle = f"{metrics[HEADLINE]['difference']:+.3f}"
    return _short(middle if low is None else f"{middle} [{low:+.3f}, {high:+.3f}]")


def _short(text: str) -> str:
    """Numbers below 1 without the leading 0, so that the table fits 80 columns."""
    return re.sub(r"(?<![\d.])0\.(?=\d)", ".", text)
