"""Learns how to sample imbalanced data while a model trains on it.

Importing the package loads neither NumPy nor torch: the public names below are resolved on first use (PEP 562), so
`balancer --help` answers at once and a training loop that embeds only the sampler pays only for the sampler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balancer.errors import InputError
    from balancer.integrations.classifier import AdaptiveClassifier
    from balancer.integrations.resampler import AdaptiveResampler
    from balancer.sampling.controller import SamplingController
    from balancer.sampling.core import EmbeddedSampler
    from balancer.sampling.policies import load_policy
    from balancer.sampling.row_sampler import RowSampler
    from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler

__version__ = "0.1.0"

__all__ = [
    "AdaptiveBatchSampler",
    "AdaptiveClassifier",
    "AdaptiveResampler",
    "AdaptiveSampler",
    "EmbeddedSampler",
    "InputError",
    "RowSampler",
    "SamplingController",
    "__version__",
    "load_policy",
]

_HOME = {
    "AdaptiveBatchSampler": "balancer.sampling.torch_sampler",
    "AdaptiveClassifier": "balancer.integrations.classifier",
    "AdaptiveResampler": "balancer.integrations.resampler",
    "AdaptiveSampler": "balancer.sampling.torch_sampler",
    "EmbeddedSampler": "balancer.sampling.core",
    "InputError": "balancer.errors",
    "RowSampler": "balancer.sampling.row_sampler",
    "SamplingController": "balancer.sampling.controller",
    "load_policy": "balancer.sampling.policies",
}


if not TYPE_CHECKING:  # a type checker goes by the imports above, and so notices a misspelt name

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # the next look-up is a plain one
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
