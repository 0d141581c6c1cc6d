"""A gated recurrent unit in the place of attention, as a control of what attention gives."""

from __future__ import annotations

from torch import Tensor, nn

from balancer.models import Attention, ModelConfig, SequenceBatch


class RecurrentUnit(Attention):
    """One layer of a GRU (Cho et al. 2014) over the positions, then a linear layer.

    A position's state is a function of it and of earlier positions, so the map is causal, and padding, which
    follows the last real position, has no effect.

    Args:
        config: Configuration of the classifier; `d_model` is the width of the state.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.unit = nn.GRU(config.d_model, config.d_model, batch_first=True)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        """Map (B, n, d) to (B, n, d), or to (B, 1, d) for the last real position of each row."""
        states: Tensor = self.unit(batch.values)[0]
        if last_only:
            last = batch.with_values(states).last()
            return last.with_values(self.out(last.values))
        return batch.with_values(self.out(states))
