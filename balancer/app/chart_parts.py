"""Colours, legends, axes and tooltips that all charts share.

What is special: the colours have a contrast of at least 3 to 1 with the light and with the dark background,
and can be distinguished with any colour vision (they are those of Okabe and Ito, two of them darker, and some
more); every colour is accompanied by a shape, a dash, an order or a text. A model has the same colour on all
pages, and a run or a player never has that of a baseline.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from balancer.evaluation.report_content import PARTS, THIS_RUN, TITLES

BLUE, ORANGE, GREEN, PINK, VERMILION, SKY, GREY = "#0072B2", "#C48500", "#009E73", "#CC79A7", "#CF4413", "#2E96CC", "#8A8A8A"
BROWN, PURPLE, TEAL = "#8C6D31", "#7B61B5", "#1B8A8F"
COLOURS = [BLUE, ORANGE, GREEN, PINK, VERMILION, SKY, GREY]
YOU, POLICY = "you", "the policy of the run"
"""Players of the game on the page Weights, besides the baselines."""
MODEL_COLOURS = {
    THIS_RUN: BLUE,
    TITLES["lightgbm"]: ORANGE,
    TITLES["none"]: GREY,
    TITLES["one_to_one"]: VERMILION,
    TITLES["class_weight"]: BROWN,
    TITLES["full"]: TEAL,
    TITLES["network"]: PINK,
    TITLES["stage2"]: GREEN,
    TITLES["stage1"]: SKY,
    POLICY: BLUE,
    YOU: PURPLE,
}
"""Colour of each model of a report on all pages. Parts of the detector are dashed where they are lines."""
RUN_COLOURS = [PURPLE, "#B5387F", "#6F7F00", "#A0522D", "#4F6D8F", "#C2517A", "#3F8F4F", "#8E5FA8"]
"""Colours of runs besides the chosen one, which is blue; none is that of a baseline."""
WIDTH, HEIGHT = 640, 380
"""Pixels of a chart as an SVG file; on a page, a chart is as wide as its column."""
FIRST = 1e-4
"""Smallest value on a logarithmic axis of rates."""
WIDE = 760
"""Pixels from which the entries of a legend lie in one row."""
LEGEND_ROW = 30
"""Pixels of a row of a legend on a page."""
MOST_POINTS = 90
"""Most points of a line that answer to the pointer."""
DAYS = alt.Axis(format="%-d %b", labelAngle=0, labelOverlap="greedy", tickCount=6)
"""Axis of days: few labels that lie side by side."""

Chart = alt.Chart | alt.LayerChart | alt.VConcatChart | alt.HConcatChart | alt.ConcatChart

_LINE_DASH: Any = alt.condition(
    alt.FieldOneOfPredicate(field="model", oneOf=[TITLES[name] for name in PARTS]), alt.value([5, 3]), alt.value([1, 0])
)
_LINE_WIDTH: Any = alt.condition(f"datum.model == '{THIS_RUN}'", alt.value(3), alt.value(1.5))


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each model, run or player.

    Models and players have that of `MODEL_COLOURS`. Among other names, which are runs, the first has that of
    this run, and the others have colours that depend on their names alone, as long as no two are the same.

    Args:
        names: Names in the order of the chart; the chosen run comes first.
    """
    every = list(dict.fromkeys(names))
    found = {name: MODEL_COLOURS[name] for name in every if name in MODEL_COLOURS}
    runs = [name for name in every if name not in MODEL_COLOURS]
    if runs and BLUE not in found.values():
        found[runs.pop(0)] = BLUE
    for name in sorted(runs):
        first = zlib.crc32(name.encode())
        turned = [RUN_COLOURS[(first + step) % len(RUN_COLOURS)] for step in range(len(RUN_COLOURS))]
        found[name] = next((colour for colour in turned if colour not in found.values()), turned[0])
    return {name: found[name] for name in every}


def model_colour(models: pl.Series | Sequence[str], *, columns: int = 2) -> alt.Color:
    """Encode the field `model` by the colours of `colours_of`, with the legend below."""
    colours = colours_of(str(name) for name in models)
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    colour: alt.Color = alt.Color("model:N", sort=None, scale=scale, legend=legend(columns))
    return colour


def legend(columns: int = 2, title: str | None = None) -> alt.Legend:
    """Place the legend below the chart, where it leaves the width to the plot."""
    below: alt.Legend = alt.Legend(orient="bottom", columns=columns, title=title, labelLimit=240)
    return below


def beside(columns: int) -> alt.Legend:
    """Place the legend below the chart: in so many columns where it is narrow, in one row where it is wide.

    For stacked charts, whose height does not include their legends.
    """
    below = legend(columns)
    below.columns = alt.ExprRef(f"(containerSize()[0] || {WIDTH}) < {WIDE} ? {columns} : 0")
    return below


