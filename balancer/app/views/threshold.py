"""The page Threshold: choose a threshold by its alarms, metrics or costs, and save it."""

from __future__ import annotations

import streamlit as st
from polars import DataFrame

from balancer.app.aggregates import alarms_by_day, by_class, calibration_bins, has_times
from balancer.app.browsing import Run
from balancer.app.charts import (
    Chart,
    alarms_chart,
    calibration_chart,
    confusion_chart,
    cost_chart,
    curves_chart,
    labelled,
    rate_chart,
    roc_chart,
    threshold_chart,
)
from balancer.app.loading import (
    NAMES,
    chosen_run,
    has_amounts,
    money,
    negative_class,
    number,
    percent,
    points,
    read,
    show_chart,
    show_table,
    table,
)
from balancer.app.service import service_panel
from balancer.evaluation.operating_points import OperatingPoints
from balancer.names import counted

SAVED, SCORE, ALARMS, FPR, RECALL, COST = "as saved", "score", "alarms per day", "false-positive rate", "recall", "cost"
"""The ways to choose a threshold."""


def show() -> None:
    """Show the page."""
    run = chosen_run()
    st.title("Threshold")
    decision, thresholds, amounts = read(run, "decision.json"), points(run), has_amounts(run)
    saved = float(decision["threshold"])
    if decision.get("chosen"):
        st.caption(f"Scoring uses {saved:.4g}, which was saved on this page: {decision['chosen']}. Training tuned {decision['tuned']:.4g}.")
    timed = has_times(table(run, "predictions.parquet"))
    criteria = [SAVED, SCORE, *([ALARMS] if timed else []), FPR, RECALL, *([COST] if amounts else [])]
    criterion = st.segmented_control("Choose the threshold by", criteria, default=SAVED, required=True, key="criterion")
    price, loss = 5.0, 1.0
    if criterion == COST:
        left, right = st.columns(2)
        price = left.number_input(
            "Cost of investigating an alarm", 0.0, value=5.0, step=1.0, key="price", help="in the currency of the table"
        )
        loss = right.slider("Share of the amount of a missed fraud that is lost, %", 0, 100, 100, key="loss") / 100
    threshold, how = _chosen(criterion, thresholds, saved, price, loss)
    metrics = thresholds.metrics(threshold)
    tiles = {
        "Threshold": f"{threshold:.4g}",
        "Alarms per day": number(metrics["alarms_per_day"] if timed else None, 1),
        "Precision": percent(metrics["precision"]),
        "Recall": percent(metrics["recall"]),
        "F1": number(metrics["f1"]),
        "False-positive rate": percent(metrics["fpr"], 2),
    }
    if amounts:
        tiles |= {"Amount caught": money(metrics["amount_caught"]), "Amount missed": money(metrics["amount_missed"])}
    places = [*st.columns(4), *st.columns(4)]
    for place, (title, value) in zip(places, tiles.items(), strict=False):
        place.metric(title, value)
    days = f" of {counted(round(thresholds.days), 'day')}" if timed else ""
    st.caption(
        f"Counted on {counted(thresholds.frauds + thresholds.legitimate, 'test transaction')}{days}. A threshold that is "
        "chosen on the rows it is evaluated on looks slightly too good."
    )
    _save(run, threshold, how, saved)
    _charts(run, thresholds, threshold, metrics, price, loss)
    service_panel(run.path)


def _chosen(criterion: str, thresholds: OperatingPoints, saved: float, price: float, loss: float) -> tuple[float, str]:
    """Ask for the limit and return the threshold that meets it, and the limit in words."""
    if criterion == SCORE:
        value = st.slider("Lowest score that raises an alarm", 0.0, 1.0, min(round(saved, 3), 1.0), 0.001, format="%.3f", key="score")
        return value, f"a score of {value:g}"
    if criterion == ALARMS:
        now = thresholds.metrics(saved)["alarms_per_day"]
        budget = st.number_input("Most alarms per day", 0.0, value=float(max(1, round(now))), step=1.0, key="budget")
        return thresholds.for_alarms(budget), f"at most {budget:g} alarms per day"
    if criterion == FPR:
        cap = st.number_input("Highest false-positive rate, %", 0.0, 100.0, 0.1, 0.05, format="%.3f", key="cap")
        return thresholds.for_fpr(cap / 100), f"a false-positive rate of at most {cap:g} %"
    if criterion == RECALL:
        least = st.slider("Lowest recall, % of the frauds", 1, 100, 70, key="least")
        return thresholds.for_recall(least / 100), f"a recall of at least {least} %"
    if criterion == COST:
        return thresholds.for_cost(price, loss), f"lowest cost, {price:g} per alarm and {100 * loss:g} % of a missed amount"
    return saved, "as saved"


