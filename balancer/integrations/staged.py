"""Training in stages, so that a policy can act between them, for estimators that were not made for it.

Five ways, the best that an estimator allows is chosen (:func:`choose_staging`):

    boosting        LightGBM (init_model), XGBoost (xgb_model): each stage adds its part of the trees, rows weighted
    partial_fit     each stage goes on with newly drawn rows
    warm_start      forests and other ensembles grow by ``n_estimators``: each stage adds its part, rows weighted (or drawn)
    sample_weight   each stage fits anew with weighted rows
    resample        each stage fits anew on drawn rows: any classifier

In the first three the model of the end carries what every stage gave it, in the last two the last stage alone. Weights are expected draws
(:meth:`SamplerCore.row_weights`), so nothing is left to chance that need not be. scikit-learn's histogram boosting could grow too, but
its bins follow the weights: trees of earlier stages would be read with other bins, and weighted quantiles cost twenty times the rest of the
fit (1.9), so it is fitted anew on drawn rows.

What a policy counts as its budget is one pass over the table in the whole run, however often a stage goes over its rows: limits on repeats
were measured on networks that see a row a few times (``balancer.sampling.weights``), and boosted or refitted learners have no such count. The
limit on a hard row's draws is wider then. On two synthetic tables (two seeds each, test rows in view) that cost at most .003 of average
precision under ``constant`` and gained up to .03, but for stochastic gradient descent refitted in a pipeline (-.03 and +.02); with a
hardness of .5 it was mixed.
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

from balancer.errors import InputError
from balancer.integrations.probabilities import Floats, class_probabilities
from balancer.integrations.tables import take_rows
from balancer.sampling.core import SamplerCore
from balancer.sampling.policies import Policy
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import SamplingWeights

Staging = Literal["boosting", "partial_fit", "warm_start", "sample_weight", "resample"]
POOL = 50_000
"""Most training rows that are scored after a stage; the others keep their last score."""
MIN_DRAWS = 256
"""Rows drawn at once, or the whole table where it has fewer: what a policy's limits on repeats within an epoch refer to."""
_PARTLY_TRAINED = ("boosting", "partial_fit", "warm_start")


def default_learner() -> Any:
    """Boosted trees: they need no scaling, take missing values and sparse matrices, and go on training under new weights."""
    from lightgbm import LGBMClassifier

    options: dict[str, Any] = {
        "verbosity": -1,
        "deterministic": True,
        "force_row_wise": True,
        "n_jobs": 0,
    }  # 0: the threads that OpenMP may use
    return LGBMClassifier(n_estimators=100, num_leaves=15, min_child_samples=5, reg_lambda=1.0, **options)


def choose_staging(estimator: Any) -> Staging:
    """The way an estimator is trained, by what it can do; see the module's docstring."""
    if _boosting_keyword(estimator):
        return "boosting"
    params = estimator.get_params(deep=False)
    # Both need the whole table, which partial_fit never sees: scikit-learn refuses them there and warns of the first when growing.
    whole_table = isinstance(params.get("class_weight"), str) or params.get("early_stopping") is True
    if hasattr(estimator, "partial_fit") and not whole_table:
        return "partial_fit"
    if "warm_start" in params and isinstance(params.get("n_estimators"), int) and not whole_table:
        return "warm_start"
    weighted = has_fit_parameter(estimator, "sample_weight") and not isinstance(estimator, HistGradientBoostingClassifier)
    return "sample_weight" if weighted else "resample"


def _boosting_keyword(estimator: Any) -> str | None:
    """Argument of ``fit`` that takes the trees so far; none where the library can't go on from them."""
    keyword = {"lightgbm": "init_model", "xgboost": "xgb_model"}.get(library(estimator))
    if keyword is None or not has_fit_parameter(estimator, keyword) or "RF" in type(estimator).__name__:
        return None
    params = estimator.get_params(deep=False)
    # Later trees of dart rescale earlier ones, and a forest's trees are no sequence.
    return None if {params.get("boosting_type"), params.get("booster")} & {"dart", "rf"} else keyword


def library(estimator: Any) -> str:
    """Package that an estimator, or the last step of a pipeline, comes from."""
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    return type(last).__module__.split(".")[0]


def _can(estimator: Any, staging: str) -> bool:
    """Whether ``estimator`` can be trained the way that was asked for."""
    if staging == "warm_start":
        params = estimator.get_params(deep=False)
        return "warm_start" in params and isinstance(params.get("n_estimators"), int)
    able = {
        "boosting": _boosting_keyword(estimator) is not None,
        "partial_fit": hasattr(estimator, "partial_fit"),
        "sample_weight": bool(has_fit_parameter(estimator, "sample_weight")),
        "resample": True,
    }
    return able[staging]


