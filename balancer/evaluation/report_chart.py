"""The precision-recall curves of a report as a picture, for the one-page PDF.

What is special: the colours of the models are those of the app, and the lines differ in dashes too, so that
they can be distinguished in black and white.
"""

from __future__ import annotations

import polars as pl

from balancer.evaluation.report_content import PARTS, THIS_RUN, TITLES

COLOURS = {
    THIS_RUN: "#0072B2",
    TITLES["lightgbm"]: "#C48500",
    TITLES["none"]: "#8A8A8A",
    TITLES["one_to_one"]: "#CF4413",
    TITLES["class_weight"]: "#8C6D31",
}
"""Colour by name of the model for readers, as in the app."""
DASHES = ([1, 0], [7, 3], [2, 2], [7, 2, 2, 2], [4, 2])
SCALE = 3.0
"""Pixels of the picture per point."""


def curves_png(curves: pl.DataFrame, *, width: int, height: int) -> bytes | None:
    """Draw precision against recall of the run and its baselines; parts of the detector are left out.

    Args:
        curves: Columns `model, recall, precision`, as in `curves.parquet`.
        width: Width of the plot in points; axes come on top.
        height: Height of the plot in points.

    Returns:
        A PNG; None where there is no curve, as without frauds.
    """
    import altair as alt
    import vl_convert

    titles = {"run": THIS_RUN} | {name: title for name, title in TITLES.items() if name not in PARTS}
    known = curves.select(pl.col("model").cast(pl.String), "recall", "precision").filter(pl.col("model").is_in(list(titles)))
    lines = known.with_columns(pl.col("model").replace_strict(titles, return_dtype=pl.String))
    if not lines.height:
        return None
    found = set(lines["model"])
    names = [name for name in COLOURS if name in found]
    colours, dashes = [COLOURS[name] for name in names], [*DASHES[: len(names)]]
    axis = alt.Axis(format="%", tickCount=5, grid=True)
    whole = alt.Scale(domain=[0, 1])
    chart = (
        alt.Chart(lines)
        .mark_line(clip=True)
        .encode(
            alt.X("recall:Q", title="recall (share of frauds caught)", axis=axis, scale=whole),
            alt.Y("precision:Q", title="precision (share of alarms that are fraud)", axis=axis, scale=whole),
            alt.Color(
                "model:N", sort=names, scale=alt.Scale(domain=names, range=colours), legend=alt.Legend(orient="top", title=None, columns=3)
            ),
            alt.StrokeDash("model:N", sort=names, scale=alt.Scale(domain=names, range=dashes)),
            alt.Order("recall:Q"),
            strokeWidth=alt.condition(f"datum.model == '{THIS_RUN}'", alt.value(2.5), alt.value(1.4)),
        )
        .properties(width=width, height=height, background="white")
        .configure_axis(labelFontSize=10, titleFontSize=10, titleFontWeight="normal")
        .configure_legend(labelFontSize=10, symbolSize=220, labelLimit=0)
        .configure_view(stroke="#CCCCCC")
    )
    return vl_convert.vegalite_to_png(chart.to_dict(), scale=SCALE)
