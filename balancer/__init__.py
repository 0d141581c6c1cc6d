"""Learn how to sample imbalanced data while a model trains on it.

Importing the package loads neither NumPy nor torch: each public name below is imported when it is first used
(PEP 562). So `balancer --help` answers at once, and a program that uses only the sampler loads only the
sampler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from balancer.deprecation import deprecated_attribute, install

if TYPE_CHECKING:
    from balancer.errors import CorruptFileError, InputError, MissingDependencyError, MissingFileError, UnsupportedError
    from balancer.integrations.classifier import AdaptiveClassifier
    from balancer.integrations.remote import RemoteSampler
    from balancer.integrations.resampler import AdaptiveResampler
    from balancer.sampling.core import SamplerCore
    from balancer.sampling.losses import AdaptiveLoss
    from balancer.sampling.policies import Policy, load_policy
    from balancer.sampling.stream import AdaptiveStream
    from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler, DistributedAdaptiveBatchSampler
    from balancer.sampling.weights import SamplingWeights

__version__ = "0.2.0"

__all__ = [
    "AdaptiveBatchSampler",
    "AdaptiveClassifier",
    "AdaptiveLoss",
    "AdaptiveResampler",
    "AdaptiveSampler",
    "AdaptiveStream",
    "CorruptFileError",
    "DistributedAdaptiveBatchSampler",
    "InputError",
    "MissingDependencyError",
    "MissingFileError",
    "Policy",
    "RemoteSampler",
    "SamplerCore",
    "SamplingWeights",
    "UnsupportedError",
    "__version__",
    "load_policy",
]

_HOME = {
    "AdaptiveBatchSampler": "balancer.sampling.torch_sampler",
    "AdaptiveClassifier": "balancer.integrations.classifier",
    "AdaptiveLoss": "balancer.sampling.losses",
    "AdaptiveResampler": "balancer.integrations.resampler",
    "AdaptiveSampler": "balancer.sampling.torch_sampler",
    "AdaptiveStream": "balancer.sampling.stream",
    "CorruptFileError": "balancer.errors",
    "DistributedAdaptiveBatchSampler": "balancer.sampling.torch_sampler",
    "InputError": "balancer.errors",
    "MissingDependencyError": "balancer.errors",
    "MissingFileError": "balancer.errors",
    "Policy": "balancer.sampling.policies",
    "RemoteSampler": "balancer.integrations.remote",
    "SamplerCore": "balancer.sampling.core",
    "SamplingWeights": "balancer.sampling.weights",
    "UnsupportedError": "balancer.errors",
    "load_policy": "balancer.sampling.policies",
}
"""Public name to the module that defines it."""

install()

if not TYPE_CHECKING:  # `from balancer import *` and `help(balancer)` show what can be imported in this environment
    from balancer.dependencies import is_installed

    _NEEDS = {"AdaptiveClassifier": "sklearn", "AdaptiveLoss": "torch", "AdaptiveResampler": "imblearn"}
    __all__ = [name for name in __all__ if name not in _NEEDS or is_installed(_NEEDS[name])]

if not TYPE_CHECKING:  # type checkers read the imports above instead, and so report a misspelt name

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            return deprecated_attribute(__name__, name)
        from balancer.dependencies import explained_imports

        with explained_imports(name):
            value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # the next access does not come here
        return value


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | {*__all__})
