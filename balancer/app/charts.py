"""Charts: a frame in, an Altair chart out; no Streamlit here, so that they can be tested and used in a notebook.

Special: every axis has a title with its unit, colours are Okabe and Ito's (told apart with any colour vision), and what colour tells is told by
shape, order or text as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

BLUE, ORANGE, GREEN, PINK, VERMILION, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A8A8A"
COLOURS = [BLUE, ORANGE, GREEN, PINK, VERMILION, SKY, GREY]
OUTCOMES = ["caught", "missed", "false alarm", "passed"]
"""What became of a transaction: a fraud with and without an alarm, a legitimate one with and without."""
OUTCOME_COLOURS = [GREEN, VERMILION, ORANGE, GREY]
OUTCOME_SHAPES = ["triangle-up", "cross", "square", "circle"]
WIDTH, HEIGHT = 640, 320
FIRST = 1e-4
"""Where a logarithmic axis of rates begins."""

_THRESHOLD = "threshold on the calibrated score (log scale)"

Chart = alt.Chart | alt.LayerChart | alt.VConcatChart | alt.HConcatChart | alt.ConcatChart


_OWN_WIDTH: Any = alt.condition("datum.model == 'this run'", alt.value(3), alt.value(1.5))


def _axis(number_format: str) -> alt.Axis:
    axis: alt.Axis = alt.Axis(format=number_format)
    return axis


def _rule(value: float, title: str, channel: str = "x") -> alt.Chart:
    """A dashed line at ``value`` of an axis."""
    encoding: Any = alt.X("at:Q", title=title) if channel == "x" else alt.Y("at:Q", title=title)
    rule: alt.Chart = (
        alt.Chart(alt.InlineData(values=[{"at": value}])).mark_rule(strokeDash=[5, 4], color=VERMILION, size=2).encode(encoding)
    )
    return rule


def weights_chart(epochs: pl.DataFrame) -> alt.VConcatChart:
    """By epoch of one run, linked on hover: shares of the classes but the negative one, hardness and floor, validation AP and F1, false-positive rate.

    ``epochs`` is the run's part of ``epochs.parquet``: columns ``epoch, hardness, floor, average_precision, f1, fpr, share_CLASS``.
    """
    shares = [name for name in epochs.columns if name.startswith("share_")][1:]
    groups = [
        ("share of draws", "class", ".0%", {name: name.removeprefix("share_") for name in shares}),
        ("weight (no unit)", "weight", ".2f", {"hardness": "hardness exponent", "floor": "floor"}),
        ("validation score", "score", ".2f", {"average_precision": "average precision", "f1": "F1, best threshold"}),
        ("false-positive rate", "rate", ".2%", {"fpr": "at that threshold"}),
    ]
    # One selection a panel, and every panel answers to all of them.
    wanted: dict[str, Any] = {"fields": ["epoch"], "nearest": True, "on": "pointerover", "empty": False, "clear": "pointerout"}
    hovers = [alt.selection_point(name=f"epoch{number}", **wanted) for number in range(len(groups))]
    either: Any = alt.LogicalOrPredicate
    hovered = either(**{"or": [{"param": hover.name, "empty": False} for hover in hovers]})
    panels: list[Any] = []
    for hover, (title, legend, number, columns) in zip(hovers, groups, strict=True):
        known = {name: text for name, text in columns.items() if name in epochs.columns}
        long = epochs.select("epoch", *known).rename(known).unpivot(index="epoch", variable_name=legend, value_name="value")
        base = alt.Chart(long).encode(
            alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False)),
            alt.Y("value:Q", title=title, axis=_axis(number), scale=alt.Scale(zero=legend != "score")),
            alt.Color(f"{legend}:N", scale=alt.Scale(range=COLOURS), legend=alt.Legend(title=legend)),
        )
        points = base.mark_point(filled=True).encode(
            size=alt.condition(hovered, alt.value(110), alt.value(30)),
            tooltip=["epoch:Q", f"{legend}:N", alt.Tooltip("value:Q", format=".4f", title=title)],
        )
        line = alt.Chart(epochs.select("epoch")).mark_rule(color=GREY).encode(alt.X("epoch:Q", title="epoch")).transform_filter(hovered)
        panels.append((base.mark_line() + points.add_params(hover) + line).properties(height=120, width=620))
    chart: alt.VConcatChart = alt.vconcat(*panels).resolve_scale(color="independent")
    return chart


def epochs_chart(lines: pl.DataFrame, *, figure: str, title: str) -> alt.Chart:
    """``figure`` by epoch, a line per ``model``; ``lines`` has columns ``model, epoch`` and ``figure``."""
    chart: alt.Chart = (
        alt.Chart(lines)
        .mark_line(point=True)
        .encode(
            alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d")),
            alt.Y(f"{figure}:Q", title=title, scale=alt.Scale(zero=False)),
            alt.Color("model:N", sort=None, scale=alt.Scale(range=COLOURS)),
            alt.Shape("model:N", sort=None),
            tooltip=["model:N", "epoch:Q", alt.Tooltip(f"{figure}:Q", format=".4f")],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return chart


def curves_chart(curves: pl.DataFrame, *, at: Mapping[str, Any] | None = None) -> Chart:
    """Precision against recall of every model; ``curves`` has columns ``model, recall, precision``; ``at`` marks an operating point."""
    chart = (
        alt.Chart(curves.select("model", "recall", "precision"))
        .mark_line()
        .encode(
            alt.X("recall:Q", title="recall (share of frauds caught)", axis=_axis("%"), scale=alt.Scale(domain=[0, 1])),
            alt.Y("precision:Q", title="precision (share of alarms that are fraud)", axis=_axis("%"), scale=alt.Scale(domain=[0, 1])),
            alt.Color("model:N", sort=None, scale=alt.Scale(range=COLOURS)),
            alt.Order("recall:Q"),
            strokeWidth=_OWN_WIDTH,
        )
    )
    return _marked(chart, at, "recall", "precision")


def roc_chart(curves: pl.DataFrame, *, at: Mapping[str, Any] | None = None) -> Chart:
    """Recall against the false-positive rate, its axis logarithmic: what matters lies below one in a hundred. Columns ``model, recall, fpr``."""
    chart = (
        alt.Chart(curves.select("model", "recall", pl.col("fpr").clip(FIRST)))
        .mark_line()
        .encode(
            alt.X("fpr:Q", title="false-positive rate (log scale)", axis=_axis("~%"), scale=alt.Scale(type="log", domain=[FIRST, 1])),
            alt.Y("recall:Q", title="recall (share of frauds caught)", axis=_axis("%"), scale=alt.Scale(domain=[0, 1])),
            alt.Color("model:N", sort=None, scale=alt.Scale(range=COLOURS)),
            alt.Order("recall:Q"),
            strokeWidth=_OWN_WIDTH,
        )
    )
    return _marked(chart, None if at is None or at["fpr"] is None else dict(at) | {"fpr": max(at["fpr"], FIRST)}, "fpr", "recall")


def _marked(chart: alt.Chart, at: Mapping[str, Any] | None, x: str, y: str) -> Chart:
    """``chart`` with a ring at an operating point."""
    if at is None or at[x] is None or at[y] is None:
        plain: alt.Chart = chart.properties(width=WIDTH, height=HEIGHT)
        return plain
    place = alt.Chart(alt.InlineData(values=[{x: at[x], y: at[y]}]))
    ring = place.mark_point(size=180, color=VERMILION, strokeWidth=3).encode(alt.X(f"{x}:Q"), alt.Y(f"{y}:Q"))
    ringed: alt.LayerChart = (chart + ring).properties(width=WIDTH, height=HEIGHT)
    return ringed


def threshold_chart(table: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """F1, precision and recall by threshold; columns ``threshold, f1, precision, recall``."""
    named = {"f1": "F1", "precision": "precision", "recall": "recall"}
    long = table.select("threshold", *named).rename(named).unpivot(index="threshold", variable_name="figure", value_name="value")
    lines = (
        alt.Chart(long.with_columns(pl.col("threshold").clip(FIRST)))
        .mark_line()
        .encode(
            _threshold_axis(),
            alt.Y("value:Q", title="score, 0 to 1", scale=alt.Scale(domain=[0, 1])),
            alt.Color("figure:N", sort=None, scale=alt.Scale(range=COLOURS)),
        )
    )
    return _at_threshold(lines, threshold)


def rate_chart(table: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """The false-positive rate by threshold; columns ``threshold, fpr``."""
    line = alt.Chart(table.select(pl.col("threshold", "fpr").clip(FIRST))).mark_line(color=ORANGE)
    rate = alt.Y("fpr:Q", title="false-positive rate (log scale)", scale=alt.Scale(type="log", domain=[FIRST, 1]), axis=_axis("~%"))
    return _at_threshold(line.encode(_threshold_axis(), rate), threshold)


def cost_chart(table: pl.DataFrame, threshold: float) -> alt.LayerChart:
    """Cost in the table's own money by threshold; columns ``threshold, cost``."""
    line = alt.Chart(table.select(pl.col("threshold").clip(FIRST), "cost")).mark_line(color=BLUE)
    return _at_threshold(line.encode(_threshold_axis(), alt.Y("cost:Q", title="cost (money)", axis=_axis("~s"))), threshold)


