"""Say in numbers and sentences what the sampling weights of a run did; this module does not use Streamlit.

What is special: a difference that can be noise is called no clear difference. The noise is two standard
errors of the average precision on the validation frauds, the same scale as in the report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from balancer.evaluation.report_content import TITLES, standard_error
from balancer.sampling.weights import class_weights

Outcome = Literal["better", "worse", "unclear"]
NO_SAMPLING = TITLES["none"]
BEST = "best constant on the map"
_RUN = "run"
_METRICS = {"average_precision": "average precision", "f1": "F1"}


@dataclass(frozen=True)
class Verdict:
    """A sentence and what it says of the run or the person."""

    outcome: Outcome
    sentence: str


def drawn_and_counted(epochs: pl.DataFrame, prior: Sequence[float] | None) -> pl.DataFrame:
    """Return the share of fraud among the drawn rows, in the loss, and in the training rows, by epoch.

    What counts in the loss is the share of a class times the mean weight of its drawn rows.

    Args:
        epochs: Rows of one model in `epochs.parquet`; `share_CLASS` begins with the legitimate class.
        prior: Share of each class in the training rows, in the same order; None if it is not known.

    Returns:
        Columns `epoch, drawn`, and `counted, table` where the prior is known; version 0.1 wrote no
        importance, and every drawn row counted alike.
    """
    names = [name for name in epochs.columns if name.startswith("share_")]
    share = epochs.select(names).to_numpy()
    found = epochs.select("epoch").with_columns(drawn=pl.Series(1.0 - share[:, 0]))
    if prior is None:
        return found
    importance = epochs["class_importance"].to_numpy() if "class_importance" in epochs.columns else np.zeros(len(share))
    mass = share * class_weights(share, importance[:, None], np.asarray(prior, dtype=np.float64))
    return found.with_columns(counted=pl.Series(1.0 - mass[:, 0]), table=pl.lit(1.0 - float(prior[0])))


def class_shares(epochs: pl.DataFrame, report: Mapping[str, Any]) -> list[float] | None:
    """Return the share of each class in the training rows, in the order of `share_CLASS`.

    Args:
        epochs: All rows of `epochs.parquet`. Without sampling, the shares are those of the table.
        report: The content of `report.json`, which has the counts of the classes where no baseline is there.
    """
    names = [name for name in epochs.columns if name.startswith("share_")]
    rows = epochs.filter(pl.col("model") == "none")
    if rows.height:
        return [float(value) for value in rows.select(names).row(-1)]
    counts = report.get("run", {}).get("data", {}).get("parts", {}).get("train", {}).get("classes", {})
    found = [counts.get(name.removeprefix("share_")) for name in names]
    return None if None in found or not sum(found) else [count / sum(found) for count in found]


def validation_frauds(report: Mapping[str, Any]) -> int | None:
    """Return the number of frauds in the rows on which epochs are evaluated; None if it is not known."""
    classes = report.get("run", {}).get("data", {}).get("parts", {}).get("reward", {}).get("classes", {})
    return sum(list(classes.values())[1:]) or None


def noise_of(value: float, frauds: int | None) -> float | None:
    """Return two standard errors of an average precision on so many frauds; None if they are not known."""
    error = standard_error({"average_precision": value, "positives": frauds})
    return None if error is None else 2 * error


def compared(this: float, other: float, noise: float | None) -> Outcome:
    """Say whether a value is better than another by more than the noise."""
    if noise is None or abs(this - other) <= noise:
        return "unclear"
    return "better" if this > other else "worse"


def run_verdict(epochs: pl.DataFrame, *, frauds: int | None, on_trees: bool) -> Verdict | None:
    """Compare the weights of the run with the fixed weights of its baselines on validation rows.

    Args:
        epochs: All rows of `epochs.parquet`: columns `model, epoch, average_precision, ...`.
        frauds: Frauds among the validation rows, or None.
        on_trees: Whether the network starts from the scores of trees, which the baselines do not.

    Returns:
        The verdict; None without baselines or metrics.
    """
    best = dict(epochs.drop_nulls("average_precision").group_by("model").agg(pl.col("average_precision").max()).rows())
    this = best.pop(_RUN, None)
    if this is None or not best:
        return None
    name = max(best, key=lambda key: (best[key], key))
    other, noise = best[name], noise_of(this, frauds)
    outcome = compared(this, other, noise)
    values = (
        f"average precision {this:.3f} against {other:.3f} of {TITLES.get(name, name)}, the best fixed weights, in the best epoch of each"
    )
    words = {"better": "The weights of this run are better", "worse": "The weights of this run are worse", "unclear": "No clear difference"}
    said = f"{words[outcome]} on validation: {values}{_scale(noise, frauds)}"
    if on_trees and outcome == "better":
        said += "; this network starts from the scores of the trees and the others do not, so the weights alone do not explain it"
    return Verdict(outcome, f"{said}.")


def students_verdict(evaluation: Mapping[str, Mapping[str, float]], names: Mapping[str, str], metric: str, error: float | None) -> Verdict:
    """Compare the learned policy with the best other weights on small students with new seeds.

    Args:
        evaluation: Metrics by policy: `ppo` and others.
        names: Names for readers.
        metric: The metric that PPO maximised.
        error: Standard error of the difference, or None for runs of earlier versions.
    """
    others = {name: values[metric] for name, values in evaluation.items() if name != "ppo"}
    best = max(others, key=lambda name: (others[name], name))
    this, other = evaluation["ppo"][metric], others[best]
    outcome = compared(this, other, None if error is None else 2 * error)
    words = {"better": "The learned policy is better", "worse": "The learned policy is worse", "unclear": "No clear difference"}
    title = _METRICS.get(metric, metric.replace("_", " "))
    noise = "; its noise was not measured" if error is None else f"; differences below {2 * error:.3f} can be noise"
    return Verdict(
        outcome, f"{words[outcome]}: {title} {this:.3f} against {other:.3f} of {names.get(best, best)}, the best of the others{noise}."
    )


def map_marks(surface: pl.DataFrame, metric: str) -> dict[str, tuple[float, float]]:
    """Return share and hardness of the best constant of a map, and of no sampling, by name.

    Where the best constant is no sampling, there is one mark whose name says so.
    """
    best = surface.sort(metric, descending=True, maintain_order=True).row(0, named=True)
    none = surface.sort("share", "hardness").row(0, named=True)
    place, nothing = (float(best["share"]), float(best["hardness"])), (float(none["share"]), float(none["hardness"]))
    return {f"{BEST}: {NO_SAMPLING}": place} if place == nothing else {BEST: place, NO_SAMPLING: nothing}


def map_verdict(surface: pl.DataFrame, path: pl.DataFrame, metric: str, frauds: int | None) -> Verdict:
    """Compare the best constant of the map with no sampling and with the last weights of the run.

    Args:
        surface: Columns `share, hardness` and the metrics.
        path: Columns `epoch, share, hardness` of the run.
        metric: `average_precision` or `f1`.
        frauds: Frauds among the validation rows, or None.
    """
    best = surface.sort(metric, descending=True, maintain_order=True).row(0, named=True)
    none = surface.sort("share", "hardness").row(0, named=True)
    here = nearest_cell(surface, path.sort("epoch").row(-1, named=True))
    noise = noise_of(best[metric], frauds)
    outcome = compared(here[metric], none[metric], noise)
    weights = f"a share of {_percent(best['share'])} and hardness {best['hardness']:g}"
    if best["share"] == none["share"] and best["hardness"] == none["hardness"]:
        weights += ", which is no sampling"
    clear = "which is clearly better than" if compared(best[metric], none[metric], noise) == "better" else "no clear difference from"
    said = f"The best constant on these students is {weights}, with {_METRICS[metric]} {best[metric]:.3f}"
    if "no sampling" not in weights:
        said += f", {clear} no sampling ({none[metric]:.3f})"
    return Verdict(outcome, f"{said}; the last weights of this run are near {here[metric]:.3f}{_scale(noise, frauds)}.")


def nearest_cell(surface: pl.DataFrame, weights: Mapping[str, float]) -> dict[str, Any]:
    """Return the cell of the map that is nearest to some weights, by the logarithm of the share."""
    shares, powers = surface["share"].to_numpy(), surface["hardness"].to_numpy()
    wide = math.log(max(shares.max() / shares.min(), 1.0001)), max(float(np.ptp(powers)), 1e-9)
    share = max(float(weights["share"]), 1e-12)
    distance = (np.log(shares / share) / wide[0]) ** 2 + ((powers - weights["hardness"]) / wide[1]) ** 2
    return surface.row(int(distance.argmin()), named=True)


def game_verdict(last: Mapping[str, float], you: str, frauds: int | None) -> Verdict:
    """Say how the game ended: against the best of the other players.

    Args:
        last: Average precision by player after the last epoch.
        you: Name of the person.
        frauds: Frauds among the validation rows, or None.
    """
    others = {name: value for name, value in last.items() if name != you}
    best = max(others, key=lambda name: (others[name], name))
    noise = noise_of(last[you], frauds)
    outcome = compared(last[you], others[best], noise)
    words = {"better": f"you are better than {best}", "worse": f"you lose against {best}", "unclear": f"no clear difference from {best}"}
    return Verdict(
        outcome,
        f"The game is over: {words[outcome]}, the best of the others ({last[you]:.3f} against {others[best]:.3f}, "
        f"{last[you] - others[best]:+.3f}){_scale(noise, frauds)}.",
    )


def _scale(noise: float | None, frauds: int | None) -> str:
    if noise is None:
        return "; the number of validation frauds is not known, so the noise is not either"
    return f"; with {frauds:,} validation frauds, differences below {noise:.3f} can be noise"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
