"""Hugging Face: a ``Trainer`` whose training rows are drawn by an :class:`~balancer.sampling.torch_sampler.AdaptiveSampler`.

    sampler = AdaptiveSampler(train["label"], epochs=3)
    trainer = AdaptiveTrainer(model, TrainingArguments(..., eval_strategy="epoch"), train_dataset=train, eval_dataset=valid, sampler=sampler)
    trainer.train()

Each evaluation already predicts every validation row, so the sampler is told those predictions and nothing is computed twice; a pool of
training rows is predicted beside them. With ``eval_strategy="steps"`` the last evaluation of an epoch counts: the sampler moves once an
epoch. Its state lies beside ``trainer_state.json`` in every checkpoint, and ``train(resume_from_checkpoint=...)`` takes it back.

Several processes: all of them see all predictions and draw the same epoch, of which accelerate gives each its batches. So the sampler must
draw for all ranks: ``AdaptiveSampler(..., rank=0, num_replicas=1)``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Subset

from balancer.errors import InputError
from balancer.integrations.callback_base import POOL, check_pool, logits_to_scores, pool_rows, read_state, sampling_figures, save_state
from balancer.sampling.seeding import integer_seed
from balancer.sampling.torch_sampler import AdaptiveSampler

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import EvalLoopOutput
else:
    try:
        from transformers import Trainer, TrainerCallback
    except ImportError as error:
        raise InputError("AdaptiveTrainer needs transformers; pip install 'balancer[transformers]'") from error

STATE_FILE = "adaptive_sampler.safetensors"
"""State of the sampler in a checkpoint's folder."""
_WHOLE = 1e-6
"""How near to a whole number ``state.epoch`` is at the end of an epoch."""

Score = Callable[["EvalLoopOutput"], tuple[Any, Any]]


def output_scores(output: EvalLoopOutput) -> tuple[Any, Any]:
    """Labels and probabilities of predictions: the first array of each, logits of one column or K."""
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    label = output.label_ids[0] if isinstance(output.label_ids, tuple) else output.label_ids
    if logits is None or label is None:
        raise InputError("the evaluation returned no predictions or no labels; AdaptiveTrainer needs both, see label_names")
    label = np.asarray(label)
    return label.reshape(len(label)).astype(np.int64) if label.shape[1:] in ((), (1,)) else label, logits_to_scores(logits)


