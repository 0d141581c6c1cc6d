"""SamplerCore: draws, row weights, errors that change nothing, exact resume, NumPy alone."""

from __future__ import annotations

import copy
import datetime as dt
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.sampling import core as module
from balancer.sampling.ages import ages
from balancer.sampling.core import SamplerCore, batches_of_block
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
        (_with(rows=np.ones(500, bool)), "vector of indices"),
        (
            lambda call: call | {"y_score": [row.tolist()[: 2 + i % 2] for i, row in enumerate(call["y_score"])]},
            "rows have different lengths",
        ),
        (lambda call: call | {"y_score": torch.as_tensor(call["y_score"])[:, :1]}, "y_score must have one column for each of the 3"),
        (lambda call: call | {"y_true": [[name] * (1 + i % 2) for i, name in enumerate(call["y_true"])]}, "a row with several classes"),
        (
            lambda call: call | {"y_true": np.eye(3)[np.zeros(90, int)]},
            r"y_true must be one non-empty vector of classes, not of shape \(90, 3\)",
        ),
        (_with(rows=np.empty(0, int), row_score=np.empty((0, 3))), "no scored rows"),
    ],
)
def test_bad_updates_change_nothing(change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    sampler = _sampler("rule")
    sampler.update(**_scored())
    rows = sampler.draw(epoch=1)
    before = _plain(sampler.state_dict())
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


def _as_column(values: np.ndarray) -> np.ndarray:
    return values[:, None]


FORMS: list[Callable[[np.ndarray], Any]] = [
    np.ndarray.tolist,
    lambda values: torch.as_tensor(values, dtype=torch.float32).requires_grad_(),
    lambda values: torch.as_tensor(values, dtype=torch.float64).requires_grad_() * 1.0,
    lambda values: [torch.as_tensor(value).requires_grad_() for value in values],
    _as_column,
    lambda values: torch.as_tensor(values)[:, None].bfloat16(),
    lambda values: torch.as_tensor(values).half(),
    lambda values: values.astype(np.float16),
]


@pytest.mark.parametrize("form", FORMS)
def test_scores_come_in_any_form(form: Callable[[np.ndarray], Any]) -> None:
    rng = np.random.default_rng(0)
    labels, truth = rng.permutation([0] * 90 + [1] * 10), np.array([0, 1] * 20)
    score = np.round(rng.random(40) * 64) / 64  # exact in every precision
    rows, row_score = np.arange(60), np.round(rng.random(60) * 64) / 64
    one, two = (SamplerCore(labels, policy="rule", epochs=2) for _ in range(2))
    one.update(truth, score, rows=rows, row_score=row_score)
    two.update(torch.as_tensor(truth)[:, None], form(score), rows=torch.as_tensor(rows), row_score=form(row_score))
    assert _plain(one.state_dict()) == _plain(two.state_dict())


def test_scores_of_many_classes_come_as_tensors_or_lists() -> None:
    call = _scored()
    states = []
    for form in (np.asarray, lambda v: torch.as_tensor(np.asarray(v)).requires_grad_(), lambda v: list(torch.as_tensor(np.asarray(v)))):
        sampler = _sampler("rule")
        sampler.update(**call | {"y_score": form(call["y_score"]), "row_score": form(call["row_score"])})
        states.append(_plain(sampler.state_dict()))
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("labels", [LABELS[:, None], [[name] for name in LABELS], LABELS.tolist()])
def test_labels_come_as_a_column(labels: Any) -> None:
    assert (_sampler(labels=labels).draw() == _sampler().draw()).all()


def test_amounts_are_no_classes() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="hold 900 different values in 1000 rows, so they are no classes"):
        SamplerCore(np.concatenate([np.arange(900), np.arange(100)]), epochs=1)
    with pytest.raises(InputError, match="no classes"):
        SamplerCore([f"card {i}" for i in range(300)], epochs=1)
    for labels in (rng.permutation(np.arange(5_000) % 1_000), rng.permutation(np.arange(100_000) % 500) * 5):
        with pytest.warns(UserWarning, match="each is taken as a class of its own; divide a quantity") as seen:
            SamplerCore(labels, epochs=1)
        assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SamplerCore(np.arange(5_000) % 100, epochs=1)
        SamplerCore(np.arange(60_000) % 1_000, epochs=1)  # codes of classes
        SamplerCore([f"class {i % 1000}" for i in range(5_000)], epochs=1)


