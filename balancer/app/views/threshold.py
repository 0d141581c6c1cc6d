"""Threshold: what every threshold catches and costs, chosen by the wish an analyst has, and saved for scoring."""

from __future__ import annotations

import streamlit as st

from balancer.app.aggregates import alarms_by_day, by_class, calibration_bins
from balancer.app.browsing import Run
from balancer.app.charts import (
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
from balancer.evaluation.operating_points import OperatingPoints

SAVED, SCORE, ALARMS, FPR, RECALL, COST = "as saved", "score", "alarms a day", "false-positive rate", "recall", "cost"


def show() -> None:
    """The page."""
    run = chosen_run()
    st.title("Threshold")
    decision, every, amounts = read(run, "decision.json"), points(run), has_amounts(run)
    saved = float(decision["threshold"])
    if decision.get("chosen"):
        st.caption(f"Scoring uses {saved:.4g}, saved here: {decision['chosen']}. Training had tuned {decision['tuned']:.4g}.")
    wishes = [SAVED, SCORE, ALARMS, FPR, RECALL, *([COST] if amounts else [])]
    wish = st.segmented_control("Set the threshold by", wishes, default=SAVED, required=True, key="wish")
    price, loss = 5.0, 1.0
    if wish == COST:
        left, right = st.columns(2)
        price = left.number_input("Cost of looking at an alarm (money)", 0.0, value=5.0, step=1.0, key="price")
        loss = right.slider("Share of a missed fraud's amount that is lost, %", 0, 100, 100, key="loss") / 100
    threshold, how = _wanted(wish, every, saved, price, loss)
    figures = every.metrics(threshold)
    tiles = {
        "Threshold": f"{threshold:.4g}",
        "Alarms a day": number(figures["alarms_per_day"], 1),
        "Precision": percent(figures["precision"]),
        "Recall": percent(figures["recall"]),
        "F1": number(figures["f1"]),
        "False-positive rate": percent(figures["fpr"], 2),
    }
    if amounts:
        tiles |= {"Money caught": money(figures["amount_caught"]), "Money lost": money(figures["amount_missed"])}
    places = [*st.columns(4), *st.columns(4)]
    for place, (title, value) in zip(places, tiles.items(), strict=False):
        place.metric(title, value)
    st.caption(
        f"Counted on {every.frauds + every.legitimate:,} test transactions of {every.days:,.0f} days. A threshold that is chosen on the rows it is "
        "judged on looks a little better than it will be."
    )
    _save(run, threshold, how, saved)
    _charts(run, every, threshold, figures, price, loss)


def _wanted(wish: str, every: OperatingPoints, saved: float, price: float, loss: float) -> tuple[float, str]:
    """The threshold that a wish comes to, and the wish in words."""
    if wish == SCORE:
        value = st.slider("Alarm at a score of at least", 0.0, 1.0, min(round(saved, 3), 1.0), 0.001, format="%.3f", key="score")
        return value, f"a score of {value:g}"
    if wish == ALARMS:
        now = every.metrics(saved)["alarms_per_day"]
        budget = st.number_input("At most so many alarms a day", 0.0, value=float(max(1, round(now))), step=1.0, key="budget")
        return every.for_alarms(budget), f"at most {budget:g} alarms a day"
    if wish == FPR:
        cap = st.number_input("False-positive rate of at most, %", 0.0, 100.0, 0.1, 0.05, format="%.3f", key="cap")
        return every.for_fpr(cap / 100), f"a false-positive rate of at most {cap:g} %"
    if wish == RECALL:
        least = st.slider("Catch at least, % of the frauds", 1, 100, 70, key="least")
        return every.for_recall(least / 100), f"at least {least} % of the frauds caught"
    if wish == COST:
        return every.for_cost(price, loss), f"least cost, {price:g} an alarm and {100 * loss:g} % of a missed amount"
    return saved, "as saved"


def _save(run: Run, threshold: float, how: str, saved: float) -> None:
    """Write the threshold into the run, or put the tuned one back."""
    from balancer.inference.decision import Decision

    decision = Decision.load(run.path)
    with st.container(horizontal=True):
        if st.button("Save this threshold", type="primary", icon=":material/save:", disabled=threshold == saved,
                     help="balancer score and balancer evaluate use it from then on; report.json stays what training measured"):  # fmt: skip
            decision.with_threshold(threshold, how).save(run.path)
            st.toast(f"{run.name} alarms from {threshold:.4g} now")
            st.rerun()
        if decision.tuned is not None and st.button("Back to the tuned one", icon=":material/undo:"):
            decision.with_threshold(decision.tuned, "").save(run.path)
            st.rerun()


def _charts(run: Run, every: OperatingPoints, threshold: float, figures: dict[str, float], price: float, loss: float) -> None:
    rows, negative, amounts = table(run, "predictions.parquet"), negative_class(run), has_amounts(run)
    curves = labelled(table(run, "curves.parquet"), NAMES)
    steps = every.table(cost=every.cost(price, loss) if amounts else None)
    left, right = st.columns(2)
    with left:
        st.subheader("Precision and recall")
        show_chart(curves_chart(curves, at=figures), f"{run.name}-pr", about="precision against recall, the threshold ringed")
        st.subheader("By threshold")
        show_chart(threshold_chart(steps, threshold), f"{run.name}-thresholds", about="F1, precision and recall by threshold")
        show_chart(rate_chart(steps, threshold), f"{run.name}-rates", about="false-positive rate by threshold")
        st.subheader("Alarms a day")
        show_chart(
            alarms_chart(alarms_by_day(rows, threshold, negative)), f"{run.name}-alarms", about="alarms by day, frauds and false alarms"
        )
    with right:
        st.subheader("ROC, the few false alarms in large")
        show_chart(roc_chart(curves, at=figures), f"{run.name}-roc", about="recall against the false-positive rate, logarithmic")
        st.subheader("Outcomes")
        show_chart(confusion_chart(figures, every.legitimate), f"{run.name}-confusion", about="caught, missed, false alarms and passed")
        if amounts:
            st.subheader("Cost")
            show_chart(cost_chart(steps, threshold), f"{run.name}-cost", about="cost by threshold")
            st.caption(
                f"{price:g} for every alarm looked at, and {100 * loss:g} % of the amount of every fraud missed (set it under *cost*)."
            )
    left, right = st.columns(2)
    with left:
        st.subheader("Calibration")
        show_chart(calibration_chart(calibration_bins(rows, negative)), f"{run.name}-calibration", about="share of frauds by score")
        st.caption("On the diagonal a score of .2 means one fraud in five. Bars are 95 % intervals.")
    with right:
        st.subheader("By fraud type")
        frame = by_class(rows, threshold, negative, amounts=amounts)
        columns = {"recall": st.column_config.NumberColumn(format="percent")}
        columns |= {name: st.column_config.NumberColumn(format="localized") for name in ("money", "money caught") if name in frame.columns}
        show_table(frame, f"{run.name}-types", columns=columns)
        with st.expander("Every threshold as a table"):
            show_table(steps, f"{run.name}-threshold-table")


if __name__ == "__main__":
    show()
