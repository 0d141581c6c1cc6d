"""Samplers for any torch training loop; a policy sets the weights from validation scores.

    sampler = AdaptiveSampler(labels, epochs=10)
    loader = DataLoader(dataset, batch_size=256, sampler=sampler)
    for epoch in range(10):
        train_one_epoch(model, loader)
        sampler.update(valid_labels, model_scores(valid))

:class:`AdaptiveBatchSampler` is for ``DataLoader(dataset, batch_sampler=...)`` and gives every batch an exact
quota of each class. Learned policies and hardness need the scores of some training rows too: give ``rows``
and ``row_score``.

**Without torch** the samplers work too, for a loop over batches of any other library: only NumPy is needed.
Where torch is installed they are ``torch.utils.data.Sampler``, so that trainers that check for one accept
them.

**Loss.** With ``loss = sampler.loss(model(x), y)`` instead of the cross-entropy, rows that are drawn more
often count less, and the model's logits don't depend on what was drawn (:mod:`balancer.sampling.losses`);
``sampler.probabilities(logits)`` are calibrated. With any other loss the sampler draws as usual over-sampling
does, because nothing would compensate more.

**Scores.** ``sampler.update(y_valid, sampler.probabilities(logits))`` needs no thought of the order of
classes: columns of logits, probabilities and scores all have the order of ``classes_``. A single column
of logits is the log-odds of ``classes_[1]``, but one of scores is the probability of the rarer class.

**Resume.** An epoch is a function of seed, number and weights, so a state holds the position in it. After
:meth:`~_AdaptiveBase.state_dict` in the middle of an epoch, :meth:`~_AdaptiveBase.load_state_dict` in a new
process continues with the very next row, and ``len`` is the number of rows that are left. A DataLoader with
workers requests rows in advance; the sampler counts the batches that the loader has returned. Behind another
loader or batch sampler it counts the rows that it has returned itself: pass the number of rows trained on to
``state_dict(consumed=...)`` there.

**Distributed.** Every rank takes its part of the same epoch, one after the other, and draws only that part.
So no item goes to two ranks, and all ranks get the same number. All ranks need the same labels, seed and
calls of ``update`` with the same scores (gather them first): the samplers don't communicate.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.sampling.core import BLOCK, SamplerCore, batches_of_block
from balancer.sampling.core_view import HAS_TORCH, CoreView
from balancer.sampling.inputs import whole_number
from balancer.sampling.policies import Policy
from balancer.sampling.seeding import integer_seed
from balancer.sampling.weights import Floats, SamplingWeights

Item = TypeVar("Item")
if TYPE_CHECKING or HAS_TORCH:
    import torch
    from torch.utils.data import BatchSampler, Sampler
    from torch.utils.data.dataloader import _BaseDataLoaderIter
else:

    class Sampler(Generic[Item]):
        """What a DataLoader takes as its sampler: an iterable with a length."""


class _AdaptiveBase(CoreView, Sampler[Item]):
    """Common part of both samplers: ranks, the position in the epoch, update and state.

    A subclass draws the items of an epoch for all ranks.
    """

    _KIND: ClassVar[str]
    """Name of the sampler in a state; a derived class has its own."""
    _batch_rows: int = 0
    """Rows of a batch with quotas; 0 where the items are rows."""

    def __init__(
        self,
        core: SamplerCore,
        items: int,
        generator: torch.Generator | None,
        rank: int | None,
        num_replicas: int | None,
    ) -> None:
        if generator is not None:
            core.seed = integer_seed(core.seed, "torch generator", generator.initial_seed())
        self._core = core
        self.rank, self.num_replicas = _place_of(rank, num_replicas)
        self._length = -(-items // self.num_replicas)
        core.use_draws(self._length * self.num_replicas * (self._batch_rows or 1), self._batch_rows)
        self._skipped = 0  # items of this epoch that were trained on before a resume
        self._handed = 0  # items of epoch core.epoch that this rank was given
        self._resume = False  # the next iteration continues after them: they come from a loaded state
        # Epoch of the last iteration; prefetching workers may have requested all of its items already.
        self._begun: int | None = None
        self._walk: object = None  # token of the iterator that counts; older iterators don't
        self._loader: _LoaderCount | None = None  # what a DataLoader has returned of the present iteration

    def __repr__(self) -> str:
        """Policy, epoch, present weights and sizes."""
        sizes = ", ".join(f"{name}={value}" for name, value in self._sizes().items())
        rank = "" if self.num_replicas == 1 else f", rank={self.rank} of {self.num_replicas}"
        return f"{type(self).__name__}({self._core.describe()}, {sizes}{rank})"

    @abstractmethod
    def _sizes(self) -> dict[str, int]:
        """Sizes of an epoch, for ``repr``."""

    def sample_weight(self, rows: ArrayLike) -> Floats:
        """(n,) loss weight of drawn ``rows`` (n,); see :meth:`.SamplerCore.sample_weight`."""
        return self._core.sample_weight(rows)

    def effective_weights(self) -> Floats:
        """(N,) mass of each row in the present epoch; see :meth:`.SamplerCore.effective_weights`."""
        return self._core.effective_weights()

    def init_score(self, num_rows: int | None = None) -> Floats:
        """Raw scores that boosted trees start from; see :meth:`.SamplerCore.init_score`."""
        return self._core.init_score(num_rows)

    @abstractmethod
    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """Items of a block of ``epoch``, of the epoch of all ranks: (n,) rows or (n, batch_size)."""

    @property
    @abstractmethod
    def _block_items(self) -> int:
        """Items of a block; the last block of an epoch may have fewer."""

    def __len__(self) -> int:
        """Number of items of the present epoch on this rank; after loading a state, of those that are left.

        Every rank has the same number.
        """
        return self._length - self._skipped

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the next epoch; after loading a state, over the rest of the epoch in progress."""
        if not self._resume:
            self._core.epoch += self._handed > 0  # the loop left the last epoch early
            self._handed = self._skipped = 0
        # Until an item is requested, nothing is drawn and a loaded position is kept: a DataLoader with
        # workers makes two iterators and uses the second.
        self._begun, self._walk = self._core.epoch, object()
        self._loader = _loader_count(self, self._handed)
        return self._walked(self._core.epoch, self._handed, self._walk)

    def _walked(self, epoch: int, start: int, token: object) -> Iterator[Item]:
        if self._loader is not None:
            _check_length(self._loader.dataset_length, self._core.num_rows)
        first, end = self.rank * self._length + start, (self.rank + 1) * self._length
        while first < end:
            block, offset = divmod(first, self._block_items)
            for item in self._block(epoch, block)[offset : offset + end - first].tolist():
                if self._walk is token:
                    self._resume = False
                    self._handed += 1
                    if self._handed == self._length:  # with the last item: not every loop requests one more
                        self._finish()
                yield item
            first = (block + 1) * self._block_items

    def _finish(self) -> None:
        self._core.epoch += 1
        self._handed, self._walk, self._resume = 0, None, False
        self._skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch; without this call every iteration is the next epoch.

        A loaded position in the middle of that same epoch is kept, so that trainers which call this before
        every epoch resume exactly.
        """
        number = whole_number(epoch, "epoch", 0)
        if not (self._resume and number == self._core.epoch):
            self._core.epoch, self._handed, self._resume, self._skipped = number, 0, False, 0
        self._begun = self._walk = self._loader = None

    def update(
        self, y_true: ArrayLike | Sequence[str], y_score: ArrayLike, *, rows: ArrayLike | None = None, row_score: ArrayLike | None = None
    ) -> SamplingWeights:
        """Report the model's scores; call it once, after each epoch, on every rank with the same scores.

        An unfinished epoch ends here.

        Args:
            y_true: (n,) classes of held-out rows, named as in ``labels``: the commonest class and at least
                one other.
            y_score: (n, K) probabilities in the order of :attr:`classes_`; with two classes also (n,) or
                (n, 1) probabilities of the rarer class. Tensors may be on any device and carry gradients.
            rows: (m,) indices of some of the training rows.
            row_score: Scores of these rows, in the same form as ``y_score``. Hardness has an effect only with
                them.

        Returns:
            The weights of the next epoch, shares in the order of :attr:`classes_`.

        Raises:
            InputError: As :meth:`balancer.sampling.core.SamplerCore.update`. Nothing has changed then.
        """
        weights = self._core.update(y_true, y_score, rows=rows, row_score=row_score)
        if self._handed:
            self._finish()
        self._begun = self._loader = None
        return weights

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """State from which :meth:`load_state_dict` continues exactly.

        Arrays are tensors where torch is installed, so ``torch.load(weights_only=True)`` reads the state.

        Args:
            consumed: Items (rows, or batches of the batch sampler) of the present epoch that this rank has
                trained on, including those before a resume. None: those of the batches that the DataLoader
                has returned, or, where there is none, as many as the sampler has returned. :meth:`update`
                begins a new epoch.

        Raises:
            InputError: ``consumed`` is more than the epoch has.
        """
        epoch, handed = self._core.epoch, self._handed
        if consumed is None and self._loader is not None and self._begun is not None:
            consumed = self._loader.items(self._length)
            if consumed is None and self._loader.workers:
                warnings.warn(
                    "the DataLoader reads ahead and returns batches in an order or of a size that is not known here: "
                    "give state_dict the number of rows trained on, consumed=",
                    stacklevel=2,
                )
        if consumed is not None:
            handed = whole_number(consumed, "consumed", 0)
            if handed > self._length:
                raise InputError(f"consumed is {handed}, an epoch has {self._length} items on this rank; count from 0 in each epoch")
            epoch = self._core.epoch if self._begun is None else self._begun
            if handed == self._length:
                epoch, handed = epoch + 1, 0
        state = self._core.state_dict()
        if HAS_TORCH:
            state["rows"] = {name: torch.from_numpy(array) for name, array in state["rows"].items()}
        return state | {"epoch": epoch, "handed": handed, "kind": self._KIND} | self._shape()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`, including the seed; any rank's state fits all ranks.

        Where seed or patience differ from those of this sampler, :attr:`notes` say so.

        Raises:
            InputError: It was saved for other labels, another policy, sampler or size, or in the middle of an
                epoch for another number of ranks. Nothing has changed then.
        """
        if not isinstance(state, Mapping) or state.get("kind") != type(self).__name__:
            kind = state.get("kind") if isinstance(state, Mapping) else None
            raise InputError(
                f"saved state is that of {kind or 'no torch sampler'}, this is {type(self).__name__}; load it where it was saved"
            )
        handed = whole_number(state.get("handed"), "handed of the saved state", 0)
        for name, value in self._shape().items():
            if state.get(name) != value and (handed or name != "num_replicas"):
                raise InputError(
                    f"saved state is for {name} {state.get(name)!r}, this sampler has {value!r}; make the sampler as it was saved"
                )
        if handed >= self._length:
            raise InputError(f"saved state is {handed} items into an epoch of {self._length}: it is corrupt, load another one")
        self._core.load_state_dict(state)
        self._handed, self._resume, self._begun, self._walk = handed, handed > 0, None, None
        self._skipped, self._loader = handed, None

    def _shape(self) -> dict[str, int]:
        """Sizes besides those of the core that the items of an epoch depend on."""
        return {"num_replicas": self.num_replicas}


