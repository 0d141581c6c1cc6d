"""This run beside its baselines: which figures are shown, how they read, and who won.

Special: a loss is said in the same words as a win. Figures are compared as shown, rounded, so that what reads alike ranks alike, and the
standard error of one test set goes with every verdict, so that noise is not sold as gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TITLES = {"none": "no sampling", "one_to_one": "1:1 over-sampling", "class_weight": "class weights", "lightgbm": "LightGBM"}
"""How a baseline is called in front of people."""
THIS_RUN = "this run"

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of a model: where it is in the report's dict, how it is headed and written, and which way is better."""

    path: tuple[str, ...]
    """Keys from a model's figures down to the number."""
    head: str
    """Heading, two lines at most."""
    decimals: int
    higher_is_better: bool = True
    judged: bool = True
    """Whether a best value is marked: precision and recall at a threshold trade against one another, so alone they tell no winner."""

    def value(self, figures: Figures) -> float | None:
        """The number as shown (rounded), so that what reads alike ranks alike; None where it does not exist."""
        found: Any = figures
        for key in self.path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return None if found is None else round(float(found), self.decimals)

    def text(self, figures: Figures) -> str:
        """The number as people read it."""
        value = self.value(figures)
        return "–" if value is None else f"{value:,.{self.decimals}f}"

    def best(self, models: Sequence[Figures]) -> float | None:
        """The best value among ``models``; None where there is none or all are level."""
        values = [value for value in map(self.value, models) if value is not None]
        if not self.judged or len(set(values)) < 2:
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
PRECISION = Column(("precision",), "precision\ntuned", 3, judged=False)
RECALL = Column(("recall",), "recall\ntuned", 3, judged=False)
RECALL_AT_FPR = Column(("recall_at_fpr", "0.001"), "recall at\nFPR .001", 3)
CARD_PRECISION = Column(("card_precision_at_100",), "card\nP@100", 3)
BRIER = Column(("brier",), "Brier", 5, higher_is_better=False)
ECE = Column(("ece",), "ECE", 5, higher_is_better=False)


def models_of(report: Mapping[str, Any], run_title: str = THIS_RUN) -> dict[str, Figures]:
    """Figures of this run and of its baselines by the names people read, this run first."""
    return {run_title: report["test"]} | {TITLES.get(name, name): figures for name, figures in report["baselines"].items()}


def standard_error(figures: Figures) -> float | None:
    """Standard error of the average precision by the number of frauds in the test rows, sqrt(AP (1 - AP) / frauds).

    The binomial estimate of Boyd, Eng and Page (2013). Two models on the same rows differ by less chance than this says, two training
    seeds by more than it knows: a measure to read differences by, not a test.
    """
    precision, frauds = figures["average_precision"], figures["positives"]
    return None if precision is None or not frauds else math.sqrt(precision * (1 - precision) / frauds)


@dataclass(frozen=True)
class Difference:
    """This run against one baseline in one figure."""

    name: str
    this: str
    other: str
    change: str
    outcome: str
    """better, worse or level."""


def differences(test: Figures, baseline: Figures) -> list[Difference]:
    """Average precision, F1 at the tuned threshold, and false alarms at recall .60 and .70 where both models reach it."""
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
        outcome = "level" if this == other else "better" if (this > other) == column.higher_is_better else "worse"
        found.append(Difference(name, column.text(test), column.text(baseline), change(this, other), outcome))
    return found


def _percent(this: float, other: float) -> str:
    return f"{100 * (this / other - 1):+.0f} %" if other else f"{this - other:+.2f}"


def verdict(report: Mapping[str, Any]) -> str:
    """One sentence on where this run stands, losses first where there are any."""
    test, error = report["test"], standard_error(report["test"])
    own = AVERAGE_PRECISION.value(test)
    if own is None or error is None:
        return "The test rows hold no fraud, so nothing can be said about this run."
    standing: dict[str, list[str]] = {"below": [], "level with": [], "above": []}
    for title, figures in list(models_of(report).items())[1:]:
        other = AVERAGE_PRECISION.value(figures)
        if other is not None:
            key = "level with" if own == other else "below" if own < other else "above"
            standing[key].append(title if own == other else f"{title} ({own - other:+.3f})")
    places = "; ".join(f"{key} {_listed(names)}" for key, names in standing.items() if names)
    alarms = FALSE_ALARMS["0.60"]
    best = [title for title, figures in models_of(report).items() if alarms.value(figures) == alarms.best(list(models_of(report).values()))]
    fewest = ""
    if best and alarms.value(test) is not None:
        value = alarms.text(models_of(report)[best[0]])
        fewest = f" Fewest false alarms per 10,000 legitimate rows at recall 0.60: {_listed(best)} with {value}"
        fewest += "." if THIS_RUN in best else f", against {alarms.text(test)} here."
    return f"Average precision {own:.3f} (± {error:.3f}){', ' + places if places else ''}.{fewest}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
