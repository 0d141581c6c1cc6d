"""The page Threshold: choose a threshold by alarms, metrics or costs, see what it changes, and save it."""

from __future__ import annotations

from typing import Any

import streamlit as st
from polars import DataFrame

from balancer.app.aggregates import alarms_by_day, by_class, calibration_bins, has_times
from balancer.app.browsing import Run
from balancer.app.charts import (
    Chart,
    alarms_chart,
    calibration_chart,
    confusion_chart,
    curves_chart,
    labelled,
    rate_chart,
    roc_chart,
    thinned,
    threshold_chart,
)
from balancer.app.deciding import basis_of, changes_of
from balancer.app.loading import (
    NAMES,
    chosen_run,
    download_svg,
    has_amounts,
    money,
    negative_class,
    number,
    percent,
    plain,
    read,
    show_chart,
    show_table,
    table,
    threshold_of,
)
from balancer.app.threshold_curves import (
    ALARMS,
    CAUGHT,
    COST,
    PICK,
    PRECISION,
    Basis,
    changes_table,
    cost_sentence,
    curves,
    decision_chart,
    said,
    said_interval,
    tone,
)
from balancer.evaluation.operating_points import NO_ALARM, OperatingPoints
from balancer.evaluation.threshold_changes import Change, Changes
from balancer.names import counted
from balancer.runs.costs import Costs

SAVED, CURVE, SCORE, BUDGET, FPR, RECALL, LOWEST = (
    "as saved", "a point of the curve", "score", "alarms per day", "false-positive rate", "recall", "cost",
)  # fmt: skip
"""The ways to choose a threshold."""
CURVES, BY_THRESHOLD, OUTCOMES, CALIBRATION, CLASSES = DETAILS = (
    "models", "metrics by threshold", "outcomes", "calibration", "fraud classes",
)  # fmt: skip
"""The groups of details below the threshold."""
STEPS = 160
"""Most points of a line of the details, which are half as wide as the page."""
_COLOURS: dict[str, Any] = {"better": "green", "worse": "red", "same": "gray"}
_WORDS = {"better": ":green[better]", "worse": ":red[worse]", "same": "no clear difference"}


def show() -> None:
    """Show the page."""
    run = chosen_run("Threshold")
    decision, amounts, timed = read(run, "decision.json"), has_amounts(run), has_times(table(run, "predictions.parquet"))
    saved, basis = threshold_of(run), basis_of(run)
    if decision.get("chosen"):
        st.caption(
            f"Scoring uses {saved:.4g}, which was saved on this page: {plain(decision['chosen'])}. Training tuned {decision['tuned']:.4g}."
        )
    _read_address(run)
    criteria = [SAVED, CURVE, SCORE, *([BUDGET] if timed else []), FPR, RECALL, *([LOWEST] if amounts else [])]
    if st.session_state.get("criterion") not in criteria:
        st.session_state["criterion"] = SAVED
    criterion = st.segmented_control(
        "Choose the threshold by", criteria, required=True, key="criterion", help="Or click on the curve below.", persist_state="session"
    )
    costs = _costs(run) if amounts else None
    threshold, how = _chosen(run, str(criterion), basis, saved, costs)
    _write_address(threshold if threshold != saved else None)
    changes = changes_of(run, saved, threshold)
    metrics = basis.test.metrics(threshold)
    _tiles(metrics, changes, costs, threshold, timed=timed, moved=threshold != saved)
    if costs is not None:
        cheapest = basis.cheapest(costs)
        saving = changes_of(run, saved, cheapest).cost(costs.per_alarm, costs.loss_share)
        st.markdown(cost_sentence(saving, cheapest, days=basis.test.days if timed else None))
    _save(run, threshold, how, saved)
    _curve(run, basis, costs, saved, threshold, timed=timed)
    st.caption(_rows_said(basis, timed=timed))
    st.subheader("In use and proposed" if threshold != saved else "In use, with intervals")
    _side_by_side(changes, costs, saved, threshold)
    _details(run, basis.test, threshold, metrics)


def _read_address(run: Run) -> None:
    """Take the threshold of a shared link, once in a session."""
    state = st.session_state
    if state.get("threshold-link"):
        return
    state["threshold-link"] = True
    try:
        value = float(st.query_params.get("threshold", ""))
    except ValueError:
        return
    if 0 <= value <= NO_ALARM:
        state["clicked"], state["criterion"] = (run.name, value), CURVE


