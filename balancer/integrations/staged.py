"""Train any scikit-learn classifier over several epochs, so that a policy can change the sampling weights in
between.

Most estimators have no epochs of their own. Of five ways to train, the first that the estimator supports is
chosen (:func:`choose_staging`):

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import clone, is_classifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from balancer.dependencies import require
from balancer.deprecation import warn_renamed
from balancer.errors import InputError
from balancer.integrations.masses import MILD, NATURAL, MassTrials
from balancer.integrations.probabilities import Floats, class_probabilities, to_prior
from balancer.integrations.tables import take_rows
from balancer.sampling.constant_policy import ConstantPolicy
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
_NO_NETWORKS = ("sklearn.linear_model.", "sklearn.naive_bayes")
"""Modules of classifiers that are trained in steps and have no hidden layers."""
_EARLY_STOPPING = ("early_stopping_round", "early_stopping_rounds", "early_stopping", "n_iter_no_change")
"""Names of the parameter of LightGBM (the first is the main one) and XGBoost."""
_LOGISTIC = {
    "lightgbm": (None, "binary", "multiclass", "softmax"),
    "xgboost": (None, "binary:logistic", "multi:softprob", "multi:softmax"),
}
"""Objectives whose raw scores are logits of classes."""


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
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    slow = isinstance(last, HistGradientBoostingClassifier)
    return "sample_weight" if _weight_keyword(estimator) is not None and not slow else "resample"


def _weight_keyword(estimator: Any) -> str | None:
    """Argument of ``fit`` for the weights of rows, of a pipeline that of its last step; None without."""
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        inner = _weight_keyword(last)
        return None if inner is None else f"{name}__{inner}"
    return "sample_weight" if has_fit_parameter(estimator, "sample_weight") else None


def _takes_offset(estimator: Any) -> bool:
    """Whether the raw scores of boosted trees are logits of classes, which can start from given ones."""
    params, keyword = estimator.get_params(deep=False), {"lightgbm": "init_score", "xgboost": "base_margin"}
    name = library(estimator)
    if params.get("linear_tree") or params.get("booster") == "gblinear" or params.get("objective") not in _LOGISTIC[name]:
        return False
    return bool(has_fit_parameter(estimator, keyword[name]))


def _early_stopping(estimator: Any) -> tuple[dict[str, Any], int]:
    """Parameters of boosted trees that stop them early, and the number of rounds; 0 for none."""
    given = {name: value for name, value in estimator.get_params(deep=False).items() if name in _EARLY_STOPPING and value}
    rounds = [int(value) for value in given.values() if isinstance(value, (int, np.integer)) and not isinstance(value, bool)]
    return given, max(rounds, default=0)


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
        "sample_weight": _weight_keyword(estimator) is not None,
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
        self._X, self._codes, self._weight = X, codes, sample_weight
        # XGBoost accepts only 0 .. K - 1. Other estimators get the labels themselves, because their
        # class_weight may name them.
        self.names: NDArray[Any] = np.arange(len(classes)) if library(estimator) == "xgboost" else classes
        """(K,) classes that the estimator is trained with."""
        self._y = self.names[codes]
        self._passes, self._seed, self._weight_keyword = int(passes), seed, _weight_keyword(estimator)
        weighted_steps = self.staging == "partial_fit" and "sample_weight" in inspect.signature(estimator.partial_fit).parameters
        self._counts_draws = weighted_steps  # whether drawn rows can be weighted
        self.compensated = compensated and (self.staging != "partial_fit" or weighted_steps)
        """Whether rows count by their mass."""
        self.offset = self.compensated and self.staging == "boosting" and _takes_offset(estimator)
        """Whether training starts from the logarithm of the classes' mass."""
        self.mass: Floats = np.full(len(classes), 1.0 / len(classes))
        """(K,) class shares of the stream that the scores belong to, after the last epoch."""
        self._stopping, self.patience = _early_stopping(estimator) if self.staging == "boosting" else ({}, 0)
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
            if self.staging in _INCREMENTAL:
                policy = MILD
            else:
                policy = MassTrials(self.epochs) if policy == "auto" and held_out else NATURAL
        return SamplerCore(self._codes, policy=policy, epochs=self.epochs, num_samples=draws, seed=self._seed, compensated=self.compensated)

    def fit_epoch(self, epoch: int, sampler: SamplerCore) -> None:
        """Train epoch number ``epoch`` (0, 1, ...) with the present weights of ``sampler``."""
        if self.staging not in _INCREMENTAL:
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
        options: dict[str, Any] = {str(_boosting_keyword(self.estimator)): before}
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
    mass: Floats
    """(K,) class shares of the stream that the model's scores belong to."""
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


