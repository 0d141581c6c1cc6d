"""Print the report on a terminal: tables, a summary, and the list of files.

What is special: on a narrow terminal the table leaves out columns, the least informative first, instead of
wrapping numbers. The best value of a column is bold and has a star, which is also visible in a log file.
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
    PARTS_OF_RUN,
    PRECISION,
    RECALL,
    RECALL_AT_FPR,
    THIS_RUN,
    Column,
    Metrics,
    baselines_of,
    chance_warning,
    members_sentence,
    parts_of,
    summary,
)
from balancer.evaluation.report_parts import part_lines
from balancer.names import counted

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
OPTIONAL = [[RECALL_AT_FPR], [PRECISION, RECALL], [FALSE_ALARMS["0.80"]], [ECE], [CARD_PRECISION], [F1_AT_HALF]]
"""Columns that are left out on a narrow terminal, in this order."""
FILES = {
    "report.md": "this table and more, with explanations",
    "report.json": "all metrics",
    "curves.parquet": "precision-recall and ROC curves",
    "predictions.parquet": "every test row with score and decision",
    "test_scores.parquet": "raw scores of every test row by every model",
    "threshold_scores.parquet": "scores of the rows that tuned the threshold",
    "epochs.parquet": "sampling weights and validation metrics by epoch",
    "decision.json": "threshold, calibration, weights of the members",
    "reference.json": "distribution of the training rows, for drift",
    "trees/": "the boosted trees",
    "model.safetensors": "the network; model.json is its configuration",
    "model.quantized.safetensors": "the network, rounded; plan: precision.json",
}


def print_report(report: Mapping[str, Any], console: Console, *, folder: Path | None = None) -> None:
    """Print this run, its baselines and parts, each fraud class, a summary, and the files in `folder`."""
    models, parts = {THIS_RUN: report["test"]} | baselines_of(report), parts_of(report)
    frauds, rows = report["test"]["positives"], report["test"]["rows"]
    console.print()
    console.print(_fitting(_comparison(models, f"Test: {counted(rows, _kind_of_row(report))}, {counted(frauds, 'fraud')}", parts), console))
    console.print()
    for name, text in part_lines(report).items():
        console.print(Text.assemble((f"{name}: ", "bold"), text))
    if len(report["test"]["per_class"]) > 1:
        console.print()
        console.print(_fitting(_classes(models), console))
    console.print()
    console.print(Text(summary(report), style="bold"))
    if chance := chance_warning(report["test"]):
        console.print(Text(chance, style="bold yellow"))
    if members := members_sentence(report):
        console.print(Text(members))
    console.print(
        Text("± is one standard error on these test rows, for one run and one split: smaller differences are not evidence.", style="dim")
    )
    if folder is not None:
        _print_files(folder, console)


def _kind_of_row(report: Mapping[str, Any]) -> str:
    order = report.get("run", {}).get("data", {}).get("order", "time")
    return {"time": "later row", "rows": "later row"}.get(order, "row")


def print_metrics(result: Mapping[str, Any], console: Console, *, chosen: str | None = None) -> None:
    """Print the result of `balancer evaluate`.

    Args:
        result: `dataset`, `part` ("test" or "all"), `dropped`, and the metrics under `test`.
        console: Where to print.
        chosen: How a user chose the threshold, in words; None for the one that training tuned.
    """
    test = result["test"]
    part = "Test" if result["part"] == "test" else "All labelled rows"
    console.print()
    title = f"{part}: {counted(test['rows'], 'row')}, {counted(test['positives'], 'fraud')}"
    tuned = TUNED if chosen is None else f"at the threshold that was saved in the run ({chosen})"
    console.print(_fitting(_comparison({THIS_RUN: test}, title, tuned=tuned), console))
    if len(test["per_class"]) > 1:
        console.print()
        console.print(_fitting(_classes({THIS_RUN: test}), console))
    if chance := chance_warning(test):
        console.print(Text(chance, style="bold yellow"))
    console.print(Text(f"Table: {result['dataset']}. A score of at least {test['threshold']:.4g} is an alarm.", style="dim"))
    for reason, count in result["dropped"].items():
        console.print(Text(f"dropped {counted(count, 'row')}: {reason}", style="yellow"))


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
    """Return the first table that fits the terminal, from wide to narrow; the last one where none fits."""
    unbounded = console.options.update(max_width=1000)
    for table in tables:
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
    return table


TUNED = "at the threshold with the best F1 on validation"
"""Where the threshold of a report is from."""


def _comparison(
    models: Mapping[str, Metrics], title: str, parts: Mapping[str, Metrics] | None = None, *, tuned: str = TUNED
) -> Iterator[Table]:
    """Build tables with a row per model, each with fewer columns than the one before.

    The detector's parts are below the models.
    """
    parts = parts or {}
    every = [*models.values(), *parts.values()]
    columns = [column for column in SHOWN if any(column.value(metrics) is not None for metrics in every)]
    for left_out in [[], *OPTIONAL]:
        columns = [column for column in columns if column not in left_out]
        table = _table(title, _caption(columns, tuned, several=len(models) > 1))
        table.add_column("", no_wrap=True)
        for column in columns:
            table.add_column(_head(column), justify="right", no_wrap=True)
        for name, metrics in models.items():
            is_run = name == THIS_RUN
            cells = [_cell(column, metrics, every) for column in columns]
            table.add_row(Text(name, style="bold cyan" if is_run else ""), *cells, style="on grey15" if is_run and len(models) > 1 else "")
        if parts:
            table.add_row(Text(f"{PARTS_OF_RUN}:", style="dim"))
        for name, metrics in parts.items():
            table.add_row(Text(f"  {name}", style="dim"), *(_cell(column, metrics, every) for column in columns))
        yield table


def _head(column: Column) -> Text:
    """Heading with space for the star on its right."""
    return Text(column.head.replace("\n", " \n") + " ")


def _cell(column: Column, metrics: Metrics, models: Sequence[Metrics]) -> Text:
    best = column.best(models)
    if best is not None and column.value(metrics) == best:
        return Text(column.text(metrics) + "*", style="bold green")
    return Text(column.text(metrics) + " ")


def _caption(columns: Sequence[Column], tuned: str, *, several: bool) -> str:
    notes = ["* best of its column"] if several else []
    notes.append(f"tuned: {tuned}")
    if any(column in FALSE_ALARMS.values() for column in columns):
        notes.append("FA/10k: false alarms per 10,000 legitimate rows at that recall")
    if CARD_PRECISION in columns:
        notes.append("card P@100: share with fraud among the 100 entities with the highest scores of a day")
    return "; ".join(notes)


def _classes(models: Mapping[str, Metrics]) -> Iterator[Table]:
    """Build tables with a row per fraud class, each with fewer columns than the one before."""
    others = {name: metrics for name, metrics in models.items() if name != THIS_RUN}
    shown = [AVERAGE_PRECISION, RECALL, FALSE_ALARMS["0.60"], FALSE_ALARMS["0.70"]]
    for columns in (shown, shown[:3], shown[:2]):
        table = _table("Each fraud class against the legitimate rows", "")
        table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=24)
        table.add_column("rows", justify="right", no_wrap=True)
        for column in columns:
            table.add_column(column.head, justify="right", no_wrap=True)
        if others:
            table.add_column("best other AP", no_wrap=True)
        for name, metrics in models[THIS_RUN]["per_class"].items():
            row = [Text(name), Text(f"{metrics['rows']:,}"), *(Text(column.text(metrics)) for column in columns)]
            if others:
                row.append(_best_of_class(others, name))
            table.add_row(*row)
        yield table


def _best_of_class(others: Mapping[str, Metrics], name: str) -> Text:
    """Return the average precision and the name of the best other model on a class."""
    of_class = {title: metrics["per_class"][name] for title, metrics in others.items()}
    title = max(of_class, key=lambda title: AVERAGE_PRECISION.value(of_class[title]) or -1.0)
    return Text(f"{AVERAGE_PRECISION.text(of_class[title])}  {title}", style="dim")


def _print_files(folder: Path, console: Console) -> None:
    console.print(Text.assemble("\nFiles in ", (str(folder), "bold")), soft_wrap=True)
    for name, content in FILES.items():
        if (folder / name).exists():
            console.print(Text.assemble("  ", (f"{name:<28}", "cyan"), (content, "dim")))
