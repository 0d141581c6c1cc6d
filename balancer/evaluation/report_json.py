"""Write the files of a report: `report.json`, `report.md` and `curves.parquet`.

What is special: the same results give the same bytes. Times are stored only under the key `timing`, which the
page leaves out, so two runs with the same seed can be compared file by file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from numpy.typing import ArrayLike

from balancer.evaluation.metrics import curve_points
from balancer.evaluation.report_content import Metrics
from balancer.evaluation.report_markdown import render_page
from balancer.files import atomic_path, write_json, write_text

REPORT_FILE, PAGE_FILE, CURVES_FILE = "report.json", "report.md", "curves.parquet"
_CURVE_SCHEMA = {"model": pl.String, "threshold": pl.Float64, "recall": pl.Float64, "precision": pl.Float64, "fpr": pl.Float64}


def build_report(test: Metrics, baselines: Mapping[str, Metrics], *, run: Mapping[str, Any]) -> dict[str, Any]:
    """Assemble the report of a run.

    Args:
        test: Metrics of this run on the test rows, as `evaluate_scores` returns them.
        baselines: The same for each baseline, by name (`none, one_to_one, class_weight, lightgbm`).
        run: JSON-serializable content: `configuration, data, schedule, policy, versions, ...`; times under
            `timing`.

    Returns:
        `test, baselines, run, timing`; equal for equal runs except `timing`.
    """
    return {
        "test": dict(test),
        "baselines": {name: dict(metrics) for name, metrics in baselines.items()},
        "run": {key: value for key, value in run.items() if key != "timing"},
        "timing": dict(run.get("timing", {})),
    }


def write_report(report: Mapping[str, Any], folder: Path, *, label: ArrayLike, scores: Mapping[str, ArrayLike]) -> None:
    """Write `report.json`, `report.md` and `curves.parquet`, each atomically.

    The curves (precision against recall, and ROC) have the columns `model, threshold, recall, precision, fpr`
    and at most 500 points per model.

    Args:
        report: The result of `build_report`.
        folder: Where to write.
        label: (n,) class index of the test rows.
        scores: (n,) fraud scores by model.

    Raises:
        UnwritableFileError: If the folder can't be written.
    """
    frames = [pl.DataFrame({"model": name} | curve_points(label, score), schema=_CURVE_SCHEMA) for name, score in scores.items()]
    with atomic_path(folder / CURVES_FILE) as temporary:
        pl.concat(frames).write_parquet(temporary)
    write_json(folder / REPORT_FILE, report)
    write_text(folder / PAGE_FILE, render_page(report))


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """List the dotted keys in which two reports differ, sorted, without the top-level key `timing`."""
    found: list[str] = []

    def walk(one: Any, other: Any, path: str) -> None:
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            for key in sorted({*one, *other}):
                here = f"{path}.{key}" if path else str(key)
                if here == "timing":
                    continue
                if key in one and key in other:
                    walk(one[key], other[key], here)
                else:
                    found.append(here)
        elif one != other:
            found.append(path)

    walk(first, second, "")
    return found
