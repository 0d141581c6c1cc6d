"""What the page Compare shows, without Streamlit: comparisons in any state, and how runs differ."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from balancer.app.browsing import Run
from balancer.comparison.cells import CONFIG_FILE, RESULT_FILE, CellFolder
from balancer.comparison.chart import chart_rows
from balancer.comparison.statistics import METRICS, means, paired
from balancer.comparison.verdict import kind_of, title_of
from balancer.errors import CorruptFileError, InputError, MissingFileError
from balancer.files import read_json
from balancer.options.flags import flag_of, to_dict
from balancer.options.train import NOT_PART_OF_THE_RESULT
from balancer.runs.progress import PROGRESS_FILE
from balancer.runs.run_folder import RunFolder

SIZES: dict[str, tuple[str, ...]] = {
    "short": ("--folds", "1", "--seeds", "3", "--search-trials", "8", "--ppo-rollouts", "4"),
    "usual": ("--folds", "5", "--seeds", "3"),
}
"""Flags of each size of a comparison."""
TREATMENTS = ("none", "one_to_one", "constant_share", "auto", "ppo", "lightgbm")
"""Treatments of a comparison that is started on the page, unless others are chosen."""
MOST_AXES = 7
_REFERENCE = "reference"


@dataclass(frozen=True)
class Unfinished:
    """A comparison without a result."""

    path: Path
    done: int
    """Trainings that are finished."""
    planned: int
    """Trainings of the whole comparison; a short table has fewer folds and needs fewer."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name


def find_unfinished(folder: Path) -> list[Unfinished]:
    """List comparisons that were stopped or failed, by name; those that are running are left out."""
    found = []
    for file in sorted(folder.glob(f"*/{CONFIG_FILE}")):
        path = file.parent
        if path.name.startswith(".") or (path / RESULT_FILE).exists() or RunFolder(path, {}).is_locked():
            continue
        state = unfinished(path)
        if state is not None:
            found.append(state)
    return found


def unfinished(path: Path) -> Unfinished | None:
    """How far a comparison is; None where there is none to resume."""
    with contextlib.suppress(InputError, KeyError, TypeError, ValueError):  # damaged, or of another version
        flags = CellFolder.flags(path)
        planned = int(flags["folds"]) * int(flags["seeds"]) * len(flags.get("treatments") or TREATMENTS)
        return Unfinished(path, sum(1 for _ in path.glob("cells/*/*.json")), planned)
    return None


def comparison_progress(path: Path) -> dict[str, Any] | None:
    """The progress of a running comparison (`balancer.runs.progress`); None before its first training."""
    try:
        return read_json(path / PROGRESS_FILE, what="it holds the progress of the comparison")
    except (MissingFileError, CorruptFileError):
        return None


def forest_rows(results: Sequence[dict[str, Any]], reference: str, metric: str) -> pl.DataFrame:
    """The rows of a forest plot: every treatment against a reference, the best first.

    Args:
        results: Cells of a comparison.
        reference: Treatment at zero.
        metric: A key of `METRICS`.

    Returns:
        Columns `treatment, title, kind, difference, low, high, verdict, mean`. Differences of false alarms
        are in percent. The reference has the verdict `reference`.
    """
    averages = means(results)
    rows = chart_rows({"paired": paired(results, reference)}, metric)
    if metric in averages.get(reference, {}):
        rows.append({"treatment": reference, "difference": 0.0, "low": 0.0, "high": 0.0, "verdict": _REFERENCE})
    words = {"better": "better", "worse": "worse", "within noise": "no clear difference", _REFERENCE: _REFERENCE}
    frame = pl.DataFrame(
        [
            row
            | {
                "title": title_of(row["treatment"]),
                "kind": kind_of(row["treatment"]),
                "mean": averages[row["treatment"]].get(metric),
                "verdict": words[row["verdict"]],
            }
            for row in rows
        ],
        schema_overrides=dict.fromkeys(("difference", "low", "high", "mean"), pl.Float64),
    )
    return frame if frame.is_empty() else frame.sort("difference", descending=METRICS[metric].higher_is_better)


def configurations(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The configuration of each run by its name, with defaults; damaged runs are left out."""
    found = {}
    for run in runs:
        with contextlib.suppress(InputError):  # the page Runs says what is wrong with it
            config = to_dict(RunFolder.open(run.path).config())
            found[run.name] = {name: value for name, value in config.items() if name not in NOT_PART_OF_THE_RESULT}
    return found


def configuration_differences(runs: Sequence[Run]) -> pl.DataFrame:
    """The settings in which runs differ.

    Returns:
        Column `setting`, and one column for each run with the value as text; empty without a difference.
    """
    found = configurations(runs)
    names = dict.fromkeys(name for config in found.values() for name in config)
    texts = {name: [_text(config.get(name)) for config in found.values()] for name in names}
    rows = [{"setting": _setting(name)} | dict(zip(found, values, strict=True)) for name, values in texts.items() if len(set(values)) > 1]
    return pl.DataFrame(rows, schema={"setting": pl.String} | dict.fromkeys(found, pl.String))


def _setting(name: str) -> str:
    """A flag as words: `policy options`."""
    return flag_of(name).removeprefix("--").replace("-", " ")


def in_titles(sentence: str, names: Iterable[str]) -> str:
    """Replace the names of treatments in a sentence by their titles."""
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"\b(?:{pattern})\b(?=\s(?:has|\[|by\b)|[,;.]|$)", lambda found: title_of(found[0]), sentence) if pattern else sentence


def _text(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, list | tuple):
        return ", ".join(str(each) for each in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def parallel_rows(runs: Sequence[Run]) -> pl.DataFrame:
    """The rows of a plot of parallel coordinates: settings that differ, and results, one axis each.

    Returns:
        Columns `run, axis, order, place` (0 to 1, lowest value to highest), `value` (text),
        `average_precision`. Values that are no numbers are in the order of the alphabet.
    """
    configs = configurations(runs)
    shown = [run for run in runs if run.name in configs]
    names = [name for name in dict.fromkeys(name for config in configs.values() for name in config) if name not in ("dataset", "spec")]
    axes: dict[str, list[Any]] = {}
    for name in names:
        values = [configs[run.name].get(name) for run in shown]
        if len({_text(value) for value in values}) > 1:
            axes[_setting(name)] = values
    axes = dict(list(axes.items())[:MOST_AXES])
    axes["recall"] = [run.metrics["recall"] for run in shown]
    axes["average precision"] = [run.metrics["average_precision"] for run in shown]
    rows: list[dict[str, Any]] = []
    for order, (axis, values) in enumerate(axes.items()):
        for run, place, value in zip(shown, _places(values), values, strict=True):
            text = f"{value:.3f}" if axis in ("recall", "average precision") else _text(value)
            rows.append({"run": run.name, "axis": axis, "order": order, "place": place, "value": text})
            rows[-1]["average_precision"] = run.metrics["average_precision"]
    return pl.DataFrame(rows)


def _places(values: Sequence[Any]) -> list[float]:
    """Where values (n,) lie on an axis from 0 to 1; equal values are in its middle."""
    numbers = [float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None for value in values]
    known = [number for number in numbers if number is not None]
    if len(known) < len(values):  # in the order of numbers, then of texts
        keys = [(number is None, number or 0.0, _text(value)) for number, value in zip(numbers, values, strict=True)]
        order = sorted(set(keys))
        known = [float(order.index(key)) for key in keys]
    low, high = min(known), max(known)
    return [0.5 if high == low else (number - low) / (high - low) for number in known]
