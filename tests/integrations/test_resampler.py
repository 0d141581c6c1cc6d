"""The resampler: containers and dtypes, numbers of rows, and the checks of imbalanced-learn and
scikit-learn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imblearn.pipeline import make_pipeline
from imblearn.utils.estimator_checks import parametrize_with_checks
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline as make_plain_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks as parametrize_with_sklearn_checks

from balancer.errors import InputError
from balancer.integrations.resampler import AdaptiveResampler, _whole_rows
from balancer.integrations.staged import systematic_rows


def resampler(policy: str = "constant:share=.3", **options: Any) -> AdaptiveResampler:
    return AdaptiveResampler(policy, **{"estimator": LogisticRegression(), "epochs": 2, "random_state": 0, **options})


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray]:
    return make_classification(
        600, n_features=5, n_informative=3, weights=[0.92], class_sep=1.2, n_clusters_per_class=1, flip_y=0.01, random_state=0
    )


def listed(decorator: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """The same parameters as a list, because pytest 9 warns of the generators of imbalanced-learn 0.14."""
    names, values = decorator.mark.args
    return pytest.mark.parametrize(names, list(values), **decorator.mark.kwargs)


@listed(parametrize_with_checks([AdaptiveResampler(epochs=2, random_state=0)]))
def test_imbalanced_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@listed(parametrize_with_sklearn_checks([AdaptiveResampler("constant", epochs=2), resampler()]))
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_rows_of_the_result_are_the_drawn_rows_of_the_table(table: Any) -> None:
    X, y = table
    sampler = resampler()
    X_new, y_new = sampler.fit_resample(X, y)
    np.testing.assert_array_equal(X_new, X[sampler.sample_indices_])
    np.testing.assert_array_equal(y_new, y[sampler.sample_indices_])
    assert sampler.sampling_strategy_ == dict(Counter(y_new.tolist())) == {0: 420, 1: 180}
    assert (np.diff(sampler.sample_indices_) >= 0).all()
    assert sampler.row_weights_.sum() == pytest.approx(600)
    drawn = np.bincount(sampler.sample_indices_, minlength=600)
    assert (np.abs(drawn - sampler.row_weights_) < 1).all()


def test_easy_rows_of_the_most_frequent_class_are_drawn_less_often(table: Any) -> None:
    X, y = table
    hard = resampler("constant:share=.3,hardness=2").fit(X, y)
    score = LogisticRegression().fit(X, y).predict_proba(X)[:, 1]
    common = y == 0
    assert np.corrcoef(score[common], hard.row_weights_[common])[0, 1] > 0.6
    even = resampler("constant:share=.3,hardness=0").fit(X, y)
    assert np.ptp(even.row_weights_[common]) < 1e-9
    assert np.ptp(hard.row_weights_[~common]) < 1e-9


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array])
def test_sparse_tables_keep_format_and_dtype(table: Any, kind: Any) -> None:
    X, y = table
    X = np.where(X > 0.3, X, 0).astype(np.float32)
    X_new, y_new = AdaptiveResampler("constant", epochs=2, random_state=0).fit_resample(kind(X), y)
    dense, y_dense = AdaptiveResampler("constant", epochs=2, random_state=0).fit_resample(X, y)
    assert type(X_new) is kind and X_new.dtype == np.float32
    np.testing.assert_array_equal(X_new.toarray(), dense)
    np.testing.assert_array_equal(y_new, y_dense)


def test_frames_keep_their_dtypes_and_names(table: Any) -> None:
    X, y = table
    columns = {
        "amount": X[:, 0].astype(np.float32),
        "count": (X[:, 1] * 10).astype(np.int16),
        "place": np.where(X[:, 2] > 0, "shop", "web"),
        "night": X[:, 3] > 1,
        "time": np.datetime64("2024-01-01", "us") + np.arange(600).astype("timedelta64[m]"),
    }
    label = np.where(y == 1, "fraud", "ok")
    pandas_X, pandas_y = pd.DataFrame(columns).astype({"place": "category"}), pd.Series(label, name="label", dtype="category")
    polars_X, polars_y = pl.DataFrame(columns).with_columns(pl.col("place").cast(pl.Categorical)), pl.Series("label", label)
    sampler = AdaptiveResampler("constant:share=.3", epochs=2, random_state=0)

    X_new, y_new = sampler.fit_resample(pandas_X, pandas_y)
    pd.testing.assert_frame_equal(X_new, pandas_X.iloc[sampler.sample_indices_])
    pd.testing.assert_series_equal(y_new, pandas_y.iloc[sampler.sample_indices_])
    assert sampler.sampling_strategy_ == {"fraud": 180, "ok": 420}
    assert sampler.feature_names_in_.tolist() == sampler.get_feature_names_out().tolist() == list(columns)

    pandas_rows = sampler.sample_indices_
    X_new, y_new = sampler.fit_resample(polars_X, polars_y)
    assert isinstance(X_new, pl.DataFrame) and isinstance(y_new, pl.Series)
    assert X_new.equals(polars_X[sampler.sample_indices_]) and y_new.equals(polars_y[sampler.sample_indices_])
    assert X_new.schema == polars_X.schema
    assert sampler.feature_names_in_.tolist() == list(columns)
    np.testing.assert_array_equal(sampler.sample_indices_, pandas_rows)


def test_a_frame_may_have_missing_values(table: Any) -> None:
    X, y = table
    frame = pl.DataFrame({"a": X[:, 0], "b": np.where(X[:, 1] > 0, "x", "y")}).with_columns(
        pl.when(pl.col("a") > 1).then(None).otherwise(pl.col("a")).alias("a"),
        pl.when(pl.col("a") < -1).then(None).otherwise(pl.col("b")).alias("b"),
    )
    X_new, _ = AdaptiveResampler("constant", epochs=2, random_state=0).fit_resample(frame, y)
    assert X_new.null_count().sum_horizontal()[0] > 0


def test_a_given_learner_receives_the_frame(table: Any) -> None:
    X, y = table
    frame = pd.DataFrame({"place": np.where(X[:, 2] > 0, "shop", "web"), "hour": np.where(X[:, 1] > 0, "day", "night")})
    learner = make_plain_pipeline(OneHotEncoder(), LogisticRegression())
    X_new, _ = resampler(estimator=learner).fit_resample(frame, y)
    assert X_new.dtypes.equals(frame.dtypes)


def test_sampling_strategy_sets_rows_per_class(table: Any) -> None:
    X, y = table
    counts = np.bincount(y)
    _, drawn = resampler(sampling_strategy={1: 100}).fit_resample(X, y)
    assert np.bincount(drawn).tolist() == [counts[0], 100]
    _, drawn = resampler(sampling_strategy=lambda labels: {0: int((labels == 1).sum()), 1: 60}).fit_resample(X, y)
    assert np.bincount(drawn).tolist() == [counts[1], 60]
    _, drawn = resampler(sampling_strategy=0.5, num_samples=300).fit_resample(X, y)
    assert np.bincount(drawn).tolist() == [200, 100]


@pytest.mark.parametrize(("wanted", "rows"), [(None, 600), (250, 250), (0.5, 300), (2.0, 1200)])
def test_size_of_the_result(table: Any, wanted: Any, rows: Any) -> None:
    X_new, y_new = resampler(num_samples=wanted).fit_resample(*table)
    assert len(X_new) == len(y_new) == rows


def test_more_classes_than_two() -> None:
    X, y = make_classification(900, n_features=6, n_informative=4, n_classes=3, weights=[0.08, 0.8, 0.12], random_state=0)
    names = np.array(["a", "b", "c"])[y]
    sampler = resampler("constant:share=.4")
    _, drawn = sampler.fit_resample(X, names)
    assert sampler.sampling_strategy_["b"] == 540 and sum(sampler.sampling_strategy_.values()) == 900
    assert dict(Counter(drawn.tolist())) == sampler.sampling_strategy_
    # In proportion to the root of the prior: the rarer class gets fewer rows, but more draws of each.
    assert 1 < sampler.sampling_strategy_["c"] / sampler.sampling_strategy_["a"] < (y == 2).sum() / (y == 0).sum()


def test_pipeline_in_a_grid_search(table: Any) -> None:
    X, y = table
    pipeline = make_pipeline(StandardScaler(), resampler("auto"), LogisticRegression())
    grid = {"adaptiveresampler__policy": ["constant:share=.2", "constant:share=.4"], "logisticregression__C": [0.1, 1.0]}
    search = GridSearchCV(pipeline, grid, scoring="average_precision", cv=2).fit(X, y)
    assert set(search.best_params_) == set(grid)
    # The table to score is never resampled.
    assert search.predict(X).shape == y.shape
    assert average_precision_score(y, search.predict_proba(X)[:, 1]) > 3 * y.mean()


def test_clone_and_seed(table: Any) -> None:
    X, y = table
    sampler = resampler("auto")
    first = sampler.fit(X, y).sample_indices_
    np.testing.assert_array_equal(clone(sampler).fit(X, y).sample_indices_, first)
    assert not np.array_equal(resampler("auto", random_state=1).fit(X, y).sample_indices_, first)
    assert clone(sampler).get_params()["policy"] == "auto"


def test_a_few_rows_are_validated_on_themselves_with_a_note() -> None:
    X, y = np.arange(12.0).reshape(-1, 1), np.array([0] * 9 + [1] * 3)
    sampler = resampler()
    X_new, _ = sampler.fit_resample(X, y)
    assert len(X_new) == 12
    assert "validated on the training rows" in sampler.notes_[0]


def test_the_name_of_version_0_1_warns(table: Any) -> None:
    old, new = resampler(n_samples=300), resampler(num_samples=300)
    with pytest.warns(DeprecationWarning, match="use num_samples") as caught:
        result = old.fit_resample(*table)
    assert caught[0].filename == __file__
    for drawn, expected in zip(result, new.fit_resample(*table), strict=True):
        np.testing.assert_array_equal(drawn, expected)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_systematic_rows_are_drawn_their_expected_number_of_times_rounded_down_or_up(expected: Any, seed: Any) -> None:
    expected = np.array(expected)
    rows = systematic_rows(expected, np.random.default_rng(seed))
    count = np.bincount(rows, minlength=len(expected))
    assert (np.abs(count - expected) < 1 + 1e-5).all()
    assert abs(len(rows) - expected.sum()) < 1 + 1e-5


def test_systematic_rows_have_the_given_expectation() -> None:
    expected = np.array([0.1, 0.25, 1.4, 2.0, 0.0, 0.75])
    counts = [np.bincount(systematic_rows(expected, np.random.default_rng(seed)), minlength=6) for seed in range(4000)]
    np.testing.assert_allclose(np.mean(counts, axis=0), expected, atol=0.03)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.integers(8, 500))
@settings(max_examples=100, deadline=None)
def test_whole_rows_sum_to_the_total(share: Any, total: Any) -> None:
    share = np.array(share) / np.sum(share)
    rows = _whole_rows(share, total)
    assert rows.sum() == total and rows.min() >= 1
    assert (rows <= np.maximum(np.ceil(share * total), 1)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "no-such-policy"}, "policy"),
        ({"estimator": StandardScaler()}, "estimator must be a scikit-learn classifier"),
        ({"estimator": LogisticRegression}, "estimator must be a scikit-learn classifier"),
        ({"epochs": 0}, "epochs must be a whole number"),
        ({"num_samples": 1}, "at least one row for each"),
        ({"num_samples": -0.5}, "num_samples must be"),
        ({"num_samples": "all"}, "num_samples must be"),
        ({"validation_fraction": 0.8}, "validation_fraction"),
        ({"sampling_strategy": "minority"}, "sampling_strategy must be 'auto'"),
        ({"sampling_strategy": 1.5}, "ratio"),
        ({"sampling_strategy": {7: 10}}, "class 7"),
        ({"sampling_strategy": {1: 0}}, "at least 1"),
        ({"sampling_strategy": {1: 10}, "num_samples": 100}, "contradict"),
        ({"sampling_strategy": lambda y: 3}, "function that gives one"),
    ],
)
def test_bad_parameters(table: Any, options: Any, words: Any) -> None:
    sampler = resampler(**options)
    with pytest.raises(InputError, match=words):
        sampler.fit_resample(*table)
    assert not hasattr(sampler, "sample_indices_")


@pytest.mark.parametrize(("y", "words"), [([0] * 20, "1 class"), ([0.0] * 10 + [1.0] * 9 + [np.nan], "row 19"), (None, "y is None")])
def test_bad_labels(y: Any, words: Any) -> None:
    X = np.random.default_rng(0).normal(size=(20, 2))
    with pytest.raises(InputError, match=words):
        resampler().fit_resample(X, y)
    if y is not None:
        with pytest.raises(InputError, match=words):
            resampler().fit_resample(pl.DataFrame(X), pl.Series(y, strict=False, nan_to_null=True))


def test_unknown_fit_parameter(table: Any) -> None:
    with pytest.raises(InputError, match="sample_weight"):
        resampler().fit_resample(*table, sample_weight=np.ones(600))
