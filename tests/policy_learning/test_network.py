"""The actor in torch and in NumPy, for any number of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from balancer.policy_learning.network import ActorNetwork, ClassWeightsPolicy, split_flat
from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES, Observation, observation_size
from balancer.sampling.policies import BundlePolicy


def _seen(k: int, seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    per_class = rng.uniform(-1, 1, (k, len(PER_CLASS_FEATURES))).astype(np.float32)
    return Observation(per_class, rng.uniform(-1, 1, len(SHARED_FEATURES)).astype(np.float32))


@pytest.mark.parametrize("k", [2, 4, 7])
def test_numpy_equals_torch(k: int) -> None:
    torch.manual_seed(0)
    actor = ActorNetwork()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    numpy_actor = BundlePolicy({name: value.numpy() for name, value in actor.state_dict().items()}, {})
    for seed in range(5):
        seen = _seen(k, seed)
        with torch.no_grad():
            expected = actor(torch.as_tensor(seen.flat()[None]))[0].numpy()
        np.testing.assert_allclose(numpy_actor.act(seen), expected, atol=1e-6)


def test_classes_may_be_reordered() -> None:
    torch.manual_seed(1)
    actor = ActorNetwork()
    torch.nn.init.normal_(actor.share_2.weight)
    seen, order = _seen(4, 0), np.array([0, 3, 1, 2])
    with torch.no_grad():
        plain = actor(torch.as_tensor(seen.flat()[None]))[0]
        moved = actor(torch.as_tensor(Observation(seen.per_class[order], seen.shared).flat()[None]))[0]
    np.testing.assert_allclose(moved[:4], plain[:4][order], atol=1e-6)
    np.testing.assert_allclose(moved[4:], plain[4:], atol=1e-6)


@pytest.mark.parametrize("k", [2, 4])
def test_shapes_are_those_of_the_environment(k: int) -> None:
    from balancer.envs.class_weights import ClassWeightsEnv

    env = ClassWeightsEnv(num_classes=k, epochs=2, steps_per_epoch=2, batch_size=32)
    policy = ClassWeightsPolicy(env.observation_space, env.action_space, lambda _: 1e-3)
    flat, _ = env.reset(seed=0)
    action, _ = policy.predict(flat, deterministic=True)
    assert action.shape == env.action_space.shape == (k + 4,)
    _, _, present = split_flat(torch.as_tensor(flat[None]))
    assert present.tolist() == [[1.0] * k]
    env.step(action)


def test_policy_starts_by_keeping_and_explores_in_five_scales() -> None:
    import gymnasium

    space = gymnasium.spaces.Box(-5, 5, (observation_size(3),), np.float32)
    policy = ClassWeightsPolicy(space, gymnasium.spaces.Box(-1, 1, (7,), np.float32), lambda _: 1e-3)
    flat = torch.as_tensor(_seen(3, 0).flat()[None])
    action, value, log_prob = policy(flat, deterministic=True)
    assert not action.any()
    assert not value.any()
    assert policy.log_std.shape == (5,)
    same_value, same_log_prob, entropy = policy.evaluate_actions(flat, action)
    assert same_log_prob.item() == pytest.approx(log_prob.item())
    assert same_value.item() == value.item()
    assert entropy is not None
    assert policy.get_distribution(flat).distribution.stddev.shape == (1, 7)
