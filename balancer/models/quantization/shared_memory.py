"""Weights that share memory: find them, and keep them shared when a model is copied."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Hashable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from balancer.errors import InputError, reason_of


class Span(NamedTuple):
    """Part of a storage that a tensor uses, in bytes."""

    storage: int
    start: int
    stop: int

    def overlaps(self, other: Span) -> bool:
        """Whether both use a common byte."""
        return self.storage == other.storage and self.start < other.stop and other.start < self.stop


def span_of(tensor: Tensor) -> Span | None:
    """Return the part of a storage that a tensor uses; None if it has no elements or no plain storage."""
    if not tensor.numel() or tensor.layout != torch.strided or nn.parameter.is_lazy(tensor):
        return None
    first = tensor.storage_offset()
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    width = tensor.element_size()
    return Span(tensor.untyped_storage()._cdata, int(first) * width, (int(last) + 1) * width)


def memory_key(tensor: Tensor) -> Hashable:
    """Return equal keys for tensors that are equal because they use the same memory in the same way."""
    span = span_of(tensor)
    return id(tensor) if span is None else (span, tensor.dtype, tensor.shape, tensor.stride())


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of parameters, buffers and plain attributes; shared modules only once."""
    for prefix, module in model.named_modules():
        for group in (module._parameters, module._buffers, vars(module)):
            for name, tensor in group.items():
                if isinstance(tensor, Tensor):
                    yield f"{prefix}.{name}" if prefix else name, tensor


def copied(model: nn.Module) -> nn.Module:
    """Copy a model like `copy.deepcopy`, with two differences.

    Tensors that are results of computations, as pruned weights are after a forward pass, are copied without
    their history. Parameters that share memory without being the same object share it in the copy, too.

    Raises:
        InputError: An attribute of the model can't be copied.
    """
    memo: dict[int, object] = {}
    storages: dict[int, torch.UntypedStorage] = {}
    by_storage = defaultdict(list)
    for _, tensor in named_tensors(model):
        span = span_of(tensor)
        if not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone()
        elif span is not None and isinstance(tensor, nn.Parameter):
            by_storage[span.storage].append((tensor, span))
    for storage, users in by_storage.items():
        for parameter, span in users:
            if any(other is not parameter and span.overlaps(theirs) for other, theirs in users):
                if storage not in storages:
                    storages[storage] = parameter.detach().untyped_storage().clone()
                view = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
                view.set_(storages[storage], parameter.storage_offset(), parameter.shape, parameter.stride())
                memo[id(parameter)] = nn.Parameter(view, requires_grad=parameter.requires_grad)
    try:
        duplicate: nn.Module = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, NotImplementedError) as error:  # what copy.deepcopy raises, by the kind of object
        raise InputError(
            f"the model can't be copied ({reason_of(error)}): remove the attribute, e.g. a lock or an open file, before quantizing"
        ) from error
    return duplicate
