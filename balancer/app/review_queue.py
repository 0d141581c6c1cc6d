"""The queue of alarms and the timeline of a card on the page Transactions, without Streamlit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from balancer.app.aggregates import attention_of, outcome
from balancer.app.chart_parts import BLUE, GREEN, GREY, HEIGHT, ORANGE, PURPLE, SKY, VERMILION
from balancer.data.dataset import Dataset
from balancer.names import counted

RISK = "money at risk"
KINDS = ["alarm on fraud", "alarm on a legitimate one", "alarm, label unknown", "fraud without alarm", "no alarm", "fraud before the test",
         "before the test"]  # fmt: skip
"""What a transaction of a timeline is."""
_COLOURS = [GREEN, ORANGE, PURPLE, VERMILION, GREY, VERMILION, SKY]
_SHAPES = ["triangle-up", "square", "diamond", "cross", "circle", "triangle-down", "circle"]


def queue(rows: pl.DataFrame, threshold: float, negative: str, *, amounts: bool, reviewed: Mapping[Any, str]) -> pl.LazyFrame:
    """Add what the list shows to the test rows.

    Args:
        rows: The content of `predictions.parquet`.
        threshold: Lowest score that raises an alarm.
        negative: Name of the legitimate class.
        amounts: Whether the table has amounts.
        reviewed: Label that an investigator gave, by id.

    Returns:
        The rows with `alarm`, `outcome`, `reviewed` (label or null), and `money at risk`: the score times the
        amount, or without amounts the score.
    """
    given = {str(name): label for name, label in reviewed.items()}
    key = pl.col("id").cast(pl.String)
    said = key.replace_strict(given, default=None, return_dtype=pl.String) if given else pl.lit(None, dtype=pl.String)
    return rows.lazy().with_columns(
        (pl.col("score") >= threshold).alias("alarm"),
        outcome(threshold, negative),
        said.alias("reviewed"),
        (pl.col("score") * pl.col("amount").clip(0) if amounts else pl.col("score")).alias(RISK),
    )


def label_words(classes: Sequence[str]) -> dict[str, str]:
    """Return what each class is called: legitimate, fraud, or with several classes of fraud also its name."""
    legitimate, *frauds = classes
    return {legitimate: "legitimate"} | {name: "fraud" if len(frauds) == 1 else f"fraud: {name}" for name in frauds}


def review_sentence(listed: pl.LazyFrame, negative: str) -> str:
    """Say how many alarms were reviewed, and with what result.

    Args:
        listed: The result of `queue`.
        negative: Name of the legitimate class.
    """
    done = pl.col("reviewed").is_not_null() & pl.col("alarm")
    alarms, reviewed, fraud = (
        listed.select(pl.col("alarm").sum(), done.sum().alias("done"), (done & (pl.col("reviewed") != negative)).sum().alias("fraud"))
        .collect()
        .row(0)
    )
    if not reviewed:
        return f"{counted(alarms, 'alarm')}, none reviewed yet."
    return f"{reviewed:,} of {counted(alarms, 'alarm')} reviewed: {fraud:,} confirmed as fraud, {reviewed - fraud:,} dismissed."


def earlier_of_table(data: Dataset, place: int, rows: pl.DataFrame, threshold: float, *, most: int) -> tuple[pl.DataFrame, int]:
    """Tabulate a transaction and the earlier ones of its card, from the whole table.

    Args:
        data: The table of the run.
        place: Row of the transaction in its store.
        rows: The test rows, which have scores.
        threshold: Lowest score that raises an alarm.
        most: Most transactions.

    Returns:
        Columns `id, time, amount, label, score, kind, chosen`, latest first, and how many earlier ones are
        left out. Rows before the test have no score.
    """
    store, classes = data.store, data.schema.classes
    begin = int(store.start[place])
    at = np.arange(place, max(begin, place - most + 1) - 1, -1)
    labels = store.label[at].astype(np.int64)
    frame = pl.DataFrame(
        {
            "id": data.ids.gather(at),
            "time": pl.Series(store.time[at] * 1e6).cast(pl.Int64).cast(pl.Datetime("us")),
            "amount": store.amount[at],
            "label": [classes[label] if label >= 0 else None for label in labels.tolist()],
        }
    )
    wanted = rows.lazy().filter(pl.col("id").is_in(frame["id"].to_list())).select("id", "score").collect()
    joined = frame.join(wanted, on="id", how="left", maintain_order="left")
    return _with_kind(joined, threshold, classes[0], data.ids[place]), place - begin - (len(at) - 1)


def earlier_of_test(
    rows: pl.DataFrame, chosen: Mapping[str, Any], threshold: float, negative: str, *, most: int
) -> tuple[pl.DataFrame, int]:
    """As `earlier_of_table`, from the test rows alone."""
    same = rows.lazy().filter(pl.col("entity") == chosen["entity"], pl.col("time") <= chosen["time"]).sort("time", descending=True)
    found = same.select("id", "time", "amount", "label", "score").collect()
    return _with_kind(found.head(most), threshold, negative, chosen["id"]), max(0, found.height - most)


def _with_kind(frame: pl.DataFrame, threshold: float, negative: str, chosen: Any) -> pl.DataFrame:
    fraud, alarm, scored = pl.col("label") != negative, pl.col("score") >= threshold, pl.col("score").is_not_null()
    unknown = pl.col("label").is_null()
    kind = (
        pl.when(scored & alarm & unknown).then(pl.lit(KINDS[2]))
        .when(scored & alarm & fraud).then(pl.lit(KINDS[0]))
        .when(scored & alarm).then(pl.lit(KINDS[1]))
        .when(scored & fraud).then(pl.lit(KINDS[3]))
        .when(scored).then(pl.lit(KINDS[4]))
        .when(fraud).then(pl.lit(KINDS[5]))
        .otherwise(pl.lit(KINDS[6]))
    )  # fmt: skip
    return frame.with_columns(kind=kind, chosen=pl.col("id") == chosen)


def card_chart(frame: pl.DataFrame, *, amounts: bool) -> alt.LayerChart:
    """Plot the transactions of a card by time and amount, or by score without amounts; alarms are marked.

    Args:
        frame: The result of `earlier_of_table`, with `label` in words.
        amounts: Whether the table has amounts.
    """
    kinds = [kind for kind in KINDS if kind in set(frame["kind"])]
    places = [KINDS.index(kind) for kind in kinds]
    height = alt.Y("amount:Q", title="amount") if amounts else alt.Y("score:Q", title="score (probability of fraud)")
    tooltip = [
        alt.Tooltip("id:N"),
        alt.Tooltip("time:T", format="%Y-%m-%d %H:%M"),
        *([alt.Tooltip("amount:Q", format=",.2f")] if amounts else []),
        alt.Tooltip("score:Q", format=".4f"),
        alt.Tooltip("label:N"),
        alt.Tooltip("kind:N", title="what it is"),
    ]
    base = alt.Chart(frame).encode(
        alt.X("time:T", title="time", axis=alt.Axis(labelOverlap="greedy", tickCount=5)), height, tooltip=tooltip
    )
    points = base.mark_point(filled=True, opacity=0.9, size=90, strokeWidth=2).encode(
        alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds, range=[_COLOURS[place] for place in places]),
                  legend=alt.Legend(orient="bottom", columns=2, labelLimit=240)),
        alt.Shape("kind:N", title=None, scale=alt.Scale(domain=kinds, range=[_SHAPES[place] for place in places])),
    )  # fmt: skip
    ring = base.transform_filter("datum.chosen").mark_point(size=480, strokeWidth=3, color=BLUE, shape="circle", filled=False)
    chart: alt.LayerChart = (points + ring).properties(height=HEIGHT)
    return chart


def attention_frame(frame: pl.DataFrame, chosen: Mapping[str, Any]) -> pl.DataFrame:
    """Add the column `attention` where the network used earlier transactions, and mark global nodes.

    Args:
        frame: The transactions of a card, with `id`.
        chosen: A row of `predictions.parquet`.
    """
    used, nodes = attention_of(dict(chosen)), set(chosen.get("global_nodes") or [])
    if not used:
        return frame
    names = frame["id"].to_list()
    frame = frame.with_columns(attention=pl.Series([used.get(name) for name in names], dtype=pl.Float64))
    return frame.with_columns(pl.Series("global node", [name in nodes for name in names])) if nodes else frame
