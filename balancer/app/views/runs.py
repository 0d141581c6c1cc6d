"""The page Runs: the verdict on the chosen run, all runs, its baselines, and several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import polars as pl
import streamlit as st

from balancer.app.aggregates import has_times
from balancer.app.browsing import Run
from balancer.app.charts import curves_chart, epochs_chart, labelled
from balancer.app.loading import (
    NAMES,
    all_runs,
    chosen_run,
    money,
    percent,
    plain,
    points,
    read,
    show_chart,
    show_table,
    table,
    threshold_of,
)
from balancer.app.verdict import verdict_of
from balancer.dependencies import is_installed
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
from balancer.runs.run_report import run_pdf

SHOWN = {
    "average precision": (AVERAGE_PRECISION, "area under the curve of precision and recall"),
    "F1": (F1, "at the threshold of the model, which training tuned on validation rows"),
    "F1 at 0.5": (F1_AT_HALF, "if a score of 0.5 raised the alarm"),
    "precision": (PRECISION, "share of alarms that are fraud, at the threshold of the model"),
    "recall": (RECALL, "share of frauds caught, at the threshold of the model"),
    "false alarms at recall 0.60": (FALSE_ALARMS["0.60"], "per 10,000 legitimate transactions, where 60 % of the frauds are caught"),
    "false alarms at recall 0.70": (FALSE_ALARMS["0.70"], "per 10,000 legitimate transactions, where 70 % of the frauds are caught"),
    "recall at 0.1 % false positives": (RECALL_AT_FPR, "share of frauds caught, where 1 in 1,000 legitimate transactions raises an alarm"),
    "calibration error": (ECE, "how far scores are from the shares of fraud; 0 is best"),
}
"""Columns of the table of models by their titles, with what they are."""
ICONS = {"better": ":material/check_circle:", "worse": ":material/cancel:", "chance": ":material/cancel:"}
"""The sign of a recommendation by outcome; the sentence says the same."""
NEUTRAL = ":material/balance:"


def show() -> None:
    """Show the page."""
    runs = all_runs()
    complete = [run for run in runs if run.status == "complete"]
    head, top, below = st.container(), st.container(), st.container()
    if not complete:
        with below:
            _problems(runs)
    with head:
        chosen = chosen_run("Runs")
    with below:
        st.subheader("All runs")
        _list(complete)
        _problems(runs)
        others = st.multiselect(
            "Compare with",
            [run.name for run in complete if run.name != chosen.name],
            key="compare-with",
            persist_state="session",
            placeholder="other runs",
        )
    # The list is there first, so that it is shown too where a file of the chosen run is damaged.
    if others:
        _side_by_side([chosen, *(run for run in complete if run.name in others)])
        return
    with top:
        _verdict(chosen)
    _results(chosen)


def _problems(runs: list[Run]) -> None:
    """Name the runs that can't be shown, each with the reason, in one closed list."""
    broken = [run for run in runs if run.status == "broken"]
    unfinished = [run for run in runs if run.status not in ("broken", "complete")]
    if not broken and not unfinished:
        return
    counts = [f"{counted(len(broken), 'run')} can't be shown"] if broken else []
    counts += [f"{counted(len(unfinished), 'run')} not finished"] if unfinished else []
    with st.expander(", ".join(counts), icon=":material/broken_image:" if broken else ":material/hourglass_top:"):
        for run in broken:
            st.error(f"**{plain(run.name)}** can't be shown: {plain(run.problem)}", icon=":material/broken_image:")
        for run in unfinished:
            st.info(f"**{plain(run.name)}**: {plain(run.problem)}", icon=":material/hourglass_top:")


