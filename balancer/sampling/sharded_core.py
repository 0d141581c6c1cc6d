"""The core of a sampler whose rows lie in shards on several ranks; see :mod:`balancer.sampling.shards`.

The sequence of an epoch has one row of each shard in turn: position p is row ``p // S`` of the draws of shard
``p % S``. Each shard draws from random numbers of its own, so the sequence does not depend on the ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError, UnsupportedError
from balancer.sampling import core
from balancer.sampling.inputs import whole_number
from balancer.sampling.labels import check_classes
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import Policy
from balancer.sampling.pooled_scores import pooled_rows
from balancer.sampling.quotas import QuotaPlan, batch_share
from balancer.sampling.ranks import Group
from balancer.sampling.sampler_base import SamplerBase
from balancer.sampling.seeding import generator
from balancer.sampling.shard_quotas import shard_quotas
from balancer.sampling.shards import ShardedLabels, ShardedRows, merged_states
from balancer.sampling.weights import Floats, SamplingWeights


class ShardedCore(SamplerBase):
    """Draws the rows of this rank's shards.

    Args:
        shards: Labels of each shard of this rank, by its number.
        num_shards: S, on all ranks together.
        group: The ranks.
        policy: As for :class:`~balancer.sampling.core.SamplerCore`.
        epochs: As for :class:`~balancer.sampling.core.SamplerCore`.
        num_samples: As for :class:`~balancer.sampling.core.SamplerCore`, on all ranks together; rounded up to
            a multiple of S.
        unlabelled: As for :class:`~balancer.sampling.core.SamplerCore`.
        seed: As for :class:`~balancer.sampling.core.SamplerCore`.
        compensated: As for :class:`~balancer.sampling.core.SamplerCore`.
        patience: As for :class:`~balancer.sampling.core.SamplerCore`.

    Raises:
        InputError: As :class:`~balancer.sampling.core.SamplerCore` and
            :class:`~balancer.sampling.shards.ShardedLabels`.
    """

    def __init__(
        self,
        shards: Mapping[int, ArrayLike | Sequence[str]],
        num_shards: int,
        group: Group,
        *,
        policy: str | Path | Policy | SamplingWeights = "auto",
        epochs: int,
        num_samples: int | None = None,
        unlabelled: Any = None,
        seed: int = 0,
        compensated: bool | None = None,
        patience: int | None = None,
    ) -> None:
        self.group = group
        """The ranks, which must make the same calls of :meth:`update_together`."""
        labels = ShardedLabels(shards, whole_number(num_shards, "num_shards", 1), group, unlabelled)
        check_classes(labels)
        rows = ShardedRows(labels)
        super().__init__(
            labels,
            lambda: rows,
            policy=policy,
            epochs=epochs,
            num_samples=num_samples,
            seed=seed,
            compensated=compensated,
            patience=patience,
        )
        self._shards, self._sharded_rows = labels, rows
        self.num_shards = labels.num_shards
        self._steps = -(-self.num_samples // self.num_shards)
        self._split: tuple[tuple[Any, ...], QuotaPlan] | None = None

    def __repr__(self) -> str:
        """Policy, epoch, sizes and present weights."""
        return f"ShardedCore({self.describe()}, num_samples={self.num_samples}, rows={self.num_rows}, num_shards={self.num_shards})"

    @property
    def own_shards(self) -> list[tuple[int, int, int]]:
        """Number, first row and number of rows of each shard of this rank."""
        starts = self._shards.starts.tolist()
        return [(number, starts[number], starts[number + 1] - starts[number]) for number in self._shards.ids]

    @property
    def epoch_rows(self) -> int:
        """Rows drawn in an epoch on all ranks together: ``num_samples``, rounded up to a multiple of S."""
        return self._steps * self.num_shards

    @property
    def block_rows(self) -> int:
        """Positions of a block of :meth:`draw_block`; the last block of an epoch may have fewer."""
        return max(1, core.BLOCK // self.num_shards) * self.num_shards

    @staticmethod
    def block_batches(batch_size: int) -> int:
        """Batches of a block of :meth:`draw_batch_block`; the last block of an epoch may have fewer."""
        return core.batches_of_block(batch_size)

    def draw_block(self, epoch: int, block: int, epoch_draws: int, part: slice = core.EVERY) -> NDArray[np.int64]:
        """Draw a part of an epoch; see :meth:`.SamplerCore.draw_block`.

        Positions of other ranks' shards hold -1.
        """
        self._begun = self._trained = True
        weights, steps = self._controller.weights, self.block_rows // self.num_shards
        size = min(steps, epoch_draws // self.num_shards - block * steps)
        result = np.full((size, self.num_shards), -1, dtype=np.int64)
        for number, rows in self._sharded_rows.parts.items():
            rng = generator(self.seed, "draw shard", epoch, block, number)
            classes = rows.draw_classes(size, weights, rng)
            result[:, number] = rows.fill(classes, weights, rng, epoch_draws=epoch_draws // self.num_shards)
            result[:, number] += self._shards.starts[number]
        return result.ravel()[part]

    def draw_extra(self, epoch: int, number: int, epoch_draws: int) -> NDArray[np.int64]:
        """Draw a row beyond the last one of an epoch; see :meth:`.SamplerCore.draw_extra`."""
        self._begun = self._trained = True
        shard, weights = number % self.num_shards, self._controller.weights
        rows, rng = self._sharded_rows.parts[shard], generator(self.seed, "draw extra", epoch, number)
        row = rows.fill(rows.draw_classes(1, weights, rng), weights, rng, epoch_draws=epoch_draws // self.num_shards)
        return np.asarray(row + self._shards.starts[shard])

    def draw_batch_block(
        self, epoch: int, block: int, num_batches: int, batch_size: int, part: tuple[slice, slice] = (core.EVERY, core.EVERY)
    ) -> NDArray[np.int64]:
        """Draw a part of the batches of an epoch; see :meth:`.SamplerCore.draw_batch_block`.

        Places of other ranks' shards hold -1.
        """
        each, weights = self.block_batches(batch_size), self._controller.weights
        asked = (self.seed, epoch, num_batches, batch_size, weights)
        if self._split is None or self._split[0][:-1] != asked[:-1] or self._split[0][-1] is not weights:
            self._split = asked, QuotaPlan(weights.share, num_batches, batch_size, generator(self.seed, "draw batches", epoch))
        counts = self._split[1].rows(block * each, (block + 1) * each)
        return self._batches(counts, (epoch, block + 1), "draw shard batches", num_batches, part)

    def draw_extra_batch(self, epoch: int, number: int, num_batches: int, batch_size: int) -> NDArray[np.int64]:
        """Draw a batch beyond the last one of an epoch; see :meth:`.SamplerCore.draw_extra_batch`."""
        counts = QuotaPlan(self._controller.weights.share, 1, batch_size, generator(self.seed, "draw extra", epoch, number)).rows(0, 1)
        return self._batches(counts, (epoch, number), "draw extra shard batch", num_batches, (core.EVERY, core.EVERY))

    def _batches(
        self, counts: NDArray[np.int64], index: tuple[int, int], purpose: str, num_batches: int, part: tuple[slice, slice]
    ) -> NDArray[np.int64]:
        """Rows of batches with ``counts`` (n, K) rows of each class, an equal number from each shard."""
        self._begun = self._trained = True
        weights, size = self._controller.weights, self.shard_batch_size(int(counts[0].sum()))
        divided = shard_quotas(counts, self._shards.shard_counts, generator(self.seed, purpose, *index))
        expected = dataclasses.replace(weights, share=batch_share(weights.share, size * self.num_shards))
        result = np.full((len(counts), size, self.num_shards), -1, dtype=np.int64)
        for number, rows in self._sharded_rows.parts.items():
            rng = generator(self.seed, purpose, *index, number)
            own = divided[:, number]
            classes = np.repeat(np.tile(np.arange(own.shape[1]), len(own)), own.ravel()).reshape(len(own), size)
            mixed = rng.permuted(classes, axis=1)
            drawn = rows.fill(mixed.ravel(), expected, rng, epoch_draws=num_batches * size)
            result[:, :, number] = drawn.reshape(mixed.shape) + self._shards.starts[number]
        return result.reshape(len(counts), -1)[part]

    def shard_batch_size(self, batch_size: int) -> int:
        """Rows of a batch that each shard gives.

        Raises:
            InputError: ``batch_size`` is no multiple of the number of shards.
        """
        if batch_size % self.num_shards:
            raise InputError(
                f"batch_size {batch_size} must be a multiple of the {self.num_shards} shards, which give equal parts of a batch"
            )
        return batch_size // self.num_shards

    def update(self, *args: Any, **kwargs: Any) -> SamplingWeights:
        """Refused: ranks with rows of their own update together.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("with shards the ranks update together; call update_together on every rank")

    def _pooled_training(
        self, group: Group, rows: NDArray[np.int64], label: NDArray[np.int64], score: Floats, held_out: ScoredRows, *, exact: bool
    ) -> tuple[ScoredRows, ScoredRows, tuple[NDArray[np.int64], Floats]]:
        return pooled_rows(group, label, score, exact=exact), held_out, (rows, score)

    def _share_rows(self, group: Group) -> None:
        weights, _ = self._drawing()
        self._sharded_rows.share_tilt(group, weights, self._epoch_draws)

    def gathered_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of :meth:`state_dict` with the scores of all ranks; every rank calls it."""
        names = list(state["rows"])
        parts = [self.group.gather(state["rows"][name]) for name in names]
        return state | {"rows": merged_states([dict(zip(names, each, strict=True)) for each in zip(*parts, strict=True)])}
