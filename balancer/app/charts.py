"""Build Altair charts from frames; without Streamlit, so that charts can be tested and used in a notebook.

What is special: every axis has a title with its unit, every mark has a tooltip, and no chart has a width of
its own: a page gives it that of its column. Charts of the sampling weights are in `weights_charts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from balancer.app.chart_parts import (
    BLUE,
    COLOURS,
    DAYS,
    FIRST,
    GREEN,
    GREY,
    HEIGHT,
    MODEL_COLOURS,
    ORANGE,
    PINK,
    VERMILION,
    WIDTH,
    Chart,
    axis,
    better_ink,
    height,
    hovered,
    labelled,
    legend,
    lines_of_models,
    rule,
    svg,
    thinned,
    tip,
)
from balancer.app.weights_charts import epochs_chart, surface_chart, weights_chart

__all__ = [
    "BLUE", "COLOURS", "GREEN", "GREY", "HEIGHT", "MODEL_COLOURS", "ORANGE", "OUTCOMES", "OUTCOME_COLOURS", "OUTCOME_SHAPES", "PINK",
    "VERMILION", "WIDTH", "Chart", "alarms_chart", "bars_chart", "calibration_chart", "confusion_chart", "contributions_chart", "cost_chart",
    "curves_chart", "epochs_chart", "labelled", "rate_chart", "roc_chart", "sensitivity_chart", "surface_chart", "svg", "thinned", "threshold_chart", "timeline_chart",
    "weights_chart",
]  # fmt: skip
OUTCOMES = ["caught", "missed", "false alarm", "passed"]
"""Outcomes of a transaction: a fraud with and without an alarm, a legitimate one with and without an
alarm."""
OUTCOME_COLOURS = [GREEN, VERMILION, ORANGE, GREY]
OUTCOME_SHAPES = ["triangle-up", "cross", "square", "circle"]
_THRESHOLD = "threshold on the calibrated score (log scale)"
_RECALL = "recall (share of frauds caught)"
_PRECISION = "precision (share of alarms that are fraud)"
_FPR = "false-positive rate (log scale)"


def curves_chart(curves: pl.DataFrame, *, at: Mapping[str, Any] | None = None) -> Chart:
    """Plot precision against recall of every model.

    Args:
        curves: Columns `model, recall, precision`, and `threshold` for the tooltip if it is known.
        at: An operating point of this run to mark, with `recall` and `precision`.
    """
    axes = [
        alt.X("recall:Q", title=_RECALL, axis=axis("%"), scale=alt.Scale(domain=[0, 1])),
        alt.Y("precision:Q", title=_PRECISION, axis=axis("%"), scale=alt.Scale(domain=[0, 1])),
    ]
    chart = lines_of_models(_columns(curves, "precision"), axes, _curve_tips(curves, "precision"))
    return _marked(chart.properties(height=height(curves["model"].n_unique())), at, "recall", "precision")


def roc_chart(curves: pl.DataFrame, *, at: Mapping[str, Any] | None = None) -> Chart:
    """Plot recall against the false-positive rate, on a logarithmic axis for low rates.

    Args:
        curves: Columns `model, recall, fpr`, and `threshold` for the tooltip if it is known.
        at: An operating point of this run to mark, with `recall` and `fpr`.
    """
    axes = [
        alt.X("fpr:Q", title=_FPR, axis=axis("~%"), scale=alt.Scale(type="log", domain=[FIRST, 1])),
        alt.Y("recall:Q", title=_RECALL, axis=axis("%"), scale=alt.Scale(domain=[0, 1])),
    ]
    chart = lines_of_models(_columns(curves, "fpr").with_columns(pl.col("fpr").clip(FIRST)), axes, _curve_tips(curves, "fpr"))
    place = None if at is None or at["fpr"] is None else dict(at) | {"fpr": max(at["fpr"], FIRST)}
    return _marked(chart.properties(height=height(curves["model"].n_unique())), place, "fpr", "recall")


def _columns(curves: pl.DataFrame, other: str) -> pl.DataFrame:
    return curves.select(name for name in ("model", "recall", other, "threshold") if name in curves.columns)


def _curve_tips(curves: pl.DataFrame, other: str) -> list[alt.Tooltip]:
    second = tip("precision", "precision", ".1%") if other == "precision" else tip("fpr", "false-positive rate", ".3%")
    tips = [tip("model:N", "model"), tip("recall", "recall", ".1%"), second]
    return tips + ([tip("threshold", "threshold (score)", ".4~g")] if "threshold" in curves.columns else [])


def _marked(chart: alt.LayerChart, at: Mapping[str, Any] | None, x: str, y: str) -> Chart:
    """Add a ring at an operating point, in the colour of this run."""
    if at is None or at[x] is None or at[y] is None:
        return chart
    place = alt.Chart(alt.InlineData(values=[{x: at[x], y: at[y], "what": "this run at its threshold"}]))
    formats = {"fpr": ("false-positive rate", ".3%"), "recall": ("recall", ".1%"), "precision": ("precision", ".1%")}
    tips = [tip("what:N", "point"), *(tip(name, *formats[name]) for name in (x, y))]
    ring = place.mark_point(size=200, color=BLUE, strokeWidth=4, opacity=1).encode(alt.X(f"{x}:Q"), alt.Y(f"{y}:Q"), tooltip=tips)
    # In a layered chart, the outermost layer has the height.
    tall, chart.height = chart.height, alt.Undefined
    ringed: alt.LayerChart = alt.LayerChart(layer=[chart, ring]).properties(height=tall)
    return ringed


def threshold_chart(table: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """Plot F1, precision and recall by threshold; columns `threshold, f1, precision, recall`."""
    named = {"f1": "F1", "precision": "precision", "recall": "recall"}
    long = table.select("threshold", *named).rename(named).unpivot(index="threshold", variable_name="metric", value_name="value")
    axes = [_threshold_axis(), alt.Y("value:Q", title="F1, precision, recall (0 to 1)", scale=alt.Scale(domain=[0, 1]))]
    colour = alt.Color("metric:N", sort=None, scale=alt.Scale(range=COLOURS), legend=legend(3))
    tips = [tip("metric:N", "metric"), tip("value", "value (0 to 1)", ".3f"), _threshold_tip()]
    lines = hovered(long.with_columns(pl.col("threshold").clip(FIRST)), axes, tips, colour, by="metric")
    return _at_threshold(lines, threshold, entries=3)


def rate_chart(table: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """Plot the false-positive rate by threshold; columns `threshold, fpr`."""
    rate = alt.Y("fpr:Q", title=_FPR, scale=alt.Scale(type="log", domain=[FIRST, 1]), axis=axis("~%"))
    tips = [tip("fpr", "false-positive rate", ".3%"), _threshold_tip()]
    line = hovered(table.select(pl.col("threshold", "fpr").clip(FIRST)), [_threshold_axis(), rate], tips, color=BLUE)
    return _at_threshold(line, threshold)


def cost_chart(table: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """Plot the cost by threshold, in the currency of the table; columns `threshold, cost`."""
    cost = alt.Y("cost:Q", title="cost (currency of the table)", axis=axis("~s"))
    tips = [tip("cost", "cost (currency of the table)", ",.0f"), _threshold_tip()]
    line = hovered(table.select(pl.col("threshold").clip(FIRST), "cost"), [_threshold_axis(), cost], tips, color=BLUE)
    return _at_threshold(line, threshold)


def _threshold_tip() -> alt.Tooltip:
    return tip("threshold", "threshold (score)", ".4~g")


def _threshold_axis() -> alt.X:
    x: alt.X = alt.X("threshold:Q", title=_THRESHOLD, scale=alt.Scale(type="log", domain=[FIRST, 1]), axis=axis("~g"))
    return x


def _at_threshold(chart: alt.LayerChart, threshold: float, *, entries: int = 0) -> alt.LayerChart:
    """Add a line at the threshold to a chart with so many entries in its legend."""
    marked: alt.LayerChart = alt.LayerChart(layer=[chart, rule(min(max(threshold, FIRST), 1.0), _THRESHOLD)]).properties(
        height=height(entries, plot=280, columns=3)
    )
    return marked


def alarms_chart(days: pl.DataFrame) -> alt.Chart:
    """Plot alarms by day, frauds and false alarms separately; columns `day, outcome, alarms`."""
    domain = ["caught", "false alarm"]
    years = sorted({day.year for day in days["day"].drop_nulls()})
    title = f"day ({'–'.join(str(year) for year in dict.fromkeys((years[0], years[-1])))})" if years else "day"
    chart: alt.Chart = (
        alt.Chart(days)
        .mark_bar()
        .encode(
            alt.X("yearmonthdate(day):T", title=title, axis=DAYS),
            alt.Y("alarms:Q", title="alarms per day"),
            alt.Color("outcome:N", scale=alt.Scale(domain=domain, range=[GREEN, ORANGE]), legend=legend()),
            alt.Order("outcome:N"),
            tooltip=[tip("day:T", "day", "%-d %b %Y"), tip("outcome:N", "outcome"), tip("alarms", "alarms", ",")],
        )
        .properties(height=height(2, plot=280))
    )
    return chart


def confusion_chart(counts: Mapping[str, Any], legitimate: int) -> alt.LayerChart:
    """Show the four outcomes as a confusion matrix.

    Args:
        counts: Has `caught, missed, false_alarms`.
        legitimate: Number of legitimate transactions.
    """
    cells = [
        ("fraud", "alarm", "caught", counts["caught"], GREEN),
        ("fraud", "no alarm", "missed", counts["missed"], VERMILION),
        ("legitimate", "alarm", "false alarms", counts["false_alarms"], ORANGE),
        ("legitimate", "no alarm", "passed", legitimate - counts["false_alarms"], GREY),
    ]
    values: Any = [
        {"truth": t, "answer": a, "text": f"{n:,}", "name": name, "colour": c, "ink": better_ink(c)} for t, a, name, n, c in cells
    ]
    base = alt.Chart(alt.InlineData(values=values)).encode(
        alt.X("answer:N", title="decision", sort=["alarm", "no alarm"], axis=alt.Axis(labelAngle=0, orient="top")),
        alt.Y("truth:N", title="label", sort=["fraud", "legitimate"]),
        tooltip=[tip("name:N", "outcome"), tip("text:N", "transactions")],
    )
    ink = alt.Color("ink:N", scale=None)
    boxes = base.mark_rect(stroke="white").encode(alt.Color("colour:N", scale=None))
    number = base.mark_text(fontSize=22, dy=-6).encode(ink, text="text:N")
    name = base.mark_text(dy=18).encode(ink, text="name:N")
    chart: alt.LayerChart = (boxes + number + name).properties(height=220)
    return chart


def calibration_chart(bins: pl.DataFrame) -> alt.LayerChart:
    """Plot the share of frauds against the mean score of each bin; columns `score, rate, low, high, rows`."""
    least = 1e-4
    clipped = bins.with_columns(pl.col("score", "rate", "low", "high").clip(least))
    scale = alt.Scale(type="log", domain=[least, 1])
    x = alt.X("score:Q", title="score (predicted probability of fraud, log scale)", scale=scale, axis=axis("~g"))
    base = alt.Chart(clipped).encode(x)
    y = alt.Y("rate:Q", title="observed share of fraud (log scale)", scale=scale, axis=axis("~g"))
    titles = {"score": "mean score", "rate": "observed share of fraud", "low": "lowest, 95 %", "high": "highest, 95 %"}
    tips = [tip(name, title, ".3%") for name, title in titles.items()]
    points = base.mark_point(filled=True, size=70, color=BLUE).encode(y, tooltip=[*tips, tip("rows", "transactions", ",")])
    bars = base.mark_rule(color=BLUE).encode(alt.Y("low:Q", scale=scale), alt.Y2("high:Q"), tooltip=tips)
    corners: list[dict[str, float]] = [{"score": least, "rate": least}, {"score": 1.0, "rate": 1.0}]
    diagonal = alt.Chart(alt.InlineData(values=corners))
    line = diagonal.mark_line(strokeDash=[5, 4], color=GREY).encode(alt.X("score:Q", scale=scale), alt.Y("rate:Q", scale=scale))
    chart: alt.LayerChart = (line + bars + points).properties(height=HEIGHT)
    return chart


def timeline_chart(rows: pl.DataFrame, *, threshold: float) -> alt.LayerChart:
    """Plot the transactions of an entity: score by time, outcome as colour and shape, attention as size.

    The chosen transaction has a blue ring, global nodes a pink diamond.

    Args:
        rows: Columns `id, time, score, amount, outcome, attention` (0 for none), `chosen` and `global_node`
            (bool).
        threshold: Drawn as a dashed line.
    """
    base = alt.Chart(rows).encode(
        alt.X("time:T", title="time", axis=alt.Axis(labelOverlap="greedy", labelAngle=0, tickCount=6)),
        alt.Y("score:Q", title="score (probability of fraud)", scale=alt.Scale(domain=[0, 1])),
        tooltip=[
            tip("id:N", "transaction"),
            tip("time:T", "time", "%-d %b %Y %H:%M"),
            tip("amount", "amount (currency of the table)", ",.2f"),
            tip("score", "score (probability of fraud)", ".2%"),
            tip("outcome:N", "outcome"),
            tip("attention", "attention", ".1%"),
        ],
    )
    points = base.mark_point(filled=True, opacity=0.9).encode(
        alt.Color("outcome:N", scale=alt.Scale(domain=OUTCOMES, range=OUTCOME_COLOURS), legend=legend(2)),
        alt.Shape("outcome:N", scale=alt.Scale(domain=OUTCOMES, range=OUTCOME_SHAPES)),
        alt.Size(
            "attention:Q",
            title="attention",
            scale=alt.Scale(range=[45, 500], domain=[0, 0.5], clamp=True),
            legend=None,  # larger is more; the tooltip has the number
        ),
    )
    ring = base.transform_filter("datum.chosen").mark_point(size=520, strokeWidth=3, color=BLUE, shape="circle")
    nodes = base.transform_filter("datum.global_node").mark_point(size=300, strokeWidth=2, color=PINK, shape="diamond")
    line = rule(threshold, "score (probability of fraud)", "y")
    chart: alt.LayerChart = (points + nodes + ring + line).properties(height=height(len(OUTCOMES)))
    return chart


def contributions_chart(fields: pl.DataFrame, *, most: int = 12) -> alt.Chart:
    """Plot the contributions of the fields to a score as bars, each below its label.

    Args:
        fields: Columns `field, value, contribution, words` in log-odds, largest first; the `value` is empty
            where the entry is no field.
        most: Most fields to show; the sum of all others is one bar.
    """
    named = pl.when(pl.col("value") == "").then(pl.col("words")).otherwise(pl.col("words") + ": " + pl.col("value"))
    shown = fields.with_columns(name=named).select("field", "value", "contribution", "words", "name").head(most)
    rest = fields[most:]
    if rest.height:
        name = f"{rest.height} other fields"
        others = {"field": name, "value": "", "contribution": rest["contribution"].sum(), "words": "the sum of their contributions"}
        shown = pl.concat([shown, pl.DataFrame([others | {"name": name}], schema=shown.schema)])
    signed = [f"{contribution:+.2f}  {name}" for contribution, name in zip(shown["contribution"], shown["name"], strict=True)]
    shown = shown.with_columns(name=pl.Series(signed, dtype=pl.String))
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_bar(size=10, yOffset=8)
        .encode(
            alt.X("contribution:Q", title="contribution to the log-odds of fraud"),
            alt.Y("name:N", title="field and its value", sort=None, axis=_labels_above()),
            alt.Color(
                "direction:N",
                title=None,
                scale=alt.Scale(domain=["towards fraud", "towards legitimate"], range=[VERMILION, BLUE]),
                legend=None,  # the sign says the same
            ),
            tooltip=[
                tip("words:N", "field"),
                tip("value:N", "value"),
                tip("contribution", "contribution (log-odds)", "+.3f"),
                tip("field:N", "name in the model"),
            ],
        )
        .transform_calculate(direction="datum.contribution >= 0 ? 'towards fraud' : 'towards legitimate'")
        .properties(height=40 + 34 * shown.height)
    )
    return chart


def bars_chart(frame: pl.DataFrame, *, x: str, y: str, x_title: str, y_title: str) -> alt.Chart:
    """Plot horizontal bars of `x` by `y`, each below its label, in the order of the frame."""
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_bar(color=BLUE, size=10, yOffset=8)
        .encode(
            alt.X(f"{x}:Q", title=x_title, axis=axis(",~r")),
            alt.Y(f"{y}:N", title=y_title, sort=None, axis=_labels_above()),
            tooltip=[tip(f"{y}:N", y_title), tip(x, x_title, ",.4~g")],
        )
        .properties(height=40 + 34 * frame.height)
    )
    return chart


def sensitivity_chart(layers: pl.DataFrame) -> alt.Chart:
    """Plot how much the scores change when one layer is rounded to INT8, the most sensitive layer first.

    Args:
        layers: Columns `layer, divergence` (nats per row) and `precision`, which the layer has now.
    """
    colours = {"int8": BLUE, "bf16": ORANGE, "fp16": GREEN, "fp32": PINK}
    shown = layers.with_columns(pl.col("divergence").clip(1e-12))  # a logarithmic axis can't show zero
    names = shown["precision"].unique(maintain_order=True).to_list()
    scale = alt.Scale(domain=names, range=[colours.get(name, GREY) for name in names])
    chart: alt.Chart = (
        alt.Chart(shown.sort("divergence", descending=True, maintain_order=True))
        .mark_point(filled=True, size=80, opacity=1, yOffset=8)
        .encode(
            alt.X("divergence:Q", title="divergence in INT8 (nats per row, log scale)", scale=alt.Scale(type="log"), axis=axis("~e")),
            alt.Y("layer:N", title="layer", sort=None, axis=_labels_above()),
            alt.Color("precision:N", scale=scale, legend=legend(1, "precision now")),
            alt.Shape("precision:N", legend=legend(1, "precision now")),
            tooltip=[tip("layer:N", "layer"), tip("precision:N", "precision now"), tip("divergence", "divergence (nats per row)", ".2e")],
        )
        .properties(height=height(len(names) + 1, plot=40 + 34 * layers.height, columns=1))
    )
    return chart


def _labels_above() -> alt.Axis:
    """Place the labels of rows above the marks, because beside them they would leave no width to the plot."""
    inside: dict[str, Any] = {"labelAlign": "left", "labelPadding": 0, "labelOffset": -7, "labelLimit": alt.ExprRef("width"), "zindex": 1}
    above: alt.Axis = alt.Axis(title=None, ticks=False, domain=False, **inside)
    return above
