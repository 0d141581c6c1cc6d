"""What the loss of a sampler needs to know of the training rows: those of one table, or of shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from balancer.sampling.tilt import HardnessTilt
from balancer.sampling.weights import Floats, SamplingWeights


class DrawnRows(Protocol):
    """Training rows as they are drawn, commonest class first; see :class:`~.row_sampler.RowSampler`."""

    counts: NDArray[np.int64]
    keeps_minority: bool
    """Whether an epoch always has a row besides the commonest class."""

    @property
    def prior(self) -> Floats:
        """(K,) class prior of the training rows."""

    @property
    def has_age(self) -> bool:
        """Whether the ages of the rows are known."""

    def class_share(self, weights: SamplingWeights) -> Floats:
        """(K,) shares of the classes that have rows, normalised."""

    def probabilities(self, weights: SamplingWeights, draws: int, *, keep_minority: bool = False) -> Floats:
        """(N,) probability of each row in one draw of an epoch."""

    def loss_weights(self, rows: NDArray[np.integer[Any]], weights: SamplingWeights, draws: int, *, keep_minority: bool = False) -> Floats:
        """(n,) loss weight of drawn ``rows`` (n,)."""

    def tilt(self, weights: SamplingWeights, draws: int, *, counted: bool) -> HardnessTilt | None:
        """What hardness does to a model that is trained on an epoch; None where it does not act."""

    def refresh(self, rows: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]]) -> None:
        """Store the scores of some rows."""

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Stored scores as arrays."""

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the scores of :meth:`state_dict`."""
