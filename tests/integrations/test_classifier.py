"""Classifiers trained with adaptive sampling: ranking, calibration, thresholds, and scikit-learn's checks."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import make_classification
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import average_precision_score, f1_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from xgboost import XGBClassifier

from balancer.errors import InputError
from balancer.evaluation.metrics import expected_calibration_error
from balancer.evaluation.thresholds import tune_threshold
from balancer.integrations.classifier import AdaptiveClassifier
from balancer.integrations.holdout import hold_out
from balancer.integrations.probabilities import IncreasingCurve, ProbabilityCorrection, fit_correction, prior_correction, prior_is_exact
from balancer.integrations.staged import StagedEstimator
from balancer.integrations.stagings import choose_staging
from balancer.sampling.core import SamplerCore
from balancer.sampling.weights import SamplingWeights

LEARNERS: dict[str, tuple[Any, str]] = {
    "pipeline": (make_pipeline(StandardScaler(), LogisticRegression()), "sample_weight"),
    "sgd": (SGDClassifier(loss="log_loss", alpha=1e-3, random_state=0), "partial_fit"),
    "mlp": (MLPClassifier((16,), max_iter=30, random_state=0), "partial_fit"),
    "forest": (RandomForestClassifier(40, random_state=0), "warm_start"),
    "histogram boosting": (HistGradientBoostingClassifier(max_iter=30, random_state=0), "resample"),
    "logistic regression": (LogisticRegression(), "sample_weight"),
    "neighbours": (KNeighborsClassifier(15), "resample"),
    "lightgbm": (LGBMClassifier(n_estimators=40, verbosity=-1, n_jobs=1), "boosting"),
    "xgboost": (XGBClassifier(n_estimators=40, n_jobs=1), "boosting"),
    "bagging": (BaggingClassifier(n_estimators=10, random_state=0), "warm_start"),
    "no probabilities": (LinearSVC(), "sample_weight"),
    "default": (None, "boosting"),
}


def adaptive(estimator: Any = None, **options: Any) -> AdaptiveClassifier:
    return AdaptiveClassifier(estimator, **{"policy": "constant", "epochs": 3, "random_state": 0, **options})


@pytest.fixture(scope="module")
def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """5,000 rows to train on and 5,000 to test, 5 % positives."""
    options = {"n_features": 8, "n_informative": 5, "weights": [0.95], "flip_y": 0.005, "class_sep": 1.2, "random_state": 2}
    X, y = make_classification(10_000, **options)
    return X[:5000], y[:5000], X[5000:], y[5000:]


def cannot_pass(model: AdaptiveClassifier) -> dict[str, str]:
    """Checks of scikit-learn that can't pass, with the reason. Logistic regression passes all."""
    reason = {
        type(None): "LightGBM's min_child_samples and bins count rows, not weights",
        SGDClassifier: "rows are drawn, so a row of weight 2 and two rows are drawn at other times",
    }.get(type(model.estimator))
    kinds = ("dense", "sparse") if reason is not None else ()
    return {f"check_sample_weight_equivalence_on_{kind}_data": str(reason) for kind in kinds}


