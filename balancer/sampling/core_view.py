"""What samplers and streams have in common: the state of their core, the loss, and probabilities.

The loss needs torch; everything else needs NumPy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.dependencies import is_installed
from balancer.errors import InputError
from balancer.sampling.core import SamplerCore
from balancer.sampling.weights import Floats, SamplingWeights

HAS_TORCH = is_installed("torch")
"""Whether torch is installed."""
if TYPE_CHECKING or HAS_TORCH:
    import torch


class CoreView:
    """Shows the core of a sampler or stream, and computes the loss and the probabilities that go with it."""

    _core: SamplerCore
    _kept_tensors: tuple[object, Floats, dict[Any, tuple[torch.Tensor, torch.Tensor]]] | None = None

    @property
    def classes_(self) -> list[Any]:
        """The K classes in sorted order; columns of scores and :attr:`weights` have this order."""
        return self._core.classes_

    @property
    def weights(self) -> SamplingWeights:
        """Weights of the next epoch, shares in the order of :attr:`classes_`."""
        return self._core.weights

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,) training rows of each class, in the order of :attr:`classes_`."""
        return self._core.counts

    @property
    def epochs(self) -> int:
        """Number of epochs of the training."""
        return self._core.epochs

    @property
    def epoch(self) -> int:
        """Number of the epoch in progress; between two epochs, of the next one."""
        return self._core.epoch

    @property
    def seed(self) -> int:
        """Seed in use, which includes the generator's."""
        return self._core.seed

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the last update: ``f1`` at its best threshold and ``average_precision``; 0 before it."""
        return self._core.metrics

    @property
    def policy_name(self) -> str:
        """Name of the policy."""
        return self._core.policy_name

    @property
    def notes(self) -> list[str]:
        """Notes from the policy, e.g. that it used a constant instead."""
        return self._core.notes

    @property
    def prior(self) -> Floats:
        """(K,) class prior of the training rows, in the order of :attr:`classes_`."""
        return self._core.prior

    @property
    def class_weight(self) -> Floats:
        """(K,) loss weight of each class in the present epoch, with mean 1 over the drawn rows."""
        return self._core.class_weight

    @property
    def logit_offset(self) -> Floats:
        """(K,) what to add to the logits in training, never in scoring, in the present epoch."""
        return self._core.logit_offset

    @property
    def compensated(self) -> bool:
        """Whether the loss counts drawn rows by their weights: as given, or as seen so far."""
        return self._core.compensated

    @property
    def best_epoch(self) -> int | None:
        """Number of the update, from 0, after which the average precision was best; None before any."""
        return self._core.best_epoch

    @property
    def improved(self) -> bool:
        """Whether the last update was the best so far: save the model then."""
        return self._core.improved

    @property
    def finished(self) -> bool:
        """Whether training may stop: all epochs are done, or none of the last ``patience`` was better."""
        return self._core.finished

    def loss(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        rows: ArrayLike | None = None,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Cross-entropy of drawn rows, counted so that sampling is compensated.

        Args:
            logits: (B, K) in the order of :attr:`classes_`; with two classes also (B,) or (B, 1), the
                log-odds of ``classes_[1]``, as for ``binary_cross_entropy_with_logits``.
            target: (B,) or (B, 1) classes, named as in ``labels``, or indices into :attr:`classes_` where
                these are text; or (B, K) probabilities of the classes. Rows with the ``unlabelled`` value
                don't count.
            rows: (B,) indices of the training rows, which add the weight of a row within its class. Without
                them a row has the weight of its class.
            reduction: ``mean`` (weighted by the weights), ``sum`` or ``none``.
            label_smoothing: Part of the target that is divided equally among the classes, in [0, 1].

        Returns:
            float32, a number or (B,).

        Raises:
            InputError: Shapes that don't fit, or a target that is no class.
        """
        from balancer.sampling.losses import compensated_loss

        self._core.use_compensation()
        class_weight, logit_offset = self._loss_tensors(logits.device)
        row_weight = None
        if rows is not None:
            indices = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows
            row_weight = torch.as_tensor(self._core.sample_weight(indices), dtype=torch.float32, device=logits.device)
        return compensated_loss(
            logits,
            self._codes(target.to(logits.device)),
            class_weight,
            logit_offset,
            row_weight=row_weight,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    def _loss_tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Class weights (K,) and logit offsets (K,) on ``device``, copied there once for each epoch."""
        weights, prior = self._core._controller.weights, self._core.prior
        kept = self._kept_tensors
        if kept is None or kept[0] is not weights or not np.array_equal(kept[1], prior):
            kept = self._kept_tensors = (weights, prior, {})
        if device not in kept[2]:
            shown = self._core.weights
            weight, offset = (
                torch.as_tensor(values, dtype=torch.float32, device=device)
                for values in (shown.class_weight(prior), shown.logit_offset(prior))
            )
            kept[2][device] = weight, offset
        return kept[2][device]

    def _codes(self, target: torch.Tensor) -> torch.Tensor:
        """(B,) index into ``classes_`` of each target, -1 without a label; (B, K) is returned as given."""
        classes = self.classes_
        if target.ndim == 2 and target.shape[1] == len(classes) and target.is_floating_point():
            return target
        if target.ndim == 2 and target.shape[1] == 1:
            target = target[:, 0]
        if target.ndim != 1:
            raise InputError(f"target must be classes (B,) or probabilities (B, {len(classes)}), not of shape {tuple(target.shape)}")
        if isinstance(classes[0], (str, bytes)):
            names = torch.arange(len(classes), device=target.device)
        else:
            names = torch.tensor([int(c) for c in classes], device=target.device)
        if target.dtype != torch.bool and target.is_floating_point() and target.numel() and bool((target != target.round()).any()):
            raise InputError("target must be whole numbers, the classes of the rows, or probabilities (B, K)")
        value = target.long()
        code = torch.searchsorted(names, value).clamp_max(len(names) - 1)
        unlabelled = self._core.unlabelled
        skipped = torch.zeros_like(value, dtype=torch.bool)
        if isinstance(unlabelled, (int, float, np.integer)):
            skipped = value == int(unlabelled)
        wrong = (names[code] != value) & ~skipped
        if bool(wrong.any()):
            shown = ", ".join(map(repr, classes[:10])) + (", ..." if len(classes) > 10 else "")
            raise InputError(f"target holds {value[wrong][0].item()}, which is not among the classes of training ({shown})")
        return torch.where(skipped, -1, code)

    def probabilities(self, logits: Any, prior: str | ArrayLike = "natural") -> Any:
        """Class probabilities from the raw logits of a model that was trained with :meth:`loss`.

        Args:
            logits: (n, K) in the order of :attr:`classes_`; with two classes also (n,) or (n, 1), the
                log-odds of ``classes_[1]``. A tensor or an array.
            prior: Stream to which the probabilities belong: ``natural`` (the class prior of the training
                rows), ``balanced`` (all classes equally frequent), or a prior (K,).

        Returns:
            (n, K) in the order of :attr:`classes_`: a float32 tensor on the device of ``logits``, or an
            array.

        Raises:
            InputError: Logits of another shape, or a prior that is none.
        """
        if not HAS_TORCH or not isinstance(logits, torch.Tensor):
            return self._core.probabilities(logits, prior)
        wide, classes = logits.float(), len(self.classes_)
        if classes == 2 and (wide.ndim == 1 or wide.shape[1:] == (1,)):
            wide = torch.stack([torch.zeros_like(wide.reshape(-1)), wide.reshape(-1)], dim=1)
        if wide.ndim != 2 or wide.shape[1] != classes:
            raise InputError(f"logits must have the shape (n, {classes}), not {tuple(logits.shape)}; move the classes to the last axis")
        log_prior = torch.as_tensor(np.log(self._core.stream_prior(prior)), dtype=torch.float32, device=wide.device)
        return torch.softmax(wide + log_prior, dim=1)