def _threshold_axis() -> alt.X:
    x: alt.X = alt.X("threshold:Q", title=_THRESHOLD, scale=alt.Scale(type="log", domain=[FIRST, 1]), axis=_axis("~g"))
    return x


def _at_threshold(chart: alt.Chart, threshold: float) -> alt.LayerChart:
    """``chart`` with a line at the threshold."""
    layers = [chart, _rule(min(max(threshold, FIRST), 1.0), _THRESHOLD)]
    marked: alt.LayerChart = alt.LayerChart(layer=layers).properties(width=WIDTH, height=220)
    return marked


def alarms_chart(days: pl.DataFrame) -> alt.Chart:
    """Alarms by day, frauds and false alarms apart; columns ``day, outcome, alarms``."""
    domain = ["caught", "false alarm"]
    chart: alt.Chart = (
        alt.Chart(days)
        .mark_bar()
        .encode(
            alt.X("day:T", title="day"),
            alt.Y("alarms:Q", title="alarms a day"),
            alt.Color("outcome:N", title="alarm", scale=alt.Scale(domain=domain, range=[GREEN, ORANGE])),
            alt.Order("outcome:N"),
            tooltip=["day:T", "outcome:N", "alarms:Q"],
        )
        .properties(width=WIDTH, height=220)
    )
    return chart