@parametrize_with_checks(
    [
        AdaptiveClassifier(),
        AdaptiveClassifier(SGDClassifier(loss="log_loss"), epochs=2),
        adaptive(LogisticRegression(), epochs=2, calibrate="prior"),
    ],
    expected_failed_checks=cannot_pass,
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


# The network alone is trained as long as the one with sampling, and warns that it has not converged.
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer. Maximum iterations:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", LEARNERS)
def test_ranks_as_well_as_the_learner_alone(tables: Any, name: str) -> None:
    X, y, X_test, y_test = tables
    learner, staging = LEARNERS[name]
    # Repeated positives would fill the neighbourhoods of nearest neighbours, so they keep the shares of the
    # table.
    policy = "constant:share=prior,hardness=0" if name == "neighbours" else "constant"
    # Learners that see a row once in a pass need the passes.
    length = {"epochs": 8, "passes": 4} if staging == "partial_fit" else {}
    model = adaptive(learner, policy=policy, **length).fit(X, y)
    alone = clone(learner if learner is not None else LEARNERS["lightgbm"][0]).fit(X, y)
    plain = alone.predict_proba(X_test)[:, 1] if hasattr(alone, "predict_proba") else alone.decision_function(X_test)
    assert model.staging_ == staging
    probability = model.predict_proba(X_test)
    assert average_precision_score(y_test, probability[:, 1]) > average_precision_score(y_test, plain) - 0.05
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert f1_score(y_test, model.predict(X_test)) > f1_score(y_test, alone.predict(X_test)) - 0.05
    assert len(model.history_) == length.get("epochs", 3) and model.history_[-1]["average_precision"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightgbm", "forest", "logistic regression"])
def test_calibration_error_is_no_worse_than_without_sampling(name: str) -> None:
    options = {"n_features": 12, "n_informative": 6, "n_clusters_per_class": 3, "weights": [0.98], "flip_y": 0.002, "random_state": 3}
    X, y = make_classification(40_000, **options)
    learner = LEARNERS[name][0]
    plain = clone(learner).fit(X[:20_000], y[:20_000]).predict_proba(X[20_000:])[:, 1]
    limit = expected_calibration_error(y[20_000:], plain) + 0.005
    for policy in ("constant", "constant:share=.2,hardness=0"):
        for calibrate in ("isotonic", "prior"):
            model = adaptive(learner, policy=policy, calibrate=calibrate).fit(X[:20_000], y[:20_000])
            assert expected_calibration_error(y[20_000:], model.predict_proba(X[20_000:])[:, 1]) <= limit
    if name != "forest":  # whose probabilities are rough anyway
        shifted = adaptive(learner, policy="constant:share=.2,hardness=0", calibrate=None).fit(X[:20_000], y[:20_000])
        raw = shifted.predict_proba(X[20_000:])[:, 1]
        assert expected_calibration_error(y[20_000:], raw) > limit


def test_the_prior_correction_is_exact_for_class_sampling() -> None:
    rng = np.random.default_rng(0)
    density = rng.dirichlet(np.ones(3), 200)  # p(x | class) of each row, up to a factor
    prior, share = np.array([0.9, 0.07, 0.03]), np.array([0.5, 0.25, 0.25])
    expected, sampled = density * prior, density * share
    correction = prior_correction(prior, share)
    np.testing.assert_allclose(
        correction.apply(sampled / sampled.sum(axis=1, keepdims=True), 0), expected / expected.sum(axis=1, keepdims=True), rtol=1e-12
    )


def test_prior_correction_is_refused_where_it_is_not_exact(tables: Any) -> None:
    X, y, X_test, y_test = tables
    exact = adaptive(LogisticRegression(), policy="constant:share=.2,hardness=0", calibrate="prior").fit(X[:, :3], y)
    hard = adaptive(LogisticRegression(), policy="constant:share=.2,hardness=1", calibrate="prior").fit(X, y)
    margin = adaptive(LinearSVC(), policy="constant:share=.2,hardness=0", calibrate="prior").fit(X, y)
    assert exact.calibration_.method in ("prior", "isotonic")
    assert (exact.calibration_.method == "prior") == (not exact.notes_)
    assert hard.calibration_.method == "isotonic" and "changed more than class shares" in hard.notes_[0]
    assert margin.calibration_.method == "isotonic" and "no probabilities" in margin.notes_[0]
    assert expected_calibration_error(y_test, hard.predict_proba(X_test)[:, 1]) < 0.02


def test_the_epochs_for_which_a_prior_correction_is_exact() -> None:
    even = SamplingWeights(np.array([0.8, 0.2]), 0.0)
    assert prior_is_exact([even, even])
    assert not prior_is_exact([even, SamplingWeights(np.array([0.7, 0.3]), 0.0)])
    assert not prior_is_exact([SamplingWeights(np.array([0.8, 0.2]), 0.5)])


@given(st.integers(0, 10_000), st.integers(40, 400))
def test_increasing_curve_keeps_every_ranking(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.beta(0.3, 2, rows).round(2)
    positive = rng.random(rows) < 0.1 + 0.5 * score
    positive[:20] = np.arange(20) < 10
    curve = IncreasingCurve.fit(score, positive)
    grid = np.linspace(0, 1, 500)
    assert (np.diff(curve.transform(grid)) > 0).all()
    assert curve.transform(grid).min() > 0 and curve.transform(grid).max() < 1
    assert abs(curve.transform(score).mean() - positive.mean()) < 0.05


def test_a_class_with_few_rows_is_shifted_to_its_prior() -> None:
    rng = np.random.default_rng(0)
    score = rng.beta(1, 3, 500)
    labels = (np.arange(500) < 5).astype(np.int64)
    correction = fit_correction(np.column_stack([1 - score, score]), labels, np.array([0.98, 0.02]), 1, held_out=True)
    assert correction.apply(np.column_stack([1 - score, score]), 1)[:, 1].mean() == pytest.approx(0.02, abs=1e-6)


def test_scores_without_correction_stay_as_they_are() -> None:
    score = np.random.default_rng(0).dirichlet(np.ones(3), 10)
    assert ProbabilityCorrection(None, np.ones(3)).apply(score, 0) is score


def test_more_classes_than_two_with_names() -> None:
    X, y = make_classification(3000, n_features=8, n_informative=5, n_classes=3, weights=[0.05, 0.85, 0.1], random_state=1)
    names = np.array(["chargeback", "fine", "stolen"])[y]
    for learner in (LogisticRegression(), XGBClassifier(n_estimators=12, n_jobs=1), LinearSVC()):
        model = adaptive(learner).fit(X[:2000], names[:2000])
        probability = model.predict_proba(X[2000:])
        assert model.classes_.tolist() == ["chargeback", "fine", "stolen"]
        assert model.threshold_ is None and model.positive_class_ is None
        np.testing.assert_allclose(probability.sum(axis=1), 1)
        np.testing.assert_array_equal(model.predict(X[2000:]), model.classes_[probability.argmax(axis=1)])
        for c, name in enumerate(model.classes_):
            assert abs(probability[:, c].mean() - (names[2000:] == name).mean()) < 0.04
            prior = (names[2000:] == name).mean()
            assert average_precision_score(names[2000:] == name, probability[:, c]) > min(1.5 * prior, 0.9)


def test_the_threshold_is_for_the_less_frequent_class(tables: Any) -> None:
    X, y, X_test, y_test = tables
    named = adaptive(LogisticRegression()).fit(X, np.where(y == 1, "a fraud", "ok"))
    coded = adaptive(LogisticRegression()).fit(X, y)
    assert named.positive_class_ == "a fraud" and named.classes_.tolist() == ["a fraud", "ok"]
    assert f1_score(y_test, named.predict(X_test) == "a fraud") == pytest.approx(f1_score(y_test, coded.predict(X_test)), abs=0.05)
    alarm = coded.predict_proba(X_test)[:, 1] >= coded.threshold_
    np.testing.assert_array_equal(coded.predict(X_test) == 1, alarm)


def test_thresholds(tables: Any) -> None:
    X, y, X_test, _ = tables
    fixed = adaptive(LogisticRegression(), threshold=0.1).fit(X, y)
    np.testing.assert_array_equal(fixed.predict(X_test) == 1, fixed.predict_proba(X_test)[:, 1] >= 0.1)
    default = adaptive(LogisticRegression(), threshold="default").fit(X, y)
    np.testing.assert_array_equal(default.predict(X_test), default.predict_proba(X_test).argmax(axis=1))


def test_tables_of_every_kind_give_the_same_scores(tables: Any) -> None:
    X, y, X_test, _ = tables
    X, y, X_test = X[:1000], y[:1000], X_test[:50]
    names = [f"f{i}" for i in range(X.shape[1])]
    expected = adaptive().fit(X, y).predict_proba(X_test)
    for kind in (sparse.csr_matrix, sparse.csc_array, lambda a: pd.DataFrame(a, columns=names), lambda a: pl.DataFrame(a, schema=names)):
        model = adaptive().fit(kind(X), y)
        np.testing.assert_allclose(model.predict_proba(kind(X_test)), expected, rtol=1e-6)
    model = adaptive().fit(pl.DataFrame(X, schema=names), pl.Series(y))
    assert model.feature_names_in_.tolist() == names and model.n_features_in_ == len(names)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(pl.DataFrame(X_test, schema=[f"g{i}" for i in range(X.shape[1])]))


@pytest.mark.parametrize("frame", [True, False])
def test_a_pipeline_sees_text_as_it_is(frame: bool) -> None:
    rng = np.random.default_rng(0)
    place = rng.choice(["shop", "web", "atm"], 2000)
    y = (rng.random(2000) < np.where(place == "web", 0.4, 0.02)).astype(int)
    X = pd.DataFrame({"place": place}) if frame else place[:, None].astype(object)
    model = adaptive(make_pipeline(OneHotEncoder(), LogisticRegression())).fit(X, y)
    probability = model.predict_proba(X)[:, 1]
    assert probability[place == "web"].mean() > 4 * probability[place == "shop"].mean()


def test_one_seed_one_model(tables: Any) -> None:
    X, y, X_test, _ = tables
    for learner in (RandomForestClassifier(8), XGBClassifier(n_estimators=8, subsample=0.5, n_jobs=1), SGDClassifier(loss="log_loss")):
        first, second = (adaptive(learner).fit(X, y).predict_proba(X_test) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(adaptive(learner, random_state=1).fit(X, y).predict_proba(X_test), first)
        # scikit-learn copies estimators and sends them to workers with pickle. The package reads no pickle
        # from disk.
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(adaptive(learner).fit(X, y))).predict_proba(X_test), first)


def test_the_estimator_is_not_changed_and_the_trained_one_has_its_parameters(tables: Any) -> None:
    X, y, *_ = tables
    for learner, count in (
        (RandomForestClassifier(10, random_state=7), lambda m: len(m.estimators_)),
        (LGBMClassifier(n_estimators=10, random_state=7, verbosity=-1, n_jobs=1), lambda m: m.booster_.current_iteration()),
        (XGBClassifier(n_estimators=10, random_state=7, n_jobs=1), lambda m: m.get_booster().num_boosted_rounds()),
    ):
        before = learner.get_params()
        model = adaptive(learner, epochs=3).fit(X, y)
        assert learner.get_params() == before and not hasattr(learner, "classes_")
        assert count(model.estimator_) == 10
        after = model.estimator_.get_params()
        assert {name: after[name] for name in ("n_estimators", "random_state")} == {"n_estimators": 10, "random_state": 7}
    assert len(adaptive(RandomForestClassifier(2), epochs=5).fit(X, y).history_) == 2


def test_ways_of_training() -> None:
    assert choose_staging(LGBMClassifier()) == choose_staging(XGBClassifier()) == "boosting"
    assert choose_staging(LGBMClassifier(boosting_type="dart")) == choose_staging(XGBClassifier(booster="dart")) == "sample_weight"
    assert choose_staging(SGDClassifier(class_weight="balanced")) == "sample_weight"
    assert choose_staging(MLPClassifier(early_stopping=True)) == "sample_weight"
    assert choose_staging(RandomForestClassifier(class_weight="balanced")) == "sample_weight"
    assert choose_staging(SVC()) == "sample_weight"


@pytest.mark.parametrize("staging", ["partial_fit", "sample_weight", "resample"])
def test_the_way_of_training_can_be_chosen(tables: Any, staging: str) -> None:
    X, y, X_test, y_test = tables
    model = adaptive(SGDClassifier(loss="log_loss", alpha=1e-3), staging=staging).fit(X, y)
    assert model.staging_ == staging
    assert average_precision_score(y_test, model.predict_proba(X_test)[:, 1]) > 0.2


def test_weights_are_expected_draws(tables: Any) -> None:
    X, y, *_ = tables
    staged = StagedEstimator(LogisticRegression(), X, y, np.arange(2), staging="auto", epochs=4, passes=1, seed=0)
    sampler = staged.make_sampler("constant:share=.2,hardness=0")
    staged.fit_epoch(0, sampler)
    reference = LogisticRegression().fit(X, y, sample_weight=np.where(y == 1, 0.2 / y.mean(), 0.8 / (1 - y.mean())))
    np.testing.assert_allclose(staged.estimator.coef_, reference.coef_, rtol=1e-3)


@pytest.mark.parametrize("name", ["logistic regression", "pipeline", "neighbours", "no probabilities"])
def test_the_constant_trains_a_new_fit_on_all_rows_as_they_are(tables: Any, name: str) -> None:
    X, y, X_test, _ = tables
    X, y = X[:1500], y[:1500]
    learner = LEARNERS[name][0]
    model, alone = adaptive(learner, policy="constant", calibrate=None).fit(X, y), clone(learner).set_params(**seeded(learner)).fit(X, y)
    if hasattr(alone, "predict_proba"):
        np.testing.assert_allclose(model.predict_proba(X_test), alone.predict_proba(X_test), rtol=1e-6)
    else:
        np.testing.assert_allclose(model.estimator_.decision_function(X_test), alone.decision_function(X_test), rtol=1e-4)
    held_out = adaptive(learner, policy="constant", refit=False).fit(X, y)
    assert (held_out.estimator_.n_features_in_ == X.shape[1] and held_out.threshold_ == model.threshold_) or name == "no probabilities"


def seeded(learner: Any) -> dict[str, Any]:
    return {"random_state": 0} if isinstance(learner, LinearSVC) else {}


def test_the_default_for_trees_has_the_mass_of_prior_to_three_quarters(tables: Any) -> None:
    X, y, *_ = tables
    staged = StagedEstimator(RandomForestClassifier(8), X, y, np.arange(2), staging="auto", epochs=2, passes=1, seed=0)
    sampler = staged.make_sampler("auto")
    prior = np.bincount(y) / len(y)
    np.testing.assert_allclose(np.exp(sampler.logit_offset), prior**0.75 / (prior**0.75).sum(), rtol=1e-3)
    staged.fit_epoch(0, sampler)
    np.testing.assert_allclose(staged.mass, np.exp(sampler.logit_offset))


def test_only_networks_that_are_trained_in_steps_draw_hard_rows(tables: Any) -> None:
    X, y, *_ = tables
    for learner, name in ((SGDClassifier(loss="log_loss"), "compensated constant"), (GaussianNB(), "compensated constant")):
        model = adaptive(learner, policy="auto", epochs=2, passes=1).fit(X, y)
        assert model.policy_.name == name and model.weights_.hardness == 0
    network = adaptive(MLPClassifier((8,)), policy="auto", epochs=2, passes=1).fit(X, y)
    assert network.policy_.name == "auto" and network.weights_.hardness > 0


def test_masses_are_tried_on_held_out_rows(tables: Any) -> None:
    X, y, *_ = tables
    model = adaptive(LogisticRegression(), policy="auto", epochs=7).fit(X, y)
    prior = y.mean()
    shares = [line["share"][1] for line in model.history_]
    powers = [prior**p / (prior**p + (1 - prior) ** p) for p in (0.5, 0.0, 0.75)]
    np.testing.assert_allclose(shares[1:4], powers, atol=1e-3)
    assert len(set(shares[4:])) == 1 and shares[4] in shares[:4]
    assert model.policy_.name == "masses by trial" and model.calibration_.method == "prior"
    staged = StagedEstimator(LogisticRegression(), X, y, np.arange(2), staging="auto", epochs=4, passes=1, seed=0)
    sampler = staged.make_sampler("auto")
    figures = []
    for epoch in range(3):
        staged.fit_epoch(epoch, sampler)
        figures.append(average_precision_score(y, staged.score(X)[:, 1]))
        sampler.policy.report(figures[-1])
        sampler.update(y, staged.policy_scores(X))
    staged.fit_epoch(3, sampler)
    assert average_precision_score(y, staged.score(X)[:, 1]) == max(figures)
    few = adaptive(LogisticRegression(), policy="auto").fit(np.arange(12.0)[:, None], [0] * 9 + [1] * 3)
    assert few.policy_.name == "natural constant"  # figures of training rows would choose the mass that fits them most


def test_the_mass_that_ranks_best_is_kept() -> None:
    rng = np.random.default_rng(0)
    y = (np.arange(6000) % 30 == 0).astype(np.int64)
    X = rng.normal(size=(6000, 3))
    X[:, 0] += 2.0 * y
    far = (y == 1) & (rng.random(6000) < 0.1)
    X[far, 0] -= 10.0  # a linear model that heeds these rows ranks the others worse
    train, test = slice(0, 4000), slice(4000, 6000)

    def precision(learner: Any, policy: str) -> float:
        model = adaptive(learner, policy=policy, epochs=8).fit(X[train], y[train])
        return float(average_precision_score(y[test], model.predict_proba(X[test])[:, 1]))

    equal = "constant:share=equal,hardness=0"
    linear = LogisticRegression()
    natural = precision(linear, "constant")
    assert precision(linear, "auto") == pytest.approx(natural, abs=0.01)
    assert natural > precision(linear, equal) + 0.05
    tree = DecisionTreeClassifier(max_depth=6, min_weight_fraction_leaf=0.05, random_state=0)  # 3 % of the weight are no leaf
    assert precision(tree, "auto") > precision(tree, "constant") + 0.05


class Alternating:
    """Draws the minority rarely and often in turns."""

    name = "alternating"

    def __init__(self) -> None:
        self.often = False

    def act(self, observation: Any) -> SamplingWeights:
        self.often = not self.often
        rare = 0.6 if self.often else 0.1
        others = len(observation.prior) - 1
        return SamplingWeights(np.array([1 - rare] + [rare / others] * others))


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
@pytest.mark.parametrize("classes", [2, 3])
def test_trees_score_a_balanced_stream_whatever_was_drawn(library: str, classes: int) -> None:
    weights = [0.94, 0.06] if classes == 2 else [0.08, 0.87, 0.05]
    X, y = make_classification(9000, n_features=8, n_informative=5, n_classes=classes, weights=weights, flip_y=0.02, random_state=1)
    small = {"n_estimators": 30, "learning_rate": 0.2, "n_jobs": 1}
    learner = LGBMClassifier(verbosity=-1, num_leaves=7, **small) if library == "lightgbm" else XGBClassifier(max_depth=3, **small)
    model = adaptive(learner, policy=Alternating(), epochs=6, calibrate=None).fit(X[:6000], y[:6000])
    raw, prior = model.predict_proba(X[6000:]), np.bincount(y[:6000]) / 6000
    assert raw.mean(axis=0).max() < 0.8 < prior.max()
    probability = raw * prior / (raw * prior).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probability.mean(axis=0), np.bincount(y[6000:]) / 3000, atol=0.015)
    alone = clone(learner).fit(X[:6000], y[:6000]).predict_proba(X[6000:])
    assert log_loss(y[6000:], probability) < log_loss(y[6000:], alone) + 0.03
    corrected = adaptive(learner, policy=Alternating(), epochs=6).fit(X[:6000], y[:6000])
    if corrected.calibration_.method == "prior":
        np.testing.assert_allclose(corrected.predict_proba(X[6000:]), probability, rtol=1e-6)
    assert model.estimator_.get_params()["n_estimators"] == 30


def test_trees_are_those_of_one_fit_from_the_offset(tables: Any) -> None:
    X, y, X_test, y_test = tables
    for learner, keyword in (
        (LGBMClassifier(n_estimators=20, verbosity=-1, n_jobs=1), "init_score"),
        (XGBClassifier(n_estimators=20, n_jobs=1), "base_margin"),
    ):
        model = adaptive(learner, policy="auto", epochs=4, calibrate=None).fit(X, y, X_val=X_test, y_val=y_test)
        sampler = SamplerCore(y, policy="constant:share=root,hardness=0,class_importance=.5", epochs=1)
        options = {"base_score": 0.5} if keyword == "base_margin" else {}
        once = clone(learner).set_params(**options).fit(X, y, sample_weight=sampler.effective_weights(), **{keyword: sampler.init_score()})
        assert np.abs(model.predict_proba(X_test) - once.predict_proba(X_test)).mean() < 1e-3
        assert abs(once.predict_proba(X_test)[:, 1].mean() - y.mean()) > 0.02


def test_objectives_that_are_no_logits_start_from_nothing(tables: Any) -> None:
    X, y, X_test, y_test = tables
    model = adaptive(LGBMClassifier(n_estimators=20, objective="cross_entropy", verbosity=-1, n_jobs=1), policy="auto").fit(X, y)
    assert abs(model.predict_proba(X_test)[:, 1].mean() - y_test.mean()) < 0.02
    linear = adaptive(LGBMClassifier(n_estimators=20, linear_tree=True, verbosity=-1, n_jobs=1), policy="auto").fit(X, y)
    assert abs(linear.predict_proba(X_test)[:, 1].mean() - y_test.mean()) < 0.02


@pytest.mark.parametrize(
    "name", ["logistic regression", "pipeline", "lightgbm", "xgboost", "forest", "sgd", "histogram boosting", "bagging"]
)
def test_a_row_of_weight_zero_is_left_out(tables: Any, name: str) -> None:
    X, y, X_test, _ = tables
    X, y = X[:1200], y[:1200]
    weight = np.random.default_rng(0).integers(0, 3, len(y)).astype(float)
    kept = weight > 0
    learner = LEARNERS[name][0]
    zero = adaptive(learner, policy="auto").fit(X, y, sample_weight=weight)
    removed = adaptive(learner, policy="auto").fit(X[kept], y[kept], weight[kept])
    np.testing.assert_array_equal(zero.predict_proba(X_test), removed.predict_proba(X_test))
    assert zero.threshold_ == removed.threshold_ and zero.history_ == removed.history_
    even = adaptive(learner, policy="auto").fit(X[kept], y[kept])
    assert not np.allclose(zero.predict_proba(X_test), even.predict_proba(X_test))


@pytest.mark.parametrize("name", ["sgd", "forest", "xgboost", "histogram boosting", "neighbours"])
def test_weights_of_rows_change_what_is_learned(tables: Any, name: str) -> None:
    X, y, X_test, y_test = tables
    flipped = np.where(np.arange(len(y)) % 2 == 0, y, 1 - y)  # labels of odd rows are wrong, and count little
    weight = np.where(np.arange(len(y)) % 2 == 0, 1.0, 1e-3)
    learner = LEARNERS[name][0]
    with_weights = adaptive(learner, policy="auto").fit(X, flipped, sample_weight=weight).predict_proba(X_test)[:, 1]
    without = adaptive(learner, policy="auto").fit(X, flipped).predict_proba(X_test)[:, 1]
    assert average_precision_score(y_test, with_weights) > average_precision_score(y_test, without) + 0.2


def test_weights_of_rows_count_in_probabilities_and_figures(tables: Any) -> None:
    X, y, X_test, y_test = tables
    weight = np.where(y == 1, 4.0, 1.0)
    model = adaptive(LogisticRegression(), policy="constant").fit(X, y, sample_weight=weight)
    alone = LogisticRegression().fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(model.predict_proba(X_test), alone.predict_proba(X_test), rtol=1e-6)
    boosted = adaptive(LGBMClassifier(n_estimators=40, verbosity=-1, n_jobs=1), policy="auto").fit(X, y, sample_weight=weight)
    curve = adaptive(LogisticRegression(), policy="constant", calibrate="isotonic").fit(X, y, sample_weight=weight)
    counts = np.where(y_test == 1, 4.0, 1.0)
    for fitted in (boosted, curve):
        mean = np.average(fitted.predict_proba(X_test)[:, 1], weights=counts)
        assert mean == pytest.approx(np.average(y_test, weights=counts), abs=0.04)
    plain = adaptive(LogisticRegression(), policy="constant").fit(X, y)
    assert model.history_[0]["average_precision"] > plain.history_[0]["average_precision"] + 0.05


def test_curves_and_thresholds_count_weights_as_repeats() -> None:
    rng = np.random.default_rng(0)
    score, counts = rng.random(300), rng.integers(1, 4, 300)
    label = (rng.random(300) < score**2).astype(np.int64)
    scores, prior = np.column_stack([1 - score, score]), np.array([0.6, 0.4])
    for held_out in (True, False):
        weighted = fit_correction(scores, label, prior, 1, held_out=held_out, weight=counts.astype(float))
        repeated = fit_correction(scores.repeat(counts, axis=0), label.repeat(counts), prior, 1, held_out=held_out)
        np.testing.assert_allclose(weighted.apply(scores, 1), repeated.apply(scores, 1), atol=0.02 if held_out else 1e-6)
    assert tune_threshold(score, label, counts) == tune_threshold(score.repeat(counts), label.repeat(counts))
    assert tune_threshold(score, label, np.where(label == 1, 9.0, 1.0)) < tune_threshold(score, label)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ([1.0] * 119, r"sample_weight must be one number for each of the 120 rows, not an array of shape \(119,\)"),
        (np.ones((120, 2)), "one number for each of the 120 rows"),
        ([1.0] * 119 + [np.nan], "finite and not negative, found nan in row 119"),
        ([np.inf] + [1.0] * 119, "finite and not negative, found inf in row 0"),
        ([1.0, -0.5] * 60, "finite and not negative, found -0.5 in row 1"),
        ([0.0] * 120, "zero for all rows"),
        (["much"] * 120, "sample_weight must be numbers"),
        ([1.0, 0.0] * 60, "1 class only"),
    ],
)
def test_bad_weights_of_rows(weight: Any, words: str) -> None:
    X = np.random.default_rng(0).normal(size=(120, 3))
    with pytest.raises(InputError, match=words):
        adaptive(LogisticRegression()).fit(X, np.arange(120) % 2, sample_weight=weight)


