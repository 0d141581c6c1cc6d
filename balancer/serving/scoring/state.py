"""Convert the state of a model for one entity to bytes and back: raw numbers, no executable content.

The bytes begin with a mark, so that the state of the native step is never taken for one of torch's step, or
the other way round. What is not recognized is computed again from the stored rows.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from balancer.inference.streaming import RowState, RowStream

TORCH_MARK = b"bstt\x01"
"""First bytes of a state of torch's step: its name and the version of the format."""


def pack(state: RowState) -> bytes:
    """Concatenate the numbers of a state, after the mark of its format.

    The native step leaves out the next segment, which is half of a long state and can be read from its rows.
    """
    if state.native is not None:
        return state.native.to_bytes(current_only=True)
    leaves = [state.fields, *tree_flatten(state.states)[0]]
    return TORCH_MARK + b"".join(leaf.detach().cpu().contiguous().numpy().tobytes() for leaf in leaves)


def unpack(content: bytes, position: int, stream: RowStream, fields: NDArray[np.float32] | None = None) -> RowState | None:
    """Restore the state after `position` rows from `pack`.

    Args:
        content: The bytes.
        position: Number of rows.
        stream: Reads the rows.
        fields: (m, C) the rows from `stream.next_begins(position)` to the last of these.

    Returns:
        The state; None if the bytes are of another format than the stream's, or do not match the model.
    """
    if stream.uses == "native":
        return stream.unpack(content, position, fields)
    if not content.startswith(TORCH_MARK):
        return None
    content = content[len(TORCH_MARK) :]
    start = stream.start()
    if not stream.has_state:
        width = start.fields.shape[1] * start.fields.element_size()
        if len(content) % width:
            return None
        fields = np.frombuffer(content, np.float32).reshape(-1, start.fields.shape[1])
        return RowState(position, torch.tensor(fields, device=stream.device), [])
    like, structure = _template(stream, stream.num_segments(position - 1))
    if len(content) != sum(leaf.numel() * leaf.element_size() for leaf in like):
        return None
    leaves, place = [], 0
    for leaf in like:
        size = leaf.numel() * leaf.element_size()
        leaves.append(_tensor(content[place : place + size], leaf))
        place += size
    return RowState(position, start.fields, tree_unflatten(leaves, structure))


@lru_cache(maxsize=16)
def _template(stream: RowStream, segments: int) -> tuple[list[Tensor], TreeSpec]:
    """Return tensors with the shapes of a state of some segments, and their tree structure."""
    return tree_flatten(stream.model.init_state(segments))


def _tensor(content: bytes, like: Tensor) -> Tensor:
    """Copy into memory aligned by torch: the last bits of a product may depend on the alignment."""
    if not content:
        return torch.empty_like(like)
    return torch.frombuffer(bytearray(content), dtype=like.dtype).reshape(like.shape).clone().to(like.device)
