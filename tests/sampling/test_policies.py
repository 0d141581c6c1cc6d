"""Policies by name and from bundles; what every policy must do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from balancer.errors import InputError
from balancer.sampling.constant_policy import COMPENSATED, PLAIN, PLAIN_MANY, ConstantPolicy, PriorPower
from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES, Observation, ObservationBuilder
from balancer.sampling.policies import LAYERS, Policy, answered, ask, bundle_layout, load_policy, policy_notes
from balancer.sampling.weights import FLOOR_STEP, IMPORTANCE_STEP, SamplingWeights, stacked, start_weights


def _arrays(seed: int = 0, width: int = 8) -> dict[str, np.ndarray]:
    rng, d, g = np.random.default_rng(seed), len(PER_CLASS_FEATURES), len(SHARED_FEATURES)
    shapes = {
        "encode_1": (width, d + g),
        "encode_2": (width, width),
        "context": (width, 2 * width + g),
        "share_1": (width, 2 * width),
        "share_2": (1, width),
        "overall": (4, width),
    }
    arrays = {f"{name}.weight": rng.normal(size=shapes[name]).astype(np.float32) for name in LAYERS}
    return arrays | {f"{name}.bias": rng.normal(size=shapes[name][0]).astype(np.float32) for name in LAYERS}


def _bundle(folder: Path) -> Path:
    folder.mkdir()
    save_file(_arrays(), folder / "policy.safetensors")
    (folder / "policy.json").write_text(json.dumps(bundle_layout() | {"training": {"beats_constant": True}}))
    return folder


def _seen(k: int, started: bool = True, compensated: bool = False) -> Observation:
    counts = np.array([5000] + [20] * (k - 1))
    builder = ObservationBuilder(
        counts / counts.sum(), epochs=4, batch_budget=4000, train_counts=counts, reward_counts=counts, compensated=compensated
    )
    weights = stacked([start_weights(builder.prior)])
    seen = builder.first(weights)
    if started:
        rng = np.random.default_rng(0)
        data = (np.arange(200) % k, rng.dirichlet(np.ones(k), (1, 200)), np.ones(200))
        seen, _ = builder.after_epoch(data, data, weights)
    return Observation(seen.per_class[0], seen.shared[0])


TEXTS = [
    *("constant", "constant:share=prior,hardness=0", "schedule", "rule", "random", "random:seed=3", "start", "auto", "ppo", "bandit"),
    *("constant:share=root,class_importance=.5,hardness_importance=.25,half_life=.5", "constant:share=equal", "bundle"),
]


@pytest.mark.parametrize("text", TEXTS)
# The observations here differ from those in the training of auto.
@pytest.mark.filterwarnings("ignore::balancer.sampling.bundle.OutsideTraining")
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("started", [False, True])
def test_every_policy_answers_in_range(text: str, k: int, started: bool, tmp_path: Path) -> None:
    policy: Policy = load_policy(_bundle(tmp_path / "b") if text == "bundle" else text, num_classes=k)
    seen = _seen(k, started)
    answer = policy.act(seen)
    assert policy.name == ("ppo" if text == "bundle" else text.partition(":")[0])
    if isinstance(answer, np.ndarray):
        assert answer.shape in ((k + 2,), (k + 4,))
        assert np.abs(answer).max() <= 1
    start = start_weights(seen.prior, 0.3)
    weights = answered(start, answer, seen.prior, 0.3)
    assert weights.share.shape == (k,)
    again = answered(start, policy.act(seen), seen.prior, 0.3)
    assert weights.to_dict() == again.to_dict()  # the answer is a function of the observation


def test_constant_means_what_it_says() -> None:
    answer = load_policy("constant:share=.3,hardness=1.5,floor=.1", num_classes=4).act(_seen(4))
    assert isinstance(answer, SamplingWeights)
    assert answer.share[1:].sum() == pytest.approx(0.3)
    assert (answer.hardness, answer.floor) == (1.5, 0.1)
    natural = load_policy("constant:share=prior,hardness=0", num_classes=2).act(_seen(2))
    assert isinstance(natural, SamplingWeights)
    assert natural.share[1] == pytest.approx(20 / 5020, rel=1e-5)


def test_constant_takes_importance_and_half_life() -> None:
    answer = load_policy("constant:share=root,class_importance=.5,hardness_importance=.25,half_life=.5,floor=.2", num_classes=2).act(
        _seen(2)
    )
    weights = answered(start_weights(np.array([0.5, 0.5])), answer, np.array([0.99, 0.01]), 0.05)
    np.testing.assert_allclose(weights.share[1], np.sqrt(0.01) / (np.sqrt(0.01) + np.sqrt(0.99)))  # not bounded by the limit
    assert weights.to_dict() | {"share": None} == {
        "share": None,
        "hardness": 1.0,
        "floor": 0.2,
        "class_importance": 0.5,
        "hardness_importance": 0.25,
        "half_life": 0.5,
    }
    equal = answered(weights, load_policy("constant:share=equal", num_classes=2).act(_seen(2)), np.array([0.99, 0.01]), 0.05)
    assert equal.share.tolist() == [0.5, 0.5]
    assert not equal.compensated


@pytest.mark.parametrize("text", ["auto", "constant"])
@pytest.mark.parametrize("k", [2, 3, 100])
def test_the_default_depends_on_the_loss_and_the_number_of_classes(text: str, k: int) -> None:
    policy = load_policy(text, num_classes=k)
    assert policy.name == text
    for compensated, constant in ((True, COMPENSATED), (False, PLAIN if k == 2 else PLAIN_MANY)):
        seen = _seen(k, compensated=compensated)
        answer = policy.act(seen)
        assert isinstance(answer, SamplingWeights)
        assert answer.to_dict() == constant.weights(seen.prior).to_dict()
        assert answer.compensated == compensated
    with pytest.raises(InputError, match="takes no options"):
        load_policy("auto:", num_classes=k)


def test_residuals_of_both_lengths() -> None:
    prior, limit = np.array([0.99, 0.01]), 0.05
    start = start_weights(prior, limit)
    old = answered(start, np.array([-1.0, 1.0, 1.0, 1.0]), prior, limit)
    new = answered(start, np.array([-1.0, 1.0, 1.0, 1.0, -1.0, 0.5]), prior, limit)
    assert old.share[1] == pytest.approx(limit)
    assert new.share[1] > 0.15  # compensation bounds what such rows count, so the limit does not
    assert (old.floor, new.floor) == (pytest.approx(start.floor + FLOOR_STEP), start.floor)
    assert (new.class_importance, new.hardness_importance) == (IMPORTANCE_STEP, 0.0)
    with pytest.raises(InputError, match="'own' must answer with SamplingWeights or 6 numbers"):
        ask(_Own(np.zeros(5)), _seen(2), start, prior, limit)
    assert ask(_Own(np.zeros(6)), _seen(2), start, prior, limit).share.tolist() == pytest.approx(start.share.tolist())


class _Own:
    """A policy that gives one answer."""

    name = "own"

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer

    def act(self, observation: Observation) -> np.ndarray:
        return self.answer


def test_answers_become_weights() -> None:
    prior, limit = np.array([0.99, 0.01]), 0.05
    start = start_weights(prior, limit)
    wanted = SamplingWeights(np.array([0.5, 0.5]), 1.0)
    assert answered(start, wanted, prior, limit) is wanted  # what a person wrote is not bounded
    assert answered(start, ConstantPolicy(PriorPower(0.0), 2.0, 0.1), prior, limit).to_dict() == {
        "share": [0.95, 0.05],
        "hardness": 2.0,
        "floor": 0.1,
    }
    up = np.array([-1.0, 1.0, 1.0, 0.0])
    assert answered(start, up, prior, limit).share[1] == pytest.approx(0.05)
    assert answered(start, up, prior, limit).hardness == 1.0
    kept = answered(start, load_policy("start", num_classes=2).act(_seen(2)), prior, limit)
    np.testing.assert_allclose(kept.share, start.share)


def test_schedule_goes_in_a_straight_line() -> None:
    policy = load_policy("schedule:start_share=.4,end_share=.2,start_hardness=0,end_hardness=2", num_classes=2)
    first, later = policy.act(_seen(2, started=False)), policy.act(_seen(2))  # after one epoch of four
    assert isinstance(first, SamplingWeights) and isinstance(later, SamplingWeights)
    assert (first.share[1], first.hardness) == (pytest.approx(0.4), 0.0)
    assert (later.share[1], later.hardness) == (pytest.approx(0.35), pytest.approx(0.5))
    published = load_policy("schedule", num_classes=3).act(_seen(3, started=False))
    assert isinstance(published, SamplingWeights)
    assert published.share[1:].sum() == pytest.approx(0.5) and published.hardness == 0.5


def test_random_depends_on_seed_and_observation() -> None:
    seen, other = _seen(2), _seen(2, started=False)
    one, same, differs = (load_policy(text, num_classes=2).act(seen) for text in ("random:seed=1", "random:seed=1", "random:seed=2"))
    elsewhere = load_policy("random:seed=1", num_classes=2).act(other)
    assert isinstance(one, np.ndarray) and isinstance(differs, np.ndarray) and isinstance(elsewhere, np.ndarray)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, differs)
    assert not np.array_equal(one, elsewhere)


def test_only_learned_policies_leave_notes() -> None:
    assert all(policy_notes(load_policy(text, num_classes=2)) == [] for text in ("constant", "rule", "schedule", "random", "start"))


def test_rule_is_one_minus_f1() -> None:
    seen = _seen(3)
    answer = load_policy("rule", num_classes=3).act(seen)
    assert isinstance(answer, SamplingWeights)
    need = 1 - seen.class_feature("f1_argmax")
    np.testing.assert_allclose(answer.share, need / need.sum(), rtol=1e-6)


def test_bundle_treats_equal_classes_equally(tmp_path: Path) -> None:
    policy = load_policy(_bundle(tmp_path / "b"), num_classes=4)
    seen = _seen(4, started=False)
    answer = policy.act(seen)
    assert isinstance(answer, np.ndarray)
    np.testing.assert_allclose(answer[1:4], answer[1])  # the three rare classes look the same
    assert answer[0] != pytest.approx(answer[1])


@pytest.mark.parametrize(
    "text",
    [
        *(
            "constant:share=2",
            "constant:share=.2,share=.3",
            "constant:share=root,share=.2",
            "constant:hardness=1,hardness=1",
            "constant:share=0",
            "constant:share=x",
            "constant:depth=1",
            "constant:hardness=9",
            "nowhere",
            "constant:share=",
        ),
        *(
            "constant:share=nan",
            "schedule:share=.2",
            "schedule:start_share=1",
            "schedule:end_hardness=x",
            "random:seed=x",
            "random:seed=.5",
        ),
        *("random:seed=-1", "auto:share=.2", "rule:", "start:x", "ppo:share=.2", "bandit:", "constant:half_life=99", ""),
        *("constant:class_importance=1.1", "constant:share=even"),
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(InputError, match="polic"):
        load_policy(text, num_classes=2)


def test_refuses_one_class() -> None:
    with pytest.raises(InputError, match="two classes"):
        load_policy("auto", num_classes=1)
