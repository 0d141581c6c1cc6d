"""Samplers for a torch training loop of one's own, steered by a policy from validation scores.

    sampler = AdaptiveSampler(labels, epochs=10)
    loader = DataLoader(dataset, batch_size=256, sampler=sampler)
    for epoch in range(10):
        train_one_epoch(model, loader)
        sampler.update(valid_labels, model_scores(valid))

:class:`AdaptiveBatchSampler` is for ``DataLoader(dataset, batch_sampler=...)`` and gives every batch its exact quota of each class. Learned
policies and hardness want the scores of some training rows too: give ``rows`` and ``row_score``.

**Without torch** the samplers work too, for a loop over batches of any other library: only NumPy is needed. Where torch is installed
they are ``torch.utils.data.Sampler``, so that trainers that check for one accept them.

**Resume.** An epoch is a function of seed, number and weights, so a state is a place in it: :meth:`~_AdaptiveBase.state_dict` in the middle of an epoch and
:meth:`~_AdaptiveBase.load_state_dict` in a fresh process go on with the very next row. What is counted is what the sampler handed out; a DataLoader with
workers asks ahead (``prefetch_factor`` batches a worker), so give ``state_dict(consumed=...)`` what was really trained on.

**Distributed.** Every rank draws the same epoch and takes every ``num_replicas``-th item of it, from its rank on, so no item goes to two ranks and all get as many.
All ranks need the same labels, seed and calls of ``update`` with the same scores (gather them first): nothing is sent between them here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.dependencies import is_installed
from balancer.errors import InputError
from balancer.sampling.core import SamplerCore, whole_number
from balancer.sampling.policies import Policy
from balancer.sampling.seeding import integer_seed
from balancer.sampling.weights import Floats, SamplingWeights

Item = TypeVar("Item")
HAS_TORCH = is_installed("torch")
if TYPE_CHECKING or HAS_TORCH:
    import torch
    from torch.utils.data import Sampler
else:

    class Sampler(Generic[Item]):
        """What a DataLoader takes as its sampler: an iterable with a length."""


_PIECE = 1 << 16
"""Items turned into Python's integers at once: an epoch of a hundred million as one list would take gigabytes."""


