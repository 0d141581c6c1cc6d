"""The content of a report: which metrics are shown, differences from the baselines, and a summary sentence.

What is special: better and worse results are reported in the same way. Metrics are compared as they are
shown, rounded, so that equal numbers rank as equal. Every summary includes the standard error of the test
set, so that noise is not reported as an improvement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TITLES = {
    "lightgbm": "LightGBM",
    "none": "no sampling",
    "one_to_one": "1:1 over-sampling",
    "class_weight": "class weights",
    "full": "full precision",
    "network": "network on trees",
    "stage2": "trees, stage 2",
    "stage1": "trees, stage 1",
}
"""Names of the baselines and of the detector's parts for readers."""
PARTS = ("full", "network", "stage2", "stage1")
"""Parts of the detector among the models of a report, which are no rivals: its members, and the first stage
that they read."""
THIS_RUN = "this run"
PARTS_OF_RUN = "parts of this run"
"""Heading of the parts in a table of models."""

Metrics = Mapping[str, Any]
"""The metrics of one model, as `evaluate_scores` returns them."""


@dataclass(frozen=True)
class Column:
    """One metric: where it is in the report, its heading, its format, and whether higher is better."""

    path: tuple[str, ...]
    """Keys from the metrics of a model down to the number."""
    head: str
    """Heading of at most two lines."""
    decimals: int
    higher_is_better: bool = True
    ranked: bool = True
    """Whether the best value is marked. Precision and recall at a threshold are a trade-off, so neither alone
    ranks models."""

    def value(self, metrics: Metrics) -> float | None:
        """Return the number as shown (rounded); None where it does not exist."""
        found: Any = metrics
        for key in self.path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return None if found is None else round(float(found), self.decimals)

    def text(self, metrics: Metrics) -> str:
        """Return the number as text; a dash where it does not exist."""
        value = self.value(metrics)
        return "–" if value is None else f"{value:,.{self.decimals}f}"

    def best(self, models: Sequence[Metrics]) -> float | None:
        """Return the best value among `models`; None where there is none or all are equal."""
        values = [value for value in map(self.value, models) if value is not None]
        if not self.ranked or len(set(values)) < 2:
            return None
        return max(values) if self.higher_is_better else min(values)


AVERAGE_PRECISION = Column(("average_precision",), "AP", 3)
F1 = Column(("f1",), "F1\ntuned", 3)
F1_AT_HALF = Column(("f1_at_half",), "F1\nat .5", 3)
FALSE_ALARMS = {
    recall: Column(("false_alarms_per_10k_at_recall", recall), f"FA/10k\nat {recall}", 2, higher_is_better=False)
    for recall in ("0.60", "0.65", "0.70", "0.80")
}
"""False alarms per 10,000 legitimate rows, by recall."""
PRECISION = Column(("precision",), "precision\ntuned", 3, ranked=False)
RECALL = Column(("recall",), "recall\ntuned", 3, ranked=False)
RECALL_AT_FPR = Column(("recall_at_fpr", "0.001"), "recall at\nFPR .001", 3)
CARD_PRECISION = Column(("card_precision_at_100",), "card\nP@100", 3)
BRIER = Column(("brier",), "Brier", 5, higher_is_better=False)
ECE = Column(("ece",), "ECE", 5, higher_is_better=False)


def models_of(report: Mapping[str, Any], run_title: str = THIS_RUN) -> dict[str, Metrics]:
    """Return the metrics of every model by its name for readers: the run, its baselines, its parts."""
    return {run_title: report["test"]} | baselines_of(report) | parts_of(report)


def baselines_of(report: Mapping[str, Any]) -> dict[str, Metrics]:
    """Return the metrics of the baselines by their names for readers, the highest average precision first."""
    found = [(name, metrics) for name, metrics in report["baselines"].items() if name not in PARTS]
    found.sort(key=lambda each: -(AVERAGE_PRECISION.value(each[1]) or 0.0))
    return {TITLES.get(name, name): metrics for name, metrics in found}


def parts_of(report: Mapping[str, Any]) -> dict[str, Metrics]:
    """Return the metrics of the detector's parts by their names for readers.

    Empty for a network alone. A part that is the whole detector is left out: its row would be that of the
    run.
    """
    members = report.get("run", {}).get("members") or {}
    return {TITLES[name]: report["baselines"][name] for name in PARTS if name in report["baselines"] and set(members) != {name}}


def members_sentence(report: Mapping[str, Any]) -> str:
    """Say how the detector combines its members; empty for a network alone."""
    members = report.get("run", {}).get("members")
    if not members:
        return ""
    if len(members) == 1:
        return "This run has no network: it is stage 2 of the trees, which reads the scores of stage 1."
    weights = " + ".join(f"{weight:.2f} × {TITLES.get(name, name)}" for name, weight in members.items())
    return f"In log-odds, this run is {weights}; both read the scores of stage 1."


