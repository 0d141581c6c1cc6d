"""Calibrate fraud scores to probabilities without changing the ranking.

What is special: the map is strictly increasing, so average precision, recall at a false-positive rate and
every other ranking metric stay the same; isotonic regression would create ties. One family contains the three
candidates, ``sigmoid(a u + b v + c)`` with u = ln s and v = -ln(1 - s):

    identity    a = b = 1, c = 0 platt       a = b               Platt (1999), linear in the log-odds:
    corrects over-sampling beta        a, b free           Kull, Silva Filho and Flach (2017): corrects the
    rare and the common class separately,
                                    as sampling by hardness requires

The simplest candidate is chosen whose log loss on held-out folds is within one standard error of the best. A
model that is already calibrated, or a validation set with very few frauds, therefore keeps its scores.

Log-odds beyond 12 are compressed logarithmically, in the input and in the output: a score of exactly 0 or 1
stays finite, no probability rounds to 0 or 1 (which would create ties), and rounding errors of a float32
network near 0 and 1 do not become certainty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import CorruptFileError, InputError

Method = Literal["identity", "platt", "beta"]
Floats = NDArray[np.float64]

KNEE = 12.0
"""Absolute value of u, v and the log-odds beyond which they are compressed logarithmically."""
MIN_SLOPE = 0.05
"""Smallest a and b: a flat map would create ties in floating point."""
MAX_SLOPE = 4.0
"""Largest a and b: with steeper maps the scores carry almost no information about the odds."""
FOLDS = 5
MIN_POSITIVES = 10
"""Fewest frauds for a calibration: with fewer, the parameters can't be estimated."""


