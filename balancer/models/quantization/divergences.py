"""Distances between the outputs of two models, and the loss whose gradients estimate them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """Compute the mean Kullback-Leibler divergence of ``other`` from ``reference``, in nats per row.

    Args:
        reference: outputs: (B,) binary logits, (B, K) class logits, or means of Gaussians with unit variance.
        other: outputs of the same shape.
    """
    reference, other = reference.double(), other.double()
    if reference.ndim == 1:
        p, log_sigmoid = torch.sigmoid(reference), F.logsigmoid
        each = p * (log_sigmoid(reference) - log_sigmoid(other)) + (1 - p) * (log_sigmoid(-reference) - log_sigmoid(-other))
        return each.mean()
    if reference.ndim == 2:
        log_p = reference.log_softmax(-1)
        return (log_p.exp() * (log_p - other.log_softmax(-1))).sum(-1).mean()
    return 0.5 * (reference - other).square().flatten(1).sum(1).mean()


def sampled_label_loss(output: Tensor) -> Tensor:
    """Sum over rows of the negative log-likelihood of labels drawn from the output itself."""
    drawn = output.detach().float()
    if output.ndim == 1:
        return F.binary_cross_entropy_with_logits(output.float(), torch.bernoulli(torch.sigmoid(drawn)), reduction="sum")
    if output.ndim == 2:
        return F.cross_entropy(output.float(), torch.multinomial(drawn.softmax(-1), 1)[:, 0], reduction="sum")
    return 0.5 * (output.float() - (drawn + torch.randn_like(drawn))).square().sum()
