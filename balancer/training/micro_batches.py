"""A step in micro-batches: how its rows are cut, and how the gradients of the parts are added.

The number of micro-batches is fixed for a run, and each is computed by one process, so the result of a step
does not depend on the number of processes: a gradient is computed in float32, the sum in float64 is rounded
to float32 once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from balancer.data.store import TransactionStore
from balancer.errors import InputError
from balancer.training.distributed import ALONE, Workers

MICRO_BATCHES = 4
"""Micro-batches of a step where several processes train a run and nothing else is asked for."""


@dataclass(frozen=True)
class MicroBatches:
    """How the steps of a training are divided."""

    count: int = 1
    """Micro-batches of a step."""
    ordered: bool = False
    """Whether their gradients are added in a fixed order, and not only those of each process first."""
    workers: Workers = field(default=ALONE)
    """The processes that compute them."""

    def __post_init__(self) -> None:
        if self.count % self.workers.size:
            raise InputError(
                f"{self.workers.size} workers can't share the {self.count} micro-batches of a step evenly: start a number of workers that "
                f"divides {self.count}, or give --micro-batches a multiple of {self.workers.size} in a new run"
            )

    @property
    def own(self) -> range:
        """The micro-batches that this process computes."""
        return range(self.workers.rank, self.count, self.workers.size)


@dataclass(frozen=True)
class StepRows:
    """The rows of a step: those of the classification, then those of each auxiliary task."""

    rows: np.ndarray
    """(n,) store rows."""
    source: np.ndarray
    """(n,) 0 for rows of the classification, 1, 2, ... for rows of the auxiliary tasks."""
    offset: np.ndarray
    """Index of the first row of each source, and n."""
    targets: Mapping[str, np.ndarray]
    """Targets of each auxiliary task by name."""
    weight: np.ndarray
    """(n,) weight of each row in the mean loss of its source."""
    hidden: np.ndarray | None
    """(n, C) bool: fields to mask at each row; None where no task masks any."""

    @classmethod
    def of(cls, chosen: Sequence[np.ndarray], targets: Mapping[str, np.ndarray], weight: np.ndarray) -> StepRows:
        """The rows of each source, the targets of the auxiliary tasks, and the weights (n,) of the rows."""
        sizes = [len(source_rows) for source_rows in chosen]
        source, offset = np.repeat(np.arange(len(chosen)), sizes), np.concatenate([[0], np.cumsum(sizes)])
        hidden = None
        if "masked_fields" in targets:
            masked = targets["masked_fields"] >= 0
            hidden = np.zeros((len(source), masked.shape[1]), dtype=bool)
            hidden[source == 1 + list(targets).index("masked_fields")] = masked
        return cls(np.concatenate(chosen), source, offset, targets, weight, hidden)

    @property
    def sources(self) -> int:
        """Number of sources."""
        return len(self.offset) - 1

    def share(self, which: np.ndarray) -> np.ndarray:
        """Weight of the mean over some rows of each source, so that these means add up to that over all rows.

        Args:
            which: (m,) indices of the rows.
        """
        whole, part = (
            np.bincount(source, weight, minlength=self.sources)
            for source, weight in ((self.source, self.weight), (self.source[which], self.weight[which]))
        )
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    def targets_of(self, which: np.ndarray) -> dict[str, np.ndarray]:
        """Targets of the auxiliary tasks for some rows, by name."""
        return {
            name: target[which[self.source[which] == number] - self.offset[number]]
            for number, (name, target) in enumerate(self.targets.items(), start=1)
        }


def default_count(workers: Workers) -> int:
    """Micro-batches of a step of several processes where ``--micro-batches`` is not given."""
    return MICRO_BATCHES if MICRO_BATCHES % workers.size == 0 else workers.size


def cut_rows(sizes: Sequence[int], count: int) -> list[np.ndarray]:
    """Cut the rows of a step into micro-batches, of each source equally many.

    Args:
        sizes: Rows of each source; the rows of the sources follow each other.
        count: Number of micro-batches.

    Returns:
        Indices of the rows of each micro-batch, increasing.
    """
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    parts = [np.array_split(np.arange(begin, end), count) for begin, end in pairwise(offsets)]
    return [np.concatenate([part[number] for part in parts]) for number in range(count)]


def cut_histories(store: TransactionStore, rows: np.ndarray, history: int, count: int) -> list[np.ndarray]:
    """Cut the rows of a step into micro-batches of whole segments of history, of about equal length.

    Args:
        store: The transactions.
        rows: (n,) target store rows.
        history: Longest segment, in rows.
        count: Number of micro-batches.

    Returns:
        Indices of the rows of each micro-batch, increasing.
    """
    segments = store.segments(rows, history)
    number = np.empty(len(segments.first), dtype=np.int64)
    number[np.argsort(segments.last - segments.first, kind="stable")] = np.arange(len(number)) % count
    return [np.flatnonzero(number[segments.segment] == each) for each in range(count)]


class GradientSum:
    """The gradients and losses of the micro-batches of a step, added over all processes.

    Args:
        parameters: Parameters that are trained.
        micro_batches: How the step is divided.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], micro_batches: MicroBatches) -> None:
        self.parameters, self.micro_batches = parameters, micro_batches
        self._added: torch.Tensor | None = None
        self._each: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        """Take the gradients of the next micro-batch of this process from the parameters, and its loss."""
        values = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        has_gradient = torch.tensor([p.grad is not None for p in self.parameters], dtype=torch.float32, device=loss.device)
        flat = torch.cat([*(value.flatten().float() for value in values), has_gradient, loss.detach().float()[None]])
        for parameter in self.parameters:
            parameter.grad = None
        if self.micro_batches.ordered:
            self._each.append(flat)
        elif self._added is None:
            self._added = flat.double()
        else:
            self._added += flat

    def total(self) -> torch.Tensor:
        """Set the gradients of the parameters to the sums over all micro-batches.

        A parameter without a gradient in any of them keeps none, so that the optimizer skips it.

        Returns:
            The sum of the losses.
        """
        workers = self.micro_batches.workers
        if self.micro_batches.ordered:
            # Micro-batch m is number m // W of process m % W.
            in_order = workers.stacked(torch.stack(self._each)).transpose(0, 1).flatten(0, 1)
            total = in_order[0].double()
            for each in in_order[1:]:
                total += each
        else:
            assert self._added is not None
            total = workers.add(self._added)
        result = total.float()
        sizes = [p.numel() for p in self.parameters]
        present = result[sum(sizes) : -1].tolist()
        for parameter, value, found in zip(self.parameters, result[: sum(sizes)].split(sizes), present, strict=True):
            parameter.grad = value.view_as(parameter).clone() if found else None
        return result[-1]
