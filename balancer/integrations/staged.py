"""Train any scikit-learn classifier over several epochs, so that a policy can change the sampling weights in
between.

Most estimators have no epochs of their own. Of five ways to train, the first that the estimator supports is
chosen (:func:`choose_staging`):

    boosting        LightGBM (init_model), XGBoost (xgb_model): each epoch adds its part of the trees, with
    weighted rows partial_fit     each epoch continues training on newly drawn rows
    warm_start      forests and other ensembles grow by ``n_estimators``: each epoch adds its part, with
    weighted (or drawn) rows sample_weight   each epoch fits a new model with weighted rows
    resample        each epoch fits a new model on drawn rows; works for any classifier

With the first three, all epochs contribute to the final model; with the last two, only the last epoch does. A
row's weight is its expected number of draws (:meth:`SamplerCore.row_weights`), so weighted fits have no
sampling noise. scikit-learn's histogram boosting can grow too, but its bins depend on the weights: the trees
of earlier epochs would be evaluated with other bins, and weighted quantiles take twenty times as long as the
rest of the fit (version 1.9). So it is fitted on drawn rows in each epoch.

A policy's budget counts one pass over the table for the whole run, however often an epoch uses its rows. The
limits on repeats were measured on neural networks that see a row a few times (``balancer.sampling.weights``),
and boosted or newly fitted learners have no such number. So the limit on the draws of a hard row is wider
than for a network. On two synthetic tables (two seeds each; the test rows were looked at) that cost at most
.003 average precision with the policy ``constant`` and gained up to .03, except for stochastic gradient
descent fitted in a pipeline (-.03 and +.02). With a hardness of .5 results were mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from balancer.dependencies import require
from balancer.deprecation import warn_renamed
from balancer.errors import InputError
from balancer.integrations.probabilities import Floats, class_probabilities
from balancer.integrations.tables import take_rows
from balancer.sampling.core import SamplerCore
from balancer.sampling.policies import Policy
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import SamplingWeights

Staging = Literal["boosting", "partial_fit", "warm_start", "sample_weight", "resample"]
POOL = 50_000
"""Number of training rows scored after an epoch, at most; the other rows keep their last score."""
MIN_DRAWS = 256
"""Minimum number of rows of an epoch, or all rows of a smaller table.

A policy's limits on repeats in an epoch refer to it.
"""
_INCREMENTAL = ("boosting", "partial_fit", "warm_start")


def default_learner() -> Any:
    """LightGBM with 100 small trees.

    It needs no scaling, accepts missing values and sparse matrices, and can continue training.
    """
    require("lightgbm", "the default estimator", "balancer[sklearn]")
    from lightgbm import LGBMClassifier

    options: dict[str, Any] = {
        "verbosity": -1,
        "deterministic": True,
        "force_row_wise": True,
        "n_jobs": 0,
    }  # 0: as many threads as OpenMP may use
    return LGBMClassifier(n_estimators=100, num_leaves=15, min_child_samples=5, reg_lambda=1.0, **options)


def choose_staging(estimator: Any) -> Staging:
    """Choose how to train an estimator; see the module's docstring."""
    if _boosting_keyword(estimator):
        return "boosting"
    params = estimator.get_params(deep=False)
    # Both need the whole table at once: scikit-learn raises an error for them in partial_fit, and warns of
    # the first with warm_start.
    whole_table = isinstance(params.get("class_weight"), str) or params.get("early_stopping") is True
    if hasattr(estimator, "partial_fit") and not whole_table:
        return "partial_fit"
    if "warm_start" in params and isinstance(params.get("n_estimators"), int) and not whole_table:
        return "warm_start"
    weighted = has_fit_parameter(estimator, "sample_weight") and not isinstance(estimator, HistGradientBoostingClassifier)
    return "sample_weight" if weighted else "resample"


def _boosting_keyword(estimator: Any) -> str | None:
    """Argument of ``fit`` that takes the present trees; None if the library can't continue from them."""
    keyword = {"lightgbm": "init_model", "xgboost": "xgb_model"}.get(library(estimator))
    if keyword is None or not has_fit_parameter(estimator, keyword) or "RF" in type(estimator).__name__:
        return None
    params = estimator.get_params(deep=False)
    # With dart, later trees rescale earlier ones; the trees of a forest are no sequence.
    return None if {params.get("boosting_type"), params.get("booster")} & {"dart", "rf"} else keyword


def library(estimator: Any) -> str:
    """Name of the package that defines an estimator, or the last step of a pipeline."""
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    return type(last).__module__.split(".")[0]


def _supports(estimator: Any, staging: str) -> bool:
    """Whether ``estimator`` can be trained in the way ``staging``."""
    if staging == "warm_start":
        params = estimator.get_params(deep=False)
        return "warm_start" in params and isinstance(params.get("n_estimators"), int)
    supported = {
        "boosting": _boosting_keyword(estimator) is not None,
        "partial_fit": hasattr(estimator, "partial_fit"),
        "sample_weight": bool(has_fit_parameter(estimator, "sample_weight")),
        "resample": True,
    }
    return supported[staging]


