"""The panel Service: alert rate, estimated precision and drift by day of a running service."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import streamlit as st

from balancer.app.charts import BLUE, HEIGHT, ORANGE, VERMILION, WIDTH
from balancer.app.loading import show_chart, show_table
from balancer.dependencies import explained_imports
from balancer.errors import InputError
from balancer.options.database import DATABASE_VARIABLE

ADDRESS, KEY = "BALANCER_SERVICE", "BALANCER_SERVICE_KEY"
"""Environment variables with the address of the service and a key of scope operator."""
LARGE = 0.25
"""Index from which a field has changed."""
_SECONDS = 30.0
_ESTIMATED, _TRUE = "estimated from scores", "from labels"


def service_panel(run: Path) -> None:
    """Show the panel.

    Args:
        run: The chosen run; drift of decisions in a database is measured against its training rows.
    """
    st.subheader("Service")
    left, middle, right = st.columns([5, 4, 3])
    given, stored = os.environ.get(ADDRESS, ""), os.environ.get(DATABASE_VARIABLE, "")
    address = left.text_input(
        "Service or database",
        given,
        key="service-address",
        placeholder=f"the database in {DATABASE_VARIABLE}" if stored else "https://balancer.example, sqlite:///balancer-service.db",
        help=f"URL of a running service, or of its database; {ADDRESS} of the environment is shown here.",
    ).strip()
    key = middle.text_input(
        "Key",
        key="service-key",
        type="password",
        placeholder=f"the key in {KEY}" if os.environ.get(KEY) else "bk_...",
        help="A key of scope operator.",
    ).strip()
    days = right.selectbox("Days", (7, 30, 90), 1, key="service-days")
    # What the environment keeps secret is not sent to the browser, and its key to no other address.
    key = key or (os.environ.get(KEY, "") if address == given else "")
    address = address or stored
    if not address:
        st.info("Give the address of a service, to see its alert rate, estimated precision and drift by day.", icon=":material/monitoring:")
        return
    try:
        found = _days_of(address, key, days, str(run))
    except InputError as error:
        st.error(str(error))
        return
    if not found["days"]:
        st.info("The service has decided about no transaction on these days.", icon=":material/monitoring:")
        return
    frame = frame_of(found)
    show_chart(days_chart(frame), "service", about="alert rate, precision and largest drift of the service by day")
    show_table(frame, "service-days")
    for note in found["notes"]:
        st.caption(note)


@st.cache_data(ttl=60, max_entries=20, show_spinner="asking the service")
def _days_of(address: str, key: str, days: int, run: str) -> dict[str, Any]:
    """The answer of `GET /v1/monitoring`, from the service or computed from its database."""
    if address.startswith(("http://", "https://")):
        return ask(address, key, days)
    with explained_imports("the database of a service", "balancer[serve]"):
        from balancer.serving.models.loaded_model import LoadedModel
        from balancer.serving.operations.migration import open_database, used
        from balancer.serving.operations.monitoring import Monitoring

        model = LoadedModel.load(Path(run), Path(run).name)
        with used(open_database(address, patience=5.0)) as database:
            return Monitoring(database, lambda: [model]).by_day(days)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing, so that the key is sent to no other host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def ask(address: str, key: str, days: int) -> dict[str, Any]:
    """Ask a service for its last days.

    Raises:
        InputError: It can't be reached, or refuses.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        request = urllib.request.Request(f"{address.rstrip('/')}/v1/monitoring?days={days}", headers=headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        reasons = {401: "the key is missing or wrong", 403: "the key lacks the scope operator", 404: "it is of an older version"}
        raise InputError(f"{address} refused ({reasons.get(error.code, f'status {error.code}')}): check the address and the key") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{address} does not answer as a service does: check the address, and that the service is running") from error
    if not isinstance(found, dict) or "days" not in found:
        raise InputError(f"{address} does not answer as a service does: check the address")
    return found


def frame_of(found: dict[str, Any]) -> pl.DataFrame:
    """The days as a table, one row for each day and model, earliest first."""
    rows = [
        {
            "day": each["day"],
            "model": each["model"],
            "transactions": each["transactions"],
            "alert rate": each["alert_rate"],
            _ESTIMATED: each["estimated_precision"]["value"],
            _TRUE: each["true_precision"]["value"],
            "frauds expected": each["expected_frauds"]["value"],
            "largest drift": None if each["largest_drift"] is None else each["largest_drift"]["index"],
            "field": None if each["largest_drift"] is None else each["largest_drift"]["field"],
        }
        for each in found["days"]
    ]
    numbers = dict.fromkeys(("alert rate", _ESTIMATED, _TRUE, "frauds expected", "largest drift"), pl.Float64)
    frame = pl.DataFrame(rows, schema_overrides=numbers | {"field": pl.String})
    return frame.with_columns(pl.col("day").str.to_date()).sort("day", "model")


def days_chart(frame: pl.DataFrame) -> alt.VConcatChart:
    """Plot alert rate, precision and largest drift of `frame_of` by day, below each other."""
    day = alt.X("day:T", title=None, axis=alt.Axis(format="%d %b"))

    def lines(title: str, columns: dict[str, str], number: str) -> alt.Chart:
        long = frame.unpivot([*columns], index=["day", "model", "field"], variable_name="what", value_name="value").drop_nulls("value")
        chart: alt.Chart = (
            alt.Chart(long)
            .mark_line(point=True)
            .encode(
                day,
                alt.Y("value:Q", title=title, axis=alt.Axis(format=number), scale=alt.Scale(zero=True)),
                alt.Color(
                    "what:N", scale=alt.Scale(domain=[*columns], range=[*columns.values()]), legend=alt.Legend(title=None, orient="top")
                ),
                alt.StrokeDash("model:N", legend=None),
                tooltip=["day:T", "model:N", "what:N", alt.Tooltip("value:Q", format=number), "field:N"],
            )
            .properties(width=WIDTH, height=HEIGHT // 2)
        )
        return chart

    limit = alt.Chart(pl.DataFrame({"limit": [LARGE]})).mark_rule(strokeDash=[4, 4]).encode(y="limit:Q")
    whole: alt.VConcatChart = alt.vconcat(
        lines("alert rate", {"alert rate": BLUE}, "%"),
        lines("precision of alarms", {_ESTIMATED: ORANGE, _TRUE: BLUE}, "%"),
        lines("largest drift (PSI)", {"largest drift": VERMILION}, ".2f") + limit,
    ).resolve_scale(color="independent")
    return whole
