"""Further tasks on one trunk: what comes next, and what is hidden, beside the decision that matters.

Special: every task is a choice among classes, several at once where it is about several fields, so one head does for all of them; and what each counts is
either fixed or learned from how uncertain it is (Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses").
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
class Task:
    """One task: F targets, each a class index."""

    name: str
    sizes: tuple[int, ...]
    """(F,) number of classes of each target, at least 2."""
    fields: tuple[str, ...] = ()
    """(F,) what each target is about."""
    edges: tuple[float, ...] = ()
    """Inner edges of the buckets of a task about one number, increasing."""

    def __post_init__(self) -> None:
        for name in ("sizes", "fields", "edges"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.name.isidentifier():
            raise InputError(f"a task's name is one word, given {self.name!r}")
        if not self.sizes or any(not isinstance(size, int) or size < 2 for size in self.sizes):
            raise InputError(f"task '{self.name}' needs at least two classes for each of its targets, given {self.sizes}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"name": self.name, "sizes": list(self.sizes), "fields": list(self.fields), "edges": list(self.edges)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Task:
        """Inverse of :meth:`to_dict`; InputError where it is none."""
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
    """Logits of one task's targets at the last real position.

    Args:
        d_model: channels in.
        sizes: (F,) classes of each target.
    """

    place: Tensor

    def __init__(self, d_model: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, sum(sizes))
        # Where the logits of each target stand among all of them; targets of fewer classes than the largest are padded by one that is -inf.
        place = torch.full((len(sizes), max(sizes)), sum(sizes))
        begin = 0
        for target, size in enumerate(sizes):
            place[target, :size] = torch.arange(begin, begin + size)
            begin += size
        self.register_buffer("place", place, persistent=False)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Log-probabilities (B, F, M) float32, M the largest number of classes; -inf where a target has fewer."""
        logits = self.project(batch.last().values[:, 0]).float()
        padded = nn.functional.pad(logits, (0, 1), value=-torch.inf)
        return padded[:, self.place].log_softmax(-1)

    @staticmethod
    def loss(log_probability: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy over the targets (B, F) int64 that are there; -1 is none. Zero where there is none at all."""
        there = target >= 0
        each = -log_probability.gather(2, target.clamp(min=0)[..., None])[..., 0].masked_fill(~there, 0)
        return each.sum() / there.sum().clamp(min=1)


class TaskHeads(nn.Module):
    """The heads of all further tasks, and how uncertain each loss is, the main ones included.

    Args:
        d_model: channels in.
        tasks: what to make heads for.
        main: names of the losses of the main head.
    """

    def __init__(self, d_model: int, tasks: Sequence[Task], main: Sequence[str]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({task.name: FieldHead(d_model, task.sizes) for task in tasks})
        self.names = (*main, *self.heads)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, name: str, batch: SequenceBatch) -> Tensor:
        """Log-probabilities (B, F, M) of one task."""
        logits: Tensor = self.heads[name](batch)
        return logits

    def weighted(self, losses: Mapping[str, Tensor], fixed: Mapping[str, float] | None = None) -> Tensor:
        """Sum of the losses, each times its `fixed` weight (1 where it has none), or where nothing is fixed times exp(-log variance)."""
        terms = []
        for name, loss in losses.items():
            weight = fixed.get(name, 1.0) if fixed is not None else torch.exp(-self.log_variance[self.names.index(name)])
            terms.append(weight * loss)
        return torch.stack(terms).sum()

    def price(self) -> Tensor:
        """What being uncertain costs: half the sum of the log variances; once per step."""
        return 0.5 * self.log_variance.sum()