class StagedEstimator:
    """A clone of an estimator that is trained epoch by epoch on the rows of one table.

    Args:
        estimator: A scikit-learn classifier.
        X: (n, F) training rows.
        codes: (n,) class index of each row.
        classes: (K,) sorted labels.
        staging: ``auto`` or one of the five ways.
        epochs: Number of epochs; :attr:`epochs` is smaller if the estimator has fewer trees.
        passes: For ``partial_fit``: in each epoch, this many times the table's number of rows are drawn.
        seed: Random seed of the draws, and of every ``random_state`` of the estimator that is None.

    Raises:
        InputError: ``estimator`` is no scikit-learn classifier or can't be trained in the way ``staging``, or
            a number is out of range.
    """

    def __init__(
        self, estimator: Any, X: Any, codes: NDArray[np.int64], classes: NDArray[Any], *, staging: str, epochs: int, passes: int, seed: int
    ) -> None:
        if isinstance(estimator, type) or not hasattr(estimator, "get_params") or not is_classifier(estimator):
            raise InputError(f"estimator must be a scikit-learn classifier (an instance with fit and get_params), not {estimator!r}")
        if staging != "auto" and (staging not in get_args(Staging) or not _supports(estimator, staging)):
            supported = [way for way in get_args(Staging) if _supports(estimator, way)]
            raise InputError(
                f"staging {staging!r} is not possible with {type(estimator).__name__}; choose auto or one of {', '.join(supported)}"
            )
        for name, number in (("epochs", epochs), ("passes", passes)):
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {number!r}")
        self.estimator = clone(estimator)
        self.staging: Staging = choose_staging(estimator) if staging == "auto" else staging  # type: ignore[assignment]  # checked above
        self._X, self._codes = X, codes
        # XGBoost accepts only 0 .. K - 1. Other estimators get the labels themselves, because their
        # class_weight may name them.
        self.names: NDArray[Any] = np.arange(len(classes)) if library(estimator) == "xgboost" else classes
        """(K,) classes that the estimator is trained with."""
        self._y = self.names[codes]
        self._passes, self._seed = int(passes), seed
        self._trees = self._num_trees() if self.staging in ("boosting", "warm_start") else 0
        self.epochs = min(int(epochs), self._trees) if self._trees else int(epochs)
        random_states = {key: value for key, value in self.estimator.get_params().items() if key.rpartition("__")[2] == "random_state"}
        self.estimator.set_params(**{key: integer_seed(seed, key) for key, value in random_states.items() if value is None})
        self._final = self.estimator.get_params(deep=False)

    def _num_trees(self) -> int:
        if hasattr(self.estimator, "get_num_boosting_rounds"):
            return int(self.estimator.get_num_boosting_rounds())  # XGBoost, whose n_estimators may be None
        return int(self.estimator.get_params(deep=False)["n_estimators"])

    def make_sampler(self, policy: str | Path | Policy) -> SamplerCore:
        """Make the sampler of the training rows."""
        rows = len(self._codes)
        draws = max(-(-rows // self.epochs), min(rows, MIN_DRAWS), len(self.names))
        return SamplerCore(self._codes, policy=policy, epochs=self.epochs, num_samples=draws, seed=self._seed)

    def fit_epoch(self, epoch: int, sampler: SamplerCore) -> None:
        """Train epoch number ``epoch`` (0, 1, ...) with the present weights of ``sampler``."""
        if self.staging == "partial_fit":
            for number in range(self._passes):
                for rows in self._draws(sampler, epoch, number):
                    self.estimator.partial_fit(take_rows(self._X, rows), self._y[rows], classes=self.names)
        elif self.staging == "resample":
            self._fit_drawn(sampler, epoch)
        elif self.staging == "sample_weight":
            self.estimator.fit(self._X, self._y, sample_weight=sampler.row_weights())
        elif self.staging == "warm_start":
            self.estimator.set_params(warm_start=True, n_estimators=self._trees_until(epoch))
            if has_fit_parameter(self.estimator, "sample_weight"):
                self.estimator.fit(self._X, self._y, sample_weight=sampler.row_weights())
            else:
                self._fit_drawn(sampler, epoch)
            self.estimator.set_params(**{name: self._final[name] for name in ("warm_start", "n_estimators")})
        else:
            self._boost(epoch, sampler)

    def _boost(self, epoch: int, sampler: SamplerCore) -> None:
        keyword = _boosting_keyword(self.estimator)
        before = None
        if epoch:
            before = self.estimator.booster_ if keyword == "init_model" else self.estimator.get_booster()
        more = self._trees_until(epoch) - (self._trees_until(epoch - 1) if epoch else 0)
        # Each call of fit restarts the library's random numbers: with the same seed every epoch would leave
        # out the same rows and columns.
        given = self._final["random_state"]
        seed = integer_seed(self._seed, "boosting", given if isinstance(given, int) else 0, epoch)
        self.estimator.set_params(n_estimators=more, random_state=seed)
        self.estimator.fit(self._X, self._y, sample_weight=sampler.row_weights(), **{str(keyword): before})
        self.estimator.set_params(**{name: self._final[name] for name in ("n_estimators", "random_state")})

    def _trees_until(self, epoch: int) -> int:
        """Number of trees after ``epoch``."""
        return self._trees * (epoch + 1) // self.epochs

    def _fit_drawn(self, sampler: SamplerCore, epoch: int) -> None:
        rows = systematic_rows(sampler.row_weights(), generator(self._seed, "draw", epoch))
        # A new fit only knows the classes among its rows, so one row is added of each class that was not
        # drawn.
        lost = np.setdiff1d(self._codes, self._codes[rows])
        rows = np.concatenate([rows, *(np.flatnonzero(self._codes == c)[:1] for c in lost)])
        self.estimator.fit(take_rows(self._X, rows), self._y[rows])

    def _draws(self, sampler: SamplerCore, epoch: int, number: int) -> list[NDArray[np.int64]]:
        """Draws of ``num_samples`` rows each, together at least as many rows as the table has."""
        parts = -(-len(self._codes) // sampler.num_samples)
        return [sampler.draw(rng=generator(self._seed, "draw", epoch, number, part)) for part in range(parts)]

    def score(self, X: Any) -> Floats:
        """Class scores (m, K) of the rows of ``X`` (m, F)."""
        return class_probabilities(self.estimator, X, self.names)


def systematic_rows(expected: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw rows by systematic resampling (Madow, 1949; Kitagawa, 1996).

    Independent draws would leave out a third of the rows of a class with one expected draw per row, and
    repeat others. Systematic resampling has the same expectation and the least variance.

    Args:
        expected: (n,) expected number of draws of each row.
        rng: Source of random numbers.

    Returns:
        Row numbers in ascending order, about ``expected.sum()`` of them. Row i is drawn
        ``floor(expected[i])`` times or once more.
    """
    order = rng.permutation(len(expected))
    cumulative = np.cumsum(expected[order])
    if len(cumulative):
        cumulative[-1] = np.round(cumulative[-1], 6)  # so that rounding does not lose the last row
    edges = np.floor(cumulative + rng.random()).astype(np.int64)
    return np.sort(np.repeat(order, np.diff(edges, prepend=0)))


class EpochMetrics(dict[str, Any]):
    """Weights and validation metrics of one epoch, an element of ``history_``."""

    def __missing__(self, key: str) -> Any:
        """The epoch under its name of version 0.1, ``stage``."""
        if key != "stage":
            raise KeyError(key)
        warn_renamed("the key 'stage' of history_", "'epoch'", stacklevel=2)
        return self["epoch"]


@dataclass(frozen=True)
class Epoch:
    """One finished epoch of training."""

    weights: SamplingWeights
    """Weights that its rows were drawn with."""
    f1: float
    """Validation F1 at its best threshold after the epoch.

    For more than two classes the mean over all but the most frequent one.
    """
    average_precision: float
    """Validation average precision after the epoch."""

    def metrics(self, number: int, classes: NDArray[Any]) -> EpochMetrics:
        """As plain values: epoch, share by class, hardness, floor, F1 and average precision."""
        return EpochMetrics(
            epoch=number,
            share=dict(zip(classes.tolist(), self.weights.share.tolist(), strict=True)),
            hardness=self.weights.hardness,
            floor=self.weights.floor,
            f1=self.f1,
            average_precision=self.average_precision,
        )


def train_epochs(staged: StagedEstimator, sampler: SamplerCore, X: Any, reward_X: Any, reward_codes: NDArray[np.int64]) -> list[Epoch]:
    """Train all epochs, and update the sampler after each.

    Args:
        staged: The estimator.
        sampler: Sampler of the training rows.
        X: (n, F) training rows, which are scored for the policy.
        reward_X: (m, F) held-out rows, which the policy's reward is measured on.
        reward_codes: (m,) class index of the held-out rows.
    """
    epochs = []
    for number in range(staged.epochs):
        weights = sampler.weights
        staged.fit_epoch(number, sampler)
        rows = np.arange(sampler.num_rows)
        if len(rows) > POOL:
            rows = np.sort(generator(sampler.seed, "pool", number).choice(rows, POOL, replace=False))
        sampler.update(reward_codes, staged.score(reward_X), rows=rows, row_score=staged.score(take_rows(X, rows)))
        epochs.append(Epoch(weights, sampler.metrics["f1"], sampler.metrics["average_precision"]))
    return epochs


def weights_in_model(staging: Staging, epochs: list[Epoch]) -> list[SamplingWeights]:
    """Weights that the final model was trained with.

    They are those of all epochs, or of the last one if each epoch fits a new model.
    """
    weights = [epoch.weights for epoch in epochs]
    return weights if staging in _INCREMENTAL else weights[-1:]
