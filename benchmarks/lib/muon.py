"""Muon for the matrices of the blocks, AdamW for all other weights (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
SCALE = 0.2
"""Size of an update relative to AdamW's, for the same learning rate (Liu et al. 2025, arXiv 2502.16982)."""
SHORTEST = 32
"""Matrices with a shorter side keep AdamW: embeddings of single fields and the last layer."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the published iteration that drives the singular values of a matrix towards 1."""


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate the nearest matrix whose singular values are all 1."""
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = x.T if tall else x
    return found


class MuonAndAdamW(torch.optim.AdamW):
    """An AdamW that updates large matrices by the orthogonalized momentum of their gradients.

    Args:
        params: Groups of parameters, as for AdamW.
        options: Further arguments of AdamW.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self._momentum: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters; see `torch.optim.Optimizer.step`."""
        kept: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or parameter.ndim != 2 or min(parameter.shape) < SHORTEST:
                    continue
                momentum = self._momentum.setdefault(parameter, torch.zeros_like(parameter))
                momentum.mul_(MOMENTUM).add_(parameter.grad)
                update = orthogonal(parameter.grad.add(momentum, alpha=MOMENTUM))
                factor = SCALE * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * factor)
                kept[parameter], parameter.grad = parameter.grad, None
        found = super().step(closure)
        for parameter, gradient in kept.items():
            parameter.grad = gradient
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse: a benchmark trains in one go."""
        # The trials of the benchmark are not resumed within a training.
        raise NotImplementedError("the momentum of Muon is not stored")
