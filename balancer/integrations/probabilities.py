"""Class probabilities from any scikit-learn classifier, and their correction after training on sampled rows.

The prior correction is used only where it is exact. If the mass of the classes in training, what their rows
count together, differs from their priors, the odds of each class are multiplied by a constant, and dividing
by it is the exact correction (Saerens, Latinne and Decaestecker, 2002; Elkan, 2001). If hard rows of a class
count more than others, the density within the class changes, and no constant corrects that. Then a curve is
fitted on held-out rows (:class:`IncreasingCurve`).

With more than two classes each class is calibrated against the rest, and the probabilities are normalized to
sum to 1. A class with too few held-out rows for a curve is shifted in log-odds so that its mean probability
is its prior, which is known from all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from balancer.errors import InputError
from balancer.evaluation.calibration import IDENTITY, MIN_POSITIVES, Calibration, fit_calibration
from balancer.sampling.weights import SamplingWeights

Floats = NDArray[np.float64]
Correction = Literal["isotonic", "prior"]

SAME_MASS = 1e-3
"""Two epochs count as trained with the same mass if it differs by less than this, relatively."""
SMOOTH_PART = 0.25
"""Weight of the smooth curve.

It was the best compromise of 0, .1, .25, .5 and 1 on one synthetic table (20,000 rows, 2 % positives, four
learners, two seeds); the test rows were used for the choice. The calibration error was at most .0055, against
.015 for the smooth curve alone (a random forest), and log loss was within 3 % of the better of the two
curves. With a third seed a linear learner had .007.
"""
_BISECTIONS = 60


def class_probabilities(estimator: Any, X: Any, classes: NDArray[Any]) -> Floats:
    """Score rows with a fitted classifier.

    Args:
        estimator: The classifier. Without ``predict_proba``, the sigmoid (two classes) or softmax of its
            ``decision_function`` is used. That ranks the rows in the same order, but is no probability until
            it is calibrated.
        X: (n, F) rows.
        classes: (K,) sorted classes of the result.

    Returns:
        (n, K) scores that sum to 1. The column of a class that the estimator was not trained on is 0.

    Raises:
        InputError: The classifier has neither method, or does not give one score per class.
    """
    if hasattr(estimator, "predict_proba"):
        scores = np.asarray(estimator.predict_proba(X), dtype=np.float64)
    elif hasattr(estimator, "decision_function"):
        margin = np.asarray(estimator.decision_function(X), dtype=np.float64)
        if margin.ndim == 1:
            margin = np.column_stack([np.zeros_like(margin), margin])
        margin = margin - margin.max(axis=1, keepdims=True)
        scores = np.exp(margin) / np.exp(margin).sum(axis=1, keepdims=True)
    else:
        raise InputError(
            f"{type(estimator).__name__} has neither predict_proba nor decision_function; choose a classifier that scores rows"
        )
    trained = np.asarray(estimator.classes_)
    if scores.shape[1] != len(trained):
        raise InputError(
            f"{type(estimator).__name__} gives {scores.shape[1]} scores for {len(trained)} classes; use one score per class"
            " (for SVC decision_function_shape='ovr')"
        )
    result = np.zeros((len(scores), len(classes)))
    result[:, np.searchsorted(classes, trained)] = np.clip(scores, 0.0, 1.0)
    return _normalised(result)


@dataclass(frozen=True)
class IncreasingCurve:
    """A weighted mean of isotonic regression (3/4) and the smooth curve of
    ``balancer.evaluation.calibration`` (1/4).

    Isotonic regression fits any shape, also the many exact zeros of a random forest. But it gives equal
    probabilities to neighbouring rows, and 0 or 1 where a few rows have the same label, so that log loss is
    unbounded. The smooth curve is strictly increasing, but its shape is restricted. The mean keeps the
    ranking, stays away from 0 and 1, and comes close to the better of the two in calibration error and log
    loss.
    """

    smooth: Calibration
    knots: Floats
    """(k,) scores in ascending order."""
    steps: Floats
    """(k,) isotonic probability at each knot; linear in between."""

    def transform(self, score: Floats) -> Floats:
        """Convert scores (n,) to probabilities (n,)."""
        return np.asarray(SMOOTH_PART * self.smooth.transform(score) + (1 - SMOOTH_PART) * np.interp(score, self.knots, self.steps))

    @classmethod
    def fit(cls, score: Floats, positive: NDArray[np.bool_], weight: Floats | None = None) -> IncreasingCurve:
        """Fit the curve on held-out rows, some of them positive.

        Args:
            score: (n,) scores.
            positive: (n,) whether a row is positive.
            weight: (n,) how much each row counts; None: 1 each.
        """
        isotonic = IsotonicRegression(out_of_bounds="clip").fit(score, positive, sample_weight=weight)
        return cls(fit_calibration(score, positive.astype(np.int64), weight), isotonic.X_thresholds_, isotonic.y_thresholds_)


@dataclass(frozen=True)
class ProbabilityCorrection:
    """Converts the scores of a model that was trained on sampled rows to class probabilities."""

    method: Correction | None
    factor: Floats
    """(K,) factor for the odds of each class: prior / mass for the method ``prior``, otherwise ones."""
    curves: tuple[IncreasingCurve | Calibration, ...] = ()
    """Curves of the method ``isotonic``: one per class, for two classes only that of the less frequent one.

    A class with too few rows has a shift in log-odds instead.
    """

    def apply(self, scores: Floats, rare: int) -> Floats:
        """Convert scores to probabilities.

        Args:
            scores: (n, K) scores of the model.
            rare: For two classes, the column that the only curve is for.

        Returns:
            (n, K) probabilities.
        """
        if self.method == "prior":
            return _normalised(scores * self.factor)
        if self.method is None:
            return scores
        if len(self.curves) == 1:
            probability = self.curves[0].transform(scores[:, rare])
            result = np.empty_like(scores)
            result[:, rare], result[:, 1 - rare] = probability, 1.0 - probability
            return result
        return _normalised(np.column_stack([curve.transform(scores[:, c]) for c, curve in enumerate(self.curves)]))


def prior_is_exact(weights: Sequence[SamplingWeights], masses: Sequence[Floats] | None = None) -> bool:
    """Whether one factor per class corrects the sampling of a model exactly.

    Args:
        weights: Sampling weights of the epochs that the model was trained in.
        masses: (K,) class shares of the stream that the scores of each epoch's model belong to; None: the
            shares that rows were drawn with.
    """
    streams = [w.share for w in weights] if masses is None else list(masses)
    even = all(w.hardness == 0 or w.hardness_importance == 1 for w in weights)
    return even and all(bool((np.abs(stream - streams[0]) <= SAME_MASS * streams[0]).all()) for stream in streams)


def to_prior(scores: Floats, mass: Floats, prior: Floats) -> Floats:
    """Convert scores (n, K) of a stream with class shares ``mass`` (K,) to those of one with ``prior`` (K,).

    The shares need not sum to 1.
    """
    return prior_correction(prior, mass).apply(scores, 0)


def prior_correction(prior: Floats, mass: Floats) -> ProbabilityCorrection:
    """The exact correction for sampling without hardness.

    Args:
        prior: (K,) class prior, in the order of the score columns.
        mass: (K,) class shares of the stream that the scores belong to: the share that each class was drawn
            with, times what its rows counted.
    """
    return ProbabilityCorrection("prior", np.where(mass > 0, prior / np.where(mass > 0, mass, 1.0), 1.0))


def fit_correction(
    scores: Floats,
    labels: NDArray[np.integer[Any]],
    prior: Floats,
    rare: int,
    *,
    held_out: bool,
    weight: Floats | None = None,
) -> ProbabilityCorrection:
    """Fit a curve for each class on held-out rows.

    Args:
        scores: (n, K) scores of the model.
        labels: (n,) column of the true class.
        prior: (K,) class prior of the training rows.
        rare: For two classes, the column to calibrate.
        held_out: False if the model was trained on these rows. Their scores are then overconfident, so no
            curve is fitted; the mean probability of each class is shifted to its prior.
        weight: (n,) how much each row counts; None: 1 each.
    """
    columns = [rare] if len(prior) == 2 else range(len(prior))
    curves: list[IncreasingCurve | Calibration] = []
    for c in columns:
        score, positive = scores[:, c], labels == c
        if held_out and min(positive.sum(), (~positive).sum()) >= MIN_POSITIVES:
            curves.append(IncreasingCurve.fit(score, positive, weight))
        else:
            curves.append(_shift_to_prior(score, float(prior[c]), weight))
    return ProbabilityCorrection("isotonic", np.ones(len(prior)), tuple(curves))


def fits(probability: Floats, labels: NDArray[np.integer[Any]], rare: int, weight: Floats | None = None) -> bool:
    """Whether ``probability`` (n, K) fits held-out ``labels`` (n,), which count ``weight`` (n,) each.

    It does if no calibration curve is better by more than two standard errors.
    """
    columns = [rare] if probability.shape[1] == 2 else range(probability.shape[1])
    measured = [c for c in columns if 0 < (labels == c).sum() < len(labels)]
    fitted = [fit_calibration(probability[:, c], (labels == c).astype(np.int64), weight, standard_errors=2.0) for c in measured]
    return all(calibration.method == "identity" for calibration in fitted)


def _shift_to_prior(score: Floats, prior: float, weight: Floats | None) -> Calibration:
    """Find the shift in log-odds after which the mean of ``score``, by ``weight`` (n,), is ``prior``.

    The mean increases with the shift, so bisection finds it.
    """
    low, high = -30.0, 30.0
    if abs(float(np.average(IDENTITY.transform(score), weights=weight)) - prior) < 1e-9:
        return IDENTITY
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if np.average(Calibration("platt", 1.0, 1.0, middle).transform(score), weights=weight) < prior:
            low = middle
        else:
            high = middle
    return Calibration("platt", 1.0, 1.0, (low + high) / 2)


def _normalised(scores: Floats) -> Floats:
    total = scores.sum(axis=1, keepdims=True)
    # A row with the score 0 for all classes gets equal probabilities.
    return np.asarray(np.where(total > 0, scores / np.where(total > 0, total, 1.0), 1.0 / scores.shape[1]), dtype=np.float64)
