"""Problems of the population: encodings fitted on train alone, thinning that keeps the sums."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from balancer.envs.problem import PopulationProblem, encoded_problem, synthetic_problem
from balancer.errors import InputError


def _arrays(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.03).astype(np.int64)
    amount = rng.lognormal(3, 1, n) * np.where(label == 1, 4, 1)
    shop = np.where((label == 1) & (rng.random(n) < 0.5), 3, rng.integers(0, 6, n))
    return np.stack([amount, np.zeros(n), shop], axis=1).astype(np.float32), label


def _problem(**changed: object) -> PopulationProblem:
    (x, y), (v, w) = _arrays(), _arrays(seed=1)
    problem, _ = encoded_problem(x, y, v, w, **({"num_numeric": 2, "num_classes": 2, "seed": 0} | changed))  # type: ignore[arg-type]
    return problem


def test_features_are_standardised_and_tell() -> None:
    problem = _problem()
    assert problem.x_train.shape == (4000, 5)  # log-odds of three fields, ranks of two
    assert problem.x_train.dtype == np.float32
    assert np.isfinite(problem.x_train).all()
    useful = problem.x_train.std(axis=0) > 0
    assert useful.sum() == 3  # the constant field says nothing
    np.testing.assert_allclose(problem.x_train[:, useful].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(problem.x_train[:, useful].std(axis=0), 1, atol=0.02)
    assert average_precision_score(problem.y_val, problem.x_val.sum(axis=1)) > 0.2


def test_encodings_never_see_reward_labels() -> None:
    (x, y), (v, w) = _arrays(), _arrays(seed=1)
    shuffled = np.random.default_rng(3).permutation(w)
    one, two = (encoded_problem(x, y, v, label, num_numeric=2, num_classes=2, seed=0)[0] for label in (w, shuffled))
    assert one.x_train.tobytes() == two.x_train.tobytes()
    assert one.x_val.tobytes() == two.x_val.tobytes()


def test_thinning_keeps_the_sums_and_the_rare() -> None:
    whole, thin = _problem(), _problem(max_train=1000, max_reward=800)
    assert len(thin.y_train) == 1000
    assert (thin.y_train == 1).sum() == (whole.y_train == 1).sum()
    assert (thin.y_val == 1).sum() == (whole.y_val == 1).sum()
    np.testing.assert_allclose(thin.train_counts, whole.train_counts)
    np.testing.assert_allclose(thin.reward_counts, whole.reward_counts)


def test_thinned_reward_half_judges_as_the_whole() -> None:
    """Average precision of the kept rows is that of all rows, and closer than that of a uniform sample."""
    whole = _problem()

    def average_precision(problem: PopulationProblem) -> float:
        return float(
            average_precision_score(problem.y_val, problem.x_val @ np.array([1.0, 0, 1, 0.5, 0]), sample_weight=problem.val_weight)
        )

    values = [average_precision(_problem(max_reward=600, seed=s)) for s in range(6)]
    assert np.mean(values) == pytest.approx(average_precision(whole), abs=0.05)


def test_unseen_category_and_missing_number() -> None:
    (x, y), (v, w) = _arrays(), _arrays(seed=1)
    v[0, 2], v[1, 0] = 40, np.nan
    problem, _ = encoded_problem(x, y, v, w, num_numeric=2, num_classes=2, seed=0)
    assert np.isfinite(problem.x_val).all()


@pytest.mark.parametrize("k", [2, 4])
def test_synthetic(k: int) -> None:
    problem = synthetic_problem(k)
    assert problem.num_classes == k
    assert (np.bincount(problem.y_train, minlength=k) > 0).all()
    assert synthetic_problem(k).x_train.tobytes() == problem.x_train.tobytes()


def test_refuses_a_part_without_positives() -> None:
    (x, y), (v, w) = _arrays(), _arrays(seed=1)
    with pytest.raises(InputError, match="reward rows hold no row"):
        encoded_problem(x, y, v, np.zeros_like(w), num_numeric=2, num_classes=2, seed=0)


def test_encoder_gives_the_problem_its_features_and_any_other_row() -> None:
    (x, y), (v, w) = _arrays(), _arrays(seed=1)
    problem, encoder = encoded_problem(x, y, v, w, num_numeric=2, num_classes=2, seed=0)
    whole = _problem()
    assert problem.x_train.tobytes() == whole.x_train.tobytes()
    np.testing.assert_array_equal(encoder.transform(x), problem.x_train)
    np.testing.assert_array_equal(encoder.transform(v), problem.x_val)
    rows = np.array([5, 17, 5])
    np.testing.assert_array_equal(encoder.transform(v[rows]), problem.x_val[rows])


def test_encoder_of_a_thinned_problem_serves_all_rows() -> None:
    (x, y), (v, w) = _arrays(), _arrays(seed=1)
    problem, encoder = encoded_problem(x, y, v, w, num_numeric=2, num_classes=2, seed=0, max_train=1000, max_reward=800)
    features = encoder.transform(v)
    assert features.shape == (len(v), problem.x_train.shape[1])
    kept = {row.tobytes() for row in features}
    assert all(row.tobytes() in kept for row in problem.x_val)


def test_encoder_on_values_that_train_never_held() -> None:
    (x, y), (v, w) = _arrays(), _arrays(seed=1)
    _, encoder = encoded_problem(x, y, v, w, num_numeric=2, num_classes=2, seed=0)
    odd = np.array([[np.nan, 0, 99], [1e30, -1e30, 3]], dtype=np.float32)
    features = encoder.transform(odd)
    assert np.isfinite(features).all()
    prior = (0.0 - encoder.mean[-1]) / encoder.spread[-1]
    assert features[0, -1] == pytest.approx(prior, abs=1e-6)  # an unknown category tells as much as the prior
    assert encoder.likely(odd).shape == (2,)


def test_a_missing_number_has_a_group_of_its_own() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, 3)).astype(np.float32)
    values[rng.random(4000) < 0.2, 0] = np.nan
    values[:, 2] = np.nan  # a field that is never known
    label = (np.isnan(values[:, 0]) & (rng.random(4000) < 0.5)).astype(np.int64)
    problem, encoder = encoded_problem(values, label, values, label, num_numeric=3, num_classes=2, seed=0)
    assert np.isfinite(problem.x_train).all() and np.isfinite(problem.x_val).all()
    odds = encoder.likely(values)
    assert odds[np.isnan(values[:, 0])].min() > odds[~np.isnan(values[:, 0])].max()
    unseen = np.array([[np.nan, np.nan, 1.0], [0.0, np.nan, np.nan]], np.float32)
    assert np.isfinite(encoder.transform(unseen)).all()
