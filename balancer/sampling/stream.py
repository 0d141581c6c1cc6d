"""A stream of items, drawn to the class shares that a policy sets; for data sets that have no table.

    stream = AdaptiveStream(read_files, classes=["fine", "fraud"], label="y", epochs=10, num_samples=50_000)
    loader = DataLoader(stream, batch_size=256, num_workers=4)
    for epoch in range(10):
        for batch in loader:
            loss = stream.loss(model(batch["x"]), batch["y"])
            ...
        stream.update(valid_labels, stream.probabilities(model_logits(valid)))

Items are drawn by rejection with a bounded buffer for each class (:mod:`balancer.sampling.stream_buffer`):
rare items are drawn more than once where reading on would take too long. What was read, drawn and drawn again
is counted (:attr:`~AdaptiveStream.seen`, :attr:`~AdaptiveStream.kept`, :attr:`~AdaptiveStream.repeated`), and
the class prior is estimated from it. Hardness and half-life have no effect: there are no rows to score.

**Workers and ranks.** Each worker of each rank reads a share of the source: of C of them, number i reads
every C-th item from item i on. So no item is read by two, but each reads past the items of the others. A
source that can do better is a function ``source(shard, num_shards)``, which returns an iterable of its shard
alone. For a source that divides its items itself (by ``torch.utils.data.get_worker_info``, say), set
``sharded=True``. A rank draws ``num_samples / num_replicas`` items, rounded up, and its workers share them.
The main process sees what its workers have counted. Ranks see only their own counts: give ``update`` the sum.

**Epochs.** An epoch begins where the last one ended; where the source ends it is read again from its
beginning. An epoch's items are a function of the seed, its number, the weights and the source; so a training
is repeatable if the source is. Workers that are started anew for each epoch (``persistent_workers=False``)
first read past what was read before.

**Resume.** After :meth:`~AdaptiveStream.state_dict` in the middle of an epoch, a new process continues with
the very next item, if the source gives the same items again. Behind a DataLoader with workers it begins the
epoch again, because the stream can't see which of their items were used.

**Without torch** it is a plain iterable; only :meth:`~.CoreView.loss` needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.sampling.controller import SamplingController
from balancer.sampling.core import SamplerCore
from balancer.sampling.core_view import HAS_TORCH, CoreView
from balancer.sampling.inputs import numbers, whole_number
from balancer.sampling.policies import Policy
from balancer.sampling.seeding import generator
from balancer.sampling.stream_board import (
    ACTIVE,
    DONE,
    KEPT,
    MOST_WORKERS,
    NOW,
    POSITION,
    REPEATED,
    SEEN,
    SHARDS,
    START,
    UNLABELLED,
    Board,
    Line,
)
from balancer.sampling.stream_buffer import ClassBuffers, drawn_items, reads_per_draw
from balancer.sampling.stream_source import StreamSource, checked_classes
from balancer.sampling.torch_ranks import place_of
from balancer.sampling.weights import Floats, SamplingWeights, class_prior

Item = TypeVar("Item")
if TYPE_CHECKING or HAS_TORCH:
    import torch
    from torch.utils.data import Dataset, IterableDataset, get_worker_info
else:

    class IterableDataset(Generic[Item]):
        """What a DataLoader takes as a stream."""

    def get_worker_info():
        """Without torch there are no workers."""


WARM_UP = 1000
"""Items that are read to estimate the prior where none is given."""
PRIOR_WEIGHT = 100.0
"""Items that the first estimate of the prior counts as, beside those that were read."""
BUFFER = 512
"""Items of a class that are kept, at most, by default."""
REPEATS = 8.0
"""How often an item may be drawn on average, by default."""
_KIND = "AdaptiveStream"
_TABLE = 10_000
"""Rows of the table that stands for a stream, and items of an epoch for a policy where they are not known."""


class _StreamCore(SamplerCore):
    """The core of a stream: a small table with the classes in their estimated proportions stands for it."""

    def __init__(self, classes: list[Any], prior: Floats, count: Callable[[], Floats], **options: Any) -> None:
        table = np.maximum(np.round(prior * max(_TABLE, 1000 * len(classes))), 1).astype(np.int64)
        self._count, self._epoch_prior = count, prior
        rows = _TABLE if options["num_samples"] is None else options["num_samples"]
        super().__init__(np.repeat(np.asarray(classes), table), **(options | {"num_samples": rows}))

    def _new_controller(self) -> SamplingController:
        prior = self._epoch_prior[self._labels.order]
        counts = prior * self.num_samples
        return SamplingController(
            prior,
            self.policy,
            epochs=self.epochs,
            batch_budget=self.epochs * self.num_samples,
            train_counts=counts,
            reward_counts=counts,
            compensated=self.compensated,
        )

    @property
    def prior(self) -> Floats:
        """(K,) estimated class prior of the stream, in the order of :attr:`classes_`."""
        return class_prior(self._count())

    @property
    def class_weight(self) -> Floats:
        """(K,) loss weight of each class in the present epoch, with mean 1 over the drawn items."""
        self.use_compensation()
        return self.weights.class_weight(self._epoch_prior)

    @property
    def logit_offset(self) -> Floats:
        """(K,) what to add to the logits in training, never in scoring, in the present epoch."""
        self.use_compensation()
        return self.weights.logit_offset(self._epoch_prior)

    def use_prior(self, prior: Floats) -> None:
        """Take the prior (K,), in the order of :attr:`classes_`, for the next epoch."""
        self._epoch_prior = prior
        assert isinstance(self._controller, SamplingController)
        self._controller.use_prior(prior[self._labels.order])

    def _chosen(self, rows: ArrayLike) -> NoReturn:
        raise InputError("a stream has no rows; leave rows out")


class AdaptiveStream(CoreView, IterableDataset[Any]):
    """Items of a stream, drawn to class shares; :meth:`update` changes the shares once an epoch.

    Args:
        source: Iterable of items, read again from its beginning where it ends; an iterator or generator,
            which is read once and so serves one epoch; a data set with indices; or a function
            ``(shard, num_shards)`` that returns an iterable of a part of the items. For an iterator that
            never ends give ``lambda shard, num_shards: itertools.islice(items, shard, None, num_shards)`` and
            a ``prior``.
        classes: The K classes, at least two.
        epochs: Number of epochs of the training.
        num_samples: Items drawn in an epoch, on all ranks together (rounded up so that every rank gets the
            same number); None: an epoch is one pass over the source.
        label: Class of an item: a function, or the key or index of the class in the item. By default items
            are pairs ``(x, y)``. Items without a label (None, NaN, ``unlabelled``) are left out.
        policy: As for :class:`~balancer.sampling.torch_sampler.AdaptiveSampler`.
        prior: (K,) first estimate of the class prior, in the sorted order of the classes; None: from the
            first items of the source, which are read when the stream is made.
        buffer: Items of each class that are kept in memory, at most.
        repeats: How often an item may be drawn on average, 1 or more. The larger, the less is read; with 1 no
            item is drawn twice.
        sharded: Whether the source divides its items among workers and ranks itself.
        unlabelled: A label that marks items that are never drawn, e.g. -1.
        seed: Random seed.
        rank: As for :class:`~balancer.sampling.torch_sampler.AdaptiveSampler`.
        num_replicas: As for :class:`~balancer.sampling.torch_sampler.AdaptiveSampler`.
        compensated: As for :class:`~balancer.sampling.core.SamplerCore`.
        patience: As for :class:`~balancer.sampling.core.SamplerCore`.

    Raises:
        InputError: Fewer than two classes, a number out of range, an empty source, an iterator for several
            epochs, an item whose class is not among ``classes``, or a policy that can't be loaded.

    >>> items = [(number, int(number % 50 == 0)) for number in range(1000)]
    >>> stream = AdaptiveStream(items, classes=[0, 1], epochs=2, policy="constant:share=.2", num_samples=500,
    ...     seed=1)
    >>> drawn = list(stream)
    >>> len(drawn), sum(y for _, y in drawn), stream.prior.round(2).tolist()
    (500, 91, [0.98, 0.02])
    """

    _core: _StreamCore

    def __init__(
        self,
        source: Iterable[Any] | Dataset[Any] | Callable[[int, int], Iterable[Any]],
        *,
        classes: Sequence[Any],
        epochs: int,
        num_samples: int | None = None,
        label: Callable[[Any], Any] | str | int | None = None,
        policy: str | Path | Policy | SamplingWeights = "auto",
        prior: ArrayLike | None = None,
        buffer: int = BUFFER,
        repeats: float = REPEATS,
        sharded: bool = False,
        unlabelled: Any = None,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
        compensated: bool | None = None,
        patience: int | None = None,
    ) -> None:
        names = checked_classes(classes, unlabelled)
        if not isinstance(repeats, (int, float)) or not repeats >= 1:
            raise InputError(f"repeats must be a number of 1 or more, not {repeats!r}")
        passes = whole_number(epochs, "epochs", 1)
        self._source = StreamSource(source, names, label, unlabelled, epochs=passes, sharded=sharded)
        self.rank, self.num_replicas = place_of(rank, num_replicas)
        self.buffer, self.repeats, self.sharded = whole_number(buffer, "buffer", 1), float(repeats), sharded
        self._index = {name: number for number, name in enumerate(names)}
        self._board = Board(len(names))
        self._start_prior = self._first_prior(prior)
        self._options: dict[str, Any] = {
            "policy": policy,
            "epochs": epochs,
            "num_samples": num_samples,
            "unlabelled": unlabelled,
            "seed": seed,
            "compensated": compensated,
            "patience": patience,
        }
        self._core = self._new_core(self._start_prior)
        self._whole = num_samples is None
        self._length = -(-self._core.num_samples // self.num_replicas)
        self._skipped = 0  # items of this epoch that were trained on before a resume
        self._handed = 0  # items of the epoch in progress that this process has given
        self._resume = False  # the next iteration continues after them: they come from a loaded state
        self._publish()

    def _new_core(self, prior: Floats) -> _StreamCore:
        return _StreamCore(list(self._index), prior, self._counted, **self._options)

    def __repr__(self) -> str:
        """Policy, epoch, present weights, sizes and counts."""
        seen = dict(zip(self.classes_, self.seen.tolist(), strict=True)) if len(self._index) <= 10 else int(self.seen.sum())
        rank = "" if self.num_replicas == 1 else f", rank={self.rank} of {self.num_replicas}"
        return f"AdaptiveStream({self._core.describe()}, num_samples={self.num_samples}, seen={seen}{rank})"

    @property
    def num_samples(self) -> int | None:
        """Items drawn in an epoch, on all ranks together; None: an epoch is one pass over the source."""
        return None if self._whole else self._core.num_samples

    @property
    def seen(self) -> NDArray[np.int64]:
        """(K,) items that this rank has read, in the order of :attr:`classes_`."""
        return np.asarray(self._board.counts[:, NOW, SEEN].sum(axis=0))

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,) items that this rank has read; the same as :attr:`seen`."""
        return self.seen

    @property
    def kept(self) -> NDArray[np.int64]:
        """(K,) items that were drawn; the others were rejected, or are in a buffer."""
        return np.asarray(self._board.counts[:, NOW, KEPT].sum(axis=0))

    @property
    def repeated(self) -> NDArray[np.int64]:
        """(K,) draws of items that had been drawn before."""
        return np.asarray(self._board.counts[:, NOW, REPEATED].sum(axis=0))

    @property
    def skipped(self) -> int:
        """Items without a label that were read."""
        return int(self._board.numbers[:, NOW, UNLABELLED].sum())

    @property
    def epoch(self) -> int:
        """Number of the epoch in progress; between two epochs, of the next one."""
        return int(self._board.epoch[0] + self._board.numbers[:, NOW, DONE].max())

    @property
    def notes(self) -> list[str]:
        """Notes on what may surprise, e.g. that a class has not come yet."""
        notes, seen = self._core.notes, self.seen
        missing = [repr(name) for name, number in zip(self.classes_, seen.tolist(), strict=True) if not number]
        if seen.any() and missing:
            notes.append(f"none of {int(seen.sum())} items has the class {', '.join(missing[:10])}; its share went to the others")
        return notes

    def use_compensation(self) -> None:
        """Note that the loss counts drawn items; as :meth:`.SamplerCore.use_compensation`."""
        if self._core._compensation is None:
            self._core._begun = bool(self._board.numbers[:, NOW, (DONE, ACTIVE)].any()) or self._core._begun
            self._core.use_compensation()
            self._publish()
        else:
            self._core.use_compensation()

    @property
    def class_weight(self) -> Floats:
        """(K,) loss weight of each class in the present epoch, with mean 1 over the drawn items."""
        self.use_compensation()
        return self._core.class_weight

    @property
    def logit_offset(self) -> Floats:
        """(K,) what to add to the logits in training, never in scoring, in the present epoch."""
        self.use_compensation()
        return self._core.logit_offset

    def __len__(self) -> int:
        """Number of items of the present epoch on this rank; after loading a state, of those that are left.

        Raises:
            TypeError: An epoch is one pass over the source.
        """
        if self._whole:
            raise TypeError("the length of a pass over the source is not known; give AdaptiveStream num_samples")
        return self._length - self._skipped

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the next epoch; after loading a state, over the rest of the epoch in progress."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if worker >= MOST_WORKERS:
            raise InputError(f"a stream can be read by {MOST_WORKERS} workers at most, not {workers}; set num_workers={MOST_WORKERS}")
        line, shards = Line(self._board, worker), self.num_replicas * workers
        resumed = self._handed if self._resume and workers == 1 else 0
        if line.numbers[NOW, ACTIVE]:  # the loop left the last epoch early
            line.numbers[NOW, DONE] += 1
        if line.numbers[NOW, SHARDS] != shards:
            line.numbers[NOW, POSITION], line.numbers[NOW, SHARDS] = 0, shards
        self._skipped, self._handed, self._resume = self._skipped if resumed else 0, 0, False
        line.numbers[NOW, ACTIVE] = 1
        line.counts[START], line.numbers[START] = line.counts[NOW], line.numbers[NOW]
        share, prior = self._board.share.copy()
        shard, epoch = self.rank * workers + worker, int(self._board.epoch[0] + line.numbers[NOW, DONE])
        buffers = ClassBuffers(len(share), self.buffer, line, repeats=self.repeats)
        items = drawn_items(
            self._source.read(line, shard, shards, whole=self._whole),
            buffers,
            share,
            prior,
            reads=lambda: reads_per_draw(share, class_prior(line.counts[NOW, SEEN] + PRIOR_WEIGHT * prior), self.repeats),
            most=None if self._whole else self._length * (worker + 1) // workers - self._length * worker // workers,
            rng=generator(self._core.seed, "stream", epoch, shard),
        )
        for item in items:
            self._handed += 1
            if self._handed > resumed:
                yield item
        self._skipped = self._handed = 0
        line.numbers[NOW, ACTIVE] = 0
        line.numbers[NOW, DONE] += 1

    def _first_prior(self, prior: ArrayLike | None) -> Floats:
        """(K,) the given prior, or that of the first items."""
        num_classes = len(self._index)
        if prior is not None:
            given = numbers(prior, "prior")
            if given.shape != (num_classes,) or not np.isfinite(given).all() or not given.min() > 0:
                raise InputError(f"prior must be {num_classes} numbers above 0, one for each class, not {prior!r}")
            return np.asarray(given / given.sum())
        codes = self._source.first_codes(WARM_UP)
        counts = np.bincount([code for code in codes if code is not None], minlength=num_classes)
        if not counts.any():
            raise InputError("the source has no labelled items; check source, classes and label")
        return class_prior(counts + 0.5)

    def _counted(self) -> Floats:
        """(K,) items of each class, those of the first estimate included."""
        return self.seen + PRIOR_WEIGHT * self._start_prior

    def _publish(self) -> None:
        """Tell the workers the shares, the prior and the number of the epoch."""
        self._board.share[:] = self._core.weights.share, self._core._epoch_prior

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch; without this call every iteration is the next epoch.

        A loaded position in the middle of that same epoch is kept.
        """
        number = whole_number(epoch, "epoch", 0)
        if self._resume and number == self.epoch:
            return
        self._next_epoch(number)

    def _next_epoch(self, number: int) -> None:
        self._board.epoch[0], self._core.epoch = number, number
        self._board.numbers[:, NOW, (DONE, ACTIVE)] = 0
        self._handed, self._skipped, self._resume = 0, 0, False

    def update(
        self,
        y_true: ArrayLike | Sequence[str],
        y_score: ArrayLike,
        *,
        y_weight: ArrayLike | None = None,
        seen: ArrayLike | None = None,
    ) -> SamplingWeights:
        """Report the model's scores; call it once, after each epoch, on every rank with the same scores.

        An unfinished epoch ends here. The prior that was estimated so far holds for the next one.

        Args:
            y_true: (n,) classes of held-out items: the commonest class and at least one other.
            y_score: (n, K) probabilities in the order of :attr:`classes_`; with two classes also (n,)
                probabilities of the rarer class.
            y_weight: (n,) how much each held-out item counts in the figures; None: 1 each.
            seen: (K,) items of each class that all ranks have read so far, the sum of their :attr:`seen`, so
                that they estimate the same prior; None: those of this rank.

        Returns:
            The weights of the next epoch, shares in the order of :attr:`classes_`.

        Raises:
            InputError: As :meth:`balancer.sampling.core.SamplerCore.update`. Nothing has changed then.
        """
        counted = self._counted()
        if seen is not None:
            given = numbers(seen, "seen")
            if given.shape != counted.shape or not np.isfinite(given).all() or given.min() < 0:
                raise InputError(f"seen must be {len(counted)} numbers of 0 or more, one for each class, not {seen!r}")
            counted = given + PRIOR_WEIGHT * self._start_prior
        before = self._core._epoch_prior
        self._core.use_prior(class_prior(counted))
        try:
            weights = self._core.update(y_true, y_score, y_weight=y_weight)
        except Exception:  # whatever a policy or the scores raise, an update that fails changes nothing
            self._core.use_prior(before)
            raise
        begun = self._board.numbers[:, NOW, ACTIVE] + self._board.numbers[:, NOW, DONE]
        self._next_epoch(int(self._board.epoch[0] + begun.max()))
        self._publish()
        return weights

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """State from which :meth:`load_state_dict` continues exactly.

        The source must give the same items again.

        Arrays are tensors where torch is installed, so ``torch.load(weights_only=True)`` reads the state.

        Args:
            consumed: Items of the present epoch that this rank has trained on; None: as many as the stream
                has given in this process. Workers of a DataLoader give them in other processes: then the
                epoch begins again.

        Raises:
            InputError: ``consumed`` is more than the epoch has.
        """
        handed = self._handed if consumed is None else whole_number(consumed, "consumed", 0)
        if not self._whole and handed > self._length:
            raise InputError(f"consumed is {handed}, an epoch has {self._length} items on this rank; count from 0 in each epoch")
        counts, lines = self._board.counts.copy(), self._board.numbers.copy()
        active = lines[:, NOW, ACTIVE] > 0
        if not self._whole and handed == self._length:  # the epoch is done, whether its end was asked for or not
            handed = 0
            lines[active, NOW, DONE] += 1
        else:
            counts[active, NOW], lines[active, NOW] = counts[active, START], lines[active, START]
        lines[:, NOW, ACTIVE] = 0
        used = max(int((lines[:, NOW].any(axis=1)).sum()), 1)
        state = self._core.state_dict()
        arrays: dict[str, Any] = {"counts": counts[:used, NOW].copy(), "numbers": lines[:used, NOW].copy()}
        if HAS_TORCH:
            arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
            state["rows"] = {name: torch.from_numpy(array) for name, array in state["rows"].items()}
        single = active[0] and lines[0, NOW, SHARDS] == self.num_replicas
        return state | {
            "kind": _KIND,
            "num_replicas": self.num_replicas,
            "handed": handed if single else 0,
            "epoch": int(self._board.epoch[0]),
            "first_prior": self._start_prior.tolist(),
            "epoch_prior": self._core._epoch_prior.tolist(),
            "stream": arrays,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`, including the seed.

        Raises:
            InputError: It was saved for other classes, another policy or size, or in the middle of an epoch
                for another number of ranks. Nothing has changed then.
        """
        if not isinstance(state, Mapping) or state.get("kind") != _KIND:
            raise InputError(f"saved state is no state of an {_KIND}; load it where it was saved")
        handed = whole_number(state.get("handed"), "handed of the saved state", 0)
        if handed and state.get("num_replicas") != self.num_replicas:
            raise InputError(
                f"saved state is for num_replicas {state.get('num_replicas')!r}, this stream has {self.num_replicas}; "
                "make the stream as it was saved"
            )
        try:
            first, prior = (np.array(state[name], dtype=np.float64) for name in ("first_prior", "epoch_prior"))
            counts, lines = (np.asarray(state["stream"][name], dtype=np.int64) for name in ("counts", "numbers"))
            shape = (len(self._index),)
            if first.shape != shape or prior.shape != shape or counts.shape[1:] != (3, *shape) or lines.shape[1:] != (5,):
                raise ValueError("it is for another number of classes")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"saved state does not fit the stream ({error!r}); make the stream as it was saved") from error
        core = self._new_core(first)
        core.load_state_dict(state)
        core.use_prior(prior)
        self._core, self._start_prior = core, first
        self._source.forget()
        self._board.counts[:], self._board.numbers[:] = 0, 0
        self._board.counts[: len(counts), NOW], self._board.numbers[: len(lines), NOW] = counts, lines
        self._board.epoch[0] = core.epoch
        self._handed, self._skipped, self._resume = handed, handed, handed > 0
        self._publish()