def _write_address(threshold: float | None) -> None:
    """Put the proposed threshold into the address of the page, so that a link to it can be shared."""
    if threshold is None:
        if "threshold" in st.query_params:
            del st.query_params["threshold"]
    elif st.query_params.get("threshold") != repr(threshold):
        st.query_params["threshold"] = repr(threshold)


def _costs(run: Run) -> Costs:
    """Ask for the costs, and offer to save them with the run."""
    saved, state = Costs.load(run.path), st.session_state
    shown = saved or Costs()
    if state.get("costs-of") != run.name or "price" not in state:
        state["costs-of"] = run.name
        state["price"], state["loss"] = shown.per_alarm, shown.loss_share * 100
    left, right, place = st.columns([3, 3, 2], vertical_alignment="bottom")
    price = left.number_input(
        "Cost of investigating an alarm", 0.0, step=1.0, key="price", help="in the currency of the table", persist_state="session"
    )
    loss = right.number_input(
        "Share of a missed fraud's amount that is lost, %", 0.0, 100.0, step=5.0, format="%g", key="loss", persist_state="session",
        help="less than 100 where a part of the money is recovered",
    )  # fmt: skip
    costs = Costs(float(price or 0.0), float(100.0 if loss is None else loss) / 100)
    if place.button("Save these costs", icon=":material/save:", disabled=costs == saved, width="stretch",
                    help="kept with the run; scoring does not read them"):  # fmt: skip
        costs.save(run.path)
        st.toast("The costs are saved with the run")
        st.rerun()
    if saved is None:
        st.caption(f"No costs are saved with this run: {costs.words} are assumed. Set yours.")
    return costs


def _chosen(run: Run, criterion: str, basis: Basis, saved: float, costs: Costs | None) -> tuple[float, str]:
    """Ask for the limit and return the threshold that meets it, and the limit in words."""
    if criterion == CURVE:
        name, value = st.session_state.get("clicked", ("", saved))
        if name != run.name:
            st.caption("Click on the curve to propose a threshold.")
            return saved, SAVED
        return value, f"a point of the curve, {value:.4g}"
    if criterion == SCORE:
        st.session_state.setdefault("score", min(round(saved, 3), 1.0))
        value = st.slider("Lowest score that raises an alarm", 0.0, 1.0, step=0.001, format="%.3f", key="score", persist_state="session")
        return value, f"a score of {value:g}"
    if criterion == BUDGET:
        now = basis.test.metrics(saved)["alarms_per_day"]
        budget = st.number_input(
            "Most alarms per day", 0.0, value=float(max(1, round(now))), step=1.0, key="budget", persist_state="session"
        )
        return basis.for_alarms(budget), f"at most {budget:g} alarms per day"
    if criterion == FPR:
        cap = st.number_input("Highest false-positive rate, %", 0.0, 100.0, 0.1, 0.05, format="%.3f", key="cap", persist_state="session")
        return basis.chosen_on.for_fpr(cap / 100), f"a false-positive rate of at most {cap:g} %"
    if criterion == RECALL:
        least = st.slider("Lowest recall, % of the frauds", 1, 100, 70, key="least", persist_state="session")
        return basis.chosen_on.for_recall(least / 100), f"a recall of at least {least} %"
    if criterion == LOWEST and costs is not None:
        return basis.cheapest(costs), f"lowest cost, {costs.words}"
    return saved, SAVED


def _rows_said(basis: Basis, *, timed: bool) -> str:
    """Say on which rows a threshold is chosen, and on which it is measured."""
    days = f" of {counted(round(basis.test.days), 'day')}" if timed else ""
    test = f"{counted(basis.test.frauds + basis.test.legitimate, 'test transaction')}{days}"
    if basis.separate:
        on = counted(basis.chosen_on.frauds + basis.chosen_on.legitimate, "row")
        return (
            f"A limit is met on {on} of validation that also tuned the threshold; all numbers are counted on {test}, which "
            "chose nothing. So a limit is met there only nearly. Intervals hold 95 %; the transactions of a card or of a day are "
            "resampled together."
        )
    return (
        f"Chosen and counted on the same {test}, because an older version trained this run and did not keep the scores of "
        "validation: these numbers look slightly too good. Train the run again to choose on other rows. Intervals hold 95 %."
    )


