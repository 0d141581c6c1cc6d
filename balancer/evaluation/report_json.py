"""The report of a run on disk: one dict for machines, one page for people, the curves behind both.

Special: the same figures give the same bytes. Times are kept under the one key ``timing``, which the page leaves out, so two runs with
one seed can be compared file by file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from numpy.typing import ArrayLike

from balancer.evaluation.metrics import curve_points
from balancer.evaluation.report_content import Figures
from balancer.evaluation.report_markdown import render_page
from balancer.files import atomic_path, write_json, write_text

REPORT_FILE, PAGE_FILE, CURVES_FILE = "report.json", "report.md", "curves.parquet"
_CURVE_SCHEMA = {"model": pl.String, "threshold": pl.Float64, "recall": pl.Float64, "precision": pl.Float64, "fpr": pl.Float64}


def build_report(test: Figures, baselines: Mapping[str, Figures], *, run: Mapping[str, Any]) -> dict[str, Any]:
    """Put the figures of a run together.

    Parameters
    ----------
    test
        Figures of this run on the test rows, as ``evaluate_scores`` returns them.
    baselines
        The same for each baseline, by name (``none, one_to_one, class_weight, lightgbm``).
    run
        JSON-able: ``configuration, data, schedule, policy, versions, ...``; times under ``timing``.

    Returns
    -------
    dict
        ``test, baselines, run, timing``; equal for equal runs but for ``timing``.
    """
    return {
        "test": dict(test),
        "baselines": {name: dict(figures) for name, figures in baselines.items()},
        "run": {key: value for key, value in run.items() if key != "timing"},
        "timing": dict(run.get("timing", {})),
    }


def write_report(report: Mapping[str, Any], folder: Path, *, label: ArrayLike, scores: Mapping[str, ArrayLike]) -> None:
    """Write ``report.json``, ``report.md`` and ``curves.parquet`` into ``folder``, each atomically.

    ``label`` (n,) class indices of the test rows and ``scores``, fraud scores (n,) by model, draw the curves: columns ``model, threshold,
    recall, precision, fpr``, at most 500 points a model, precision against recall and recall against fpr (ROC). Raises InputError where
    the folder can't be written.
    """
    frames = [pl.DataFrame({"model": name} | curve_points(label, score), schema=_CURVE_SCHEMA) for name, score in scores.items()]
    with atomic_path(folder / CURVES_FILE) as temporary:
        pl.concat(frames).write_parquet(temporary)
    write_json(folder / REPORT_FILE, report)
    write_text(folder / PAGE_FILE, render_page(report))


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which two reports differ, sorted; ``timing`` at the top is left out. Empty when the runs were equal."""
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
