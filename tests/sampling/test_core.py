"""SamplerCore: draws, row weights, errors that change nothing, exact resume, NumPy alone."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.sampling.core import SamplerCore
from balancer.sampling.observation import Observation
from balancer.sampling.row_sampler import kept_share
from balancer.sampling.weights import SamplingWeights

LABELS = np.array(["ok"] * 940 + ["theft"] * 40 + ["fraud"] * 20)
CLASSES = ["fraud", "ok", "theft"]


def _sampler(policy: Any = "constant:share=.3,hardness=1.5", labels: Any = LABELS, **options: Any) -> SamplerCore:
    return SamplerCore(labels, policy=policy, **({"epochs": 4, "num_samples": 300} | options))


def _plain(state: Any) -> Any:
    """A state as JSON text."""
    return json.dumps(state, default=lambda array: array.tolist(), sort_keys=True)


def _scored(seed: int = 0) -> dict[str, Any]:
    """A proper call of update: the model is better than chance, and 500 training rows are scored."""
    rng = np.random.default_rng(seed)
    truth = np.array(CLASSES)[rng.integers(0, 3, 90)]
    rows = rng.permutation(len(LABELS))[:500]
    near = [rng.dirichlet(np.ones(3), n) + 0.8 * (values[:, None] == CLASSES) for n, values in ((90, truth), (500, LABELS[rows]))]
    scores = [score / score.sum(axis=1, keepdims=True) for score in near]
    return {"y_true": truth, "y_score": scores[0], "rows": rows, "row_score": scores[1]}


def test_draws_follow_the_shares() -> None:
    sampler = _sampler("constant:share=.3,hardness=0")
    drawn = np.concatenate([sampler.draw() for _ in range(100)])
    assert sampler.epoch == 100
    counts = np.array([(LABELS[drawn] == c).sum() for c in CLASSES])
    expected = sampler.weights.share * len(drawn)
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = .001
    assert sampler.counts.tolist() == [20, 940, 40]
    assert sampler.classes_ == CLASSES


@pytest.mark.parametrize("num_samples", [6, 300, 2_000])
def test_row_weights_are_what_draws_do(num_samples: int) -> None:
    labels = np.where(np.arange(1000) % 10 == 3, None, LABELS)  # type: ignore[call-overload]
    sampler = _sampler(labels=labels, num_samples=num_samples)
    scored = _scored()
    sampler.update(**scored)
    weights = sampler.row_weights()
    known = np.array([label is not None for label in labels])
    assert weights.shape == (1000,)
    assert not weights[~known].any()
    assert weights[known].mean() == pytest.approx(1)
    repeats = min(6_000, 300_000 // num_samples)
    counts = sum(np.bincount(sampler.draw(epoch=i), minlength=1000) for i in range(repeats))
    assert sampler.epoch == 0  # a number given is not counted on
    expected = weights[known] / known.sum() * num_samples * repeats
    chi = ((counts[known] - expected) ** 2 / expected).sum()
    assert chi < known.sum() + 4 * np.sqrt(2 * known.sum())
    assert np.corrcoef(weights[labels == "ok"], counts[labels == "ok"])[0, 1] > 0.9  # hardness is in both


def test_no_epoch_without_a_minority_row() -> None:
    sampler = SamplerCore([0] * 999 + [1], policy="constant:share=prior,hardness=0", epochs=2, num_samples=5)
    positives = [(sampler.draw() == 999).sum() for _ in range(500)]
    assert min(positives) == 1
    expected = 5 * kept_share(np.array([0.999, 0.001]), 5)[1]
    assert sampler.row_weights()[999] == pytest.approx(expected / 5 * 1000)
    assert np.mean(positives) == pytest.approx(expected, rel=0.02)
    with pytest.raises(InputError, match="n must be a whole number and at least 2"):
        sampler.draw(n=1)


def test_draws_repeat_by_seed_and_epoch() -> None:
    one, two, other = _sampler(seed=5), _sampler(seed=5), _sampler(seed=6)
    first, second = one.draw(), one.draw()
    assert (two.draw(epoch=1) == second).all()
    assert (two.draw() == first).all()
    assert not (first == second).all()
    assert not (other.draw() == first).all()
    a, b = (s.draw(rng=np.random.default_rng(1), n=50) for s in (one, other))
    assert (a == b).all()
    assert one.epoch == 2
    assert a.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "common", "rare", "unlabelled"),
    [
        (np.array([7] * 90 + [-3] * 10), 7, -3, None),
        (np.array([0] * 90 + [1] * 10 + [-1] * 50), 0, 1, -1),
        (np.array([False] * 90 + [True] * 10), False, True, None),
        (np.array([b"a"] * 90 + [b"b"] * 10), b"a", b"b", None),
        (["no"] * 90 + ["yes"] * 10 + [None] * 9, "no", "yes", None),
        (np.array([0.0] * 90 + [1.0] * 10 + [np.nan] * 9), 0, 1, None),
    ],
)
def test_any_labels(labels: Any, common: Any, rare: Any, unlabelled: Any) -> None:
    sampler = SamplerCore(labels, policy="constant:share=.4,hardness=0", epochs=2, num_samples=5_000, unlabelled=unlabelled)
    rows = sampler.draw()
    assert rows.max() < 100
    assert (rows >= 90).mean() == pytest.approx(0.4, abs=0.03)
    assert sampler.classes_ == sorted([common, rare])
    assert sampler.weights.share[sampler.classes_.index(rare)] == pytest.approx(0.4)
    sampler.update([common, rare], [0.1, 0.8])
    assert sampler.updates == 1
    assert SamplerCore(labels, policy="constant", epochs=2, unlabelled=unlabelled).num_samples == 100


def test_scores_by_column_or_of_the_rarer_class() -> None:
    labels = ["ok"] * 95 + ["fraud"] * 5
    one, two = (SamplerCore(labels, policy="rule", epochs=2) for _ in range(2))
    a = one.update(["ok", "fraud", "ok"], [0.1, 0.8, 0.7])
    b = two.update(["ok", "fraud", "ok"], [[0.1, 0.9], [0.8, 0.2], [0.7, 0.3]])
    np.testing.assert_allclose(a.share, b.share)
    assert one.metrics["average_precision"] == pytest.approx(1)


def test_unlabelled_rows_are_ignored_in_updates() -> None:
    labels = [0] * 95 + [1] * 5 + [-1] * 3
    one, two = (SamplerCore(labels, policy="rule", epochs=2, unlabelled=-1) for _ in range(2))
    one.update([0, 1, -1, 0], [0.1, 0.8, 0.5, 0.7], rows=[0, 100, 97], row_score=[0.3, 0.5, 0.9])
    two.update([0, 1, 0], [0.1, 0.8, 0.7], rows=[0, 97], row_score=[0.3, 0.9])
    assert _plain(one.state_dict()) == _plain(two.state_dict())


class _Says:
    """A policy that a user wrote."""

    name = "own"

    def __init__(self) -> None:
        self.answer: Any = SamplingWeights(np.array([0.5, 0.3, 0.2]))

    def act(self, observation: Observation) -> Any:
        return self.answer


def _with(**changed: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda call: call | changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda call: call | {"y_score": np.where(np.arange(90)[:, None] == 4, np.nan, call["y_score"])}, "y_score of row 4 is not finite"),
        (lambda call: call | {"y_score": np.where(np.arange(90)[:, None] == 4, np.inf, call["y_score"])}, "y_score of row 4 is not finite"),
        (lambda call: call | {"row_score": call["row_score"] * np.nan}, "row_score of row 0 is not finite"),
        (lambda call: call | {"y_score": call["y_score"] * 20 - 8}, "y_score must be probabilities .* sigmoid or softmax"),
        (lambda call: call | {"y_score": call["y_score"][:-1]}, "y_score has 89 rows and y_true 90; give one label"),
        (lambda call: call | {"row_score": call["row_score"][:-1]}, "row_score has 499 rows and rows 500"),
        (lambda call: call | {"y_score": call["y_score"][:, :2]}, "y_score must have one column for each of the 3 classes"),
        (lambda call: call | {"y_score": call["y_score"][:, 0]}, "y_score must have one column"),
        (_with(y_score=["high"] * 90), "y_score must be numbers"),
        (lambda call: call | {"y_true": np.where(np.arange(90) == 4, "loss", call["y_true"])}, "class 'loss' of y_true"),
        (_with(y_true=np.zeros(90, int)), "y_true holds numbers"),
        (_with(y_true=np.full(90, "ok")), "rows of class 'ok' only"),
        (_with(y_true=np.array(["fraud", "theft"] * 45)), "no row of class 'ok'"),
        (_with(y_true=[], y_score=np.empty((0, 3))), "no scored rows"),
        (_with(rows=None), "rows and row_score together"),
        (_with(rows=np.arange(501, 1001)), "from 0 to 999"),
        (_with(rows=-np.arange(500)), "from 0 to 999"),
        (_with(rows=np.arange(500.0)), "vector of indices"),
        (_with(rows=np.empty(0, int), row_score=np.empty((0, 3))), "no scored rows"),
    ],
)
def test_bad_updates_change_nothing(change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    sampler = _sampler("rule")
    sampler.update(**_scored())
    before, rows = _plain(sampler.state_dict()), sampler.draw(epoch=1)
    with pytest.raises(InputError, match=message):
        sampler.update(**change(_scored(1)))
    assert _plain(sampler.state_dict()) == before
    assert (sampler.draw(epoch=1) == rows).all()
    sampler.update(**_scored(1))  # and goes on
    assert sampler.updates == 2


def test_a_policys_nonsense_changes_nothing() -> None:
    policy = _Says()
    sampler = _sampler(policy)
    assert sampler.policy_name == "own"
    assert sampler.notes == []
    before = _plain(sampler.state_dict())
    for answer in (np.full(5, np.nan), np.zeros(3), SamplingWeights(np.array([0.5, 0.5]))):
        policy.answer = answer
        with pytest.raises(InputError, match="policy 'own'"):
            sampler.update(**_scored())
        assert _plain(sampler.state_dict()) == before
    with pytest.raises(InputError, match="policy 'own'"):
        _sampler(policy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number and at least 1"),
        ({"epochs": 2.5}, "epochs must be"),
        ({"num_samples": 2}, "num_samples, .* at least 3 \\(the number of classes\\), not 2"),
        ({"seed": -1}, "seed must be"),
        ({"policy": "nonsense"}, "nonsense"),
        ({"labels": ["a"] * 9}, "one class only"),
    ],
)
def test_refuses_to_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _sampler(**options)


@pytest.mark.parametrize("policy", ["constant:share=.3,hardness=1.5", "rule"])
def test_resume_is_exact(policy: str) -> None:
    one, two = _sampler(policy, seed=3), _sampler(policy)
    for _ in range(2):
        one.update(**_scored(one.epoch))
        one.draw()
    state = one.state_dict()
    restored = json.loads(_plain(state))  # lists in place of arrays will do
    two.load_state_dict(restored)
    assert _plain(two.state_dict()) == _plain(state)
    for seed in (7, 8):
        assert (one.draw() == two.draw()).all()
        a, b = (s.update(**_scored(seed)) for s in (one, two))
        assert a.share.tobytes() == b.share.tobytes()
    np.testing.assert_array_equal(one.row_weights(), two.row_weights())


def _changed(state: dict[str, Any], *path: str, to: Any = None) -> dict[str, Any]:
    result = copy.deepcopy(state)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    if to is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return result


def test_a_state_of_another_run_changes_nothing() -> None:
    one, two = _sampler("rule", seed=3), _sampler("rule")
    one.update(**_scored())
    two.update(**_scored(1))
    state, before = one.state_dict(), _plain(two.state_dict())
    swapped = LABELS.copy()
    swapped[[0, 990]] = swapped[[990, 0]]
    bad = [
        (_sampler("rule", labels=swapped).state_dict(), "other training rows"),
        (_sampler("rule", labels=np.where(LABELS == "ok", "good", LABELS)).state_dict(), "other training rows"),
        (_sampler("rule", epochs=5).state_dict(), "epochs 5, this sampler has 4"),
        (_sampler("rule", num_samples=301).state_dict(), "num_samples 301"),
        (_sampler().state_dict(), "policy 'constant'"),
        (_changed(state, "version", to=0), "of this version"),
        ({}, "of this version"),
        (_changed(state, "controller"), "corrupt"),
        (_changed(state, "controller", "history", "train"), "corrupt"),
        (_changed(state, "controller", "weights", "share", to=[0.5, 0.5]), "2 classes"),
        (_changed(state, "rows"), "corrupt"),
        (_changed(state, "rows", "error"), "no 'error'"),
        (_changed(state, "rows", "error", to=np.zeros(3)), "corrupt"),
        (_changed(state, "epoch", to=-1), "epoch must be"),
    ]
    for other, message in bad:
        with pytest.raises(InputError, match=message):
            two.load_state_dict(other)
        assert _plain(two.state_dict()) == before
    two.load_state_dict(state)
    assert two.seed == 3


def test_weights_as_policy_have_the_order_of_the_classes() -> None:
    weights = SamplingWeights(np.array([0.1, 0.7, 0.2]), 1.0, 0.1)
    sampler = _sampler(weights)
    assert sampler.classes_ == CLASSES
    for _ in range(2):
        assert sampler.weights.to_dict() == weights.to_dict()
        sampler.update(**_scored())
    counts = np.array([(LABELS[sampler.draw(n=3_000)] == c).mean() for c in CLASSES])
    np.testing.assert_allclose(counts, weights.share, atol=0.05)
    with pytest.raises(InputError, match="shares for 2 classes, the labels have 3"):
        _sampler(SamplingWeights(np.array([0.5, 0.5])))


def test_batches_hold_their_quotas() -> None:
    sampler = _sampler("constant:share=.3,hardness=1.5")
    sampler.update(**_scored())
    share = sampler.batch_share(10)
    assert share.sum() == pytest.approx(1)
    rows = sampler.draw_batches(0, 30, 10)
    counts = np.stack([(LABELS[rows] == c).sum(axis=1) for c in CLASSES], axis=1)
    assert (counts >= np.floor(share * 10)).all()
    assert (counts <= np.ceil(share * 10)).all()
    assert np.abs(counts.sum(axis=0) - share * 300).max() < 1
    within = np.bincount(
        np.concatenate([r[LABELS[r] == "ok"] for r in (sampler.draw_batches(i, 30, 10) for i in range(300))]), minlength=1000
    )[:940]
    weights = sampler.row_weights()[:940]
    expected = weights / weights.sum() * within.sum()
    assert ((within - expected) ** 2 / expected).sum() < 940 + 4 * np.sqrt(2 * 940)


def test_needs_numpy_alone() -> None:
    heavy = "torch polars sklearn pandas scipy stable_baselines3 gymnasium lightgbm rich safetensors"
    code = (
        "import sys, balancer.sampling.core as e; s = e.SamplerCore([0]*9+[1], policy='constant', epochs=2); s.draw();"
        "s.update([0, 1], [.1, .9]); s.load_state_dict(s.state_dict()); s.row_weights();"
        f"assert not set('{heavy}'.split()) & set(sys.modules), set('{heavy}'.split()) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("policy", [object(), 5, None, len])
def test_an_object_that_is_no_policy_is_refused(policy: Any) -> None:
    with pytest.raises(InputError, match="an object with name and act"):
        SamplerCore([0, 0, 1], epochs=1, policy=policy)
