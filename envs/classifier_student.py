"""The real student: the transaction-sequence classifier, fitted on rows that somebody else chooses.

It knows nothing of sampling. ``fit`` takes the store rows to train on, in order, a mini-batch at a time; ``score`` gives class
probabilities. Its state is arrays (weights, AdamW moments, a step count) and its dropout is drawn from (seed, step), so a saved state
continues to the same bits. Recipe: AdamW, 5 % linear warm-up then cosine to zero, gradient norm clipped to 1, bf16 autocast on CUDA.

A model of the form `sequence` is trained on the same rows: one pass over a history judges all the rows drawn from it. Sparse attention is dense
for the first part of the steps and learns meanwhile what its global nodes should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch

from balancer.data.dataset import Dataset
from balancer.envs.sequence_batches import minibatches, sequence_parts
from balancer.models import Classifier, ModelConfig, SequenceBatch, autocast
from balancer.models.attention import distillation_loss, warm_up
from balancer.sampling.seeding import generator, integer_seed

WARMUP_SHARE = 0.05
SCORE_BATCH = 1024


class ClassifierStudent:
    """A classifier with its optimizer, on one dataset.

    Parameters
    ----------
    dataset
        Windows and labels come from its store.
    config
        What to build; ``config.history`` is the window length.
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
    ) -> None:
        self.dataset, self.config, self.seed, self.device = dataset, config, seed, torch.device(device)
        self.total_steps, self.batch_size, self.learning_rate = total_steps, batch_size, learning_rate
        self.warm_steps = round(warmup * total_steps)
        torch.manual_seed(integer_seed(seed, "weights"))
        self.model = Classifier(config).to(self.device)
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer: torch.optim.Optimizer
        if optimizer == "adamw8bit":
            from balancer.models.quantization.bitsandbytes_backend import adamw8bit

            self.optimizer = adamw8bit(groups, lr=learning_rate)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        self.class_weight = None if class_weight is None else torch.as_tensor(class_weight, dtype=torch.float32, device=self.device)
        self.step = 0

    def fit(self, rows: np.ndarray) -> float:
        """Train on ``rows`` (n,), one optimizer step per mini-batch; return the mean loss.

        Mini-batches are taken in the given order; in the form `sequence` rows of one history go together, and the order of histories is drawn.
        """
        self.model.train()
        torch.manual_seed(integer_seed(self.seed, "dropout", self.step))
        losses = []
        for chosen in self._minibatches(rows):
            if len(chosen):
                warm_up(self.model, self.step < self.warm_steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate * self._schedule()
                self.optimizer.zero_grad(set_to_none=True)
                losses.append(self._backward(chosen))
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
            self.step += 1
        warm_up(self.model, False)
        return float(torch.stack(losses).mean()) if losses else math.nan

    def _minibatches(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The store rows of each optimizer step."""
        if self.config.form == "sequence":
            rng = generator(self.seed, "histories", self.step)
            for index in minibatches(self.dataset.store, rows, self.config.history, self.batch_size, rng):
                yield rows[index]
        else:
            for first in range(0, len(rows), self.batch_size):
                yield rows[first : first + self.batch_size]

    def _backward(self, rows: np.ndarray) -> torch.Tensor:
        """Gradients of the mean loss of ``rows`` (n,), in as many passes as memory asks for; the loss."""
        if self.config.form == "window":
            batch = self._batch(rows)
            return self._pass(lambda: self.model(batch), rows, 1.0)
        weights = self._weight(rows)
        total = torch.zeros((), device=self.device)
        for part in sequence_parts(self.dataset.store, rows, self.config.history, self.device):
            own = rows[part.which]
            # Means over the passes add up to the mean over all rows when each counts by the weight of its rows.
            share = float(self._weight(own).sum() / weights.sum()) if weights.sum() > 0 else 0.0
            total = total + self._pass(lambda part=part: self.model(part.batch, part.targets), own, share)  # type: ignore[misc]
        return total

    def _pass(self, logits: Callable[[], torch.Tensor], rows: np.ndarray, share: float) -> torch.Tensor:
        label = torch.as_tensor(self.dataset.store.label[rows].astype(np.int64), device=self.device)
        with autocast(self.device):
            loss = share * self.model.loss(logits(), label, self.class_weight)
            objective = loss + share * distillation_loss(self.model)
        objective.backward()
        return loss.detach()

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
        values, lengths = self.dataset.store.windows(rows, self.config.history)
        return SequenceBatch.from_windows(values, lengths, self.device)


@torch.no_grad()
def score_rows(model: Classifier, dataset: Dataset, rows: np.ndarray, *, device: torch.device) -> np.ndarray:
    """Class probabilities (n, K) float32 of the store ``rows`` (n,) under ``model``, a batch at a time."""
    model.eval()
    scores = np.empty((len(rows), len(model.config.classes)), dtype=np.float32)
    if model.config.form == "sequence":
        for part in sequence_parts(dataset.store, rows, model.config.history, device):
            with autocast(device):
                scores[part.which] = model.probabilities(part.batch, part.targets).float().cpu().numpy()
        return scores
    for first in range(0, len(rows), SCORE_BATCH):
        chosen = rows[first : first + SCORE_BATCH]
        values, lengths = dataset.store.windows(chosen, model.config.history)
        with autocast(device):
            probabilities = model.probabilities(SequenceBatch.from_windows(values, lengths, device))
        scores[first : first + len(chosen)] = probabilities.float().cpu().numpy()
    return scores