def _tiles(metrics: dict[str, Any], changes: Changes, costs: Costs | None, threshold: float, *, timed: bool, moved: bool) -> None:
    """Show the numbers of the proposed threshold, with their differences from the one in use."""
    found = {name: (kind, change) for name, kind, change in changes_table(changes, costs)}
    alarms = "Alarms per day" if timed else "Alarms"
    none = metrics["caught"] + metrics["false_alarms"] == 0
    tiles = {
        "Threshold": "no alarm" if threshold > 1 else f"{threshold:.4g}",
        "Frauds caught": f"{metrics['caught']:,} of {changes.frauds:,}",
        alarms: number(metrics["alarms_per_day"], 1) if timed else f"{metrics['caught'] + metrics['false_alarms']:,}",
        "Precision": percent(None if none else metrics["precision"]),
    }
    if costs is not None:
        tiles["Total cost"] = said(found["Total cost"][1].proposed.value, "money")
    tiles |= {"Recall": percent(metrics["recall"]), "F1": number(metrics["f1"]), "False-positive rate": percent(metrics["fpr"], 2)}
    if costs is not None:
        tiles |= {"Amount caught": money(metrics["amount_caught"]), "Amount missed": money(metrics["amount_missed"])}
    for place, (title, value) in zip(st.columns(len(tiles)), tiles.items(), strict=True):
        delta: dict[str, Any] = {}
        if moved and title in found:
            kind, change = found[title]
            if change.difference.value is not None:
                delta = {
                    "delta": said(change.difference.value, kind, signed=True),
                    "delta_arrow": "off",
                    "delta_color": _COLOURS[tone(change)],
                }
        place.metric(title, value, **delta)
    if moved:
        st.caption("Below a number: its difference from the threshold in use. Green is better, red is worse, grey is no clear difference.")


def _curve(run: Run, basis: Basis, costs: Costs | None, saved: float, threshold: float, *, timed: bool) -> None:
    """Show the large curve, which proposes the threshold that is clicked on."""
    options = [*([COST] if costs is not None else []), CAUGHT, PRECISION, ALARMS]
    if st.session_state.get("curve") not in options:
        st.session_state["curve"] = options[0]
    shown = str(st.segmented_control("Curve", options, required=True, key="curve", persist_state="session"))
    cheapest = None if costs is None else basis.cheapest(costs)
    also = [saved, threshold, *([] if cheapest is None else [cheapest])]
    steps = curves(basis, costs, also=also)
    chart = decision_chart(steps, shown, current=saved, proposed=threshold, cheapest=cheapest, timed=timed)
    key = f"pick-{run.name}-{shown}"

    def picked() -> None:
        points = st.session_state[key]["selection"].get(PICK) or []
        if points:
            st.session_state["clicked"], st.session_state["criterion"] = (run.name, float(points[0]["threshold"])), CURVE

    with st.container(key=f"single-{run.name}-decision"):
        st.altair_chart(
            chart, width="stretch", key=key, on_select=picked, selection_mode=[PICK],
            alt=f"{shown} by threshold; the threshold in use, the proposed one and the cheapest one are marked; click to propose another",
        )  # fmt: skip
    st.caption("Click on the curve to propose a threshold." + (f" Total cost: {costs.words}." if costs is not None else ""))
    download_svg(chart, f"{run.name}-decision")
    with st.expander("The curve as a table"):
        show_table(steps, f"{run.name}-threshold-table")


