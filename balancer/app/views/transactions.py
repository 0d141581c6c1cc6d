"""The page Transactions: the queue of alarms with reasons, the history of a card, and labels by reviewers."""

from __future__ import annotations

from datetime import date
from typing import Any

import polars as pl
import streamlit as st

from balancer.app.aggregates import has_times
from balancer.app.browsing import Run
from balancer.app.charts import OUTCOMES, Chart, contributions_chart
from balancer.app.explaining import Explained, explain, reasons_of, waits
from balancer.app.label_export import export_labels
from balancer.app.loading import (
    chosen_run,
    has_amounts,
    negative_class,
    plain,
    read,
    show_chart,
    show_table,
    table,
    threshold_of,
)
from balancer.app.review_queue import (
    RISK,
    attention_frame,
    card_chart,
    earlier_of_table,
    earlier_of_test,
    label_words,
    queue,
    review_sentence,
)
from balancer.data.words import spoken
from balancer.errors import InputError
from balancer.names import counted
from balancer.runs.reviews import Reviews, review, undo

MOST = 500
"""Most transactions in the list."""
TO_REVIEW, REVIEWED, ALL = "to review", "reviewed", "all"
SHOWN_EARLIER = 100
"""Most transactions of a card that are shown."""
EXPLAINED = 10
"""Rows at the top of the list that have reasons."""
REASONS = 5
"""Most reasons of a transaction."""


def show() -> None:
    """Show the page."""
    run = chosen_run("Transactions")
    threshold, negative, amounts = threshold_of(run), negative_class(run), has_amounts(run)
    rows, reviews = table(run, "predictions.parquet"), Reviews.load(run.path)
    every = queue(rows, threshold, negative, amounts=amounts, reviewed=reviews.labels)
    st.caption(
        f"{review_sentence(every, negative)} Alarms are scores of at least {threshold:.4g}. "
        + (f"{RISK.capitalize()} is the score times the amount." if amounts else "The highest scores come first.")
    )
    found = _filtered(run, rows, every)
    listed = found.head(MOST).collect()
    count = found.select(pl.len()).collect().item()
    if listed.height:
        st.caption(f"{count:,} of {counted(rows.height, 'test transaction')}" + (f", the first {MOST} are listed" if count > MOST else ""))
        picked = _list(run, listed, amounts=amounts, timed=has_times(rows))
    else:
        left = st.session_state["kind"] == TO_REVIEW
        st.info("No alarm is left to review here." if left else "No transaction matches these filters: widen them.")
    export_labels(run, reviews, rows)
    wanted = st.text_input(
        "Open a transaction", key="transaction", persist_state="session", placeholder="id, or select a row above"
    ).strip()
    if wanted:
        match = every.filter(pl.col("id").cast(pl.String) == wanted).collect()
        if not match.height:
            st.warning(f"No test transaction has the id {plain(wanted)}.")
            return
        _one(run, rows, match.row(0, named=True), threshold, negative)
    elif listed.height:
        _one(run, rows, listed.row(min(picked or 0, listed.height - 1), named=True), threshold, negative)


def _filtered(run: Run, rows: pl.DataFrame, every: pl.LazyFrame) -> pl.LazyFrame:
    """Ask for filters and return the rows that match them, what is most urgent first."""
    st.session_state.setdefault("kind", TO_REVIEW)
    kind = st.segmented_control(
        "Show", [TO_REVIEW, REVIEWED, *OUTCOMES, ALL], required=True, key="kind", persist_state="session",
        format_func=lambda name: {ALL: "highest scores", TO_REVIEW: "alarms to review"}.get(name, name),
    )  # fmt: skip
    left, middle, right = st.columns(3)
    entity, days, least = "", None, None
    if "entity" in rows.columns:
        entity = left.text_input(_entity(run).capitalize(), key="entity", placeholder="any", persist_state="session").strip()
    if has_times(rows):
        first, last = rows.select(pl.col("time").min().dt.date().alias("a"), pl.col("time").max().dt.date().alias("b")).row(0)
        days = middle.date_input("Days", (first, last), min_value=first, max_value=last, key=f"days-{run.name}", persist_state="session")
    if has_amounts(run):
        least = right.number_input("Lowest amount", value=None, key="least-amount", placeholder="any", persist_state="session")
    lazy = every
    if kind == TO_REVIEW:
        lazy = lazy.filter(pl.col("alarm") & pl.col("reviewed").is_null())
    elif kind == REVIEWED:
        lazy = lazy.filter(pl.col("reviewed").is_not_null())
    elif kind != ALL:
        lazy = lazy.filter(pl.col("outcome") == kind)
    if entity:
        lazy = lazy.filter(pl.col("entity") == entity)
    if isinstance(days, tuple) and len(days) == 2 and all(isinstance(day, date) for day in days):
        lazy = lazy.filter(pl.col("time").dt.date().is_between(*days))
    if least is not None:
        lazy = lazy.filter(pl.col("amount") >= least)
    return lazy.sort("score" if kind == ALL else RISK, "score", descending=True, maintain_order=True)


