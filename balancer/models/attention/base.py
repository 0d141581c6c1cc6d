"""Interface of attention: a causal map from one `SequenceBatch` to another.

State-space models and moving averages can implement it as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from balancer.errors import UnsupportedError
from balancer.models.batch import SequenceBatch


class Attended(NamedTuple):
    """Attention of T queries to S slots each, in no particular order."""

    position: Tensor
    """(T, S) int64: position of the key in its sequence, -1 for an empty slot."""
    mass: Tensor
    """(T, S) float32: attention, averaged over heads, summing to 1 over the slots; 0 in empty slots."""
    is_global: Tensor
    """(T, S) bool: whether the key was attended as a global node."""


class Attention(nn.Module, ABC):
    """Base class of attentions: each position becomes a function of itself and earlier positions.

    The tests in `tests/models/attention/test_registered.py` apply to every registered attention: no position
    depends on a later one, padding has no effect, a row of padding gives zeros, and `last_only` equals the
    full computation at the last real position.
    """

    @abstractmethod
    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        """Map (B, n, d) to (B, n, d), or to (B, 1, d) for the last real position of each row.

        Args:
            batch: finite values, left-aligned.
            last_only: compute only the last real position; the last block of a classifier needs no more.
        """

    def attended(self, batch: SequenceBatch, row: Tensor, position: Tensor) -> Attended:
        """Compute the attention weights of single queries.

        Args:
            batch: input of the attention.
            row: (T,) row of each query.
            position: (T,) position of each query.

        Raises:
            UnsupportedError: This attention has no weights.
        """
        raise UnsupportedError(f"{type(self).__name__} has no attention weights; use attention 'dense', 'window' or 'sparse'")

    def init_state(self, batch_size: int) -> Any:
        """Initial state of `batch_size` empty sequences, for :meth:`step`.

        Its size does not grow with the sequence.

        Raises:
            UnsupportedError: This attention needs the whole sequence.
        """
        raise self._no_streaming()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one token (B, d) of each sequence.

        Returns:
            The result (B, d), equal to that of :meth:`forward` at this position up to rounding, and the new
            state.

        Raises:
            UnsupportedError: This attention needs the whole sequence.
        """
        raise self._no_streaming()

    def read(self, batch: SequenceBatch) -> Any:
        """Compute the state after one whole sequence, a batch of one (1, n, d), in one pass.

        The state equals that after n calls of :meth:`step`, up to rounding.

        Raises:
            UnsupportedError: This attention needs the whole sequence.
        """
        raise self._no_streaming()

    def _no_streaming(self) -> UnsupportedError:
        return UnsupportedError(f"{type(self).__name__} has no state of constant size for streaming; use attention 'sparse' or 'window'")
