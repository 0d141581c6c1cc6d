"""The detector: network and boosted trees together, and how their scores are combined.

What is special: every member gives log-odds of fraud, and the detector's log-odds are their weighted mean.
The kinds of fraud come from the network, or from trees where there is no network. A member can be missing:
a run may consist of the network alone, or of trees alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from balancer.data.dataset import Dataset
from balancer.inference.decision import NETWORK, STAGE2
from balancer.inference.scoring import score_rows
from balancer.inference.streaming import score_streaming
from balancer.inference.tree_stages import AT_ONCE, TreeStages
from balancer.models import Classifier

SMALLEST = 1e-30
"""Smallest probability whose log-odds are taken."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detector:
    """Network and trees of a run."""

    model: Classifier | None
    """The network; None for a detector of trees alone."""
    stages: TreeStages | None
    """The trees; None for a detector of a network alone."""
    members: Mapping[str, float] = field(default_factory=lambda: {NETWORK: 1.0})
    """Weight of each member (`balancer.inference.decision.MEMBERS`); the weights sum to 1."""
    num_classes: int = 2
    """K, including the negative class."""

    @property
    def uses_network(self) -> bool:
        """Whether the scores depend on the network: it has a weight, or tells the kinds of fraud apart."""
        return self.stages is None or self.members.get(NETWORK, 0.0) > 0 or self.num_classes > 2

    def scores(self, dataset: Dataset, rows: NDArray[np.int64], *, device: torch.device, alike: bool = False) -> NDArray[np.floating]:
        """Class probabilities (n, K) of the store ``rows`` (n,); the score fields must be filled.

        With ``alike`` the scores of a row do not depend on the rows that are scored with it, to the last bit.
        """
        network = None
        if self.model is not None and self.uses_network:
            network = score_rows(self.model, dataset, rows, device=device, alike=alike)
        return self._with_trees(network, dataset, rows)

    def streamed_scores(
        self, dataset: Dataset, rows: NDArray[np.int64], *, device: torch.device, progress: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.floating]:
        """As :meth:`scores`, but the network reads one row at a time, as the service does."""
        network = None
        if self.model is not None and self.uses_network:
            network = score_streaming(self.model, dataset, rows, device=device, progress=progress)
        return self._with_trees(network, dataset, rows)

    def _with_trees(self, network: NDArray[np.floating] | None, dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        if self.stages is None:
            assert network is not None
            return network
        pieces = []
        for first in range(0, max(1, len(rows)), AT_ONCE):
            chosen = slice(first, first + AT_ONCE)
            pieces.append(self.combine(None if network is None else network[chosen], dataset.store.values[rows[chosen]]))
        return np.concatenate(pieces)

    def combine(self, network: NDArray[np.floating] | None, values: NDArray[np.float32]) -> NDArray[np.floating]:
        """Class probabilities of the detector.

        Args:
            network: (n, K) class probabilities of the network; None for a detector of trees alone.
            values: (n, F) all fields of the rows.

        Returns:
            (n, K); float64 with trees, and the network's own without.
        """
        if self.stages is None:
            assert network is not None
            return network
        logit = self.logit(network, values)
        if self.num_classes == 2:
            kinds = np.ones((len(values), 1))
        elif network is None:
            kinds = self.stages.kind_shares(values, self.num_classes - 1)
        else:
            kinds = np.maximum(network[:, 1:].astype(np.float64), SMALLEST)
            kinds /= kinds.sum(axis=1, keepdims=True)
        return with_kinds(logit, kinds)

    def logit(self, network: NDArray[np.floating] | None, values: NDArray[np.float32]) -> Floats:
        """Log-odds of fraud (n,) of the detector: the weighted mean of its members.

        Arguments as for :meth:`combine`.
        """
        if self.stages is None:
            assert network is not None
            return log_odds(network)
        logit = np.zeros(len(values))
        if self.members.get(STAGE2, 0.0) > 0:
            logit += self.members[STAGE2] * self.stages.second_logit(values)
        if network is not None and self.members.get(NETWORK, 0.0) > 0:
            logit += self.members[NETWORK] * log_odds(network)
        return logit


def log_odds(scores: NDArray[np.floating]) -> Floats:
    """Log-odds of fraud (n,) from class probabilities (n, K)."""
    scores = np.maximum(scores.astype(np.float64), SMALLEST)
    found: Floats = np.log(scores[:, 1:].sum(axis=1)) - np.log(scores[:, 0])
    return found


def with_kinds(logit: Floats, kinds: Floats) -> Floats:
    """Class probabilities (n, K) from log-odds of fraud (n,) and the shares (n, K - 1) of its kinds."""
    # Both probabilities are computed from the exponential of a number below 0, so neither overflows.
    small = np.exp(-np.abs(logit))
    low, high = small / (1 + small), 1 / (1 + small)
    fraud = np.where(logit >= 0, high, low)
    legitimate = np.where(logit >= 0, low, high)
    return np.column_stack([legitimate, fraud[:, None] * kinds])
