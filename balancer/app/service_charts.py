"""Charts of the page Service: alert rate, precision and drift by day."""

from __future__ import annotations

import altair as alt
import polars as pl

from balancer.app.chart_parts import BLUE, DAYS, HEIGHT, ORANGE, VERMILION, axis, legend, rule, tip
from balancer.app.service import ESTIMATED, LARGE, TRUE

_TALL = HEIGHT // 2 + 100
"""Pixels with axis and legend."""


def day_charts(frame: pl.DataFrame) -> dict[str, alt.LayerChart]:
    """Plot alert rate, precision and largest drift of `balancer.app.service.frame_of` by day, by title."""
    drift = _lines(frame, "drift (index)", {"largest drift": VERMILION}, ".2f")
    limit = rule(LARGE, "drift (index)", "y")
    return {
        "Share of alarms": _lines(frame, "share with an alarm", {"alert rate": BLUE}, ".2~%"),
        "Precision of alarms": _lines(frame, "share that is fraud", {ESTIMATED: ORANGE, TRUE: BLUE}, ".0%"),
        "Largest drift of a field": alt.LayerChart(layer=[drift, limit]).properties(height=_TALL),
    }


def _lines(frame: pl.DataFrame, title: str, columns: dict[str, str], number: str) -> alt.LayerChart:
    """Draw a line for each column and model."""
    long = frame.unpivot([*columns], index=["day", "model", "field"], variable_name="what", value_name="value").drop_nulls("value")
    several = frame["model"].n_unique() > 1
    scale = alt.Scale(domain=[*columns], range=[*columns.values()])
    encodings = [
        alt.X("day:T", title="day (UTC)", axis=DAYS),
        alt.Y("value:Q", title=title, axis=axis(number), scale=alt.Scale(zero=True)),
        alt.Color("what:N", scale=scale, legend=legend(2) if len(columns) > 1 else None),
        # Above the plot: beside the other legend it has no place on a narrow screen.
        alt.StrokeDash("model:N", title=None, legend=alt.Legend(orient="top", title=None) if several else None),
    ]
    tips = [
        alt.Tooltip("day:T", title="day", format="%-d %b %Y"),
        tip("model:N", "model"),
        tip("what:N", "what"),
        tip("value", title, number),
    ]
    if "largest drift" in columns:
        tips.append(tip("field:N", "field"))
    lines = alt.Chart(long).mark_line().encode(*encodings)
    points = alt.Chart(long).mark_point(filled=True, size=60).encode(*encodings[:3], tooltip=tips)
    chart: alt.LayerChart = alt.LayerChart(layer=[lines, points]).properties(height=_TALL)
    return chart
