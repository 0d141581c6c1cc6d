"""A trained classifier that reads one row at a time, as a service does, and gives each row the score it has in a table.

What is special: in a table a long history is cut into stretches that overlap by half, and a row is judged by the one in whose later half it stands
(`TransactionStore.segments`). Two states of constant size do the same: the stretch that judges and the one that will judge next, stepped together.
Every row is computed by itself, whatever comes with it, so its score is the same bits in a service and in `balancer score --streaming`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from balancer.data.dataset import Dataset
from balancer.devices import torch_threads
from balancer.errors import UnsupportedError
from balancer.models import Classifier, SequenceBatch


class RowState(NamedTuple):
    """What is remembered of one history."""

    position: int
    """Rows read."""
    fields: Tensor
    """(m, C) the last rows, where the model has no state of constant size; (0, C) where it has."""
    states: list[Any]
    """The model's own state of one or two stretches, the one that judges first; empty where it has none."""


class RowStream:
    """Reads the rows of one history after another from the state before to the state after; states are never changed in place.

    Args:
        model: a trained classifier; it is put in evaluation mode.
        device: where it computes.
    """

    def __init__(self, model: Classifier, device: torch.device) -> None:
        self.model, self.device = model.eval(), device
        self._channels = len(model.config.numeric_fields) + len(model.config.categorical_fields)
        self._half = model.config.history_length // 2
        self._empty = torch.zeros(0, self._channels, device=device)
        self.has_state = _has_state(model, self._channels, device)
        """Whether the model reads on from a state of constant size; if not, it is shown the rows of its window or stretch again."""

    def start(self) -> RowState:
        """Before the first row."""
        return RowState(0, self._empty, [])

    def first_needed(self, position: int) -> int:
        """The earliest row of a history that what comes at `position` is judged by."""
        if self.model.config.form == "histories":
            return max(position // self._half - 1, 0) * self._half
        return max(position - self.model.config.history_length + 1, 0)

    @torch.inference_mode()
    def step(self, fields: NDArray[np.float32], state: RowState) -> tuple[NDArray[np.float32], RowState]:
        """Read the next row (C,): its class probabilities (K,) float32, and the state after it."""
        # A copy, because the last bits of a product may depend on where in memory an operand begins; torch's own memory is aligned.
        own = torch.tensor(fields, device=self.device)[None]
        at = state.position
        if not self.has_state:
            kept = torch.cat([state.fields[len(state.fields) - (at - self.first_needed(at)) :], own])
            return self._judged(kept), RowState(at + 1, kept, [])
        states = state.states
        if at == 0:
            states = self.model.init_state(1)
        elif at % self._half == 0:
            states = _joined(_rows(states, slice(-1, None)), self.model.init_state(1))
        logits, states = self.model.step(own.expand(self.stretches(at), -1), states)
        probability: NDArray[np.float32] = self.model.head.probabilities(logits[:1])[0].float().cpu().numpy()
        return probability, RowState(at + 1, self._empty, states)

    @torch.inference_mode()
    def read(self, fields: NDArray[np.float32], position: int) -> RowState:
        """The state after `position` rows, in one pass over the last of them (m, C), those from `first_needed(position)` and `position - 1` on."""
        rows = torch.tensor(fields, device=self.device)
        if position == 0:
            return self.start()
        if not self.has_state:
            return RowState(position, rows[len(rows) - (position - self.first_needed(position)) :], [])
        begins = self._begins(position - 1)
        first = position - len(rows)
        states: list[Any] = []
        for begin in begins:
            one = self.model.read(rows[begin - first :])
            states = _joined(states, one) if states else one
        return RowState(position, self._empty, states)

    @torch.inference_mode()
    def attended(self, fields: NDArray[np.float32]) -> NDArray[np.float32]:
        """(m,) float32 attention of the last of the rows (m, C) on each of them, the mean over heads and blocks.

        Raises:
            UnsupportedError: The attention has no weights to show.
        """
        rows = torch.tensor(fields, device=self.device)
        batch = SequenceBatch.from_windows(rows[None], torch.tensor([len(rows)]), self.device)
        last = (torch.zeros(1, dtype=torch.int64, device=self.device), torch.tensor([len(rows) - 1], device=self.device))
        _, mass, _ = next(self.model.attended(batch, last))
        weight: NDArray[np.float32] = mass[0].cpu().numpy()
        return weight

    def stretches(self, position: int) -> int:
        """How many states are stepped at the row `position`."""
        return len(self._begins(position))

    def _begins(self, position: int) -> tuple[int, ...]:
        """Where the stretches begin that read the row `position`."""
        number = position // self._half
        return (0,) if number == 0 else ((number - 1) * self._half, number * self._half)

    def _judged(self, rows: Tensor) -> NDArray[np.float32]:
        """Class probabilities (K,) of the last of the rows (m, C)."""
        batch = SequenceBatch.from_windows(rows[None], torch.tensor([len(rows)]), self.device)
        targets = None
        if self.model.config.form == "histories":
            targets = (torch.zeros(1, dtype=torch.int64, device=self.device), torch.tensor([len(rows) - 1], device=self.device))
        probability: NDArray[np.float32] = self.model.probabilities(batch, targets)[0].float().cpu().numpy()
        return probability


def score_streaming(
    model: Classifier, dataset: Dataset, rows: np.ndarray, *, device: torch.device, progress: Callable[[int], None] = lambda _: None
) -> np.ndarray:
    """Class probabilities (n, K) float32 of the store `rows` (n,), each entity's rows read one after another.

    `progress` is told how many rows of the store were read.
    """
    stream, store = RowStream(model, device), dataset.store
    every = np.empty((len(store), len(model.config.classes)), dtype=np.float32)
    with torch_threads(1):
        state = stream.start()
        for row in range(len(store)):
            if store.start[row] == row:
                state = stream.start()
            every[row], state = stream.step(store.values[row], state)
            if row % 1000 == 999:
                progress(row + 1)
    scores: np.ndarray = every[rows]
    return scores


def _has_state(model: Classifier, channels: int, device: torch.device) -> bool:
    """Whether all parts stream, and states can be read in one pass."""
    try:
        model.init_state(1)
        model.read(torch.zeros(1, channels, device=device))
    except UnsupportedError:
        return False
    return True


def _joined(one: Any, two: Any) -> Any:
    return tree_map(lambda *pair: torch.cat(pair), one, two)


def _rows(states: Any, rows: slice) -> Any:
    return tree_map(lambda each: each[rows], states)
