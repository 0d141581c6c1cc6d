"""Train any scikit-learn classifier with adaptive sampling, and keep its probabilities calibrated.

    model = AdaptiveClassifier(LGBMClassifier(), policy="auto").fit(X, y)
    model.predict_proba(X_later)

Sampling shifts every score, and most libraries leave the correction to the user. Here ``predict_proba``
returns probabilities for the class shares of the table that was given, and ``predict`` uses a threshold tuned
on held-out rows. The validation rows are split in two halves: the reward half measures the policy's reward,
the threshold half is used for the threshold, and to check or fit the calibration. Then the estimator is
trained again, on all rows, so that none is lost to validation.

The default policy is made for rankings that are at least those of the estimator alone: see
:mod:`balancer.integrations.masses`.

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
from balancer.integrations.holdout import divide, hold_out
from balancer.integrations.probabilities import (
    Floats,
    ProbabilityCorrection,
    class_probabilities,
    fit_correction,
    fits,
    prior_correction,
    prior_is_exact,
)
from balancer.integrations.staged import StagedEstimator, default_learner
from balancer.integrations.staged_training import Epoch, Rows, model_epochs, train_again, train_epochs
from balancer.integrations.stagings import library
from balancer.integrations.tables import class_index, is_frame, label_codes, row_weights, sparse_matrix, take_rows
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
        its ``decision_function`` is used. LightGBM and XGBoost that are made to stop early do so by the
        average precision of the held-out rows.
    policy
        ``auto``, by the way of training: a constant for ensembles of trees and for steps, four masses of the
        classes by trial for new fits, see :mod:`balancer.integrations.masses`. ``constant``: the
        same without trials. ``constant:share=.2,hardness=1``, ``ppo`` and ``bandit`` (learned), ``rule``, the
        folder of a learned policy, or an object with ``name`` and ``act``.
    epochs
        Number of epochs: how often the policy sets the weights. There are fewer if the estimator has fewer
        trees.
    calibrate
        ``auto``: the exact correction of class shares; a curve where that is not exact or the threshold half
        contradicts it. ``prior``: the same, with a note where a curve is used. ``isotonic``: always a curve,
        increasing and without the ties of plain isotonic regression, fitted on the threshold half. None:
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
    refit
        Whether to train again on all rows in the end, the held-out ones too, as the epochs were trained.
        Calibration and threshold stay.
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
        The trained classifier. Boosted trees give scores of a stream with equally frequent classes.
    staging_
        How it was trained.
    policy_
        The loaded policy.
    history_
        A dict for each epoch: ``epoch``, ``share`` (by class), ``hardness``, ``floor``, and the validation
        metrics after it, ``f1`` and ``average_precision``. Fewer than ``epochs`` if trees stopped early.
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
    ('sample_weight', 2, 'prior')
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        policy: str | Path | Policy = "auto",
        epochs: int = 8,
        calibrate: str | None = "auto",
        threshold: str | float = "tuned",
        validation_fraction: float = 0.2,
        shuffle: bool = True,
        refit: bool = True,
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
        self.refit = refit
        self.staging = staging
        self.passes = passes
        self.random_state = random_state
        self.stages = stages

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """Train on ``X`` (n, F) with labels ``y`` (n,).

        ``sample_weight`` (n,) says how much each row counts, 0 or more; None: 1 each. It multiplies the
        policy's weight, and it counts in calibration, threshold and validation metrics. A row of weight 0 is
        left out.

        Validation rows ``X_val`` (m, F), ``y_val`` (m,) and ``sample_weight_val`` (m,) take the place of held
        out ones. Then the estimator is trained on all rows of ``X`` and on none of ``X_val``.
        """
        epochs = renamed_argument(AdaptiveClassifier, "stages", "epochs", self.epochs, self.stages)
        table = self._table(X, reset=True)
        given, classes = self._rows(table, y, sample_weight)
        self._check_options(len(classes))
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        names, counts = [str(name) for name in classes], np.bincount(given.codes)
        if X_val is None:
            if y_val is not None or sample_weight_val is not None:
                raise InputError("y_val and sample_weight_val belong to X_val; give it too, or leave them out")
            rows = hold_out(given.codes, self.validation_fraction, parts=2, shuffle=self.shuffle, seed=seed, names=names)
            train, validation = given.take(rows.train), given
        else:
            validation = self._validation(X_val, y_val, sample_weight_val, classes)
            rows = divide(validation.codes, common=int(counts.argmax()), shuffle=self.shuffle, seed=seed)
            train = given
        reward, tuning = (validation.take(part) for part in rows.parts)
        held_out = validation.take(np.unique(np.concatenate(rows.parts)))
        options: dict[str, Any] = {"staging": self.staging, "epochs": epochs, "passes": self.passes, "seed": seed}
        staged = StagedEstimator(self._learner(), train.X, train.codes, classes, sample_weight=train.weight, **options)
        sampler = staged.make_sampler(self.policy, held_out=rows.separate)
        trained = train_epochs(staged, sampler, train.X, reward, held_out)

        notes = [*rows.notes, *sampler.notes]
        rare = 1 if counts[1] <= counts[0] else 0
        correction = self._correction(staged, trained.epochs, staged.score(held_out.X), train, held_out, rows.separate, rare, notes)
        probability = correction.apply(staged.score(tuning.X), rare)
        threshold = self._tuned(probability[:, rare], tuning, rare) if len(classes) == 2 else None
        final = staged
        if self.refit and X_val is None and rows.separate:
            options["rounds"] = trained.rounds
            final = StagedEstimator(self._learner(), given.X, given.codes, classes, sample_weight=given.weight, **options)
            train_again(final, given.X, trained.epochs, staged, reward)
            if correction.method == "prior":
                correction = prior_correction(class_prior(counts), final.mass)

        self.classes_ = classes
        self.estimator_ = final.estimator
        self.staging_ = staged.staging
        self.policy_ = sampler.policy
        self.history_ = [epoch.metrics(number, classes) for number, epoch in enumerate(trained.epochs, 1)]
        self.weights_ = trained.epochs[-1].weights
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

    def _rows(self, table: Any, y: Any, sample_weight: Any) -> tuple[Rows, NDArray[Any]]:
        """The rows that count, and the classes (K,) among them."""
        y = self._column(table, y, "y")
        weight = row_weights(sample_weight, len(y), "sample_weight")
        if weight is not None and not weight.all():
            kept = np.flatnonzero(weight)
            table, y, weight = take_rows(table, kept), take_rows(y, kept), weight[kept]
        classes, codes = label_codes(y)  # reports missing labels; scikit-learn's check would call them an unknown type
        check_classification_targets(np.asarray(y))
        return Rows(table, codes, weight), classes

    def _validation(self, X_val: Any, y_val: Any, sample_weight_val: Any, classes: NDArray[Any]) -> Rows:
        table = self._table(X_val, reset=False)
        y = self._column(table, y_val, "y_val")
        rows = Rows(table, class_index(y, classes, "y_val"), row_weights(sample_weight_val, len(y), "sample_weight_val"))
        return rows if rows.weight is None or rows.weight.all() else rows.take(np.flatnonzero(rows.weight))

    def _column(self, table: Any, y: Any, name: str) -> Any:
        """Labels as one column, one for each row of ``table``."""
        if y is None:
            raise InputError(f"AdaptiveClassifier requires {name} to be passed, but the target {name} is None")
        check_consistent_length(table, y)
        return y if (hasattr(y, "isna") or hasattr(y, "is_null")) and len(y.shape) == 1 else column_or_1d(y, warn=True)

    def _check_options(self, num_classes: int) -> None:
        if self.calibrate not in ("auto", "isotonic", "prior", None):
            raise InputError(f"calibrate must be 'auto', 'prior', 'isotonic' or None, not {self.calibrate!r}")
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
        train: Rows,
        held_out: Rows,
        separate: bool,
        rare: int,
        notes: list[str],
    ) -> ProbabilityCorrection:
        """The correction for models like the one that gave ``scores`` (n, K) to the rows ``held_out``.

        With weights of rows, the probabilities are those of the weighted table, as those of the estimator
        alone would be. The prior correction leaves that to the estimator, so its prior counts rows.
        """
        prior = class_prior(np.bincount(train.codes, minlength=scores.shape[1]))
        if self.calibrate is None:
            return ProbabilityCorrection(None, np.ones_like(prior))
        if self.calibrate != "isotonic":
            in_model = model_epochs(staged.staging, epochs)
            exact = prior_correction(prior, in_model[-1].mass)
            if not hasattr(staged.estimator, "predict_proba"):
                reason = "the estimator's scores are no probabilities"
            elif not prior_is_exact([epoch.weights for epoch in in_model], [epoch.mass for epoch in in_model]):
                reason = "the policy changed more than class shares, or changed them between epochs"
            elif separate and not fits(exact.apply(scores, rare), held_out.codes, rare, held_out.weight):
                reason = "the held-out rows contradict it"
            else:
                return exact
            if self.calibrate == "prior":
                notes.append(f"the prior correction is not exact here, {reason}: so the model was calibrated on the threshold half")
        weighted = class_prior(np.bincount(train.codes, train.weight, minlength=scores.shape[1]))
        return fit_correction(scores, held_out.codes, weighted, rare, held_out=separate, weight=held_out.weight)

    def _tuned(self, probability: Floats, tuning: Rows, rare: int) -> float:
        """Threshold on the probability of the less frequent class."""
        if self.threshold == "default":
            return HALF
        if self.threshold != "tuned":
            return float(self.threshold)
        positive, weight = tuning.codes == rare, tuning.weight
        best = tune_threshold(probability, positive.astype(np.int64), weight)
        # Prefer .5 if it is as good: then `predict` returns the most probable class, as users expect.
        plain = f1_score(positive, probability >= HALF, zero_division=0.0, sample_weight=weight)
        return best if f1_score(positive, probability >= best, sample_weight=weight) - plain > 1e-9 else HALF

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