def _side_by_side(changes: Changes, costs: Costs | None, saved: float, threshold: float) -> None:
    """Compare the threshold in use with the proposed one."""
    found = changes_table(changes, costs)

    def interval(change: Change, which: str, kind: Any, *, signed: bool = False) -> str:
        return said_interval(getattr(change, which).interval, kind, signed=signed)

    if threshold == saved:
        rows = {
            "Quantity": [name for name, _, _ in found],
            f"In use: {saved:.4g}": [said(change.current.value, kind) for _, kind, change in found],
            "95 % interval": [interval(change, "current", kind) for _, kind, change in found],
        }
    else:
        rows = {
            "Quantity": [name for name, _, _ in found],
            f"In use: {saved:.4g}": [said(change.current.value, kind) for _, kind, change in found],
            f"Proposed: {threshold:.4g}": [said(change.proposed.value, kind) for _, kind, change in found],
            "Difference": [said(change.difference.value, kind, signed=True) for _, kind, change in found],
            "95 % interval of the difference": [interval(change, "difference", kind, signed=True) for _, kind, change in found],
            "Which is": [_WORDS[tone(change)] for _, _, change in found],
        }
    with st.container(key="wide-side-by-side"):
        st.table(rows, hide_index=True)


def _save(run: Run, threshold: float, how: str, saved: float) -> None:
    """Offer to save the threshold in the run, or to restore the tuned one."""
    from balancer.inference.decision import Decision

    decision = Decision.load(run.path)
    with st.container(horizontal=True):
        if st.button("Save this threshold", type="primary", icon=":material/save:", disabled=threshold == saved,
                     help="balancer score, evaluate and serve use it from then on; report.json keeps the results of training"):  # fmt: skip
            decision.with_threshold(threshold, how).save(run.path)
            st.toast(f"{plain(run.name)} now raises alarms from a score of {threshold:.4g}")
            st.rerun()
        if decision.tuned is not None and st.button("Restore the tuned threshold", icon=":material/undo:"):
            decision.with_threshold(decision.tuned, "").save(run.path)
            st.rerun()


@st.fragment
def _details(run: Run, thresholds: OperatingPoints, threshold: float, metrics: dict[str, Any]) -> None:
    """Show one group of charts, or the table of fraud classes; the others are neither computed nor drawn."""
    rows, negative, amounts = table(run, "predictions.parquet"), negative_class(run), has_amounts(run)
    st.subheader("Details")
    shown = st.segmented_control(
        "Details", DETAILS, default=DETAILS[0], required=True, key="details", persist_state="session", label_visibility="collapsed"
    )
    if shown == CLASSES:
        _fraud_classes(run, by_class(rows, threshold, negative, amounts=amounts))
        return
    charts: list[tuple[str, Chart, str, str, str]]
    if shown == BY_THRESHOLD:
        steps = thresholds.table(max_points=STEPS)
        charts = [
            ("Metrics by threshold", threshold_chart(steps, threshold), "thresholds", "F1, precision and recall by threshold", ""),
            ("False-positive rate by threshold", rate_chart(steps, threshold), "rates", "false-positive rate by threshold", ""),
        ]
    elif shown == OUTCOMES:
        charts = [("Outcomes", confusion_chart(metrics, thresholds.legitimate), "confusion", "caught, missed, false alarms and passed", "")]
        if has_times(rows):
            alarms = alarms_chart(alarms_by_day(rows, threshold, negative))
            charts.append(("Alarms per day", alarms, "alarms", "frauds and false alarms by day", ""))
    elif shown == CALIBRATION:
        note = (
            "On the diagonal the scores are probabilities: of the transactions with a score of 0.2, one in five is fraud. "
            "Bars are 95 % intervals."
        )
        bins = calibration_bins(rows, negative)
        charts = [("Calibration", calibration_chart(bins), "calibration", "share of frauds by score", note)]
    else:
        lines = thinned(labelled(table(run, "curves.parquet"), NAMES), STEPS)
        charts = [
            ("Precision and recall", curves_chart(lines, at=metrics), "pr", "precision against recall; a ring marks the threshold", ""),
            ("ROC curve, low rates enlarged", roc_chart(lines, at=metrics), "roc", "recall against the false-positive rate", ""),
        ]
    for column, (title, chart, name, about, text) in zip(st.columns(2), charts, strict=False):
        with column:
            st.markdown(f"**{title}**")
            show_chart(chart, f"{run.name}-{name}", about=about)
            if text:
                st.caption(text)


def _fraud_classes(run: Run, frame: DataFrame) -> None:
    columns = {"recall": st.column_config.NumberColumn(format="percent")}
    columns |= {name: st.column_config.NumberColumn(format="localized") for name in ("amount", "amount caught") if name in frame.columns}
    show_table(frame, f"{run.name}-types", columns=columns)


if __name__ == "__main__":
    show()