def _entity(run: Run) -> str:
    """What an entity is called: card, account or as the column says."""
    return spoken(str(read(run, "schema.json")["spec"].get("entity") or "card"))


def _list(run: Run, listed: pl.DataFrame, *, amounts: bool, timed: bool) -> int | None:
    """Show the list; return the number of the selected row."""
    words = label_words(read(run, "schema.json")["classes"])
    known = {name: text for name, text in words.items() if text != name}
    frame = listed.with_columns(pl.col("label").replace(known).fill_null("unknown"), pl.col("reviewed").replace(known).fill_null("–"))
    frame = frame.with_columns(pl.col("outcome").fill_null(pl.when("alarm").then(pl.lit("alarm")).otherwise(pl.lit("no alarm"))))
    if len(words) > 2:
        frame = frame.with_columns(pl.col("class").replace(known).alias("predicted"))
    reasons = reasons_of(run, frame["id"].head(EXPLAINED).to_list())
    if reasons is not None:
        frame = frame.with_columns(
            why=pl.Series([*(text or "–" for text in reasons), *["–"] * (frame.height - len(reasons))], dtype=pl.String)
        )
    entity = _entity(run)
    frame = frame.rename({"entity": entity} if "entity" in frame.columns and entity not in frame.columns else {})
    shown = ["id", *([RISK] if amounts else []), "score", *(["amount"] if amounts else []), *(["time"] if timed else []), entity, "why", "outcome",
             "label", "reviewed", "predicted"]  # fmt: skip
    columns = {
        RISK: st.column_config.NumberColumn(format="accounting", help="score times amount, in the currency of the table"),
        "score": st.column_config.ProgressColumn(format="%.4f", min_value=0, max_value=1),
        "amount": st.column_config.NumberColumn(format="accounting"),
        "time": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm:ss"),
        "why": st.column_config.TextColumn(width="large", help=f"the strongest reason; for the first {EXPLAINED} rows"),
    }
    frame = frame.select(name for name in shown if name in frame.columns)
    frame = frame.with_columns(pl.col(name).round(2) for name in (RISK, "amount") if name in frame.columns)
    return show_table(frame, f"{run.name}-transactions", columns=columns, height=320, pick=True)


def _one(run: Run, rows: pl.DataFrame, chosen: dict[str, Any], threshold: float, negative: str) -> None:
    """Show one transaction: what is known of it, buttons to label it, why it has its score, and its card."""
    classes = read(run, "schema.json")["classes"]
    words, amounts = label_words(classes), has_amounts(run)
    st.header(f"Transaction {plain(chosen['id'])}")
    tiles = {"Score": f"{chosen['score']:.4f}"}
    if amounts:
        tiles |= {"Amount": f"{chosen['amount']:,.2f}", "Money at risk": f"{chosen[RISK]:,.2f}"}
    tiles |= {"Label": words.get(chosen["label"], "unknown"), "Outcome": chosen["outcome"] or ("alarm" if chosen["alarm"] else "no alarm")}
    for column, (title, value) in zip(st.columns(len(tiles)), tiles.items(), strict=True):
        column.metric(title, value)
    said = [f"{chosen['time']:%A, %Y-%m-%d %H:%M:%S}"] if chosen["time"] is not None else []
    said += [f"{_entity(run)} {plain(chosen['entity'])}"] if chosen.get("entity") is not None else []
    said += [f"reviewed: {words[chosen['reviewed']]}"] if chosen["reviewed"] in words else []
    st.caption(" · ".join(said))
    _buttons(run, chosen, classes, words)
    _why(run, rows, chosen, threshold, negative)


def _buttons(run: Run, chosen: dict[str, Any], classes: list[str], words: dict[str, str]) -> None:
    """Offer to confirm or to dismiss a transaction, and to take the last decision back."""
    kind, identity = classes[1], chosen["id"] if isinstance(chosen["id"], int) else str(chosen["id"])
    if len(classes) > 2:
        frauds = classes[1:]
        first = frauds.index(chosen["class"]) if chosen["class"] in frauds else 0
        kind = st.selectbox("Kind of fraud", frauds, first, key=f"fraud-class-{chosen['id']}", width=320)
    with st.container(horizontal=True):
        given: str | None = None
        if st.button("Confirm fraud", type="primary", icon=":material/gpp_bad:", key="confirm"):
            given = kind
        if st.button("Dismiss: legitimate", icon=":material/verified_user:", key="dismiss"):
            given = classes[0]
        taken_back = st.button("Undo the last decision", icon=":material/undo:", key="undo", type="tertiary",
                               disabled=not Reviews.load(run.path).decided)  # fmt: skip
    if given is not None:
        review(run.path, identity, given, classes=classes)
        st.toast(f"Transaction {plain(identity)} is labelled: {plain(words[given])}")
        st.rerun()
    if taken_back:
        undo(run.path)
        st.toast("The last decision is taken back")
        st.rerun()


