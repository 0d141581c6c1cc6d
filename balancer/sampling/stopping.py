"""When a training may stop: the epoch with the best validation figure, and how long ago it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST_PATIENCE = 3
PATIENCE_PART = 4
"""Without a given patience: this fraction (one divided by it) of the epochs, at least LEAST_PATIENCE."""


class Stopping:
    """Follows a validation figure over the epochs; larger is better.

    Args:
        epochs: Number of epochs of the training.
        patience: Epochs without a better figure after which the training is finished; None: a quarter of the
            epochs, at least three.

    >>> stopping = Stopping(10, patience=2)
    >>> for figure in (0.5, 0.7, 0.6, 0.65):
    ...     stopping.update(figure)
    >>> stopping.best_epoch, stopping.improved, stopping.finished
    (1, False, True)
    """

    def __init__(self, epochs: int, patience: int | None = None) -> None:
        self.epochs = epochs
        self.patience = max(LEAST_PATIENCE, -(-epochs // PATIENCE_PART)) if patience is None else patience
        self._figures: list[float] = []

    def update(self, figure: float) -> None:
        """Add the figure of the next epoch."""
        self._figures.append(float(figure))

    def __repr__(self) -> str:
        """Epochs so far, the best one, and whether the training may stop."""
        done = len(self._figures)
        return f"Stopping({done} of {self.epochs}, best_epoch={self.best_epoch}, patience={self.patience}, finished={self.finished})"

    @property
    def best_epoch(self) -> int | None:
        """Number, from 0, of the epoch with the best figure, the earliest of equals; None before any."""
        return max(range(len(self._figures)), key=self._figures.__getitem__) if self._figures else None

    @property
    def improved(self) -> bool:
        """Whether the last epoch was the best so far."""
        return bool(self._figures) and self.best_epoch == len(self._figures) - 1

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the patience was used up once; later figures don't change that."""
        best = 0
        for epoch, figure in enumerate(self._figures):
            if figure > self._figures[best]:
                best = epoch
            if epoch - best >= self.patience:
                return True
        return len(self._figures) >= self.epochs

    def state_dict(self) -> dict[str, Any]:
        """State as values that JSON can hold."""
        return {"figures": list(self._figures), "patience": self.patience}

    def notes(self, state: Mapping[str, Any]) -> list[str]:
        """What differs between this and the :meth:`state_dict` that is loaded into it."""
        saved = state.get("patience", self.patience)  # version 0.1 has none
        return [] if saved == self.patience else [f"the loaded state has patience {saved}, the sampler has {self.patience}, which is used"]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the figures of :meth:`state_dict`; the patience stays."""
        self._figures = [float(figure) for figure in state["figures"]]
