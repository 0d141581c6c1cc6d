"""Carry over hooks and attributes from a layer to its replacement."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from torch.nn.modules.module import _WrappedHook

from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.quantization.used_weights import is_computing_hook, names_of_sources, plain_type

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_OF_HOOKS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
"""Properties of hooks, by the number of the hook."""
STATE_HOOKS = ("_state_dict_pre_hooks", "_state_dict_hooks")
"""Hooks that act when a state dict is made."""


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Give `new` the hooks of `old`, in their order, and the attributes, tensors and submodules added to it.

    Hooks that compute the weight of `old` are left out. The training flag is that of `old`.
    """
    new.training = old.training
    for kind in _HOOKS:
        hooks = [(number, hook) for number, hook in getattr(old, kind).items() if not is_computing_hook(hook)]
        object.__setattr__(new, kind, OrderedDict((number, _bound_to(hook, new)) for number, hook in hooks))
    for kind in _OF_HOOKS:
        object.__setattr__(new, kind, OrderedDict(getattr(old, kind)))
    object.__setattr__(new, "_is_full_backward_hook", old._is_full_backward_hook)
    sources = {"slope", "step", "places", "parametrizations"} if isinstance(old, PiecewiseLinearEncoder) else names_of_sources(old)
    usual = _usual_attributes(plain_type(old)) | sources
    for name, value in vars(old).items():
        if name not in usual and name not in vars(new):
            object.__setattr__(new, name, value)
    for group in ("_parameters", "_buffers", "_modules"):
        for name, value in getattr(old, group).items():
            if name not in sources and value is not None:
                getattr(new, group)[name] = value
    new._non_persistent_buffers_set |= old._non_persistent_buffers_set - sources


def _bound_to(hook: Any, module: nn.Module) -> Any:
    """Return a hook that gets its module by a weak reference, with another module."""
    return _WrappedHook(hook.hook, module) if isinstance(hook, _WrappedHook) and hook.with_module else hook


def _usual_attributes(kind: type[nn.Module]) -> frozenset[str]:
    """Names of attributes that every module of a class has."""
    if kind is nn.Linear:
        return frozenset(vars(nn.Linear(1, 1, device="meta")))
    if kind is nn.Embedding:
        return frozenset(vars(nn.Embedding(1, 1, device="meta")))
    return frozenset(vars(nn.Module()))