def test_weights_of_rows_come_in_any_container(tables: Any) -> None:
    X, y, X_test, _ = tables
    X, y = X[:600], y[:600]
    weight = np.random.default_rng(0).random(600)
    expected = adaptive(LogisticRegression()).fit(X, y, weight).predict_proba(X_test)
    for kind in (list, pd.Series, pl.Series, lambda w: w.astype(np.float32).astype(float)):
        np.testing.assert_allclose(adaptive(LogisticRegression()).fit(X, y, kind(weight)).predict_proba(X_test), expected, rtol=1e-5)
    number = adaptive(LogisticRegression()).fit(X, y, sample_weight=3)
    np.testing.assert_array_equal(
        number.predict_proba(X_test), adaptive(LogisticRegression()).fit(X, y, np.full(600, 3.0)).predict_proba(X_test)
    )


def test_metadata_routing_brings_weights_of_rows(tables: Any) -> None:
    X, y, *_ = tables
    X, y = X[:1500], y[:1500]
    weight = np.where(y == 1, 5.0, 1.0)
    with config_context(enable_metadata_routing=True):
        for learner in (LogisticRegression(), make_pipeline(StandardScaler(), LogisticRegression())):
            model = adaptive(learner, policy="auto", calibrate=None)
            model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
            folds = cross_validate(model, X, y, params={"sample_weight": weight}, cv=2, return_estimator=True, return_indices=True)
            for fitted, rows in zip(folds["estimator"], folds["indices"]["train"], strict=True):
                alone = adaptive(learner, policy="auto", calibrate=None).fit(X[rows], y[rows], weight[rows])
                np.testing.assert_allclose(fitted.predict_proba(X), alone.predict_proba(X))
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        outer = make_pipeline(scaler, adaptive(LogisticRegression(), policy="auto").set_fit_request(sample_weight=True))
        assert outer.fit(X, y, sample_weight=weight).predict_proba(X)[:, 1].mean() > 1.5 * y.mean()
        search = GridSearchCV(model, {"estimator__logisticregression__C": [0.1, 1.0]}, cv=2).fit(X, y, sample_weight=weight)
        assert search.best_estimator_.predict_proba(X)[:, 1].mean() > 1.5 * y.mean()
        with pytest.raises(UnsetMetadataPassedError):
            cross_validate(adaptive(LogisticRegression()), X, y, params={"sample_weight": weight}, cv=2)


