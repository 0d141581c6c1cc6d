"""The page Transactions: list and filter them; the timeline of an entity, and an explanation of a score."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import polars as pl
import streamlit as st

from balancer.app.aggregates import attention_of, has_times, outcome
from balancer.app.browsing import Run
from balancer.app.charts import OUTCOMES, contributions_chart, timeline_chart
from balancer.app.loading import (
    chosen_run,
    dataset,
    has_amounts,
    negative_class,
    percent,
    show_chart,
    show_table,
    table,
    threshold_of,
    trained,
)
from balancer.errors import InputError
from balancer.names import counted

MOST = 500
"""Most transactions in the list."""
ALL = "all"
SHOWN_EARLIER = 16
"""Most transactions of the history that are listed for boosted trees, which read all of it."""
HIDDEN = ["attended", "attended_mass", "global_nodes", "decision"]


def show() -> None:
    """Show the page."""
    run = chosen_run()
    st.title("Transactions")
    threshold, negative = threshold_of(run), negative_class(run)
    rows = table(run, "predictions.parquet")
    found = _filtered(run, rows, threshold, negative)
    listed = found.head(MOST).collect()
    count = found.select(pl.len()).collect().item()
    st.caption(f"{count:,} of {counted(rows.height, 'test transaction')}" + (f", the first {MOST} are listed" if count > MOST else ""))
    if not listed.height:
        st.info("No transaction matches these filters: widen them.")
        return
    columns = {
        "score": st.column_config.ProgressColumn(format="%.4f", min_value=0, max_value=1),
        "amount": st.column_config.NumberColumn(format="localized"),
        "time": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm:ss"),
    }
    left_out = [name for name in (*HIDDEN, *([] if has_times(rows) else ["time"])) if name in listed.columns]
    picked = show_table(listed.drop(left_out), f"{run.name}-transactions", columns=columns, height=320, pick=True)
    wanted = st.text_input("Explain a transaction", key="transaction", placeholder="id, or select a row above").strip()
    chosen = listed.row(picked or 0, named=True)
    if wanted:
        match = rows.filter(pl.col("id").cast(pl.String) == wanted)
        if not match.height:
            st.warning(f"No test transaction has the id {wanted}.")
            return
        chosen = match.with_columns(outcome(threshold, negative)).row(0, named=True)
    _one(run, rows, chosen, threshold, negative)


def _filtered(run: Run, rows: pl.DataFrame, threshold: float, negative: str) -> pl.LazyFrame:
    """Ask for filters and return the rows that match them, highest scores first."""
    kind = st.segmented_control("Show", [ALL, *OUTCOMES], default=ALL, required=True, key="kind",
                                format_func=lambda name: "highest scores" if name == ALL else name)  # fmt: skip
    left, middle, right = st.columns(3)
    entity = left.text_input("Card or account", key="entity", placeholder="any").strip() if "entity" in rows.columns else ""
    days: Any = None
    if has_times(rows):
        first, last = rows.select(pl.col("time").min().dt.date().alias("a"), pl.col("time").max().dt.date().alias("b")).row(0)
        days = middle.date_input("Days", (first, last), min_value=first, max_value=last, key="days")
    least = right.number_input("Lowest amount", value=None, key="least-amount", placeholder="any") if has_amounts(run) else None
    lazy = rows.lazy().with_columns(outcome(threshold, negative))
    if kind != ALL:
        lazy = lazy.filter(pl.col("outcome") == kind)
    if entity:
        lazy = lazy.filter(pl.col("entity") == entity)
    if isinstance(days, tuple) and len(days) == 2 and all(isinstance(day, date) for day in days):
        lazy = lazy.filter(pl.col("time").dt.date().is_between(*days))
    if least is not None:
        lazy = lazy.filter(pl.col("amount") >= least)
    return lazy.sort("score", descending=True)


def _one(run: Run, rows: pl.DataFrame, chosen: dict[str, Any], threshold: float, negative: str) -> None:
    """Show one transaction: score and label, the timeline of its entity, and an explanation."""
    st.header(f"Transaction {chosen['id']}")
    tiles = {"Score": f"{chosen['score']:.4f}", "Outcome": chosen["outcome"] or "unknown", "Label": str(chosen["label"] or "unknown")}
    if has_amounts(run):
        tiles["Amount"] = f"{chosen['amount']:,.2f}"
    for column, (title, value) in zip(st.columns(len(tiles)), tiles.items(), strict=True):
        column.metric(title, value)
    if chosen["time"] is not None:
        st.caption(f"{chosen['time']:%Y-%m-%d %H:%M:%S}")
    used = attention_of(chosen)
    nodes = set(chosen.get("global_nodes") or [])
    if chosen.get("entity") is not None and chosen["time"] is not None:
        st.subheader(f"Test transactions of {chosen['entity']}")
        same = rows.lazy().filter(pl.col("entity") == chosen["entity"]).with_columns(outcome(threshold, negative)).collect()
        ids = same["id"].to_list()
        attention, is_node = [float(used.get(name, 0.0)) for name in ids], [name in nodes for name in ids]
        line = same.select("id", "time", "score", "amount", "outcome").with_columns(
            chosen=pl.col("id") == chosen["id"], attention=pl.Series(attention), global_node=pl.Series(is_node)
        )
        show_chart(
            timeline_chart(line, threshold=threshold), f"{chosen['id']}-timeline", about="scores of the entity's transactions over time"
        )
        marks = "Larger marks: more attention. Pink diamonds: global nodes of sparse attention. " if run.has_network else ""
        st.caption(f"Blue ring: this transaction. {marks}Dashed line: the threshold.")
    st.subheader("Explanation")
    if not run.has_network:
        st.markdown("There is no attention to earlier transactions: this run is boosted trees and has no network.")
    elif not used:
        st.markdown(
            "There is no attention to earlier transactions: this is the first one of its entity, the model has no attention weights, or an "
            "older version wrote the run."
        )
    if st.toggle("Read the table and the model: contributions of the fields, and transactions before the test", key="deep"):
        _deep(run, chosen, used, nodes)
    elif used:
        earlier = pl.DataFrame(
            {"id": list(used), "attention": list(used.values()), "global node": [name in nodes for name in used]}, strict=False
        )
        known = rows.lazy().select("id", "time", "amount", "label", "score").collect()
        show_table(
            earlier.join(known, on="id", how="left", maintain_order="left"),
            f"{chosen['id']}-attended",
            columns={"attention": _share_column()},
        )
        st.caption(
            "Earlier transactions with the most attention. Those without a score are before the test rows. Attention shows which "
            "transactions the model used, not what caused the score."
        )


def _deep(run: Run, chosen: dict[str, Any], used: dict[Any, float], nodes: set[Any]) -> None:
    """Show the contributions of the fields, and the transactions that the model read."""
    from balancer.inference.contributions import AVERAGE

    try:
        data, model = dataset(run), trained(run)
    except InputError as error:
        st.error(str(error))
        return
    store = data.store
    (place,) = (data.ids == chosen["id"]).arg_true().to_list()
    left, right = st.columns(2)
    with left:
        st.markdown("**Contributions of the fields**")
        found = model.contributions(data, np.array([place]))
        fields = found.frame(data).drop("row")
        show_chart(
            contributions_chart(fields.filter(pl.col("field") != AVERAGE)), f"{chosen['id']}-fields", about="change in log-odds by field"
        )
        st.caption(found.note())
        with st.expander("All contributions as a table"):
            show_table(fields, f"{chosen['id']}-contributions", columns={"contribution": st.column_config.NumberColumn(format="%+.3f")})
    with right:
        network = model.detector.model
        st.markdown("**Transactions that the model read**" if network else "**Earlier transactions**")
        length = SHOWN_EARLIER if network is None else network.config.history_length
        first = max(int(store.start[place]), place - length + 1)
        at = list(range(place, first - 1, -1))
        ids = data.ids[at].to_list()
        frame = pl.DataFrame(
            {
                "id": ids,
                "attention": [used.get(name) for name in ids],
                "time": pl.Series([store.time[row] * 1e6 for row in at]).cast(pl.Int64).cast(pl.Datetime("us")),
                "amount": [float(store.amount[row]) for row in at],
                "label": [data.schema.classes[int(store.label[row])] if store.label[row] >= 0 else None for row in at],
                "global node": [name in nodes for name in ids],
            },
            strict=False,
        )
        frame = frame.drop("attention", "global node") if network is None else frame
        frame = frame if data.schema.spec.time is not None else frame.drop("time")
        show_table(frame, f"{chosen['id']}-history", columns={"attention": _share_column()}, height=420 if frame.height > 11 else None)
        if network is None:
            st.caption("This transaction is first. The fields of the trees are computed from all earlier ones.")
            return
        shown = sum(used.values())
        st.caption(
            f"This transaction is first. The earlier ones with a number have {percent(shown, 0)} of its attention. Labels become known "
            "after the score."
        )


def _share_column() -> Any:
    return st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)


if __name__ == "__main__":
    show()
