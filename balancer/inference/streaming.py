"""Score one row at a time, as the service does, with the same result as for a whole table.

What is special: in a table a long history is cut into segments that overlap by half, and a row is scored in
the segment in whose second half it is (`TransactionStore.segments`). A stream does the same with two states
of constant size: one of the current segment, which gives the score, and one of the next segment. Both are
updated together. A row's score does not depend on other rows of a call, so it is identical to the last bit in
the service and in `balancer score --streaming`.

A step is computed in C++ (`balancer.models.step`) where it knows all parts of the model, else by torch.
`BALANCER_STREAM_STEP` chooses: native, torch, or auto.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from balancer.data.dataset import Dataset
from balancer.devices import torch_threads
from balancer.errors import InputError, UnsupportedError
from balancer.models import Classifier, SequenceBatch
from balancer.models.step import NativeStep, StepState, absence, refuses

STEP_VARIABLE = "BALANCER_STREAM_STEP"
"""Environment variable that chooses how a step is computed."""


class RowState(NamedTuple):
    """The state of one history: what the next row needs of the earlier ones."""

    position: int
    """Number of rows read."""
    fields: Tensor
    """(m, C) the last rows, if the model has no state of constant size; else (0, C)."""
    states: list[Any]
    """The states of the model for one or two segments, the current segment first; empty if the model has
    none."""
    native: StepState | None = None
    """What the native step keeps instead of `fields` and `states`; None with torch's step."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory of its arrays."""
        if self.native is not None:
            return self.native.nbytes
        return self.fields.nbytes + sum(each.nbytes for each in tree_leaves(self.states) if isinstance(each, Tensor))


