"""Learners of the benchmark on real tables, each with its treatments of imbalance.

A further learner is a :class:`Learner` in :data:`LEARNERS`.

For linear models and trees that start from the prior, logit adjustment and a correction of the prior shift
all scores alike, so they have the ranking of the treatment that they correct and no line of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from imblearn.over_sampling import SMOTE, RandomOverSampler
from imblearn.under_sampling import RandomUnderSampler
from lightgbm import LGBMClassifier
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from balancer import AdaptiveClassifier
from balancer.comparison.figures import EvaluatedRows
from balancer.comparison.population import PopulationFold, PopulationTrainer
from balancer.comparison.treatments import named_treatment
from balancer.envs.problem import PopulationProblem
from balancer.sampling.scores import macro_metrics
from benchmarks.lib.tables import Floats, Labels, TableFold

Scores = tuple[Floats, Floats]
"""Class probabilities (n, K) of the validation rows and (t, K) of the test rows."""
ROUNDS, PATIENCE = 100, 10
"""Rounds of boosting at most, and rounds without a better one after which it stops."""
NEIGHBOURS = 5
"""Neighbours of SMOTE, fewer where the smallest class has fewer rows."""
FOCAL_GAMMA = 2.0
NETWORK_EPOCHS, NETWORK_BATCH = 20, 64
"""Epochs of the small network, of at most one pass over the table, and rows of a mini-batch."""


@dataclass(frozen=True)
class Learner:
    """A learner, and how it is trained under each treatment."""

    fixed: tuple[str, ...]
    """Fixed treatments; ``auto`` is compared with the best of them."""
    train: Callable[[TableFold], Iterator[tuple[str, Scores]]]
    """Trains all treatments on a split; yields the name of each, ``auto`` among them, and its scores."""


def resampled(treatment: str, x: Floats, y: Labels, seed: int) -> tuple[Floats, Labels]:
    """Rows after ``one_to_one`` (repeats), ``under`` or ``smote``; unchanged for other treatments."""
    neighbours = min(NEIGHBOURS, int(np.bincount(y).min()) - 1)
    samplers: dict[str, Callable[[], Any]] = {
        "one_to_one": lambda: RandomOverSampler(random_state=seed),
        "under": lambda: RandomUnderSampler(random_state=seed),
        "smote": lambda: SMOTE(random_state=seed, k_neighbors=neighbours),
    }
    if treatment not in samplers:
        return x, y
    new_x, new_y = samplers[treatment]().fit_resample(x, y)
    return np.asarray(new_x), np.asarray(new_y)


def logistic_regression(fold: TableFold) -> Iterator[tuple[str, Scores]]:
    """Train scikit-learn's logistic regression; it needs no validation rows."""
    (x, x_valid, x_test), (y, y_valid, _) = fold.x, fold.y
    for treatment in LEARNERS["logistic regression"].fixed:
        model = LogisticRegression(max_iter=1000, class_weight="balanced" if treatment == "class_weight" else None)
        model.fit(*resampled(treatment, x, y, fold.split))
        yield treatment, (model.predict_proba(x_valid), model.predict_proba(x_test))
    adaptive = AdaptiveClassifier(LogisticRegression(max_iter=1000), random_state=fold.split)
    adaptive.fit(x, y, X_val=x_valid, y_val=y_valid)
    yield "auto", (adaptive.predict_proba(x_valid), adaptive.predict_proba(x_test))


def boosted_trees(fold: TableFold) -> Iterator[tuple[str, Scores]]:
    """Train LightGBM; every treatment keeps the trees up to the round that is best on the validation rows."""
    (x, x_valid, x_test), (y, y_valid, _) = fold.x, fold.y
    options: dict[str, Any] = {"n_estimators": ROUNDS, "early_stopping_round": PATIENCE, "verbosity": -1, "n_jobs": 1}
    for treatment in LEARNERS["LightGBM"].fixed:
        if treatment == "focal":
            if y.max() == 1:
                yield treatment, _focal_trees(fold, options)
            continue
        model: Any = LGBMClassifier(metric="None", class_weight="balanced" if treatment == "class_weight" else None, **options)
        _fit(model, *resampled(treatment, x, y, fold.split), fold)
        yield treatment, (model.predict_proba(x_valid), model.predict_proba(x_test))
    adaptive = AdaptiveClassifier(LGBMClassifier(**options), random_state=fold.split)
    adaptive.fit(x, y, X_val=x_valid, y_val=y_valid)
    yield "auto", (adaptive.predict_proba(x_valid), adaptive.predict_proba(x_test))


