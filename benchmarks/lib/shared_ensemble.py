"""An ensemble of heads on one trunk, after TabM (Gorishniy et al. 2025, arXiv 2410.24210)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models import Head, ModelConfig, SequenceBatch

MEMBERS = 16
"""Members of the ensemble."""


class SharedEnsemble(Head):
    """Members that share a linear layer and differ in factors on the channels around it and in the last one.

    The loss is the mean of the members' own, so they stay different. Probabilities come from the mean of
    their logits. Each member has one logit for fraud and a softmax over the kinds of fraud.

    Args:
        config: Configuration of the classifier.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, outputs = config.d_model, len(config.classes)
        self.before = nn.Parameter(torch.randn(MEMBERS, width).sign())
        self.shared = nn.Linear(width, width)
        self.after = nn.Parameter(torch.ones(MEMBERS, width))
        self.shift = nn.Parameter(0.1 * torch.randn(MEMBERS, width))
        self.weight = nn.Parameter(torch.randn(MEMBERS, width, outputs) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(MEMBERS, outputs))

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Compute the log-probabilities (B, MEMBERS, K) of the members."""
        hidden = F.gelu(self.shared(batch.last().values * self.before) * self.after + self.shift)
        scores = (torch.einsum("bmd,mdk->bmk", hidden, self.weight) + self.bias).float()
        fraud, kind = scores[..., :1], scores[..., 1:]
        return torch.cat([F.logsigmoid(-fraud), F.logsigmoid(fraud) + F.log_softmax(kind, -1)], -1)

    def add_margin(self, logits: Tensor, margin: Tensor) -> Tensor:
        """Add log-odds of fraud (B,) to those of every member."""
        return self.adjusted(logits, F.pad(margin[:, None, None].expand(-1, 1, logits.shape[-1] - 1), (1, 0)))

    def adjusted(self, logits: Tensor, offset: Tensor) -> Tensor:
        """Add an offset of the classes to the log-probabilities of every member."""
        return F.log_softmax(logits + offset, -1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert log-probabilities (B, MEMBERS, K) to probabilities (B, K)."""
        return logits.mean(1).softmax(-1)

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None, row_weight: Tensor | None = None) -> Tensor:
        """Mean over the members of the weighted cross-entropy; see :meth:`Head.loss`."""
        weight = (label >= 0).float()
        if class_weight is not None:
            weight = weight * class_weight[label.clamp(min=0)]
        if row_weight is not None:
            weight = weight * row_weight
        wanted = label.clamp(min=0)[:, None, None].expand(-1, MEMBERS, 1)
        each = -logits.gather(-1, wanted)[..., 0].mean(1)
        return (each * weight).sum() / weight.sum().clamp(min=1e-12)

    @torch.no_grad()
    def start_at(self, prior: Tensor) -> None:
        """Set the biases to the log-odds of fraud and the log shares of its kinds."""
        prior = prior.double().clamp_min(1e-9)
        fraud = prior[1:].sum()
        self.bias.copy_(torch.cat([torch.logit(fraud, eps=1e-9)[None], torch.log(prior[1:] / fraud)]).expand_as(self.bias))

    @torch.no_grad()
    def start_on_margin(self, prior: Tensor) -> None:
        """Make the weights of the fraud logits small and their biases 0."""
        self.start_at(prior)
        self.weight[..., 0].mul_(0.1)
        self.bias[..., 0] = 0.0
