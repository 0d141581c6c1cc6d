"""What a token score learns from dense attention: which far tokens are looked at.

While a model trains densely, some queries are sampled, and the attention that each key farther back than the window receives from them is the
target of softmax(score). A score learns nothing from a choice among tokens that were never seen; this is how it sees them all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from balancer.models.attention.layout import Layout

SAMPLED = 64
"""Queries per pass."""
TEMPERATURE = 8.0
"""On the score: an entropy over 16 landmarks spans 2.8 nats only, too little for one token of a thousand to stand out."""
WEIGHT = 0.1
"""Of the distillation beside the loss."""


@torch.no_grad()
def far_attention(query: Tensor, key: Tensor, layout: Layout, lengths: Tensor | None) -> Tensor | None:
    """(B, n) attention that keys before their query's window receive from sampled queries, mean over heads; None where nothing is far.

    Queries and keys are (B, n, H, d); `lengths` (B,) are real tokens, all where None. Each sequence's queries are drawn by torch's global generator among its
    real ones beyond the first window; a sequence that has none receives nothing.
    """
    batch, length, window = *query.shape[:2], layout.window
    if length <= window:
        return None
    real = torch.full((batch, 1), length, device=query.device) if lengths is None else lengths[:, None]
    drawn = torch.rand(batch, min(SAMPLED, length - window), device=query.device)
    at = (window + drawn * (real - window)).long().minimum(real - 1).clamp(min=0)
    asking = torch.take_along_dim(query, at[..., None, None], 1)
    logits = torch.einsum("bmhd,bnhd->bhmn", asking, key).float() * query.shape[-1] ** -0.5
    position = torch.arange(length, device=query.device)
    mass = logits.masked_fill((position > at[..., None])[:, None], -torch.inf).softmax(-1).mean(1)
    first, _ = layout.bounds(length, query.device)
    unheard = (position >= first[at][..., None]) | (real <= window)[..., None]
    received: Tensor = mass.masked_fill(unheard, 0).sum(1)
    return received


def divergence(received: Tensor, score: Tensor, lengths: Tensor | None) -> Tensor:
    """KL(received || softmax(score)), mean over the sequences where far tokens receive any attention; both (B, n)."""
    total = received.sum(1, keepdim=True)
    any_far = total[:, 0] > 1e-6
    target = received / total.clamp(min=1e-6)
    if lengths is not None:
        score = score.masked_fill(torch.arange(score.shape[1], device=score.device) >= lengths[:, None], -torch.inf)
        score = score.masked_fill(~any_far[:, None], 0)  # a row of padding has no token to choose among
    log_q = (TEMPERATURE * score).log_softmax(-1)
    seen = target > 0
    each = (target * (target.clamp(min=1e-12).log() - log_q.masked_fill(~seen, 0))).sum(1)
    return (each * any_far).sum() / any_far.sum().clamp(min=1)


class Warming(nn.Module):
    """A sparse attention that can be dense for a while, and learns its score meanwhile."""

    warming: bool = False
    """Whether it attends densely now; set by `warm_up`."""
    divergence: Tensor | None = None
    """Of the last pass while warming; None where nothing was far."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the divergence: what belongs to a graph can't be copied, and a copy of a model has made no pass."""
        return {name: value for name, value in self.__dict__.items() if name != "divergence"}


def warm_up(model: nn.Module, on: bool) -> None:
    """Let every sparse attention in `model` attend densely and learn its score by distillation, or end that."""
    for module in model.modules():
        if isinstance(module, Warming):
            module.warming, module.divergence = on, None


def distillation_loss(model: nn.Module) -> Tensor:
    """What to add to the loss of the pass just made: zero where no sparse attention is warming, or nothing was far."""
    found = [module.divergence for module in model.modules() if isinstance(module, Warming) and module.divergence is not None]
    return WEIGHT * torch.stack(found).sum() if found else torch.zeros(())
