"""The report of a finished run as readers get it: its content, the verdict, and the one-page PDF.

What is special: only the columns that the verdict needs are read, so 350,000 test rows take a moment. A file
that an earlier version did not write is left out, and the verdict says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from balancer.errors import CorruptFileError, reason_of
from balancer.evaluation.report_json import CURVES_FILE, REPORT_FILE
from balancer.evaluation.verdict import Verdict, best_alternative, build_verdict
from balancer.files import read_json
from balancer.inference.decision import DECISION_FILE
from balancer.runs.results import SCHEMA_FILE, TEST_SCORES_FILE
from balancer.runs.run_folder import RunFolder

PREDICTIONS_FILE = "predictions.parquet"
NEEDED = ("average_precision", "recall", "fpr", "threshold", "positives", "rows")
"""Metrics that a report must have for a verdict."""


def read_report(path: Path) -> dict[str, Any]:
    """Read `report.json` of a run folder.

    Raises:
        MissingFileError: It is missing.
        CorruptFileError: It is damaged, or was written by another version.
    """
    report = read_json(path / REPORT_FILE, what="it is the report of the run")
    test = report.get("test")
    missing = [name for name in NEEDED if not isinstance(test, dict) or name not in test]
    missing += [name for name in ("baselines", "run") if not isinstance(report.get(name), dict)]
    if missing:
        raise CorruptFileError(f"{path / REPORT_FILE} lacks {', '.join(missing)}: it was written by another version, train the run again")
    return report


def read_verdict(path: Path) -> Verdict:
    """Build the verdict on the run in a folder, at the threshold that scoring uses.

    Raises:
        InputError: A file that every run has is missing or damaged.
    """
    report = read_report(path)
    decision = read_json(path / DECISION_FILE, what="it holds threshold and calibration")
    schema = read_json(path / SCHEMA_FILE, what="it describes the fields of the run")
    try:
        classes, amounts = tuple(map(str, schema["classes"])), schema["spec"].get("amount") is not None
        float(decision["threshold"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(
            f"{path / SCHEMA_FILE} or {path / DECISION_FILE} is damaged ({reason_of(error)}): train the run again"
        ) from error
    other = best_alternative(report)
    predictions = _columns(path / PREDICTIONS_FILE, ("label", "score", "time", "entity", "amount"), needed=("label", "score"))
    scores = _columns(path / TEST_SCORES_FILE, ("label", "run", other or "run"))
    return build_verdict(
        report, decision, predictions=predictions, scores=scores, classes=classes, amounts=amounts and _has(predictions, "amount")
    )


def _has(frame: pl.DataFrame | None, column: str) -> bool:
    return frame is None or column in frame.columns


def _columns(path: Path, wanted: tuple[str, ...], *, needed: tuple[str, ...] = ()) -> pl.DataFrame | None:
    """Read those of the wanted columns that a Parquet file has; None where there is no file."""
    if not path.is_file():
        return None
    try:
        frame = pl.scan_parquet(path, glob=False)
        present = set(frame.collect_schema().names())
        lacking = [name for name in needed if name not in present]
        if lacking:
            raise CorruptFileError(f"{path} lacks {', '.join(lacking)}: it was written by another version, train the run again")
        return frame.select([name for name in dict.fromkeys(wanted) if name in present]).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorruptFileError(f"{path} can't be read ({reason_of(error)}): it is damaged, train the run again") from error


@dataclass(frozen=True)
class RunReport:
    """What the one-page PDF shows."""

    name: str
    """Name of the run folder."""
    table: str
    """Path of the table that the run was trained on, as it was typed."""
    created: str
    """When the run was started, in ISO 8601."""
    report: dict[str, Any]
    verdict: Verdict
    curves: pl.DataFrame | None
    """Points of the precision-recall curves; None in a run without them."""

    @classmethod
    def load(cls, path: Path) -> RunReport:
        """Read what the PDF needs from a finished run.

        Raises:
            InputError: The run is not finished, or a file is missing or damaged.
        """
        folder = RunFolder.open_complete(path)
        created = str(folder.content.get("created", ""))
        curves = _columns(path / CURVES_FILE, ("model", "recall", "precision"), needed=("model", "recall", "precision"))
        return cls(path.resolve().name, str(folder.config().dataset), created, read_report(path), read_verdict(path), curves)


def run_pdf(path: Path) -> bytes:
    """Render the one-page PDF of a finished run; the same run gives the same bytes.

    Raises:
        MissingDependencyError: fpdf2 or vl-convert is not installed.
        InputError: The run is not finished, or a file is missing or damaged.
    """
    from balancer.evaluation.report_pdf import render_pdf

    found = RunReport.load(path)
    return render_pdf(
        name=found.name, table=found.table, created=found.created, report=found.report, verdict=found.verdict, curves=found.curves
    )
