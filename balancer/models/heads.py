"""What is decided at the target: fraud or not, or which of K classes.

The multi-class head factors its decision: first fraud or not, with the very logit and loss of the binary head, then which kind, given
fraud. The two losses add up to the cross-entropy over all classes, exactly. So naming the kinds never blurs the decision that matters
most, and 1 - p[:, 0] is the sigmoid of one logit rather than a sum over classes that were traded against one another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models.batch import SequenceBatch


class Head(nn.Module, ABC):
    """From the last block's output to logits, and from logits to probabilities and a loss."""

    losses_of: ClassVar[tuple[str, ...]] = ("decision",)
    """Names of what `losses` gives."""
    needs_sequence: ClassVar[bool] = False
    """Whether the head wants every position; if not, it gets the target's alone, (B, 1, d), which costs much less."""

    @abstractmethod
    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits (B,) or (B, K) of the rows' last real positions."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, K) float32, rows summing to 1; column 0 is the negative class, and 1 minus it the fraud score."""

    @abstractmethod
    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
        """Mean loss over the labelled rows; zero where there is none.

        Args:
            logits: what `forward` gave.
            label: (B,) int64 class index; -1 is unlabelled and left out.
            class_weight: (K,) weight of each class; the mean is then over the weights, as in torch's cross-entropy.
        """

    def losses(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> dict[str, Tensor]:
        """The loss as the parts that may be weighed against one another and against further tasks; they add up to `loss`."""
        return {self.losses_of[0]: self.loss(logits, label, class_weight)}


class BinaryHead(Head):
    """One logit (B,) for fraud.

    Args:
        d_model: channels in.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, 1)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logit (B,): log-odds of fraud."""
        logit: Tensor = self.project(batch.last().values[:, 0])
        return logit[:, 0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, 2) float32: legitimate, fraud."""
        logits = logits.float()
        return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
        """Binary cross-entropy in float32; see `Head.loss`."""
        each = F.binary_cross_entropy_with_logits(logits.float(), (label > 0).float(), reduction="none")
        return _masked_mean(each, label, class_weight)


class MulticlassHead(Head):
    """Log-probabilities (B, K): a logit for fraud, and a softmax over its K - 1 kinds.

    Args:
        d_model: channels in.
        num_classes: K, the negative class included.
    """

    losses_of = ("fraud", "type")

    def __init__(self, d_model: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, num_classes)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Log-probabilities (B, K) float32; as logits they are their own softmax."""
        scores: Tensor = self.project(batch.last().values[:, 0]).float()
        fraud, kind = scores[:, :1], scores[:, 1:]
        return torch.cat([F.logsigmoid(-fraud), F.logsigmoid(fraud) + F.log_softmax(kind, -1)], -1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, K) float32."""
        return logits.exp()

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
        """Cross-entropy over all classes; see `Head.loss`."""
        each = -logits.gather(1, label.clamp(min=0)[:, None])[:, 0]
        return _masked_mean(each, label, class_weight)

    def losses(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> dict[str, Tensor]:
        """`fraud`: whether it is any; `type`: which, on the rows that are fraud; both as means over all labelled rows."""
        fraud = logits[:, 1:].logsumexp(-1)
        kind = -(logits.gather(1, label.clamp(min=1)[:, None])[:, 0] - fraud).masked_fill(label < 1, 0)
        either = -torch.where(label > 0, fraud, logits[:, 0])
        return {"fraud": _masked_mean(either, label, class_weight), "type": _masked_mean(kind, label, class_weight)}


def _masked_mean(each: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:
    weight = (label >= 0).to(each.dtype)
    if class_weight is not None:
        weight = weight * class_weight.to(each)[label.clamp(min=0)]
    return (each * weight).sum() / weight.sum().clamp(min=torch.finfo(each.dtype).tiny)
