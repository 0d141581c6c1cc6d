"""Hugging Face: a ``Trainer`` whose training rows are drawn by an
:class:`~balancer.sampling.torch_sampler.AdaptiveSampler`.

    sampler = AdaptiveSampler(train["label"], epochs=3, compensated=True)
    arguments = TrainingArguments(..., eval_strategy="epoch")
    trainer = AdaptiveTrainer(model, arguments, train_dataset=train, eval_dataset=valid, sampler=sampler)
    trainer.train()
    p = sampler.probabilities(trainer.predict(later).predictions)

**Loss.** With ``compensated=True`` the trainer computes the sampler's loss from logits and labels
(:func:`compute_loss_func`): rows that are drawn more often count less, and the model's logits don't depend on
what was drawn. Without it, the model's own loss is used, and the sampler draws as usual over-sampling does.

**Best epoch.** Evaluations report ``eval_sampling_average_precision``, so ``load_best_model_at_end=True``,
``metric_for_best_model="sampling_average_precision"`` and a ``save_strategy`` like the ``eval_strategy``
restore the best model. Where you restore it yourself, call ``sampler.use_best_epoch()``.
``stop_when_finished=True`` stops as ``sampler.finished`` says.

An evaluation predicts every validation row anyway. The sampler is updated from these predictions, so nothing
is computed twice; only a random sample of training rows is predicted in addition. With
``eval_strategy="steps"`` the last evaluation of an epoch counts: the weights change once an epoch. The
sampler's state is saved next to ``trainer_state.json`` in every checkpoint, and
``train(resume_from_checkpoint=...)`` restores it.

Several processes: each of them has all predictions and draws the same epoch, and accelerate gives each
process its batches. So the sampler must draw for all ranks: ``AdaptiveSampler(..., rank=0, num_replicas=1)``.
A sampler of ``shards`` draws for its own rank, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from balancer.dependencies import explained_imports
from balancer.deprecation import UNSET, renamed_argument
from balancer.errors import InputError
from balancer.integrations.callback_base import (
    POOL,
    check_pool,
    logits_to_scores,
    pool_rows,
    read_state,
    sampler_scores,
    sampling_metrics,
    save_state,
)
from balancer.sampling.core_view import CoreView
from balancer.sampling.seeding import integer_seed
from balancer.sampling.torch_sampler import AdaptiveSampler

with explained_imports("AdaptiveTrainer", "balancer[transformers]"):
    import torch
    from torch.utils.data import Subset
    from transformers import Trainer, TrainerCallback
if TYPE_CHECKING:
    from transformers.trainer_utils import EvalLoopOutput

STATE_FILE = "adaptive_sampler.safetensors"
"""File with the sampler's state, in the folder of a checkpoint."""
_WHOLE = 1e-6
"""At the end of an epoch ``state.epoch`` differs from a whole number by less than this."""

Score = Callable[["EvalLoopOutput"], tuple[Any, Any]]


def output_scores(output: EvalLoopOutput) -> tuple[Any, Any]:
    """Labels, and the sigmoid or softmax of the logits of an evaluation.

    If labels or predictions are tuples, the first array is used. Predictions are logits of one or K columns.
    """
    label, logits = _labels_and_logits(output)
    return label, logits_to_scores(logits)


def _labels_and_logits(output: EvalLoopOutput) -> tuple[Any, Any]:
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    label = output.label_ids[0] if isinstance(output.label_ids, tuple) else output.label_ids
    if logits is None or label is None:
        raise InputError(
            "the evaluation returned no predictions or no labels; AdaptiveTrainer needs both: check label_names in TrainingArguments"
        )
    label = np.asarray(label)
    return label.reshape(len(label)).astype(np.int64) if label.shape[1:] in ((), (1,)) else label, logits


