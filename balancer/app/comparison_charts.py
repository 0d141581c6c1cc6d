"""Charts of the page Compare: a forest plot of treatments, and parallel coordinates of runs."""

from __future__ import annotations

import textwrap

import altair as alt
import polars as pl

from balancer.app.chart_parts import BLUE, GREY, ORANGE, VERMILION, legend
from balancer.comparison.statistics import METRICS
from balancer.comparison.verdict import KINDS, title_of

_ROW, _BESIDES = 42, 150
"""Pixels of a row of the forest plot, whose name stands above its line, and of axis and legend."""
_KIND_COLOURS = [BLUE, VERMILION, ORANGE, GREY]
_KIND_SHAPES = ["circle", "diamond", "square", "triangle-up"]
_TEXT = "#7C7C7C"
"""A grey that can be read on the light and the dark background."""
_HEIGHT, _LABEL = 420, 12


def forest_chart(rows: pl.DataFrame, reference: str, metric: str) -> alt.LayerChart:
    """Draw a dot with its interval for every treatment, with the reference at zero.

    Args:
        rows: Rows of `balancer.app.comparisons.forest_rows`, in their order.
        reference: The treatment at zero.
        metric: A key of `METRICS`.
    """
    about = METRICS[metric]
    unit = "change in %" if about.recall is not None else "difference"
    direction = "right is better" if about.higher_is_better else "left is better"
    title = [f"{unit} of {about.title} from", f"{title_of(reference)} ({direction})"]
    order = rows["title"].to_list()
    # The names lie in the plot, above the lines, so that long ones take no width from it.
    inside = alt.Axis(labelAlign="left", labelPadding=-4, labelOffset=-13, labelLimit=400, ticks=False, domain=False, grid=False)
    base = alt.Chart(rows).encode(
        y=alt.Y("title:N", sort=order, title=None, axis=inside),
        color=alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS), range=_KIND_COLOURS), legend=legend(2)),
        tooltip=[
            alt.Tooltip("title:N", title="treatment"),
            alt.Tooltip("kind:N", title="kind"),
            alt.Tooltip("mean:Q", title=f"mean {about.title}", format=".4f"),
            alt.Tooltip("difference:Q", title=unit, format="+.4f" if about.recall is None else "+.1f"),
            alt.Tooltip("low:Q", title="95 % interval, low", format="+.4f" if about.recall is None else "+.1f"),
            alt.Tooltip("high:Q", title="95 % interval, high", format="+.4f" if about.recall is None else "+.1f"),
            alt.Tooltip("verdict:N", title="verdict"),
        ],
    )
    across = alt.X(
        "low:Q", title=title, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(format="+.2f" if about.recall is None else "+d")
    )
    lines = base.mark_rule(strokeWidth=2.5).encode(x=across, x2="high:Q")
    dots = base.mark_point(filled=True, size=110, opacity=1).encode(
        x="difference:Q", shape=alt.Shape("kind:N", scale=alt.Scale(domain=list(KINDS), range=_KIND_SHAPES), legend=legend(2))
    )
    zero = alt.Chart(alt.InlineData(values=[{"zero": 0.0}])).mark_rule(strokeDash=[4, 4], color=_TEXT).encode(x="zero:Q")
    chart: alt.LayerChart = (zero + lines + dots).properties(height=_ROW * len(order) + _BESIDES)
    return chart


def parallel_chart(rows: pl.DataFrame) -> alt.LayerChart:
    """Draw a line for every run across its settings and results.

    Args:
        rows: Rows of `balancer.app.comparisons.parallel_rows`.
    """
    order = rows.sort("order")["axis"].unique(maintain_order=True).to_list()
    wrapped = {axis: "\n".join(textwrap.wrap(axis, _LABEL)) for axis in order}
    data = rows.with_columns(title=pl.col("axis").replace_strict(wrapped))
    across = alt.X(
        "title:N",
        sort=[wrapped[axis] for axis in order],
        title=["settings that differ, and results", "(lowest value below, highest above)"],
        axis=alt.Axis(labelAngle=0, labelExpr="split(datum.value, '\\n')", labelLimit=90, grid=True),
    )
    hover = alt.selection_point(name="run", fields=["run"], on="pointerover", empty=False, clear="pointerout")
    base = alt.Chart(data).encode(
        across,
        alt.Y("place:Q", axis=None, scale=alt.Scale(domain=[-0.12, 1.12])),
        detail="run:N",
        tooltip=[
            alt.Tooltip("run:N"),
            alt.Tooltip("axis:N", title="setting or result"),
            alt.Tooltip("value:N"),
            alt.Tooltip("average_precision:Q", title="average precision", format=".3f"),
        ],
    )
    colour = alt.Color(
        "average_precision:Q",
        title="average precision",
        scale=alt.Scale(range=["#C9A227", "#2E8B7A", "#5672D8"]),
        legend=alt.Legend(orient="bottom", format=".2f", gradientLength=180),
    )
    lines = base.mark_line().encode(color=colour, strokeWidth=alt.condition(hover, alt.value(5), alt.value(2)))
    dots = base.mark_point(filled=True, size=70).encode(color=colour).add_params(hover)
    ends = data.filter((pl.col("place") == 0) | (pl.col("place") == 1)).unique(["axis", "place"], maintain_order=True)
    marks = alt.Chart(ends).encode(across, alt.Y("place:Q", axis=None), text="value:N")
    low = marks.transform_filter("datum.place == 0").mark_text(dy=14, color=_TEXT)
    high = marks.transform_filter("datum.place == 1").mark_text(dy=-12, color=_TEXT)
    chart: alt.LayerChart = (lines + dots + low + high).properties(height=_HEIGHT)
    return chart