class _AdaptiveBase(Sampler[Item]):
    """What both samplers share: ranks, the place in the epoch, update and state. A subclass draws an epoch, all ranks' items."""

    _KIND: ClassVar[str]
    """What a state is called after; also that of classes derived from it."""

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
        self._handed = 0  # items of epoch core.epoch that this rank has got
        self._resume = False  # the next iteration goes on after them, for they were loaded from a state
        self._begun: int | None = None  # the epoch begun last, which prefetching workers may have emptied already
        self._walk: object = None  # token of the iterator that counts; an older one must not

    def __repr__(self) -> str:
        """Policy, epoch, present weights and sizes."""
        sizes = ", ".join(f"{name}={value}" for name, value in self._sizes().items())
        rank = "" if self.num_replicas == 1 else f", rank={self.rank} of {self.num_replicas}"
        return f"{type(self).__name__}({self._core.describe()}, {sizes}{rank})"

    @abstractmethod
    def _sizes(self) -> dict[str, int]:
        """Sizes of an epoch, for ``repr``."""

    @property
    def classes_(self) -> list[Any]:
        """The K classes in sorted order: the order of the columns of scores, and of :attr:`weights`."""
        return self._core.classes_

    @property
    def weights(self) -> SamplingWeights:
        """Weights of the next epoch, shares in the order of :attr:`classes_`."""
        return self._core.weights

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,) training rows of each class, in the order of :attr:`classes_`."""
        return self._core.counts

    @property
    def epochs(self) -> int:
        """Epochs of the training, as told."""
        return self._core.epochs

    @property
    def epoch(self) -> int:
        """Number of the epoch in progress, or of the next one between two."""
        return self._core.epoch

    @property
    def seed(self) -> int:
        """Seed in use, the generator's mixed in."""
        return self._core.seed

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the last update: ``f1`` at its best threshold and ``average_precision``; 0 before the first."""
        return self._core.metrics

    @property
    def policy_name(self) -> str:
        """Name of the policy."""
        return self._core.policy_name

    @property
    def notes(self) -> list[str]:
        """What the policy has to say of itself, e.g. that it fell back to a constant."""
        return self._core.notes

    @abstractmethod
    def _draw(self, epoch: int) -> NDArray[np.int64]:
        """All ranks' items of ``epoch``: (items,) rows or (items, batch_size)."""

    def __len__(self) -> int:
        """Items of an epoch on this rank; the same on every rank."""
        return self._length

    def __iter__(self) -> Iterator[Item]:
        """Items of the epoch in progress from where a loaded state left it, else of the next epoch."""
        if not self._resume:
            self._core.epoch += self._handed > 0  # the loop left the last epoch early
            self._handed = 0
        # Nothing is drawn, and a place loaded holds, until an item is asked for: a DataLoader with workers makes two iterators and uses the second.
        self._begun, self._walk = self._core.epoch, object()
        return self._walked(self._core.epoch, self._handed, self._walk)

    def _walked(self, epoch: int, start: int, token: object) -> Iterator[Item]:
        items = self._draw(epoch)[self.rank :: self.num_replicas]
        for first in range(start, len(items), _PIECE):
            for item in items[first : first + _PIECE].tolist():
                if self._walk is token:
                    self._resume = False
                    self._handed += 1
                    if self._handed == self._length:  # with the last item, for not every loop asks once more
                        self._finish()
                yield item

    def _finish(self) -> None:
        self._core.epoch += 1
        self._handed, self._walk, self._resume = 0, None, False

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch drawn next; without it each iteration counts on by itself.

        A place loaded into the middle of that same epoch is kept, so that trainers which call this before every epoch resume exactly.
        """
        number = whole_number(epoch, "epoch", 0)
        if not (self._resume and number == self._core.epoch):
            self._core.epoch, self._handed, self._resume = number, 0, False
        self._begun = self._walk = None

    def update(
        self, y_true: ArrayLike | Sequence[str], y_score: ArrayLike, *, rows: ArrayLike | None = None, row_score: ArrayLike | None = None
    ) -> SamplingWeights:
        """Tell the sampler how the model does; call it once, after each epoch, on every rank with the same scores. An epoch not yet finished ends by it.

        Args:
            y_true: (n,) classes of held-out rows, named as in ``labels``: the commonest class and at least one other.
            y_score: (n, K) probabilities in the order of :attr:`classes_`; with two classes also (n,), that of the rarer one.
            rows: (m,) indices of training rows, any part of them.
            row_score: their scores, in the same form as ``y_score``; hardness has something to act on only with these.

        Returns:
            The weights of the next epoch.

        Raises:
            InputError: as :meth:`balancer.sampling.core.SamplerCore.update`; the sampler is then as it was.
        """
        weights = self._core.update(y_true, y_score, rows=rows, row_score=row_score)
        if self._handed:
            self._finish()
        self._begun = None
        return weights

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """State from which :meth:`load_state_dict` goes on exactly; arrays are tensors where torch is installed, so ``torch.load(weights_only=True)`` reads it.

        Args:
            consumed: items (rows, or batches of the batch sampler) of the epoch begun last that this rank has trained on, those before a resume included;
                None: as many as were handed out, which with a DataLoader's workers is ahead of the training. :meth:`update` begins a new epoch.

        Raises:
            InputError: ``consumed`` is more than the epoch has.
        """
        epoch, handed = self._core.epoch, self._handed
        if consumed is not None:
            handed = whole_number(consumed, "consumed", 0)
            if handed > self._length:
                raise InputError(f"consumed is {handed}, an epoch has {self._length} items on this rank; count anew in each epoch")
            epoch = self._core.epoch if self._begun is None else self._begun
            if handed == self._length:
                epoch, handed = epoch + 1, 0
        state = self._core.state_dict()
        if HAS_TORCH:
            state["rows"] = {name: torch.from_numpy(array) for name, array in state["rows"].items()}
        return state | {"epoch": epoch, "handed": handed, "kind": self._KIND} | self._shape()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, seed included; the state of any rank serves all.

        InputError where it was saved for other labels, another policy, sampler or size, or in the middle of an epoch for another number of ranks; nothing
        is changed then.
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
            raise InputError(f"saved state is {handed} items into an epoch of {self._length}; it is torn, load another one")
        self._core.load_state_dict(state)
        self._handed, self._resume, self._begun, self._walk = handed, handed > 0, None, None

    def _shape(self) -> dict[str, int]:
        """What an epoch's items depend on beyond the core."""
        return {"num_replicas": self.num_replicas}


