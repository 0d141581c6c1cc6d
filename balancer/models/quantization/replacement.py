"""What all layers in low precision have in common.

Every such layer takes what the layer takes that it replaces, batches without rows too, and returns the dtype
that it would return. ``weight`` is the weight as code for the replaced layer expects it, in its dtype; the
stored one, which may be INT8 without its scale, is ``stored``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


class Replacement(nn.Module):
    """Base class of layers in low precision.

    Conversions of the model's dtype (``model.half()``) change the dtype that the layer returns; its own
    tensors keep theirs, because scales in float16 would be wrong.

    Args:
        dtype: dtype of the replaced layer.
    """

    full_dtype: torch.dtype

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.full_dtype = dtype

    def own_buffers(self) -> Iterator[tuple[nn.Module, str]]:
        """Modules and names of the tensors that keep their dtype."""
        for name in ("stored", "scale", "stored_bias"):
            if self._buffers.get(name) is not None:
                yield self, name

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Replacement:
        """Move the layer, and change its dtype; see the class."""
        before = [(module, name, module.get_buffer(name)) for module, name in self.own_buffers()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, tensor in before:
            moved = module.get_buffer(name)
            module._buffers[name] = tensor if moved.device == tensor.device else _moved(tensor, moved)
        self.full_dtype = fn(torch.empty(0, dtype=self.full_dtype, device=before[0][2].device)).dtype
        return self


_MOVED = WeakTensorKeyDictionary()
"""Copies on another device of tensors that still exist, because another layer shares them."""


def _moved(tensor: Tensor, moved: Tensor) -> Tensor:
    """Return the copy of a tensor on the device of ``moved``: the same one for all layers that share it."""
    made: Tensor | None = _MOVED.get(tensor)
    if made is None or made.device != moved.device:
        made = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        _MOVED[tensor] = made
    return made


class Weighted(Replacement):
    """A layer whose weight is ``stored``, with the scales of its rows if that is INT8."""

    stored: Tensor
    scale: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The weight (R, d) in the dtype of the replaced layer, computed at each access."""
        if self.scale is None:
            return self.stored.to(self.full_dtype)
        return (self.stored.float() * self.scale[:, None]).to(self.full_dtype)

    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"stored": "weight"})
    """Names on disk and in state dicts, those of the full-precision layer, by the names of buffers."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for buffer, name in self.renamed.items():
            if prefix + buffer in destination:
                destination[prefix + name] = destination.pop(prefix + buffer)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for buffer, name in self.renamed.items():
            if prefix + name in state_dict:
                state_dict[prefix + buffer] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *others)
