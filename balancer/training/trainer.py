"""The real student: the transaction-sequence classifier, fitted on rows that somebody else chooses.

It knows nothing of sampling. ``fit`` takes the store rows to train on, in order, a mini-batch at a time; ``score`` gives class
probabilities. Its state is arrays (weights, AdamW moments, a step count) and its dropout is drawn from (seed, step), so a saved state
continues to the same bits. Recipe: AdamW, 5 % linear warm-up then cosine to zero, gradient norm clipped to 1, bf16 autocast on CUDA.

Further tasks learn from rows of their own in the same pass, and with `train_only` everything but the named parts stays what it is, to the last bit.

A model of the form `histories` is trained on the same rows: one pass over a history judges all the rows drawn from it. Sparse attention is dense
for the first part of the steps and learns meanwhile what its global nodes should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import zip_longest
from typing import Literal

import numpy as np
import torch

from balancer.data.dataset import Dataset
from balancer.inference.batches import minibatches, sequence_parts
from balancer.inference.scoring import score_rows
from balancer.models import Classifier, ModelConfig, SequenceBatch, Targets, autocast, part_of
from balancer.models.attention import distillation_loss, warm_up
from balancer.models.tasks import FieldHead
from balancer.sampling.seeding import generator, integer_seed
from balancer.training.auxiliary_targets import HIDDEN, task_targets

WARMUP_SHARE = 0.05


class ClassifierStudent:
    """A classifier with its optimizer, on one dataset.

    Parameters
    ----------
    dataset
        Windows and labels come from its store.
    config
        What to build; ``config.history_length`` is the window length.
    seed
        Weights and dropout are functions of it.
    total_steps
        Length of the learning-rate schedule in mini-batches of ``batch_size``.
    class_weight
        Loss weight per class, shape (K,), or None.
    warmup
        Share of the steps in which sparse attention is dense and its global nodes are learned by distillation; without effect on others.
    optimizer
        ``adamw``, or ``adamw8bit`` of bitsandbytes, on CUDA.
    start
        Makes the model to begin with instead of a new one; its configuration is ``config``.
    train_only
        Parts (`balancer.models.PARTS`) that are trained; all others keep their weights and have no optimizer state. All are where it is None.
    task_weights
        Fixed weight of each loss by name, 1 where it has none; where it is None weights are learned from how uncertain each loss is.
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
        warmup: float = 0.0,
        optimizer: Literal["adamw", "adamw8bit"] = "adamw",
        device: str = "cpu",
        start: Callable[[], Classifier] | None = None,
        train_only: Collection[str] | None = None,
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.dataset, self.config, self.seed, self.device = dataset, config, seed, torch.device(device)
        self.total_steps, self.batch_size, self.learning_rate = total_steps, batch_size, learning_rate
        # Frozen attention has no score to learn.
        self.warm_steps = round(warmup * total_steps) if train_only is None or "attention" in train_only else 0
        self.task_weights = task_weights
        torch.manual_seed(integer_seed(seed, "weights"))
        self.model = (Classifier(config) if start is None else start()).to(self.device)
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
        self.step = 0

    def fit(self, rows: np.ndarray, extra: Mapping[str, np.ndarray] | None = None) -> float:
        """Train on ``rows`` (n,), one optimizer step per mini-batch; return the mean loss.

        Mini-batches are taken in the given order; in the form `histories` rows of one history go together, and the order of histories is drawn.
        ``extra`` are rows of further tasks by name, spread over the same steps; without any ``rows`` the steps are those of the first task's rows, and the
        loss is the tasks'.
        """
        self.model.train()
        torch.manual_seed(integer_seed(self.seed, "dropout", self.step))
        extra = extra or {}
        most = len(rows) or max(map(len, extra.values()), default=0)
        steps = -(-most // self.batch_size)
        sources = [self._minibatches(rows, self.batch_size, "histories")]
        sources += [self._minibatches(own, -(-len(own) // max(1, steps)), f"histories {name}") for name, own in extra.items()]
        losses = []
        for chosen in zip_longest(*sources, fillvalue=np.zeros(0, dtype=np.int64)):
            if any(len(own) for own in chosen):
                warm_up(self.model, self.step < self.warm_steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate * self._schedule()
                self.optimizer.zero_grad(set_to_none=True)
                losses.append(self._backward(chosen, tuple(extra)))
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
            self.step += 1
        warm_up(self.model, False)
        return float(torch.stack(losses).mean()) if losses else math.nan

    def _minibatches(self, rows: np.ndarray, size: int, purpose: str) -> Iterator[np.ndarray]:
        """The store rows of each optimizer step."""
        if not len(rows):
            return
        if self.config.form == "histories":
            rng = generator(self.seed, purpose, self.step)
            for index in minibatches(self.dataset.store, rows, self.config.history_length, size, rng):
                yield rows[index]
        else:
            for first in range(0, len(rows), size):
                yield rows[first : first + size]

    def _backward(self, chosen: tuple[np.ndarray, ...], names: tuple[str, ...]) -> torch.Tensor:
        """Gradients of the losses of one step, in as many passes as memory asks for; the loss.

        ``chosen`` are the main rows, then those of the tasks ``names``.
        """
        rows = np.concatenate(chosen)
        source = np.repeat(np.arange(len(chosen)), [len(own) for own in chosen])
        targets = {name: self._targets(name, own) for name, own in zip(names, chosen[1:], strict=True)}
        hidden = self._hidden(rows, source, names, targets)
        weight = np.concatenate([self._weight(chosen[0]), *((own >= 0).sum(1) for own in targets.values())])
        totals = np.bincount(source, weight, minlength=len(chosen))
        told = torch.zeros((), device=self.device)
        if self.config.form == "rows":
            batch = self._batch(rows)
            if hidden is not None:
                self._hide(batch, (torch.arange(len(rows), device=self.device), batch.lengths - 1), hidden)
            return self._pass(batch, None, rows, source, np.ones(len(chosen)), targets, 1.0)
        offset = np.concatenate([[0], np.cumsum([len(own) for own in chosen])])
        for part in sequence_parts(self.dataset.store, rows, self.config.history_length, self.device):
            which = part.which
            if hidden is not None:
                self._hide(part.batch, part.targets, hidden[which])
            # Means over the passes add up to the mean over all rows when each counts by the weight of its rows.
            own = np.bincount(source[which], weight[which], minlength=len(chosen))
            share = np.divide(own, totals, out=np.zeros_like(own), where=totals > 0)
            here = {
                name: target[which[source[which] == number] - offset[number]]
                for number, (name, target) in enumerate(targets.items(), start=1)
            }
            told = told + self._pass(part.batch, part.targets, rows[which], source[which], share, here, len(which) / len(rows))
        return told

    def _pass(
        self,
        batch: SequenceBatch,
        targets: Targets | None,
        rows: np.ndarray,
        source: np.ndarray,
        share: np.ndarray,
        wanted: Mapping[str, np.ndarray],
        part: float,
    ) -> torch.Tensor:
        """Gradients of one forward pass over rows (n,) that belong to the main decision (``source`` 0) and to tasks (1, 2, ...).

        ``share`` is what a mean over this pass's rows of each source counts, ``part`` the pass's share of all rows; ``wanted`` are the tasks' targets.
        """
        label = torch.as_tensor(self.dataset.store.label[rows[source == 0]].astype(np.int64), device=self.device)
        with autocast(self.device):
            encoded = self.model.encode(batch, targets)
            if self.model.tasks is None:
                loss = float(share[0]) * self.model.loss(self.model.head(encoded), label, self.class_weight)
                objective = loss + float(share[0]) * distillation_loss(self.model)
                told = loss
            else:
                losses: dict[str, torch.Tensor] = {}
                if len(label):
                    logits = self.model.head(_rows(encoded, source == 0))
                    each = self.model.head.losses(logits, label, self.class_weight)
                    losses = {name: float(share[0]) * value for name, value in each.items()}
                    told = torch.stack(list(losses.values())).sum()
                for number, (name, target) in enumerate(wanted.items(), start=1):
                    if len(target):
                        own = self.model.tasks(name, _rows(encoded, source == number))
                        losses[name] = float(share[number]) * FieldHead.loss(own, torch.as_tensor(target, device=self.device))
                if not len(label):
                    told = torch.stack(list(losses.values())).mean()
                objective = self.model.tasks.weighted(losses, self.task_weights) + part * distillation_loss(self.model)
                if self.task_weights is None:
                    objective = objective + part * self.model.tasks.price()
        objective.backward()
        return told.detach()

    def _targets(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(n, F) targets of a task; of hidden fields those that are hidden in this step."""
        task = next(task for task in self.config.tasks if task.name == name)
        found = task_targets(self.dataset, self.config, task, rows)
        if name == "masked_fields":
            found[generator(self.seed, "hidden", self.step).random(found.shape) >= HIDDEN] = -1
        return found

    @staticmethod
    def _hidden(rows: np.ndarray, source: np.ndarray, names: tuple[str, ...], targets: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """(n, C) bool: fields to hide at each target; None where no task hides any."""
        if "masked_fields" not in targets:
            return None
        own = targets["masked_fields"] >= 0
        hidden = np.zeros((len(rows), own.shape[1]), dtype=bool)
        hidden[source == 1 + names.index("masked_fields")] = own
        return hidden

    def _hide(self, batch: SequenceBatch, targets: Targets, hidden: np.ndarray) -> None:
        """Make the fields ``hidden`` (n, C) at the targets (n,) missing, in place: NaN for a number, code 0 for a category."""
        nothing = torch.zeros(hidden.shape[1], device=self.device)
        nothing[: self.dataset.store.num_numeric] = torch.nan
        row, position = targets
        values = batch.values[row, position]
        batch.values[row, position] = torch.where(torch.as_tensor(hidden, device=self.device), nothing, values)

    def _weight(self, rows: np.ndarray) -> np.ndarray:
        """(n,) weight of each row in a mean loss."""
        label = self.dataset.store.label[rows]
        weight = np.ones(len(self.config.classes)) if self.class_weight is None else self.class_weight.cpu().numpy()
        own: np.ndarray = np.where(label >= 0, weight[label], 0.0)
        return own

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Class probabilities of ``rows`` (n,): float32 (n, K), class 0 the negative one."""
        return score_rows(self.model, self.dataset, rows, device=self.device)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that :meth:`load_state` needs to continue to the same bits."""
        arrays = {f"model.{name}": tensor.detach().cpu().numpy().copy() for name, tensor in self.model.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            for name, tensor in moments.items():
                arrays[f"optimizer.{index}.{name}"] = torch.as_tensor(tensor).detach().cpu().numpy().copy()
        arrays["step"] = np.array(self.step)
        return arrays

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Take back what :meth:`state` gave."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        self.model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.step = int(arrays["step"])

    def _schedule(self) -> float:
        """Factor on the learning rate at the present step: linear warm-up, then cosine to zero."""
        warmup = max(1, int(WARMUP_SHARE * self.total_steps))
        if self.step < warmup:
            return (self.step + 1) / warmup
        done = (self.step - warmup) / max(1, self.total_steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def _batch(self, rows: np.ndarray) -> SequenceBatch:
        values, lengths = self.dataset.store.windows(rows, self.config.history_length)
        return SequenceBatch.from_windows(values, lengths, self.device)


def _rows(batch: SequenceBatch, chosen: np.ndarray) -> SequenceBatch:
    """The rows of a batch that are ``chosen`` (n,) bool."""
    index = torch.as_tensor(np.flatnonzero(chosen), device=batch.lengths.device)
    return SequenceBatch(batch.values[index], batch.lengths[index], batch.mask[index])
