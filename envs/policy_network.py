"""The policy that PPO trains: one encoder shared by all classes, pooled, so that the number of classes is free.

Each class's features pass the same two layers; their mean and maximum with the shared features make the context. From a class's code and
the context comes the change of its log share, from the context alone those of hardness and floor. The exploration has three scales, one
per kind, whatever K. Actor and critic share nothing, for a policy's gradient is small beside a value's.
:class:`balancer.sampling.policies.BundlePolicy` is this actor in NumPy; a test holds them together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES

WIDTH = 32
INITIAL_STD = 0.5


class ClassEncoder(nn.Module):
    """Flat observations (B, K * D + G) to codes (B, K, 32) and a context (B, 32)."""

    def __init__(self) -> None:
        super().__init__()
        per_class, shared = len(PER_CLASS_FEATURES), len(SHARED_FEATURES)
        self.encode_1 = nn.Linear(per_class + shared, WIDTH)
        self.encode_2 = nn.Linear(WIDTH, WIDTH)
        self.context = nn.Linear(2 * WIDTH + shared, WIDTH)

    def encode(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and context."""
        num_shared = len(SHARED_FEATURES)
        shared = flat[:, -num_shared:]
        per_class = flat[:, :-num_shared].reshape(len(flat), -1, len(PER_CLASS_FEATURES))
        spread = shared[:, None].expand(-1, per_class.shape[1], -1)
        code = torch.tanh(self.encode_2(torch.tanh(self.encode_1(torch.cat([per_class, spread], dim=2)))))
        context = torch.tanh(self.context(torch.cat([code.mean(dim=1), code.amax(dim=1), shared], dim=1)))
        return code, context


class ActorNetwork(ClassEncoder):
    """Mean action (B, K + 2) in (-1, 1); 0 at the start of training."""

    def __init__(self) -> None:
        super().__init__()
        self.share_1 = nn.Linear(2 * WIDTH, WIDTH)
        self.share_2 = nn.Linear(WIDTH, 1)
        self.overall = nn.Linear(WIDTH, 2)
        for last in (self.share_2, self.overall):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, flat: Tensor) -> Tensor:
        """Changes of the log shares, of hardness and of floor."""
        code, context = self.encode(flat)
        joined = torch.cat([code, context[:, None].expand(-1, code.shape[1], -1)], dim=2)
        share = self.share_2(torch.tanh(self.share_1(joined)))[:, :, 0]
        # Adding the same to every log share changes nothing, so that direction is taken out.
        return torch.tanh(torch.cat([share - share.mean(dim=1, keepdim=True), self.overall(context)], dim=1))


class CriticNetwork(ClassEncoder):
    """Value (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, flat: Tensor) -> Tensor:
        """Expected return from here on."""
        _, context = self.encode(flat)
        value: Tensor = self.value(context)
        return value


class ClassWeightsPolicy(ActorCriticPolicy):
    """Stable-Baselines3 policy for ``balancer/ClassWeights-v0`` and ``PopulationVecEnv``."""

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor, self.critic = ActorNetwork(), CriticNetwork()
        self.log_std = nn.Parameter(torch.full((3,), math.log(INITIAL_STD)))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def get_distribution(self, obs: Any) -> DiagGaussianDistribution:
        """Gaussian around the actor's mean; one scale for all log shares, one for hardness, one for floor."""
        mean = self.actor(obs)
        log_std = torch.cat([self.log_std[:1].expand(mean.shape[1] - 2), self.log_std[1:]])
        distribution = DiagGaussianDistribution(mean.shape[1])
        return distribution.proba_distribution(mean, log_std)

    def predict_values(self, obs: Any) -> Tensor:
        """(B, 1)."""
        value: Tensor = self.critic(obs)
        return value

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values, log-probabilities."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.critic(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropy of ``actions``."""
        distribution = self.get_distribution(obs)
        return self.critic(obs), distribution.log_prob(actions), distribution.entropy()
