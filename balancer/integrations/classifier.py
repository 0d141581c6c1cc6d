"""Any scikit-learn classifier, trained under a sampling policy: ``fit``, ``predict``, ``predict_proba``, and nothing else to learn.

    model = AdaptiveClassifier(LGBMClassifier(), policy="auto").fit(X, y)
    model.predict_proba(X_later)

Special: probabilities stay probabilities. Sampling moves every score, and training libraries leave it to the user to move them back; here
what ``predict_proba`` returns is calibrated for the class shares of the table that was given, and ``predict`` decides by a threshold tuned
on held-out rows. The validation part is split in two:
one half pays the policy, the other tunes calibration and threshold.

How the classifier is trained in stages is told in :mod:`balancer.integrations.staged`, how scores are corrected in
:mod:`balancer.integrations.probabilities`.
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
from balancer.integrations.staged import Stage, StagedEstimator, default_learner, library, train_in_stages, weights_in_model
from balancer.integrations.tables import is_frame, label_codes, sparse_matrix, take_rows
from balancer.sampling.policies import Policy
from balancer.sampling.weights import class_prior

HALF = 0.5


class AdaptiveClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A classifier whose training rows are drawn, or weighted, by a sampling policy.

    Parameters
    ----------
    estimator
        Classifier to train, cloned before; None: LightGBM with 100 small trees. Pipelines are classifiers too. It sees the table as it was
        given, arrays and frames alike. One without ``predict_proba`` is read by its ``decision_function``.
    policy
        ``auto`` (the learned one that comes with the package), ``constant`` (``constant:share=.2,hardness=1``), ``rule``, the folder of a
        learned policy, or an object with ``name`` and ``act``.
    stages
        How often the policy acts in a training; fewer where the estimator has fewer trees.
    calibrate
        ``isotonic``: an increasing curve fitted on the threshold half, without the ties of plain isotonic regression; ``prior``: the exact
        correction of class shares where the policy moved shares alone and the threshold half does not contradict it, otherwise ``isotonic``
        with a note; None: scores as the estimator gives them.
    threshold
        ``tuned``: best F1 of the rarer class on the threshold half, .5 where that is as good; ``default``: the most probable class; a number
        in (0, 1): of the probability of the rarer class. More than two classes know ``tuned`` and ``default`` only, and both mean the most
        probable one.
    validation_fraction
        Share of the rows held out of training, half of it for each purpose.
    shuffle
        True: held out by chance, each class in proportion; False: rows are in the order of time, the last ones are held out.
    staging
        ``auto``, or one of ``boosting``, ``partial_fit``, ``warm_start``, ``sample_weight``, ``resample``.
    passes
        How often a stage goes over as many rows as the table has, for ``partial_fit`` alone.
    random_state
        Of the split, the draws, and the estimator where it has a ``random_state`` of None.

    Attributes
    ----------
    classes_, n_features_in_, feature_names_in_
        As everywhere in scikit-learn; names only where a frame was given.
    estimator_
        The trained classifier.
    staging_
        How it was trained.
    policy_
        The policy, loaded.
    history_
        One dict per stage: ``stage``, ``share`` (by class), ``hardness``, ``floor``, and on validation after it ``f1`` and ``average_precision``.
    weights_
        :class:`~balancer.sampling.weights.SamplingWeights` that the last stage was drawn by, shares in the order of ``classes_``.
    calibration_
        The :class:`~balancer.integrations.probabilities.ProbabilityCorrection`.
    positive_class_
        Of two classes the rarer one, which the threshold is for; None for more.
    threshold_
        Of its probability; None for more than two classes.
    notes_
        What was done otherwise than asked, one sentence each: too few rows to hold out, a correction that is not exact.

    Raises
    ------
    InputError
        By ``fit``: a parameter out of range, one class only, a missing label, an unknown policy, an estimator that is no classifier.

    >>> from sklearn.datasets import make_classification
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = make_classification(1000, weights=[.9], random_state=0)
    >>> model = AdaptiveClassifier(LogisticRegression(), policy="constant", stages=2, random_state=0).fit(X, y)
    >>> model.staging_, len(model.history_), model.calibration_.method
    ('sample_weight', 2, 'isotonic')
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        policy: str | Path | Policy = "auto",
        stages: int = 8,
        calibrate: str | None = "isotonic",
        threshold: str | float = "tuned",
        validation_fraction: float = 0.2,
        shuffle: bool = True,
        staging: str = "auto",
        passes: int = 4,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.policy = policy
        self.stages = stages
        self.calibrate = calibrate
        self.threshold = threshold
        self.validation_fraction = validation_fraction
        self.shuffle = shuffle
        self.staging = staging
        self.passes = passes
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train on ``X`` (n, F) with labels ``y`` (n,); weights of rows are the policy's to choose, so there is no ``sample_weight``."""
        table = self._table(X, reset=True)
        classes, codes = self._labels(table, y)
        self._check_options(len(classes))
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        names = [str(name) for name in classes]
        rows = hold_out(codes, self.validation_fraction, parts=2, shuffle=self.shuffle, seed=seed, names=names)
        train_X, train_codes = take_rows(table, rows.train), codes[rows.train]
        staged = StagedEstimator(
            self._learner(), train_X, train_codes, classes, staging=self.staging, stages=self.stages, passes=self.passes, seed=seed
        )
        sampler = staged.make_sampler(self.policy)
        reward, tuning = rows.parts
        stages = train_in_stages(staged, sampler, train_X, take_rows(table, reward), codes[reward])

        notes = [*rows.notes, *sampler.notes]
        scores = staged.score(take_rows(table, tuning))
        counts = np.bincount(codes)
        rare = 1 if counts[1] <= counts[0] else 0
        correction = self._correction(staged, stages, scores, codes, rows, rare, notes)
        threshold = self._tuned(correction.apply(scores, rare)[:, rare], codes[tuning] == rare) if len(classes) == 2 else None

        self.classes_ = classes
        self.estimator_ = staged.estimator
        self.staging_ = staged.staging
        self.policy_ = sampler.policy
        self.history_ = [stage.figures(number, classes) for number, stage in enumerate(stages, 1)]
        self.weights_ = stages[-1].weights
        self.calibration_ = correction
        self.positive_class_ = classes[rare] if len(classes) == 2 else None
        self.threshold_ = threshold
        self.notes_ = notes
        self._names, self._rare = staged.names, rare
        return self

    def predict_proba(self, X: Any) -> Floats:
        """(n, K) calibrated probabilities, columns in the order of ``classes_``."""
        check_is_fitted(self, "calibration_")
        return self.calibration_.apply(class_probabilities(self.estimator_, self._table(X, reset=False), self._names), self._rare)

    def predict(self, X: Any) -> NDArray[Any]:
        """(n,) classes: by ``threshold_`` for two, the most probable one for more."""
        probability = self.predict_proba(X)
        if self.threshold_ is None or self.threshold_ == HALF:
            return np.asarray(self.classes_[probability.argmax(axis=1)])
        alarm = probability[:, self._rare] >= self.threshold_
        return np.asarray(self.classes_[np.where(alarm, self._rare, 1 - self._rare)])

    def _learner(self) -> Any:
        return default_learner() if self.estimator is None else self.estimator

    def _table(self, X: Any, *, reset: bool) -> Any:
        """``X`` checked; a frame, or an array of objects or text, goes to the estimator as it is, which checks it by its own lights."""
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
        coded = label_codes(y)  # missing labels first: scikit-learn would call them an unknown type
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
        stages: list[Stage],
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
            weights = weights_in_model(staged.staging, stages)
            exact = prior_correction(prior, weights[-1].share)
            if not hasattr(staged.estimator, "predict_proba"):
                reason = "the estimator's scores are no probabilities"
            elif not prior_is_exact(weights):
                reason = "the policy moved more than class shares, or moved them between stages"
            elif rows.separate and not fits(exact.apply(scores, rare), tuning, rare):
                reason = "held-out rows contradict it"
            else:
                return exact
            notes.append(f"the prior correction is not exact here, {reason}: calibrated on the threshold half instead")
        return fit_correction(scores, tuning, prior, rare, held_out=rows.separate)

    def _tuned(self, probability: Floats, positive: NDArray[np.bool_]) -> float:
        """Threshold on the probability of the rarer class."""
        if self.threshold == "default":
            return HALF
        if self.threshold != "tuned":
            return float(self.threshold)
        best = tune_threshold(probability, positive.astype(np.int64))
        # Where .5 earns as much, it stays: `predict` then is what everybody expects of probabilities.
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