def _why(run: Run, rows: pl.DataFrame, chosen: dict[str, Any], threshold: float, negative: str) -> None:
    """Show why the transaction has its score, and the earlier ones of its card."""
    st.session_state.setdefault("deep", not waits(run))
    explained: Explained | None = None
    deep = st.toggle(
        "Explain with the table and the model", key="deep", persist_state="session",
        help="reads the table that the run was trained on; off at first for a large one, because it takes a while",
    )  # fmt: skip
    if deep:
        try:
            explained = explain(run, chosen["id"])
        except InputError as error:
            st.warning(f"The reasons can't be computed: {plain(error)}")
        else:
            if st.session_state.get("explained-run") != run.name:  # the list above can have reasons now
                st.session_state["explained-run"] = run.name
                st.rerun()
    left, right = st.columns(2)
    with left:
        st.subheader("Why")
        if explained is not None:
            _reasons(explained, str(chosen["id"]))
        else:
            st.markdown("Without the table and the model only the score is known, not its reasons.")
        if not run.has_network:
            st.markdown("This run is boosted trees and has no network, so there is no attention to earlier transactions.")
    frame, left_out = _earlier(run, rows, chosen, threshold, negative, explained)
    with right:
        st.subheader(f"This {_entity(run)} until then")
        _timeline(run, frame, left_out, str(chosen["id"]), timed=chosen["time"] is not None)
    if frame is not None and frame.height > 1:
        _history(run, frame, str(chosen["id"]), timed=chosen["time"] is not None, whole=explained is not None)


def _reasons(explained: Explained, name: str) -> None:
    """Show the reasons of a score in words, and all contributions."""
    if explained.reasons:
        st.markdown("\n".join(f"- {plain(text)}" for text in explained.reasons))
    else:
        st.markdown("No field raises the score above that of an average transaction.")
    if explained.against:
        st.caption("Against fraud: " + "; ".join(plain(text) for text in explained.against))
    with st.expander("What each field adds", expanded=False):
        show_chart(contributions_chart(explained.bars), f"{name}-fields", about="change in log-odds by field")
        st.caption(plain(explained.note))
        show_table(explained.fields, f"{name}-contributions", columns={"contribution": st.column_config.NumberColumn(format="%+.3f")})


def _earlier(
    run: Run, rows: pl.DataFrame, chosen: dict[str, Any], threshold: float, negative: str, explained: Explained | None
) -> tuple[pl.DataFrame | None, int]:
    """Return the transactions of the card up to the chosen one, and how many earlier ones are left out."""
    if explained is not None:
        frame, left_out = earlier_of_table(explained.data, explained.place, rows, threshold, most=SHOWN_EARLIER)
    elif chosen.get("entity") is not None and chosen["time"] is not None:
        frame, left_out = earlier_of_test(rows, chosen, threshold, negative, most=SHOWN_EARLIER)
    else:
        return None, 0
    words = label_words(read(run, "schema.json")["classes"])
    return attention_frame(frame.with_columns(pl.col("label").replace(words).fill_null("unknown")), chosen), left_out


def _timeline(run: Run, frame: pl.DataFrame | None, left_out: int, name: str, *, timed: bool) -> None:
    """Plot the transactions of the card up to the chosen one."""
    if frame is None:
        st.markdown("The table names no card or account, or has no time, so earlier transactions are not known.")
        return
    if frame.height == 1:
        st.markdown(f"This is the first transaction of the {_entity(run)}.")
        return
    if timed:
        chart: Chart = card_chart(frame, amounts=has_amounts(run))
        show_chart(chart, f"{name}-timeline", about="transactions of the card by time and amount; alarms are marked")
    st.caption("Blue ring: this transaction." + (f" {left_out:,} earlier ones are not shown." if left_out else ""))


def _history(run: Run, frame: pl.DataFrame, name: str, *, timed: bool, whole: bool) -> None:
    """List the transactions of the card up to the chosen one."""
    dropped = ["chosen", *([] if timed else ["time"]), *([] if has_amounts(run) else ["amount"])]
    scores = [f"{score:.4f}" if score is not None else "–" for score in frame["score"].to_list()]
    columns = {
        "attention": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1, help="how much the network used it"),
        "amount": st.column_config.NumberColumn(format="accounting"),
        "time": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        "kind": st.column_config.TextColumn("what it is"),
    }
    shown = frame.drop(dropped).with_columns(score=pl.Series(scores, dtype=pl.String))
    show_table(shown, f"{name}-history", columns=columns, height=320 if frame.height > 8 else None)
    notes = [
        "This transaction is first. Rows before the test have no score."
        if whole
        else "Earlier rows than those of the test are not known here."
    ]
    if "attention" in frame.columns:
        notes.append("Attention shows which earlier transactions the network used, not what caused the score.")
    elif run.has_network:
        notes.append("There is no attention to earlier transactions.")
    st.caption(" ".join(notes))


if __name__ == "__main__":
    show()
