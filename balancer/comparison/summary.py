"""The result of a comparison: the JSON document, and a summary in one sentence.

The summary names the treatment with the best average precision on the test rows, which favours it a little,
because it is the best of several. A difference whose interval includes 0 is reported as noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from balancer.comparison.cells import present_keys
from balancer.comparison.statistics import FALSE_ALARMS, means, paired
from balancer.names import counted

SUBJECT = "auto"
"""The treatment that the summary mentions besides the best one."""
HEADLINE = "average_precision"
ALARMS = f"{FALSE_ALARMS}_0.60"
FEWEST_FOLDS = 5
"""With fewer folds no difference is called more than noise.

The signs of all folds agree too often by chance: one time in eight with four folds."""


def document(results: Sequence[Mapping[str, Any]], reference: str) -> dict[str, Any]:
    """The document of a comparison, as values that JSON can hold.

    Returns:
        ``results``, ``reference``, ``paired`` and ``means`` by treatment and metric, ``sentence``.
    """
    differences, averages = paired(results, reference), means(results)
    return {
        "results": [dict(result) for result in results],
        "reference": reference,
        "paired": differences,
        "means": averages,
        "sentence": sentence(differences, averages, reference, _extent(results)),
    }


def present_document(content: Mapping[str, Any]) -> dict[str, Any]:
    """A document that version 0.1 may have written, with the present keys.

    Version 0.1 called treatments policies and folds windows.
    """
    paired_by_metric = {
        name: {metric: present_keys(difference) for metric, difference in metrics.items()} for name, metrics in content["paired"].items()
    }
    for metrics in paired_by_metric.values():
        for difference in metrics.values():
            if difference["over"] == "windows":
                difference["over"] = "folds"
    present = present_keys(content) | {"results": [present_keys(result) for result in content["results"]], "paired": paired_by_metric}
    if "folds" in present:
        present["folds"] = [present_keys(fold) for fold in present["folds"]]
    return present


def sentence(
    differences: Mapping[str, Mapping[str, Mapping[str, Any]]], averages: Mapping[str, Mapping[str, float]], reference: str, extent: str
) -> str:
    """The best treatment, its gain over the reference, and whether that is more than noise."""
    ranked = sorted((name for name in averages if HEADLINE in averages[name]), key=lambda name: -averages[name][HEADLINE])
    if not ranked:
        return f"Over {extent} no treatment has an average precision: there is no positive test row."
    best = ranked[0]
    text = f"Over {extent}, {best} has the best average precision ({averages[best][HEADLINE]:.3f})"
    if len(ranked) == 1:
        return text + "; there is nothing to compare it with."
    if best == reference:
        text += ", the reference itself"
    elif best in differences:
        text += f": {_gain(differences[best], reference)}"
    if SUBJECT in differences and best != SUBJECT and HEADLINE in differences[SUBJECT]:
        text += f"; {SUBJECT} has {averages[SUBJECT][HEADLINE]:.3f}: {_gain(differences[SUBJECT], reference)}"
    return text + "."


def _gain(differences: Mapping[str, Mapping[str, Any]], reference: str) -> str:
    difference = differences[HEADLINE]
    text = f"{difference['difference']:+.3f} against {reference} {interval(difference)}, {noise(difference)}"
    alarms = differences.get(ALARMS)
    if alarms is not None:
        low, high = alarms["ratio_low"], alarms["ratio_high"]
        between = "" if low is None else f" [{100 * (low - 1):+.0f} %, {100 * (high - 1):+.0f} %]"
        text += f"; false alarms at recall .60 {100 * (alarms['ratio'] - 1):+.0f} %{between}"
        if low is not None and low <= 1 <= high:
            text += ", no more than noise"
    return text


def interval(difference: Mapping[str, Any]) -> str:
    """The interval as ``[low, high]``, or a note that there is none."""
    if difference["low"] is None:
        return "(one training, no interval)"
    return f"[{difference['low']:+.3f}, {difference['high']:+.3f}]"


def noise(difference: Mapping[str, Any]) -> str:
    """Whether a difference is more than noise, in words."""
    if difference["low"] is None:
        return "which can't be distinguished from noise"
    if difference["low"] <= 0 <= difference["high"]:
        return "no more than noise (the interval includes 0)"
    if difference["over"] == "seeds":
        return "more than the noise of seeds (one fold: the result may differ at other times)"
    if difference["folds"] < FEWEST_FOLDS:
        return f"the interval does not include 0, but {difference['folds']} folds are too few to rule out noise"
    return f"more than noise, better in {difference['folds_better']} of {difference['folds']} folds"


def _extent(results: Sequence[Mapping[str, Any]]) -> str:
    folds, seeds = (len({result[name] for result in results}) for name in ("fold", "seed"))
    return f"{counted(folds, 'fold')} and {counted(seeds, 'seed')}"