class AdaptiveSampler(_AdaptiveBase[int]):
    """Draws training rows by class and hardness; the weights move once an epoch, by :meth:`update`.

    A class first, then one of its rows: a draw costs O(1), by hardness O(log N), and no weight is kept for each row. So there is no limit of 2**24 rows as
    that of ``WeightedRandomSampler``. An epoch never consists of the commonest class alone: where chance would have it so, one row is exchanged.

    Args:
        labels: (N,) class of each training row: whole numbers (negative ones too), booleans, text or bytes. ``None`` and NaN mean no label.
        policy: ``auto`` (the learned one that comes with the package), ``constant`` (also ``constant:share=.2,hardness=1``), ``rule``, the folder of a
            learned policy, or an object with ``name`` and ``act``.
        epochs: how many epochs the training has.
        num_samples: rows an epoch draws, on all ranks together (rounded up to whole ranks); None: as many as there are labelled rows.
        unlabelled: a label that marks rows never to be drawn, e.g. -1.
        seed: every epoch's draw is a function of it, of the epoch's number and of the weights.
        generator: its ``initial_seed()`` is mixed into the seed; none of its numbers are drawn.
        rank, num_replicas: this process among how many; None: those of ``torch.distributed``, or 0 of 1 where it is not initialised.

    Raises:
        InputError: fewer than two classes, no epoch, too few rows an epoch, a rank out of range, or a policy that can't be loaded.

    >>> sampler = AdaptiveSampler(["ok"] * 990 + ["fraud"] * 10, policy="constant:share=.2", epochs=3, num_samples=100)
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
    ) -> None:
        core = SamplerCore(labels, policy=policy, epochs=epochs, num_samples=num_samples, unlabelled=unlabelled, seed=seed)
        super().__init__(core, core.num_samples, generator, rank, num_replicas)

    @property
    def num_samples(self) -> int:
        """Rows an epoch draws, on all ranks together."""
        return self._core.num_samples

    def _sizes(self) -> dict[str, int]:
        return {"num_samples": self.num_samples}

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        return self._core.draw(epoch, self._length * self.num_replicas)


class AdaptiveBatchSampler(_AdaptiveBase[list[int]]):
    """Batches with an exact quota of each class; the weights move once an epoch, by :meth:`update`.

    Each batch holds ``share * batch_size`` rows of a class, rounded down or up, and over an epoch the class's total is within one row of its share. A class whose
    share is less than one row a batch is raised to one, at the cost of the others, where a batch has a row for every class (:attr:`batch_share`).

    Args:
        labels: as for :class:`AdaptiveSampler`.
        batch_size: rows of a batch; every batch is full, there is no last one to drop.
        num_batches: batches of an epoch, on all ranks together (rounded up to whole ranks); None: as many as the labelled rows fill, rounded up.
        policy, epochs, unlabelled, seed, generator, rank, num_replicas: as for :class:`AdaptiveSampler`.

    >>> sampler = AdaptiveBatchSampler(["ok"] * 990 + ["fraud"] * 10, batch_size=10, policy="constant:share=.2", epochs=3, num_batches=4)
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
    ) -> None:
        self.batch_size = whole_number(batch_size, "batch_size", 1)
        rows = None if num_batches is None else whole_number(num_batches, "num_batches", 1) * self.batch_size
        core = SamplerCore(
            labels,
            policy=policy,
            epochs=epochs,
            num_samples=rows,
            unlabelled=unlabelled,
            seed=seed,
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

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        return self._core.draw_batches(epoch, self._length * self.num_replicas, self.batch_size)

    def _shape(self) -> dict[str, int]:
        return super()._shape() | {"batch_size": self.batch_size}


def _place_of(rank: int | None, num_replicas: int | None) -> tuple[int, int]:
    """(rank, number of ranks), from ``torch.distributed`` where it is initialised and neither is given."""
    if (rank is None) != (num_replicas is None):
        raise InputError("give rank and num_replicas together, or neither")
    if rank is None or num_replicas is None:
        distributed = HAS_TORCH and torch.distributed.is_available() and torch.distributed.is_initialized()
        return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    replicas = whole_number(num_replicas, "num_replicas", 1)
    if whole_number(rank, "rank", 0) >= replicas:
        raise InputError(f"rank {rank} must be less than num_replicas, {replicas}")
    return int(rank), replicas
