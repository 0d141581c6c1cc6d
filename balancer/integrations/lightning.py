"""Lightning: a callback that updates an :class:`~balancer.sampling.torch_sampler.AdaptiveSampler` from the
validation loop, and a module that computes its loss.

    class Net(AdaptiveModuleMixin, LightningModule):  # training_step and validation_step are there
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Linear(8, 2)
        def forward(self, x):
            return self.layers(x)
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    sampler = AdaptiveSampler(labels, epochs=10, compensated=True)
    loader = DataLoader(train, batch_size=256, sampler=sampler)
    trainer = Trainer(max_epochs=10, callbacks=[AdaptiveCallback(sampler)])
    trainer.fit(Net(), loader, valid_loader)
    p = sampler.probabilities(logits)

After the last validation of an epoch the callback gives the sampler the scores of the validation rows and of
a random sample of training rows. The next epoch is drawn by the new weights. The sanity check before training
is ignored. The sampler's state is part of Lightning's checkpoints.

**Loss.** With the sampler's loss, rows that are drawn more often count less, and the model's logits don't
depend on what was drawn. A ``training_step`` of your own calls :meth:`AdaptiveModuleMixin.adaptive_loss`, or
``sampler.loss``. With any other loss, leave ``compensated`` out: the sampler then draws as usual
over-sampling does.

**Best epoch.** The callback logs ``sampling/average_precision``, so
``ModelCheckpoint(monitor="sampling/average_precision", mode="max")`` keeps the best epoch. With
``restore_best=True`` the module ends with its weights, ``stop_when_finished=True`` stops as
``sampler.finished`` says.

**Several processes.** The ranks exchange the scores of their rows, so their samplers make the same update.
There are two ways to divide an epoch among the ranks. A sampler made with ``rank=0, num_replicas=1`` draws
whole epochs, and Lightning gives each rank its part. A sampler made with ``rank`` and ``num_replicas``, a
``DistributedAdaptiveBatchSampler``, and one with ``shards`` draw for their own rank; set
``Trainer(use_distributed_sampler=False)`` for them. Only the second way resumes exactly in the middle of an
epoch, on the same number of ranks; with the first one, the interrupted epoch starts again.
"""

from __future__ import annotations

import warnings
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
    rank_pool,
    sampler_scores,
    sampling_metrics,
)
from balancer.sampling.core_view import CoreView
from balancer.sampling.seeding import integer_seed
from balancer.sampling.stream import AdaptiveStream
from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler, DistributedAdaptiveBatchSampler

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


_BATCHES = (AdaptiveBatchSampler, DistributedAdaptiveBatchSampler)
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
"""Strategies that divide the weights of a module among the ranks."""

Scored = tuple[Any, Any]
"""Labels (n,) and probabilities (n, K), as arrays or tensors.

The class names are those of the sampler's labels, and the columns are in the order of its ``classes_``.
"""


def forward_scores(module: LightningModule, batch: Any) -> Scored:
    """Labels and scores of a batch ``(x, y)``: ``y``, and the sigmoid or softmax of ``module(x)``."""
    label, logits = _forward(module, batch)
    return label, logits_to_scores(logits)


