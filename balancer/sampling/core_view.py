"""What samplers and streams have in common: the state of their core, the loss, and probabilities.

The loss needs torch; everything else needs NumPy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.dependencies import is_installed
from balancer.errors import InputError
from balancer.sampling.compensation import MAX_LOGIT
from balancer.sampling.inputs import plain
from balancer.sampling.sampler_base import SamplerBase
from balancer.sampling.weights import Floats, SamplingWeights

HAS_TORCH = is_installed("torch")
"""Whether torch is installed."""
if TYPE_CHECKING or HAS_TORCH:
    import torch
_IGNORED = -100
"""What torch's cross-entropy takes as no label, too."""
_SUM_TOLERANCE = 0.02
"""How far probabilities may be from summing to 1; those in half precision are."""
_SHOWN = 10


class CoreView:
    """Shows the core of a sampler or stream, and computes the loss and the probabilities that go with it."""

    _core: SamplerBase
    _kept_tensors: tuple[object, Floats, dict[Any, tuple[torch.Tensor, torch.Tensor]]] | None = None
    _kept_names: tuple[list[int], tuple[int, ...], dict[Any, torch.Tensor]] | None = None

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

    def use_best_epoch(self) -> None:
        """Say that the model has its weights of :attr:`best_epoch` again, so that probabilities fit them.

        See :meth:`.SamplerCore.use_best_epoch`.
        """
        self._core.use_best_epoch()

    def use_compensation(self) -> None:
        """Note that the loss counts drawn rows by their weights; as :meth:`.SamplerCore.use_compensation`."""
        self._core.use_compensation()

    def measure(self, y_true: ArrayLike, y_score: ArrayLike) -> dict[str, float]:
        """Figures of held-out rows as in :attr:`metrics`, but without an update.

        Args:
            y_true: As for :meth:`update`.
            y_score: As for :meth:`update`.
        """
        return self._core.measure(y_true, y_score)

    def loss(
        self,
        logits: torch.Tensor,
        target: torch.Tensor | ArrayLike,
        rows: torch.Tensor | ArrayLike | None = None,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """Cross-entropy of drawn rows, counted so that sampling is compensated.

        Args:
            logits: (B, K) in the order of :attr:`classes_`; with two classes also (B,) or (B, 1), the
                log-odds of ``classes_[1]``, as for ``binary_cross_entropy_with_logits``.
            target: (B,) or (B, 1) classes, named as in ``labels``, or indices into :attr:`classes_` where
                these are text; or (B, K) probabilities of the classes. Rows without a label don't count: NaN,
                the ``unlabelled`` value, -100, and -1 among indices.
            rows: (B,) indices of the training rows, which add the weight of a row within its class. Without
                them a row has the weight of its class.
            reduction: ``mean`` (weighted by the weights), ``sum`` or ``none``.
            label_smoothing: Part of the target that is divided equally among the classes, in [0, 1].

        Returns:
            A number or (B,), in float32; in float64 for logits in float64.

        Raises:
            InputError: Shapes that don't fit, or a target that is no class.
        """
        from balancer.sampling.losses import compensated_loss

        if not isinstance(logits, torch.Tensor):
            raise InputError(f"logits must be a tensor, not {type(logits).__name__}")
        self.use_compensation()
        class_weight, logit_offset = self._loss_tensors(logits.device)
        row_weight = None
        if rows is not None:
            row_weight = torch.as_tensor(self._core.sample_weight(rows), dtype=torch.float32, device=logits.device)
            if len(row_weight) != len(logits):
                raise InputError(f"rows has {len(row_weight)} indices and logits {len(logits)} rows; give one index a row")
        return compensated_loss(
            logits,
            self._codes(target, logits.device),
            class_weight,
            logit_offset,
            row_weight=row_weight,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    def validation_loss(
        self,
        logits: torch.Tensor,
        target: torch.Tensor | ArrayLike,
        *,
        prior: str | ArrayLike = "natural",
        reduction: str = "mean",
    ) -> torch.Tensor:
        """Cross-entropy of :meth:`probabilities`, for rows as they come; every row counts alike.

        Args:
            logits: As for :meth:`loss`.
            target: As for :meth:`loss`.
            prior: As for :meth:`probabilities`.
            reduction: ``mean``, ``sum`` or ``none``.

        Returns:
            A number or (B,), in float32; in float64 for logits in float64.

        Raises:
            InputError: As :meth:`loss` and :meth:`probabilities`.
        """
        from balancer.sampling.losses import compensated_loss

        if not isinstance(logits, torch.Tensor):
            raise InputError(f"logits must be a tensor, not {type(logits).__name__}")
        natural = self._natural(logits, prior)
        alike = torch.ones(natural.shape[1], dtype=natural.dtype, device=natural.device)
        return compensated_loss(natural, self._codes(target, logits.device), alike, torch.zeros_like(alike), reduction=reduction)

    def _loss_tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Class weights (K,) and logit offsets (K,) on ``device``, copied there once for each epoch."""
        weights, prior = self._core._controller.weights, self._core.prior
        kept = self._kept_tensors
        if kept is None or kept[0] is not weights or not np.array_equal(kept[1], prior):
            kept = self._kept_tensors = (weights, prior, {})
        if device not in kept[2]:
            weight, offset = (
                torch.as_tensor(values, dtype=torch.float32, device=device) for values in (self._core.class_weight, self._core.logit_offset)
            )
            kept[2][device] = weight, offset
        return kept[2][device]

    def _codes(self, target: Any, device: torch.device) -> torch.Tensor:
        """(B,) index into ``classes_`` of each target, -1 without a label; (B, K) is checked and returned."""
        classes = self.classes_
        given = target
        if not isinstance(given, torch.Tensor):
            array = np.asarray(plain(target))
            if array.dtype.kind in "OUS":
                return torch.as_tensor(self._core.class_indices(target, "target"), device=device)
            given = torch.as_tensor(array)
        given = given.to(device)
        if given.ndim == 2 and given.shape[1] == len(classes):
            soft = given if given.is_floating_point() else given.float()
            wrong = ((soft.detach().sum(dim=1) - 1.0).abs() > _SUM_TOLERANCE) | (soft.detach() < 0).any(dim=1)
            if bool(wrong.any()):
                raise InputError(
                    "target must be probabilities of the classes that sum to 1 in each row; rows of several classes (multi-label) "
                    "need a sampler for each label"
                )
            return soft
        if given.ndim == 2 and given.shape[1] == 1:
            given = given[:, 0]
        if given.ndim != 1:
            raise InputError(f"target must be classes (B,) or probabilities (B, {len(classes)}), not of shape {tuple(given.shape)}")
        names, ignored = self._names(device)
        known = ~given.isnan() if given.is_floating_point() else torch.ones_like(given, dtype=torch.bool)
        value = torch.where(known, given, 0).long()
        for label in ignored:
            known &= value != label
        code = torch.searchsorted(names, value).clamp_max(len(names) - 1)
        wrong = known & ((names[code] != value) | (value != given))
        if bool(wrong.any()):  # the only time that the device is waited for
            shown = ", ".join(map(repr, classes[:_SHOWN])) + (", ..." if len(classes) > _SHOWN else "")
            raise InputError(f"target holds {given[wrong][0].item()}, which is not among the classes of training ({shown})")
        return torch.where(known, code, -1)

    def _names(self, device: torch.device) -> tuple[torch.Tensor, tuple[int, ...]]:
        """The classes (K,) as whole numbers on ``device``, and the numbers that mean no label."""
        if self._kept_names is None:
            classes, unlabelled = self.classes_, self._core.unlabelled
            if isinstance(classes[0], (str, bytes)):
                names, ignored = list(range(len(classes))), [-1]
            else:
                names, ignored = [int(c) for c in classes], []
                if isinstance(unlabelled, (int, float, np.number)) and np.isfinite(unlabelled):
                    ignored.append(int(unlabelled))
            if names[-1] > np.iinfo(np.int64).max:
                raise InputError(f"class {names[-1]} is beyond what torch can hold; name the classes by smaller numbers or text")
            ignored += [label for label in (_IGNORED,) if label not in names and label not in ignored]
            self._kept_names = names, tuple(ignored), {}
        names, ignored_labels, tensors = self._kept_names
        if device not in tensors:
            tensors[device] = torch.tensor(names, device=device)
        return tensors[device], ignored_labels

    def probabilities(self, logits: Any, prior: str | ArrayLike = "natural") -> Any:
        """Class probabilities from the raw logits of a model that was trained with :meth:`loss`.

        Args:
            logits: (n, K) in the order of :attr:`classes_`; with two classes also (n,) or (n, 1), the
                log-odds of ``classes_[1]``. A tensor or an array.
            prior: Stream to which the probabilities belong: ``natural`` (the class prior of the training
                rows), ``balanced`` (all classes equally frequent), or a prior (K,).

        Returns:
            (n, K) in the order of :attr:`classes_`: a tensor on the device of ``logits``, in float32, or in
            float64 where these are; or an array in float64.

        Raises:
            InputError: Logits of another shape, or a prior that is none.
        """
        if not HAS_TORCH or not isinstance(logits, torch.Tensor):
            return self._core.probabilities(logits, prior)
        return torch.softmax(self._natural(logits, prior), dim=1)

    def _natural(self, logits: torch.Tensor, prior: str | ArrayLike) -> torch.Tensor:
        """(n, K) logits of the stream with ``prior``: with its logarithm, without the effect of hardness."""
        wide, classes = logits if logits.dtype == torch.float64 else logits.float(), len(self.classes_)
        if classes == 2 and (wide.ndim == 1 or wide.shape[1:] == (1,)):
            wide = torch.stack([torch.zeros_like(wide.reshape(-1)), wide.reshape(-1)], dim=1)
        if wide.ndim != 2 or wide.shape[1] != classes:
            raise InputError(f"logits must have the shape (n, {classes}), not {tuple(logits.shape)}; move the classes to the last axis")
        wide = wide.clamp(-MAX_LOGIT, MAX_LOGIT)
        change = self._core.correction(wide.detach().cpu().double().numpy()) + np.log(self._core.stream_prior(prior))
        return wide + torch.as_tensor(change, dtype=wide.dtype, device=wide.device)