class AdaptiveSampler(_AdaptiveBase[int]):
    """Draws training rows by class and hardness; :meth:`update` changes the weights once an epoch.

    A class is drawn first, then one of its rows: a draw costs O(1), by hardness O(log N), and no weight is
    kept for each row. So there is no limit of 2**24 rows, which ``WeightedRandomSampler`` has. An epoch never
    consists of the commonest class alone: where chance would draw only that class, one row is exchanged.

    Args:
        labels: (N,) class of each training row: whole numbers (also negative ones), booleans, text or bytes.
            ``None`` and NaN mean no label.
        policy: ``auto`` (the best policy of the package), ``constant:share=.2,hardness=1`` (a constant of
            one's own), ``ppo`` (learned), ``rule``, the folder of a learned policy, or an object with
            ``name`` and ``act`` (:class:`~balancer.sampling.policies.Policy`).
        epochs: Number of epochs of the training.
        num_samples: Rows drawn in an epoch, on all ranks together (rounded up so that every rank gets the
            same number); None: as many as there are labelled rows.
        unlabelled: A label that marks rows that are never drawn, e.g. -1.
        seed: Random seed; an epoch's draw is a function of it, of the epoch's number and of the weights.
        generator: Its ``initial_seed()`` is combined with the seed; it is not advanced.
        rank: Number of this process; None: that of ``torch.distributed``, or 0 where it is not initialised.
        num_replicas: Number of processes; None: that of ``torch.distributed``, or 1.
        times: As for :class:`~balancer.sampling.core.SamplerCore`.
        compensated: As for :class:`~balancer.sampling.core.SamplerCore`.
        patience: As for :class:`~balancer.sampling.core.SamplerCore`.

    Raises:
        InputError: Fewer than two classes, no epoch, too few rows an epoch, a rank out of range, or a policy
            that can't be loaded.

    >>> sampler = AdaptiveSampler(["ok"] * 990 + ["fraud"] * 10, policy="constant:share=.2", epochs=3,
    ...     num_samples=100)
    >>> sampler.classes_, len(list(sampler))
    (['fraud', 'ok'], 100)
    >>> dict(zip(sampler.classes_, sampler.weights.share.round(3).tolist()))
    {'fraud': 0.2, 'ok': 0.8}
    """

    _KIND = "AdaptiveSampler"

    def __init__(
        self,
        labels: ArrayLike | Sequence[str],
        *,
        policy: str | Path | Policy = "auto",
        epochs: int,
        num_samples: int | None = None,
        unlabelled: Any = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        rank: int | None = None,
        num_replicas: int | None = None,
        times: ArrayLike | None = None,
        compensated: bool | None = None,
        patience: int | None = None,
    ) -> None:
        core = SamplerCore(
            labels,
            policy=policy,
            epochs=epochs,
            num_samples=num_samples,
            unlabelled=unlabelled,
            seed=seed,
            times=times,
            compensated=compensated,
            patience=patience,
        )
        super().__init__(core, core.num_samples, generator, rank, num_replicas)

    @property
    def num_samples(self) -> int:
        """Rows drawn in an epoch, on all ranks together."""
        return self._core.num_samples

    def _sizes(self) -> dict[str, int]:
        return {"num_samples": self.num_samples}

    @property
    def _block_items(self) -> int:
        return BLOCK

    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        return self._core.draw_block(epoch, block, self._length * self.num_replicas)