def _verdict(run: Run) -> None:
    """Show the verdict: the recommendation, what it rests on, and four tiles."""
    verdict = verdict_of(run)
    st.subheader(f"{ICONS.get(verdict.outcome, NEUTRAL)} {plain(verdict.recommendation)}", anchor=False)
    st.markdown("  \n".join(plain(sentence) for sentence in verdict.sentences[:2]))
    for column, tile in zip(st.columns(len(verdict.tiles)), verdict.tiles, strict=True):
        with column.container(border=True, height="stretch", gap="xsmall"):
            st.metric(tile.label, tile.value)
            st.caption(plain(tile.note))
    st.caption(plain(verdict.basis))
    if is_installed("fpdf"):
        st.download_button(
            "Report as PDF",
            partial(run_pdf, run.path),
            f"{run.name}.pdf",
            "application/pdf",
            key="pdf",
            icon=":material/picture_as_pdf:",
            on_click="ignore",
            help="one page: verdict, models, curves, and what each part did",
        )
    else:
        st.caption("The report as a PDF needs pip install 'balancer\\[report\\]'.")


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
            "validation by epoch": [list(run.curve) for run in runs],
        }
    )
    columns = {
        "created (UTC)": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        "average precision": st.column_config.NumberColumn(format="%.3f"),
        "F1": st.column_config.NumberColumn(format="%.3f", help="at the threshold tuned on validation rows"),
        "false-positive rate": st.column_config.NumberColumn(format="percent", help="at the threshold tuned on validation rows"),
        "detector": st.column_config.TextColumn(help="hybrid: network and boosted trees; network or trees: one of them alone"),
        "model, MB": st.column_config.NumberColumn(format="%.2f", help="network and trees on disk"),
        "validation by epoch": st.column_config.LineChartColumn(
            help="average precision of the network on validation rows; empty for trees alone"
        ),
    }
    show_table(frame, "runs", columns=columns)


def _results(run: Run) -> None:
    """Show the metrics of the chosen run and of its baselines, and their curves."""
    report, verdict = read(run, "report.json"), verdict_of(run)
    st.subheader(f"Models: {plain(run.name)}")
    st.markdown(plain(summary(report)))
    _metrics(models_of(report), "metrics")
    parts, members = parts_of(report), members_sentence(report)
    if parts:
        st.caption(plain(f"Parts of this run, not rivals: {'; '.join(parts)}. {members}"))
    st.caption(
        "Every model uses its own threshold here, which training tuned on validation rows. ± is one standard error on these test rows, "
        "for one run and one split: smaller differences are not evidence. The page Compare shows intervals over several runs."
    )
    left, right = st.columns(2)
    with left:
        st.subheader(f"Precision and recall: {plain(run.name)}")
        curves = labelled(table(run, "curves.parquet"), NAMES)
        show_chart(
            curves_chart(curves, at={"recall": verdict.recall, "precision": verdict.precision}),
            f"{run.name}-precision-recall",
            about="precision against recall of this run and its baselines; a ring marks the threshold that scoring uses",
        )
    with right:
        st.subheader(f"Validation by epoch: {plain(run.name)}")
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
    data: dict[str, list[Any]] = {"model": list(models)}
    config: dict[str, Any] = {}
    for title, (column, about) in SHOWN.items():
        data[title] = [_exact(metrics, column.path) for metrics in models.values()]
        config[title] = st.column_config.NumberColumn(format=f"%.{column.decimals}f", help=about)
    config["model"] = st.column_config.TextColumn(pinned=True)
    show_table(pl.DataFrame(data, strict=False), name, columns=config)


def _exact(metrics: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = metrics
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _side_by_side(runs: list[Run]) -> None:
    """Show several runs: metrics, curves, epochs."""
    st.header("Runs side by side")
    if len({run.dataset for run in runs}) > 1:
        st.warning("These runs were trained on different tables, so their results can't be compared.")
    _metrics({run.name: run.metrics for run in runs}, "side-by-side")
    alarms = [(run, threshold_of(run), points(run).metrics(threshold_of(run))) for run in runs]
    frame = pl.DataFrame(
        {
            "run": [run.name for run, _, _ in alarms],
            "verdict": [verdict_of(run).recommendation for run in runs],
            "threshold": [threshold for _, threshold, _ in alarms],
            "frauds caught": [f"{counts['caught']:,} of {counts['caught'] + counts['missed']:,}" for _, _, counts in alarms],
            "recall": [percent(counts["recall"]) for _, _, counts in alarms],
            "false alarms": [counts["false_alarms"] for _, _, counts in alarms],
            "false alarms a day": [
                counts["false_alarms_per_day"] if has_times(table(run, "predictions.parquet")) else None for run, _, counts in alarms
            ],
            "amount caught": [money(counts["amount_caught"]) for _, _, counts in alarms],
            "amount missed": [money(counts["amount_missed"]) for _, _, counts in alarms],
        }
    )
    columns = {
        "threshold": st.column_config.NumberColumn(
            format="%.4g", help="that scoring uses: tuned by training, or saved on the page Threshold"
        ),
        "false alarms a day": st.column_config.NumberColumn(format="%.1f"),
    }
    show_table(frame, "alarms-side-by-side", columns=columns)
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
