"""Lightning: a callback that steers an :class:`~balancer.sampling.torch_sampler.AdaptiveSampler` in place, from the validation loop.

    sampler = AdaptiveSampler(labels, epochs=10)
    loader = DataLoader(train, batch_size=256, sampler=sampler)
    trainer = Trainer(max_epochs=10, callbacks=[AdaptiveSamplingCallback(sampler)])
    trainer.fit(module, loader, valid_loader)

After the last validation of an epoch the sampler is told the scores of the validation rows and of a pool of training rows; the next epoch
is drawn by the new weights. The sanity check before training tells nothing. The sampler's state is part of Lightning's checkpoints.

Several processes: the scores are gathered, so every rank's sampler takes the same step. A sampler made for one rank of one draws whole
epochs, of which Lightning gives each rank its part. One made with ``rank`` and ``num_replicas`` draws for its rank alone; set
``Trainer(use_distributed_sampler=False)`` for it, which also resumes exactly amid an epoch (the other way such an epoch begins anew).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler, Subset

from balancer.errors import InputError
from balancer.integrations.callback_base import (
    POOL,
    check_pool,
    logits_to_scores,
    pool_rows,
    put_together,
    sampling_figures,
    take_apart,
)
from balancer.sampling.seeding import integer_seed
from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise InputError("AdaptiveSamplingCallback needs Lightning; pip install 'balancer[lightning]'") from error

Scored = tuple[Any, Any]
"""Labels (n,) named as in the sampler's labels, and probabilities (n, K) in the order of its ``classes_``: arrays or tensors."""


