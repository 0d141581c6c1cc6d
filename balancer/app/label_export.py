"""The labels of reviewers as downloads: for training again, and for a running service."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import polars as pl
import streamlit as st

from balancer.app.browsing import Run
from balancer.app.explaining import table_file
from balancer.app.loading import as_csv, as_parquet, read
from balancer.names import counted
from balancer.runs.reviews import MOST_LABELS, Reviews, label_requests, label_table, with_labels
from balancer.runs.run_folder import RunFolder


def export_labels(run: Run, reviews: Reviews, rows: pl.DataFrame) -> None:
    """Offer the labels that were given.

    Args:
        run: The run.
        reviews: Its reviews.
        rows: Its test rows.
    """
    latest = reviews.latest
    if not latest:
        return
    spec = read(run, "schema.json")["spec"]
    frame = label_table(reviews, rows, names=column_names(spec))
    with st.expander(f"Export {counted(len(latest), 'label')}"):
        st.dataframe(frame, hide_index=True, key=f"labels-{run.name}", height=180 if frame.height > 4 else "auto")
        options: dict[str, Any] = {"type": "tertiary", "icon": ":material/download:", "on_click": "ignore"}
        with st.container(horizontal=True, gap="small"):
            st.download_button("Labels, CSV", partial(as_csv, frame), f"{run.name}-labels.csv", "text/csv", key="labels-csv", **options)
            st.download_button("Labels, Parquet", partial(as_parquet, frame), f"{run.name}-labels.parquet", "application/octet-stream",
                               key="labels-parquet", **options)  # fmt: skip
            bodies = list(label_requests(reviews))
            for number, body in enumerate(bodies, start=1):
                part = f", part {number} of {len(bodies)}" if len(bodies) > 1 else ""
                st.download_button(f"For the service, JSON{part}", json.dumps(body), f"{run.name}-labels{number if part else ''}.json",
                                   "application/json", key=f"labels-json-{number}", **options)  # fmt: skip
            path = table_file(run)
            if spec.get("label") and path is not None:
                st.download_button("Training table with these labels", partial(corrected_table, run, reviews), f"{path.stem}-labelled.parquet",
                                   "application/octet-stream", key="labels-table", **options)  # fmt: skip
        st.caption(
            "The training table is that of the run with these labels in place of its own: train on it by `balancer train --dataset`. The JSON "
            f"is the body of `POST /v1/labels` with at most {MOST_LABELS:,} labels: "
            "`curl ADDRESS/v1/labels -H 'Content-Type: application/json' -d @labels.json`"
        )


def column_names(spec: dict[str, Any]) -> dict[str, str]:
    """Return the names of the columns of an export: those of the table.

    Args:
        spec: The spec of the table, of `schema.json`.
    """
    names = {"id": str(spec.get("id") or "row"), "label": str(spec.get("label") or "label")}
    return names | ({"time": str(spec["time"])} if spec.get("time") else {})


def corrected_table(run: Run, reviews: Reviews) -> bytes:
    """Return the table of the run as Parquet, with the reviewed labels.

    Raises:
        InputError: The table can't be read or lacks its columns.
    """
    from balancer.data.reading import collect, scan
    from balancer.tables.options import ReadOptions

    spec = read(run, "schema.json")["spec"]
    path, options = RunFolder.open(run.path).find_table(), ReadOptions.from_dict(spec.get("read") or {})
    frame = collect(scan(path, read=options), path)
    return as_parquet(with_labels(frame, reviews, identity=spec.get("id"), label=str(spec["label"])))