class RowStream:
    """Reads the rows of a history one after another.

    Args:
        model: A trained classifier; it is put into evaluation mode. The native step copies its weights: make
            a new stream after they change.
        device: Where the model computes.

    Attributes:
        uses: `native` or `torch`: how a step is computed.
        reason: Why torch computes it; None where the native step does.

    Raises:
        InputError: `BALANCER_STREAM_STEP` is not native, torch or auto.
        UnsupportedError: It is native, and the native step can't be used.
    """

    def __init__(self, model: Classifier, device: torch.device) -> None:
        self.model, self.device = model.eval(), device
        self._channels = len(model.config.numeric_fields) + len(model.config.categorical_fields)
        self._half = model.config.history_length // 2
        self._empty = torch.zeros(0, self._channels, device=device)
        self.has_state = _has_state(model, self._channels, device)
        """Whether the model continues from a state of constant size. If not, torch reads the rows of its
        window or segment again. The native step then keeps the embedded rows of the window (form `rows`), or
        keys and values of all rows of the segment."""
        self.reason = _reason_for_torch(model, device)
        self.uses: Literal["native", "torch"] = "native" if self.reason is None else "torch"
        self._native = NativeStep(model) if self.reason is None else None

    def start(self) -> RowState:
        """Return the state before the first row."""
        return RowState(0, self._empty, [], None if self._native is None else self._native.start())

    def first_needed(self, position: int) -> int:
        """Return the position of the earliest row that the score of the row at `position` depends on."""
        if self.model.config.form == "histories":
            return max(position // self._half - 1, 0) * self._half
        return max(position - self.model.config.history_length + 1, 0)

    def step(self, fields: NDArray[np.float32], state: RowState) -> tuple[NDArray[np.float32], RowState]:
        """Read the next row, and keep the state before it.

        Args:
            fields: (C,) fields of the row.
            state: The state before the row. It can be used again.

        Returns:
            Class probabilities (K,) float32 of the row, and the state after it.
        """
        return self.advance(fields, state if state.native is None else state._replace(native=state.native.copy()))

    def advance(self, fields: NDArray[np.float32], state: RowState) -> tuple[NDArray[np.float32], RowState]:
        """Read the next row as :meth:`step`, but without a copy: the given state must not be used again.

        The result is the same to the last bit.
        """
        if self._native is not None:
            probabilities = self._native.advance(fields[None], [_native_state(state)])
            return probabilities[0], state._replace(position=state.position + 1)
        return self._step_by_torch(fields, state)

    def advance_many(self, fields: NDArray[np.float32], states: Sequence[RowState]) -> tuple[NDArray[np.float32], list[RowState]]:
        """Read the next rows of several histories, as :meth:`advance` does one after another.

        Args:
            fields: (B, C) fields of the rows.
            states: The states of B different histories, which must not be used again.

        Returns:
            Class probabilities (B, K) float32 of the rows, and the states after them.
        """
        if self._native is not None:
            probabilities = self._native.advance(fields, [_native_state(state) for state in states])
            return probabilities, [state._replace(position=state.position + 1) for state in states]
        pairs = [self._step_by_torch(row, state) for row, state in zip(fields, states, strict=True)]
        every = np.empty((len(pairs), len(self.model.config.classes)), np.float32)
        for number, (probability, _) in enumerate(pairs):
            every[number] = probability
        return every, [state for _, state in pairs]

    @torch.inference_mode()
    def _step_by_torch(self, fields: NDArray[np.float32], state: RowState) -> tuple[NDArray[np.float32], RowState]:
        if state.native is not None:
            raise InputError("state was made by the native step; compute it again by read()")
        # A copy in memory that torch aligns: the last bits of a product may depend on the alignment of its
        # operands.
        row = torch.tensor(fields, device=self.device)[None]
        at = state.position
        if not self.has_state:
            kept = torch.cat([state.fields[len(state.fields) - (at - self.first_needed(at)) :], row])
            return self._score_last(kept), RowState(at + 1, kept, [])
        states = state.states
        if at == 0:
            states = self.model.init_state(1)
        elif at % self._half == 0:
            states = _joined(_rows(states, slice(-1, None)), self.model.init_state(1))
        logits, states = self.model.step(row.expand(self.num_segments(at), -1), states)
        probability: NDArray[np.float32] = self.model.head.probabilities(logits[:1])[0].float().cpu().numpy()
        return probability, RowState(at + 1, self._empty, states)

    @torch.inference_mode()
    def read(self, fields: NDArray[np.float32], position: int) -> RowState:
        """Compute the state after `position` rows in one pass.

        Args:
            fields: (m, C) the last rows, from `first_needed(position - 1)` on.
            position: Number of rows of the history.
        """
        if self._native is not None:
            return RowState(position, self._empty, [], self._native.read(fields, position))
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
        """Compute the attention of the last row on each row, the mean over heads and blocks.

        Args:
            fields: (m, C) rows of a history.

        Returns:
            (m,) float32.

        Raises:
            UnsupportedError: If the attention of the model has no weights.
        """
        rows = torch.tensor(fields, device=self.device)
        batch = SequenceBatch.from_windows(rows[None], torch.tensor([len(rows)]), self.device)
        last = (torch.zeros(1, dtype=torch.int64, device=self.device), torch.tensor([len(rows) - 1], device=self.device))
        _, mass, _ = next(self.model.attended(batch, last))
        weight: NDArray[np.float32] = mass[0].cpu().numpy()
        return weight

    def unpack(self, content: bytes, position: int, fields: NDArray[np.float32] | None = None) -> RowState | None:
        """Restore the state of the native step from the bytes of `StepState.to_bytes`.

        Args:
            content: The bytes.
            position: Number of rows of the history.
            fields: (m, C) the rows from `next_begins` on, needed where the next segment was left out.

        Returns:
            The state; None if torch computes the steps, or these are other bytes.
        """
        native = None if self._native is None else self._native.unpack(content, position, fields)
        return None if native is None else RowState(position, self._empty, [], native)

    def next_begins(self, position: int) -> int:
        """Return the position of the first row that `unpack` needs for a state after `position` rows."""
        return position if self._native is None else self._native.next_begins(position)

    def num_segments(self, position: int) -> int:
        """Return the number of segments that contain the row at `position`."""
        return len(self._begins(position))

    def _begins(self, position: int) -> tuple[int, ...]:
        """Return the first positions of the segments that contain the row at `position`."""
        number = position // self._half
        return (0,) if number == 0 else ((number - 1) * self._half, number * self._half)

    def _score_last(self, rows: Tensor) -> NDArray[np.float32]:
        """Compute the class probabilities (K,) of the last of the rows (m, C)."""
        batch = SequenceBatch.from_windows(rows[None], torch.tensor([len(rows)]), self.device)
        targets = None
        if self.model.config.form == "histories":
            targets = (torch.zeros(1, dtype=torch.int64, device=self.device), torch.tensor([len(rows) - 1], device=self.device))
        probability: NDArray[np.float32] = self.model.probabilities(batch, targets)[0].float().cpu().numpy()
        return probability


def score_streaming(
    model: Classifier, dataset: Dataset, rows: np.ndarray, *, device: torch.device, progress: Callable[[int], None] = lambda _: None
) -> np.ndarray:
    """Score rows as the service does: the rows of each entity one after another.

    Args:
        model: A trained classifier.
        dataset: The transactions.
        rows: (n,) store rows to score.
        device: Where the model computes.
        progress: Called with the number of store rows read so far.

    Returns:
        Class probabilities (n, K) float32.
    """
    stream, store = RowStream(model, device), dataset.store
    every = np.empty((len(store), len(model.config.classes)), dtype=np.float32)
    with torch_threads(1):
        state = stream.start()
        for row in range(len(store)):
            if store.start[row] == row:
                state = stream.start()
            every[row], state = stream.advance(store.values[row], state)
            if row % 1000 == 999:
                progress(row + 1)
    scores: np.ndarray = every[rows]
    return scores


def _reason_for_torch(model: Classifier, device: torch.device) -> str | None:
    """Return why torch computes the steps, or None if the native step does."""
    chosen = os.environ.get(STEP_VARIABLE, "") or "auto"
    if chosen not in ("native", "torch", "auto"):
        raise InputError(f"{STEP_VARIABLE} must be native, torch or auto, given {chosen!r}")
    if chosen == "torch":
        return f"{STEP_VARIABLE} is torch"
    reason = absence() or refuses(model, device)
    if chosen == "native" and reason is not None:
        raise UnsupportedError(f"{STEP_VARIABLE} is native, but the native step can't be used: {reason}; set it to auto")
    return reason


def _native_state(state: RowState) -> StepState:
    if state.native is None:
        raise InputError("state was made with torch's step; compute it again by read()")
    if state.native.position != state.position:
        raise InputError("state has been used by advance() already; keep it by step()")
    return state.native


def _has_state(model: Classifier, channels: int, device: torch.device) -> bool:
    """Whether all parts of the model support streaming, and can compute a state in one pass."""
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
