"""Sampling: what a policy sees, what it chooses, and how rows are drawn.

NumPy alone; torch is used only in the modules ``torch_...`` and ``stream...``, ``core_view``,
``loader_count`` and ``losses``. ``AdaptiveSampler``, ``AdaptiveBatchSampler``,
``DistributedAdaptiveBatchSampler``, ``AdaptiveStream`` and ``AdaptiveLoss`` (torch), ``AdaptiveResampler``
(imbalanced-learn) and ``AdaptiveClassifier`` (scikit-learn) can be imported from here too; their libraries
are loaded when such a name is first used.
"""

import importlib

from balancer.deprecation import deprecated_attribute
from balancer.sampling.controller import SamplingController
from balancer.sampling.core import SamplerCore
from balancer.sampling.observation import Observation, ScoredRows
from balancer.sampling.policies import Policy, load_policy
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.weights import SamplingWeights, class_prior

__all__ = [
    "Observation",
    "Policy",
    "RowSampler",
    "SamplerCore",
    "SamplingController",
    "SamplingWeights",
    "ScoredRows",
    "class_prior",
    "load_policy",
]

_LAZY = (
    "AdaptiveBatchSampler",
    "AdaptiveClassifier",
    "AdaptiveLoss",
    "AdaptiveResampler",
    "AdaptiveSampler",
    "AdaptiveStream",
    "DistributedAdaptiveBatchSampler",
)


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        return deprecated_attribute(__name__, name)
    return getattr(importlib.import_module("balancer"), name)