@dataclass(frozen=True)
class Calibration:
    """Strictly increasing map from a fraud score in [0, 1] to a probability, `sigmoid(a u + b v + c)`."""

    method: Method
    """identity, platt or beta."""
    a: float
    """Slope of ln s: stretches the low scores."""
    b: float
    """Slope of -ln(1 - s): stretches the high scores."""
    c: float
    """Shift of the log-odds."""

    def transform(self, score: ArrayLike) -> Floats:
        """Convert scores (n,) to probabilities of fraud (n,) float64."""
        u, v = _features(np.asarray(score, dtype=np.float64))
        logit = self.a * u + self.b * v + self.c
        return _sigmoid(np.copysign(_compress(np.abs(logit)), logit))

    def apply(self, class_scores: ArrayLike) -> Floats:
        """Calibrate class scores.

        The sum of the fraud classes is calibrated. The fraud classes keep their proportions, and the
        legitimate class gets the rest.

        Args:
            class_scores: (n, K) class probabilities, the legitimate class first.

        Returns:
            (n, K) calibrated class probabilities.
        """
        scores = np.asarray(class_scores, dtype=np.float64)
        pooled = pooled_score(scores)
        probability = self.transform(pooled)
        nonzero = pooled > 0
        share = np.full((len(scores), scores.shape[1] - 1), 1 / (scores.shape[1] - 1))
        share[nonzero] = scores[nonzero, 1:] / pooled[nonzero, None]
        return np.column_stack([1 - probability, share * probability[:, None]])

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON-serializable dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """Restore a calibration from `to_dict`.

        Raises:
            CorruptFileError: If a value is missing or invalid.
        """
        try:
            method, a, b, c = content["method"], float(content["a"]), float(content["b"]), float(content["c"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"the calibration lacks a usable value ({error}): it is damaged or not written by balancer") from error
        if method not in get_args(Method) or not (a > 0 and b > 0 and np.isfinite([a, b, c]).all()):
            raise CorruptFileError(f"the calibration {dict(content)} is not strictly increasing: it is damaged or not written by balancer")
        return cls(method, a, b, c)


IDENTITY = Calibration("identity", 1.0, 1.0, 0.0)


def pooled_score(class_scores: ArrayLike) -> Floats:
    """Sum the fraud classes: the score of fraud of any kind (n,) from `class_scores` (n, K).

    The sum is exact where one minus the legitimate class would round to 0.
    """
    scores = np.asarray(class_scores, dtype=np.float64)
    pooled: Floats = scores[:, 1:].sum(axis=1)
    return np.minimum(pooled, 1.0)


def fit_calibration(score: ArrayLike, label: ArrayLike, weight: ArrayLike | None = None, *, standard_errors: float = 1.0) -> Calibration:
    """Choose and fit a calibration on validation rows.

    Args:
        score: (n,) raw fraud score in [0, 1].
        label: (n,) class index; 0 is legitimate, -1 is unlabelled (these rows are left out).
        weight: (n,) how much each row counts, above 0; None: 1 each.
        standard_errors: By how many standard errors a candidate must be better than a simpler one.

    Raises:
        InputError: If a score is outside [0, 1], or the labelled rows are all legitimate or all frauds.
    """
    labels = np.asarray(label)
    scores = np.asarray(score, dtype=np.float64)[labels >= 0]
    fraud = labels[labels >= 0] > 0
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError("a score to calibrate is not a number from 0 to 1, so training failed: lower the learning rate")
    if not fraud.any() or fraud.all():
        raise InputError(
            "the validation rows that fit the calibration are all of one class: give validation a larger share in [split], or give more data"
        )
    if fraud.sum() < MIN_POSITIVES:
        return IDENTITY
    u, v = _features(scores)
    counts = np.ones(len(scores)) if weight is None else np.asarray(weight, dtype=np.float64)[labels >= 0]
    counts = counts / counts.mean()
    # Folds are stratified by class. Rows of one episode may be in several folds, which matters little with
    # three parameters.
    fold = np.empty(len(fraud), dtype=np.int64)
    for kind in (False, True):
        fold[fraud == kind] = np.arange(int((fraud == kind).sum())) % FOLDS
    candidates: tuple[Method, ...] = get_args(Method)
    loss = np.zeros((len(candidates), len(fraud)))
    for held_out in range(FOLDS):
        inside, outside = fold != held_out, fold == held_out
        for index, method in enumerate(candidates):
            fitted = _fit(method, u[inside], v[inside], fraud[inside], counts[inside])
            each = _log_loss(fitted.a * u[outside] + fitted.b * v[outside] + fitted.c, fraud[outside])
            loss[index, outside] = counts[outside] * each
    best = int(loss.mean(axis=1).argmin())
    for index, method in enumerate(candidates):
        worse = loss[index] - loss[best]
        if worse.mean() <= standard_errors * worse.std() / np.sqrt(len(worse)):
            return _fit(method, u, v, fraud, counts)
    return _fit(candidates[best], u, v, fraud, counts)


def _features(score: Floats) -> tuple[Floats, Floats]:
    """Compute u = ln s and v = -ln(1 - s), each (n,), compressed beyond the knee."""
    tiny = np.finfo(np.float64).smallest_subnormal
    low = -np.log(np.maximum(score, tiny))
    high = -np.log(np.maximum(1 - score, np.finfo(np.float64).epsneg / 2))
    # Close to 0, 1 - s rounds the score away; log1p keeps it.
    high = np.where(score < 0.5, -np.log1p(-np.minimum(score, 0.5)), high)
    return -_compress(low), _compress(high)


def _compress(value: Floats) -> Floats:
    beyond = np.maximum(value - KNEE, 0.0)
    return np.minimum(value, KNEE) + np.log1p(beyond)


def _sigmoid(value: Floats) -> Floats:
    decay = np.exp(-np.abs(value))
    return np.where(value >= 0, 1 / (1 + decay), decay / (1 + decay))


def _log_loss(logit: Floats, fraud: NDArray[np.bool_]) -> Floats:
    return np.logaddexp(0.0, np.where(fraud, -logit, logit))


def _fit(method: Method, u: Floats, v: Floats, fraud: NDArray[np.bool_], counts: Floats) -> Calibration:
    """Fit one candidate by Newton's method with bounded slopes."""
    if method == "identity":
        return IDENTITY
    if method == "platt":
        slope, intercept = _bounded_newton(np.column_stack([u + v, np.ones_like(u)]), fraud, counts, {})
        return Calibration("platt", slope, slope, intercept)
    a, b, c = _bounded_newton(np.column_stack([u, v, np.ones_like(u)]), fraud, counts, {})
    return Calibration("beta", a, b, c)


def _bounded_newton(features: Floats, fraud: NDArray[np.bool_], counts: Floats, fixed: dict[int, float]) -> list[float]:
    """Fit a logistic regression with slopes between `MIN_SLOPE` and `MAX_SLOPE`.

    A quadratic penalty with the weight of one row pulls the slopes towards 1. The loss is convex, so a slope
    that leaves its bounds is optimal on the bound: it is fixed there, and the others are fitted again.

    Args:
        features: (n, p) inputs; the last column is the intercept.
        fraud: (n,) whether a row is a fraud.
        counts: (n,) how much each row counts, with mean 1.
        fixed: Slopes that are fixed, by column.
    """
    free = [column for column in range(features.shape[1]) if column not in fixed]
    weight = np.ones(features.shape[1])
    weight[-1] = 0.0
    for column, value in fixed.items():
        weight[column] = value
    target = fraud.astype(np.float64)
    penalty = np.array([0.0 if column == features.shape[1] - 1 else 1.0 for column in free])
    inputs = features[:, free]

    def objective(trial: Floats) -> float:
        return float((counts * _log_loss(features @ trial, fraud)).sum() + 0.5 * (penalty * (trial[free] - 1) ** 2).sum())

    loss = objective(weight)
    for _ in range(50):
        probability = _sigmoid(features @ weight)
        gradient = inputs.T @ (counts * (probability - target)) + penalty * (weight[free] - 1)
        curvature = (inputs * (counts * probability * (1 - probability))[:, None]).T @ inputs + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        # Halve the step until the loss decreases: with the large intercept that over-sampling causes, a full
        # step overshoots.
        for _ in range(30):
            trial = weight.copy()
            trial[free] -= step
            trial_loss = objective(trial)
            if trial_loss <= loss:
                break
            step = step / 2
        converged = bool(np.abs(trial - weight).max() < 1e-9)
        weight, loss = trial, trial_loss
        if converged:
            break
    for column in free[:-1]:
        bounded = float(np.clip(weight[column], MIN_SLOPE, MAX_SLOPE))
        if bounded != weight[column]:
            return _bounded_newton(features, fraud, counts, fixed | {column: bounded})
    return [float(value) for value in weight]
