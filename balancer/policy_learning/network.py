"""The policy network that PPO trains: one encoder for every class, for any number of classes.

The features of each class pass the same two layers. Their mean and maximum over the classes form the context,
together with the shared features. The change of a class's log share is computed from the code of the class
and the context; the changes of hardness, importance exponents and half-life are computed from the context
alone. The exploration has one scale per kind of action, for any K. Observations of tasks with fewer classes
are padded with zeros. A class with a log prior of 0 is such padding (a real class never has it): it takes no
part in pooling, and neither its action nor its log-probability counts.

Actor and critic share no parameters, because the gradient of a policy is small compared with that of a value.
:class:`balancer.sampling.bundle.BundlePolicy` is this actor in NumPy; a test compares the two.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from balancer.sampling.bundle import OVERALL
from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES

WIDTH = 32
INITIAL_STD = 0.5
_LOG_PRIOR = PER_CLASS_FEATURES.index("log_prior")


def split_flat(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per-class features (B, K, D), shared features (B, G), and a mask of the real classes (B, K), 1 or 0."""
    num_shared = len(SHARED_FEATURES)
    per_class = flat[:, :-num_shared].reshape(len(flat), -1, len(PER_CLASS_FEATURES))
    return per_class, flat[:, -num_shared:], (per_class[:, :, _LOG_PRIOR] != 0).to(flat.dtype)


class PresentGaussian(DiagGaussianDistribution):
    """Diagonal Gaussian with a mask: only dimensions where ``present`` (B, K + 4) is 1 count."""

    def __init__(self, present: Tensor) -> None:
        super().__init__(present.shape[1])
        self.present = present

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability (B,) of actions."""
        log_prob: Tensor = (self.distribution.log_prob(actions) * self.present).sum(dim=1)
        return log_prob

    def entropy(self) -> Tensor:
        """Entropy (B,)."""
        entropy: Tensor = (self.distribution.entropy() * self.present).sum(dim=1)
        return entropy


class ClassEncoder(nn.Module):
    """Encodes flat observations (B, K * D + G) as codes (B, K, 32) and a context (B, 32)."""

    def __init__(self) -> None:
        super().__init__()
        per_class, shared = len(PER_CLASS_FEATURES), len(SHARED_FEATURES)
        self.encode_1 = nn.Linear(per_class + shared, WIDTH)
        self.encode_2 = nn.Linear(WIDTH, WIDTH)
        self.context = nn.Linear(2 * WIDTH + shared, WIDTH)

    def encode(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, K, 32) and context (B, 32)."""
        per_class, shared, present = split_flat(flat)
        spread = shared[:, None].expand(-1, per_class.shape[1], -1)
        code = torch.tanh(self.encode_2(torch.tanh(self.encode_1(torch.cat([per_class, spread], dim=2)))))
        here = present[:, :, None]
        mean = (code * here).sum(dim=1) / here.sum(dim=1).clamp_min(1.0)
        largest = code.masked_fill(here == 0, -1.0).amax(dim=1)  # tanh values: -1 is the smallest
        return code, torch.tanh(self.context(torch.cat([mean, largest, shared], dim=1)))


class ActorNetwork(ClassEncoder):
    """Mean action (B, K + 4) in (-1, 1), which is 0 at the start of training."""

    def __init__(self) -> None:
        super().__init__()
        self.share_1 = nn.Linear(2 * WIDTH, WIDTH)
        self.share_2 = nn.Linear(WIDTH, 1)
        self.overall = nn.Linear(WIDTH, OVERALL[1])
        for last in (self.share_2, self.overall):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, flat: Tensor) -> Tensor:
        """Changes of the log shares, of the hardness, of the importance exponents and of the half-life."""
        code, context = self.encode(flat)
        joined = torch.cat([code, context[:, None].expand(-1, code.shape[1], -1)], dim=2)
        share = self.share_2(torch.tanh(self.share_1(joined)))[:, :, 0]
        _, _, present = split_flat(flat)
        # Adding the same number to every log share changes nothing, so the mean is removed.
        mean = (share * present).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp_min(1.0)
        return torch.tanh(torch.cat([(share - mean) * present, self.overall(context)], dim=1))


class CriticNetwork(ClassEncoder):
    """Value (B, 1) of observations."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, flat: Tensor) -> Tensor:
        """Expected return from the observations on."""
        _, context = self.encode(flat)
        value: Tensor = self.value(context)
        return value


class ClassWeightsPolicy(ActorCriticPolicy):
    """Stable-Baselines3 policy for ``balancer/ClassWeights-v1`` and ``PopulationVecEnv``."""

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor, self.critic = ActorNetwork(), CriticNetwork()
        self.log_std = nn.Parameter(torch.full((1 + OVERALL[1],), math.log(INITIAL_STD)))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def get_distribution(self, obs: Any) -> DiagGaussianDistribution:
        """Gaussian around the actor's mean; all log shares have one scale, every other number has its own."""
        mean = self.actor(obs)
        log_std = torch.cat([self.log_std[:1].expand(mean.shape[1] - OVERALL[1]), self.log_std[1:]])
        _, _, present = split_flat(obs)
        distribution = PresentGaussian(torch.cat([present, present.new_ones(len(present), OVERALL[1])], dim=1))
        return distribution.proba_distribution(mean, log_std)

    def predict_values(self, obs: Any) -> Tensor:
        """Value (B, 1) of observations."""
        value: Tensor = self.critic(obs)
        return value

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log-probabilities."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.critic(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropy of ``actions``."""
        distribution = self.get_distribution(obs)
        return self.critic(obs), distribution.log_prob(actions), distribution.entropy()
