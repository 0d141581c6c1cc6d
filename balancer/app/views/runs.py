"""The page Runs: all runs, the results of the chosen run and its baselines, and several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import streamlit as st

from balancer.app.browsing import Run
from balancer.app.charts import curves_chart, epochs_chart, labelled
from balancer.app.loading import (
    NAMES,
    alarm_counts_of,
    all_runs,
    chosen_run,
    has_amounts,
    money,
    number,
    percent,
    read,
    show_chart,
    show_table,
    table,
)
from balancer.evaluation.report_content import (
    AVERAGE_PRECISION,
    ECE,
    F1,
    F1_AT_HALF,
    FALSE_ALARMS,
    PRECISION,
    RECALL,
    RECALL_AT_FPR,
    TITLES,
    members_sentence,
    models_of,
    parts_of,
    summary,
)
from balancer.names import counted
from balancer.runs.run_folder import epochs_file

SHOWN = [AVERAGE_PRECISION, F1, F1_AT_HALF, PRECISION, RECALL, FALSE_ALARMS["0.60"], FALSE_ALARMS["0.70"], RECALL_AT_FPR, ECE]
USUAL = "one_to_one"
"""The usual remedy, with which the chosen run is compared."""


def show() -> None:
    """Show the page."""
    st.title("Runs")
    runs = all_runs()
    for run in runs:
        if run.status == "broken":
            st.error(f"**{run.name}** can't be shown: {run.problem}", icon=":material/broken_image:")
        elif run.status != "complete":
            st.info(f"**{run.name}**: {run.problem}", icon=":material/hourglass_top:")
    chosen = chosen_run()
    complete = [run for run in runs if run.status == "complete"]
    _list(complete)
    others = st.multiselect(
        "Compare with", [run.name for run in complete if run.name != chosen.name], key="compare-with", placeholder="other runs"
    )
    if others:
        _side_by_side([chosen, *(run for run in complete if run.name in others)])
    else:
        _results(chosen)


def _list(runs: list[Run]) -> None:
    frame = pl.DataFrame(
        {
            "run": [run.name for run in runs],
            "dataset": [run.dataset.rsplit("/", 1)[-1] for run in runs],
            "detector": [run.kind for run in runs],
            "policy": [run.policy if run.has_network else "–" for run in runs],
            "created (UTC)": [run.created.replace(tzinfo=None) if run.created else None for run in runs],
            "average precision": [run.metrics["average_precision"] for run in runs],
            "F1": [run.metrics["f1"] for run in runs],
            "false-positive rate": [run.metrics["fpr"] for run in runs],
            "model, MB": [run.size / 1e6 for run in runs],
            "validation AP by epoch": [list(run.curve) for run in runs],
        }
    )
    columns = {
        "created (UTC)": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        "average precision": st.column_config.NumberColumn(format="%.3f"),
        "F1": st.column_config.NumberColumn(format="%.3f", help="at the threshold tuned on validation rows"),
        "false-positive rate": st.column_config.NumberColumn(format="percent", help="at the threshold tuned on validation rows"),
        "detector": st.column_config.TextColumn(help="hybrid: network and boosted trees; network or trees: one of them alone"),
        "model, MB": st.column_config.NumberColumn(format="%.2f", help="network and trees on disk"),
        "validation AP by epoch": st.column_config.LineChartColumn(help="of the network; empty for trees alone"),
    }
    show_table(frame, "runs", columns=columns)


def _results(run: Run) -> None:
    """Show the counts of the chosen run, then its metrics and those of its baselines."""
    report = read(run, "report.json")
    # A run of trees alone has no networks as baselines.
    other, why = (USUAL, ", the usual method") if run.has_network else ("lightgbm", "")
    usual = report["baselines"].get(other, {}).get("alarms")
    counts = alarm_counts_of(run)
    st.header(f"Results: {run.name}")
    st.caption(
        f"Test rows: {counted(run.metrics['rows'], 'transaction')}{_when(counts['days'])}, "
        f"{run.metrics['positives']:,} of them fraud. Every model uses its own threshold, tuned on validation rows. The small numbers "
        f"are the difference from {NAMES[other]}{why}."
        + ("" if usual else " They are missing here, because an older version wrote this run.")
    )
    tiles = [
        ("Frauds caught", f"{counts['caught']:,} of {counts['caught'] + counts['missed']:,}", "caught", "normal", "{:+,.0f}"),
        ("False alarms per day", number(counts["false_alarms_per_day"], 1), "false_alarms_per_day", "inverse", "{:+,.1f}"),
    ]
    if has_amounts(run):
        tiles += [
            ("Amount caught", money(counts["amount_caught"]), "amount_caught", "normal", "{:+,.0f}"),
            ("Amount missed", money(counts["amount_missed"]), "amount_missed", "inverse", "{:+,.0f}"),
        ]
    for column, (title, value, key, colour, form) in zip(st.columns(len(tiles)), tiles, strict=True):
        delta = form.format(counts[key] - usual[key]) if usual and counts[key] is not None and usual[key] is not None else None
        if delta is not None and not delta.strip("+-0.,"):
            delta = None  # equal
        column.metric(title, value, delta, delta_color=colour, border=True, help="on the test rows")  # type: ignore[arg-type]
    st.markdown(summary(report))
    _metrics(models_of(report), "metrics")
    parts, members = parts_of(report), members_sentence(report)
    if parts:
        st.caption(f"Parts of this run, not rivals: {'; '.join(parts)}. {members}")
    st.caption(
        "± is one standard error on these test rows, for one run and one split: smaller differences are not evidence. The page Compare "
        "shows intervals over several runs."
    )
    left, right = st.columns(2)
    with left:
        st.subheader("Precision and recall")
        curves = labelled(table(run, "curves.parquet"), NAMES)
        show_chart(
            curves_chart(curves, at=run.metrics),
            f"{run.name}-precision-recall",
            about="precision against recall of this run and its baselines",
        )
    with right:
        st.subheader("Validation by epoch")
        if not run.has_network:
            st.markdown("There are no epochs: this run is boosted trees and has no network.")
            return
        # The epochs of a detector with trees are those of its network.
        names = NAMES | ({"run": TITLES["network"]} if run.has_trees else {})
        lines = labelled(table(run, epochs_file(run.path).name), names)
        chart = epochs_chart(lines, metric="average_precision", title="average precision on validation rows")
        show_chart(chart, f"{run.name}-epochs", about="validation average precision by epoch of this run and its baselines")


def _metrics(models: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Show a row per model; the values are those of report.json, rounded only for display."""
    columns = {column.head.replace("\n", " "): column for column in SHOWN}
    data: dict[str, list[Any]] = {"model": list(models)}
    for title, column in columns.items():
        data[title] = [_exact(metrics, column.path) for metrics in models.values()]
    config: dict[str, Any] = {title: st.column_config.NumberColumn(format=f"%.{column.decimals}f") for title, column in columns.items()}
    config["FA/10k at 0.60"].update(help="false alarms per 10,000 legitimate transactions at the threshold that catches 60 % of the frauds")
    config["model"] = st.column_config.TextColumn(pinned=True)
    show_table(pl.DataFrame(data, strict=False), name, columns=config)


