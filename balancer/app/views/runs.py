"""Runs: what is there, what the chosen one buys in a manager's words, beside its baselines and beside other runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import streamlit as st

from balancer.app.browsing import Run
from balancer.app.charts import curves_chart, epochs_chart, labelled
from balancer.app.loading import (
    NAMES,
    alarm_figures_of,
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
    verdict,
)
from balancer.runs.run_folder import epochs_file

SHOWN = [AVERAGE_PRECISION, F1, F1_AT_HALF, PRECISION, RECALL, FALSE_ALARMS["0.60"], FALSE_ALARMS["0.70"], RECALL_AT_FPR, ECE]
USUAL = "one_to_one"
"""What a team does without us."""


def show() -> None:
    """The page."""
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
        _summary(chosen)


def _list(runs: list[Run]) -> None:
    frame = pl.DataFrame(
        {
            "run": [run.name for run in runs],
            "dataset": [run.dataset.rsplit("/", 1)[-1] for run in runs],
            "policy": [run.policy for run in runs],
            "made": [run.created.replace(tzinfo=None) if run.created else None for run in runs],
            "average precision": [run.figures["average_precision"] for run in runs],
            "F1": [run.figures["f1"] for run in runs],
            "false-positive rate": [run.figures["fpr"] for run in runs],
            "model, MB": [run.size / 1e6 for run in runs],
            "validation AP by epoch": [list(run.curve) for run in runs],
        }
    )
    columns = {
        "made": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm", help="UTC"),
        "average precision": st.column_config.NumberColumn(format="%.3f"),
        "F1": st.column_config.NumberColumn(format="%.3f", help="at the threshold that validation tuned"),
        "false-positive rate": st.column_config.NumberColumn(format="percent", help="there"),
        "model, MB": st.column_config.NumberColumn(format="%.2f"),
        "validation AP by epoch": st.column_config.LineChartColumn(),
    }
    show_table(frame, "runs", columns=columns)


def _summary(run: Run) -> None:
    """The chosen run for a manager, then beside its baselines."""
    report = read(run, "report.json")
    usual = report["baselines"].get(USUAL, {}).get("alarms")
    own = alarm_figures_of(run)
    st.header(f"What {run.name} buys")
    st.caption(
        f"{run.figures['rows']:,} later transactions in {own['days']:,.0f} days, {run.figures['positives']:,} of them fraud, none seen in training. "
        f"Every detector alarms at its own threshold, tuned before these days. The change is against {NAMES[USUAL]}, the usual remedy."
        + ("" if usual else " This run was made by an older version, which did not count that.")
    )
    tiles = [
        ("Frauds caught", f"{own['caught']:,} of {own['caught'] + own['missed']:,}", "caught", "normal", "{:+,.0f}"),
        ("False alarms a day", number(own["false_alarms_per_day"], 1), "false_alarms_per_day", "inverse", "{:+,.1f}"),
    ]
    if has_amounts(run):
        tiles += [
            ("Money caught", money(own["amount_caught"]), "amount_caught", "normal", "{:+,.0f}"),
            ("Money lost", money(own["amount_missed"]), "amount_missed", "inverse", "{:+,.0f}"),
        ]
    for column, (title, value, key, colour, form) in zip(st.columns(len(tiles)), tiles, strict=True):
        delta = form.format(own[key] - usual[key]) if usual else None
        if delta is not None and not delta.strip("+-0.,"):
            delta = None  # level
        column.metric(title, value, delta, delta_color=colour, border=True, help="on the test rows")  # type: ignore[arg-type]
    st.markdown(verdict(report))
    _figures({NAMES.get(name, name): figures for name, figures in ({"run": report["test"]} | report["baselines"]).items()}, "figures")
    st.caption(
        "One run, one split. ± is one standard error of these test rows: smaller differences prove nothing (page Compare has intervals)."
    )
    left, right = st.columns(2)
    with left:
        st.subheader("Precision and recall")
        curves = labelled(table(run, "curves.parquet"), NAMES)
        show_chart(
            curves_chart(curves, at=run.figures),
            f"{run.name}-precision-recall",
            about="precision against recall of this run and its baselines",
        )
    with right:
        st.subheader("Validation by epoch")
        lines = labelled(table(run, epochs_file(run.path).name), NAMES)
        chart = epochs_chart(lines, figure="average_precision", title="average precision on validation rows")
        show_chart(chart, f"{run.name}-epochs", about="validation average precision by epoch of this run and its baselines")


def _figures(models: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """A row per model; the digits are those of report.json, the table shows them rounded."""
    columns = {column.head.replace("\n", " "): column for column in SHOWN}
    data: dict[str, list[Any]] = {"model": list(models)}
    for title, column in columns.items():
        data[title] = [_exact(figures, column.path) for figures in models.values()]
    config: dict[str, Any] = {title: st.column_config.NumberColumn(format=f"%.{column.decimals}f") for title, column in columns.items()}
    config["FA/10k at 0.60"].update(help="false alarms per 10,000 legitimate transactions at the threshold that catches 60 % of the frauds")
    config["model"] = st.column_config.TextColumn(pinned=True)
    show_table(pl.DataFrame(data, strict=False), name, columns=config)


def _exact(figures: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = figures
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _side_by_side(runs: list[Run]) -> None:
    """Several runs: figures, curves, epochs."""
    st.header("Runs side by side")
    if len({run.dataset for run in runs}) > 1:
        st.warning("These runs are of different tables: their figures are of different frauds and can't be ranked against one another.")
    _figures({run.name: run.figures for run in runs}, "side-by-side")
    counts = [(run, alarm_figures_of(run)) for run in runs]
    frame = pl.DataFrame(
        {
            "run": [run.name for run, _ in counts],
            "frauds caught": [f"{own['caught']:,} of {own['caught'] + own['missed']:,}" for _, own in counts],
            "recall": [percent(run.figures["recall"]) for run, _ in counts],
            "false alarms a day": [own["false_alarms_per_day"] for _, own in counts],
            "money caught": [money(own["amount_caught"]) for _, own in counts],
            "money lost": [money(own["amount_missed"]) for _, own in counts],
        }
    )
    show_table(frame, "alarms-side-by-side", columns={"false alarms a day": st.column_config.NumberColumn(format="%.1f")})
    left, right = st.columns(2)
    with left:
        curves = [table(run, "curves.parquet").filter(pl.col("model") == "run").with_columns(model=pl.lit(run.name)) for run in runs]
        show_chart(curves_chart(pl.concat(curves)), "runs-precision-recall", about="precision against recall of the runs")
    with right:
        own = [table(run, epochs_file(run.path).name).filter(pl.col("model") == "run") for run in runs]
        lines = [frame.select("epoch", "average_precision", model=pl.lit(run.name)) for frame, run in zip(own, runs, strict=True)]
        chart = epochs_chart(pl.concat(lines), figure="average_precision", title="average precision on validation rows")
        show_chart(chart, "runs-epochs", about="validation average precision of the runs by epoch")


if __name__ == "__main__":
    show()
