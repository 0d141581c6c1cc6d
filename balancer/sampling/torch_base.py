"""What the torch samplers have in common: the order of an epoch's items, ranks, updates, and the state.

An epoch is one sequence of items, whatever the number of ranks. Rank r of W takes the positions r, r + W,
r + 2 W, and so on. So after each rank has taken k items, exactly the first k * W positions have been used; a
state holds that position, and any number of ranks continues after it.

Where the rest of an epoch is no multiple of W, each rank takes the larger number of items, and the sequence
is continued by rows that are drawn like all others.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError, UnsupportedError
from balancer.sampling.core import SamplerCore
from balancer.sampling.core_view import HAS_TORCH, CoreView
from balancer.sampling.inputs import whole_number
from balancer.sampling.loader_count import LoaderCount, check_length, loader_count
from balancer.sampling.ranks import Group
from balancer.sampling.seeding import integer_seed
from balancer.sampling.sharded_core import ShardedCore
from balancer.sampling.torch_ranks import TorchGroup, as_group, group_of, is_distributed, place_of
from balancer.sampling.weights import Floats, SamplingWeights

Item = TypeVar("Item")
Gather = Literal["auto", "all", "none"]
"""Whether ranks exchange scores; see :meth:`AdaptiveBase.update`."""
if TYPE_CHECKING or HAS_TORCH:
    import torch
    from torch.utils.data import Sampler
else:

    class Sampler(Generic[Item]):
        """What a DataLoader takes as its sampler: an iterable with a length."""


class _Origin(NamedTuple):
    """Where this process begins in an epoch: at 0, or where a loaded state ended."""

    position: int = 0
    """Position in the sequence of all ranks."""
    items: int = 0
    """How many items of this rank count as trained on before."""


class AdaptiveBase(CoreView, Sampler[Item]):
    """Common part of the samplers: ranks, the position in the epoch, update and state.

    A subclass draws the items of an epoch for all ranks.

    Args:
        core: Core of the sampler.
        items: Items of an epoch, on all ranks together.
        generator: Its ``initial_seed()`` is combined with the seed.
        rank: Number of this process, or None.
        num_replicas: Number of processes, or None.
        group: Ranks that exchange scores, or None.
    """

    _KIND: ClassVar[str]
    """Name of the sampler in a state; a derived class has its own."""
    _EXACT: ClassVar[bool] = False
    """Whether ranks exchange the scores of two classes row by row, not as counts."""
    _batch_rows: int = 0
    """Rows of a batch with quotas; 0 where the items are rows."""
    _core: SamplerCore | ShardedCore

    def __init__(
        self,
        core: SamplerCore | ShardedCore,
        items: int,
        generator: torch.Generator | None,
        rank: int | None,
        num_replicas: int | None,
        group: Any = None,
    ) -> None:
        if generator is not None:
            core.seed = integer_seed(core.seed, "torch generator", generator.initial_seed())
        self._core = core
        self.rank, self.num_replicas = place_of(rank, num_replicas, group)
        self._group = as_group(group)
        self._total = items
        core.use_draws(items * (self._batch_rows or 1), self._batch_rows)
        self._origin = _Origin()
        self._skipped = 0  # items of this epoch that were trained on before a resume
        self._handed = 0  # items of epoch core.epoch that this rank was given
        self._resume = False  # the next iteration continues after them: they come from a loaded state
        # Epoch of the last iteration; prefetching workers may have requested all of its items already.
        self._begun: tuple[int, _Origin] | None = None
        self._walk: object = None  # token of the iterator that counts; older iterators don't
        self._loader: LoaderCount | None = None  # what a DataLoader has returned of the present iteration

    def __repr__(self) -> str:
        """Policy, epoch, present weights and sizes."""
        sizes = ", ".join(f"{name}={value}" for name, value in self._sizes().items())
        rank = "" if self.num_replicas == 1 else f", rank={self.rank} of {self.num_replicas}"
        return f"{type(self).__name__}({self._core.describe()}, {sizes}{rank})"

    @abstractmethod
    def _sizes(self) -> dict[str, int]:
        """Sizes of an epoch, for ``repr``."""

    @property
    def num_rows(self) -> int:
        """N, number of training rows with and without a label; with shards, of all shards."""
        return self._core.num_rows

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds the labels of its shards alone."""
        return isinstance(self._core, ShardedCore)

    @property
    def num_shards(self) -> int:
        """Number of shards on all ranks together; 1 without shards."""
        return self._core.num_shards if isinstance(self._core, ShardedCore) else 1

    @property
    def own_shards(self) -> list[tuple[int, int, int]]:
        """Number, first row and number of rows of each shard of this rank; (0, 0, N) without shards."""
        return self._core.own_shards if isinstance(self._core, ShardedCore) else [(0, 0, self.num_rows)]

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
    def _block(self, epoch: int, block: int, part: slice) -> NDArray[np.int64]:
        """Items ``part`` of a block of ``epoch``, of the sequence of all ranks: (n,) rows or (n, places)."""

    @abstractmethod
    def _extra(self, epoch: int, number: int) -> NDArray[np.int64]:
        """Item ``number`` beyond the end of ``epoch``, from 0: (1,) row or (1, places)."""

    @property
    @abstractmethod
    def _block_items(self) -> int:
        """Items of a block; the last block of an epoch may have fewer."""

    @property
    def _stride(self) -> tuple[int, int]:
        """First position of this rank in an epoch, and the distance to its next one."""
        return self.rank, self.num_replicas

    def _items(self, origin: _Origin) -> int:
        """Items of an epoch on this rank, with those before ``origin``."""
        return origin.items - (origin.position - self._total) // self._stride[1]

    def _position(self, origin: _Origin, items: int) -> int:
        """Position in the sequence of all ranks after each has taken ``items`` of an epoch."""
        return origin.position + (items - origin.items) * self._stride[1]

    def __len__(self) -> int:
        """Number of items of the present epoch on this rank; after loading a state, of those that are left.

        Every rank has the same number.
        """
        return self._items(self._origin) - self._skipped

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the next epoch; after loading a state, over the rest of the epoch in progress."""
        if not self._resume:
            self._core.epoch += self._handed > 0  # the loop left the last epoch early
            self._restart()
        # Until an item is requested, nothing is drawn and a loaded position is kept: a DataLoader with
        # workers makes two iterators and uses the second.
        self._begun, self._walk = (self._core.epoch, self._origin), object()
        self._loader = loader_count(self, self._handed)
        return self._walked(self._core.epoch, self._origin, self._handed, self._walk)

    def _walked(self, epoch: int, origin: _Origin, start: int, token: object) -> Iterator[Item]:
        if self._loader is not None and not isinstance(self._core, ShardedCore):
            check_length(self._loader.dataset_length, self._core.num_rows)
        first, step = self._stride
        position, end = self._position(origin, start), self._items(origin)
        position += (first - position) % step
        while start < end:
            block, offset = divmod(position, self._block_items)
            beyond = position >= self._total
            items = self._extra(epoch, position - self._total) if beyond else self._block(epoch, block, slice(offset, None, step))
            for item in items[: end - start].tolist():
                if self._walk is token:
                    self._resume = False
                    self._handed += 1
                    if self._handed == end:  # with the last item: not every loop requests one more
                        self._finish()
                yield item
            start, position = start + len(items), position + len(items) * step

    def _finish(self) -> None:
        self._core.epoch += 1
        self._restart()
        self._walk, self._resume = None, False

    def _restart(self) -> None:
        """Begin the epoch with its first item."""
        self._handed = self._skipped = 0
        self._origin = _Origin()

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch; without this call every iteration is the next epoch.

        A loaded position in the middle of that same epoch is kept, so that trainers which call this before
        every epoch resume exactly.
        """
        number = whole_number(epoch, "epoch", 0)
        if not (self._resume and number == self._core.epoch):
            self._core.epoch, self._resume = number, False
            self._restart()
        self._begun = self._walk = self._loader = None

    def update(
        self,
        y_true: ArrayLike | Sequence[str],
        y_score: ArrayLike,
        *,
        rows: ArrayLike | None = None,
        row_score: ArrayLike | None = None,
        gather: Gather = "auto",
    ) -> SamplingWeights:
        """Report the model's scores; call it once, after each epoch, on every rank.

        On several ranks each gives its own part of the held-out rows and of the scored training rows; the
        parts may differ in size, and be empty. All ranks get the same weights. An unfinished epoch ends here.

        Args:
            y_true: (n,) classes of held-out rows, named as in ``labels``: the commonest class and at least
                one other, on all ranks together.
            y_score: (n, K) probabilities in the order of :attr:`classes_`; with two classes also (n,) or
                (n, 1) probabilities of the rarer class. Tensors may be on any device and carry gradients.
            rows: (m,) indices of some of the training rows.
            row_score: Scores of these rows, in the same form as ``y_score``. Hardness has an effect only with
                them.
            gather: ``auto``: the ranks of this sampler exchange scores where ``torch.distributed`` is
                initialised and has as many ranks as the sampler; a process alone takes its scores as they
                are. ``all``: the ranks of ``group``, or all ranks, exchange scores, also where the sampler
                draws for all of them (``rank=0, num_replicas=1``). ``none``: every rank gives the same
                scores of all rows, gathered before.

        Returns:
            The weights of the next epoch, shares in the order of :attr:`classes_`.

        Raises:
            InputError: As :meth:`balancer.sampling.core.SamplerCore.update`, on all ranks. Nothing has
                changed then.
        """
        group = self._exchange(gather)
        if group is None:
            weights = self._core.update(y_true, y_score, rows=rows, row_score=row_score)
        else:
            weights = self._core.update_together(group, y_true, y_score, rows=rows, row_score=row_score, exact=self._EXACT)
        if self._handed:
            self._finish()
        self._begun = self._loader = None
        return weights

    def _exchange(self, gather: str) -> Group | None:
        """The ranks that exchange scores; None: none do."""
        if gather not in ("auto", "all", "none"):
            raise InputError(f"gather must be auto, all or none, not {gather!r}")
        if isinstance(self._core, ShardedCore):
            if gather == "none":
                raise InputError("gather='none' needs all rows on each rank, which shards don't have; leave it out")
            return self._core.group
        if gather == "none":
            return None
        if gather == "auto" or self._group is not None:
            return group_of(self._group, self.rank, self.num_replicas)
        if not is_distributed():
            raise UnsupportedError("gather='all' needs torch.distributed; call init_process_group first, or give group")
        return TorchGroup()

    def state_dict(self, consumed: int | None = None, *, gather: bool = False) -> dict[str, Any]:
        """State from which :meth:`load_state_dict` continues exactly.

        Arrays are tensors where torch is installed, so ``torch.load(weights_only=True)`` reads the state.

        Args:
            consumed: Items (rows, or batches of the batch sampler) of the present epoch that this rank has
                trained on, including those before a resume. None: those of the batches that the DataLoader
                has returned, or, where there is none, as many as the sampler has returned. :meth:`update`
                begins a new epoch. After a resume on another number of ranks, what was trained on before
                counts as the position divided by the number of ranks, rounded up.
            gather: With shards, whether the state holds the scores of all shards, so that any number of ranks
                loads it; all ranks must make the call then. Otherwise it holds those of this rank's shards.

        Raises:
            InputError: ``consumed`` is more than the epoch has.
        """
        epoch, handed, origin = self._core.epoch, self._handed, self._origin
        begun, begun_origin = self._begun or (epoch, origin)
        if consumed is None and self._loader is not None and self._begun is not None:
            consumed = self._loader.items(self._items(begun_origin))
            if consumed is None and self._loader.workers:
                warnings.warn(
                    "the DataLoader reads ahead and returns batches in an order or of a size that is not known here: "
                    "give state_dict the number of rows trained on, consumed=",
                    stacklevel=2,
                )
        if consumed is not None:
            epoch, handed, origin = begun, whole_number(consumed, "consumed", 0), begun_origin
            length = self._items(origin)
            if handed > length:
                raise InputError(f"consumed is {handed}, an epoch has {length} items on this rank; count from 0 in each epoch")
            if handed == length:
                epoch, handed = epoch + 1, 0
        state = self._core.state_dict()
        if gather and isinstance(self._core, ShardedCore):
            state = self._core.gathered_state(state)
        if HAS_TORCH:
            state["rows"] = {
                name: torch.from_numpy(array if array.flags.writeable else array.copy()) for name, array in state["rows"].items()
            }
        place = {"handed": handed, "position": self._position(origin, handed) if handed else 0, "num_replicas": self.num_replicas}
        return state | {"epoch": epoch, "kind": self._KIND} | place | self._shape()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`, including the seed; any rank's state fits all ranks.

        It may have been saved by another number of ranks, also in the middle of an epoch: the ranks then go
        on with the next item of the sequence. Where seed or patience differ from those of this sampler,
        :attr:`notes` say so.

        Raises:
            InputError: It was saved for other labels, another policy, sampler or size, or by version 0.2 or
                older in the middle of an epoch of several ranks. Nothing has changed then.
        """
        if not isinstance(state, Mapping) or state.get("kind") != type(self).__name__:
            kind = state.get("kind") if isinstance(state, Mapping) else None
            raise InputError(
                f"saved state is that of {kind or 'no torch sampler'}, this is {type(self).__name__}; load it where it was saved"
            )
        handed = whole_number(state.get("handed"), "handed of the saved state", 0)
        for name, value in self._shape().items():
            if state.get(name) != value:
                raise InputError(
                    f"saved state is for {name} {state.get(name)!r}, this sampler has {value!r}; make the sampler as it was saved"
                )
        if "position" not in state and handed and state.get("num_replicas", 1) != 1:
            raise InputError(
                f"saved state is of an older version, in the middle of an epoch of {state['num_replicas']} ranks, which divided epochs "
                "otherwise; load a state that was saved between two epochs"
            )
        position = whole_number(state.get("position", handed), "position of the saved state", 0)
        if position >= self._total or handed > position:
            raise InputError(
                f"saved state is {max(position, handed)} items into an epoch of {self._total}: it is corrupt, load another one"
            )
        self._core.load_state_dict(state)
        self._origin = _Origin(position, -(-position // self._stride[1]))
        self._handed = self._skipped = self._origin.items
        self._resume, self._begun, self._walk, self._loader = position > 0, None, None, None

    def _shape(self) -> dict[str, int]:
        """Sizes besides those of the core that the items of an epoch depend on."""
        return {}
