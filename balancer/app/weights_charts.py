"""Charts of the sampling weights: weights and validation by epoch, and the map of constant weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from balancer.app.chart_parts import COLOURS, GREY, axis, beside, height, legend, model_colour, tip

WEIGHTS = {
    "hardness": "hardness exponent",
    "floor": "floor",
    "class_importance": "importance of classes",
    "hardness_importance": "importance within classes",
}
"""Columns of sampling weights besides the shares, and their titles."""
DRAWN = {"drawn": "drawn", "counted": "counted in the loss", "table": "in the training rows"}
"""Columns of `balancer.app.weights_summary.drawn_and_counted`, and their titles."""
RUN_WAY = "this run, by epoch"
_POINT_SHAPES = ["diamond", "triangle-up", "square", "cross"]


def weights_chart(epochs: pl.DataFrame, drawn: pl.DataFrame | None = None) -> alt.VConcatChart:
    """Plot the weights and validation metrics of a run by epoch, in linked panels.

    The panels show what was drawn and what counted, the shares of several fraud classes, the other weights,
    average precision and F1, and the false-positive rate.

    Args:
        epochs: Rows of one model in `epochs.parquet`: columns `epoch, average_precision, f1, fpr`,
            `share_CLASS` for each class, and those of the other weights (:data:`WEIGHTS`) that there are;
            version 0.1 wrote no importance.
        drawn: Columns `epoch` and those of :data:`DRAWN`; None leaves the panel out.
    """
    shares = [name for name in epochs.columns if name.startswith("share_")][1:]
    groups: list[tuple[str, str, str, Mapping[str, str], pl.DataFrame]] = []
    if drawn is not None:
        groups.append(("share of fraud", "rows", ".1%", DRAWN, drawn))
    if drawn is None or len(shares) > 1:
        groups.append(("share of draws", "class", ".0%", {name: name.removeprefix("share_") for name in shares}, epochs))
    groups += [
        ("weight (no unit)", "weight", ".2f", WEIGHTS, epochs),
        ("validation (0 to 1)", "metric", ".2f", {"average_precision": "average precision", "f1": "F1, best threshold"}, epochs),
        ("false-positive rate", "rate", ".2%", {"fpr": "at best threshold"}, epochs),
    ]
    # One selection per panel; every panel reacts to all of them.
    options: dict[str, Any] = {"fields": ["epoch"], "nearest": True, "on": "pointerover", "empty": False, "clear": "pointerout"}
    hovers = [alt.selection_point(name=f"epoch{number}", **options) for number in range(len(groups))]
    either: Any = alt.LogicalOrPredicate
    hovered = either(**{"or": [{"param": hover.name, "empty": False} for hover in hovers]})
    panels: list[Any] = []
    for place, (hover, (title, what, number, columns, frame)) in enumerate(zip(hovers, groups, strict=True)):
        known = {name: text for name, text in columns.items() if name in frame.columns}
        long = frame.select("epoch", *known).rename(known).unpivot(index="epoch", variable_name=what, value_name="value")
        base = alt.Chart(long).encode(
            alt.X("epoch:Q", title="epoch", axis=axis("d", tickMinStep=1), scale=alt.Scale(nice=False)),
            alt.Y("value:Q", title=title, axis=axis(number, tickCount=5), scale=alt.Scale(zero=what != "metric")),
            alt.Color(f"{what}:N", sort=None, scale=alt.Scale(range=COLOURS), legend=beside(1)),
            alt.Shape(f"{what}:N", sort=None, legend=beside(1)),
        )
        points = base.mark_point(filled=True).encode(
            size=alt.condition(hovered, alt.value(110), alt.value(40)),
            tooltip=[
                tip("epoch", "epoch"),
                tip(f"{what}:N", what),
                tip("value", title, number.replace(".", ".2") if "%" in number else ".4f"),
            ],
        )
        line = (
            alt.Chart(epochs.select("epoch"))
            .mark_rule(color=GREY, aria=False)
            .encode(alt.X("epoch:Q", title="epoch"))
            .transform_filter(hovered)
        )
        panels.append((base.mark_line() + points.properties(name=f"panel{place}").add_params(hover) + line).properties(height=120))
    chart: alt.VConcatChart = alt.vconcat(*panels).resolve_scale(color="independent", shape="independent")
    return chart


def epochs_chart(lines: pl.DataFrame, *, metric: str, title: str) -> alt.LayerChart:
    """Plot a metric by epoch, one line per model.

    Args:
        lines: Columns `model, epoch` and the metric.
        metric: Name of the column.
        title: Title of the axis.
    """
    axes = [
        alt.X("epoch:Q", title="epoch", axis=axis("d", tickMinStep=1)),
        alt.Y(f"{metric}:Q", title=title, scale=alt.Scale(zero=False)),
    ]
    points = alt.Chart(lines).mark_point(filled=True, size=55, opacity=1)
    points = points.encode(
        *axes,
        alt.Shape("model:N", sort=None, legend=legend()),
        tooltip=[tip("model:N", "model"), tip("epoch", "epoch"), tip(metric, title, ".4f")],
    )
    line = alt.Chart(lines).mark_line().encode(*axes)
    chart: alt.LayerChart = alt.layer(line, points).encode(model_colour(lines["model"]))
    return chart.properties(height=height(lines["model"].n_unique()))


def surface_chart(
    surface: pl.DataFrame, path: pl.DataFrame, *, metric: str = "average_precision", marks: Mapping[str, tuple[float, float]] | None = None
) -> alt.LayerChart:
    """Plot the expected metric of constant weights as a heat map, with the way of the run and named points.

    Args:
        surface: Columns `share, hardness, average_precision, f1` on a grid.
        path: Columns `epoch, share, hardness` of the run.
        metric: The metric to show, `average_precision` or `f1`.
        marks: Share and hardness of other weights by name, such as the best constant.
    """
    title = {"average_precision": "expected average precision (0 to 1)", "f1": "expected F1 (0 to 1)"}[metric]
    marks = marks or {}
    shares, powers = sorted(surface["share"].unique()), sorted(surface["hardness"].unique())
    step = (shares[-1] / shares[0]) ** (0.5 / max(1, len(shares) - 1)) if shares[0] > 0 else 1.0
    half = (powers[-1] - powers[0]) / max(1, len(powers) - 1) / 2 or 0.25
    cells = surface.with_columns(
        left=pl.col("share") / step, right=pl.col("share") * step, low=pl.col("hardness") - half, high=pl.col("hardness") + half
    )
    every_share = [*path["share"], *(share for share, _ in marks.values())]
    every_power = [*path["hardness"], *(power for _, power in marks.values())]
    share = alt.Scale(type="log", nice=False, domain=[min(shares[0] / step, *every_share, 1.0), max(shares[-1] * step, *every_share)])
    power = alt.Scale(nice=False, domain=[min(powers[0] - half, *every_power), max(powers[-1] + half, *every_power)])
    x_title, y_title = "share of draws that are fraud (log scale)", "hardness exponent (no unit)"
    x = alt.X("share:Q", title=x_title, scale=share, axis=axis("~%"))
    y = alt.Y("hardness:Q", title=y_title, scale=power)
    where = [tip("share", "share of draws that are fraud", ".2%"), tip("hardness", "hardness exponent", ".2f")]
    boxes = (
        alt.Chart(cells)
        .mark_rect()
        .encode(
            alt.X("left:Q", title=x_title, scale=share, axis=axis("~%")),
            alt.X2("right:Q"),
            alt.Y("low:Q", title=y_title, scale=power),
            alt.Y2("high:Q"),
            # Above the map: below it, beside the names of the marks, it has no place on a narrow screen.
            alt.Color(
                f"{metric}:Q",
                scale=alt.Scale(scheme="cividis"),
                legend=alt.Legend(orient="top", title=title, titleLimit=300, gradientLength=220),
            ),
            tooltip=[*where, tip(metric, title, ".3f")],
        )
    )
    names = [RUN_WAY, *marks]
    shape = alt.Shape("what:N", sort=None, legend=legend(1), scale=alt.Scale(domain=names, range=["circle", *_POINT_SHAPES[: len(marks)]]))
    way = alt.Chart(path).encode(x, y, alt.Order("epoch:Q"))
    # White with a dark edge: no colour of a model, and visible on every colour of the map.
    edge, line = way.mark_line(color="black", strokeWidth=5), way.mark_line(color="white", strokeWidth=2.5)
    first, last = path["epoch"].min(), path["epoch"].max()
    spots = pl.DataFrame(
        [
            {"what": RUN_WAY, "epoch": str(epoch), "share": at, "hardness": how}
            for epoch, at, how in path.select("epoch", "share", "hardness").rows()
        ]
        + [{"what": name, "epoch": "–", "share": at, "hardness": how} for name, (at, how) in marks.items()],
        schema={"what": pl.String, "epoch": pl.String, "share": pl.Float64, "hardness": pl.Float64},
    )
    points = (
        alt.Chart(spots)
        .mark_point(size=130, filled=True, opacity=1, fill="white", stroke="black", strokeWidth=1.5)
        .encode(x, y, shape, tooltip=[tip("what:N", "weights"), tip("epoch:N", "epoch"), *where])
    )
    ends = pl.DataFrame({"epoch": [first, last]}).unique(maintain_order=True).join(path, on="epoch", how="inner")
    ends = ends.unique(["share", "hardness"], keep="last", maintain_order=True)
    numbers = alt.Chart(ends.with_columns(text="epoch " + pl.col("epoch").cast(pl.String))).encode(x, y, text="text:N")
    style: dict[str, Any] = {"dy": -15, "fontSize": 13, "fontWeight": "bold"}
    halo = numbers.mark_text(color="black", stroke="black", strokeWidth=4, **style)
    inside = numbers.mark_text(color="white", **style)
    chart: alt.LayerChart = alt.LayerChart(layer=[boxes, edge, line, points, halo, inside])
    return chart.properties(height=height(len(names), columns=1) + 60)  # the scale of colours takes the rest
