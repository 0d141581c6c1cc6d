"""The losses of students: class weights, logit adjustment and focal loss, with an explicit gradient.

Every student minimises, over a mini-batch of rows i with labels y_i and logits z_i,

    sum_i w[y_i] * (1 - q_i) ** gamma * -log q_i  /  sum_i w[y_i],      q_i = softmax(z_i + offset)[y_i].

``w`` are the class weights, times the weights of the drawn rows where the sampling is compensated; dividing
by their sum gives a weighted mean, as in torch's cross-entropy and in ``balancer.models.heads``. ``offset``
is what logit adjustment adds in training and leaves out when scoring (Menon et al. 2021, "Long-tail learning
via logit adjustment"): tau times the log prior, or the log mass of the sampling weights. ``gamma`` is the
exponent of the focal loss (Lin et al. 2017, "Focal loss for dense object detection"; here over a softmax).
The derivative by a logit is

    dz_j = w / sum(w) * ((1 - q) ** gamma + gamma * q * (1 - q) ** (gamma - 1) * -log q) * (p_j - [j = y]).

Logits have the layout (M, K, B), class before row: a softmax over a last axis of two elements takes twenty
times as long on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from balancer.errors import InputError
from balancer.sampling.weights import Floats

_TINY = 1e-30


@dataclass(frozen=True)
class Losses:
    """The losses of M students; the cross-entropy where all fields are None.

    A field that is None costs no time.

    Raises:
        InputError: A field has another shape, a value that is not finite or is negative, or a student's
            weights are all 0.
    """

    class_weight: Floats | None = None
    """(M, K) non-negative weight of each class."""
    logit_offset: Floats | None = None
    """(M, K) offset of the logits in training only, e.g. ``tau * log(prior)``."""
    focal_gamma: Floats | None = None
    """(M,) non-negative exponent of the focal loss; 0 is the cross-entropy."""

    def __post_init__(self) -> None:
        for name, axes in (("class_weight", 2), ("logit_offset", 2), ("focal_gamma", 1)):
            value = getattr(self, name)
            if value is None:
                continue
            value = np.asarray(value, dtype=np.float64)
            if value.ndim != axes or not np.isfinite(value).all() or (name != "logit_offset" and value.size and value.min() < 0):
                wanted = ("(students, classes)" if axes == 2 else "(students,)") + ("" if name == "logit_offset" else " and not negative")
                raise InputError(f"{name} must be finite numbers of shape {wanted}, one row per student")
            if name == "class_weight" and not value.any(axis=1).all():
                raise InputError("class_weight must be above 0 for at least one class of every student")
            object.__setattr__(self, name, value)


class StudentLoss:
    """The losses of M students on a device.

    Args:
        losses: The losses; None: the cross-entropy for all students.
        num: M, number of students.
        classes: K, number of classes.
        device: Device of the logits.
        dtype: Type of the logits.

    Raises:
        InputError: ``losses`` are for another number of students or classes.
    """

    def __init__(
        self, losses: Losses | None, num: int, classes: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        losses = losses or Losses()

        def field(name: str, shape: tuple[int, ...], view: tuple[int, ...]) -> Tensor | None:
            value = getattr(losses, name)
            if value is None:
                return None
            if value.shape != shape:
                raise InputError(f"{name} is {value.shape}, but the stack has {num} students and {classes} classes: give {shape}")
            return torch.as_tensor(value, dtype=dtype, device=device).view(view)

        self._weight = self._fixed_weight = field("class_weight", (num, classes), (num, classes))
        self._offset = self._fixed_offset = field("logit_offset", (num, classes), (num, classes, 1))
        self._gamma = field("focal_gamma", (num,), (num, 1))
        self._made: dict[str, Any] = {"dtype": dtype, "device": device}

    def compensate(self, class_weight: Floats, logit_offset: Floats) -> None:
        """Add weights and offsets of the next epoch's draws to those of the losses.

        Args:
            class_weight: (M, K), 1 for students without compensation.
            logit_offset: (M, K), 0 for students without compensation.
        """
        weight, offset = (torch.as_tensor(values, **self._made) for values in (class_weight, logit_offset[:, :, None]))
        self._weight = weight if self._fixed_weight is None else weight * self._fixed_weight
        self._offset = offset if self._fixed_offset is None else offset + self._fixed_offset

    def value(self, logits: Tensor, label: Tensor, row_weight: Tensor | None = None) -> Tensor:
        """(M,) loss of each student, differentiable.

        Args:
            logits: (M, K, B).
            label: (M, B).
            row_weight: (M, B) weights of the rows besides those of their classes.
        """
        if self._offset is not None:
            logits = logits + self._offset
        log_q = torch.log_softmax(logits, dim=1).gather(1, label[:, None])[:, 0]
        each = -log_q
        if self._gamma is not None:
            each = each * (-torch.expm1(log_q)).clamp_min(_TINY) ** self._gamma
        weight = self._row_weight(label, row_weight)
        if weight is None:
            return each.mean(dim=1)
        return (each * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(_TINY)

    def _row_weight(self, label: Tensor, row_weight: Tensor | None) -> Tensor | None:
        """(M, B) weight of each row; None where all count alike."""
        if self._weight is None:
            return row_weight
        weight = self._weight.gather(1, label)
        return weight if row_weight is None else weight.mul_(row_weight)

    def derivative(self, logits: Tensor, label: Tensor, row_weight: Tensor | None = None) -> Tensor:
        """(M, K, B) derivative of each loss by its logits; with an offset, ``logits`` is overwritten.

        The arguments are those of :meth:`value`.
        """
        if self._offset is not None:
            logits = logits.add_(self._offset)
        delta = torch.softmax(logits, dim=1)
        at = label[:, None]
        q = None if self._gamma is None else delta.gather(1, at)[:, 0].clamp_min_(_TINY)
        delta.scatter_add_(1, at, delta.new_full((), -1.0).expand(at.shape))
        scale = None
        if q is not None:
            assert self._gamma is not None
            rest = delta.gather(1, at)[:, 0].neg_().clamp_min_(_TINY)  # 1 - q
            scale = rest**self._gamma * (1.0 - self._gamma * q * q.log() / rest)
        weight = self._row_weight(label, row_weight)
        if weight is not None:
            weight = weight / weight.sum(dim=1, keepdim=True).clamp_min_(_TINY)
            scale = weight if scale is None else scale.mul_(weight)
        elif scale is not None:
            scale /= label.shape[1]
        return delta.div_(label.shape[1]) if scale is None else delta.mul_(scale[:, None])