def test_validation_rows_of_ones_own(tables: Any) -> None:
    X, y, X_test, y_test = tables
    model = adaptive(LogisticRegression(), policy="constant").fit(X, y, X_val=X_test, y_val=y_test)
    np.testing.assert_allclose(model.predict_proba(X_test), LogisticRegression().fit(X, y).predict_proba(X_test), rtol=1e-6)
    ordered = adaptive(LogisticRegression(), policy="constant", shuffle=False).fit(X, y, X_val=X_test, y_val=y_test)
    late, score = y_test[2500:], ordered.predict_proba(X_test[2500:])[:, 1]
    assert f1_score(late, score >= ordered.threshold_) >= max(
        f1_score(late, score >= t, zero_division=0) for t in np.linspace(0.05, 0.95, 91)
    )
    weight = (np.arange(len(y_test)) < 2500).astype(float)
    first = adaptive(LogisticRegression(), policy="constant").fit(X, y, X_val=X_test, y_val=y_test, sample_weight_val=weight)
    cut = adaptive(LogisticRegression(), policy="constant").fit(X, y, X_val=X_test[:2500], y_val=y_test[:2500])
    assert first.threshold_ == cut.threshold_ and first.history_ == cut.history_
    tiny = adaptive(LogisticRegression(), policy="constant").fit(X, y, X_val=X_test[:20], y_val=[0] * 19 + [1])
    assert "the same rows measure the policy and tune the threshold" in tiny.notes_[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"X_val": np.zeros((9, 3))}, "requires y_val"),
        ({"y_val": [0, 1]}, "belong to X_val"),
        ({"sample_weight_val": [0, 1]}, "belong to X_val"),
        ({"X_val": np.zeros((3, 3)), "y_val": [0, 1, 2]}, "y_val has the label .*2.* in row 2, which y lacks"),
        ({"X_val": np.zeros((3, 3)), "y_val": ["a", "b", "a"]}, "y_val has"),
        ({"X_val": np.zeros((3, 3)), "y_val": [1, 1, 1]}, "y_val must hold rows of the most frequent class"),
        (
            {"X_val": np.zeros((3, 3)), "y_val": [0, 1, 1], "sample_weight_val": [1, 2]},
            "sample_weight_val must be one number for each of the 3 rows",
        ),
    ],
)
def test_bad_validation_rows(options: dict[str, Any], words: str) -> None:
    X = np.random.default_rng(0).normal(size=(121, 3))
    with pytest.raises(InputError, match=words):
        adaptive(LogisticRegression()).fit(X, np.arange(121) % 2, **options)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_trees_stop_early_at_the_best_round(tables: Any, library: str) -> None:
    X, y, X_test, y_test = tables
    long = {"n_estimators": 200, "learning_rate": 0.3, "n_jobs": 1}
    learner = (
        LGBMClassifier(verbosity=-1, early_stopping_round=10, **long)
        if library == "lightgbm"
        else XGBClassifier(early_stopping_rounds=10, **long)
    )
    model = adaptive(learner, policy="auto", epochs=8, calibrate=None).fit(X[:3000], y[:3000], X_val=X[3000:], y_val=y[3000:])

    def rounds(fitted: AdaptiveClassifier) -> int:
        return (
            fitted.estimator_.booster_.current_iteration()
            if library == "lightgbm"
            else fitted.estimator_.get_booster().num_boosted_rounds()
        )

    best = rounds(model)
    assert 1 < best < 150 and len(model.history_) < 8
    whole = adaptive(
        clone(learner).set_params(**{name: None for name in learner.get_params() if name.startswith("early_stopping_round")}),
        policy="auto",
        epochs=8,
        calibrate=None,
    )
    whole.fit(X[:3000], y[:3000], X_val=X[3000:], y_val=y[3000:])
    key = {"num_iteration": best} if library == "lightgbm" else {"iteration_range": (0, best)}
    np.testing.assert_allclose(whole.estimator_.predict_proba(X_test, **key), model.predict_proba(X_test), rtol=1e-5)
    figures = []
    for number in range(best + 10):
        key = {"num_iteration": number + 1} if library == "lightgbm" else {"iteration_range": (0, number + 1)}
        figures.append(average_precision_score(y[3000:], whole.estimator_.predict_proba(X[3000:], **key)[:, 1]))
    assert int(np.argmax(np.round(figures, 12))) == best - 1
    again = adaptive(learner, policy="auto", epochs=8).fit(X, y)
    assert 1 < rounds(again) < 150
    assert (
        average_precision_score(y_test, again.predict_proba(X_test)[:, 1])
        > average_precision_score(y_test, whole.predict_proba(X_test)[:, 1]) - 0.05
    )


