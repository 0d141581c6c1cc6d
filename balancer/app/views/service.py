"""The page Service: traffic, latency, early warning and models of a running service; absent without one."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from balancer.app.loading import all_runs, number, percent, plain, show_chart, show_table
from balancer.app.service import (
    Metrics,
    Target,
    ask,
    comparison_rows,
    comparison_verdict,
    days_of,
    early_warnings,
    frame_of,
    read_metrics,
    target,
)
from balancer.app.service_charts import day_charts
from balancer.errors import InputError

DAYS = (7, 30, 90)
ICONS = {"better": ":material/trending_up:", "worse": ":material/trending_down:", "unclear": ":material/balance:"}


def show() -> None:
    """Show the page."""
    st.title("Service")
    where = target()
    if not where.configured:
        st.info("No service is configured: start the app with --service URL.", icon=":material/monitoring:")
        return
    st.caption(f"`{where.shown}`")  # as code, so that it is no link
    if where.address:
        try:
            read_metrics(where)
        except InputError as error:  # said once, not by every part of the page
            st.error(plain(error))
            return
        _live(where)
        _models(where)
    _days(where)


@st.cache_data(ttl=60, max_entries=20, show_spinner="Asking the service")
def _days_of(address: str, days: int, run: str | None, _where: Target) -> dict[str, Any]:
    """The numbers by day; the key is no part of what is cached."""
    path = next((each.path for each in all_runs() if each.name == run), None)
    return days_of(_where, days, path)


@st.cache_data(ttl=30, max_entries=20, show_spinner="Asking the service")
def _answer(address: str, path: str, needed: str, _where: Target) -> dict[str, Any]:
    return ask(address, _where.key, path, needed)


@st.fragment(run_every=10.0)
def _live(where: Target) -> None:
    """Show what the service does now; it is asked again every ten seconds."""
    st.subheader("Traffic and latency")
    try:
        metrics = read_metrics(where)
    except InputError as error:
        st.error(plain(error))
        return
    rate = _per_second(where.address, metrics)
    transactions, requests, failed = metrics.total("balancer_transactions_total"), metrics.requests(), metrics.requests(failed=True)
    typical, slow, slowest = (metrics.latency(each) for each in (0.5, 0.95, 0.99))
    tiles = {
        "Transactions": (f"{transactions:,.0f}", "Scored since the service was started, without repeated ones."),
        "Transactions a second": (number(rate, 1), "Since the page read the metrics before; it reads them every ten seconds."),
        "Alarms": (
            percent(metrics.total("balancer_alarms_total") / transactions if transactions else None, 2),
            "Share of these transactions.",
        ),
        "Typical latency": (_time(typical), "Half of the requests to score were answered within this time."),
        "Slow latency": (_time(slow), f"19 in 20 requests to score were answered within this time; 99 in 100 within {_time(slowest)}."),
        "Failed requests": (percent(failed / requests if requests else None, 2), f"Status 500 and more, of {requests:,.0f} requests."),
    }
    places = [*st.columns(3), *st.columns(3)]
    for place, (title, (value, about)) in zip(places, tiles.items(), strict=True):
        place.metric(title, value, help=about, border=True)
    with st.expander("By route, in milliseconds"):
        columns = {name: st.column_config.NumberColumn(f"{name} within, ms", format="%.1f") for name in ("50 %", "95 %", "99 %")}
        show_table(metrics.routes(), "service-routes", columns=columns)


def _per_second(address: str, metrics: Metrics) -> float | None:
    """Transactions a second since the metrics were read before; None the first time, or after a restart."""
    total, now = metrics.total("balancer_transactions_total"), time.monotonic()
    before: tuple[str, float, float] | None = st.session_state.get("service-before")
    st.session_state["service-before"] = (address, total, now)
    if before is None or before[0] != address or now - before[2] < 1 or total < before[1]:
        return None
    return (total - before[1]) / (now - before[2])


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _models(where: Target) -> None:
    """Show the models in service, and champion against challenger."""
    st.subheader("Champion and challenger")
    try:
        models = _answer(where.address, "/v1/models", "in_service", where)
    except InputError as error:
        st.error(plain(error))
        return
    champion, challenger = models["in_service"], models["challenger"]
    if champion is None:
        st.info("No model is in service.", icon=":material/deployed_code:")
        return
    share = (
        f", which decides for {100 * models['canary_share']:g} % of the entities" if models["canary_share"] else ", which decides nothing"
    )
    beside = "There is no challenger beside it." if challenger is None else f"**{plain(challenger)}** scores beside it{share}."
    st.markdown(f"**{plain(champion)}** decides. {beside}")
    if challenger is None:
        st.caption("A challenger is put beside the champion by POST /v1/models, with the state shadow or canary.")
        return
    try:
        found = _answer(where.address, "/v1/models/comparison", "average_precision_difference", where)
    except InputError as error:
        st.warning(plain(error))
        return
    outcome, sentence = comparison_verdict(found)
    st.info(plain(sentence), icon=ICONS[outcome])
    show_table(comparison_rows(found), "service-comparison")
    agreement = found["agreement"]["value"]
    same = "" if agreement is None else f", of which {percent(agreement)} got the same decision"
    st.caption(
        f"Both scored {found['rows']:,} transactions{same}. In brackets: 95 % intervals. If only alarms of the champion are investigated, "
        "the frauds that it misses have no label, and the comparison favours it."
    )


def _days(where: Target) -> None:
    """Show the early warning, and the numbers by day."""
    st.subheader("Early warning")
    days = st.segmented_control("Days", DAYS, default=30, required=True, key="service-days", persist_state="session")
    try:
        found = _days_of(where.shown, days, st.session_state.get("run"), where)
    except InputError as error:
        st.error(plain(error))
        return
    if not found["days"]:
        st.info("The service has decided about no transaction on these days.", icon=":material/monitoring:")
        return
    warnings = early_warnings(found)
    for warning in warnings:
        st.warning(plain(warning), icon=":material/warning:")
    if not warnings:
        st.success("On the latest day no field has changed and the share of alarms is usual.", icon=":material/check_circle:")
    frame = frame_of(found)
    for place, (title, chart) in zip([*st.columns(2), st.container()], day_charts(frame).items(), strict=True):
        with place:
            st.markdown(f"**{title}**")
            show_chart(chart, f"service-{title.split()[0].lower()}", about=f"{title.lower()} of the service by day")
    st.caption(
        "Labels take weeks. Until then the precision is estimated from calibrated scores; where fields have changed, trust the drift more "
        "than the estimate."
    )
    shape: dict[str, Any] = {name: st.column_config.NumberColumn(format="percent") for name in ("alert rate", *frame.columns[4:6])}
    shape |= {
        "transactions": st.column_config.NumberColumn(format="localized"),
        "frauds expected": st.column_config.NumberColumn(format="%.1f"),
    }
    shape["day"] = st.column_config.DateColumn(format="YYYY-MM-DD", pinned=True)
    shape["largest drift"] = st.column_config.NumberColumn(format="%.2f")
    show_table(frame, "service-days", columns=shape)
    for note in found["notes"]:
        st.caption(plain(note))


if __name__ == "__main__":
    show()
