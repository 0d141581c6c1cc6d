"""How far a DataLoader has come in an epoch of its sampler, which it does not tell the sampler itself."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any

from balancer.errors import InputError
from balancer.sampling.core_view import HAS_TORCH

if TYPE_CHECKING or HAS_TORCH:
    from torch.utils.data import BatchSampler, Sampler
    from torch.utils.data.dataloader import _BaseDataLoaderIter

_CALLERS = 8
"""How many callers are looked through for a DataLoader."""


class LoaderCount:
    """Counts what a DataLoader's iterator has returned, without keeping the iterator alive.

    The attributes of the iterator stay readable when a loop was left and the iterator is gone, which is when
    a state is usually saved. Then the count is taken from them and they are dropped, with the data set that
    they hold.

    Args:
        iterator: The iterator.
        batch_size: Items of the sampler in a batch of the loader; None: not known.
        before: Items of the epoch that were trained on before.
        drop_last: Whether the loader leaves out a last batch that is not full.
        dataset_length: Rows of the loader's data set; None: unknown, or its sampler is another one.
    """

    def __init__(
        self, iterator: _BaseDataLoaderIter, batch_size: int | None, before: int, *, drop_last: bool, dataset_length: int | None
    ) -> None:
        self._batch_size, self._before, self._drop_last = batch_size, before, drop_last
        self.dataset_length = dataset_length
        self._batches = 0
        self._attributes: dict[str, Any] | None = vars(iterator)
        self.workers = bool(self._attributes.get("_num_workers"))
        self._watch = weakref.ref(iterator, self._end)

    def _end(self, _: object) -> None:
        self._batches, self._attributes = self._counted(), None

    def _counted(self) -> int:
        return self._batches if self._attributes is None else int(self._attributes.get("_num_yielded", 0))

    def __getstate__(self) -> dict[str, Any]:
        """The count alone: queues and processes of the iterator can't be copied."""
        return vars(self) | {"_batches": self._counted(), "_attributes": None, "_watch": None}

    def items(self, most: int) -> int | None:
        """Items of the epoch that were returned, at most ``most``; None where that is not known.

        An epoch whose last batch was left out by the loader counts as complete.
        """
        if self._batch_size is None:
            return None
        batches, left = self._counted(), most - self._before
        if self._drop_last and batches >= left // self._batch_size:
            return most
        return min(self._before + batches * self._batch_size, most)


def loader_count(sampler: Sampler[Any], before: int) -> LoaderCount | None:
    """The count of the DataLoader that begins to iterate over ``sampler``; None where it is another loop.

    The loader does not name itself to its sampler, so it is looked for among the callers.
    """
    if not HAS_TORCH:
        return None
    frame = sys._getframe(1)
    for _ in range(_CALLERS):
        caller = frame.f_back
        if caller is None:
            return None
        frame, owner = caller, caller.f_locals.get("self")
        if isinstance(owner, _BaseDataLoaderIter):
            batches = getattr(owner, "_index_sampler", None)
            own = batches is sampler or getattr(batches, "sampler", None) is sampler
            size = 1 if batches is sampler else batches.batch_size if own and isinstance(batches, BatchSampler) else None
            if (batches is not sampler and type(batches) is not BatchSampler) or getattr(owner, "_in_order", True) is False:
                size = None  # batches of another size, or in another order
            drop_last = batches is not sampler and bool(getattr(batches, "drop_last", False))
            length = _length_of(getattr(owner, "_dataset", None)) if own else None
            return LoaderCount(owner, size, before, drop_last=drop_last, dataset_length=length)
    return None


def _length_of(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):  # a data set need not know its length
        return None


def check_length(dataset_length: int | None, num_rows: int) -> None:
    """Refuse a data set whose length is known and is not the number of labels.

    Raises:
        InputError: It differs.
    """
    if dataset_length is not None and dataset_length != num_rows:
        raise InputError(
            f"labels has {num_rows} rows and the data set of the loader {dataset_length}; make the sampler from the labels of that "
            "data set, in its order, with unlabelled= for rows not to draw"
        )