def _fit(model: Any, x: Floats, y: Labels, fold: TableFold, **start: Any) -> None:
    """Fit LightGBM with early stopping by the average precision of the validation rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The argument 'eval_set' is deprecated")  # its successor is too new
        warnings.filterwarnings("ignore", message="Cannot compute class probabilities")  # of a loss of one's own
        model.fit(x, y, eval_set=[(fold.x[1], fold.y[1])], eval_metric=_average_precision, **start)


def _average_precision(label: Labels, score: Floats) -> tuple[str, float, bool]:
    """Average precision for LightGBM's early stopping, of more classes the mean over the rare ones."""
    by_class = np.column_stack([-score, score]) if score.ndim == 1 else score
    figure = macro_metrics(label.astype(np.int64), by_class[None], np.ones(len(label))).average_precision[0]
    return "average_precision", float(figure), True


def _focal_trees(fold: TableFold, options: dict[str, Any]) -> Scores:
    """LightGBM with the focal loss (Lin et al. 2017), from the log-odds of the prior."""
    y, y_valid, _ = fold.y
    start = float(np.log(y.mean() / (1.0 - y.mean())))
    objective: Any = focal_gradient
    model: Any = LGBMClassifier(objective=objective, metric="None", **options)
    scores = {"init_score": np.full(len(y), start), "eval_init_score": [np.full(len(y_valid), start)]}
    _fit(model, fold.x[0], y, fold, **scores)
    probabilities = [expit(start + model.predict(part, raw_score=True)) for part in fold.x[1:]]
    validation, test = (np.column_stack([1.0 - p, p]) for p in probabilities)
    return validation, test


def focal_gradient(label: Floats, raw: Floats) -> tuple[Floats, Floats]:
    """First and second derivative of the focal loss ``-(1 - q) ** gamma * log(q)`` by the raw scores (n,).

    ``q`` is the probability of the true class. Where ``q`` is small, the second derivative is negative; it is
    at least that of a cross-entropy with the weight ``(1 - q) ** gamma``, so that a step stays bounded.
    """
    sign = np.where(label > 0, 1.0, -1.0)
    log_q = -np.logaddexp(0.0, -sign * raw)
    q, gamma = np.exp(log_q), FOCAL_GAMMA
    inner = gamma * q * log_q - (1.0 - q)
    slope = (1.0 - q) ** gamma * inner
    # Derivative of (1 - q) ** gamma * (gamma q log q - (1 - q)) by the margin, whose dq is q (1 - q).
    curvature = q * (1.0 - q) ** gamma * (-gamma * inner + (1.0 - q) * (gamma * log_q + gamma + 1.0))
    return sign * slope, np.maximum(curvature, q * (1.0 - q) ** (gamma + 1.0))


def small_network(fold: TableFold) -> Iterator[tuple[str, Scores]]:
    """Train the small network of the population; each treatment keeps its epoch that is best on validation.

    All treatments are trained side by side with the same initial weights and random numbers.
    """
    x, y = tuple(part.astype(np.float32) for part in fold.x), fold.y
    classes = int(y[0].max()) + 1
    problem = PopulationProblem(x[0], y[0], x[1], y[1], np.ones(len(y[0])), np.ones(len(y[1])), classes)
    evaluated = EvaluatedRows(tuple(map(str, range(classes))), y[1], y[2], np.zeros(len(y[2])), None)
    steps = int(np.clip(len(y[0]) / NETWORK_BATCH, 8, 60))
    trainer = PopulationTrainer(
        PopulationFold(problem, x[1], x[2], evaluated),
        epochs=NETWORK_EPOCHS,
        steps_per_epoch=steps,
        batch_size=NETWORK_BATCH,
        keep_best=True,
    )
    names = (*LEARNERS["small network"].fixed, "auto")
    treatments = [named_treatment(name, trainer.counts, fold.split) for name in names]
    trained = trainer.train(treatments, fold.split, lambda text: None)
    yield from zip(names, trained.scores(range(len(names))), strict=True)


LEARNERS: dict[str, Learner] = {
    "logistic regression": Learner(("none", "class_weight", "one_to_one", "under", "smote"), logistic_regression),
    "LightGBM": Learner(("none", "class_weight", "one_to_one", "under", "smote", "focal"), boosted_trees),
    "small network": Learner(
        ("none", "none_zero_bias", "class_weight", "one_to_one", "under", "smote", "focal", "logit_adjustment"), small_network
    ),
}