def _forward(module: LightningModule, batch: Any) -> Scored:
    """Labels and logits of a batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError("batches are no (x, y) pairs; give AdaptiveCallback a score function (module, batch) -> (y_true, y_score)")
    x, y = batch
    return y, _array(module(x))


class AdaptiveModuleMixin:
    """Add the sampler's loss to a ``LightningModule``, as the first base class.

    :class:`AdaptiveCallback` gives the module its sampler when training begins. A batch is a pair ``(x, y)``,
    and ``self(x)`` are logits, (B, K) or one column for two classes; override the steps for other batches.
    """

    adaptive_sampler: CoreView | None = None
    """The sampler of the training rows."""

    def adaptive_loss(self, logits: Any, target: Any, rows: Any = None, *, label_smoothing: float = 0.0) -> torch.Tensor:
        """Loss of drawn rows; see :meth:`balancer.sampling.core_view.CoreView.loss`."""
        return self._adaptive().loss(logits, target, rows, label_smoothing=label_smoothing)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss of a batch of drawn rows, which is logged as ``train_loss``."""
        module: Any = self
        x, y = _pair(batch)
        loss = self.adaptive_loss(module(x), y)
        module.log("train_loss", loss.detach())
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Labels and scores of a batch, for :class:`AdaptiveCallback`.

        The cross-entropy of the natural probabilities is logged as ``val_loss``.
        """
        module: Any = self
        x, y = _pair(batch)
        logits = module(x)
        module.log("val_loss", self._adaptive().validation_loss(logits, y), batch_size=len(logits))
        return {"y_true": y, "y_score": sampler_scores(self._adaptive(), _array(logits))}

    def _adaptive(self) -> CoreView:
        if self.adaptive_sampler is None:
            raise InputError("the module has no sampler; add AdaptiveCallback(sampler) to the callbacks, or set module.adaptive_sampler")
        return self.adaptive_sampler


class AdaptiveCallback(Callback):
    """Update ``sampler`` once an epoch, and log what it does.

    It logs ``sampling/share_<class>``, ``sampling/hardness``, ``sampling/average_precision`` and
    ``sampling/f1``.

    Args:
        sampler: Sampler of the training loader, or the stream that it reads.
        score: Function ``(module, batch) -> (y_true, y_score)``: labels (n,) and probabilities (n, K) in the
            order of ``sampler.classes_``. It is called in evaluation mode and without gradients. None: if
            ``validation_step`` returns a dict with ``y_true`` and ``y_score``, these are used; otherwise a
            batch is a pair ``(x, y)`` and ``module(x)`` are logits of one or K columns. Where the sampler's
            loss is used, their probabilities are ``sampler.probabilities``.
        pool: Number of training rows to score after each epoch, read from the dataset of the training loader.
            With 0 none are scored, and hardness has no effect. Of a stream none are scored.
        stop_when_finished: Whether to stop when ``sampler.finished``: after ``patience`` epochs without a
            better average precision, or after ``epochs`` of the sampler. By default ``Trainer`` decides.
        restore_best: Whether the module ends with its weights of ``sampler.best_epoch``, of which a copy is
            kept in memory and in checkpoints. By default it ends with those of the last epoch.

    Raises:
        MissingDependencyError: Lightning is not installed.
        InputError: ``pool`` is out of range; in training, the errors of ``sampler.update``, or the training
            loader does not draw by the sampler.

    Warns:
        UserWarning: There is no validation, so the sampler is never updated; or it is not known whether the
            training loader draws by the sampler.
    """

    def __init__(
        self,
        sampler: AdaptiveSampler | AdaptiveBatchSampler | DistributedAdaptiveBatchSampler | AdaptiveStream,
        *,
        score: Callable[[Any, Any], Scored] | None = None,
        pool: int = POOL,
        stop_when_finished: bool = False,
        restore_best: bool = False,
    ) -> None:
        self.sampler, self.score, self.pool = sampler, score, check_pool(pool)
        if isinstance(sampler, AdaptiveStream):
            self.pool = 0
        self.stop_when_finished, self.restore_best = stop_when_finished, restore_best
        self._best: dict[str, torch.Tensor] | None = None
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its sampler if it computes the sampler's loss."""
        if isinstance(pl_module, AdaptiveModuleMixin):
            pl_module.adaptive_sampler = self.sampler
        if self.restore_best and type(trainer.strategy).__name__ in _SHARDED:
            raise InputError(
                f"restore_best needs all weights on each rank, {type(trainer.strategy).__name__} divides them; use "
                'ModelCheckpoint(monitor="sampling/average_precision", mode="max")'
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the loader draws by the sampler, once on each rank, and that there is a validation.

        Raises:
            InputError: It does not, all ranks would train on the same rows, or the rows would be divided
                twice.
        """
        if getattr(trainer, "overfit_batches", 0):
            warnings.warn("with overfit_batches Lightning trains on the same batches again, which no sampler draws", stacklevel=2)
            return
        wrapped = self._check_loader(trainer.train_dataloader)
        if not isinstance(self.sampler, AdaptiveStream):
            whole = self.sampler.num_replicas == 1
            if trainer.world_size > 1 and whole and not wrapped:
                raise InputError(
                    "every rank would train on the same rows; give the sampler rank and num_replicas, or let Lightning divide the rows"
                )
            if wrapped and not whole:
                raise InputError("the sampler already draws for one rank only; set use_distributed_sampler=False in Trainer")
        elif trainer.world_size != self.sampler.num_replicas:
            raise InputError(
                f"the stream draws for {self.sampler.num_replicas} ranks, there are {trainer.world_size}; give it rank and num_replicas"
            )
        if not trainer.enable_validation:
            warnings.warn(
                "there is no validation, so AdaptiveCallback never updates the sampler; give fit a validation loader and the module a validation_step",
                stacklevel=2,
            )

    def _check_loader(self, loader: Any) -> bool:
        """Whether Lightning has wrapped the sampler to divide its rows among the ranks.

        Raises:
            InputError: No loader draws by the sampler.
        """
        what = "stream" if isinstance(self.sampler, AdaptiveStream) else "sampler"
        unknown = False
        for each in _flat(loader):
            if not isinstance(each, DataLoader):
                unknown = True
            for found, wrapped in _drawn_by(each):
                if found is self.sampler:
                    return wrapped
        if not unknown:
            argument = "batch_sampler=" if isinstance(self.sampler, _BATCHES) else "sampler="
            how = "DataLoader(stream, ...)" if what == "stream" else f"DataLoader(dataset, {argument}sampler, ...)"
            raise InputError(f"the training loader does not draw by the {what} of AdaptiveCallback; make it as {how}, with the same object")
        warnings.warn(f"the training loader is no DataLoader, so AdaptiveCallback can't see whether it draws by its {what}", stacklevel=2)
        return False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the sampler's epoch, also if Lightning has wrapped the sampler in a distributed one."""
        if trainer.current_epoch > 0:  # the first epoch has been drawn before
            self.sampler.set_epoch(trainer.current_epoch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the items that were trained on.

        The sampler's own count is too high, because Lightning fetches a batch ahead.
        """
        if isinstance(self.sampler, AdaptiveStream):
            self._next, self._consumed = (
                trainer.current_epoch,
                (batch_idx + 1) * (getattr(trainer.train_dataloader, "batch_size", None) or 1),
            )
            return
        each = 1 if isinstance(self.sampler, _BATCHES) else getattr(trainer.train_dataloader, "batch_size", None) or 1
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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the weights of the best epoch if asked to."""
        if self.restore_best and self._best is not None:
            pl_module.load_state_dict(self._best)
            self.sampler.use_best_epoch()

    def state_dict(self) -> dict[str, Any]:
        """State of the sampler.

        Arrays are tensors, because Lightning reads checkpoints with ``weights_only``.
        """
        arrays: dict[str, NDArray[Any]] = {}
        shards = {"gather": True} if not isinstance(self.sampler, AdaptiveStream) and self.sampler.is_sharded else {}
        plain = extract_arrays(self.sampler.state_dict(self._consumed, **shards), arrays)  # Lightning asks all ranks for it
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        best = {"best": self._best} if self._best is not None else {}
        return {"sampler": plain, "arrays": tensors, "updates": self.updates, "epoch": self._next, "consumed": self._consumed} | best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            InputError: It was saved for other labels, or in the middle of an epoch by another number of
                ranks: Lightning counts the batches of each rank.
        """
        saved = state_dict["sampler"].get("num_replicas", 1)
        if int(state_dict["consumed"]) and saved != self.sampler.num_replicas:
            raise InputError(
                f"the checkpoint was saved in the middle of an epoch of {saved} ranks, the sampler has {self.sampler.num_replicas}; "
                "resume from a checkpoint of the end of an epoch"
            )
        arrays = {name: tensor.numpy() for name, tensor in state_dict["arrays"].items()}
        self.sampler.load_state_dict(insert_arrays(state_dict["sampler"], arrays))
        self.sampler._skipped = 0  # Lightning counts the batches of an epoch from its beginning, and len(loader) with them
        self._next, self._consumed, self._best = int(state_dict["epoch"]), int(state_dict["consumed"]), state_dict.get("best")
        if not self._consumed:  # Lightning draws the first epoch before it sets the epoch
            self.sampler.set_epoch(self._next)
        self.updates = int(state_dict["updates"])

    def _update(self, trainer: Trainer, module: LightningModule) -> None:
        label, score = _joined(self._parts)
        if isinstance(self.sampler, AdaptiveStream):
            label, score = _gathered(trainer, (label, score))
            self.sampler.update(label, score, seen=_summed(trainer, self.sampler.seen))
        else:
            rows, row_score = self._pool(trainer, module)
            shared = trainer.world_size > 1 or self.sampler.is_sharded
            self.sampler.update(label, score, rows=rows, row_score=row_score, gather="all" if shared else "none")
        self._parts, self._waiting = [], False
        self.updates += 1
        self._next, self._consumed = trainer.current_epoch + 1, 0
        if self.restore_best and self.sampler.improved:
            self._best = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
        if self.stop_when_finished and self.sampler.finished:
            trainer.should_stop = True
        metrics = sampling_metrics(self.sampler.classes_, self.sampler.weights, "sampling/", self.sampler.metrics)
        module.log_dict(metrics, rank_zero_only=False)

    def _pool(self, trainer: Trainer, module: LightningModule) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None]:
        """This rank's part of the pool, and the scores of its rows."""
        assert not isinstance(self.sampler, AdaptiveStream)
        if not self.pool:
            return None, None
        loader = trainer.train_dataloader
        dataset = getattr(loader, "dataset", None)
        if not isinstance(loader, DataLoader) or dataset is None or not hasattr(dataset, "__getitem__"):
            raise InputError("scoring training rows needs one DataLoader over a dataset with indices; give AdaptiveCallback pool=0")
        seed = integer_seed(self.sampler.seed, "lightning pool")
        rows = rank_pool(self.sampler, self.pool, seed, self.updates, trainer.global_rank, trainer.world_size)
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
        if not parts:  # more ranks than rows of the pool
            return rows, np.zeros((0, len(self.sampler.classes_)))
        return rows, _joined(parts)[1]

    def _scores(self, module: LightningModule, batch: Any) -> Scored:
        with torch.no_grad():
            if self.score is not None:
                return self.score(module, batch)
            label, logits = _forward(module, batch)
            return label, sampler_scores(self.sampler, logits)


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError("batches are no (x, y) pairs; override training_step and validation_step, and call adaptive_loss there")
    return batch[0], batch[1]


def _flat(loaders: Any) -> list[Any]:
    """All loaders of a nested collection."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return [loader for each in loaders for loader in _flat(each)]
    inner = getattr(loaders, "flattened", None)  # Lightning's CombinedLoader
    return _flat(inner) if isinstance(inner, list) else [loaders]


def _drawn_by(loader: Any) -> list[tuple[Any, bool]]:
    """What a loader draws by, each with whether Lightning divides it among the ranks."""
    batches = getattr(loader, "batch_sampler", None)
    found = [(getattr(loader, "dataset", None), False)]
    for sampler in (batches, getattr(loader, "sampler", None), getattr(batches, "sampler", None)):
        found.append((sampler, False))
        inner = getattr(sampler, "dataset", None)
        if isinstance(sampler, DistributedSampler):
            found.append((getattr(inner, "_sampler", None), True))
    return found


def _summed(trainer: Trainer, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of ``counts`` over all ranks."""
    if trainer.world_size == 1:
        return counts
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, counts)
    return np.asarray(np.sum(gathered, axis=0))


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
