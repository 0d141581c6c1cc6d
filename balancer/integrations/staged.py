"""Train any scikit-learn classifier over several epochs, so that a policy can change the sampling weights in
between.

Most estimators have no epochs of their own. Of five ways to train, the first that the estimator supports is
chosen (:func:`balancer.integrations.stagings.choose_staging`):

- ``boosting``: LightGBM (``init_model``), XGBoost (``xgb_model``). Each epoch adds its part of the trees,
  with weighted rows.
- ``partial_fit``: each epoch continues training on newly drawn rows.
- ``warm_start``: forests and other ensembles grow by ``n_estimators``. Each epoch adds its part, with
  weighted (or drawn) rows.
- ``sample_weight``: each epoch fits a new model with weighted rows; pipelines pass the weights to their last
  step.
- ``resample``: each epoch fits a new model on drawn rows; works for any classifier.

With the first three, all epochs contribute to the final model; with the last two, only the last epoch does.

**What a row counts.** Weighted fits get the mass of each row, its expected draws times its loss weight
(:meth:`SamplerCore.effective_weights`), so they have no sampling noise. ``partial_fit`` draws rows and counts
each by its loss weight where the estimator takes weights. Boosted trees also start from the logarithm of each
class's mass (:meth:`SamplerCore.init_score`) and leave it out when they score, so their raw scores are those
of a stream with equally frequent classes. The scores of all others belong to a stream with the class shares
:attr:`StagedEstimator.mass`, which :mod:`balancer.integrations.probabilities` corrects.

**The policy ``auto``** depends on the way of training: see :mod:`balancer.integrations.masses`. ``constant``
is the same without trials.

scikit-learn's histogram boosting can grow too, but its bins depend on the weights: the trees of earlier
epochs would be evaluated with other bins, and weighted quantiles take twenty times as long as the rest of the
fit (version 1.9). So it is fitted on drawn rows in each epoch.

A policy's budget counts one pass over the table for the whole run, however often an epoch uses its rows. The
limits on repeats were measured on neural networks that see a row a few times (``balancer.sampling.weights``),
and boosted or newly fitted learners have no such number. So the limit on the draws of a hard row is wider
than for a network. On two synthetic tables (two seeds each; the test rows were looked at) that cost at most
.003 average precision with the policy ``constant`` and gained up to .03, except for stochastic gradient
descent fitted in a pipeline (-.03 and +.02). With a hardness of .5 results were mixed.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import clone, is_classifier

from balancer.dependencies import require
from balancer.errors import InputError
from balancer.integrations.masses import MILD, NATURAL, MassTrials
from balancer.integrations.probabilities import Floats, class_probabilities, to_prior
from balancer.integrations.stagings import (
    INCREMENTAL,
    Staging,
    boosting_keyword,
    choose_staging,
    early_stopping,
    library,
    supports,
    takes_offset,
    weight_keyword,
)
from balancer.integrations.tables import take_rows
from balancer.sampling.core import SamplerCore
from balancer.sampling.policies import Policy
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import SamplingWeights

MIN_DRAWS = 256
"""Minimum number of rows of an epoch, or all rows of a smaller table.

