"""What a comparison comes to: the JSON document, and one sentence that is not kinder than its figures.

The sentence names the policy with the best average precision on the test rows, which favours it a little: it is the best of several. Intervals that include 0
are called what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from balancer.comparison.statistics import FALSE_ALARMS, means, paired

SUBJECT = "auto"
"""The policy that the sentence is about, besides the best one."""
HEADLINE = "average_precision"
ALARMS = f"{FALSE_ALARMS}_0.60"
FEWEST_WINDOWS = 5
"""With fewer, that all windows agree in sign happens too often by chance (one time in eight with four) to be called more than noise."""


def document(results: Sequence[Mapping[str, Any]], reference: str) -> dict[str, Any]:
    """JSON-able: ``results``, ``reference``, ``paired`` and ``means`` by policy and metric, ``sentence``."""
    differences, averages = paired(results, reference), means(results)
    return {
        "results": [dict(result) for result in results],
        "reference": reference,
        "paired": differences,
        "means": averages,
        "sentence": sentence(differences, averages, reference, _extent(results)),
    }


def sentence(
    differences: Mapping[str, Mapping[str, Mapping[str, Any]]], averages: Mapping[str, Mapping[str, float]], reference: str, extent: str
) -> str:
    """What won, by how much, and whether that is more than noise."""
    ranked = sorted((name for name in averages if HEADLINE in averages[name]), key=lambda name: -averages[name][HEADLINE])
    if not ranked:
        return f"Over {extent} no policy has an average precision: the test rows hold no positive one."
    best = ranked[0]
    told = f"Over {extent}, {best} has the best average precision ({averages[best][HEADLINE]:.3f})"
    if len(ranked) == 1:
        return told + "; there is nothing to compare it with."
    if best == reference:
        told += ", the reference itself"
    elif best in differences:
        told += f": {_gain(differences[best], reference)}"
    if SUBJECT in differences and best != SUBJECT and HEADLINE in differences[SUBJECT]:
        told += f"; {SUBJECT} has {averages[SUBJECT][HEADLINE]:.3f}: {_gain(differences[SUBJECT], reference)}"
    return told + "."


def _gain(own: Mapping[str, Mapping[str, Any]], reference: str) -> str:
    difference = own[HEADLINE]
    text = f"{difference['difference']:+.3f} against {reference} {interval(difference)}, {noise(difference)}"
    alarms = own.get(ALARMS)
    if alarms is not None:
        low, high = alarms["ratio_low"], alarms["ratio_high"]
        between = "" if low is None else f" [{100 * (low - 1):+.0f} %, {100 * (high - 1):+.0f} %]"
        text += f"; false alarms at recall .60 {100 * (alarms['ratio'] - 1):+.0f} %{between}"
        if low is not None and low <= 1 <= high:
            text += ", no more than noise"
    return text


def interval(difference: Mapping[str, Any]) -> str:
    """``[low, high]``, or that there is none."""
    if difference["low"] is None:
        return "(one training, no interval)"
    return f"[{difference['low']:+.3f}, {difference['high']:+.3f}]"


def noise(difference: Mapping[str, Any]) -> str:
    """Whether a difference is more than noise, in words."""
    if difference["low"] is None:
        return "which nothing tells from noise"
    if difference["low"] <= 0 <= difference["high"]:
        return "no more than noise (the interval includes 0)"
    if difference["over"] == "seeds":
        return "more than the noise of seeds (one window: of other times it says nothing)"
    if difference["windows"] < FEWEST_WINDOWS:
        return f"the interval leaves out 0, but {difference['windows']} windows are too few to tell it from noise"
    return f"more than noise, better in {difference['windows_better']} of {difference['windows']} windows"


def _extent(results: Sequence[Mapping[str, Any]]) -> str:
    windows, seeds = (len({result[name] for result in results}) for name in ("window", "seed"))
    return f"{windows} window{'s' * (windows != 1)} and {seeds} seed{'s' * (seeds != 1)}"
