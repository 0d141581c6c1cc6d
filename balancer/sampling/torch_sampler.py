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
:meth:`~.AdaptiveBase.state_dict` in the middle of an epoch, :meth:`~.AdaptiveBase.load_state_dict` in a new
process continues with the very next row, and ``len`` is the number of rows that are left. A DataLoader with
workers requests rows in advance; the sampler counts the batches that the loader has returned. Behind another
loader or batch sampler it counts the rows that it has returned itself: pass the number of rows trained on to
``state_dict(consumed=...)`` there.

**Several processes.** Each rank draws its own items of the same epoch: rank r of W the positions r, r + W,
and so on. In :meth:`~.AdaptiveBase.update` each rank gives the scores of its own part of the rows, and all
get the same weights. With ``labels`` every rank has the labels of all rows; with ``shards`` it has those of
its shards (:mod:`balancer.sampling.shards`). :class:`DistributedAdaptiveBatchSampler` divides batches with
exact quotas among the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.sampling.core import SamplerCore
from balancer.sampling.core_view import HAS_TORCH
from balancer.sampling.inputs import whole_number
from balancer.sampling.policies import Policy
from balancer.sampling.sharded_core import ShardedCore
from balancer.sampling.torch_base import AdaptiveBase
from balancer.sampling.torch_ranks import shard_group
from balancer.sampling.weights import Floats

if TYPE_CHECKING or HAS_TORCH:
    import torch

Shards = Mapping[int, ArrayLike | Sequence[str]]
"""Labels (n,) of each shard of this rank, by its number."""


