"""Build Altair charts from frames; without Streamlit, so that charts can be tested and used in a notebook.

What is special: every axis has a title with its unit. Colours are those of Okabe and Ito, which can be
distinguished with any colour vision, and a grey and a brown; every colour is accompanied by a shape, a
dash, an order or a text. A model has the same colour on all pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from balancer.evaluation.report_content import PARTS, THIS_RUN, TITLES

BLUE, ORANGE, GREEN, PINK, VERMILION, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A8A8A"
BROWN = "#8C6D31"
COLOURS = [BLUE, ORANGE, GREEN, PINK, VERMILION, SKY, GREY]
MODEL_COLOURS = {
    THIS_RUN: BLUE,
    TITLES["lightgbm"]: ORANGE,
    TITLES["none"]: GREY,
    TITLES["one_to_one"]: VERMILION,
    TITLES["class_weight"]: BROWN,
    TITLES["full"]: BLUE,
    TITLES["network"]: PINK,
    TITLES["stage2"]: GREEN,
    TITLES["stage1"]: SKY,
}
"""Colour of each model of a report on all pages. Parts of the detector are dashed where they are lines."""
OUTCOMES = ["caught", "missed", "false alarm", "passed"]
"""Outcomes of a transaction: a fraud with and without an alarm, a legitimate one with and without an
alarm."""
OUTCOME_COLOURS = [GREEN, VERMILION, ORANGE, GREY]
OUTCOME_SHAPES = ["triangle-up", "cross", "square", "circle"]
WIDTH, HEIGHT = 640, 380
FIRST = 1e-4
"""Smallest value on a logarithmic axis of rates."""

WEIGHTS = {
    "hardness": "hardness exponent",
    "floor": "floor",
    "class_importance": "importance of classes",
    "hardness_importance": "importance within classes",
}
"""Columns of sampling weights besides the shares, and their titles."""
_THRESHOLD = "threshold on the calibrated score (log scale)"
_RECALL = "recall (share of frauds caught)"
_FPR = "false-positive rate (log scale)"

Chart = alt.Chart | alt.LayerChart | alt.VConcatChart | alt.HConcatChart | alt.ConcatChart


_LINE_DASH: Any = alt.condition(
    alt.FieldOneOfPredicate(field="model", oneOf=[TITLES[name] for name in PARTS]), alt.value([5, 3]), alt.value([1, 0])
)
_LINE_WIDTH: Any = alt.condition("datum.model == 'this run'", alt.value(3), alt.value(1.5))


def _model_colour(models: pl.Series) -> alt.Color:
    """Colour models by `MODEL_COLOURS`; runs and players, which are not in it, by their order."""
    names = models.unique(maintain_order=True).to_list()
    if set(names) <= set(MODEL_COLOURS):
        scale = alt.Scale(domain=names, range=[MODEL_COLOURS[name] for name in names])
    else:
        scale = alt.Scale(range=COLOURS)
    colour: alt.Color = alt.Color("model:N", sort=None, scale=scale, legend=_legend())
    return colour


def _legend(columns: int = 2, title: str | None = None) -> alt.Legend:
    """Place the legend above the chart, where it leaves the width to the plot."""
    legend: alt.Legend = alt.Legend(orient="top", columns=columns, title=title)
    return legend


def _axis(number_format: str) -> alt.Axis:
    axis: alt.Axis = alt.Axis(format=number_format)
    return axis


def _rule(value: float, title: str, channel: str = "x") -> alt.Chart:
    """Draw a dashed line at `value` of an axis."""
    encoding: Any = alt.X("at:Q", title=title) if channel == "x" else alt.Y("at:Q", title=title)
    rule: alt.Chart = (
        alt.Chart(alt.InlineData(values=[{"at": value}])).mark_rule(strokeDash=[5, 4], color=VERMILION, size=2).encode(encoding)
    )
    return rule


def weights_chart(epochs: pl.DataFrame) -> alt.VConcatChart:
    """Plot the weights and validation metrics of a run by epoch, in linked panels.

    The panels show the shares of the fraud classes, the other weights, average precision and F1, and the
    false-positive rate.

    Args:
        epochs: Rows of one model in `epochs.parquet`: columns `epoch, average_precision, f1, fpr`,
            `share_CLASS` for each class, and those of the other weights (:data:`WEIGHTS`) that there are;
            version 0.1 wrote no importance.
    """
    shares = [name for name in epochs.columns if name.startswith("share_")][1:]
    groups = [
        ("share of draws", "class", ".0%", {name: name.removeprefix("share_") for name in shares}),
        ("weight (no unit)", "weight", ".2f", WEIGHTS),
        ("validation metric", "metric", ".2f", {"average_precision": "average precision", "f1": "F1, best threshold"}),
        ("false-positive rate", "rate", ".2%", {"fpr": "at best threshold"}),
    ]
    # One selection per panel; every panel reacts to all of them.
    options: dict[str, Any] = {"fields": ["epoch"], "nearest": True, "on": "pointerover", "empty": False, "clear": "pointerout"}
    hovers = [alt.selection_point(name=f"epoch{number}", **options) for number in range(len(groups))]
    either: Any = alt.LogicalOrPredicate
    hovered = either(**{"or": [{"param": hover.name, "empty": False} for hover in hovers]})
    panels: list[Any] = []
    for hover, (title, legend, number, columns) in zip(hovers, groups, strict=True):
        known = {name: text for name, text in columns.items() if name in epochs.columns}
        long = epochs.select("epoch", *known).rename(known).unpivot(index="epoch", variable_name=legend, value_name="value")
        base = alt.Chart(long).encode(
            alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False)),
            alt.Y("value:Q", title=title, axis=_axis(number), scale=alt.Scale(zero=legend != "metric")),
            alt.Color(f"{legend}:N", scale=alt.Scale(range=COLOURS), legend=_legend(4)),
        )
        points = base.mark_point(filled=True).encode(
            size=alt.condition(hovered, alt.value(110), alt.value(30)),
            tooltip=["epoch:Q", f"{legend}:N", alt.Tooltip("value:Q", format=".4f", title=title)],
        )
        line = alt.Chart(epochs.select("epoch")).mark_rule(color=GREY).encode(alt.X("epoch:Q", title="epoch")).transform_filter(hovered)
        panels.append((base.mark_line() + points.add_params(hover) + line).properties(height=120, width=WIDTH))
    chart: alt.VConcatChart = alt.vconcat(*panels).resolve_scale(color="independent")
    return chart


def epochs_chart(lines: pl.DataFrame, *, metric: str, title: str) -> alt.Chart:
    """Plot a metric by epoch, one line per model.

    Args:
        lines: Columns `model, epoch` and the metric.
        metric: Name of the column.
        title: Title of the axis.
    """
    chart: alt.Chart = (
        alt.Chart(lines)
        .mark_line(point=True)
        .encode(
            alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d")),
            alt.Y(f"{metric}:Q", title=title, scale=alt.Scale(zero=False)),
            _model_colour(lines["model"]),
            alt.Shape("model:N", sort=None),
            tooltip=["model:N", "epoch:Q", alt.Tooltip(f"{metric}:Q", format=".4f")],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return chart


def curves_chart(curves: pl.DataFrame, *, at: Mapping[str, Any] | None = None) -> Chart:
    """Plot precision against recall of every model.

    Args:
        curves: Columns `model, recall, precision`.
        at: An operating point to mark, with `recall` and `precision`.
    """
    chart = _model_lines(curves.select("model", "recall", "precision")).encode(
        alt.X("recall:Q", title=_RECALL, axis=_axis("%"), scale=alt.Scale(domain=[0, 1])),
        alt.Y("precision:Q", title="precision (share of alarms that are fraud)", axis=_axis("%"), scale=alt.Scale(domain=[0, 1])),
    )
    return _marked(chart, at, "recall", "precision")


def roc_chart(curves: pl.DataFrame, *, at: Mapping[str, Any] | None = None) -> Chart:
    """Plot recall against the false-positive rate, on a logarithmic axis for low rates.

    Args:
        curves: Columns `model, recall, fpr`.
        at: An operating point to mark, with `recall` and `fpr`.
    """
    chart = _model_lines(curves.select("model", "recall", pl.col("fpr").clip(FIRST))).encode(
        alt.X("fpr:Q", title=_FPR, axis=_axis("~%"), scale=alt.Scale(type="log", domain=[FIRST, 1])),
        alt.Y("recall:Q", title=_RECALL, axis=_axis("%"), scale=alt.Scale(domain=[0, 1])),
    )
    return _marked(chart, None if at is None or at["fpr"] is None else dict(at) | {"fpr": max(at["fpr"], FIRST)}, "fpr", "recall")


def _model_lines(curves: pl.DataFrame) -> alt.Chart:
    """Draw a line per model in the order of recall, thicker for this run."""
    lines: alt.Chart = (
        alt.Chart(curves)
        .mark_line()
        .encode(
            _model_colour(curves["model"]),
            alt.Order("recall:Q"),
            strokeWidth=_LINE_WIDTH,
            strokeDash=_LINE_DASH,
        )
    )
    return lines


def _marked(chart: alt.Chart, at: Mapping[str, Any] | None, x: str, y: str) -> Chart:
    """Add a ring at an operating point."""
    if at is None or at[x] is None or at[y] is None:
        plain: alt.Chart = chart.properties(width=WIDTH, height=HEIGHT)
        return plain
    place = alt.Chart(alt.InlineData(values=[{x: at[x], y: at[y]}]))
    ring = place.mark_point(size=180, color=VERMILION, strokeWidth=3).encode(alt.X(f"{x}:Q"), alt.Y(f"{y}:Q"))
    ringed: alt.LayerChart = (chart + ring).properties(width=WIDTH, height=HEIGHT)
    return ringed


def threshold_chart(table: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """Plot F1, precision and recall by threshold; columns `threshold, f1, precision, recall`."""
    named = {"f1": "F1", "precision": "precision", "recall": "recall"}
    long = table.select("threshold", *named).rename(named).unpivot(index="threshold", variable_name="metric", value_name="value")
    lines = (
        alt.Chart(long.with_columns(pl.col("threshold").clip(FIRST)))
        .mark_line()
        .encode(
            _threshold_axis(),
            alt.Y("value:Q", title="F1, precision, recall", scale=alt.Scale(domain=[0, 1])),
            alt.Color("metric:N", sort=None, scale=alt.Scale(range=COLOURS), legend=_legend(3)),
        )
    )
    return _at_threshold(lines, threshold)


def rate_chart(table: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """Plot the false-positive rate by threshold; columns `threshold, fpr`."""
    line = alt.Chart(table.select(pl.col("threshold", "fpr").clip(FIRST))).mark_line(color=ORANGE)
    rate = alt.Y("fpr:Q", title=_FPR, scale=alt.Scale(type="log", domain=[FIRST, 1]), axis=_axis("~%"))
    return _at_threshold(line.encode(_threshold_axis(), rate), threshold)


def cost_chart(table: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """Plot the cost by threshold, in the currency of the table; columns `threshold, cost`."""
    line = alt.Chart(table.select(pl.col("threshold").clip(FIRST), "cost")).mark_line(color=BLUE)
    return _at_threshold(line.encode(_threshold_axis(), alt.Y("cost:Q", title="cost (currency of the table)", axis=_axis("~s"))), threshold)


def _threshold_axis() -> alt.X:
    x: alt.X = alt.X("threshold:Q", title=_THRESHOLD, scale=alt.Scale(type="log", domain=[FIRST, 1]), axis=_axis("~g"))
    return x


def _at_threshold(chart: alt.Chart, threshold: float) -> alt.LayerChart:
    """Add a line at the threshold."""
    layers = [chart, _rule(min(max(threshold, FIRST), 1.0), _THRESHOLD)]
    marked: alt.LayerChart = alt.LayerChart(layer=layers).properties(width=WIDTH, height=260)
    return marked


def alarms_chart(days: pl.DataFrame) -> alt.Chart:
    """Plot alarms by day, frauds and false alarms separately; columns `day, outcome, alarms`."""
    domain = ["caught", "false alarm"]
    chart: alt.Chart = (
        alt.Chart(days)
        .mark_bar()
        .encode(
            alt.X("day:T", title="day"),
            alt.Y("alarms:Q", title="alarms per day"),
            alt.Color("outcome:N", scale=alt.Scale(domain=domain, range=[GREEN, ORANGE]), legend=_legend()),
            alt.Order("outcome:N"),
            tooltip=["day:T", "outcome:N", "alarms:Q"],
        )
        .properties(width=WIDTH, height=260)
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
    values: Any = [{"truth": t, "answer": a, "text": f"{n:,}", "name": name, "colour": c} for t, a, name, n, c in cells]
    base = alt.Chart(alt.InlineData(values=values)).encode(
        alt.X("answer:N", title="decision", sort=["alarm", "no alarm"], axis=alt.Axis(labelAngle=0, orient="top")),
        alt.Y("truth:N", title="label", sort=["fraud", "legitimate"]),
    )
    boxes = base.mark_rect(stroke="white").encode(alt.Color("colour:N", scale=None))
    number = base.mark_text(fontSize=22, dy=-6, color="black").encode(text="text:N")
    name = base.mark_text(dy=18, color="black").encode(text="name:N")
    chart: alt.LayerChart = (boxes + number + name).properties(width=300, height=220)
    return chart


def calibration_chart(bins: pl.DataFrame) -> alt.LayerChart:
    """Plot the share of frauds against the mean score of each bin; columns `score, rate, low, high, rows`."""
    least = 1e-4
    clipped = bins.with_columns(pl.col("score", "rate", "low", "high").clip(least))
    scale = alt.Scale(type="log", domain=[least, 1])
    x = alt.X("score:Q", title="score (predicted probability of fraud, log scale)", scale=scale, axis=_axis("~g"))
    base = alt.Chart(clipped).encode(x)
    y = alt.Y("rate:Q", title="observed share of fraud (log scale)", scale=scale, axis=_axis("~g"))
    tips = [alt.Tooltip(f"{name}:Q", format=".5f") for name in ("score", "rate", "low", "high")]
    points = base.mark_point(filled=True, size=70, color=BLUE).encode(y, tooltip=[*tips, "rows:Q"])
    bars = base.mark_rule(color=BLUE).encode(alt.Y("low:Q", scale=scale), alt.Y2("high:Q"))
    corners: list[dict[str, float]] = [{"score": least, "rate": least}, {"score": 1.0, "rate": 1.0}]
    diagonal = alt.Chart(alt.InlineData(values=corners))
    line = diagonal.mark_line(strokeDash=[5, 4], color=GREY).encode(alt.X("score:Q", scale=scale), alt.Y("rate:Q", scale=scale))
    chart: alt.LayerChart = (line + bars + points).properties(width=WIDTH, height=HEIGHT)
    return chart


def surface_chart(surface: pl.DataFrame, path: pl.DataFrame, *, metric: str = "average_precision") -> alt.LayerChart:
    """Plot the expected metric of constant weights as a heat map, and the weights of the run as a path.

    Args:
        surface: Columns `share, hardness, average_precision, f1` on a grid.
        path: Columns `epoch, share, hardness` of the run.
        metric: The metric to show, `average_precision` or `f1`.
    """
    titles = {"average_precision": "expected average precision", "f1": "expected F1"}
    shares, powers = sorted(surface["share"].unique()), sorted(surface["hardness"].unique())
    step = (shares[-1] / shares[0]) ** (0.5 / max(1, len(shares) - 1)) if shares[0] > 0 else 1.0
    half = (powers[-1] - powers[0]) / max(1, len(powers) - 1) / 2 or 0.25
    cells = surface.with_columns(
        left=pl.col("share") / step, right=pl.col("share") * step, low=pl.col("hardness") - half, high=pl.col("hardness") + half
    )
    share = alt.Scale(type="log", nice=False, domain=[min(shares[0] / step, *path["share"], 1.0), max(shares[-1] * step, *path["share"])])
    power = alt.Scale(nice=False, domain=[min(powers[0] - half, *path["hardness"]), max(powers[-1] + half, *path["hardness"])])
    x_title, y_title = "share of draws that are fraud (log scale)", "hardness exponent (no unit)"
    boxes = (
        alt.Chart(cells)
        .mark_rect()
        .encode(
            alt.X("left:Q", title=x_title, scale=share, axis=_axis("%")),
            alt.X2("right:Q"),
            alt.Y("low:Q", title=y_title, scale=power),
            alt.Y2("high:Q"),
            alt.Color(f"{metric}:Q", title=titles[metric].split(), scale=alt.Scale(scheme="cividis")),
            tooltip=[alt.Tooltip("share:Q", format=".2%"), "hardness:Q", alt.Tooltip(f"{metric}:Q", format=".3f", title=titles[metric])],
        )
    )
    base = alt.Chart(path).encode(
        alt.X("share:Q", title=x_title, scale=share),
        alt.Y("hardness:Q", title=y_title, scale=power),
        alt.Order("epoch:Q"),
        tooltip=["epoch:Q"],
    )
    line = base.mark_line(color=VERMILION, point=alt.OverlayMarkDef(color=VERMILION, size=60))
    epochs = path["epoch"].to_list()
    ends = base.transform_filter(alt.FieldOneOfPredicate(field="epoch", oneOf=[min(epochs), max(epochs)]))
    numbers = ends.mark_text(dx=12, dy=-10, fontSize=13, fontWeight="bold", color=VERMILION).encode(text=alt.Text("epoch:Q"))
    chart: alt.LayerChart = (boxes + line + numbers).properties(width=WIDTH, height=HEIGHT)
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
        alt.X("time:T", title="time"),
        alt.Y("score:Q", title="score (probability of fraud)", scale=alt.Scale(domain=[0, 1])),
        tooltip=["id:N", "time:T", "amount:Q", alt.Tooltip("score:Q", format=".4f"), "outcome:N", alt.Tooltip("attention:Q", format=".1%")],
    )
    points = base.mark_point(filled=True, opacity=0.9).encode(
        alt.Color("outcome:N", scale=alt.Scale(domain=OUTCOMES, range=OUTCOME_COLOURS), legend=_legend(4)),
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
    rule = _rule(threshold, "score (probability of fraud)", "y")
    chart: alt.LayerChart = (points + nodes + ring + rule).properties(width=WIDTH, height=HEIGHT)
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
    # The labels are above the bars, because beside them they would leave no width to the bars.
    inside: dict[str, Any] = {"labelAlign": "left", "labelPadding": 0, "labelOffset": -7, "labelLimit": alt.ExprRef("width"), "zindex": 1}
    above = alt.Axis(title=None, ticks=False, domain=False, **inside)
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_bar(size=10, yOffset=8)
        .encode(
            alt.X("contribution:Q", title="contribution to the log-odds of fraud"),
            alt.Y("name:N", title="field and its value", sort=None, axis=above),
            alt.Color(
                "direction:N",
                title=None,
                scale=alt.Scale(domain=["towards fraud", "towards legitimate"], range=[VERMILION, BLUE]),
                legend=None,  # the sign says the same
            ),
            tooltip=["field:N", "words:N", "value:N", alt.Tooltip("contribution:Q", format="+.3f")],
        )
        .transform_calculate(direction="datum.contribution >= 0 ? 'towards fraud' : 'towards legitimate'")
        .properties(width=WIDTH, height=40 + 34 * shown.height)
    )
    return chart


def bars_chart(frame: pl.DataFrame, *, x: str, y: str, x_title: str, y_title: str) -> alt.Chart:
    """Plot horizontal bars of `x` by `y`, in the order of the frame."""
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_bar(color=BLUE)
        .encode(
            alt.X(f"{x}:Q", title=x_title),
            alt.Y(f"{y}:N", title=y_title, sort=None, axis=alt.Axis(labelLimit=260)),
            tooltip=[f"{y}:N", f"{x}:Q"],
        )
        .properties(width=WIDTH, height=70 + 26 * frame.height)
    )
    return chart


def svg(chart: Chart) -> bytes:
    """Render a chart as SVG on a white background."""
    import vl_convert

    return vl_convert.vegalite_to_svg(chart.properties(background="white").to_dict()).encode()


def labelled(curves: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Replace the names of models by titles.

    Args:
        curves: A table with the column `model`.
        names: Titles by name; models are put into this order, others are left out.
    """
    known = set(curves["model"])
    parts = [curves.filter(pl.col("model") == name).with_columns(model=pl.lit(title)) for name, title in names.items() if name in known]
    return pl.concat(parts) if parts else curves.clear()