def test_names_of_version_0_1_warn(tables: Any) -> None:
    X, y, *_ = tables
    old = AdaptiveClassifier(LogisticRegression(), policy="constant", stages=2, random_state=0)
    assert "stages=2" in repr(clone(old))
    with pytest.warns(DeprecationWarning, match="use epochs") as caught:
        old.fit(X, y)
    assert caught[0].filename == __file__
    new = adaptive(LogisticRegression(), epochs=2).fit(X, y)
    np.testing.assert_array_equal(old.predict_proba(X), new.predict_proba(X))
    with pytest.warns(DeprecationWarning, match="'epoch'"):
        assert [line["stage"] for line in old.history_] == [line["epoch"] for line in new.history_] == [1, 2]
    assert "stages" not in repr(new)


def test_grid_search_reaches_policy_and_estimator(tables: Any) -> None:
    X, y, *_ = tables
    grid = {"policy": ["constant:share=.1", "auto"], "estimator__C": [0.1, 1.0]}
    search = GridSearchCV(adaptive(LogisticRegression()), grid, scoring="average_precision", cv=2).fit(X[:1500], y[:1500])
    assert set(search.best_params_) == set(grid)
    assert clone(search.best_estimator_).get_params()["estimator__C"] == search.best_params_["estimator__C"]


