"""The interface of attention: a causal map from one `SequenceBatch` to another.

Any module that keeps it can take the place of the ones here: state-space models and moving averages too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from balancer.errors import UnsupportedError
from balancer.models.batch import SequenceBatch


class Attended(NamedTuple):
    """What some queries looked at; S slots each, in no order."""

    position: Tensor
    """(T, S) int64: position of the key in its sequence, -1 for an empty slot."""
    mass: Tensor
    """(T, S) float32: attention, mean over the heads, summing to 1 over the slots; 0 in empty ones."""
    is_global: Tensor
    """(T, S) bool: whether the key was seen as a global node."""


class Attention(nn.Module, ABC):
    """Mixes positions, each with what came before it.

    The common tests in `tests/test_models_attention.py` hold for every registered one: no position depends on a later one, padding changes
    nothing, a row of padding gives zeros, and `last_only` gives what the whole computation gives at the last real position.
    """

    @abstractmethod
    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        """Mix (B, n, d) to (B, n, d), or to (B, 1, d) for the last real position alone.

        Args:
            batch: finite values, left-aligned.
            last_only: compute only what the target needs; the last block of a classifier asks for no more.
        """

    def attended(self, batch: SequenceBatch, row: Tensor, position: Tensor) -> Attended:
        """Where the queries at (row (T,), position (T,)) of `batch` look, without computing the others.

        Raises:
            UnsupportedError: This attention has no weights to show.
        """
        raise UnsupportedError(f"{type(self).__name__} has no attention weights to show; use attention 'dense', 'window' or 'sparse'")

    def init_state(self, batch_size: int) -> Any:
        """The state of `batch_size` sequences before their first token, for `step`; its size does not grow with what is read.

        Raises:
            UnsupportedError: This attention needs the whole past.
        """
        raise UnsupportedError(f"{type(self).__name__} has no state of constant size to stream with; use attention 'sparse' or 'window'")

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one token (B, d) of each sequence; what `forward` gives at its position, (B, d), and the state after it."""
        raise UnsupportedError(f"{type(self).__name__} has no state of constant size to stream with; use attention 'sparse' or 'window'")

    def read(self, batch: SequenceBatch) -> Any:
        """The state after the whole of one sequence, a batch of one (1, n, d), as n times `step` would leave it, up to rounding.

        Raises:
            UnsupportedError: This attention needs the whole past.
        """
        raise UnsupportedError(f"{type(self).__name__} has no state of constant size to stream with; use attention 'sparse' or 'window'")