def test_ages_of_any_times() -> None:
    labelled = np.array([True, True, True, False])
    expected = [1.0, 0.5, 0.0, 0.0]
    days = np.array(["2020-01-01", "2020-01-03", "2020-01-05", "NaT"], dtype="datetime64[D]")
    for times in (
        np.array([1, 3, 5, 99]),
        np.array([1, 3, 5, 99], dtype=np.uint8),
        [1.0, 3.0, 5.0, np.nan],
        days,
        days.astype("datetime64[ns]"),
        days - days[0],
        [dt.date(2020, 1, 1), dt.datetime(2020, 1, 3), dt.datetime(2020, 1, 5), None],
        torch.tensor([[1.0], [3.0], [5.0], [0.0]]),
    ):
        found = ages(times, labelled)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected)
    assert ages(np.full(4, 7), labelled).tolist() == [0.0] * 4
    far = np.array(["0001-01-01", "5000-01-01", "9999-01-01", "9999-01-01"], dtype="datetime64[s]")  # beyond nanoseconds
    np.testing.assert_allclose(ages(far, labelled), expected, atol=1e-3)


def test_ages_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    times, labelled = rng.integers(0, 10**18, 50), rng.random(50) < 0.8
    whole = ages(times, labelled)
    monkeypatch.setattr("balancer.sampling.labels.CHUNK", 7)
    np.testing.assert_array_equal(ages(times, labelled), whole)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1, 2, 3], "times must be 4 numbers"),
        (["a"] * 4, "times must be 4 numbers"),
        ([1.0, np.nan, 2.0, 3.0], "no time for row 1"),
        (np.array(["2020-01-01"] * 3 + ["NaT"], dtype="datetime64[D]"), "no time for row 3"),
        ([object()] * 4, "times must be numbers, dates or datetime64"),
    ],
)
def test_refuses_times(times: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplerCore([0, 0, 1, 1], epochs=1, times=times)


def test_recent_rows_are_drawn_more_often() -> None:
    labels, times = np.array([0, 1] * 500), np.arange(1_000)
    sampler = SamplerCore(labels, policy="constant:share=.5,hardness=0,half_life=.1", epochs=2, times=times)
    assert sampler.notes == []
    drawn = sampler.draw(n=20_000)
    assert (drawn >= 900).mean() == pytest.approx(0.5 / (1 - 2**-10), abs=0.02)
    assert labels[drawn].mean() == pytest.approx(0.5, abs=0.02)
    blind = SamplerCore(labels, policy="constant:share=.5,hardness=0,half_life=.1", epochs=2)
    assert (blind.draw(n=20_000) >= 900).mean() == pytest.approx(0.1, abs=0.02)
    assert ["half-life" in note and "times" in note for note in blind.notes] == [True]


BLOCKED = {"policy": "constant:share=.3,hardness=1.5", "epochs": 3}


@settings(max_examples=25, deadline=None)
@given(block=st.integers(1, 60), draws=st.integers(3, 400), epoch=st.integers(0, 3), aged=st.booleans())
def test_any_block_alone_is_its_part_of_the_epoch(block: int, draws: int, epoch: int, aged: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        times = np.arange(len(LABELS)) if aged else None
        samplers = [_sampler(SamplingWeights(np.array([0.3, 0.4, 0.3]), 1.0, half_life=0.3), times=times) for _ in range(2)]
        for sampler in samplers:
            sampler.update(**_scored())
        whole = samplers[0].draw(epoch, draws)
        assert len(whole) == draws
        for place in reversed(range(-(-draws // block))):  # in any order
            part = samplers[1].draw_block(epoch, place, draws)
            np.testing.assert_array_equal(part, whole[place * block : (place + 1) * block])
        size = 1 + block % 7
        batches = samplers[0].draw_batches(epoch, 1 + draws // size, size)
        each = batches_of_block(size)
        assert batches.shape == (1 + draws // size, size)
        for place in reversed(range(-(-len(batches) // each))):
            part = samplers[1].draw_batch_block(epoch, place, len(batches), size)
            np.testing.assert_array_equal(part, batches[place * each : (place + 1) * each])


def test_blocks_follow_the_shares_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 100)
    sampler = _sampler("constant:share=.3,hardness=0")
    rows = sampler.draw(n=30_000)
    parts = rows.reshape(300, 100)
    assert len({part.tobytes() for part in parts}) == 300
    counts = np.array([(LABELS[rows] == c).sum() for c in CLASSES])
    expected = sampler.weights.share * len(rows)
    assert ((counts - expected) ** 2 / expected).sum() < 13.8


def test_an_epoch_of_several_blocks_has_a_minority_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)
    sampler = SamplerCore([0] * 999 + [1], policy="constant:share=prior,hardness=0", epochs=2, num_samples=40)
    positives = [(sampler.draw() == 999).sum() for _ in range(400)]
    assert min(positives) == 1
    assert np.mean(positives) == pytest.approx(40 * kept_share(np.array([0.999, 0.001]), 40)[1], rel=0.02)


def test_many_batches_do_not_take_the_memory_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(60_000) % 1_000
    sampler = SamplerCore(labels, policy="constant:share=.9,hardness=0", epochs=1)
    asked: list[tuple[int, int]] = []
    rows = module.QuotaPlan.rows
    monkeypatch.setattr(module.QuotaPlan, "rows", lambda self, *part: (asked.append(part), rows(self, *part))[1])
    assert sampler.draw_batch_block(0, 1_000, 500_000, 256).shape == (256, 256)
    assert asked == [(256_000, 256_256)]  # of half a million


def _core(**options: Any) -> SamplerCore:
    return SamplerCore([0] * 970 + [1] * 30, **({"epochs": 4} | options))


@pytest.mark.parametrize("batch_size", [0, 4, 16])
def test_loss_weights_have_mean_one_over_what_is_really_drawn(batch_size: int) -> None:
    """Few draws, or batches with a row of every class, change the shares, and the weights follow them."""
    labels = np.where(np.arange(1000) % 11 == 3, None, LABELS)  # type: ignore[call-overload]
    policy = SamplingWeights(np.array([0.01, 0.97, 0.02]), 1.0, 0.1, 0.5, 0.5)
    sampler = _sampler(policy, labels=labels, num_samples=48)
    sampler.use_draws(48, batch_size)
    sampler.update(**_scored() | {"rows": np.flatnonzero(labels == "ok")[:500]})
    drawn = [sampler.draw_batches(i, 48 // batch_size, batch_size).ravel() if batch_size else sampler.draw(epoch=i) for i in range(2_000)]
    rows = np.concatenate(drawn)
    weight = sampler.sample_weight(rows)
    assert weight.mean() == pytest.approx(1, rel=0.02)
    share = np.array([(labels[rows] == c).mean() for c in CLASSES])
    mass = np.array([weight[labels[rows] == c].sum() for c in CLASSES]) / len(rows)
    np.testing.assert_allclose(np.exp(sampler.logit_offset), mass, rtol=0.1)
    np.testing.assert_allclose((share * sampler.class_weight).sum(), 1, rtol=0.02)
    assert not sampler.sample_weight(np.flatnonzero(labels == None)).any()  # noqa: E711 - compares each label
    assert (share[0] > 0.05) == (batch_size > 0)


def test_the_best_epoch_and_when_to_stop() -> None:
    sampler = _core(epochs=20, patience=2)
    truth, good, bad = [0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.1, 0.9, 0.8, 0.2]
    assert (sampler.best_epoch, sampler.improved, sampler.finished) == (None, False, False)
    seen = []
    for score in (bad, good, bad, good):
        sampler.update(truth, score)
        seen.append((sampler.best_epoch, sampler.improved, sampler.finished))
    assert seen == [(0, True, False), (1, True, False), (1, False, False), (1, False, True)]
    other = _core(epochs=20, patience=2)
    other.load_state_dict(json.loads(_plain(sampler.state_dict())))
    assert (other.best_epoch, other.finished) == (1, True)
    old = {name: value for name, value in sampler.state_dict().items() if name not in ("stopping", "compensated")}
    other.load_state_dict(old)  # a state of version 0.1
    assert (other.best_epoch, other.finished, other.compensated) == (None, False, False)
    with pytest.raises(InputError, match="patience must be"):
        _core(patience=0)


@pytest.mark.parametrize("broken", [{"stopping": {"figures": ["x"]}}, {"stopping": {}}, {"compensated": "yes"}])
def test_a_state_with_a_broken_part_changes_nothing(broken: dict[str, Any]) -> None:
    one, two = _core(seed=3), _core()
    one.update([0, 1], [0.1, 0.9], rows=[0, 1], row_score=[0.5, 0.5])
    before = _plain(two.state_dict())
    with pytest.raises(InputError, match="corrupt"):
        two.load_state_dict(one.state_dict() | broken)
    assert _plain(two.state_dict()) == before


def test_a_sampler_shows_what_has_an_effect() -> None:
    assert "importance" not in repr(_core(policy="constant:share=.2"))
    text = repr(_core(policy="constant:share=.2,class_importance=.5,hardness_importance=.25,half_life=.5"))
    assert "class_importance=0.5, hardness_importance=0.25, half_life=0.5" in text


def test_the_state_of_swapped_labels_is_refused() -> None:
    y = np.array([0] * 90 + [1] * 10)
    state = SamplerCore(y, epochs=3).state_dict()
    with pytest.raises(InputError, match="other labels"):
        SamplerCore(1 - y, epochs=3).load_state_dict(state)


def test_a_state_of_another_seed_or_patience_is_noted() -> None:
    y = np.array([0] * 90 + [1] * 10)
    saved = SamplerCore(y, epochs=8, seed=3, patience=5)
    saved.update(y, np.linspace(0, 1, 100))
    state = json.loads(_plain(saved.state_dict()))
    same, other = SamplerCore(y, epochs=8, seed=3, patience=5), SamplerCore(y, epochs=8, seed=4, patience=2)
    for sampler in (same, other):
        sampler.load_state_dict(state)
    assert same.notes == []
    assert [note for note in other.notes if "seed 3" in note and "made with 4" in note]
    assert [note for note in other.notes if "patience 5" in note and "has 2" in note]
    np.testing.assert_array_equal(other.draw(), same.draw())  # the seed of the state is used
    for _ in range(2):
        other.update(y, np.zeros(100))
    assert other.finished  # and the patience of the sampler
    other.load_state_dict(json.loads(_plain(other.state_dict())))
    assert other.notes == []


def test_a_core_says_where_the_loss_is() -> None:
    sampler = _core()
    for name in ("loss", "validation_loss"):
        assert not hasattr(sampler, name)
        with pytest.raises(AttributeError, match=rf"SamplerCore needs no torch and has no {name}: use that of AdaptiveSampler"):
            getattr(sampler, name)
    with pytest.raises(AttributeError, match="'SamplerCore' object has no attribute 'los'"):
        sampler.los  # noqa: B018
    copied = copy.deepcopy(sampler)
    np.testing.assert_array_equal(copied.draw(), sampler.draw())
