"""The core of the adaptive samplers, in NumPy alone: labels of any kind go in, rows to train on come out.

    sampler = SamplerCore(labels, epochs=10)
    for _ in range(sampler.epochs):
        model.fit(x[rows := sampler.draw()], y[rows])
        sampler.update(y_valid, model.predict_proba(x_valid)[:, 1])

The torch samplers and the integrations are built on it. All arguments are checked before anything changes, so
an :class:`~balancer.errors.InputError` leaves the sampler as it was.

**Compensation.** How often a row is drawn and how much it counts in the loss are two numbers. Count the rows
by :meth:`SamplerCore.sample_weight` and add :attr:`SamplerCore.logit_offset` to the logits in training (the
torch samplers have a ``loss`` that does both): then the model's logits are those of a stream with equally
frequent classes, :meth:`SamplerCore.probabilities` turns them into probabilities of the natural stream, and
``auto`` draws for it.

Classes have two orders. Arguments and results have the order of :attr:`SamplerCore.classes_`, sorted as in
scikit-learn. Inside (controller, policy, row sampler) the commonest class comes first, as the negative class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.deprecation import deprecated_attribute
from balancer.sampling.ages import ages
from balancer.sampling.inputs import whole_number
from balancer.sampling.labels import LabelCodes, check_classes
from balancer.sampling.policies import Policy
from balancer.sampling.quotas import QuotaPlan, batch_share
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.sampler_base import STATE_VERSION as STATE_VERSION
from balancer.sampling.sampler_base import SamplerBase
from balancer.sampling.seeding import generator
from balancer.sampling.weights import Floats, SamplingWeights

BLOCK = 1 << 16
"""Rows of an epoch that are drawn together; each block has its own random numbers."""
EVERY = slice(None)
_CERTAIN = -40.0
"""Logarithm of a probability that is as good as 0."""


class SamplerCore(SamplerBase):
    """Draws training rows by class and hardness; :meth:`update` changes the weights once an epoch.

    An epoch never consists of the commonest class alone: where chance would draw only that class, one draw
    goes to another class (see :meth:`draw`).

    Args:
        labels: (N,) class of each training row: whole numbers (also negative ones), booleans, text or bytes.
            ``None`` and NaN mean no label.
        policy: ``auto`` (the best policy of the package), ``constant:share=.2,hardness=1`` (a constant of
            one's own), ``ppo`` (learned), ``rule``, the folder of a learned policy, an object with
            ``name`` and ``act``, or weights for all epochs, with the shares in the order of :attr:`classes_`.
        epochs: Number of epochs of the training.
        num_samples: Rows drawn in an epoch, at least one for each class; None: as many as there are labelled
            rows.
        unlabelled: A label that marks rows that are never drawn, e.g. -1.
        seed: Random seed; an epoch's draw is a function of it, of the epoch's number and of the weights.
        times: (N,) time of each training row, numbers or ``datetime64``, for policies that draw recent rows
            more often; None: the half-life has no effect.
        compensated: Whether the loss counts drawn rows by their weights, see above; None: from the first
            :meth:`update` after a weight, an offset or a loss was asked for.
        patience: Updates without a better validation figure until :attr:`finished`; None: a quarter of the
            epochs, at least three.

    Raises:
        InputError: Fewer than two classes, no epoch, too few rows an epoch, times that don't fit, or a policy
            that can't be loaded or gives an answer that can't be used.

    >>> sampler = SamplerCore(["ok"] * 990 + ["fraud"] * 10, policy="constant:share=.2", epochs=3,
    ...     num_samples=100)
    >>> sampler.classes_, sampler.counts.tolist(), sampler.draw().shape
    (['fraud', 'ok'], [10, 990], (100,))
    >>> sampler.weights.share.round(3).tolist()
    [0.2, 0.8]
    >>> sampler
    SamplerCore(policy='constant', epoch=1 of 3, share={'fraud': 0.2, 'ok': 0.8}, hardness=1, floor=0.05,
    num_samples=100, rows=1000)
    """

    def __init__(
        self,
        labels: ArrayLike | Sequence[str],
        *,
        policy: str | Path | Policy | SamplingWeights = "auto",
        epochs: int,
        num_samples: int | None = None,
        unlabelled: Any = None,
        seed: int = 0,
        times: ArrayLike | None = None,
        compensated: bool | None = None,
        patience: int | None = None,
    ) -> None:
        coded = LabelCodes(labels, unlabelled)
        check_classes(coded)
        num_classes = len(coded.counts)

        def make_rows() -> RowSampler:
            age = None if times is None else ages(times, coded.codes >= 0)
            return RowSampler(coded.codes, num_classes, age=age)

        super().__init__(
            coded, make_rows, policy=policy, epochs=epochs, num_samples=num_samples, seed=seed, compensated=compensated, patience=patience
        )
        assert isinstance(self._rows, RowSampler)
        self._table: RowSampler = self._rows
        self._quotas: tuple[tuple[Any, ...], QuotaPlan] | None = None  # of the last blocks of batches

    def __repr__(self) -> str:
        """Policy, epoch, sizes and present weights."""
        return f"SamplerCore({self.describe()}, num_samples={self.num_samples}, rows={self.num_rows})"

    @property
    def block_rows(self) -> int:
        """Rows of a block of :meth:`draw_block`; the last block of an epoch may have fewer."""
        return BLOCK

    @staticmethod
    def block_batches(batch_size: int) -> int:
        """Batches of a block of :meth:`draw_batch_block`; the last block of an epoch may have fewer."""
        return batches_of_block(batch_size)

    def draw(self, epoch: int | None = None, n: int | None = None, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """Draw the rows of an epoch with replacement: a class by its share, then a row of that class.

        Where all draws would be of the commonest class although other classes have a share, one draw, at a
        random position, goes to one of those classes, by their shares. So every epoch has a row of the
        minority, and :meth:`row_weights` takes that into account. Draw an epoch in one call: many small draws
        would each get one.

        Args:
            epoch: Number of the epoch; None: the next one, and the count of epochs goes up by one.
            n: Number of rows, at least one for each class; None: ``num_samples``.
            rng: Source of randomness instead of seed and epoch; the count of epochs then stays.

        Returns:
            (n,) int64 rows.
        """
        size = self.num_samples if n is None else whole_number(n, "n", len(self._labels.counts), "the number of classes")
        number = self.epoch if epoch is None else whole_number(epoch, "epoch", 0)
        self._begun = self._trained = True
        if rng is not None:
            return self._table.draw(size, self._controller.weights, rng, keep_minority=True)
        rows = np.concatenate([self.draw_block(number, block, size) for block in range(-(-size // BLOCK))])
        if epoch is None:
            self.epoch += 1
        return rows

    def draw_block(self, epoch: int, block: int, epoch_draws: int, part: slice = EVERY) -> NDArray[np.int64]:
        """Draw a part of an epoch: positions ``block * BLOCK`` to the next block or the end.

        The result is a function of seed, epoch, block and weights, so any part of an epoch can be drawn
        without the others.

        Args:
            epoch: Number of the epoch.
            block: Number of the block.
            epoch_draws: Rows of the whole epoch.
            part: Which positions of the block are needed; the others cost less.

        Returns:
            (n,) int64 rows, n at most :data:`BLOCK`.
        """
        self._begun = self._trained = True
        rng = generator(self.seed, "draw", epoch, *([block] if block else []))
        size = min(BLOCK, epoch_draws - block * BLOCK)
        weights = self._controller.weights
        if epoch_draws <= BLOCK:
            return self._table.draw(size, weights, rng, keep_minority=True)[part]
        classes = self._table.draw_classes(size, weights, rng)
        if block or not self._only_common(epoch, epoch_draws):
            return self._table.fill(classes, weights, rng, epoch_draws=epoch_draws, part=part)
        rows = self._table.fill(classes, weights, rng, epoch_draws=epoch_draws)
        rows[rng.integers(size)] = self._table.minority_row(weights, rng, epoch_draws=epoch_draws)
        return rows[part]

    def draw_extra(self, epoch: int, number: int, epoch_draws: int) -> NDArray[np.int64]:
        """Draw a row beyond the last one of an epoch, where its length is no multiple of the number of ranks.

        Args:
            epoch: Number of the epoch.
            number: Number of the row, from 0.
            epoch_draws: Rows of the whole epoch.

        Returns:
            (1,) int64 row.
        """
        self._begun = self._trained = True
        rng, weights = generator(self.seed, "draw extra", epoch, number), self._controller.weights
        return self._table.fill(self._table.draw_classes(1, weights, rng), weights, rng, epoch_draws=epoch_draws)

    def _only_common(self, epoch: int, epoch_draws: int) -> bool:
        """Whether all draws of an epoch of several blocks are of the commonest class, though not meant to be.

        Where that is possible the classes of the blocks are drawn again, until one has another class.
        """
        weights = self._controller.weights
        common = float(self._table.class_share(weights)[0])
        if common >= 1 or epoch_draws * np.log(max(common, 1e-12)) < _CERTAIN:
            return False
        return not any(
            self._table.draw_classes(
                min(BLOCK, epoch_draws - block * BLOCK), weights, generator(self.seed, "draw", epoch, *([block] if block else []))
            ).any()
            for block in range(-(-epoch_draws // BLOCK))
        )

    def draw_batches(self, epoch: int, num_batches: int, batch_size: int) -> NDArray[np.int64]:
        """Draw the rows of an epoch in batches that each hold an exact quota of every class.

        See :func:`~balancer.sampling.quotas.quotas`. Within its class a row is drawn as by :meth:`draw`. The
        count of epochs stays.

        Returns:
            (num_batches, batch_size) int64 rows.
        """
        blocks = range(-(-num_batches // batches_of_block(batch_size)))
        return np.concatenate([self.draw_batch_block(epoch, block, num_batches, batch_size) for block in blocks])

    def draw_batch_block(
        self, epoch: int, block: int, num_batches: int, batch_size: int, part: tuple[slice, slice] = (EVERY, EVERY)
    ) -> NDArray[np.int64]:
        """Draw a part of the batches of an epoch, as :meth:`draw_block` draws a part of its rows.

        Args:
            epoch: Number of the epoch.
            block: Number of the block.
            num_batches: Batches of the whole epoch.
            batch_size: Rows of a batch.
            part: Which batches of the block are needed, and which places of each.

        Returns:
            (n, places) int64 rows, n at most :func:`batches_of_block`.
        """
        self._begun = self._trained = True
        each, weights = batches_of_block(batch_size), self._controller.weights
        asked = (self.seed, epoch, num_batches, batch_size, weights)
        if self._quotas is None or not _same(self._quotas[0], asked):
            self._quotas = asked, QuotaPlan(weights.share, num_batches, batch_size, generator(self.seed, "draw batches", epoch))
        counts = self._quotas[1].rows(block * each, (block + 1) * each)
        rng = generator(self.seed, "draw batches", epoch, block + 1)
        return self._filled(counts, rng, num_batches * batch_size, part)

    def draw_extra_batch(self, epoch: int, number: int, num_batches: int, batch_size: int) -> NDArray[np.int64]:
        """Draw a batch beyond the last one of an epoch, as :meth:`draw_extra` draws a row.

        Returns:
            (1, batch_size) int64 rows.
        """
        self._begun = self._trained = True
        rng = generator(self.seed, "draw extra", epoch, number)
        counts = QuotaPlan(self._controller.weights.share, 1, batch_size, rng).rows(0, 1)
        return self._filled(counts, rng, num_batches * batch_size, (EVERY, EVERY))

    def _filled(
        self, counts: NDArray[np.int64], rng: np.random.Generator, epoch_draws: int, part: tuple[slice, slice]
    ) -> NDArray[np.int64]:
        """The rows ``part`` of mixed batches that have ``counts`` (n, K) rows of each class."""
        batch_size, weights = int(counts[0].sum()), self._controller.weights
        expected = dataclasses.replace(weights, share=batch_share(weights.share, batch_size))
        classes = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel()).reshape(len(counts), batch_size)
        mixed = rng.permuted(classes, axis=1)
        if part == (EVERY, EVERY):
            return self._table.fill(mixed.ravel(), expected, rng, epoch_draws=epoch_draws).reshape(mixed.shape)
        places = np.arange(mixed.size).reshape(mixed.shape)[part]
        return self._table.fill(mixed.ravel(), expected, rng, epoch_draws=epoch_draws, part=places.ravel()).reshape(places.shape)

    def row_weights(self) -> Floats:
        """(N,) expected draws of each row in the next epoch, relative to the mean over the labelled rows.

        The mean is 1, and unlabelled rows have 0. This is the deterministic counterpart of :meth:`draw`, for
        estimators that take ``sample_weight``.
        """
        weights = self._table.probabilities(self._controller.weights, self.num_samples, keep_minority=True)
        weights *= self._labels.counts.sum()
        return weights


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two keys that end with weights are the same; weights are compared by identity."""
    return one[:-1] == other[:-1] and one[-1] is other[-1]


def batches_of_block(batch_size: int) -> int:
    """Number of batches that are drawn together."""
    return max(1, BLOCK // batch_size)


if not TYPE_CHECKING:  # the name of version 0.1

    def __getattr__(name: str) -> object:
        return deprecated_attribute(__name__, name)