def _by_day(rows: DataFrame, threshold: float, negative: str) -> list[tuple[str, Chart, str, str, str]]:
    alarms = alarms_chart(alarms_by_day(rows, threshold, negative))
    return [("Alarms per day", alarms, "alarms", "frauds and false alarms by day", "")]


def _save(run: Run, threshold: float, how: str, saved: float) -> None:
    """Offer to save the threshold in the run, or to restore the tuned one."""
    from balancer.inference.decision import Decision

    decision = Decision.load(run.path)
    with st.container(horizontal=True):
        if st.button("Save this threshold", type="primary", icon=":material/save:", disabled=threshold == saved,
                     help="balancer score, evaluate and serve use it from then on; report.json keeps the results of training"):  # fmt: skip
            decision.with_threshold(threshold, how).save(run.path)
            st.toast(f"{run.name} now raises alarms from a score of {threshold:.4g}")
            st.rerun()
        if decision.tuned is not None and st.button("Restore the tuned threshold", icon=":material/undo:"):
            decision.with_threshold(decision.tuned, "").save(run.path)
            st.rerun()


def _charts(run: Run, thresholds: OperatingPoints, threshold: float, metrics: dict[str, float], price: float, loss: float) -> None:
    """Show the charts in pairs, then the tables."""
    rows, negative, amounts = table(run, "predictions.parquet"), negative_class(run), has_amounts(run)
    curves = labelled(table(run, "curves.parquet"), NAMES)
    steps = thresholds.table(cost=thresholds.cost(price, loss) if amounts else None)
    bins = calibration_bins(rows, negative)
    probabilities = "On the diagonal the scores are probabilities: of the transactions with a score of 0.2, one in five is fraud."
    cost = f"{price:g} per alarm, and {100 * loss:g} % of the amount of every missed fraud. Choose by *cost* to change these."
    charts: list[tuple[str, Chart, str, str, str]] = [
        ("Precision and recall", curves_chart(curves, at=metrics), "pr", "precision against recall; a ring marks the threshold", ""),
        ("ROC curve, low rates enlarged", roc_chart(curves, at=metrics), "roc", "recall against the false-positive rate", ""),
        ("Metrics by threshold", threshold_chart(steps, threshold), "thresholds", "F1, precision and recall by threshold", ""),
        ("False-positive rate by threshold", rate_chart(steps, threshold), "rates", "false-positive rate by threshold", ""),
        ("Outcomes", confusion_chart(metrics, thresholds.legitimate), "confusion", "caught, missed, false alarms and passed", ""),
        *(_by_day(rows, threshold, negative) if has_times(rows) else []),
        ("Calibration", calibration_chart(bins), "calibration", "share of frauds by score", f"{probabilities} Bars are 95 % intervals."),
    ]
    if amounts:
        charts.append(("Cost by threshold", cost_chart(steps, threshold), "cost", "cost by threshold", cost))
    for first in range(0, len(charts), 2):
        for column, (title, chart, name, about, note) in zip(st.columns(2), charts[first : first + 2], strict=False):
            with column:
                st.subheader(title)
                show_chart(chart, f"{run.name}-{name}", about=about)
                if note:
                    st.caption(note)
    st.subheader("Fraud classes")
    frame = by_class(rows, threshold, negative, amounts=amounts)
    columns = {"recall": st.column_config.NumberColumn(format="percent")}
    columns |= {name: st.column_config.NumberColumn(format="localized") for name in ("amount", "amount caught") if name in frame.columns}
    show_table(frame, f"{run.name}-types", columns=columns)
    with st.expander("Thresholds as a table"):
        show_table(steps, f"{run.name}-threshold-table")


if __name__ == "__main__":
    show()