@dataclass(frozen=True)
class Rows:
    """Rows of a table with their labels."""

    X: Any
    """(n, F)."""
    codes: NDArray[np.int64]
    """(n,) class index."""
    weight: Floats | None = None
    """(n,) how much each row counts; None: 1 each."""

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Some of the rows."""
        return Rows(take_rows(self.X, rows), self.codes[rows], None if self.weight is None else self.weight[rows])


@dataclass(frozen=True)
class Training:
    """What came of the training of all epochs."""

    epochs: list[Epoch]
    rounds: int | None
    """Rounds of boosting up to the best one, where the estimator stops early; None: all."""


def train_epochs(staged: StagedEstimator, sampler: SamplerCore, X: Any, reward: Rows, held_out: Rows | None = None) -> Training:
    """Train all epochs, and update the sampler after each.

    Args:
        staged: The estimator.
        sampler: Sampler of the training rows.
        X: (n, F) training rows, which are scored for the policy.
        reward: Held-out rows, which the policy's reward is measured on.
        held_out: All held-out rows. By their average precision masses of the classes are tried, and boosted
            trees whose estimator stops early are trained until no round is better for as many rounds as it
            says; the trees up to the best round stay. None: as ``reward``.
    """
    epochs: list[Epoch] = []
    best = BestRound(staged.patience)
    held_out = reward if held_out is None else held_out
    # Such policies need no scores of training rows.
    even = isinstance(sampler.policy, MassTrials) or (isinstance(sampler.policy, ConstantPolicy) and sampler.policy.hardness == 0)
    for number in range(staged.epochs):
        weights = sampler.weights
        staged.fit_epoch(number, sampler)
        scored: dict[str, Any] = {}
        if not even:
            rows = scored_pool(sampler.num_rows, sampler.seed, number)
            scored = {"rows": rows, "row_score": staged.policy_scores(take_rows(X, rows))}
        if isinstance(sampler.policy, MassTrials):
            sampler.policy.report(sampler.measure(held_out.codes, staged.policy_scores(held_out.X), held_out.weight)["average_precision"])
        sampler.update(reward.codes, staged.policy_scores(reward.X), y_weight=reward.weight, **scored)
        epochs.append(Epoch(weights, staged.mass, sampler.metrics["f1"], sampler.metrics["average_precision"]))
        if staged.patience and best.follow(staged, sampler, held_out):
            break
    if not staged.patience:
        return Training(epochs, None)
    staged.keep_rounds(best.number + 1)
    return Training(epochs, best.number + 1)


class BestRound:
    """Follows boosted trees round by round, as early stopping does.

    Args:
        patience: Rounds without a better one after which the training ends.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.number = 0
        """Number of the best round, from 0; the earliest of equals."""
        self._figure, self._seen = -1.0, 0
        self._margin: Floats | float = 0.0

    def follow(self, staged: StagedEstimator, sampler: SamplerCore, rows: Rows) -> bool:
        """Measure the new rounds by the average precision of held-out ``rows``; whether the training ends."""
        for margin in staged.round_scores(rows.X, self._seen, self._margin):
            odds = np.exp(margin - margin.max(axis=1, keepdims=True))
            figure = sampler.measure(rows.codes, odds / odds.sum(axis=1, keepdims=True), rows.weight)["average_precision"]
            if figure > self._figure:
                self.number, self._figure = self._seen, figure
            self._seen, self._margin = self._seen + 1, margin
            if self._seen - 1 - self.number >= self.patience:
                return True
        return False


def train_again(staged: StagedEstimator, X: Any, epochs: list[Epoch], before: StagedEstimator, reward: Rows) -> None:
    """Train on other rows as in a finished training.

    Args:
        staged: The estimator with the rows to train on.
        X: (n, F) these rows.
        epochs: Epochs of the finished training.
        before: The estimator of the finished training. Where each epoch fits a new model, its model before
            the last one scores the rows for the hardness of the last fit.
        reward: The held-out rows of the finished training.
    """
    incremental = staged.staging in _INCREMENTAL
    for number in range(0 if incremental else len(epochs) - 1, len(epochs)):
        weights = epochs[number].weights
        if staged.staging in ("boosting", "warm_start") and number + 1 < len(epochs) and _same_stream(weights, epochs[number + 1].weights):
            continue  # the trees of both epochs are one fit
        sampler, scorer = staged.make_sampler(weights), staged if incremental else before
        if weights.hardness > 0 and number:
            rows = scored_pool(sampler.num_rows, sampler.seed, number)
            scores = scorer.policy_scores(reward.X, earlier=not incremental)
            row_scores = scorer.policy_scores(take_rows(X, rows), earlier=not incremental)
            sampler.update(reward.codes, scores, rows=rows, row_score=row_scores)
        staged.fit_epoch(number, sampler)


def _same_stream(one: SamplingWeights, other: SamplingWeights) -> bool:
    """Whether rows count alike under both weights, whatever their scores."""
    return one.hardness == other.hardness == 0 and one.class_importance == other.class_importance and np.array_equal(one.share, other.share)


def scored_pool(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Training rows that are scored after an epoch, at most :data:`POOL`."""
    if num_rows <= POOL:
        return np.arange(num_rows)
    return np.sort(generator(seed, "pool", epoch).choice(num_rows, POOL, replace=False))


def model_epochs(staging: Staging, epochs: list[Epoch]) -> list[Epoch]:
    """Epochs that the final model was trained in: all, or the last one if each epoch fits a new model."""
    return epochs if staging in _INCREMENTAL else epochs[-1:]
