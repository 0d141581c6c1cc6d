"""A model's memory of one entity as bytes, and back: raw numbers in the order of the model's own state, nothing that could run."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from balancer.inference.streaming import RowState, RowStream


def pack(state: RowState) -> bytes:
    """The numbers of a state, one after another."""
    leaves = [state.fields, *tree_flatten(state.states)[0]]
    return b"".join(leaf.detach().cpu().contiguous().numpy().tobytes() for leaf in leaves)


def unpack(content: bytes, position: int, stream: RowStream) -> RowState | None:
    """The state after `position` rows that `pack` wrote for the same model; None where the length is not that of such a state."""
    start = stream.start()
    if not stream.has_state:
        width = start.fields.shape[1] * start.fields.element_size()
        if len(content) % width:
            return None
        fields = np.frombuffer(content, np.float32).reshape(-1, start.fields.shape[1])
        return RowState(position, torch.tensor(fields, device=stream.device), [])
    like, structure = _form(stream, stream.num_segments(position - 1))
    if len(content) != sum(leaf.numel() * leaf.element_size() for leaf in like):
        return None
    leaves, place = [], 0
    for leaf in like:
        size = leaf.numel() * leaf.element_size()
        leaves.append(_tensor(content[place : place + size], leaf))
        place += size
    return RowState(position, start.fields, tree_unflatten(leaves, structure))


@lru_cache(maxsize=16)
def _form(stream: RowStream, stretches: int) -> tuple[list[Tensor], TreeSpec]:
    """Tensors like those of a state of so many stretches, and how they hang together."""
    return tree_flatten(stream.model.init_state(stretches))


def _tensor(content: bytes, like: Tensor) -> Tensor:
    """A tensor with memory of its own, aligned as torch does it: the last bits of a product may depend on that."""
    if not content:
        return torch.empty_like(like)
    return torch.frombuffer(bytearray(content), dtype=like.dtype).reshape(like.shape).clone().to(like.device)
