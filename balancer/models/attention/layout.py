"""Keys that a query attends to locally: one interval in every mode.

All backends rely on this: a key belongs to a query's window if `first <= key <= last`. Two comparisons
therefore find a global node inside the window, so that it is not counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from balancer.errors import InputError

Mode = Literal["sliding", "block"]


@dataclass(frozen=True)
class Layout:
    """Local windows and chunks of a sparse attention.

    Queries t with the same chunk `t // chunk` share one set of global nodes. In the causal case these are
    selected among the tokens before the chunk's first query. With `chunk <= window` every token that has left
    a query's window can be selected. In `block` mode `chunk` should divide `window`; otherwise the tokens
    between the start of a chunk and the start of a block can't be attended to until the next chunk.
    """

    window: int = 64
    """Number of keys in a full window, including the query's position."""
    chunk: int = 64
    """Number of queries that share global nodes (causal only), at most `window`."""
    causal: bool = True
    """Whether a query attends only to itself and earlier tokens."""
    mode: Mode = "sliding"
    """`sliding`: the last `window` tokens, or as many around the query; `block`: the query's block."""

    def __post_init__(self) -> None:
        for name, given in (("window", self.window), ("chunk", self.chunk)):
            if not isinstance(given, int):
                raise InputError(f"{name} must be a whole number of tokens, given {given!r}")
        if self.window < 1:
            raise InputError(f"window must be at least 1, given {self.window}")
        if not 1 <= self.chunk <= self.window:
            raise InputError(
                f"chunk must be from 1 to window ({self.window}), given {self.chunk}: with a larger chunk some tokens are never attended to"
            )
        if self.mode not in ("sliding", "block"):
            raise InputError(f"mode must be sliding or block, given {self.mode!r}")

    def num_chunks(self, length: int) -> int:
        """Number of sets of global nodes: one per chunk, or a single one if not causal."""
        return -(-length // self.chunk) if self.causal else 1

    def bounds(self, length: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """First and last key (n,) int64 of each query's window, both inclusive.

        For query t:

        - causal `sliding`: t - window + 1 to t;
        - causal `block`: start of the block to t;
        - `sliding`: t - window // 2 to t + (window - 1) // 2, which is `window` keys;
        - `block`: the whole block.
        """
        at = torch.arange(length, device=device)
        block = at // self.window * self.window
        if self.mode == "block":
            first, last = block, block + self.window - 1
        elif self.causal:
            first, last = at - self.window + 1, at
        else:
            first, last = at - self.window // 2, at + (self.window - 1) // 2
        return first.clamp(min=0), (at if self.causal else last.clamp(max=length - 1))
