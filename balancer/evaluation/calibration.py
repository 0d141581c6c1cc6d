"""From scores to probabilities, without moving a single row past another.

Special: the map is strictly increasing, so average precision, recall at a false-alarm rate and every ranking stay as they are; isotonic
regression would make ties of them. One family holds the three candidates: ``sigmoid(a u + b v + c)`` with u = ln s and v = -ln(1 - s),

    identity    a = b = 1, c = 0
    platt       a = b               Platt (1999), a line in log-odds: what over-sampling alone calls for
    beta        a, b free           Kull, Silva Filho and Flach (2017): rare class and common class bent differently, as hardness does

and the simplest one wins whose log loss on held-out folds is within one standard error of the best. A model that is calibrated already,
or a validation part with a handful of frauds, is therefore left alone.

Beyond e^12 evidence counts like its logarithm, going in and coming out: a score of exactly 0 or 1 stays finite, no probability rounds to
0 or 1 (which would tie rows), and a float32 network's last bits are not taken for certainty.
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
"""Logarithm from which on evidence counts only logarithmically."""
MIN_SLOPE = 0.05
"""Smallest a and b: a flat side would tie scores in floating point."""
MAX_SLOPE = 4.0
"""Largest a and b: steeper means that the scores say next to nothing about odds."""
FOLDS = 5
MIN_POSITIVES = 10
"""With fewer frauds there is nothing to choose by: only the line's intercept could be told, and it too hardly."""


