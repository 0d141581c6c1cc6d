"""The interface of attention: a causal map from one `SequenceBatch` to another.

Any module that keeps it can take the place of the ones here: state-space models and moving averages too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from balancer.models.batch import SequenceBatch


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