class AdaptiveTrainerMixin:
    """Put before ``Trainer`` or a subclass of it; :class:`AdaptiveTrainer` is the plain pair.

    Args:
        sampler: an ``AdaptiveSampler`` of the labels of ``train_dataset``; it serves one training.
        score: predictions to ``(y_true (n,), y_score (n, K))`` in the order of ``sampler.classes_``; None: sigmoid or softmax of the logits,
            class by class (:func:`output_scores`).
        pool: how many training rows to predict after each epoch; 0: none, hardness then has nothing to act on.
        steer_by: ``metric_key_prefix`` of the evaluation that steers: with a dict of evaluation sets ``eval_<name>``.

    Raises:
        InputError: transformers is missing, no evaluation is asked for, ``batch_eval_metrics`` drops the predictions, or a checkpoint
            without the sampler's state; while training, whatever ``sampler.update`` refuses.
    """

    def __init__(
        self, *args: Any, sampler: AdaptiveSampler, score: Score | None = None, pool: int = POOL, steer_by: str = "eval", **kwargs: Any
    ) -> None:
        if not isinstance(sampler, AdaptiveSampler):
            raise InputError(f"sampler must be an AdaptiveSampler of the training labels, not {type(sampler).__name__}")
        if sampler.num_replicas != 1:
            raise InputError("sampler draws for one rank of several, which Trainer does itself; make it with rank=0, num_replicas=1")
        self.adaptive_sampler = sampler
        self._score, self._pool, self._steer_by = score or output_scores, check_pool(pool), steer_by
        self._waiting: tuple[Any, Any] | None = None
        self._told = 0  # epochs up to the last update
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if str(getattr(trainer.args.eval_strategy, "value", trainer.args.eval_strategy)) == "no":
            raise InputError("AdaptiveTrainer learns from evaluations; set eval_strategy='epoch' (or 'steps') in TrainingArguments")
        if trainer.args.batch_eval_metrics:
            raise InputError("batch_eval_metrics=True throws the predictions away that AdaptiveTrainer needs; set it to False")
        names = [f"eval_{name}" for name in trainer.eval_dataset] if isinstance(trainer.eval_dataset, dict) else ["eval"]
        if steer_by not in names:
            raise InputError(f"steer_by is {steer_by!r}, which is no evaluation of this trainer; choose one of {', '.join(names)}")
        trainer.add_callback(_Epochs(self))

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
        """As in ``Trainer``; within a training the sampler is told the predictions, and the new weights are among the metrics."""
        trainer: Any = self
        steers = trainer.is_in_train and metric_key_prefix == self._steer_by
        parent: Any = super()
        output: EvalLoopOutput = parent.evaluation_loop(
            dataloader, description, False if steers else prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if steers:
            self._waiting = self._score(output)
            if self._epoch > 0 and abs(self._epoch - round(self._epoch)) < _WHOLE:
                self._update()
            figures = sampling_figures(self.adaptive_sampler.classes_, self.adaptive_sampler.weights, f"{metric_key_prefix}_sampling_")
            output.metrics.update(figures)  # type: ignore[union-attr]  # None only in the type
        return output

    @property
    def _epoch(self) -> float:
        trainer: Any = self
        return float(trainer.state.epoch or 0.0)

    def _update(self) -> None:
        """Tell the sampler the last evaluation, if it was not told yet."""
        if self._waiting is None:
            return
        label, score = self._waiting
        rows, row_score = self._scored_pool() if self._pool else (None, None)
        self.adaptive_sampler.update(label, score, rows=rows, row_score=row_score)
        self._waiting = None
        self._told = round(self._epoch)

    def _scored_pool(self) -> tuple[Any, Any]:
        trainer: Any = self
        dataset = trainer.train_dataset
        seed = integer_seed(self.adaptive_sampler.seed, "hugging face pool")
        rows = pool_rows(len(dataset), self._pool, seed, round(self._epoch))
        part = dataset.select(rows.tolist()) if hasattr(dataset, "select") else Subset(dataset, rows.tolist())
        parent: Any = super()
        output = parent.evaluation_loop(trainer.get_test_dataloader(part), "Sampling pool", False, None, "pool")
        return rows, self._score(output)[1]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in ``Trainer``; the sampler goes on from the checkpoint too."""
        trainer: Any = self
        folder = resume_from_checkpoint
        if folder is True:
            from transformers.trainer_utils import get_last_checkpoint

            folder = get_last_checkpoint(trainer.args.output_dir)  # type: ignore[no-untyped-call]
        if isinstance(folder, (str, Path)) and folder:
            state = read_state(Path(folder) / STATE_FILE)
            self.adaptive_sampler.load_state_dict(state["sampler"])
            self._told = int(state["told"])
        parent: Any = super()
        return parent.train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        if trainer.args.should_save:  # before all else, so that no checkpoint that looks complete lacks it
            folder = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            # Trainer draws a resumed epoch from its beginning and skips what it has seen.
            save_state(folder / STATE_FILE, {"sampler": self.adaptive_sampler.state_dict(consumed=0), "told": self._told})
        parent: Any = super()
        parent._save_checkpoint(model, trial)


class _Epochs(TrainerCallback):
    """Numbers the draws, and updates at the end of an epoch whose evaluations all came earlier."""

    def __init__(self, trainer: AdaptiveTrainerMixin) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Skipping the first batches of a resumed epoch puts a batch sampler around ours that does not pass set_epoch on.
        done = int((state.epoch or 0.0) + _WHOLE)
        trainer: Any = self._trainer
        if (
            args.eval_strategy == "epoch" and self._trainer._told < done
        ):  # resumed from a checkpoint that was saved before its epoch's evaluation
            trainer.evaluate()
        self._trainer.adaptive_sampler.set_epoch(done)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._update()


class AdaptiveTrainer(AdaptiveTrainerMixin, Trainer):
    """``transformers.Trainer`` under a sampling policy: the arguments of both, see :class:`AdaptiveTrainerMixin`."""
