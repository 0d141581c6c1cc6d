"""A policy beside its rivals on students of seeds never trained on, as siblings: same net, same initial weights, same random numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from balancer.envs.population import PopulationStack
from balancer.envs.problem import PopulationProblem
from balancer.envs.vec_env import PopulationEpisode
from balancer.sampling.observation import Observation
from balancer.sampling.policies import ConstantPolicy, Policy
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import Floats, SamplingWeights, start_weights
from balancer.training.policy_budget import PolicyBudget


@dataclass(frozen=True)
class _Random:
    """Uniform actions."""

    seed: int
    name: str = "random"

    def act(self, observation: Observation) -> Floats:
        """Drawn from the seed and what is seen, so it needs no state."""
        counter = int(np.frombuffer(hashlib.sha256(observation.flat().tobytes()).digest()[:4], np.uint32)[0])
        return generator(self.seed, "random policy", counter).uniform(-1.0, 1.0, len(observation.per_class) + 2)


@dataclass(frozen=True)
class _Start:
    """Keeps the starting weights."""

    name: str = "start"

    def act(self, observation: Observation) -> Floats:
        """Zero."""
        return np.zeros(len(observation.per_class) + 2)


def compare_policies(
    problem: PopulationProblem, ppo: Policy, plan: PolicyBudget, *, seed: int, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Mean final validation figures of ``ppo`` and its rivals on students of seeds not trained on; in each group every policy has one sibling.

    Returns:
        Policy name to ``f1``, ``average_precision``, ``partial_auc``, and the means of the final ``minority_share`` and ``hardness``.
    """
    policies: list[Policy] = [
        ppo,
        ConstantPolicy(),
        ConstantPolicy(0.5, 0.0, name="one_to_one"),
        ConstantPolicy(None, 0.0, name="none"),
        _Start(),
        _Random(integer_seed(seed, "policy test actions")),
    ]
    stack = PopulationStack(
        problem,
        groups=plan.test_groups,
        siblings=len(policies),
        batch_size=plan.batch_size,
        seed=integer_seed(seed, "policy test"),
        device=device,
    )
    walk = PopulationEpisode(stack, epochs=plan.epochs, steps_per_epoch=plan.steps_per_epoch, budgets=plan.factors)
    collected: dict[str, list[Floats]] = {}
    for episode in range(plan.test_episodes):
        walk.begin(episode)
        weights = [start_weights(walk.prior, walk.share_limit)] * stack.num
        observation = walk.first(*_stacked(weights))
        for _ in range(plan.epochs):
            for student in range(stack.num):
                seen = Observation(observation.per_class[student], observation.shared[student])
                answer = policies[student % len(policies)].act(seen)
                weights[student] = (
                    answer if isinstance(answer, SamplingWeights) else weights[student].moved(answer, walk.prior, walk.share_limit)
                )
            observation, metrics = walk.train_epoch(*_stacked(weights))
        share, hardness, _ = _stacked(weights)
        final = {
            "f1": metrics.f1,
            "average_precision": metrics.average_precision,
            "partial_auc": metrics.partial_auc,
            "minority_share": 1.0 - share[:, 0],
            "hardness": hardness,
        }
        for name, values in final.items():
            collected.setdefault(name, []).append(values.reshape(-1, len(policies)))
    means = {name: np.concatenate(values).mean(axis=0) for name, values in collected.items()}
    return {policy.name: {name: float(mean[i]) for name, mean in means.items()} for i, policy in enumerate(policies)}


def _stacked(weights: list[SamplingWeights]) -> tuple[Floats, Floats, Floats]:
    return (
        np.stack([w.share for w in weights]),
        np.array([w.hardness for w in weights]),
        np.array([w.floor for w in weights]),
    )
