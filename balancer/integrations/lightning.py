"""Lightning: a callback that updates an :class:`~balancer.sampling.torch_sampler.AdaptiveSampler` from the
validation loop.

    sampler = AdaptiveSampler(labels, epochs=10)
    loader = DataLoader(train, batch_size=256, sampler=sampler)
    trainer = Trainer(max_epochs=10, callbacks=[AdaptiveCallback(sampler)])
    trainer.fit(module, loader, valid_loader)

After the last validation of an epoch the callback gives the sampler the scores of the validation rows and of
a random sample of training rows. The next epoch is drawn by the new weights. The sanity check before training
is ignored. The sampler's state is part of Lightning's checkpoints.

Several processes: the scores are gathered, so the samplers of all ranks make the same update. There are two
ways to divide an epoch among the ranks. A sampler made with the defaults ``rank=0, num_replicas=1`` draws
whole epochs, and Lightning gives each rank its part. A sampler made with ``rank`` and ``num_replicas`` draws
for its own rank; set ``Trainer(use_distributed_sampler=False)`` for it. Only the second way resumes exactly
in the middle of an epoch; with the first one, the interrupted epoch starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balancer.dependencies import explained_imports, missing
from balancer.deprecation import deprecated_attribute
from balancer.errors import InputError
from balancer.integrations.callback_base import (
    POOL,
    check_pool,
    extract_arrays,
    insert_arrays,
    logits_to_scores,
    pool_rows,
    sampling_metrics,
)
from balancer.sampling.seeding import integer_seed
from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler

with explained_imports("AdaptiveCallback", "balancer[lightning]"):
    import torch
    from torch.utils.data import DataLoader, DistributedSampler, Subset
if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise missing("lightning", "AdaptiveCallback") from error


Scored = tuple[Any, Any]
"""Labels (n,) and probabilities (n, K), as arrays or tensors.

The class names are those of the sampler's labels, and the columns are in the order of its ``classes_``.
"""


def forward_scores(module: LightningModule, batch: Any) -> Scored:
    """Labels and scores of a batch ``(x, y)``: ``y``, and the sigmoid or softmax of ``module(x)``."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError("batches are no (x, y) pairs; give AdaptiveCallback a score function (module, batch) -> (y_true, y_score)")
    x, y = batch
    return y, logits_to_scores(_array(module(x)))