def test_held_out_rows_by_time_come_last_and_in_order() -> None:
    labels = (np.arange(200) % 10 == 0).astype(np.int64)
    rows = hold_out(labels, 0.2, parts=2, shuffle=False, seed=0, names=["0", "1"])
    assert rows.train.tolist() == list(range(160)) and rows.parts[0].tolist() == list(range(160, 180)) and rows.parts[1][-1] == 199
    late = (np.arange(200) > 150).astype(np.int64)
    fallback = hold_out(late, 0.4, parts=2, shuffle=False, seed=0, names=["0", "1"])
    assert not fallback.separate and "validated on the training rows" in fallback.notes[0]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 100), st.sampled_from([1, 2]))
def test_held_out_rows_and_training_rows_are_a_partition(rare: int, middle: int, seed: int, parts: int) -> None:
    labels = np.repeat([0, 1, 2], [100, middle, rare])
    rows = hold_out(labels, 0.3, parts=parts, shuffle=True, seed=seed, names=["0", "1", "2"])
    assert set(labels[rows.train]) == {0, 1, 2}
    if rows.separate:
        assert sorted(np.concatenate([rows.train, *rows.parts]).tolist()) == list(range(len(labels)))
        assert all(len(set(labels[part])) >= 2 and 0 in labels[part] for part in rows.parts)


