"""Cached: the rows that choose a threshold, those that show what it does, and what two of them differ in."""

from __future__ import annotations

import polars as pl
import streamlit as st

from balancer.app.aggregates import evaluated_rows, operating_points
from balancer.app.browsing import Run
from balancer.app.loading import Stamp, has_amounts, negative_class, points, stamp, table
from balancer.app.threshold_curves import Basis
from balancer.evaluation.operating_points import OperatingPoints
from balancer.evaluation.threshold_changes import Changes, EvaluatedRows

THRESHOLD_SCORES_FILE = "threshold_scores.parquet"
"""The scores of the threshold half: the file of `balancer.runs.results`, which loads torch."""


def basis_of(run: Run) -> Basis:
    """Return the rows that choose a threshold and the test rows; the same for a run of an older version."""
    test, file = points(run), run.path / THRESHOLD_SCORES_FILE
    if not file.is_file():
        return Basis(test, test, separate=False)
    return Basis(_threshold_points(table(run, file.name), stamp(file), negative_class(run), has_amounts(run)), test, separate=True)


def changes_of(run: Run, current: float, proposed: float) -> Changes:
    """Return what differs between two thresholds on the test rows, with intervals."""
    key, negative, amounts = stamp(run.path / "predictions.parquet"), negative_class(run), has_amounts(run)
    return _changes(_rows(table(run, "predictions.parquet"), key, negative, amounts), key, negative, current, proposed)


@st.cache_resource(max_entries=8, show_spinner="Reading the rows that tuned the threshold")
def _threshold_points(_frame: pl.DataFrame, key: Stamp, negative: str, amounts: bool) -> OperatingPoints:
    return operating_points(_frame, negative, amounts=amounts)


@st.cache_resource(max_entries=4, show_spinner="Reading the test rows")
def _rows(_frame: pl.DataFrame, key: Stamp, negative: str, amounts: bool) -> EvaluatedRows:
    return evaluated_rows(_frame, negative, amounts=amounts)


@st.cache_resource(max_entries=64, show_spinner=False)
def _changes(_rows: EvaluatedRows, key: Stamp, negative: str, current: float, proposed: float) -> Changes:
    return Changes.of(_rows, current, proposed)
