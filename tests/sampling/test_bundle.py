"""Learned policies: loading, validation, the range of their training, and the constant outside it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays
from safetensors.numpy import save_file

from balancer.errors import InputError
from balancer.sampling.bundle import (
    BUNDLES,
    CONFIG_FILE,
    FEATURES,
    LAYERS,
    OVERALL,
    WEIGHTS_FILE,
    AutoPolicy,
    BundlePolicy,
    OutsideTraining,
    bundle_layout,
    load_bundle,
)
from balancer.sampling.constant_policy import ConstantPolicy, DefaultPolicy, PriorPower
from balancer.sampling.observation import (
    PER_CLASS_FEATURES,
    PER_CLASS_FEATURES_V0,
    SHARED_FEATURES,
    SHARED_FEATURES_V0,
    Observation,
    ObservationBuilder,
)
from balancer.sampling.policies import SHIPPED, load_policy, policy_notes
from balancer.sampling.weights import SamplingWeights, stacked, start_share, start_weights

D, G = len(PER_CLASS_FEATURES), len(SHARED_FEATURES)
LOG_PRIOR = PER_CLASS_FEATURES.index("log_prior")


VERSIONS = pytest.mark.parametrize("version", [0, 1])


def _arrays(seed: int = 0, width: int = 8, version: int = 1) -> dict[str, np.ndarray]:
    rng, (d, g) = np.random.default_rng(seed), map(len, FEATURES[version])
    shapes = {
        "encode_1": (width, d + g),
        "encode_2": (width, width),
        "context": (width, 2 * width + g),
        "share_1": (width, 2 * width),
        "share_2": (1, width),
        "overall": (OVERALL[version], width),
    }
    arrays = {f"{name}.weight": rng.normal(size=shapes[name]).astype(np.float32) for name in LAYERS}
    return arrays | {f"{name}.bias": rng.normal(size=shapes[name][0]).astype(np.float32) for name in LAYERS}


def _support(low: float = -1.0, high: float = 1.0, classes: tuple[int, int] = (2, 4), version: int = 1) -> dict[str, Any]:
    d, g = map(len, FEATURES[version])
    return {
        "per_class": {"low": [low] * d, "high": [high] * d},
        "shared": {"low": [low] * g, "high": [high] * g},
        "num_classes": list(classes),
    }


def _bundle(folder: Path, arrays: dict[str, np.ndarray] | None = None, version: int = 1, **config: Any) -> Path:
    folder.mkdir(parents=True)
    save_file(_arrays(version=version) if arrays is None else arrays, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(bundle_layout(version) | {"training": {"beats_constant": True}} | config))
    return folder


def _seen(k: int = 2, value: float = 0.5) -> Observation:
    return Observation(np.full((k, D), value, np.float32), np.full(G, value, np.float32))


def _first(counts: list[int]) -> Observation:
    train = np.array(counts)
    builder = ObservationBuilder(train / train.sum(), epochs=4, batch_budget=4000, train_counts=train, reward_counts=train)
    start = start_weights(builder.prior)
    seen = builder.first(stacked([start]))
    return Observation(seen.per_class[0], seen.shared[0])


@VERSIONS
def test_many_observations_are_each_as_one(version: int) -> None:
    policy, rng = BundlePolicy(_arrays(version=version), {}, version=version), np.random.default_rng(1)
    many = Observation(rng.uniform(-1, 1, (5, 3, D)).astype(np.float32), rng.uniform(-1, 1, (5, G)).astype(np.float32))
    actions = policy.act_many(many)
    assert actions.shape == (5, 3 + OVERALL[version])
    for i, action in enumerate(actions):
        alone = policy.act(Observation(many.per_class[i], many.shared[i]))
        assert isinstance(alone, np.ndarray)
        np.testing.assert_allclose(alone, action, rtol=1e-12)


@VERSIONS
def test_inside_its_range_it_acts_and_is_silent(tmp_path: Path, version: int) -> None:
    plain = load_bundle(_bundle(tmp_path / "a", version=version))
    ranged = load_bundle(_bundle(tmp_path / "b", version=version, support=_support(version=version)))
    for value in (-1.0, 0.3, 1.2, -1.2):  # within a tenth of the range and .05 of slack
        answer, expected = ranged.act(_seen(value=value)), plain.act(_seen(value=value))
        assert isinstance(answer, np.ndarray) and isinstance(expected, np.ndarray)
        np.testing.assert_array_equal(answer, expected)
    assert policy_notes(ranged) == []


def test_outside_its_range_the_constant_stands_in_and_it_says_so_once(tmp_path: Path) -> None:
    fallback = {"share_power": 0.6, "hardness": 1.25, "floor": 0.1}
    policy = load_policy(_bundle(tmp_path / "b", version=0, support=_support(version=0), fallback=fallback), num_classes=2)
    seen = _seen()
    seen.per_class[1, LOG_PRIOR] = -1.9
    with pytest.warns(OutsideTraining, match=r"prior of a class is 7\.49e-05, in training it was 0\.00674 to 148"):
        answer = policy.act(seen)
    assert answer == ConstantPolicy(PriorPower(0.6), 1.25, 0.1, "good_constant")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy.act(seen) == answer
        inside = policy.act(_seen())
        assert policy.act(_seen(5)) == answer  # another reason: a second note, no second warning
    assert isinstance(inside, np.ndarray)
    assert [("prior" in note, "5 classes" in note) for note in policy_notes(policy)] == [(True, False), (False, True)]


def test_outside_its_range_a_policy_of_this_version_answers_as_the_default(tmp_path: Path) -> None:
    policy = load_policy(_bundle(tmp_path / "b", support=_support(classes=(2, 2))), num_classes=3)
    seen = _first([9_000, 90, 10])
    with pytest.warns(OutsideTraining, match="3 classes"):
        answer = policy.act(seen)
    assert isinstance(answer, SamplingWeights)
    assert answer.to_dict() == DefaultPolicy().act(seen).to_dict()


def test_features_that_came_later_do_not_matter_to_an_old_policy(tmp_path: Path) -> None:
    policy = load_bundle(_bundle(tmp_path / "b", version=0, support=_support(version=0)))
    seen, other = _seen(), _seen()
    other.shared[len(SHARED_FEATURES_V0) :] = 4.0
    other.per_class[:, len(PER_CLASS_FEATURES_V0) :] = -4.0
    answers = [policy.act(each) for each in (seen, other)]
    np.testing.assert_array_equal(answers[0], answers[1])  # type: ignore[arg-type]
    assert np.shape(answers[0]) == (4,)


@VERSIONS
def test_the_farthest_feature_is_named(tmp_path: Path, version: int) -> None:
    policy = load_bundle(_bundle(tmp_path / "b", version=version, support=_support(version=version)))
    seen = _seen()
    seen.per_class[0, PER_CLASS_FEATURES.index("repeats")] = 2.0
    seen.shared[SHARED_FEATURES.index("budget_left")] = 4.0
    with pytest.warns(OutsideTraining, match="budget_left is 4, in training it was -1 to 1"):
        policy.act(seen)


@given(numpy_arrays(np.float64, st.integers(2, 8), elements=st.floats(1e-6, 1)), st.floats(0, 1), st.floats(0.01, 0.5))
@settings(max_examples=60, deadline=None)
def test_the_constant_keeps_the_limit_and_the_order_of_classes(counts: np.ndarray, power: float, limit: float) -> None:
    prior = np.sort(counts / counts.sum())[::-1]
    weights = ConstantPolicy(PriorPower(power), 1.0, 0.05).weights(prior, limit)
    minority = 1.0 - prior[0]
    assert weights.share.sum() == pytest.approx(1.0)
    assert minority - 1e-9 <= weights.share[1:].sum() <= max(limit, minority) + 1e-9
    assert (np.diff(weights.share[1:]) <= 1e-12).all()
    if start_share(prior)[1:].sum() <= limit:
        np.testing.assert_allclose(ConstantPolicy(PriorPower(0.5)).weights(prior, limit).share, start_share(prior))


def test_the_constant_gives_nothing_to_a_class_without_rows() -> None:
    assert ConstantPolicy(PriorPower(0.0)).weights(np.array([0.9, 0.1, 0.0]), 0.5).share.tolist() == [0.5, 0.5, 0.0]


def test_without_its_bundle_auto_is_the_constant_and_says_so(tmp_path: Path) -> None:
    policy, seen = AutoPolicy("auto", tmp_path), _first([9_000, 100])
    answer = policy.act(seen)
    assert isinstance(answer, SamplingWeights)
    assert answer.to_dict() == DefaultPolicy().act(seen).to_dict()
    assert policy.summary == {}
    assert ["not part of this installation" in note for note in policy_notes(policy)] == [True]


def test_auto_is_the_bundle_of_its_name(tmp_path: Path) -> None:
    fallback = {"share_power": 0.4, "hardness": 1.0, "floor": 0.0}
    folder = _bundle(tmp_path / "auto", version=0, support=_support(version=0), fallback=fallback)
    policy = AutoPolicy("auto", tmp_path)
    assert policy.name == "auto"
    assert policy.summary == {"beats_constant": True}
    answer, expected = policy.act(_seen()), load_bundle(folder).act(_seen())
    assert isinstance(answer, np.ndarray) and isinstance(expected, np.ndarray)
    np.testing.assert_array_equal(answer, expected)
    with pytest.warns(OutsideTraining, match="policy auto was not trained for this"):
        assert policy.act(_seen(value=3.0)) == ConstantPolicy(PriorPower(0.4), 1.0, 0.0, "good_constant")
    assert len(policy_notes(policy)) == 1


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.filterwarnings(
    "ignore::balancer.sampling.bundle.OutsideTraining"
)  # K = 10 may be beyond its training; the test is that it answers
def test_the_shipped_policy_is_small_and_runs_for_any_number_of_classes(name: str) -> None:
    folder = BUNDLES / name
    if not folder.is_dir():
        pytest.skip(f"policy {name} is not trained yet")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 200_000
    network = load_bundle(folder)
    assert network.support is not None
    for k in range(2, 11):
        seen = _first([9000] + [50] * (k - 1))
        answers = [load_policy(name, num_classes=k).act(seen) for _ in range(2)]
        if isinstance(answers[0], ConstantPolicy):
            assert answers[0] == answers[1] == network.fallback
        elif isinstance(answers[0], SamplingWeights):
            assert isinstance(answers[1], SamplingWeights)
            assert answers[0].to_dict() == answers[1].to_dict()
        else:
            np.testing.assert_array_equal(answers[0], answers[1])
        many = network.act_many(Observation(seen.per_class[None], seen.shared[None]))
        assert many.shape == (1, k + OVERALL[network.version])
        assert np.abs(many).max() <= 1


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("encode_1.weight", np.zeros((8, D + G + 1), np.float32), "encode_1"),
        ("context.bias", np.zeros(9, np.float32), "context"),
        ("share_1.weight", np.zeros((8, 15), np.float32), "share_1"),
        ("overall.bias", np.zeros((2, 1), np.float32), "overall"),
        ("share_2.weight", np.full((1, 8), np.nan, np.float32), "finite"),
        ("share_2.weight", np.zeros((1, 8), np.int64), "floating"),
    ],
)
def test_refuses_arrays_that_do_not_fit(tmp_path: Path, name: str, value: np.ndarray, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_bundle(_bundle(tmp_path / "b", _arrays() | {name: value}))


@pytest.mark.parametrize(
    "config",
    [
        {"support": {}},
        {"support": _support(version=0) | {"num_classes": [4, 2]}},
        {"support": _support(version=0) | {"num_classes": 3}},
        {"support": _support(version=0) | {"shared": {"low": [0.0], "high": [1.0]}}},
        {"support": _support(1.0, -1.0, version=0)},
        {"support": _support(float("nan"), version=0)},
        {"support": 3},
        {"fallback": {"share": 0.5}},
        {"fallback": {"hardness": 9}},
        {"fallback": {"floor": "x"}},
        {"fallback": 1},
    ],
)
def test_refuses_a_support_or_fallback_that_is_none(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="can't be read"):
        load_bundle(_bundle(tmp_path / "b", version=0, **config))


def test_refuses_a_support_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        load_bundle(_bundle(tmp_path / "b", support=_support(version=0)))


def test_refuses_torn_or_foreign_bundles(tmp_path: Path) -> None:
    corrupt = _bundle(tmp_path / "corrupt")
    content = (corrupt / WEIGHTS_FILE).read_bytes()
    (corrupt / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="can't be read"):
        load_bundle(corrupt)
    with pytest.raises(InputError, match="another version"):
        load_bundle(_bundle(tmp_path / "foreign", format_version=99))
    text = _bundle(tmp_path / "text")
    (text / CONFIG_FILE).write_text("{")
    with pytest.raises(InputError, match="can't be read"):
        load_bundle(text)
    (text / CONFIG_FILE).write_text("[]")
    with pytest.raises(InputError, match="another version"):
        load_bundle(text)
    part = _bundle(tmp_path / "part")
    arrays = _arrays()
    del arrays["context.bias"]
    save_file(arrays, part / WEIGHTS_FILE)
    with pytest.raises(InputError, match=r"context\.bias"):
        load_bundle(part)
    with pytest.raises(InputError, match="is missing"):
        load_bundle(tmp_path / "nowhere")


def test_classes_that_move_together_keep_their_proportions() -> None:
    rng = np.random.default_rng(0)
    apart = BundlePolicy(_arrays(), {})
    together = BundlePolicy(_arrays(), {}, together=True)
    seen = Observation(
        rng.uniform(-1, 1, (4, len(PER_CLASS_FEATURES))).astype(np.float32), rng.uniform(-1, 1, len(SHARED_FEATURES)).astype(np.float32)
    )
    one, two = apart.act(seen), together.act(seen)
    assert isinstance(one, np.ndarray)
    assert isinstance(two, np.ndarray)
    np.testing.assert_allclose(two[1:4], one[1:4].mean())
    np.testing.assert_array_equal(two[[0, 4, 5, 6, 7]], one[[0, 4, 5, 6, 7]])
    assert np.ptp(one[1:4]) > 0