def confusion_chart(figures: Mapping[str, Any], legitimate: int) -> alt.LayerChart:
    """The four outcomes as a table of two by two; ``figures`` has ``caught, missed, false_alarms``."""
    cells = [
        ("fraud", "alarm", "caught", figures["caught"], GREEN),
        ("fraud", "no alarm", "missed", figures["missed"], VERMILION),
        ("legitimate", "alarm", "false alarms", figures["false_alarms"], ORANGE),
        ("legitimate", "no alarm", "passed", legitimate - figures["false_alarms"], GREY),
    ]
    values: Any = [{"truth": t, "answer": a, "text": f"{n:,}", "name": name, "colour": c} for t, a, name, n, c in cells]
    base = alt.Chart(alt.InlineData(values=values)).encode(
        alt.X("answer:N", title="the detector says", sort=["alarm", "no alarm"], axis=alt.Axis(labelAngle=0, orient="top")),
        alt.Y("truth:N", title="it is", sort=["fraud", "legitimate"]),
    )
    boxes = base.mark_rect(stroke="white").encode(alt.Color("colour:N", scale=None))
    number = base.mark_text(fontSize=22, dy=-6, color="black").encode(text="text:N")
    name = base.mark_text(dy=18, color="black").encode(text="name:N")
    chart: alt.LayerChart = (boxes + number + name).properties(width=300, height=220)
    return chart


def calibration_chart(bins: pl.DataFrame) -> alt.LayerChart:
    """Share of frauds against the mean score of bins with equal numbers of frauds or rows; columns ``score, rate, low, high, rows``."""
    least = 1e-4
    clipped = bins.with_columns(pl.col("score", "rate", "low", "high").clip(least))
    scale = alt.Scale(type="log", domain=[least, 1])
    x = alt.X("score:Q", title="score (stated probability of fraud, log scale)", scale=scale, axis=_axis("~g"))
    base = alt.Chart(clipped).encode(x)
    y = alt.Y("rate:Q", title="share that was fraud (log scale)", scale=scale, axis=_axis("~g"))
    tips = [alt.Tooltip(f"{name}:Q", format=".5f") for name in ("score", "rate", "low", "high")]
    points = base.mark_point(filled=True, size=70, color=BLUE).encode(y, tooltip=[*tips, "rows:Q"])
    bars = base.mark_rule(color=BLUE).encode(alt.Y("low:Q", scale=scale), alt.Y2("high:Q"))
    corners: list[dict[str, float]] = [{"score": least, "rate": least}, {"score": 1.0, "rate": 1.0}]
    diagonal = alt.Chart(alt.InlineData(values=corners))
    line = diagonal.mark_line(strokeDash=[5, 4], color=GREY).encode(alt.X("score:Q", scale=scale), alt.Y("rate:Q", scale=scale))
    chart: alt.LayerChart = (line + bars + points).properties(width=WIDTH, height=HEIGHT)
    return chart