class AdaptiveBatchSampler(_AdaptiveBase[list[int]]):
    """Batches with an exact quota of each class; :meth:`update` changes the weights once an epoch.

    Each batch holds ``share * batch_size`` rows of a class, rounded down or up, and over an epoch the class's
    total is within one row of its share. Where a batch has at least one row for every class, a share of less
    than one row a batch is raised to one row, and the other shares shrink (:attr:`batch_share`).

    Args:
        labels: As for :class:`AdaptiveSampler`.
        batch_size: Rows of a batch; every batch is full, so there is no last one to drop.
        policy: As for :class:`AdaptiveSampler`.
        epochs: As for :class:`AdaptiveSampler`.
        num_batches: Batches of an epoch, on all ranks together (rounded up so that every rank gets the same
            number); None: as many as the labelled rows fill, rounded up.
        unlabelled: As for :class:`AdaptiveSampler`.
        seed: As for :class:`AdaptiveSampler`.
        generator: As for :class:`AdaptiveSampler`.
        rank: As for :class:`AdaptiveSampler`.
        num_replicas: As for :class:`AdaptiveSampler`.
        times: As for :class:`AdaptiveSampler`.
        compensated: As for :class:`AdaptiveSampler`.
        patience: As for :class:`AdaptiveSampler`.

    >>> sampler = AdaptiveBatchSampler(["ok"] * 990 + ["fraud"] * 10, batch_size=10,
    ...     policy="constant:share=.2", epochs=3, num_batches=4)
    >>> [sum(row >= 990 for row in batch) for batch in sampler]
    [2, 2, 2, 2]
    """

    _KIND = "AdaptiveBatchSampler"

    def __init__(
        self,
        labels: ArrayLike | Sequence[str],
        *,
        batch_size: int,
        policy: str | Path | Policy = "auto",
        epochs: int,
        num_batches: int | None = None,
        unlabelled: Any = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        rank: int | None = None,
        num_replicas: int | None = None,
        times: ArrayLike | None = None,
        compensated: bool | None = None,
        patience: int | None = None,
    ) -> None:
        self.batch_size = self._batch_rows = whole_number(batch_size, "batch_size", 1)
        rows = None if num_batches is None else whole_number(num_batches, "num_batches", 1) * self.batch_size
        core = SamplerCore(
            labels,
            policy=policy,
            epochs=epochs,
            num_samples=rows,
            unlabelled=unlabelled,
            seed=seed,
            times=times,
            compensated=compensated,
            patience=patience,
        )
        self.num_batches = -(-core.num_samples // self.batch_size)
        """Batches of an epoch, on all ranks together."""
        super().__init__(core, self.num_batches, generator, rank, num_replicas)

    @property
    def batch_share(self) -> Floats:
        """(K,) share of each class in the batches of the next epoch, in the order of :attr:`classes_`."""
        return self._core.batch_share(self.batch_size)

    def _sizes(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "num_batches": self.num_batches}

    @property
    def _block_items(self) -> int:
        return batches_of_block(self.batch_size)

    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        return self._core.draw_batch_block(epoch, block, self._length * self.num_replicas, self.batch_size)

    def _shape(self) -> dict[str, int]:
        return super()._shape() | {"batch_size": self.batch_size}


class _LoaderCount:
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


def _loader_count(sampler: Sampler[Any], before: int) -> _LoaderCount | None:
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
            return _LoaderCount(owner, size, before, drop_last=drop_last, dataset_length=length)
    return None


def _length_of(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):  # a data set need not know its length
        return None


def _check_length(dataset_length: int | None, num_rows: int) -> None:
    if dataset_length is not None and dataset_length != num_rows:
        raise InputError(
            f"labels has {num_rows} rows and the data set of the loader {dataset_length}; make the sampler from the labels of that "
            "data set, in its order, with unlabelled= for rows not to draw"
        )


_CALLERS = 8
"""How many callers are looked through for a DataLoader."""


def _place_of(rank: int | None, num_replicas: int | None) -> tuple[int, int]:
    """Rank and number of ranks; where neither is given, those of ``torch.distributed``."""
    if (rank is None) != (num_replicas is None):
        raise InputError("give rank and num_replicas together, or neither")
    if rank is None or num_replicas is None:
        distributed = HAS_TORCH and torch.distributed.is_available() and torch.distributed.is_initialized()
        return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    replicas = whole_number(num_replicas, "num_replicas", 1)
    if whole_number(rank, "rank", 0) >= replicas:
        raise InputError(f"rank {rank} must be less than num_replicas, {replicas}")
    return int(rank), replicas
