"""What the ranks of a distributed training exchange: sums of counts, and arrays of all ranks.

A :class:`Group` is all that a sampler needs; that of ``torch.distributed`` is in
:mod:`balancer.sampling.torch_ranks`. Only numbers and text are exchanged, never pickled objects.

A call that some ranks make and others don't would wait for ever. So ranks first tell each other of errors
(:func:`agree`): where the input of one is wrong, all raise.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError


@runtime_checkable
class Group(Protocol):
    """Ranks that exchange arrays; every rank makes the same calls in the same order."""

    rank: int
    """Number of this rank, from 0."""
    size: int
    """Number of ranks."""

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum of ``values`` (int64 or float64, of the same shape on all ranks) over the ranks."""

    def gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """The arrays of all ranks, by rank; their first axes may differ in length."""


class OneRank:
    """A process alone."""

    rank, size = 0, 1

    def __repr__(self) -> str:
        """The name alone."""
        return "OneRank()"

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """As :meth:`Group.sum`."""
        return values

    def gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """As :meth:`Group.gather`."""
        return [values]


def gather_texts(group: Group, text: str) -> list[str]:
    """The texts of all ranks, by rank."""
    return [part.tobytes().decode() for part in group.gather(np.frombuffer(text.encode(), dtype=np.uint8))]


def agree(group: Group, error: InputError | None) -> None:
    """Let all ranks raise where one has an error.

    Raises:
        InputError: The error of this rank, or that of the first rank that has one.
    """
    texts = gather_texts(group, "" if error is None else str(error))
    if error is not None:
        raise error
    for rank, text in enumerate(texts):
        if text:
            raise InputError(f"on rank {rank}: {text}")
