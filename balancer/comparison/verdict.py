"""Whether learned sampling weights beat the best fixed ratio of a comparison, in one sentence.

What is special: the learned treatment is compared with the fixed ratio that is best on the test rows, which
favours the fixed ratio a little, and never with a weak one. A difference whose interval includes 0, or that
has no interval, is no clear difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from balancer.comparison.config import PLAIN
from balancer.comparison.statistics import means, paired
from balancer.comparison.summary import FEWEST_FOLDS, HEADLINE
from balancer.names import counted

Kind = Literal["learned weights", "fixed ratio", "boosted trees", "other method"]
Outcome = Literal["better", "worse", "unclear", "missing"]
KINDS: tuple[Kind, ...] = ("learned weights", "fixed ratio", "boosted trees", "other method")
LEARNED = ("ppo", "start", "bandit")
"""Treatments whose weights are learned, the one that is learned on the table first.

So are those of a policy in a folder."""
FIXED_RATIOS = ("none", "one_to_one", "under", "auto", "constant", "constant_share", "tpe")
_OTHER = ("smote", "none_zero_bias", "class_weight", "focal", "focal_zero_bias", "logit_adjustment", "rule", "schedule", "random")
NAMES = {
    "none": "no sampling",
    "one_to_one": "1:1 over-sampling",
    "under": "1:1 under-sampling",
    "smote": "SMOTE",
    "class_weight": "class weights",
    "focal": "focal loss",
    "logit_adjustment": "logit adjustment",
    "auto": "the constant of the package (auto)",
    "constant_share": "the best constant share of several",
    "constant": "the best constant of a grid",
    "tpe": "the best constant of a TPE search",
    "ppo": "PPO",
    "bandit": "the bandit",
    "start": "the policy of the package",
    "rule": "a rule",
    "lightgbm": "LightGBM",
}
"""Names of treatments for readers."""


@dataclass(frozen=True)
class Verdict:
    """Learned weights against the best fixed ratio."""

    outcome: Outcome
    sentence: str
    learned: str | None = None
    """The learned treatment that was compared."""
    fixed: str | None = None
    """The fixed ratio with the highest average precision."""


def kind_of(treatment: str) -> Kind:
    """What a treatment is.

    >>> kind_of("ppo"), kind_of("constant:share=.2"), kind_of("lightgbm"), kind_of("focal")
    ('learned weights', 'fixed ratio', 'boosted trees', 'other method')
    """
    name = treatment.removeprefix(PLAIN).partition(":")[0]
    if name == "lightgbm":
        return "boosted trees"
    if name in FIXED_RATIOS:
        return "fixed ratio"
    return "other method" if name in _OTHER else "learned weights"


def title_of(treatment: str) -> str:
    """The name of a treatment for readers; one without a name of its own stays as it was typed."""
    return NAMES.get(treatment, treatment)


def best_fixed(averages: Mapping[str, Mapping[str, float]]) -> str | None:
    """The fixed ratio with the highest mean average precision, or None."""
    fixed = [name for name, metrics in averages.items() if kind_of(name) == "fixed ratio" and HEADLINE in metrics]
    return max(fixed, key=lambda name: averages[name][HEADLINE], default=None)


def learned_verdict(results: Sequence[Mapping[str, Any]]) -> Verdict:
    """Compare learned weights with the best fixed ratio.

    Args:
        results: Cells of a comparison, as `balancer.comparison.statistics.paired` takes them.
    """
    averages = means(results)
    fixed, learned = best_fixed(averages), _learned(averages)
    if learned is None or fixed is None:
        missing = "learned weights, such as ppo" if learned is None else "a fixed ratio, such as one_to_one"
        return Verdict(
            "missing", f"This comparison has no treatment with {missing}, so there is no verdict on learned weights.", learned, fixed
        )
    difference = paired([each for each in results if each["treatment"] in (learned, fixed)], fixed)[learned].get(HEADLINE)
    if difference is None:
        return Verdict(
            "missing", "Learned weights and the best fixed ratio were not trained in the same fold and seed yet.", learned, fixed
        )
    best = f"the best fixed ratio here, {title_of(fixed)}"
    value, low, high = difference["difference"], difference["low"], difference["high"]
    if low is None or high is None:
        one = f"{value:+.3f} average precision in one training, which has no interval"
        return Verdict("unclear", f"Learned weights ({title_of(learned)}) do not clearly beat {best}: {one}.", learned, fixed)
    interval = f"95 % interval {low:+.3f} to {high:+.3f}"
    if low <= 0 <= high:
        text = f"There is no clear difference between learned weights ({title_of(learned)}) and {best}: {value:+.3f} average precision, {interval}."
        return Verdict("unclear", text, learned, fixed)
    subject = f"Learned weights ({title_of(learned)})"
    text = f"{subject} beat {best}, by {value:.3f} average precision ({interval})"
    if value < 0:
        text = f"{subject} do not beat {best}: they are lower by {-value:.3f} average precision ({interval})"
    return Verdict("better" if value > 0 else "worse", f"{text}{_extent(difference)}.", learned, fixed)


def _learned(averages: Mapping[str, Mapping[str, float]]) -> str | None:
    """The learned treatment to compare: the first of `LEARNED`, else a policy of a folder."""
    names = [name for name, metrics in averages.items() if kind_of(name) == "learned weights" and HEADLINE in metrics]
    return min(names, key=lambda name: LEARNED.index(name) if name in LEARNED else len(LEARNED), default=None)


def _extent(difference: Mapping[str, Any]) -> str:
    """What the result rests on, where that is little."""
    if difference["over"] == "seeds":
        return "; this is one time fold, and other times may differ"
    if difference["folds"] < FEWEST_FOLDS:
        return f"; {counted(difference['folds'], 'fold')} are too few to rule out noise"
    return ""
