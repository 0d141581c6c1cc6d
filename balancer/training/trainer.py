"""Train the transaction-sequence classifier on given rows.

The trainer does not choose rows. ``fit`` takes the store rows to train on, in order, a mini-batch at a time;
``score`` gives class probabilities. Its state is arrays (weights, AdamW moments, a step count), and its
dropout is drawn from (seed, step), so a restored state continues exactly. Recipe: AdamW, 5 % linear warm-up,
then cosine to zero, gradient norm clipped to 1, bf16 autocast on CUDA.

Auxiliary tasks learn from their own rows in the same pass. With `train_only`, all other parts keep their
weights exactly.

A step may be cut into micro-batches, which several processes compute (`balancer.training.micro_batches`);
dropout is then drawn from (seed, step, micro-batch).

A model of the form `histories` is trained on the same rows: one pass over a history scores all the rows drawn
from it. Sparse attention is dense for the first part of the steps and learns meanwhile which nodes should be
global.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Literal

import numpy as np
import torch

from balancer.data.dataset import Dataset
from balancer.inference.batches import history_batches, minibatches
from balancer.inference.scoring import score_rows, score_task
from balancer.models import Classifier, ModelConfig, SequenceBatch, Targets, autocast, part_of
from balancer.models.attention import distillation_loss, warm_up
from balancer.models.optimizer_state import load_moments, moments_to_arrays
from balancer.models.schedule import learning_rate_factor
from balancer.models.tasks import FieldHead
from balancer.sampling.seeding import generator, integer_seed
from balancer.training.auxiliary_targets import HIDDEN, task_targets
from balancer.training.micro_batches import GradientSum, MicroBatches, StepRows, cut_histories, cut_rows


class ClassifierTrainer:
    """A classifier with its optimizer, on one data set.

    Args:
        dataset: Its store holds the histories and labels.
        config: The model to build; ``config.history_length`` is the length of a history.
        seed: Random seed of weights and dropout.
        total_steps: Length of the learning-rate schedule in mini-batches.
        batch_size: Rows of a mini-batch.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of matrices; vectors have none.
        class_weight: (K,) loss weight per class, or None.
        prior: (K,) class shares that the model predicts at the start, by the biases of its head; None: as the
            head is.
        warmup: Fraction of the steps in which sparse attention is dense and its global nodes are learned by
            distillation; without effect on other attention.
        optimizer: ``adamw``, or ``adamw8bit`` of bitsandbytes, on CUDA.
        device: Where to train.
        start: Makes the model to start from instead of a new one; its configuration is ``config``.
        train_only: Parts (`balancer.models.PARTS`) that are trained; all others keep their weights and have
            no optimizer state. None: all parts are trained.
        task_weights: Fixed weight of each loss by name, 1 where a name is missing. None: weights are learned
            from the uncertainty of each loss.
        micro_batches: How steps are divided, and among which processes; all of them must make the same calls.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: ModelConfig,
        *,
        seed: int,
        total_steps: int,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.01,
        class_weight: np.ndarray | None = None,
        prior: np.ndarray | None = None,
        warmup: float = 0.0,
        optimizer: Literal["adamw", "adamw8bit"] = "adamw",
        device: str = "cpu",
        start: Callable[[], Classifier] | None = None,
        train_only: Collection[str] | None = None,
        task_weights: Mapping[str, float] | None = None,
        micro_batches: MicroBatches | None = None,
    ) -> None:
        self.dataset, self.config, self.seed, self.device = dataset, config, seed, torch.device(device)
        self.total_steps, self.batch_size, self.learning_rate = total_steps, batch_size, learning_rate
        # Attention that is not trained needs no dense steps: it has no score to learn.
        self.warm_steps = round(warmup * total_steps) if train_only is None or "attention" in train_only else 0
        self.task_weights, self.micro_batches = task_weights, micro_batches or MicroBatches()
        torch.manual_seed(integer_seed(seed, "weights"))
        self.model = (Classifier(config) if start is None else start()).to(self.device)
        if prior is not None:
            begin = self.model.head.start_on_margin if config.margin else self.model.head.start_at
            begin(torch.as_tensor(prior))
        if train_only is not None:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(part_of(name) in train_only)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim >= 2]
        others = [p for p in trained if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer: torch.optim.Optimizer
        if optimizer == "adamw8bit":
            from balancer.models.quantization.bitsandbytes_backend import adamw8bit

            self.optimizer = adamw8bit(groups, lr=learning_rate)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        self.class_weight = None if class_weight is None else torch.as_tensor(class_weight, dtype=torch.float32, device=self.device)
        self._offset: torch.Tensor | None = None
        self._row_weight: tuple[np.ndarray, np.ndarray] | None = None
        self.step = 0

    def compensate(self, class_weight: np.ndarray, offset: np.ndarray, rows: np.ndarray, row_weight: np.ndarray | None = None) -> None:
        """Count the rows of the next epoch so that their sampling is compensated.

        Args:
            class_weight: (K,) loss weight of each class.
            offset: (K,) what is added to the logits in training only. With the log of each class's mass, the
                logits without it are those of a stream with equally frequent classes; with the log of the
                mass less the log prior, those of the natural stream.
            rows: (n,) store rows of the epoch.
            row_weight: (n,) weight of each row within its class; None: 1.
        """
        self.class_weight = torch.as_tensor(class_weight, dtype=torch.float32, device=self.device)
        self._offset = torch.as_tensor(offset, dtype=torch.float32, device=self.device)
        self._row_weight = None
        if row_weight is not None:
            unique, first = np.unique(rows, return_index=True)
            self._row_weight = unique, np.asarray(row_weight)[first]

    def fit(self, rows: np.ndarray, extra: Mapping[str, np.ndarray] | None = None) -> float:
        """Train on rows, one optimizer step per mini-batch.

        Args:
            rows: (n,) store rows. Mini-batches are taken in this order; in the form `histories`, the rows of
                one history stay together, and the order of histories is random.
            extra: Store rows of auxiliary tasks by name, spread over the same steps. Where ``rows`` is empty,
                the number of steps follows from these rows, and the loss is that of the tasks.

        Returns:
            The mean loss over the steps; NaN without rows.
        """
        self.model.train()
        torch.manual_seed(integer_seed(self.seed, "dropout", self.step))
        extra = extra or {}
        most = len(rows) or max(map(len, extra.values()), default=0)
        steps = -(-most // self.batch_size)
        sources = [self._minibatches(rows, self.batch_size, "histories")]
        sources += [
            self._minibatches(task_rows, -(-len(task_rows) // max(1, steps)), f"histories {name}") for name, task_rows in extra.items()
        ]
        losses = []
        for chosen in zip_longest(*sources, fillvalue=np.zeros(0, dtype=np.int64)):
            if any(len(source_rows) for source_rows in chosen):
                warm_up(self.model, self.step < self.warm_steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate * learning_rate_factor(self.step, self.total_steps)
                self.optimizer.zero_grad(set_to_none=True)
                losses.append(self._gradients(chosen, tuple(extra)))
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
            self.step += 1
        warm_up(self.model, False)
        return float(torch.stack(losses).mean()) if losses else math.nan

    def _minibatches(self, rows: np.ndarray, size: int, purpose: str) -> Iterator[np.ndarray]:
        """Store rows of each optimizer step."""
        if not len(rows):
            return
        if self.config.form == "histories":
            rng = generator(self.seed, purpose, self.step)
            for index in minibatches(self.dataset.store, rows, self.config.history_length, size, rng):
                yield rows[index]
        else:
            for first in range(0, len(rows), size):
                yield rows[first : first + size]

    def _gradients(self, chosen: tuple[np.ndarray, ...], names: tuple[str, ...]) -> torch.Tensor:
        """Compute the gradients of one step.

        Args:
            chosen: Rows of the classification, then those of each auxiliary task.
            names: Names of the auxiliary tasks.

        Returns:
            The loss.
        """
        targets = {name: self._targets(name, task_rows) for name, task_rows in zip(names, chosen[1:], strict=True)}
        weight = [self._weight(chosen[0]), *((target >= 0).sum(1) for target in targets.values())]
        step = StepRows.of(chosen, targets, np.concatenate(weight))
        if self.micro_batches.count == 1:
            return self._backward(step, np.arange(len(step.rows)))
        if self.config.form == "histories":
            parts = cut_histories(self.dataset.store, step.rows, self.config.history_length, self.micro_batches.count)
        else:
            parts = cut_rows([len(source_rows) for source_rows in chosen], self.micro_batches.count)
        total = GradientSum([p for p in self.model.parameters() if p.requires_grad], self.micro_batches)
        for number in self.micro_batches.own:
            torch.manual_seed(integer_seed(self.seed, "dropout", self.step, number))
            total.add(self._backward(step, parts[number]))
        return total.total()

    def _backward(self, step: StepRows, which: np.ndarray) -> torch.Tensor:
        """Compute the gradients of some rows of a step, in as many passes as memory requires.

        The gradients of all rows are the sum over parts of the step.

        Args:
            step: All rows of the step.
            which: (m,) indices of the rows, increasing.

        Returns:
            The part of the step's loss.
        """
        total = torch.zeros((), device=self.device)
        if not len(which):
            return total
        if self.config.form == "rows":
            batch = self._batch(step.rows[which])
            if step.hidden is not None:
                batch = self._hide(batch, (torch.arange(len(which), device=self.device), batch.lengths - 1), step.hidden[which])
            share = np.ones(step.sources) if len(which) == len(step.rows) else step.share(which)
            return self._pass(batch, None, step, which, share)
        for part in history_batches(self.dataset.store, step.rows[which], self.config.history_length, self.device):
            here, batch = which[part.index], part.batch
            if step.hidden is not None:
                batch = self._hide(batch, part.targets, step.hidden[here])
            total = total + self._pass(batch, part.targets, step, here, step.share(here))
        return total

    def _pass(self, batch: SequenceBatch, targets: Targets | None, step: StepRows, which: np.ndarray, share: np.ndarray) -> torch.Tensor:
        """Compute the gradients of one forward pass.

        Args:
            batch: The encoded histories.
            targets: Positions of the rows in the batch; None: the last position of each.
            step: All rows of the step.
            which: (n,) indices of the rows of this pass.
            share: Weight of the mean over this pass's rows of each source.

        Returns:
            The loss.
        """
        source, wanted, part = step.source[which], step.targets_of(which), len(which) / len(step.rows)
        rows = step.rows[which]
        own = rows[source == 0]
        label = torch.as_tensor(self.dataset.store.label[own].astype(np.int64), device=self.device)
        row_weight = self._weights_of(own)
        with autocast(self.device):
            encoded = self.model.encode(batch, targets)
            if self.model.tasks is None:
                loss = float(share[0]) * self._loss(self._adjusted(self.model.logits(encoded)), label, row_weight)
                objective = loss + float(share[0]) * distillation_loss(self.model)
                shown = loss
            else:
                losses: dict[str, torch.Tensor] = {}
                if len(label):
                    logits = self._adjusted(self.model.logits(_rows(encoded, source == 0)))
                    each = self.model.head.losses(logits, label, self.class_weight, *row_weight)
                    losses = {name: float(share[0]) * value for name, value in each.items()}
                    shown = torch.stack(list(losses.values())).sum()
                for number, (name, target) in enumerate(wanted.items(), start=1):
                    if len(target):
                        outputs = self.model.tasks(name, _rows(encoded, source == number))
                        losses[name] = float(share[number]) * FieldHead.loss(outputs, torch.as_tensor(target, device=self.device))
                if not len(label):
                    shown = torch.stack(list(losses.values())).mean()
                objective = self.model.tasks.weighted(losses, self.task_weights) + part * distillation_loss(self.model)
                if self.task_weights is None:
                    objective = objective + part * self.model.tasks.uncertainty_penalty()
        objective.backward()
        return shown.detach()

    def _loss(self, logits: torch.Tensor, label: torch.Tensor, row_weight: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.model.head.loss(logits, label, self.class_weight, *row_weight)

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self._offset is None else self.model.head.adjusted(logits, self._offset)

    def _weights_of(self, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Weights (n,) of rows within their classes, the last argument of a loss; empty where all are 1."""
        if self._row_weight is None:
            return ()
        return (torch.as_tensor(self._row_weights(rows), dtype=torch.float32, device=self.device),)

    def _row_weights(self, rows: np.ndarray) -> np.ndarray:
        assert self._row_weight is not None
        known, weight = self._row_weight
        found: np.ndarray = weight[np.searchsorted(known, rows)]
        return found

    def _targets(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(n, F) targets of a task; of masked fields, only those that are masked in this step."""
        task = next(task for task in self.config.tasks if task.name == name)
        found = task_targets(self.dataset, self.config, task, rows)
        if name == "masked_fields":
            found[generator(self.seed, "hidden", self.step).random(found.shape) >= HIDDEN] = -1
        return found

    def _hide(self, batch: SequenceBatch, targets: Targets, hidden: np.ndarray) -> SequenceBatch:
        """Hide the fields ``hidden`` (n, C) at the targets (n,), in place.

        A hidden number is NaN, a hidden category has code 0. Where a missing number has a bin of its own, the
        batch says too which fields are hidden.
        """
        nothing = torch.zeros(hidden.shape[1], device=self.device)
        nothing[: self.dataset.store.num_numeric] = torch.nan
        row, position = targets
        values = batch.values[row, position]
        chosen = torch.as_tensor(hidden, device=self.device)
        batch.values[row, position] = torch.where(chosen, nothing, values)
        if not self.config.missing:
            return batch
        everywhere = torch.zeros_like(batch.values, dtype=torch.bool)
        everywhere[row, position] = chosen
        return replace(batch, hidden=everywhere)

    def _weight(self, rows: np.ndarray) -> np.ndarray:
        """(n,) weight of each row in a mean loss."""
        label = self.dataset.store.label[rows]
        weight = np.ones(len(self.config.classes)) if self.class_weight is None else self.class_weight.cpu().numpy()
        result: np.ndarray = np.where(label >= 0, weight[label], 0.0)
        return result if self._row_weight is None else result * self._row_weights(rows)

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Class probabilities of ``rows`` (n,): float32 (n, K), class 0 is the negative class."""
        workers = self.micro_batches.workers
        return workers.added(score_rows(self.model, self.dataset, rows, device=self.device, part=(workers.rank, workers.size)))

    def score_task(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Class probabilities (n, F, M) float32 of an auxiliary task; see `balancer.inference.scoring`."""
        workers = self.micro_batches.workers
        return workers.added(score_task(self.model, self.dataset, name, rows, device=self.device, part=(workers.rank, workers.size)))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays from which :meth:`load_state_dict` continues exactly."""
        arrays = {f"model.{name}": tensor.detach().cpu().numpy().copy() for name, tensor in self.model.state_dict().items()}
        arrays |= moments_to_arrays(self.optimizer, "optimizer")
        arrays["step"] = np.array(self.step)
        return arrays

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restore the arrays of :meth:`state_dict`."""
        weights = {name.removeprefix("model."): array for name, array in arrays.items() if name.startswith("model.")}
        self.model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
        load_moments(self.optimizer, "optimizer", arrays)
        self.step = int(arrays["step"])

    def _batch(self, rows: np.ndarray) -> SequenceBatch:
        values, lengths = self.dataset.store.windows(rows, self.config.history_length)
        return SequenceBatch.from_windows(values, lengths, self.device)


def _rows(batch: SequenceBatch, chosen: np.ndarray) -> SequenceBatch:
    """Rows of a batch where ``chosen`` (n,) is true."""
    index = torch.as_tensor(np.flatnonzero(chosen), device=batch.lengths.device)
    margin = None if batch.margin is None else batch.margin[index]
    return SequenceBatch(batch.values[index], batch.lengths[index], batch.mask[index], margin)
