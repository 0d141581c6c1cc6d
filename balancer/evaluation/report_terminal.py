"""The report on a terminal: one table, one sentence, where the files are.

Special: the table gives up columns, least telling first, until it fits the terminal, instead of wrapping figures. The best of a column
has a star as well as bold, so that it survives a log file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from balancer.evaluation.report_content import (
    AVERAGE_PRECISION,
    CARD_PRECISION,
    ECE,
    F1,
    F1_AT_HALF,
    FALSE_ALARMS,
    PRECISION,
    RECALL,
    RECALL_AT_FPR,
    THIS_RUN,
    Column,
    Figures,
    models_of,
    verdict,
)

SHOWN = [
    AVERAGE_PRECISION,
    F1,
    F1_AT_HALF,
    PRECISION,
    RECALL,
    FALSE_ALARMS["0.60"],
    FALSE_ALARMS["0.70"],
    FALSE_ALARMS["0.80"],
    RECALL_AT_FPR,
    CARD_PRECISION,
    ECE,
]
"""Columns from left to right."""
GIVEN_UP = [[RECALL_AT_FPR], [PRECISION, RECALL], [FALSE_ALARMS["0.80"]], [ECE], [CARD_PRECISION], [F1_AT_HALF]]
"""Columns left out on a narrow terminal, in this order."""
FILES = {
    "report.md": "this table and more, in words",
    "report.json": "every figure",
    "curves.parquet": "precision-recall and ROC curves",
    "predictions.parquet": "every test row with score and decision",
    "epochs.parquet": "sampling weights and validation metrics by epoch",
}


def print_report(report: Mapping[str, Any], console: Console, *, folder: Path | None = None) -> None:
    """Print this run beside its baselines, each class, one sentence, and the files in ``folder``."""
    models = models_of(report)
    frauds, rows = report["test"]["positives"], report["test"]["rows"]
    console.print()
    console.print(_fitting(_comparison(models, f"Test: {rows:,} later rows, {frauds:,} frauds"), console))
    if len(report["test"]["per_class"]) > 1:
        console.print()
        console.print(_fitting(_classes(models), console))
    console.print(Text(verdict(report), style="bold"))
    console.print(Text("One run, one split, ± one standard error of these test rows: smaller differences prove nothing.", style="dim"))
    if folder is not None:
        _print_files(folder, console)


def print_figures(result: Mapping[str, Any], console: Console) -> None:
    """Print what ``balancer evaluate`` found: ``dataset``, ``part`` (test or all), ``dropped``, and the figures under ``test``."""
    test = result["test"]
    part = "Test" if result["part"] == "test" else "All labelled rows"
    console.print()
    console.print(_fitting(_comparison({THIS_RUN: test}, f"{part}: {test['rows']:,} rows, {test['positives']:,} frauds"), console))
    if len(test["per_class"]) > 1:
        console.print()
        console.print(_fitting(_classes({THIS_RUN: test}), console))
    console.print(Text(f"Rows of {result['dataset']}; an alarm is a score of at least {test['threshold']:.4g}.", style="dim"))
    for reason, count in result["dropped"].items():
        console.print(Text(f"dropped {count:,} rows: {reason}", style="yellow"))


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _fitting(tables: Iterable[Table], console: Console) -> Table:
    """The first of ever narrower tables that the terminal has room for; the last where none fits."""
    unbounded = console.options.update(max_width=1000)
    for table in tables:
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
    return table


def _comparison(models: Mapping[str, Figures], title: str) -> Iterator[Table]:
    """Models as rows; ever fewer columns."""
    columns = [column for column in SHOWN if any(column.value(figures) is not None for figures in models.values())]
    for spare in [[], *GIVEN_UP]:
        columns = [column for column in columns if column not in spare]
        table = _table(title, _caption(columns, several=len(models) > 1))
        table.add_column("", no_wrap=True)
        for column in columns:
            table.add_column(_head(column), justify="right", no_wrap=True)
        for name, figures in models.items():
            own = name == THIS_RUN
            cells = [_cell(column, figures, list(models.values())) for column in columns]
            table.add_row(Text(name, style="bold cyan" if own else ""), *cells, style="on grey15" if own and len(models) > 1 else "")
        yield table


def _head(column: Column) -> Text:
    """Heading with room for the star on its right."""
    return Text(column.head.replace("\n", " \n") + " ")


def _cell(column: Column, figures: Figures, models: Sequence[Figures]) -> Text:
    best = column.best(models)
    if best is not None and column.value(figures) == best:
        return Text(column.text(figures) + "*", style="bold green")
    return Text(column.text(figures) + " ")


def _caption(columns: Sequence[Column], *, several: bool) -> str:
    parts = ["* best of its column"] if several else []
    parts.append("tuned: at the threshold with the best F1 on validation")
    if any(column in FALSE_ALARMS.values() for column in columns):
        parts.append("FA/10k: false alarms per 10,000 legitimate rows where that recall is reached")
    if CARD_PRECISION in columns:
        parts.append("card P@100: of a day's 100 highest scored entities, the share with fraud")
    return "; ".join(parts)


def _classes(models: Mapping[str, Figures]) -> Iterator[Table]:
    """Each class of fraud: this run's figures, and the best average precision among the others; ever fewer columns."""
    others = {name: figures for name, figures in models.items() if name != THIS_RUN}
    shown = [AVERAGE_PRECISION, RECALL, FALSE_ALARMS["0.60"], FALSE_ALARMS["0.70"]]
    for columns in (shown, shown[:3], shown[:2]):
        table = _table("Each class of fraud against the legitimate rows", "")
        table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=24)
        table.add_column("rows", justify="right", no_wrap=True)
        for column in columns:
            table.add_column(column.head, justify="right", no_wrap=True)
        if others:
            table.add_column("best other AP", no_wrap=True)
        for name, own in models[THIS_RUN]["per_class"].items():
            row = [Text(name), Text(f"{own['rows']:,}"), *(Text(column.text(own)) for column in columns)]
            if others:
                row.append(_best_of_class(others, name))
            table.add_row(*row)
        yield table


def _best_of_class(others: Mapping[str, Figures], name: str) -> Text:
    """Average precision and name of the best other model on a class."""
    of_class = {title: figures["per_class"][name] for title, figures in others.items()}
    title = max(of_class, key=lambda title: AVERAGE_PRECISION.value(of_class[title]) or -1.0)
    return Text(f"{AVERAGE_PRECISION.text(of_class[title])}  {title}", style="dim")


def _print_files(folder: Path, console: Console) -> None:
    console.print(Text.assemble("\nFiles in ", (str(folder), "bold")), soft_wrap=True)
    there = {name: meaning for name, meaning in FILES.items() if (folder / name).is_file()}
    for name, meaning in there.items():
        console.print(Text.assemble("  ", (f"{name:<21}", "cyan"), (meaning, "dim")))