A policy's limits on repeats in an epoch refer to it.
"""
_NO_NETWORKS = ("sklearn.linear_model.", "sklearn.naive_bayes")
"""Modules of classifiers that are trained in steps and have no hidden layers."""


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
        sample_weight: (n,) how much each row counts, above 0; it multiplies the weight by the policy. None: 1
            each.
        compensated: False: rows count by their expected draws alone, as for a model that will be trained on
            drawn rows by a plain loss.
        rounds: Trees of boosting, at most; None: as many as the estimator has.

    Raises:
        InputError: ``estimator`` is no scikit-learn classifier or can't be trained in the way ``staging``, or
            a number is out of range.
    """

    def __init__(
        self,
        estimator: Any,
        X: Any,
        codes: NDArray[np.int64],
        classes: NDArray[Any],
        *,
        staging: str,
        epochs: int,
        passes: int,
        seed: int,
        sample_weight: Floats | None = None,
        compensated: bool = True,
        rounds: int | None = None,
    ) -> None:
        if isinstance(estimator, type) or not hasattr(estimator, "get_params") or not is_classifier(estimator):
            raise InputError(f"estimator must be a scikit-learn classifier (an instance with fit and get_params), not {estimator!r}")
        if staging != "auto" and (staging not in get_args(Staging) or not supports(estimator, staging)):
            supported = [way for way in get_args(Staging) if supports(estimator, way)]
            raise InputError(
                f"staging {staging!r} is not possible with {type(estimator).__name__}; choose auto or one of {', '.join(supported)}"
            )
        for name, number in (("epochs", epochs), ("passes", passes)):
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {number!r}")
        self.estimator = clone(estimator)
        self.staging: Staging = choose_staging(estimator) if staging == "auto" else staging  # type: ignore[assignment]  # checked above
        self._X, self._codes, self._weight = X, codes, sample_weight
        # XGBoost accepts only 0 .. K - 1. Other estimators get the labels themselves, because their
        # class_weight may name them.
        self.names: NDArray[Any] = np.arange(len(classes)) if library(estimator) == "xgboost" else classes
        """(K,) classes that the estimator is trained with."""
        self._y = self.names[codes]
        self._passes, self._seed, self._weight_keyword = int(passes), seed, weight_keyword(estimator)
        weighted_steps = self.staging == "partial_fit" and "sample_weight" in inspect.signature(estimator.partial_fit).parameters
        self._counts_draws = weighted_steps  # whether drawn rows can be weighted
        self.compensated = compensated and (self.staging != "partial_fit" or weighted_steps)
        """Whether rows count by their mass."""
        self.offset = self.compensated and self.staging == "boosting" and takes_offset(estimator)
        """Whether training starts from the logarithm of the classes' mass."""
        self.mass: Floats = np.full(len(classes), 1.0 / len(classes))
        """(K,) class shares of the stream that the scores belong to, after the last epoch."""
        self._stopping, self.patience = early_stopping(estimator) if self.staging == "boosting" else ({}, 0)
        self._trees = self._num_trees() if self.staging in ("boosting", "warm_start") else 0
        self.epochs = min(int(epochs), self._trees) if self._trees else int(epochs)
        self._rounds = self._trees if rounds is None else rounds
        self._grown = 0  # rounds of boosting so far
        random_states = {key: value for key, value in self.estimator.get_params().items() if key.rpartition("__")[2] == "random_state"}
        self.estimator.set_params(**{key: integer_seed(seed, key) for key, value in random_states.items() if value is None})
        self._final = self.estimator.get_params(deep=False)
        self._models: list[tuple[Floats, Any]] = []  # that were fitted with weights without hardness
        self._earlier: tuple[Any, Floats] | None = None  # the model of the epoch before, and its mass

    def _num_trees(self) -> int:
        if hasattr(self.estimator, "get_num_boosting_rounds"):
            return int(self.estimator.get_num_boosting_rounds())  # XGBoost, whose n_estimators may be None
        return int(self.estimator.get_params(deep=False)["n_estimators"])

    def make_sampler(self, policy: str | Path | Policy | SamplingWeights, *, held_out: bool = True) -> SamplerCore:
        """Make the sampler of the training rows.

        Args:
            policy: The policy; ``auto`` and ``constant`` depend on the way of training.
            held_out: Whether figures come from rows that are not trained on; otherwise there are no trials.
        """
        rows = len(self._codes)
        draws = max(-(-rows // self.epochs), min(rows, MIN_DRAWS), len(self.names))
        network = self.staging == "partial_fit" and not type(self.estimator).__module__.startswith(_NO_NETWORKS)
        if isinstance(policy, str) and policy in ("auto", "constant") and self.compensated and not network:
            if self.staging in INCREMENTAL:
                policy = MILD
            else:
                policy = MassTrials(self.epochs) if policy == "auto" and held_out else NATURAL
        return SamplerCore(self._codes, policy=policy, epochs=self.epochs, num_samples=draws, seed=self._seed, compensated=self.compensated)

    def fit_epoch(self, epoch: int, sampler: SamplerCore) -> None:
        """Train epoch number ``epoch`` (0, 1, ...) with the present weights of ``sampler``."""
        if self.staging not in INCREMENTAL:
            if epoch:
                self._earlier = self.estimator, self.mass
            self.estimator = clone(self.estimator)
        if self.staging == "partial_fit":
            self._fit_steps(epoch, sampler)
        elif self.staging == "resample":
            self._fit_drawn(sampler, epoch)
        elif self.staging == "sample_weight":
            weights = self._weights(sampler)
            same = [model for fitted, model in self._models if np.array_equal(fitted, weights)]
            if same:
                self.estimator = same[0]  # a new fit would give the same model
            else:
                self._fit(weights)
                if sampler.weights.hardness == 0:
                    self._models.append((weights, self.estimator))
        elif self.staging == "warm_start":
            self.estimator.set_params(warm_start=True, n_estimators=self._trees_until(epoch))
            if self._weight_keyword is not None:
                self._fit(self._weights(sampler))
            else:
                self._fit_drawn(sampler, epoch)
            self.estimator.set_params(**{name: self._final[name] for name in ("warm_start", "n_estimators")})
        else:
            self._boost(epoch, sampler)
        if not self.offset:
            self.mass = np.exp(sampler.logit_offset) if self.compensated else sampler.weights.share

    def _weights(self, sampler: SamplerCore) -> Floats:
        """(n,) weight of each row in the present epoch."""
        weights = sampler.effective_weights() if self.compensated else sampler.row_weights()
        weights = np.round(weights, 12)  # the natural stream has weights of exactly 1
        return weights if self._weight is None else weights * self._weight

    def _fit(self, weights: Floats, **more: Any) -> None:
        # Weights go to the estimator itself, whatever it asks for under metadata routing.
        with config_context(enable_metadata_routing=False):
            self.estimator.fit(self._X, self._y, **{str(self._weight_keyword): weights}, **more)

    def _fit_steps(self, epoch: int, sampler: SamplerCore) -> None:
        for number in range(self._passes):
            for rows in self._draws(sampler, epoch, number):
                options: dict[str, Any] = {"classes": self.names}
                if self._counts_draws and (self.compensated or self._weight is not None):
                    weights = sampler.sample_weight(rows) if self.compensated else np.ones(len(rows))
                    options["sample_weight"] = weights if self._weight is None else weights * self._weight[rows]
                self.estimator.partial_fit(take_rows(self._X, rows), self._y[rows], **options)

    def _boost(self, epoch: int, sampler: SamplerCore) -> None:
        more = self._trees_until(epoch) - self._grown
        if more == 0:
            return
        lightgbm = library(self.estimator) == "lightgbm"
        before = None
        if self._grown:
            before = self.estimator.booster_ if lightgbm else self.estimator.get_booster()
        # Each call of fit restarts the library's random numbers: with the same seed every epoch would leave
        # out the same rows and columns.
        given = self._final["random_state"]
        seed = integer_seed(self._seed, "boosting", given if isinstance(given, int) else 0, epoch)
        changed: dict[str, Any] = {"n_estimators": more, "random_state": seed, **dict.fromkeys(self._stopping)}
        options: dict[str, Any] = {str(boosting_keyword(self.estimator)): before}
        if self.offset and lightgbm:
            # LightGBM starts from the trees so far or from given scores, not from both. So the offset is put
            # into the first trees for the time of the fit.
            if before is None:
                options["init_score"] = sampler.init_score()
            else:
                _shift(before, sampler.logit_offset)
        elif self.offset:
            options["base_margin"] = sampler.init_score()
            changed["base_score"] = 0.5  # in scoring XGBoost adds its logarithm of odds, which is then 0
        self.estimator.set_params(**changed)
        self._fit(self._weights(sampler), **options)
        if self.offset and lightgbm and before is not None:
            _shift(self.estimator.booster_, -sampler.logit_offset)
        self.estimator.set_params(**{name: self._final[name] for name in changed})
        self._grown += more

    def _trees_until(self, epoch: int) -> int:
        """Number of trees after ``epoch``."""
        return min(self._rounds, self._trees * (epoch + 1) // self.epochs)

    def round_scores(self, X: Any, start: int, margin: Floats | float) -> list[Floats]:
        """Logits of the classes of the rows of ``X`` after each round of boosting, from round ``start`` on.

        Args:
            X: (m, F) rows.
            start: Number of the first round.
            margin: What this method returned for the last round before it; 0 for none.

        Returns:
            An array (m, K) for each round, up to a constant for each class.
        """
        lightgbm = library(self.estimator) == "lightgbm"
        booster = self.estimator.booster_ if lightgbm else self.estimator.get_booster()
        rounds = int(booster.current_iteration() if lightgbm else booster.num_boosted_rounds())
        found = []
        for number in range(start, rounds):
            if lightgbm:
                raw = self.estimator.predict(X, raw_score=True, start_iteration=number, num_iteration=1)
            else:
                raw = self.estimator.predict(X, output_margin=True, iteration_range=(number, number + 1))
            raw = np.asarray(raw, dtype=np.float64)
            margin = margin + (np.column_stack([np.zeros(len(raw)), raw]) if raw.ndim == 1 else raw)
            found.append(margin)
        return found

    def keep_rounds(self, rounds: int) -> None:
        """Drop the boosted trees after the first ``rounds`` rounds."""
        if library(self.estimator) == "lightgbm":
            from lightgbm import Booster

            self.estimator._Booster = Booster(model_str=self.estimator.booster_.model_to_string(num_iteration=rounds))
            self.estimator._best_iteration = rounds
        else:
            self.estimator._Booster = self.estimator.get_booster()[:rounds]
            self.estimator._Booster.set_attr(best_iteration=rounds - 1)

    def _fit_drawn(self, sampler: SamplerCore, epoch: int) -> None:
        expected = self._weights(sampler)
        if self._weight is not None:
            expected = expected * (len(expected) / expected.sum())
        rows = systematic_rows(expected, generator(self._seed, "draw", epoch))
        # A new fit only knows the classes among its rows, so one row is added of each class that was not
        # drawn.
        lost = np.setdiff1d(self._codes, self._codes[rows])
        rows = np.concatenate([rows, *(np.flatnonzero(self._codes == c)[:1] for c in lost)])
        self.estimator.fit(take_rows(self._X, rows), self._y[rows])

    def _draws(self, sampler: SamplerCore, epoch: int, number: int) -> list[NDArray[np.int64]]:
        """Draws of ``num_samples`` rows each, together at least as many rows as the table has."""
        parts = range(-(-len(self._codes) // sampler.num_samples))
        sources = [generator(self._seed, "draw", epoch, number, part) for part in parts]
        if self._weight is None or self._counts_draws:
            return [sampler.draw(rng=rng) for rng in sources]
        chance = sampler.row_weights() * self._weight  # rows that can't be weighted are drawn by their weight
        return [rng.choice(len(chance), sampler.num_samples, p=chance / chance.sum()) for rng in sources]

    def score(self, X: Any) -> Floats:
        """Class scores (m, K) of the rows of ``X`` (m, F), of a stream with the class shares :attr:`mass`."""
        return class_probabilities(self.estimator, X, self.names)

    def policy_scores(self, X: Any, *, earlier: bool = False) -> Floats:
        """Class scores (m, K) for a policy: of a stream with equally frequent classes, where compensated.

        Args:
            X: (m, F) rows.
            earlier: Score with the model of the epoch before the last one, where each epoch fits a new model.
        """
        estimator, mass = self._earlier if earlier and self._earlier is not None else (self.estimator, self.mass)
        scores = class_probabilities(estimator, X, self.names)
        return to_prior(scores, mass, np.ones(len(mass))) if self.compensated else scores


def _shift(booster: Any, offset: Floats) -> None:
    """Add ``offset`` (K,) to the logits of a LightGBM model, in the leaves of its first round."""
    outputs = [offset[1] - offset[0]] if len(offset) == 2 else offset.tolist()
    for tree, by in enumerate(outputs):
        leaves = int(booster.dump_model(num_iteration=1)["tree_info"][tree]["num_leaves"])
        for leaf in range(leaves):
            booster.set_leaf_output(tree, leaf, booster.get_leaf_output(tree, leaf) + by)


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
