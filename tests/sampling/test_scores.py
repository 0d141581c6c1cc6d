"""Batched ranking metrics against scikit-learn, in float64, with ties and weights."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from balancer.sampling.scores import PARTIAL_AUC_FPR, macro_metrics, ranking_metrics


def _case(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(400) < 0.1
    positive[0] = True
    score = rng.random((5, 400)) + 0.5 * positive
    if ties:
        score = np.round(score, 1)
    return positive, score, rng.choice([1.0, 3.0, 20.0], 400)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_scikit_learn(seed: int, ties: bool) -> None:
    positive, score, weight = _case(seed, ties)
    metrics = ranking_metrics(positive, score, weight)
    for i, one in enumerate(score):
        assert metrics.average_precision[i] == pytest.approx(average_precision_score(positive, one, sample_weight=weight), abs=1e-12)
        precision, recall, _ = precision_recall_curve(positive, one, sample_weight=weight)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        assert metrics.f1[i] == pytest.approx(f1.max(), abs=1e-9)
        standardised = roc_auc_score(positive, one, max_fpr=PARTIAL_AUC_FPR, sample_weight=weight)
        least, most = 0.5 * PARTIAL_AUC_FPR**2, PARTIAL_AUC_FPR  # McClish, undone
        area = (2 * standardised - 1) * (most - least) + least
        assert metrics.partial_auc[i] == pytest.approx(area / PARTIAL_AUC_FPR, abs=1e-9)


def test_best_threshold_is_a_threshold() -> None:
    positive, score, weight = _case(3, True)
    best = max(f1_score(positive, score[0] >= t, sample_weight=weight) for t in np.unique(score[0]))
    assert ranking_metrics(positive, score[:1], weight).f1[0] == pytest.approx(best)


def test_nothing_to_find_is_zero() -> None:
    none = ranking_metrics(np.zeros(4, bool), np.random.default_rng(0).random((2, 4)), np.ones(4))
    assert not none.f1.any()
    assert not none.average_precision.any()
    assert not none.partial_auc.any()


def test_macro_leaves_out_absent_classes() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 200)
    score = rng.dirichlet(np.ones(4), (2, 200))
    macro = macro_metrics(label, score, np.ones(200))
    each = [average_precision_score(label == c, score[0, :, c]) for c in (1, 2)]
    assert macro.average_precision[0] == pytest.approx(np.mean(each))
    assert not macro_metrics(np.zeros(5, int), score[:, :5], np.ones(5)).f1.any()