def compute_loss_func(sampler: CoreView, *, label_smoothing: float = 0.0) -> Callable[..., torch.Tensor]:
    """The ``compute_loss_func`` of ``Trainer`` for rows that ``sampler`` draws.

    In training it is ``sampler.loss``. With the number of items that ``Trainer`` counts for all the batches
    of a step, it is their sum divided by that number, so that accumulated gradients are those of one large
    batch; without it, the mean. In evaluation it is ``sampler.validation_loss``: the cross-entropy of
    ``sampler.probabilities`` on the rows as they come.

    ``Trainer`` does not give labels to a model then; a model must accept to be called without them.

    Args:
        sampler: Sampler of the training rows, or a stream.
        label_smoothing: As for ``sampler.loss``.

    Returns:
        Function ``(outputs, labels, num_items_in_batch=None) -> loss``. Logits are ``outputs["logits"]``,
        ``outputs.logits`` or the first output, (B, K) or one column for two classes.
    """

    def compute_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if labels is None:
            raise InputError("the batch has no labels, which the sampler's loss needs; name them in label_names of TrainingArguments")
        logits, reduction = _logits(outputs), "mean" if num_items_in_batch is None else "sum"
        if torch.is_grad_enabled():
            loss = sampler.loss(logits, labels, reduction=reduction, label_smoothing=label_smoothing)
        else:
            loss = sampler.validation_loss(logits, labels, reduction=reduction)
        if num_items_in_batch is None:
            return loss
        # Trainer counts the elements of the labels: K a row where these are probabilities.
        items = torch.as_tensor(num_items_in_batch, device=loss.device) / max(labels.numel() // max(len(labels), 1), 1)
        scaled: torch.Tensor = loss / items.clamp_min(1.0)
        return scaled

    return compute_loss


def _logits(outputs: Any) -> torch.Tensor:
    """Logits of a model's output."""
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    else:
        logits = getattr(outputs, "logits", outputs)
        logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    if not isinstance(logits, torch.Tensor):
        raise InputError("the model's output holds no logits, which the sampler's loss needs; give Trainer a compute_loss_func of your own")
    return logits


class AdaptiveTrainerMixin:
    """Add adaptive sampling to ``Trainer`` or a subclass of it, as the first base class;
    :class:`AdaptiveTrainer` is the plain pair.

    Args:
        sampler: An ``AdaptiveSampler`` made from the labels of ``train_dataset``. It serves one training. If
            it was made with ``compensated=True``, and neither ``compute_loss_func`` is given nor
            ``compute_loss`` overridden, its loss is used (:func:`compute_loss_func`).
        score: Function from an evaluation's output to ``(y_true, y_score)``: labels (n,) and probabilities
            (n, K) in the order of ``sampler.classes_``. None: the sigmoid or softmax of the logits
            (:func:`output_scores`), or, where the sampler's loss is used, ``sampler.probabilities`` of them.
        pool: Number of training rows to predict after each epoch. With 0 none are predicted, and hardness has
            no effect.
        metric_key_prefix: Prefix of the evaluation that updates the sampler: ``eval``, or ``eval_<name>`` if
            ``eval_dataset`` is a dict.
        stop_when_finished: Whether to stop when ``sampler.finished``: after ``patience`` epochs without a
            better average precision, or after ``epochs`` of the sampler. By default ``Trainer`` decides.
        steer_by: Deprecated name of ``metric_key_prefix``.

    Raises:
        MissingDependencyError: transformers is not installed.
        InputError: No evaluation is configured, ``batch_eval_metrics`` drops the predictions, or a checkpoint
            lacks the sampler's state; in training, the errors of ``sampler.update``.
    """

    def __init__(
        self,
        *args: Any,
        sampler: AdaptiveSampler,
        score: Score | None = None,
        pool: int = POOL,
        metric_key_prefix: str = "eval",
        stop_when_finished: bool = False,
        steer_by: str = UNSET,
        **kwargs: Any,
    ) -> None:
        metric_key_prefix = renamed_argument(AdaptiveTrainerMixin, "steer_by", "metric_key_prefix", metric_key_prefix, steer_by)
        if not isinstance(sampler, AdaptiveSampler):
            raise InputError(f"sampler must be an AdaptiveSampler of the training labels, not {type(sampler).__name__}")
        if sampler.is_sharded:
            raise InputError("sampler draws from shards, but Trainer divides the rows itself; give the sampler the labels of all rows")
        if sampler.num_replicas != 1:
            raise InputError(
                "sampler draws for one rank of several, but Trainer divides the rows itself; make the sampler with rank=0, num_replicas=1"
            )
        self.adaptive_sampler = sampler
        self._score, self._pool, self._prefix = score, check_pool(pool), metric_key_prefix
        self._stop = stop_when_finished
        self._pending: tuple[Any, Any] | None = None  # scores of the last evaluation, until the sampler is updated
        self._updated = 0  # the last epoch that ended with an update
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if str(getattr(trainer.args.eval_strategy, "value", trainer.args.eval_strategy)) == "no":
            raise InputError(
                "AdaptiveTrainer updates the sampler from evaluations; set eval_strategy='epoch' (or 'steps') in TrainingArguments"
            )
        if trainer.args.batch_eval_metrics:
            raise InputError("batch_eval_metrics=True discards the predictions that AdaptiveTrainer needs; set it to False")
        names = [f"eval_{name}" for name in trainer.eval_dataset] if isinstance(trainer.eval_dataset, dict) else ["eval"]
        if metric_key_prefix not in names:
            raise InputError(
                f"metric_key_prefix is {metric_key_prefix!r}, which is no evaluation of this trainer; choose one of {', '.join(names)}"
            )
        if sampler.compensated and trainer.compute_loss_func is None and type(trainer).compute_loss is Trainer.compute_loss:
            trainer.compute_loss_func = compute_loss_func(sampler)
        trainer.add_callback(AdaptiveCallback(self))

    def __repr__(self) -> str:
        """Sampler, pool and the evaluation that updates the sampler."""
        return f"{type(self).__name__}({self.adaptive_sampler!r}, pool={self._pool}, metric_key_prefix={self._prefix!r})"

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.adaptive_sampler

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as ``Trainer`` does.

        In training, also update the sampler from the predictions, and add its weights to the metrics.
        """
        trainer: Any = self
        updates = trainer.is_in_train and metric_key_prefix == self._prefix
        parent: Any = super()
        output: EvalLoopOutput = parent.evaluation_loop(
            dataloader, description, False if updates else prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if updates:
            self._pending = self._scores(output)
            figures = self.adaptive_sampler.measure(*self._pending)
            if self._epoch > 0 and abs(self._epoch - round(self._epoch)) < _WHOLE:
                self._update()
            prefix, sampler = f"{metric_key_prefix}_sampling_", self.adaptive_sampler
            metrics = sampling_metrics(sampler.classes_, sampler.weights, prefix, figures)
            output.metrics.update(metrics)  # type: ignore[union-attr]  # None only in the type
        return output

    def _scores(self, output: EvalLoopOutput) -> tuple[Any, Any]:
        if self._score is not None:
            return self._score(output)
        label, logits = _labels_and_logits(output)
        return label, sampler_scores(self.adaptive_sampler, logits)

    @property
    def _epoch(self) -> float:
        trainer: Any = self
        return float(trainer.state.epoch or 0.0)

    def _update(self) -> None:
        """Update the sampler from the last evaluation, unless that was done before."""
        if self._pending is None:
            return
        label, score = self._pending
        rows, row_score = self._scored_pool() if self._pool else (None, None)
        self.adaptive_sampler.update(label, score, rows=rows, row_score=row_score, gather="none")  # Trainer has gathered them
        self._pending = None
        self._updated = round(self._epoch)

    def _scored_pool(self) -> tuple[Any, Any]:
        trainer: Any = self
        dataset = trainer.train_dataset
        seed = integer_seed(self.adaptive_sampler.seed, "hugging face pool")
        rows = pool_rows(len(dataset), self._pool, seed, round(self._epoch))
        part = dataset.select(rows.tolist()) if hasattr(dataset, "select") else Subset(dataset, rows.tolist())
        parent: Any = super()
        output = parent.evaluation_loop(trainer.get_test_dataloader(part), "Sampling pool", False, None, "pool")
        return rows, self._scores(output)[1]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as ``Trainer`` does; resuming from a checkpoint also restores the sampler."""
        trainer: Any = self
        folder = resume_from_checkpoint
        if folder is True:
            from transformers.trainer_utils import get_last_checkpoint

            folder = get_last_checkpoint(trainer.args.output_dir)  # type: ignore[no-untyped-call]
        if isinstance(folder, (str, Path)) and folder:
            state = read_state(Path(folder) / STATE_FILE)
            self.adaptive_sampler.load_state_dict(state["sampler"])
            self._updated = int(state["updated"] if "updated" in state else state["told"])  # "told" in version 0.1
        parent: Any = super()
        result = parent.train(resume_from_checkpoint, *args, **kwargs)
        best, metric = trainer.args.load_best_model_at_end, str(trainer.args.metric_for_best_model)
        if best and metric.endswith("sampling_average_precision") and trainer.state.best_model_checkpoint is not None:
            self.adaptive_sampler.use_best_epoch()
        return result

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        # Written before the rest, so that a checkpoint with all other files has this one too.
        if trainer.args.should_save:
            folder = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            # Trainer draws a resumed epoch from its beginning and skips the batches that it has trained on.
            save_state(folder / STATE_FILE, {"sampler": self.adaptive_sampler.state_dict(consumed=0), "updated": self._updated})
        parent: Any = super()
        parent._save_checkpoint(model, trial)


class AdaptiveCallback(TrainerCallback):
    """Set the sampler's epoch, and update it at the end of an epoch whose evaluations all took place earlier.

    :class:`AdaptiveTrainerMixin` adds it, so a user need not. It can be found or removed by its class, as
    other callbacks of ``Trainer``.
    """

    def __init__(self, trainer: AdaptiveTrainerMixin) -> None:
        self._trainer = trainer

    def __repr__(self) -> str:
        """The sampler of the trainer."""
        return f"AdaptiveCallback({self._trainer.adaptive_sampler!r})"

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the sampler's epoch.

        If the checkpoint was saved before the evaluation of its epoch, evaluate first.
        """
        # To skip the first batches of a resumed epoch, Trainer wraps the batch sampler, and the wrapper does
        # not pass set_epoch on.
        done = int((state.epoch or 0.0) + _WHOLE)
        trainer: Any = self._trainer
        if args.eval_strategy == "epoch" and self._trainer._updated < done:
            trainer.evaluate()
        self._trainer.adaptive_sampler.set_epoch(done)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the sampler from the last evaluation."""
        self._trainer._update()
        self._stop(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if the evaluation at the end of an epoch has finished the sampler."""
        self._stop(control)

    def _stop(self, control: Any) -> None:
        if self._trainer._stop and self._trainer.adaptive_sampler.finished:
            control.should_training_stop = True


class AdaptiveTrainer(AdaptiveTrainerMixin, Trainer):
    """``transformers.Trainer`` with adaptive sampling.

    Takes the arguments of both; see :class:`AdaptiveTrainerMixin`.
    """