class AdaptiveCallback(Callback):
    """Update ``sampler`` once an epoch, and log ``sampling/share_<class>`` and ``sampling/hardness``.

    Args:
        sampler: Sampler of the training loader.
        score: Function ``(module, batch) -> (y_true, y_score)``: labels (n,) and probabilities (n, K) in the
            order of ``sampler.classes_``. It is called in evaluation mode and without gradients. None: if
            ``validation_step`` returns a dict with ``y_true`` and ``y_score``, these are used; otherwise a
            batch is a pair ``(x, y)`` and ``module(x)`` are logits of one or K columns.
        pool: Number of training rows to score after each epoch, read from the dataset of the training loader.
            With 0 none are scored, and hardness has no effect.

    Raises:
        InputError: Lightning is not installed, or ``pool`` is out of range; in training, the errors of
            ``sampler.update``.
    """

    def __init__(
        self, sampler: AdaptiveSampler | AdaptiveBatchSampler, *, score: Callable[[Any, Any], Scored] | None = None, pool: int = POOL
    ) -> None:
        self.sampler, self.score, self.pool = sampler, score, check_pool(pool)
        self.updates = 0
        """Number of epochs after which the sampler was updated."""
        self._parts: list[tuple[NDArray[Any], NDArray[np.float64]]] = []
        self._waiting = False
        self._next, self._consumed = 0, 0  # the current epoch, and how many of the sampler's items in it were trained on

    def __repr__(self) -> str:
        """Sampler, pool and number of updates."""
        return f"AdaptiveCallback({self.sampler!r}, pool={self.pool}, updates={self.updates})"

    @property
    def state_key(self) -> str:
        """Key of the state in Lightning's checkpoints.

        It is the class name of version 0.1, so that checkpoints of that version can be read.
        """
        return "AdaptiveSamplingCallback"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the rows are divided among the ranks exactly once.

        Raises:
            InputError: All ranks would train on the same rows, or the rows would be divided twice.
        """
        whole, wrapped = self.sampler.num_replicas == 1, isinstance(getattr(trainer.train_dataloader, "sampler", None), DistributedSampler)
        if trainer.world_size > 1 and whole and not wrapped:
            raise InputError(
                "every rank would train on the same rows; give the sampler rank and num_replicas, or let Lightning divide the rows"
            )
        if wrapped and not whole:
            raise InputError("the sampler already draws for one rank only; set use_distributed_sampler=False in Trainer")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the sampler's epoch, also if Lightning has wrapped the sampler in a distributed one."""
        if trainer.current_epoch > 0:  # the first epoch has been drawn before
            self.sampler.set_epoch(trainer.current_epoch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the items that were trained on.

        The sampler's own count is too high, because Lightning fetches a batch ahead.
        """
        each = 1 if isinstance(self.sampler, AdaptiveBatchSampler) else getattr(trainer.train_dataloader, "batch_size", None) or 1
        for_one_rank = trainer.world_size == self.sampler.num_replicas
        self._next = trainer.current_epoch
        self._consumed = min((batch_idx + 1) * each, len(self.sampler)) if for_one_rank else 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the scores of an earlier validation in the same epoch."""
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
        """Update the sampler if this is the epoch's last validation.

        Checkpoints that are written after it then hold the new weights.
        """
        if not _training(trainer) or not self._parts:
            return
        self._waiting = True
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._update(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the sampler from the last validation of the epoch, if none took place at its end."""
        if self._waiting:
            self._update(trainer, pl_module)
        self._next, self._consumed = trainer.current_epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """State of the sampler.

        Arrays are tensors, because Lightning reads checkpoints with ``weights_only``.
        """
        arrays: dict[str, NDArray[Any]] = {}
        plain = extract_arrays(self.sampler.state_dict(self._consumed), arrays)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        return {"sampler": plain, "arrays": tensors, "updates": self.updates, "epoch": self._next, "consumed": self._consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; raise InputError if it was saved for other labels."""
        arrays = {name: tensor.numpy() for name, tensor in state_dict["arrays"].items()}
        self.sampler.load_state_dict(insert_arrays(state_dict["sampler"], arrays))
        self._next, self._consumed = int(state_dict["epoch"]), int(state_dict["consumed"])
        if not self._consumed:  # Lightning draws the first epoch before it sets the epoch
            self.sampler.set_epoch(self._next)
        self.updates = int(state_dict["updates"])

    def _update(self, trainer: Trainer, module: LightningModule) -> None:
        label, score = _gathered(trainer, _joined(self._parts))
        rows, row_score = self._pool(trainer, module)
        self.sampler.update(label, score, rows=rows, row_score=row_score)
        self._parts, self._waiting = [], False
        self.updates += 1
        self._next, self._consumed = trainer.current_epoch + 1, 0
        module.log_dict(sampling_metrics(self.sampler.classes_, self.sampler.weights, "sampling/"), rank_zero_only=False)

    def _pool(self, trainer: Trainer, module: LightningModule) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None]:
        """Rows of the pool and their scores; each rank scores a part of them."""
        if not self.pool:
            return None, None
        loader = trainer.train_dataloader
        dataset = getattr(loader, "dataset", None)
        if not isinstance(loader, DataLoader) or dataset is None or not hasattr(dataset, "__getitem__"):
            raise InputError("scoring training rows needs one DataLoader over a dataset with indices; give AdaptiveCallback pool=0")
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
    """Whether a validation belongs to training, and is not the sanity check before it."""
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
    """Labels and scores of all ranks, in the same order on every rank.

    Ranks may hold different numbers of rows.
    """
    if trainer.world_size == 1:
        return scored
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, scored)
    return _joined(gathered)


if not TYPE_CHECKING:  # the name of version 0.1

    def __getattr__(name: str) -> object:
        return deprecated_attribute(__name__, name)