def test_rows_in_order_of_time_and_few_rows(tables: Any) -> None:
    X, y, X_test, y_test = tables
    ordered = adaptive(LogisticRegression(), shuffle=False).fit(X, y)
    assert average_precision_score(y_test, ordered.predict_proba(X_test)[:, 1]) > 0.3 and not ordered.notes_
    few = adaptive(LogisticRegression()).fit(np.arange(12.0)[:, None], [0] * 9 + [1] * 3)
    assert "validated on the training rows" in few.notes_[0]
    assert few.predict([[11.0]]).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "no-such-policy"}, "policy"),
        ({"calibrate": "foo"}, "calibrate must be"),
        ({"threshold": "best"}, "threshold must be"),
        ({"threshold": 1.5}, "threshold must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"passes": 1.5}, "passes must be"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"staging": "partial_fit"}, "not possible with LogisticRegression; choose auto or one of sample_weight, resample"),
        ({"estimator": KMeans()}, "estimator must be a scikit-learn classifier"),
        ({"estimator": LogisticRegression}, "estimator must be a scikit-learn classifier"),
        ({"estimator": SVC(decision_function_shape="ovo"), "threshold": 0.3}, "needs two classes"),
        ({"estimator": SVC(decision_function_shape="ovo"), "labels": 4}, "one score per class"),
    ],
)
def test_bad_parameters(options: dict[str, Any], words: str) -> None:
    options = {"estimator": LogisticRegression(), "labels": 3 if "two classes" in words else 2, **options}
    classes = options.pop("labels")
    X = np.random.default_rng(0).normal(size=(120, 3))
    model = adaptive(**options)
    with pytest.raises(InputError, match=words):
        model.fit(X, np.arange(120) % classes)
    assert not hasattr(model, "classes_")


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([1] * 20, "1 class only"),
        ([0.0] * 10 + [1.0] * 9 + [np.nan], "row 19"),
        (["a"] * 10 + ["b"] * 9 + [None], "row 19"),
        (pd.Series([0, 1] * 9 + [0, None], dtype="Int64"), "row 19"),
        (pl.Series(["a", "b"] * 9 + [None, "b"]), "row 18"),
    ],
)
def test_bad_labels(y: Any, words: str) -> None:
    X = np.random.default_rng(0).normal(size=(20, 2))
    y = np.asarray(y, dtype=object) if isinstance(y, list) and None in y else y
    with pytest.raises(InputError, match=words):
        adaptive(LogisticRegression()).fit(X, y)
