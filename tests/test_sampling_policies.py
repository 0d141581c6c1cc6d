"""Policies by name and from bundles; what every policy must do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from balancer.errors import InputError
from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES, Observation, ObservationBuilder
from balancer.sampling.policies import LAYERS, Policy, bundle_layout, load_policy
from balancer.sampling.weights import SamplingWeights, start_weights


def _arrays(seed: int = 0, width: int = 8) -> dict[str, np.ndarray]:
    rng, d, g = np.random.default_rng(seed), len(PER_CLASS_FEATURES), len(SHARED_FEATURES)
    shapes = {
        "encode_1": (width, d + g),
        "encode_2": (width, width),
        "context": (width, 2 * width + g),
        "share_1": (width, 2 * width),
        "share_2": (1, width),
        "overall": (2, width),
    }
    arrays = {f"{name}.weight": rng.normal(size=shapes[name]).astype(np.float32) for name in LAYERS}
    return arrays | {f"{name}.bias": rng.normal(size=shapes[name][0]).astype(np.float32) for name in LAYERS}


def _bundle(folder: Path) -> Path:
    folder.mkdir()
    save_file(_arrays(), folder / "policy.safetensors")
    (folder / "policy.json").write_text(json.dumps(bundle_layout() | {"training": {"beats_constant": True}}))
    return folder


def _seen(k: int, started: bool = True) -> Observation:
    counts = np.array([5000] + [20] * (k - 1))
    builder = ObservationBuilder(counts / counts.sum(), epochs=4, batch_budget=4000, train_counts=counts, reward_counts=counts)
    start = start_weights(builder.prior)
    weights = (start.share[None], np.zeros(1), np.zeros(1))
    seen = builder.first(*weights)
    if started:
        rng = np.random.default_rng(0)
        data = (np.arange(200) % k, rng.dirichlet(np.ones(k), (1, 200)), np.ones(200))
        seen, _ = builder.after_epoch(data, data, *weights)
    return Observation(seen.per_class[0], seen.shared[0])


@pytest.mark.parametrize("text", ["constant", "constant:share=prior,hardness=0", "rule", "bundle"])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("started", [False, True])
def test_every_policy_answers_in_range(text: str, k: int, started: bool, tmp_path: Path) -> None:
    policy: Policy = load_policy(_bundle(tmp_path / "b") if text == "bundle" else text, num_classes=k)
    answer = policy.act(_seen(k, started))
    assert policy.name
    if isinstance(answer, SamplingWeights):
        assert len(answer.share) == k
    else:
        assert answer.shape == (k + 2,)
        assert np.abs(answer).max() <= 1


def test_constant_means_what_it_says() -> None:
    answer = load_policy("constant:share=.3,hardness=1.5,floor=.1", num_classes=4).act(_seen(4))
    assert isinstance(answer, SamplingWeights)
    assert answer.share[1:].sum() == pytest.approx(0.3)
    assert (answer.hardness, answer.floor) == (1.5, 0.1)
    natural = load_policy("constant:share=prior,hardness=0", num_classes=2).act(_seen(2))
    assert isinstance(natural, SamplingWeights)
    assert natural.share[1] == pytest.approx(20 / 5020, rel=1e-5)


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
    assert not isinstance(answer, SamplingWeights)
    np.testing.assert_allclose(answer[1:4], answer[1])  # the three rare classes look the same
    assert answer[0] != pytest.approx(answer[1])


@pytest.mark.parametrize(
    "text",
    ["constant:share=2", "constant:share=0", "constant:share=x", "constant:depth=1", "constant:hardness=9", "nowhere", "constant:share="],
)
def test_refuses(text: str) -> None:
    with pytest.raises(InputError, match="polic"):
        load_policy(text, num_classes=2)


def test_refuses_torn_or_foreign_bundles(tmp_path: Path) -> None:
    torn = _bundle(tmp_path / "torn")
    content = (torn / "policy.safetensors").read_bytes()
    (torn / "policy.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="can't be read"):
        load_policy(torn, num_classes=2)
    foreign = _bundle(tmp_path / "foreign")
    (foreign / "policy.json").write_text(json.dumps(bundle_layout() | {"format_version": 99}))
    with pytest.raises(InputError, match="another version"):
        load_policy(foreign, num_classes=2)
    text = _bundle(tmp_path / "text")
    (text / "policy.json").write_text("{")
    with pytest.raises(InputError, match="can't be read"):
        load_policy(text, num_classes=2)
    part = _bundle(tmp_path / "part")
    arrays = _arrays()
    del arrays["context.bias"]
    save_file(arrays, part / "policy.safetensors")
    with pytest.raises(InputError, match=r"context\.bias"):
        load_policy(part, num_classes=2)