def surface_chart(surface: pl.DataFrame, path: pl.DataFrame, *, figure: str = "average_precision") -> alt.LayerChart:
    """What constant weights are expected to reach, and the run's own way through them.

    ``surface`` has columns ``share, hardness, average_precision, f1`` on a grid; ``path`` has ``epoch, share, hardness``.
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
            alt.Color(f"{figure}:Q", title=titles[figure].split(), scale=alt.Scale(scheme="cividis")),
            tooltip=[alt.Tooltip("share:Q", format=".2%"), "hardness:Q", alt.Tooltip(f"{figure}:Q", format=".3f", title=titles[figure])],
        )
    )
    way = alt.Chart(path).encode(
        alt.X("share:Q", title=x_title, scale=share),
        alt.Y("hardness:Q", title=y_title, scale=power),
        alt.Order("epoch:Q"),
        tooltip=["epoch:Q"],
    )
    walked = way.mark_line(color=VERMILION, point=alt.OverlayMarkDef(color=VERMILION, size=60))
    epochs = path["epoch"].to_list()
    ends = way.transform_filter(alt.FieldOneOfPredicate(field="epoch", oneOf=[min(epochs), max(epochs)]))
    numbers = ends.mark_text(dx=12, dy=-10, fontSize=13, fontWeight="bold", color=VERMILION).encode(text=alt.Text("epoch:Q"))
    chart: alt.LayerChart = (boxes + walked + numbers).properties(width=WIDTH, height=HEIGHT)
    return chart


def timeline_chart(rows: pl.DataFrame, *, threshold: float) -> alt.LayerChart:
    """One entity's transactions: score by time, what became of each, the chosen one ringed, those its attention used sized by attention.

    Columns ``id, time, score, amount, outcome, attention`` (0 for none), ``chosen`` and ``global_node`` (bool).
    """
    base = alt.Chart(rows).encode(
        alt.X("time:T", title="time"),
        alt.Y("score:Q", title="score (probability of fraud)", scale=alt.Scale(domain=[0, 1])),
        tooltip=["id:N", "time:T", "amount:Q", alt.Tooltip("score:Q", format=".4f"), "outcome:N", alt.Tooltip("attention:Q", format=".1%")],
    )
    points = base.mark_point(filled=True, opacity=0.9).encode(
        alt.Color("outcome:N", scale=alt.Scale(domain=OUTCOMES, range=OUTCOME_COLOURS)),
        alt.Shape("outcome:N", scale=alt.Scale(domain=OUTCOMES, range=OUTCOME_SHAPES)),
        alt.Size(
            "attention:Q",
            title="attention",
            scale=alt.Scale(range=[45, 500], domain=[0, 0.5], clamp=True),
            legend=alt.Legend(format=".0%", symbolFillColor=GREY, symbolStrokeColor=GREY),
        ),
    )
    ring = base.transform_filter("datum.chosen").mark_point(size=520, strokeWidth=3, color=BLUE, shape="circle")
    nodes = base.transform_filter("datum.global_node").mark_point(size=300, strokeWidth=2, color=PINK, shape="diamond")
    rule = _rule(threshold, "score (probability of fraud)", "y")
    chart: alt.LayerChart = (points + nodes + ring + rule).properties(width=WIDTH, height=HEIGHT)
    return chart


def contributions_chart(fields: pl.DataFrame, *, most: int = 15) -> alt.Chart:
    """What each field did to the score; columns ``field, value, contribution`` in log-odds, largest first."""
    shown = fields.head(most).with_columns(name=pl.col("field") + " = " + pl.col("value"))
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_bar()
        .encode(
            alt.X("contribution:Q", title="change in log-odds (right: fraud)"),
            alt.Y("name:N", title="field and its value", sort=None, axis=alt.Axis(labelLimit=220)),
            alt.Color(
                "direction:N",
                title=None,
                scale=alt.Scale(domain=["towards fraud", "towards legitimate"], range=[VERMILION, BLUE]),
                legend=None,  # the axis says it too
            ),
            tooltip=["field:N", "value:N", alt.Tooltip("contribution:Q", format="+.3f")],
        )
        .transform_calculate(direction="datum.contribution >= 0 ? 'towards fraud' : 'towards legitimate'")
        .properties(width=WIDTH, height=90 + 24 * shown.height)
    )
    return chart


def bars_chart(frame: pl.DataFrame, *, x: str, y: str, x_title: str, y_title: str) -> alt.Chart:
    """Horizontal bars of ``x`` by ``y``, in the order of the frame."""
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
    """The chart as a file that any browser or office program shows, on white."""
    import vl_convert

    return vl_convert.vegalite_to_svg(chart.properties(background="white").to_dict()).encode()


def labelled(curves: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Curves with the names people read, the models in the order of ``names``."""
    known = set(curves["model"])
    parts = [curves.filter(pl.col("model") == name).with_columns(model=pl.lit(title)) for name, title in names.items() if name in known]
    return pl.concat(parts) if parts else curves.clear()