@dataclass(frozen=True)
class Calibration:
    """Strictly increasing map from a fraud score in [0, 1] to a probability, ``sigmoid(a u + b v + c)``."""

    method: Method
    """identity, platt or beta."""
    a: float
    """Slope on ln s: how rare scores are spread."""
    b: float
    """Slope on -ln(1 - s): how high scores are spread."""
    c: float
    """Log-odds added to all."""

    def transform(self, score: ArrayLike) -> Floats:
        """Probability of fraud (n,) float64 for scores (n,)."""
        u, v = _features(np.asarray(score, dtype=np.float64))
        logit = self.a * u + self.b * v + self.c
        return _sigmoid(np.copysign(_tame(np.abs(logit)), logit))

    def apply(self, class_scores: ArrayLike) -> Floats:
        """Calibrated class probabilities (n, K) for ``class_scores`` (n, K), legitimate first.

        Fraud of any kind is calibrated; its kinds keep their proportions, and the legitimate class gets the rest.
        """
        scores = np.asarray(class_scores, dtype=np.float64)
        pooled = pooled_score(scores)
        probability = self.transform(pooled)
        some = pooled > 0
        share = np.full((len(scores), scores.shape[1] - 1), 1 / (scores.shape[1] - 1))
        share[some] = scores[some, 1:] / pooled[some, None]
        return np.column_stack([1 - probability, share * probability[:, None]])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; :meth:`from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`to_dict` wrote.

        Raises
        ------
        InputError
            When a value is missing or is none that a calibration can have.
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
    """Score of fraud of any kind (n,) from ``class_scores`` (n, K): the sum of the fraud classes, exact where 1 - legitimate would round
    to 0.
    """
    scores = np.asarray(class_scores, dtype=np.float64)
    pooled: Floats = scores[:, 1:].sum(axis=1)
    return np.minimum(pooled, 1.0)


def fit_calibration(score: ArrayLike, label: ArrayLike) -> Calibration:
    """Choose and fit a calibration on validation rows.

    Parameters
    ----------
    score
        (n,) raw score of fraud in [0, 1].
    label
        (n,) class index, 0 legitimate, -1 unlabelled (such rows are left out).

    Raises
    ------
    InputError
        When a score lies outside [0, 1] or the rows are all of one kind.
    """
    labels = np.asarray(label)
    scores = np.asarray(score, dtype=np.float64)[labels >= 0]
    fraud = labels[labels >= 0] > 0
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError("a score to calibrate is outside 0..1 or no number: the model did not train; lower its learning rate")
    if not fraud.any() or fraud.all():
        raise InputError(
            "the validation rows that fit the calibration are all of one class: widen the validation part in [split], or give more data"
        )
    if fraud.sum() < MIN_POSITIVES:
        return IDENTITY
    u, v = _features(scores)
    # Every fold gets its share of each class; rows of one episode may fall in several folds, which costs little with three parameters.
    fold = np.empty(len(fraud), dtype=np.int64)
    for kind in (False, True):
        fold[fraud == kind] = np.arange(int((fraud == kind).sum())) % FOLDS
    candidates: tuple[Method, ...] = get_args(Method)
    loss = np.zeros((len(candidates), len(fraud)))
    for held_out in range(FOLDS):
        inside, outside = fold != held_out, fold == held_out
        for index, method in enumerate(candidates):
            fitted = _fit(method, u[inside], v[inside], fraud[inside])
            loss[index, outside] = _log_loss(fitted.a * u[outside] + fitted.b * v[outside] + fitted.c, fraud[outside])
    best = int(loss.mean(axis=1).argmin())
    for index, method in enumerate(candidates):
        worse = loss[index] - loss[best]
        if worse.mean() <= worse.std() / np.sqrt(len(worse)):
            return _fit(method, u, v, fraud)
    return _fit(candidates[best], u, v, fraud)


def _features(score: Floats) -> tuple[Floats, Floats]:
    """u = ln s and v = -ln(1 - s), each (n,), tamed beyond the knee."""
    tiny = np.finfo(np.float64).smallest_subnormal
    low = -np.log(np.maximum(score, tiny))
    high = -np.log(np.maximum(1 - score, np.finfo(np.float64).epsneg / 2))
    # Close to 0 the subtraction 1 - s loses the score; the logarithm's own series keeps it.
    high = np.where(score < 0.5, -np.log1p(-np.minimum(score, 0.5)), high)
    return -_tame(low), _tame(high)


def _tame(value: Floats) -> Floats:
    beyond = np.maximum(value - KNEE, 0.0)
    return np.minimum(value, KNEE) + np.log1p(beyond)


def _sigmoid(value: Floats) -> Floats:
    decay = np.exp(-np.abs(value))
    return np.where(value >= 0, 1 / (1 + decay), decay / (1 + decay))


def _log_loss(logit: Floats, fraud: NDArray[np.bool_]) -> Floats:
    return np.logaddexp(0.0, np.where(fraud, -logit, logit))


def _fit(method: Method, u: Floats, v: Floats, fraud: NDArray[np.bool_]) -> Calibration:
    """Fit one member of the family by Newton steps, slopes kept within their bounds."""
    if method == "identity":
        return IDENTITY
    if method == "platt":
        slope, intercept = _bounded_newton(np.column_stack([u + v, np.ones_like(u)]), fraud, {})
        return Calibration("platt", slope, slope, intercept)
    a, b, c = _bounded_newton(np.column_stack([u, v, np.ones_like(u)]), fraud, {})
    return Calibration("beta", a, b, c)


def _bounded_newton(features: Floats, fraud: NDArray[np.bool_], fixed: dict[int, float]) -> list[float]:
    """Logistic regression on ``features`` (n, p), the last column the intercept, with one row's worth of pull towards slopes of 1.

    The loss is convex, so a slope that leaves its bounds belongs on the bound: it is fixed there and the others are fitted again.
    """
    free = [column for column in range(features.shape[1]) if column not in fixed]
    weight = np.ones(features.shape[1])
    weight[-1] = 0.0
    for column, value in fixed.items():
        weight[column] = value
    target = fraud.astype(np.float64)
    pull = np.array([0.0 if column == features.shape[1] - 1 else 1.0 for column in free])
    inputs = features[:, free]

    def objective(trial: Floats) -> float:
        return float(_log_loss(features @ trial, fraud).sum() + 0.5 * (pull * (trial[free] - 1) ** 2).sum())

    loss = objective(weight)
    for _ in range(50):
        probability = _sigmoid(features @ weight)
        gradient = inputs.T @ (probability - target) + pull * (weight[free] - 1)
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs + np.diag(pull + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        # Halve the step until the loss falls: a far-off intercept, as over-sampling leaves it, makes the plain step overshoot.
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
            return _bounded_newton(features, fraud, fixed | {column: bounded})
    return [float(value) for value in weight]