def forward_scores(module: LightningModule, batch: Any) -> Scored:
    """Scores of a batch ``(x, y)``: sigmoid or softmax of ``module(x)``."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError("batches are no (x, y) pairs; give AdaptiveSamplingCallback a score function (module, batch) -> (y_true, y_score)")
    x, y = batch
    return y, logits_to_scores(_array(module(x)))


class AdaptiveSamplingCallback(Callback):
    """Tells ``sampler`` how the model does, once an epoch, and logs ``sampling/share_<class>`` and ``sampling/hardness``.

    Args:
        sampler: the sampler of the training loader.
        score: ``(module, batch) -> (y_true, y_score)``, labels (n,) and probabilities (n, K) in the order of ``sampler.classes_``; called in
            evaluation mode without gradients. None: a ``validation_step`` that returns a dict with ``y_true`` and ``y_score`` is taken at
            its word, any other batch is an ``(x, y)`` pair whose ``module(x)`` are logits, one column or K.
        pool: how many training rows to score after each epoch; 0: none, hardness then has nothing to act on. They are read from the dataset
            of the training loader.

    Raises:
        InputError: Lightning is not installed, or ``pool`` is no such number; while training, whatever ``sampler.update`` refuses.
    """

    def __init__(
        self, sampler: AdaptiveSampler | AdaptiveBatchSampler, *, score: Callable[[Any, Any], Scored] | None = None, pool: int = POOL
    ) -> None:
        self.sampler, self.score, self.pool = sampler, score, check_pool(pool)
        self.updates = 0
        """Epochs after which the sampler was told scores."""
        self._parts: list[tuple[NDArray[Any], NDArray[np.float64]]] = []
        self._waiting = False
        self._next, self._consumed = 0, 0  # the epoch in progress, and the sampler's items of it that were trained on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """InputError where all ranks would train on the same rows, or each on a part of its part."""
        whole, wrapped = self.sampler.num_replicas == 1, isinstance(getattr(trainer.train_dataloader, "sampler", None), DistributedSampler)
        if trainer.world_size > 1 and whole and not wrapped:
            raise InputError(
                "every rank would train on the same rows; make the sampler with rank and num_replicas, or leave the rows to Lightning"
            )
        if wrapped and not whole:
            raise InputError("the sampler draws for its own rank already; set use_distributed_sampler=False in Trainer")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Number the coming draw, also where Lightning has wrapped the sampler in one of its own."""
        if trainer.current_epoch > 0:  # the first epoch is drawn already
            self.sampler.set_epoch(trainer.current_epoch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count what was trained on, for Lightning fetches a batch ahead."""
        each = 1 if isinstance(self.sampler, AdaptiveBatchSampler) else getattr(trainer.train_dataloader, "batch_size", None) or 1
        own = trainer.world_size == self.sampler.num_replicas
        self._next, self._consumed = trainer.current_epoch, min((batch_idx + 1) * each, len(self.sampler)) if own else 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the scores of an earlier validation of the same epoch."""
        self._parts, self._waiting = [], False

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collect the scores of a batch."""
        if not _training(trainer):
            return
        if self.score is None and isinstance(outputs, Mapping) and {"y_true", "y_score"} <= set(outputs):
            self._parts.append(_arrays((outputs["y_true"], outputs["y_score"])))
        else:
            self._parts.append(_arrays(self._scores(pl_module, batch)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update where this validation closes the epoch: checkpoints written right after it hold the new weights."""
        if not _training(trainer) or not self._parts:
            return
        self._waiting = True
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._update(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update from the last validation within the epoch, where none came at its end."""
        if self._waiting:
            self._update(trainer, pl_module)
        self._next, self._consumed = trainer.current_epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """State of the sampler, arrays as tensors: Lightning reads checkpoints with ``weights_only``."""
        arrays: dict[str, NDArray[Any]] = {}
        plain = take_apart(self.sampler.state_dict(self._consumed), arrays)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return {"sampler": plain, "arrays": tensors, "updates": self.updates, "epoch": self._next, "consumed": self._consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; InputError where it was saved for other labels."""
        arrays = {name: tensor.numpy() for name, tensor in state_dict["arrays"].items()}
        self.sampler.load_state_dict(put_together(state_dict["sampler"], arrays))
        self._next, self._consumed = int(state_dict["epoch"]), int(state_dict["consumed"])
        if not self._consumed:  # Lightning draws the first epoch before it numbers it
            self.sampler.set_epoch(self._next)
        self.updates = int(state_dict["updates"])

    def _update(self, trainer: Trainer, module: LightningModule) -> None:
        label, score = _gathered(trainer, _joined(self._parts))
        rows, row_score = self._pool(trainer, module)
        self.sampler.update(label, score, rows=rows, row_score=row_score)
        self._parts, self._waiting = [], False
        self.updates += 1
        self._next, self._consumed = trainer.current_epoch + 1, 0
        module.log_dict(sampling_figures(self.sampler.classes_, self.sampler.weights, "sampling/"), rank_zero_only=False)

    def _pool(self, trainer: Trainer, module: LightningModule) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None]:
        """Rows of the training data and their scores, each rank scoring its part."""
        if not self.pool:
            return None, None
        loader = trainer.train_dataloader
        dataset = getattr(loader, "dataset", None)
        if not isinstance(loader, DataLoader) or dataset is None or not hasattr(dataset, "__getitem__"):
            raise InputError(
                "the pool of training rows needs one DataLoader over a dataset with indices; give AdaptiveSamplingCallback pool=0"
            )
        seed = integer_seed(self.sampler.seed, "lightning pool")
        rows = pool_rows(len(dataset), self.pool, seed, self.updates)[trainer.global_rank :: trainer.world_size]
        part: DataLoader[Any] = DataLoader(
            Subset(dataset, rows.tolist()),
            batch_size=loader.batch_size or POOL,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
        )
        training = module.training
        module.eval()
        try:
            parts = [_arrays(self._scores(module, module.transfer_batch_to_device(batch, module.device, 0))) for batch in part]
        finally:
            module.train(training)
        return _gathered(trainer, (rows, _joined(parts)[1]))

    def _scores(self, module: LightningModule, batch: Any) -> Scored:
        with torch.no_grad():
            return (self.score or forward_scores)(module, batch)


def _training(trainer: Trainer) -> bool:
    """Whether a validation is one of a fit, and not the sanity check before it."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().float().cpu() if isinstance(values, torch.Tensor) and values.is_floating_point() else _on_cpu(values))


def _on_cpu(values: Any) -> Any:
    return values.detach().cpu() if isinstance(values, torch.Tensor) else values


def _arrays(scored: Scored) -> tuple[NDArray[Any], NDArray[np.float64]]:
    label, score = _array(scored[0]), _array(scored[1]).astype(np.float64)
    return label.reshape(len(label)) if label.shape[1:] == (1,) else label, score


def _joined(parts: list[tuple[NDArray[Any], NDArray[np.float64]]]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    return np.concatenate([label for label, _ in parts]), np.concatenate([score for _, score in parts])


def _gathered(trainer: Trainer, scored: tuple[NDArray[Any], NDArray[np.float64]]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The rows of all ranks, in the same order on each; ranks may hold different numbers of rows."""
    if trainer.world_size == 1:
        return scored
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, scored)
    return _joined(everyone)
