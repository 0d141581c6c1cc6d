"""The application: runs of a folder, each beside its baselines, and how its sampling weights moved.

``streamlit run app`` shows the runs in ``runs``, ``streamlit run app -- --runs DIR`` those of another folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `streamlit run app` puts only this folder on the path
    sys.path.insert(0, str(ROOT))

from balancer.app.charts import curves_chart, weights_chart  # noqa: E402 - after the path
from balancer.errors import InputError  # noqa: E402
from balancer.files import read_json  # noqa: E402

NAMES = {
    "run": "this run",
    "none": "no sampling",
    "one_to_one": "1:1 over-sampling",
    "class_weight": "class weights",
    "lightgbm": "LightGBM",
}


def runs_folder() -> Path:
    """The folder given behind ``--``, or ``runs``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    folder: Path = parser.parse_known_args()[0].runs
    return folder


def comparison(report: dict[str, Any]) -> pl.DataFrame:
    """A row per model: the figures people compare by."""
    rows = []
    for name, own in ({"run": report["test"]} | report["baselines"]).items():
        alarms = own["false_alarms_per_10k_at_recall"]
        rows.append(
            {
                "model": NAMES.get(name, name),
                "average precision": own["average_precision"],
                "F1, tuned": own["f1"],
                "F1 at .5": own["f1_at_half"],
                "false alarms per 10k at recall .60": alarms["0.60"],
                "false alarms per 10k at recall .70": alarms["0.70"],
                "ECE": own["ece"],
            }
        )
    return pl.DataFrame(rows)


def show(folder: Path) -> None:
    """One run."""
    report = read_json(folder / "report.json", what="it is the report of the run")
    test = report["test"]
    best, alarms, rate = st.columns(3)
    best.metric("Average precision", f"{test['average_precision']:.3f}")
    alarms.metric("Recall at the tuned threshold", f"{100 * test['recall']:.1f} %")
    rate.metric("False-positive rate there", f"{100 * test['fpr']:.2f} %")
    st.subheader("Beside its baselines, on the later test rows")
    st.dataframe(comparison(report), hide_index=True)
    history, curves = folder / "history.parquet", folder / "curves.parquet"
    if history.is_file():
        st.subheader("Sampling weights and validation, by epoch")
        st.altair_chart(weights_chart(pl.read_parquet(history)))
    if curves.is_file():
        st.subheader("Precision and recall")
        st.altair_chart(curves_chart(pl.read_parquet(curves).with_columns(pl.col("model").replace(NAMES))))


def main() -> None:
    """Choose a run and show it."""
    st.set_page_config(page_title="balancer", layout="wide")
    st.title("balancer")
    folder = runs_folder()
    found = sorted((path.parent for path in folder.glob("*/report.json")), key=lambda path: path.stat().st_mtime, reverse=True)
    if not found:
        st.info(f"No finished run in {folder}. Make one: balancer train --dataset data_samples/transactions.parquet")
        return
    chosen = st.selectbox("Run", found, format_func=lambda path: path.name)
    try:
        show(chosen)
    except (InputError, KeyError, json.JSONDecodeError, pl.exceptions.PolarsError) as error:
        st.error(f"{chosen.name} can't be shown: {error}")


main()