def height(entries: int, *, plot: int = HEIGHT, columns: int = 2) -> int:
    """Return the height of a chart that leaves enough of it to the plot, with a legend of so many entries.

    On a page the height of a chart includes its legend.
    """
    return plot + LEGEND_ROW * -(-entries // columns)


def axis(number_format: str, **options: Any) -> alt.Axis:
    """Format the numbers of an axis; labels that would touch are left out."""
    formatted: alt.Axis = alt.Axis(format=number_format, labelOverlap="greedy", **options)
    return formatted


def tip(field: str, title: str, number_format: str | None = None) -> alt.Tooltip:
    """Show a field in the tooltip by its title, which has the unit."""
    kind = field if ":" in field else f"{field}:Q"
    shown: alt.Tooltip = alt.Tooltip(kind, title=title) if number_format is None else alt.Tooltip(kind, title=title, format=number_format)
    return shown


def rule(value: float, title: str, channel: str = "x") -> alt.Chart:
    """Draw a dashed line at `value` of an axis."""
    encoding: Any = alt.X("at:Q", title=title) if channel == "x" else alt.Y("at:Q", title=title)
    dashed: alt.Chart = (
        alt.Chart(alt.InlineData(values=[{"at": value}]))
        .mark_rule(strokeDash=[5, 4], color=PURPLE, size=2)
        .encode(encoding, tooltip=[tip("at", title, ".4~g")])
    )
    return dashed


def hovered(
    frame: pl.DataFrame,
    axes: Sequence[Any],
    tips: Sequence[Any],
    *shared: Any,
    by: str | None = None,
    style: Mapping[str, Any] | None = None,
    name: str = "nearest",
    **line: Any,
) -> alt.LayerChart:
    """Draw lines with tooltips: the point nearest to the pointer is drawn and described.

    A line itself has one tooltip for all its points.

    Args:
        frame: The data.
        axes: Both axes.
        tips: What the tooltip shows.
        shared: Colour and what else the lines need.
        by: Column that separates the lines, so that each keeps enough points.
        style: Encodings that depend on a condition, by channel.
        name: Name of the selection, unique in a chart.
        line: Properties of the lines.
    """
    parts = frame.partition_by(by, maintain_order=True) if by and frame.height else [frame]
    fewer = pl.concat([part.gather_every(max(1, -(-part.height // MOST_POINTS))) for part in parts])
    near = alt.selection_point(name=name, nearest=True, on="pointerover", clear="pointerout", empty=False)
    points = alt.Chart(fewer, name=f"points-{name}").mark_point(
        filled=True, size=90, **({"color": line["color"]} if "color" in line else {})
    )
    points = points.encode(*axes, opacity=alt.condition(near, alt.value(1), alt.value(0)), tooltip=list(tips)).add_params(near)
    layered: alt.LayerChart = alt.layer(alt.Chart(frame).mark_line(**line).encode(*axes), points).encode(*shared, **(style or {}))
    return layered


def lines_of_models(curves: pl.DataFrame, axes: Sequence[Any], tips: Sequence[Any]) -> alt.LayerChart:
    """Draw a line per model in the order of recall, thicker for this run; columns `model, recall, ...`."""
    style = {"strokeWidth": _LINE_WIDTH, "strokeDash": _LINE_DASH}
    return hovered(curves, axes, tips, model_colour(curves["model"]), alt.Order("recall:Q"), by="model", style=style)


def thinned(lines: pl.DataFrame, most: int) -> pl.DataFrame:
    """Keep at most about so many points of the line of each model, with its ends.

    Args:
        lines: A table with the column `model`.
        most: Points of a line.
    """
    place, count = pl.int_range(pl.len()).over("model"), pl.len().over("model")
    step = (count / most).ceil().cast(pl.Int64)
    return lines.filter((place % step == 0) | (place == count - 1))


def better_ink(colour: str) -> str:
    """Return black or white, whichever is easier to read on a colour."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    luminance = sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"


def svg(chart: Chart) -> bytes:
    """Render a chart as SVG on a white background."""
    import vl_convert

    return vl_convert.vegalite_to_svg(_sized(chart.properties(background="white").to_dict())).encode()


def _sized(spec: dict[str, Any]) -> dict[str, Any]:
    """Give the width of an SVG file to the views of a chart, which have none of their own."""
    if "vconcat" in spec:
        return spec | {"vconcat": [_sized(part) for part in spec["vconcat"]]}
    return spec if {"hconcat", "concat", "width"} & set(spec) else spec | {"width": WIDTH}


def labelled(curves: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Replace the names of models by titles.

    Args:
        curves: A table with the column `model`.
        names: Titles by name; models are put into this order, others are left out.
    """
    known = set(curves["model"])
    parts = [curves.filter(pl.col("model") == name).with_columns(model=pl.lit(title)) for name, title in names.items() if name in known]
    return pl.concat(parts) if parts else curves.clear()
