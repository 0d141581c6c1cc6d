"""Train any scikit-learn classifier with adaptive sampling, and keep its probabilities calibrated.

    model = AdaptiveClassifier(LGBMClassifier(), policy="auto").fit(X, y)
    model.predict_proba(X_later)

Sampling shifts every score, and most libraries leave the correction to the user. Here ``predict_proba``
returns probabilities that are calibrated for the class shares of the table that was given, and ``predict``
uses a threshold tuned on held-out rows. The validation rows are split in two halves: the reward half measures
the policy's reward, the threshold half is used to fit the calibration and the threshold.

:mod:`balancer.integrations.staged` describes how a classifier is trained epoch by epoch, and
:mod:`balancer.integrations.probabilities` how its scores are corrected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d, get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from balancer.deprecation import UNSET, renamed_argument
from balancer.errors import InputError
from balancer.evaluation.thresholds import tune_threshold
from balancer.integrations.holdout import Holdout, hold_out
from balancer.integrations.probabilities import (
    Floats,
    ProbabilityCorrection,
    class_probabilities,
    fit_correction,
    fits,
    prior_correction,
    prior_is_exact,
)
from balancer.integrations.staged import Epoch, StagedEstimator, default_learner, library, train_epochs, weights_in_model
from balancer.integrations.tables import is_frame, label_codes, sparse_matrix, take_rows
from balancer.sampling.policies import Policy
from balancer.sampling.weights import class_prior

HALF = 0.5


class AdaptiveClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A classifier whose training rows are drawn, or weighted, by a sampling policy.

    Parameters
    ----------
    estimator
        Classifier to train; it is cloned first. Pipelines are classifiers too. None: LightGBM with 100 small
        trees. It receives the table as it was given, arrays and data frames alike. Without ``predict_proba``
        its ``decision_function`` is used.
    policy
        ``auto`` (the learned policy of the package), ``constant`` (or ``constant:share=.2,hardness=1``),
        ``rule``, the folder of a learned policy, or an object with ``name`` and ``act``.
    epochs
        Number of epochs: how often the policy sets the weights. There are fewer if the estimator has fewer
        trees.
    calibrate
        ``isotonic``: an increasing curve without the ties of plain isotonic regression, fitted on the
        threshold half. ``prior``: the exact correction of class shares, if the policy changed only shares and
        the threshold half does not contradict the correction; otherwise ``isotonic``, with a note. None:
        scores as the estimator returns them.
    threshold
        ``tuned``: the threshold with the best F1 of the less frequent class on the threshold half, or .5 if
        that is as good. ``default``: the most probable class. A number in (0, 1): threshold on the
        probability of the less frequent class. With more than two classes only ``tuned`` and ``default`` are
        possible, and both predict the most probable class.
    validation_fraction
        Share of the rows to hold out; half of them for each purpose.
    shuffle
        True: a stratified random split. False: the rows are in order of time, and the last ones are held out.
    staging
        How the estimator is trained epoch by epoch: ``auto``, or one of ``boosting``, ``partial_fit``,
        ``warm_start``, ``sample_weight``, ``resample``.
    passes
        For ``partial_fit``: in each epoch, this many times the table's number of rows are drawn.
    random_state
        Seed of the split, of the draws, and of the estimator if its ``random_state`` is None.
    stages
        Deprecated name of ``epochs``.

    Attributes
    ----------
    classes_, n_features_in_, feature_names_in_
        As for all scikit-learn estimators; names only if a data frame was given.
    estimator_
        The trained classifier.
    staging_
        How it was trained.
    policy_
        The loaded policy.
    history_
        A dict for each epoch: ``epoch``, ``share`` (by class), ``hardness``, ``floor``, and the validation
        metrics after it, ``f1`` and ``average_precision``.
    weights_
        :class:`~balancer.sampling.weights.SamplingWeights` of the last epoch, shares in the order of
        ``classes_``.
    calibration_
        The :class:`~balancer.integrations.probabilities.ProbabilityCorrection`.
    positive_class_
        The less frequent of two classes, which the threshold is for; None for more classes.
    threshold_
        Threshold on its probability; None for more than two classes.
    notes_
        Deviations from what was asked for, a sentence each: too few rows to hold out, a correction that is
        not exact.

    Raises
    ------
    InputError
        By ``fit``: a parameter is out of range, there is one class only, a label is missing, the policy is
        unknown, or the estimator is no classifier.

    >>> from sklearn.datasets import make_classification
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = make_classification(1000, weights=[.9], random_state=0)
    >>> model = AdaptiveClassifier(LogisticRegression(), policy="constant", epochs=2, random_state=0)
    >>> model = model.fit(X, y)
    >>> model.staging_, len(model.history_), model.calibration_.method
    ('sample_weight', 2, 'isotonic')
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        policy: str | Path | Policy = "auto",
        epochs: int = 8,
        calibrate: str | None = "isotonic",
        threshold: str | float = "tuned",
        validation_fraction: float = 0.2,
        shuffle: bool = True,
        staging: str = "auto",
        passes: int = 4,
        random_state: Any = None,
        stages: int | str = UNSET,
    ) -> None:
        self.estimator = estimator
        self.policy = policy
        self.epochs = epochs
        self.calibrate = calibrate
        self.threshold = threshold
        self.validation_fraction = validation_fraction
        self.shuffle = shuffle
        self.staging = staging
        self.passes = passes
        self.random_state = random_state
        self.stages = stages

    def fit(self, X: Any, y: Any) -> Self:
        """Train on ``X`` (n, F) with labels ``y`` (n,).

        There is no ``sample_weight``, because the policy weights the rows.
        """
        epochs = renamed_argument("stages", "epochs", self.epochs, self.stages)
        table = self._table(X, reset=True)
        classes, codes = self._labels(table, y)
        self._check_options(len(classes))
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        names = [str(name) for name in classes]
        rows = hold_out(codes, self.validation_fraction, parts=2, shuffle=self.shuffle, seed=seed, names=names)
        train_X, train_codes = take_rows(table, rows.train), codes[rows.train]
        staged = StagedEstimator(
            self._learner(), train_X, train_codes, classes, staging=self.staging, epochs=epochs, passes=self.passes, seed=seed
        )
        sampler = staged.make_sampler(self.policy)
        reward, tuning = rows.parts
        trained = train_epochs(staged, sampler, train_X, take_rows(table, reward), codes[reward])

        notes = [*rows.notes, *sampler.notes]
        scores = staged.score(take_rows(table, tuning))
        counts = np.bincount(codes)
        rare = 1 if counts[1] <= counts[0] else 0
        correction = self._correction(staged, trained, scores, codes, rows, rare, notes)
        threshold = self._tuned(correction.apply(scores, rare)[:, rare], codes[tuning] == rare) if len(classes) == 2 else None

        self.classes_ = classes
        self.estimator_ = staged.estimator
        self.staging_ = staged.staging
        self.policy_ = sampler.policy
        self.history_ = [epoch.metrics(number, classes) for number, epoch in enumerate(trained, 1)]
        self.weights_ = trained[-1].weights
        self.calibration_ = correction
        self.positive_class_ = classes[rare] if len(classes) == 2 else None
        self.threshold_ = threshold
        self.notes_ = notes
        self._names, self._rare = staged.names, rare
        return self

    def predict_proba(self, X: Any) -> Floats:
        """Calibrated probabilities (n, K) of the rows of ``X`` (n, F), in the order of ``classes_``."""
        check_is_fitted(self, "calibration_")
        return self.calibration_.apply(class_probabilities(self.estimator_, self._table(X, reset=False), self._names), self._rare)

    def predict(self, X: Any) -> NDArray[Any]:
        """Classes (n,) of the rows of ``X`` (n, F).

        Two classes are decided by ``threshold_``; of more classes the most probable one is chosen.
        """
        probability = self.predict_proba(X)
        if self.threshold_ is None or self.threshold_ == HALF:
            return np.asarray(self.classes_[probability.argmax(axis=1)])
        alarm = probability[:, self._rare] >= self.threshold_
        return np.asarray(self.classes_[np.where(alarm, self._rare, 1 - self._rare)])

    def _learner(self) -> Any:
        return default_learner() if self.estimator is None else self.estimator

    def _table(self, X: Any, *, reset: bool) -> Any:
        """Check ``X``. A data frame or an array of objects or text is left to the checks of the estimator."""
        tags = self.__sklearn_tags__().input_tags
        mixed = isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "OUS"
        if is_frame(X) or (mixed and (tags.string or isinstance(self._learner(), Pipeline))):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        finite = "allow-nan" if tags.allow_nan else True
        table = validate_data(self, X, reset=reset, accept_sparse=["csr", "csc"] if tags.sparse else False, ensure_all_finite=finite)
        return sparse_matrix(table) if library(self._learner()) == "lightgbm" else table

    def _labels(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
        if y is None:
            raise InputError("AdaptiveClassifier requires y to be passed, but the target y is None")
        check_consistent_length(X, y)
        if not (hasattr(y, "isna") or hasattr(y, "is_null")) or len(y.shape) > 1:
            y = column_or_1d(y, warn=True)
        coded = label_codes(y)  # reports missing labels; scikit-learn's check would call them an unknown type
        check_classification_targets(np.asarray(y))
        return coded

    def _check_options(self, num_classes: int) -> None:
        if self.calibrate not in ("isotonic", "prior", None):
            raise InputError(f"calibrate must be 'isotonic', 'prior' or None, not {self.calibrate!r}")
        if self.threshold in ("tuned", "default"):
            return
        if isinstance(self.threshold, (str, bool)) or not isinstance(self.threshold, (int, float)) or not 0 < self.threshold < 1:
            raise InputError(f"threshold must be 'tuned', 'default' or a number between 0 and 1, not {self.threshold!r}")
        if num_classes > 2:
            raise InputError(f"a threshold of {self.threshold} needs two classes, y has {num_classes}; use 'default'")

    def _correction(
        self,
        staged: StagedEstimator,
        epochs: list[Epoch],
        scores: Floats,
        codes: NDArray[np.int64],
        rows: Holdout,
        rare: int,
        notes: list[str],
    ) -> ProbabilityCorrection:
        prior = class_prior(np.bincount(codes[rows.train], minlength=scores.shape[1]))
        if self.calibrate is None:
            return ProbabilityCorrection(None, np.ones_like(prior))
        tuning = codes[rows.parts[1]]
        if self.calibrate == "prior":
            weights = weights_in_model(staged.staging, epochs)
            exact = prior_correction(prior, weights[-1].share)
            if not hasattr(staged.estimator, "predict_proba"):
                reason = "the estimator's scores are no probabilities"
            elif not prior_is_exact(weights):
                reason = "the policy changed more than class shares, or changed them between epochs"
            elif rows.separate and not fits(exact.apply(scores, rare), tuning, rare):
                reason = "the held-out rows contradict it"
            else:
                return exact
            notes.append(f"the prior correction is not exact here, {reason}: so the model was calibrated on the threshold half")
        return fit_correction(scores, tuning, prior, rare, held_out=rows.separate)

    def _tuned(self, probability: Floats, positive: NDArray[np.bool_]) -> float:
        """Threshold on the probability of the less frequent class."""
        if self.threshold == "default":
            return HALF
        if self.threshold != "tuned":
            return float(self.threshold)
        best = tune_threshold(probability, positive.astype(np.int64))
        # Prefer .5 if it is as good: then `predict` returns the most probable class, as users expect.
        gain = f1_score(positive, probability >= best) - f1_score(positive, probability >= HALF, zero_division=0.0)
        return best if gain > 1e-9 else HALF

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        learner = self._learner()
        if hasattr(learner, "__sklearn_tags__") and not isinstance(learner, type):
            inner = get_tags(learner)
            for name in ("sparse", "allow_nan", "string", "categorical", "positive_only"):
                setattr(tags.input_tags, name, getattr(inner.input_tags, name))
            if inner.classifier_tags is not None:
                tags.classifier_tags = inner.classifier_tags
        return tags
