"""What `flex_attention` does while torch compiles a function that calls it.

This module is imported then only: its decorators load the compiler, which takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from balancer.errors import UnsupportedError
from balancer.models.attention import flex_blocks
from balancer.models.attention.flex_plan import made

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

UNCOMPILED = "flex_attention with a score_mod, float64 or without its kernel is not compiled: call it outside the compiled function"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_spread(block_mask: BlockMask) -> bool:
    """Return whether the plan of a mask is for one batch size and number of heads only."""
    if "kv_indices" not in vars(block_mask):
        raise UnsupportedError("flex_attention needs a block_mask that is made before the compiled function is called, not inside it")
    return made(block_mask, (1, 1))[1]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def constant_plan(block_mask: BlockMask, batch: int, heads: int) -> Tensor:
    """Return the plan of a mask; the compiled function is for this mask only."""
    return made(block_mask, (batch, heads))[0]


@torch.compiler.disable(reason=UNCOMPILED)  # type: ignore[untyped-decorator]
def attend(
    query: Tensor, key: Tensor, value: Tensor, score_mod: flex_blocks.ScoreMod | None, plan: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute what the kernel does not, outside the compiled graph."""
    return flex_blocks.attend(query, key, value, score_mod, plan, scale)