DRAWS = 200
_MOST_DRAWN = 2_000


def chance_warning(test: Metrics) -> str:
    """Say that a result is no better than chance; empty where it is better, or without frauds.

    Random rankings of as many frauds and rows are drawn: the average precision is at the level of chance if
    it is below the 97.5 % quantile of theirs.
    """
    precision, frauds, rows = test.get("average_precision"), test.get("positives"), test.get("rows")
    if precision is None or not frauds or not rows or frauds >= rows:
        return ""
    share, drawn = frauds / rows, min(frauds, _MOST_DRAWN)
    size = round(drawn / share)
    rng = np.random.default_rng(0)
    found = np.arange(1, drawn + 1)
    by_chance = [float(np.mean(found / np.sort(rng.choice(size, drawn, replace=False) + 1))) for _ in range(DRAWS)]
    # Fewer frauds vary more: the spread shrinks with the square root of their number.
    spread = (float(np.quantile(by_chance, 0.975)) - float(np.mean(by_chance))) * math.sqrt(drawn / frauds)
    if precision > float(np.mean(by_chance)) + spread:
        return ""
    return (
        f"Warning: average precision {precision:.3f} is at the level of chance (share of frauds {share:.3f}): the fields say nothing about "
        "the label. Check the roles of the columns, the label and --negative."
    )


def standard_error(metrics: Metrics) -> float | None:
    """Estimate the standard error of the average precision, sqrt(AP (1 - AP) / frauds).

    The binomial estimate of Boyd, Eng and Page (2013). It is too large for two models on the same rows and
    too small for two training seeds, so it is a scale for differences, not a test. None without frauds.
    """
    precision, frauds = metrics["average_precision"], metrics["positives"]
    return None if precision is None or not frauds else math.sqrt(precision * (1 - precision) / frauds)


@dataclass(frozen=True)
class Difference:
    """The difference between this run and one baseline in one metric."""

    name: str
    this: str
    other: str
    change: str
    outcome: str
    """`better`, `worse` or `equal`."""


def differences(test: Metrics, baseline: Metrics) -> list[Difference]:
    """Compare this run with a baseline.

    The metrics are average precision, F1 at the tuned threshold, and false alarms at recall .60 and .70,
    where both models have them.
    """
    named: list[tuple[str, Column, Callable[[float, float], str]]] = [
        ("average precision", AVERAGE_PRECISION, lambda this, other: f"{this - other:+.3f}"),
        ("F1 at the tuned threshold", F1, lambda this, other: f"{this - other:+.3f}"),
        ("false alarms at recall 0.60", FALSE_ALARMS["0.60"], _percent),
        ("false alarms at recall 0.70", FALSE_ALARMS["0.70"], _percent),
    ]
    found = []
    for name, column, change in named:
        this, other = column.value(test), column.value(baseline)
        if this is None or other is None:
            continue
        outcome = "equal" if this == other else "better" if (this > other) == column.higher_is_better else "worse"
        found.append(Difference(name, column.text(test), column.text(baseline), change(this, other), outcome))
    return found


def _percent(this: float, other: float) -> str:
    return f"{100 * (this / other - 1):+.0f} %" if other else f"{this - other:+.2f}"


def summary(report: Mapping[str, Any]) -> str:
    """Summarise the report in one or two sentences: LightGBM first, then baselines that are better.

    Parts of the detector are no rivals and are left out.
    """
    test, error = report["test"], standard_error(report["test"])
    this = AVERAGE_PRECISION.value(test)
    if this is None or error is None:
        return "The test rows have no fraud, so this run can't be evaluated."
    found: list[tuple[str, str, str]] = []
    for title, metrics in baselines_of(report).items():
        other = AVERAGE_PRECISION.value(metrics)
        if other is not None:
            key = "equal to" if this == other else "below" if this < other else "above"
            found.append((key, title, title if this == other else f"{title} ({this - other:+.3f})"))
    found.sort(key=lambda each: (each[1] != TITLES["lightgbm"], ("below", "equal to", "above").index(each[0])))
    position: dict[str, list[str]] = {}
    for key, _, named in found:
        position.setdefault(key, []).append(named)
    places = "; ".join(f"{key} {_listed(names)}" for key, names in position.items())
    alarms = FALSE_ALARMS["0.60"]
    rivals = {THIS_RUN: test} | baselines_of(report)
    best = [title for title, metrics in rivals.items() if alarms.value(metrics) == alarms.best(list(rivals.values()))]
    fewest = ""
    if best and alarms.value(test) is not None:
        value = alarms.text(rivals[best[0]])
        fewest = f" Fewest false alarms per 10,000 legitimate rows at recall 0.60: {_listed(best)} with {value}"
        fewest += "." if THIS_RUN in best else f"; this run has {alarms.text(test)}."
    return f"Average precision {this:.3f} (± {error:.3f}){', ' + places if places else ''}.{fewest}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
