"""The weight and the bias that a layer uses in its forward pass, also where other tensors determine them.

`torch.nn.utils.weight_norm`, `spectral_norm`, `prune` and `parametrize`, and our low-rank adapters, compute
the weight before or during each forward pass. What the attribute ``weight`` holds in between may be out of
date.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm

from balancer.errors import InputError
from balancer.models.adapter import GAIN, AdaptedLinear

_STATE_HOOKS = (SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)
_SUFFIXES = ("", "_g", "_v", "_u", "_orig", "_mask")
"""Ends of the names of the tensors that determine a weight or a bias."""


def plain_type(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module, without parametrizations and adapters."""
    kind: type[nn.Module] = parametrize.type_before_parametrizations(module)
    return nn.Linear if kind is AdaptedLinear else kind


def source(module: nn.Module, name: str) -> Tensor:
    """Return a stored tensor that the weight or bias `name` is computed from; it has its dtype and device."""
    if parametrize.is_parametrized(module, name):
        originals = module.get_submodule(f"parametrizations.{name}")
        return next(chain(originals.parameters(recurse=False), originals.buffers(recurse=False)))
    for suffix in ("_v", "_orig", ""):
        tensor = module._parameters.get(name + suffix)
        if tensor is not None:
            return tensor
    held = getattr(module, name)
    assert isinstance(held, Tensor)
    return held


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether the weight or bias `name` is computed from other tensors."""
    adapted = name == "weight" and isinstance(module, AdaptedLinear)
    return adapted or parametrize.is_parametrized(module, name) or _computing_hook(module, name) is not None


def used(module: nn.Module, name: str) -> Tensor | None:
    """Compute the weight or bias `name` as the forward pass in evaluation mode does.

    The module is not changed.

    Returns:
        The tensor, or None if the layer has no bias.
    """
    hook = _computing_hook(module, name)
    with torch.no_grad():
        if isinstance(hook, SpectralNorm):
            value = hook.compute_weight(module, do_power_iteration=False)
        elif isinstance(hook, WeightNorm):
            value = hook.compute_weight(module)
        elif isinstance(hook, BasePruningMethod):
            value = hook.apply_mask(module)
        elif parametrize.is_parametrized(module, name):
            with evaluating(module.get_submodule(f"parametrizations.{name}")):
                value = getattr(module, name)
        else:
            value = getattr(module, name)
        if name == "weight" and isinstance(module, AdaptedLinear):
            value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
            value = value + GAIN * module.adapter_up.to(value.dtype) @ module.adapter_down.to(value.dtype)
        return None if value is None else value.detach()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode in a with block; afterwards each part has its own mode again."""
    training = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, flag in training:
            part.training = flag


def is_computing_hook(hook: object) -> bool:
    """Whether a hook belongs to a computed weight, so that a layer with a fixed weight must not have it."""
    inner = getattr(hook, "hook", hook)  # torch wraps some hooks
    of_torch = getattr(inner, "__module__", "") == "torch.nn.utils.parametrizations"
    return of_torch or isinstance(inner, (WeightNorm, SpectralNorm, BasePruningMethod, *_STATE_HOOKS))


def names_of_sources(module: nn.Module) -> set[str]:
    """Names of all tensors and submodules that determine weight and bias of a Linear or Embedding."""
    names = {"parametrizations", "adapter_up", "adapter_down"} if isinstance(module, AdaptedLinear) else {"parametrizations"}
    for name in ("weight", "bias"):
        suffixes = _SUFFIXES if _computing_hook(module, name) is not None else ("",)
        names |= {name + suffix for suffix in suffixes}
    return names


def check_computable(name: str, module: nn.Module) -> None:
    """Check that weight and bias of a Linear or Embedding are parameters, or computed in a known way.

    Raises:
        InputError: They are not.
    """
    for tensor in ("weight", "bias"):
        hooks = [
            hook for hook in module._forward_pre_hooks.values() if getattr(hook, "name", getattr(hook, "_tensor_name", None)) == tensor
        ]
        if sum(map(is_computing_hook, hooks)) > 1:
            raise InputError(f"{name}.{tensor} is computed by several hooks: remove all but one, e.g. by torch.nn.utils.remove_weight_norm")
        if not is_computed(module, tensor) and tensor in vars(module) and vars(module)[tensor] is not None:
            raise InputError(
                f"{name}.{tensor} is a plain tensor that other code may compute anew in each forward pass: "
                f"make it an nn.Parameter, by the function that undoes its computation"
            )
    if parametrize.is_parametrized(module):
        parametrizations = module.get_submodule("parametrizations")
        others = set(dict(parametrizations.named_children())) - {"weight", "bias"}
        hooked = any(_has_hooks(part) for part in parametrizations.modules())
        if others or hooked:
            what = "a hook on a parametrization" if hooked else f"a parametrization of {', '.join(sorted(others))}"
            raise InputError(
                f"{name} has {what}, which a quantized layer does not run: call torch.nn.utils.parametrize.remove_parametrizations first"
            )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _computing_hook(module: nn.Module, name: str) -> object | None:
    """Return the pre-hook of torch that computes the weight or bias `name`."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)) and hook.name == name:
            return hook
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook
    return None
