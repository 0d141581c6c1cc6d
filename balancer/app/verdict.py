"""The verdict on a run, cached: the files are read again only where one of them has changed."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from balancer.app.browsing import Run
from balancer.app.loading import Stamp, stamp
from balancer.evaluation.verdict import Verdict
from balancer.runs.run_report import read_verdict

FILES = ("report.json", "decision.json", "schema.json", "predictions.parquet", "test_scores.parquet")
"""Files that the verdict follows from."""


@st.cache_data(max_entries=64, show_spinner="Comparing the run with its alternatives")
def _verdict(folder: str, files: tuple[Stamp, ...]) -> Verdict:
    return read_verdict(Path(folder))


def verdict_of(run: Run) -> Verdict:
    """Return the verdict on a run at the threshold that scoring uses.

    Raises:
        InputError: A file of the run is missing or damaged.
    """
    return _verdict(str(run.path), tuple(stamp(run.path / name) for name in FILES if (run.path / name).is_file()))
