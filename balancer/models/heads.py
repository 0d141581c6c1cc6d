"""Heads: from the encoded target position to class probabilities.

The multi-class head predicts in two stages: first fraud or not, with the same logit and loss as the binary
head, then the kind of fraud, given fraud. The sum of both losses is exactly the cross-entropy over all
classes. Adding kinds of fraud therefore does not affect the binary decision, and 1 - p[:, 0] is the sigmoid
of one logit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models.batch import SequenceBatch

_SMALLEST = 1e-9
"""Smallest share of a class at the start."""
_ON_MARGIN = 0.1
"""Factor of the initial weights of the fraud logit where a margin is added to it."""


class Head(nn.Module, ABC):
    """Base class of heads: logits from the output of the last block, probabilities and loss from logits."""

    losses_of: ClassVar[tuple[str, ...]] = ("decision",)
    """Keys of the dictionary returned by `losses`."""
    needs_sequence: ClassVar[bool] = False
    """Whether the head reads every position.

    If not, it receives only the target's, (B, 1, d), which is much cheaper.
    """

    @abstractmethod
    def forward(self, batch: SequenceBatch) -> Tensor:
        """Compute the logits (B,) or (B, K) of the last real position of each row."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert logits to probabilities (B, K) float32, each row summing to 1.

        Column 0 is the negative class; 1 minus that column is the fraud score.
        """

    @abstractmethod
    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None, row_weight: Tensor | None = None) -> Tensor:
        """Compute the mean loss over the labelled rows, zero if there are none.

        Args:
            logits: result of `forward`.
            label: (B,) int64 class index; rows with -1 are unlabelled and ignored.
            class_weight: (K,) weight of each class; the result is then the weighted mean, as in torch's
                cross-entropy.
            row_weight: (B,) weight of each row besides that of its class.
        """

    def losses(
        self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Split the loss into terms that can be weighted separately; they sum to `loss`."""
        weights = (class_weight,) if row_weight is None else (class_weight, row_weight)
        return {self.losses_of[0]: self.loss(logits, label, *weights)}

    def adjusted(self, logits: Tensor, offset: Tensor) -> Tensor:
        """Add an offset (K,) to the logits of the classes, for the loss of rows drawn by other shares."""
        return logits + (offset[1] - offset[0] if logits.ndim == 1 else offset)

    def add_margin(self, logits: Tensor, margin: Tensor) -> Tensor:
        """Add log-odds of fraud (B,) to the logits; the shares of the kinds of fraud stay the same."""
        if logits.ndim == 1:
            return logits + margin
        return self.adjusted(logits, F.pad(margin[:, None].expand(-1, logits.shape[1] - 1), (1, 0)))

    def start_at(self, prior: Tensor) -> None:
        """Set the biases so that a new model predicts about ``prior`` (K,); without effect by default."""

    def start_on_margin(self, prior: Tensor) -> None:
        """Set the weights so that a new model predicts about what its margin says.

        Without effect by default.

        Args:
            prior: (K,) share of each class; the kinds of fraud start with it.
        """


class BinaryHead(Head):
    """One logit (B,) for fraud.

    Args:
        d_model: number of input channels.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, 1)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Compute the logits (B,): log-odds of fraud."""
        logit: Tensor = self.project(batch.last().values[:, 0])
        return logit[:, 0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert logits to probabilities (B, 2) float32: legitimate, fraud."""
        logits = logits.float()
        return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None, row_weight: Tensor | None = None) -> Tensor:
        """Compute the binary cross-entropy in float32; see :meth:`Head.loss`."""
        each = F.binary_cross_entropy_with_logits(logits.float(), (label > 0).float(), reduction="none")
        return _masked_mean(each, label, class_weight, row_weight)

    @torch.no_grad()
    def start_at(self, prior: Tensor) -> None:
        """Set the bias to the log-odds of fraud; see :meth:`Head.start_at`."""
        self.project.bias.fill_(float(torch.logit(prior[1].double(), eps=_SMALLEST)))

    @torch.no_grad()
    def start_on_margin(self, prior: Tensor) -> None:
        """Make the weights small and the bias 0; see :meth:`Head.start_on_margin`."""
        self.project.weight.mul_(_ON_MARGIN)
        self.project.bias.zero_()


class MulticlassHead(Head):
    """Log-probabilities (B, K): one logit for fraud, and a softmax over the K - 1 kinds of fraud.

    Args:
        d_model: number of input channels.
        num_classes: K, including the negative class.
    """

    losses_of = ("fraud", "type")

    def __init__(self, d_model: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, num_classes)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Compute log-probabilities (B, K) float32; as logits, their softmax is the same distribution."""
        scores: Tensor = self.project(batch.last().values[:, 0]).float()
        fraud, kind = scores[:, :1], scores[:, 1:]
        return torch.cat([F.logsigmoid(-fraud), F.logsigmoid(fraud) + F.log_softmax(kind, -1)], -1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert log-probabilities to probabilities (B, K) float32."""
        return logits.exp()

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None, row_weight: Tensor | None = None) -> Tensor:
        """Compute the cross-entropy over all classes; see :meth:`Head.loss`."""
        each = -logits.gather(1, label.clamp(min=0)[:, None])[:, 0]
        return _masked_mean(each, label, class_weight, row_weight)

    def adjusted(self, logits: Tensor, offset: Tensor) -> Tensor:
        """Log-probabilities with an offset of the classes; see :meth:`Head.adjusted`."""
        return F.log_softmax(logits + offset, -1)

    @torch.no_grad()
    def start_at(self, prior: Tensor) -> None:
        """Set the biases to the log-odds of fraud and the log shares of its kinds."""
        prior = prior.double().clamp_min(_SMALLEST)
        fraud = prior[1:].sum()
        self.project.bias.copy_(torch.cat([torch.logit(fraud, eps=_SMALLEST)[None], torch.log(prior[1:] / fraud)]))

    @torch.no_grad()
    def start_on_margin(self, prior: Tensor) -> None:
        """Make the weights of the fraud logit small and its bias 0; see :meth:`Head.start_on_margin`."""
        self.start_at(prior)
        self.project.weight[0].mul_(_ON_MARGIN)
        self.project.bias[0] = 0.0

    def losses(
        self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Split the cross-entropy into `fraud` (whether) and `type` (which kind, for fraud only).

        Both are means over all labelled rows.
        """
        fraud = logits[:, 1:].logsumexp(-1)
        kind = -(logits.gather(1, label.clamp(min=1)[:, None])[:, 0] - fraud).masked_fill(label < 1, 0)
        either = -torch.where(label > 0, fraud, logits[:, 0])
        weights = (label, class_weight, row_weight)
        return {"fraud": _masked_mean(either, *weights), "type": _masked_mean(kind, *weights)}


def _masked_mean(each: Tensor, label: Tensor, class_weight: Tensor | None, row_weight: Tensor | None) -> Tensor:
    weight = (label >= 0).to(each.dtype)
    if class_weight is not None:
        weight = weight * class_weight.to(each)[label.clamp(min=0)]
    if row_weight is not None:
        weight = weight * row_weight.to(each)
    return (each * weight).sum() / weight.sum().clamp(min=torch.finfo(each.dtype).tiny)
