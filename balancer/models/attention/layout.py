"""Which keys a query sees beside the global nodes: always one interval, in every mode.

That a window is an interval is what all backends rest on: a key belongs to a query's window when `first <= key <= last`, so a global node
inside it is told by two comparisons and never counted twice.
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
    """The local windows and the chunks of a sparse attention.

    Queries t of chunk `t // chunk` share one set of global nodes. Causal, these are chosen among tokens before the chunk's first query;
    with `chunk <= window` there is no blind spot: what has left a query's window is a candidate. (In `block` mode let `chunk` divide `window`, else the few
    tokens between a chunk's start and a block's are out of sight until the next chunk.)
    """

    window: int = 64
    """Keys in a full window, the query's own included."""
    chunk: int = 64
    """Queries that share a set of global nodes (causal only), at most `window`."""
    causal: bool = True
    """Whether a query sees nothing after itself."""
    mode: Mode = "sliding"
    """`sliding`: the last `window` tokens, or as many around the query; `block`: the query's own block of `window` tokens."""

    def __post_init__(self) -> None:
        for name, given in (("window", self.window), ("chunk", self.chunk)):
            if not isinstance(given, int):
                raise InputError(f"{name} must be a whole number of tokens, given {given!r}")
        if self.window < 1:
            raise InputError(f"window must be at least 1, given {self.window}")
        if not 1 <= self.chunk <= self.window:
            raise InputError(
                f"chunk must be from 1 to window ({self.window}), given {self.chunk}: between them a token could be seen by none"
            )
        if self.mode not in ("sliding", "block"):
            raise InputError(f"mode must be sliding or block, given {self.mode!r}")

    def num_chunks(self, length: int) -> int:
        """Sets of global nodes for `length` tokens: one per chunk, or one for all where nothing is causal."""
        return -(-length // self.chunk) if self.causal else 1

    def bounds(self, length: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """First and last key (n,) int64 of each query's window, both included.

        Causal `sliding`: t - window + 1 to t. Causal `block`: the block's start to t. Else `block`: the whole block, and `sliding`:
        t - window // 2 to t + (window - 1) // 2, which is `window` keys.
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
