"""Charts: a frame in, an Altair chart out; no Streamlit here, so that they can be tested and used in a notebook."""

from __future__ import annotations

import altair as alt
import polars as pl

# Okabe and Ito's colours: told apart with any colour vision.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"]


def weights_chart(history: pl.DataFrame) -> alt.VConcatChart:
    """Of the run, by epoch: the share of each class but the negative one, the hardness, and validation average precision and F1.

    ``history`` is the run's ``history.parquet``: columns ``model, epoch, hardness, average_precision, f1, share_CLASS``.
    """
    own = history.filter(pl.col("model") == "run")
    shares = [name for name in own.columns if name.startswith("share_")][1:]
    long = own.select("epoch", *shares).unpivot(index="epoch", variable_name="class", value_name="share")
    long = long.with_columns(pl.col("class").str.strip_prefix("share_"))
    epoch = alt.X("epoch:O", title="epoch", axis=alt.Axis(labelAngle=0))
    colour = alt.Scale(range=COLOURS)
    share = alt.Chart(long).mark_line(point=True)
    share = share.encode(epoch, alt.Y("share:Q", title="share of draws", axis=alt.Axis(format="%")), alt.Color("class:N", scale=colour))
    hardness = alt.Chart(own).mark_line(point=True, color="#555555").encode(epoch, alt.Y("hardness:Q", title="hardness exponent"))
    figures = own.select("epoch", pl.col("average_precision").alias("average precision"), pl.col("f1").alias("F1, best threshold"))
    figures = figures.unpivot(index="epoch", variable_name="figure", value_name="value")
    validation = alt.Chart(figures).mark_line(point=True)
    validation = validation.encode(
        epoch,
        alt.Y("value:Q", title="on the reward half of validation", scale=alt.Scale(zero=False)),
        alt.Color("figure:N", scale=colour),
    )
    charts = [chart.properties(height=160, width=700) for chart in (share, hardness, validation)]
    stacked: alt.VConcatChart = alt.vconcat(*charts).resolve_scale(color="independent")
    return stacked


def curves_chart(curves: pl.DataFrame) -> alt.Chart:
    """Precision against recall of every model; ``curves`` has columns ``model, recall, precision``."""
    chart = alt.Chart(curves.select("model", "recall", "precision").sort("model", "recall")).mark_line()
    curves_of_all: alt.Chart = chart.encode(
        alt.X("recall:Q", title="recall (share of frauds caught)", axis=alt.Axis(format="%")),
        alt.Y("precision:Q", title="precision (share of alarms that are fraud)", axis=alt.Axis(format="%")),
        alt.Color("model:N", scale=alt.Scale(range=COLOURS)),
    ).properties(height=360, width=700)
    return curves_of_all