class AdaptiveSampler(AdaptiveBase[int]):
    """Draws training rows by class and hardness; :meth:`update` changes the weights once an epoch.

    A class is drawn first, then one of its rows: a draw costs O(1), by hardness O(log N), and no weight is
    kept for each row. So there is no limit of 2**24 rows, which ``WeightedRandomSampler`` has. An epoch never
    consists of the commonest class alone: where chance would draw only that class, one row is exchanged.

    Args:
        labels: (N,) class of each training row: whole numbers (also negative ones), booleans, text or bytes.
            ``None`` and NaN mean no label. On several ranks all have the same labels.
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
        shards: Instead of ``labels``: the labels of this rank's shards, by number. Rank r of W holds the
            shards r, r + W, r + 2 W, and so on. The items are numbers of rows through all shards, one shard
            after the other. An epoch then has as many rows of each shard (``num_samples`` is rounded up to
            it), and all ranks must make the sampler together. See :mod:`balancer.sampling.shards`.
        num_shards: Number of shards on all ranks together, a multiple of ``num_replicas``. The same number of
            shards gives the same epochs for every number of ranks.
        group: Process group of ``torch.distributed`` whose ranks share an epoch; None: the default one.

    Raises:
        InputError: Fewer than two classes, no epoch, too few rows an epoch, a rank out of range, a policy
            that can't be loaded, or shards that are not those of the rank.

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
        labels: ArrayLike | Sequence[str] | None = None,
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
        shards: Shards | None = None,
        num_shards: int | None = None,
        group: Any = None,
    ) -> None:
        options: dict[str, Any] = {
            "policy": policy,
            "epochs": epochs,
            "num_samples": num_samples,
            "unlabelled": unlabelled,
            "seed": seed,
            "compensated": compensated,
            "patience": patience,
        }
        core = _core(labels, times, shards, num_shards, (rank, num_replicas, group), options)
        items = core.epoch_rows if isinstance(core, ShardedCore) else core.num_samples
        super().__init__(core, items, generator, rank, num_replicas, group)

    @property
    def num_samples(self) -> int:
        """Rows drawn in an epoch, on all ranks together."""
        return self._core.num_samples

    def _sizes(self) -> dict[str, int]:
        return {"num_samples": self.num_samples}

    @property
    def _block_items(self) -> int:
        return self._core.block_rows

    def _block(self, epoch: int, block: int, part: slice) -> NDArray[np.int64]:
        return self._core.draw_block(epoch, block, self._total, part)

    def _extra(self, epoch: int, number: int) -> NDArray[np.int64]:
        return self._core.draw_extra(epoch, number, self._total)


class _Batches(AdaptiveBase[list[int]]):
    """Batches with an exact quota of each class.

    Args:
        core: Core of the sampler.
        batch_size: Rows of a batch.
        generator: As for :class:`AdaptiveSampler`.
        rank: As for :class:`AdaptiveSampler`.
        num_replicas: As for :class:`AdaptiveSampler`.
        group: As for :class:`AdaptiveSampler`.
    """

    def __init__(
        self,
        core: SamplerCore | ShardedCore,
        batch_size: int,
        generator: torch.Generator | None,
        rank: int | None,
        num_replicas: int | None,
        group: Any,
    ) -> None:
        self.batch_size = self._batch_rows = batch_size
        self.num_batches = -(-core.num_samples // batch_size)
        """Batches of an epoch, on all ranks together."""
        super().__init__(core, self.num_batches, generator, rank, num_replicas, group)

    @property
    def batch_share(self) -> Floats:
        """(K,) share of each class in the batches of the next epoch, in the order of :attr:`classes_`."""
        return self._core.batch_share(self.batch_size)

    def _sizes(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "num_batches": self.num_batches}

    @property
    def _block_items(self) -> int:
        return self._core.block_batches(self.batch_size)

    @property
    def _places(self) -> slice:
        """Which places of a batch this rank takes."""
        return slice(None)

    def _block(self, epoch: int, block: int, part: slice) -> NDArray[np.int64]:
        return self._core.draw_batch_block(epoch, block, self._total, self.batch_size, (part, self._places))

    def _extra(self, epoch: int, number: int) -> NDArray[np.int64]:
        return self._core.draw_extra_batch(epoch, number, self._total, self.batch_size)

    def _shape(self) -> dict[str, int]:
        return {"batch_size": self.batch_size}


class AdaptiveBatchSampler(_Batches):
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
        group: As for :class:`AdaptiveSampler`.

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
        group: Any = None,
    ) -> None:
        size, rows = _batch_rows(batch_size, num_batches)
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
        super().__init__(core, size, generator, rank, num_replicas, group)


class DistributedAdaptiveBatchSampler(_Batches):
    """Batches over all ranks with an exact quota of each class; each rank takes an equal part of a batch.

    A batch is mixed, and rank r of W takes its places r, r + W, and so on. So the whole batch has the quota
    of each class, and a rank's part about that share. The batches are the same for every number of ranks, and
    those of :class:`AdaptiveBatchSampler` in one process. With ``shards`` each shard gives an equal number of
    rows to every batch.

    Args:
        labels: As for :class:`AdaptiveSampler`.
        batch_size: Rows of a batch on all ranks together: a multiple of the number of ranks, and of the
            number of shards.
        policy: As for :class:`AdaptiveSampler`.
        epochs: As for :class:`AdaptiveSampler`.
        num_batches: Batches of an epoch; None: as many as the labelled rows fill, rounded up.
        unlabelled: As for :class:`AdaptiveSampler`.
        seed: As for :class:`AdaptiveSampler`.
        generator: As for :class:`AdaptiveSampler`.
        rank: As for :class:`AdaptiveSampler`.
        num_replicas: As for :class:`AdaptiveSampler`.
        times: As for :class:`AdaptiveSampler`.
        compensated: As for :class:`AdaptiveSampler`.
        patience: As for :class:`AdaptiveSampler`.
        shards: As for :class:`AdaptiveSampler`.
        num_shards: As for :class:`AdaptiveSampler`.
        group: As for :class:`AdaptiveSampler`.

    Raises:
        InputError: As :class:`AdaptiveSampler`, or ``batch_size`` can't be divided evenly.

    >>> ranks = [DistributedAdaptiveBatchSampler(["ok"] * 990 + ["fraud"] * 10, batch_size=10, num_batches=4,
    ...     policy="constant:share=.2", epochs=3, rank=rank, num_replicas=2) for rank in range(2)]
    >>> [len(one + other) - sum(row < 990 for row in one + other) for one, other in zip(*ranks)]
    [2, 2, 2, 2]
    """

    _KIND = "DistributedAdaptiveBatchSampler"

    def __init__(
        self,
        labels: ArrayLike | Sequence[str] | None = None,
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
        shards: Shards | None = None,
        num_shards: int | None = None,
        group: Any = None,
    ) -> None:
        size, rows = _batch_rows(batch_size, num_batches)
        options: dict[str, Any] = {
            "policy": policy,
            "epochs": epochs,
            "num_samples": rows,
            "unlabelled": unlabelled,
            "seed": seed,
            "compensated": compensated,
            "patience": patience,
        }
        core = _core(labels, times, shards, num_shards, (rank, num_replicas, group), options)
        if isinstance(core, ShardedCore):
            core.shard_batch_size(size)
        super().__init__(core, size, generator, rank, num_replicas, group)
        if size % self.num_replicas:
            raise InputError(f"batch_size {size} must be a multiple of the {self.num_replicas} ranks, which take equal parts of a batch")

    @property
    def _stride(self) -> tuple[int, int]:
        return 0, 1

    @property
    def _places(self) -> slice:
        return slice(self.rank, None, self.num_replicas)


def _batch_rows(batch_size: Any, num_batches: Any) -> tuple[int, int | None]:
    """Rows of a batch, and of an epoch where the number of batches is given."""
    size = whole_number(batch_size, "batch_size", 1)
    return size, None if num_batches is None else whole_number(num_batches, "num_batches", 1) * size


def _core(
    labels: ArrayLike | Sequence[str] | None,
    times: ArrayLike | None,
    shards: Shards | None,
    num_shards: int | None,
    place: tuple[int | None, int | None, Any],
    options: dict[str, Any],
) -> SamplerCore | ShardedCore:
    """The core of a sampler with the labels of all rows, or with those of shards.

    Raises:
        InputError: Both or neither are given, or ``times`` with shards.
    """
    if (labels is None) == (shards is None) or (shards is None) != (num_shards is None):
        raise InputError("give labels, or shards and num_shards")
    if shards is None or num_shards is None:
        assert labels is not None
        return SamplerCore(labels, times=times, **options)
    if times is not None:
        raise InputError("times can't be used with shards; leave times out, or give the labels of all rows")
    return ShardedCore(shards, num_shards, shard_group(*place), **options)