def _exact(metrics: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = metrics
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _when(days: float | None) -> str:
    return "" if days is None else f" in {counted(round(days), 'day')} after training and validation"


def _side_by_side(runs: list[Run]) -> None:
    """Show several runs: metrics, curves, epochs."""
    st.header("Runs side by side")
    if len({run.dataset for run in runs}) > 1:
        st.warning("These runs were trained on different tables, so their results can't be compared.")
    _metrics({run.name: run.metrics for run in runs}, "side-by-side")
    alarms = [(run, alarm_counts_of(run)) for run in runs]
    frame = pl.DataFrame(
        {
            "run": [run.name for run, _ in alarms],
            "frauds caught": [f"{counts['caught']:,} of {counts['caught'] + counts['missed']:,}" for _, counts in alarms],
            "recall": [percent(run.metrics["recall"]) for run, _ in alarms],
            "false alarms per day": [counts["false_alarms_per_day"] for _, counts in alarms],
            "amount caught": [money(counts["amount_caught"]) for _, counts in alarms],
            "amount missed": [money(counts["amount_missed"]) for _, counts in alarms],
        }
    )
    show_table(frame, "alarms-side-by-side", columns={"false alarms per day": st.column_config.NumberColumn(format="%.1f")})
    left, right = st.columns(2)
    with left:
        curves = [table(run, "curves.parquet").filter(pl.col("model") == "run").with_columns(model=pl.lit(run.name)) for run in runs]
        show_chart(curves_chart(pl.concat(curves)), "runs-precision-recall", about="precision against recall of the runs")
    with right:
        trained = [run for run in runs if run.has_network]
        if not trained:
            st.markdown("There are no epochs: these runs are boosted trees and have no network.")
            return
        epochs = [table(run, epochs_file(run.path).name).filter(pl.col("model") == "run") for run in trained]
        lines = [frame.select("epoch", "average_precision", model=pl.lit(run.name)) for frame, run in zip(epochs, trained, strict=True)]
        chart = epochs_chart(pl.concat(lines), metric="average_precision", title="average precision on validation rows")
        show_chart(chart, "runs-epochs", about="validation average precision of the runs by epoch")


if __name__ == "__main__":
    show()
