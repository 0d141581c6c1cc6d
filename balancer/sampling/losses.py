"""The loss that goes with a sampler, for torch: class weights, weights of rows, and an offset of the logits.

    sampler = AdaptiveSampler(labels, epochs=10)
    loss = sampler.loss(model(x), y)              # in training, instead of the cross-entropy
    p = sampler.probabilities(model(x_later))     # (B, K), of the natural stream

A row is counted by the weight that compensates how often it is drawn. The logarithm of each class's mass is
added to the logits in training only. So the raw logits are those of a stream in which all classes are equally
frequent, whatever was drawn; adding the logarithm of the prior gives those of the natural stream.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.errors import InputError

REDUCTIONS = ("mean", "sum", "none")


def check_options(reduction: str, label_smoothing: float) -> None:
    """Check the options of a loss.

    Raises:
        InputError: Another reduction than those of :data:`REDUCTIONS`, or a smoothing outside [0, 1].
    """
    if reduction not in REDUCTIONS:
        raise InputError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing must lie in [0, 1], not {label_smoothing!r}")


def compensated_loss(
    logits: Tensor,
    code: Tensor,
    class_weight: Tensor,
    logit_offset: Tensor,
    *,
    row_weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of rows that were drawn by a sampler.

    The weight belongs to the row: a smoothed target is counted by the weight of the row's class. Mixed rows,
    with class probabilities as target, count as the rows that were mixed.

    Args:
        logits: (B,), (B, 1) or (B, K), floating point; one logit a row is the log-odds of class 1 of two.
        code: (B,) class index, negative for a row without a label; or (B, K) class probabilities.
        class_weight: (K,).
        logit_offset: (K,), added to the logits.
        row_weight: (B,) weight of each row instead of that of its class.
        reduction: ``mean`` (divided by the sum of the weights), ``sum`` or ``none``.
        label_smoothing: Part of the target that is divided equally among the classes, in [0, 1].

    Returns:
        A number or (B,), in float32; in float64 for logits in float64.

    Raises:
        InputError: Shapes, reduction or smoothing that don't fit.
    """
    num_classes = len(class_weight)
    check_options(reduction, label_smoothing)
    if not logits.is_floating_point():
        raise InputError(f"logits must be floating point, not {logits.dtype}")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if wide.ndim == 1 or wide.shape[1:] == (1,):
        if num_classes != 2:
            raise InputError(f"logits of shape {tuple(logits.shape)} are for two classes; give {num_classes} columns, one for each class")
        wide = wide.reshape(-1)
        wide = torch.stack([torch.zeros_like(wide), wide], dim=1)
    if wide.ndim != 2 or wide.shape[1] != num_classes:
        raise InputError(f"logits must have the shape (B, {num_classes}), not {tuple(logits.shape)}; move the classes to the last axis")
    if len(code) != len(wide):
        raise InputError(f"logits have {len(wide)} rows and target {len(code)}; give one target a row")
    loss = -F.log_softmax(wide + logit_offset, dim=1)
    if code.ndim == 2:
        soft = code.to(loss.dtype)
        counted = soft * class_weight if row_weight is None else soft * row_weight[:, None]
        weight, each = counted.sum(dim=1), (counted * loss).sum(dim=1)
    else:
        index = code.clamp_min(0)
        weight = (class_weight[index] if row_weight is None else row_weight) * (code >= 0)
        each = weight * loss.gather(1, index[:, None])[:, 0]
    if label_smoothing:
        each = (1.0 - label_smoothing) * each + label_smoothing * weight * loss.mean(dim=1)
    if reduction == "none":
        return each
    total = each.sum()
    return total if reduction == "sum" else total / weight.sum().clamp_min(torch.finfo(torch.float32).tiny)


class HasLoss(Protocol):
    """What :class:`AdaptiveLoss` needs of a sampler."""

    def use_compensation(self) -> None:
        """Note that the loss is used."""

    def loss(self, logits: Tensor, target: Any, rows: Any = None, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
        """The loss of a batch."""
        ...


class AdaptiveLoss(nn.Module):
    """The loss of a sampler as a module, for loops and trainers that take one.

    It has no parameters and no state; the sampler's state holds all. A copy of the module, as for averaged
    weights, has the same sampler. Make it before the first epoch: then that epoch is drawn for it already.

    Args:
        sampler: Sampler that the training rows are drawn by.
        reduction: ``mean``, ``sum`` or ``none``.
        label_smoothing: As in :meth:`~balancer.sampling.torch_sampler.AdaptiveSampler.loss`.

    >>> from balancer import AdaptiveSampler
    >>> sampler = AdaptiveSampler([0] * 90 + [1] * 10, epochs=2, policy="constant:share=.5,hardness=0")
    >>> loss = AdaptiveLoss(sampler)
    >>> round(loss(torch.zeros(4), torch.tensor([0, 1, 1, 0])).item(), 3)
    0.693
    """

    def __init__(self, sampler: HasLoss, *, reduction: str = "mean", label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not callable(getattr(sampler, "loss", None)):
            raise InputError(f"sampler must be an adaptive sampler, which has a loss, not {type(sampler).__name__}")
        check_options(reduction, label_smoothing)
        self.sampler, self.reduction, self.label_smoothing = sampler, reduction, label_smoothing
        sampler.use_compensation()

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptiveLoss:
        """A module with the same sampler."""
        return AdaptiveLoss(self.sampler, reduction=self.reduction, label_smoothing=self.label_smoothing).train(self.training)

    def extra_repr(self) -> str:
        """The sampler and the options."""
        return f"{self.sampler!r}, reduction={self.reduction!r}, label_smoothing={self.label_smoothing:g}"

    def forward(self, logits: Tensor, target: Any, rows: Any = None) -> Tensor:
        """The loss; arguments as for :meth:`~balancer.sampling.torch_sampler.AdaptiveSampler.loss`."""
        return self.sampler.loss(logits, target, rows=rows, reduction=self.reduction, label_smoothing=self.label_smoothing)
