"""Turn the JSON of a session into the controller of its sampling, and its state into JSON.

Requests and answers list classes sorted by name. In the controller the most frequent class comes first.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.sampling.controller import SamplingController
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import load_policy
from balancer.sampling.weights import Floats, SamplingWeights, class_prior
from balancer.serving.sessions.schemas import POLICIES, EpochHistograms, EpochScores, Weights

SORTED = "sorted"
"""Order of the classes in requests and answers. A session that version 0.1 began has none: commonest class
first."""
_POLICY = re.compile(r"[a-z]+(:[a-z0-9_=.,+-]*)?")


def shown_classes(request: dict[str, Any]) -> list[str]:
    """List the classes in the order of requests and answers."""
    return sorted(request["classes"]) if request.get("class_order") == SORTED else _controller_classes(request)


def controller_of(request: dict[str, Any]) -> SamplingController:
    """Build the controller of a session.

    Args:
        request: A `SessionRequest` as a dict.

    Raises:
        InputError: If the policy or a class is unknown, or the policy can't be used for these classes.
    """
    classes, policy = _controller_classes(request), request["policy"]
    if not _POLICY.fullmatch(policy) or policy.partition(":")[0] not in POLICIES:
        raise InputError(f"policy: the service has no policy {policy!r}; {nearest(policy, POLICIES)}")
    train = np.array([request["classes"][name] for name in classes])
    reward = request["reward_classes"] or request["classes"]
    unknown = sorted(set(reward) - set(classes))
    if unknown:
        raise InputError(f"reward_classes: unknown class {unknown[0]!r}; {nearest(unknown[0], classes)}")
    return SamplingController(
        class_prior(train),
        load_policy(policy, num_classes=len(classes)),
        epochs=request["epochs"],
        batch_budget=request["epochs"] * (request["num_samples"] or int(train.sum())),
        train_counts=train,
        reward_counts=np.array([reward.get(name, 0) for name in classes]),
        compensated=bool(request.get("compensated", False)),
    )


def weights_of(controller: SamplingController, request: dict[str, Any]) -> Weights:
    """Return the current weights of a controller."""
    weights: SamplingWeights = controller.weights
    share = dict(zip(_controller_classes(request), weights.share.tolist(), strict=True))
    shown = {name: share[name] for name in shown_classes(request)}
    return Weights(
        epoch=controller.epoch,
        weights=shown,
        hardness=weights.hardness,
        floor=weights.floor,
        class_importance=weights.class_importance,
        hardness_importance=weights.hardness_importance,
        half_life=weights.half_life if math.isfinite(weights.half_life) else None,
        metrics=controller.metrics,
    )


def scored_rows(report: EpochScores | EpochHistograms, request: dict[str, Any], prior: Floats, key: str) -> ScoredRows:
    """Convert reported scores or histograms to scored rows.

    Args:
        report: Scores or histograms.
        request: The `SessionRequest` of the session as a dict.
        prior: (K,) shares of the classes in the training rows.
        key: The key of the report in messages, `reward` or `train`.

    Raises:
        InputError: If a class is unknown, lengths do not match, or the reward has rows of one class only.
    """
    classes = _controller_classes(request)
    if isinstance(report, EpochScores):
        rows = _from_scores(report, classes, shown_classes(request), key)
    else:
        rows = _from_histograms(report, classes, prior, key)
    present = set(np.unique(rows.label).tolist())
    if key == "reward" and not (0 in present and len(present) > 1):
        raise InputError(f"{key}: one class is not enough to measure a reward; give rows of {classes[0]!r} and of at least one other class")
    return rows


def _controller_classes(request: dict[str, Any]) -> list[str]:
    """List the classes in the order of the controller: most frequent first, equally frequent ones by name."""
    return sorted(request["classes"], key=lambda name: (-request["classes"][name], name))


def _from_scores(report: EpochScores, classes: list[str], shown: list[str], key: str) -> ScoredRows:
    code = {name: number for number, name in enumerate(classes)}
    unknown = next((name for name in report.labels if name not in code), None)
    if unknown is not None:
        raise InputError(f"{key}.labels: unknown class {unknown!r}; {nearest(unknown, classes)}")
    label = np.array([code[name] for name in report.labels], dtype=np.int64)
    has_columns = isinstance(report.scores[0], list) if report.scores else True
    widths = {len(each) if isinstance(each, list) else 1 for each in report.scores}
    if len(report.scores) != len(label) or widths != {len(classes) if has_columns else 1} or (not has_columns and len(classes) > 2):
        raise InputError(f"{key}.scores: give one list of {len(classes)} probabilities for each of the {len(label)} labels")
    scores: NDArray[np.float64] = np.clip(np.array(report.scores, dtype=np.float64), 0.0, 1.0)
    columns = [shown.index(name) for name in classes]
    return ScoredRows(label, scores[:, columns] if has_columns else np.stack([1.0 - scores, scores], axis=1))


def _from_histograms(report: EpochHistograms, classes: list[str], prior: Floats, key: str) -> ScoredRows:
    """Build one weighted row per class and non-empty bin.

    The error of the row is the middle of the bin. The other classes share the error in proportion to their
    prior.
    """
    edges = np.clip(np.array(report.edges, dtype=np.float64), 0.0, 1.0)
    if edges[0] != 0 or edges[-1] != 1 or (np.diff(edges) <= 0).any():
        raise InputError(f"{key}.edges: give numbers that increase from 0 to 1")
    middle = (edges[1:] + edges[:-1]) / 2
    labels, scores, weights = [], [], []
    for name, bins in report.counts.items():
        if name not in classes:
            raise InputError(f"{key}.counts: unknown class {name!r}; {nearest(name, classes)}")
        if len(bins) != len(middle):
            raise InputError(f"{key}.counts of {name!r}: {len(bins)} counts for {len(middle)} bins; give one count per bin")
        code, counts = classes.index(name), np.array(bins)
        nonempty = counts > 0
        others = prior.copy()
        others[code] = 0.0
        score = middle[nonempty, None] * (others / others.sum())
        score[:, code] = 1.0 - middle[nonempty]
        labels.append(np.full(int(nonempty.sum()), code))
        scores.append(score)
        weights.append(counts[nonempty])
    if not sum(map(len, labels)):
        raise InputError(f"{key}.counts: all counts are 0; give at least one row")
    return ScoredRows(np.concatenate(labels), np.concatenate(scores), np.concatenate(weights))