class StagedEstimator:
    """A clone of an estimator, trained stage by stage on the rows of one table.

    Args:
        estimator: a scikit-learn classifier; InputError where it is none, or can't be trained the way asked for.
        X: (n, F) training rows.
        codes: (n,) class index.
        classes: (K,) labels, sorted.
        staging: ``auto`` or one of the five.
        stages: how many are wanted; :attr:`stages` are fewer where the estimator has fewer trees.
        passes: for ``partial_fit``, how often each stage goes over as many rows as the table has.
        seed: of draws, and of each ``random_state`` that the estimator leaves open.
    """

    def __init__(
        self, estimator: Any, X: Any, codes: NDArray[np.int64], classes: NDArray[Any], *, staging: str, stages: int, passes: int, seed: int
    ) -> None:
        if isinstance(estimator, type) or not hasattr(estimator, "get_params") or not is_classifier(estimator):
            raise InputError(f"estimator must be a scikit-learn classifier (an instance with fit and get_params), not {estimator!r}")
        if staging != "auto" and (staging not in get_args(Staging) or not _can(estimator, staging)):
            able = [way for way in get_args(Staging) if _can(estimator, way)]
            raise InputError(
                f"staging {staging!r} is not possible with {type(estimator).__name__}; choose auto or one of {', '.join(able)}"
            )
        for name, number in (("stages", stages), ("passes", passes)):
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {number!r}")
        self.estimator = clone(estimator)
        self.staging: Staging = choose_staging(estimator) if staging == "auto" else staging  # type: ignore[assignment]  # checked above
        self._X, self._codes = X, codes
        # XGBoost takes 0 .. K - 1 alone; any other learner gets the labels as they are, for its class_weight may name them.
        self.names: NDArray[Any] = np.arange(len(classes)) if library(estimator) == "xgboost" else classes
        """(K,) classes as the estimator knows them."""
        self._y = self.names[codes]
        self._passes, self._seed = int(passes), seed
        self._trees = self._num_trees() if self.staging in ("boosting", "warm_start") else 0
        self.stages = min(int(stages), self._trees) if self._trees else int(stages)
        open_seeds = {key: value for key, value in self.estimator.get_params().items() if key.rpartition("__")[2] == "random_state"}
        self.estimator.set_params(**{key: integer_seed(seed, key) for key, value in open_seeds.items() if value is None})
        self._final = self.estimator.get_params(deep=False)

    def _num_trees(self) -> int:
        if hasattr(self.estimator, "get_num_boosting_rounds"):
            return int(self.estimator.get_num_boosting_rounds())  # XGBoost, where n_estimators may be None
        return int(self.estimator.get_params(deep=False)["n_estimators"])

    def make_sampler(self, policy: str | Path | Policy) -> SamplerCore:
        """Sampler of the training rows, for as many epochs as there are stages."""
        rows = len(self._codes)
        draws = max(-(-rows // self.stages), min(rows, MIN_DRAWS), len(self.names))
        return SamplerCore(self._codes, policy=policy, epochs=self.stages, num_samples=draws, seed=self._seed)

    def fit_stage(self, stage: int, sampler: SamplerCore) -> None:
        """Train stage number ``stage`` (0, 1, ...) under the weights of ``sampler``."""
        if self.staging == "partial_fit":
            for number in range(self._passes):
                for rows in self._draws(sampler, stage, number):
                    self.estimator.partial_fit(take_rows(self._X, rows), self._y[rows], classes=self.names)
        elif self.staging == "resample":
            self._fit_drawn(sampler, stage)
        elif self.staging == "sample_weight":
            self.estimator.fit(self._X, self._y, sample_weight=sampler.row_weights())
        elif self.staging == "warm_start":
            self.estimator.set_params(warm_start=True, n_estimators=self._trees_until(stage))
            if has_fit_parameter(self.estimator, "sample_weight"):
                self.estimator.fit(self._X, self._y, sample_weight=sampler.row_weights())
            else:
                self._fit_drawn(sampler, stage)
            self.estimator.set_params(**{name: self._final[name] for name in ("warm_start", "n_estimators")})
        else:
            self._boost(stage, sampler)

    def _boost(self, stage: int, sampler: SamplerCore) -> None:
        keyword = _boosting_keyword(self.estimator)
        before = None
        if stage:
            before = self.estimator.booster_ if keyword == "init_model" else self.estimator.get_booster()
        more = self._trees_until(stage) - (self._trees_until(stage - 1) if stage else 0)
        # Each call starts the library's own random numbers anew: with one seed every stage would leave out the same rows and columns.
        own = self._final["random_state"]
        seed = integer_seed(self._seed, "boosting", own if isinstance(own, int) else 0, stage)
        self.estimator.set_params(n_estimators=more, random_state=seed)
        self.estimator.fit(self._X, self._y, sample_weight=sampler.row_weights(), **{str(keyword): before})
        self.estimator.set_params(**{name: self._final[name] for name in ("n_estimators", "random_state")})

    def _trees_until(self, stage: int) -> int:
        return self._trees * (stage + 1) // self.stages

    def _fit_drawn(self, sampler: SamplerCore, stage: int) -> None:
        rows = spread_rows(sampler.row_weights(), generator(self._seed, "draw", stage))
        # A fit on fewer classes would forget the others: one row of each class that chance left out.
        lost = np.setdiff1d(self._codes, self._codes[rows])
        rows = np.concatenate([rows, *(np.flatnonzero(self._codes == c)[:1] for c in lost)])
        self.estimator.fit(take_rows(self._X, rows), self._y[rows])

    def _draws(self, sampler: SamplerCore, stage: int, number: int) -> list[NDArray[np.int64]]:
        """Draws that together have at least as many rows as the table."""
        parts = -(-len(self._codes) // sampler.num_samples)
        return [sampler.draw(rng=generator(self._seed, "draw", stage, number, part)) for part in range(parts)]

    def score(self, X: Any) -> Floats:
        """(m, K) class scores of rows."""
        return class_probabilities(self.estimator, X, self.names)


def spread_rows(expected: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows by systematic resampling, ascending: row i comes ``floor(expected[i])`` or one more times, and about ``expected.sum()`` in all.

    Independent draws would leave out a third of the rows of a class that is to come once each, and repeat others. Systematic resampling
    (Madow, 1949; Kitagawa, 1996) has the same expectation with the least variance.
    """
    order = rng.permutation(len(expected))
    cumulative = np.cumsum(expected[order])
    if len(cumulative):
        cumulative[-1] = np.round(cumulative[-1], 6)  # a whole number of rows is not to be missed by rounding
    edges = np.floor(cumulative + rng.random()).astype(np.int64)
    return np.sort(np.repeat(order, np.diff(edges, prepend=0)))


@dataclass(frozen=True)
class Stage:
    """One stage of training, as it went."""

    weights: SamplingWeights
    """Rows were drawn by these."""
    f1: float
    """Validation F1 at its best threshold after it; more than two classes: the mean over all but the commonest."""
    average_precision: float

    def figures(self, number: int, classes: NDArray[Any]) -> dict[str, Any]:
        """As a dict of plain values, for a history: ``stage``, ``share`` by class, ``hardness``, ``floor``, ``f1``, ``average_precision``."""
        share = dict(zip(classes.tolist(), self.weights.share.tolist(), strict=True))
        said = {"stage": number, "share": share, "hardness": self.weights.hardness, "floor": self.weights.floor}
        return {**said, "f1": self.f1, "average_precision": self.average_precision}


def train_in_stages(staged: StagedEstimator, sampler: SamplerCore, X: Any, reward_X: Any, reward_codes: NDArray[np.int64]) -> list[Stage]:
    """Train all stages; after each the policy sees scores on the training rows ``X`` and on the held-out rows ``reward_X``."""
    stages = []
    for number in range(staged.stages):
        used = sampler.weights
        staged.fit_stage(number, sampler)
        rows = np.arange(sampler.num_rows)
        if len(rows) > POOL:
            rows = np.sort(generator(sampler.seed, "pool", number).choice(rows, POOL, replace=False))
        sampler.update(reward_codes, staged.score(reward_X), rows=rows, row_score=staged.score(take_rows(X, rows)))
        stages.append(Stage(used, sampler.metrics["f1"], sampler.metrics["average_precision"]))
    return stages


def weights_in_model(staging: Staging, stages: list[Stage]) -> list[SamplingWeights]:
    """The weights that the final model was trained by: of every stage, or of the last one alone where each stage fits anew."""
    used = [stage.weights for stage in stages]
    return used if staging in _PARTLY_TRAINED else used[-1:]
