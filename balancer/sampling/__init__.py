"""Sampling: what a policy sees, what it chooses, and how rows are drawn by it. NumPy alone; torch only in ``torch_sampler``."""

from balancer.sampling.controller import SamplingController
from balancer.sampling.embedded import EmbeddedSampler
from balancer.sampling.observation import Observation, ScoredRows
from balancer.sampling.policies import Policy, load_policy
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.weights import SamplingWeights, class_prior

__all__ = [
    "EmbeddedSampler",
    "Observation",
    "Policy",
    "RowSampler",
    "SamplingController",
    "SamplingWeights",
    "ScoredRows",
    "class_prior",
    "load_policy",
]
