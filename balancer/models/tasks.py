"""Auxiliary tasks on the shared trunk, such as predicting the next transaction or a hidden field.

Every task is a classification, with several targets if it concerns several fields, so one kind of head serves
all of them. The weight of each loss is fixed, or learned from the uncertainty of the task (Kendall et al.
2018, "Multi-Task Learning Using Uncertainty to Weigh Losses").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.batch import SequenceBatch


@dataclass(frozen=True)
class AuxiliaryTask:
    """An auxiliary task with F targets, each a class index."""

    name: str
    sizes: tuple[int, ...]
    """(F,) number of classes of each target, at least 2."""
    fields: tuple[str, ...] = ()
    """(F,) name of the field that each target describes."""
    edges: tuple[float, ...] = ()
    """Inner edges of the buckets, increasing, if the task predicts one number."""

    def __post_init__(self) -> None:
        for name in ("sizes", "fields", "edges"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.name.isidentifier():
            raise InputError(f"the name of a task must be a Python identifier, given {self.name!r}")
        if not self.sizes or any(not isinstance(size, int) or size < 2 for size in self.sizes):
            raise InputError(f"task '{self.name}' needs at least two classes for each of its targets, given {self.sizes}")

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {"name": self.name, "sizes": list(self.sizes), "fields": list(self.fields), "edges": list(self.edges)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> AuxiliaryTask:
        """Build a task from the result of :meth:`to_dict`.

        Raises:
            InputError: A key is missing, or a value has the wrong type or is out of range.
        """
        try:
            return cls(
                str(content["name"]),
                tuple(content["sizes"]),
                tuple(str(field) for field in content["fields"]),
                tuple(float(edge) for edge in content["edges"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a task of a model configuration can't be read ({error})") from error


class FieldHead(nn.Module):
    """Logits for the targets of one task, at the last real position.

    Args:
        d_model: number of input channels.
        sizes: (F,) number of classes of each target.
    """

    place: Tensor

    def __init__(self, d_model: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, sum(sizes))
        # Index of each target's logits among all logits. Targets with fewer classes than the largest are
        # padded with the index of an extra logit of -inf.
        place = torch.full((len(sizes), max(sizes)), sum(sizes))
        begin = 0
        for target, size in enumerate(sizes):
            place[target, :size] = torch.arange(begin, begin + size)
            begin += size
        self.register_buffer("place", place, persistent=False)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Compute log-probabilities (B, F, M) float32.

        M is the largest number of classes; entries of targets with fewer classes are -inf.
        """
        logits = self.project(batch.last().values[:, 0]).float()
        padded = nn.functional.pad(logits, (0, 1), value=-torch.inf)
        return padded[:, self.place].log_softmax(-1)

    @staticmethod
    def loss(log_probability: Tensor, target: Tensor) -> Tensor:
        """Compute the mean cross-entropy over the targets (B, F) int64; -1 marks a missing target.

        The loss is zero if no target is present.
        """
        present = target >= 0
        each = -log_probability.gather(2, target.clamp(min=0)[..., None])[..., 0].masked_fill(~present, 0)
        return each.sum() / present.sum().clamp(min=1)


class TaskHeads(nn.Module):
    """Heads of all auxiliary tasks, and a learned log-variance for each loss.

    The losses of the main head have a log-variance too.

    Args:
        d_model: number of input channels.
        tasks: tasks to build heads for.
        main: names of the losses of the main head.
    """

    def __init__(self, d_model: int, tasks: Sequence[AuxiliaryTask], main: Sequence[str]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({task.name: FieldHead(d_model, task.sizes) for task in tasks})
        self.names = (*main, *self.heads)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, name: str, batch: SequenceBatch) -> Tensor:
        """Compute the log-probabilities (B, F, M) of one task."""
        logits: Tensor = self.heads[name](batch)
        return logits

    def weighted(self, losses: Mapping[str, Tensor], fixed: Mapping[str, float] | None = None) -> Tensor:
        """Sum the weighted losses.

        Args:
            losses: loss by name.
            fixed: weight by name, 1 for a name that it lacks. If None, each weight is exp(-log variance).
        """
        terms = []
        for name, loss in losses.items():
            weight = fixed.get(name, 1.0) if fixed is not None else torch.exp(-self.log_variance[self.names.index(name)])
            terms.append(weight * loss)
        return torch.stack(terms).sum()

    def uncertainty_penalty(self) -> Tensor:
        """Regularization term of the learned weights: half the sum of the log-variances.

        Add it once per step.
        """
        return 0.5 * self.log_variance.sum()
