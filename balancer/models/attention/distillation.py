"""Distillation of token scores from dense attention: the score learns which distant tokens receive attention.

While a model attends densely, some queries are sampled, and the attention that each key outside the window
receives from them is the target of softmax(score). With sparse attention alone the score would get no
gradient for tokens that were never selected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from balancer.models.attention.layout import Layout

SAMPLED = 64
"""Number of sampled queries per pass."""
TEMPERATURE = 8.0
"""Factor on the score.

An entropy over 16 landmarks has a range of only 2.8 nats, too small for one token among a thousand to
dominate.
"""
WEIGHT = 0.1
"""Weight of the distillation loss."""


@torch.no_grad()
def far_attention(query: Tensor, key: Tensor, layout: Layout, lengths: Tensor | None) -> Tensor | None:
    """Compute the attention that keys outside the window receive from sampled queries.

    It is averaged over heads. The queries of each sequence are drawn by torch's global generator from its
    real tokens after the first window; a sequence without such tokens receives zeros.

    Args:
        query: (B, n, H, d).
        key: (B, n, H, d).
        layout: windows and chunks.
        lengths: (B,) number of real tokens; None if all are real.

    Returns:
        (B, n), or None if no sequence is longer than the window.
    """
    batch, length, window = *query.shape[:2], layout.window
    if length <= window:
        return None
    real = torch.full((batch, 1), length, device=query.device) if lengths is None else lengths[:, None]
    drawn = torch.rand(batch, min(SAMPLED, length - window), device=query.device)
    at = (window + drawn * (real - window)).long().minimum(real - 1).clamp(min=0)
    sampled = torch.take_along_dim(query, at[..., None, None], 1)
    logits = torch.einsum("bmhd,bnhd->bhmn", sampled, key).float() * query.shape[-1] ** -0.5
    position = torch.arange(length, device=query.device)
    mass = logits.masked_fill((position > at[..., None])[:, None], -torch.inf).softmax(-1).mean(1)
    first, _ = layout.bounds(length, query.device)
    ignored = (position >= first[at][..., None]) | (real <= window)[..., None]
    received: Tensor = mass.masked_fill(ignored, 0).sum(1)
    return received


def divergence(received: Tensor, score: Tensor, lengths: Tensor | None) -> Tensor:
    """Compute KL(received || softmax(score)).

    It is averaged over the sequences in which distant tokens receive attention.

    Args:
        received: (B, n) from :func:`far_attention`.
        score: (B, n).
        lengths: (B,) number of real tokens; None if all are real.
    """
    total = received.sum(1, keepdim=True)
    has_far = total[:, 0] > 1e-6
    target = received / total.clamp(min=1e-6)
    if lengths is not None:
        score = score.masked_fill(torch.arange(score.shape[1], device=score.device) >= lengths[:, None], -torch.inf)
        score = score.masked_fill(~has_far[:, None], 0)  # a row of only padding has no finite score
    log_q = (TEMPERATURE * score).log_softmax(-1)
    positive = target > 0
    each = (target * (target.clamp(min=1e-12).log() - log_q.masked_fill(~positive, 0))).sum(1)
    return (each * has_far).sum() / has_far.sum().clamp(min=1)


class DenseWarmUp(nn.Module):
    """Base class of sparse attention that can attend densely for a time and train its score meanwhile."""

    warming: bool = False
    """Whether it attends densely now; set by `warm_up`."""
    divergence: Tensor | None = None
    """Distillation loss of the last pass while warming; None if there were no distant tokens."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the divergence: a tensor of an autograd graph can't be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "divergence"}


def warm_up(model: nn.Module, on: bool) -> None:
    """Switch the dense warm-up on or off for every sparse attention in `model`."""
    for module in model.modules():
        if isinstance(module, DenseWarmUp):
            module.warming, module.divergence = on, None


def distillation_loss(model: nn.Module) -> Tensor:
    """Return the loss to add for the last pass.

    It is zero if no sparse attention is warming up or there were no distant tokens.
    """
    losses = [module.divergence for module in model.modules() if isinstance(module, DenseWarmUp) and module.divergence is not None]
    return WEIGHT * torch.stack(losses).sum() if losses else torch.zeros(())
