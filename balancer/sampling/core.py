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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.deprecation import deprecated_attribute
from balancer.errors import InputError
from balancer.sampling.ages import ages
from balancer.sampling.compensation import Compensation
from balancer.sampling.controller import Controller, SamplingController
from balancer.sampling.inputs import whole_number
from balancer.sampling.labels import LabelCodes, check_classes
from balancer.sampling.policies import ConstantPolicy, Policy, chosen_policy, policy_notes
from balancer.sampling.quotas import QuotaPlan, batch_share, quota_notes
from balancer.sampling.reported import held_out_rows, scored_rows
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.scores import macro_metrics
from balancer.sampling.seeding import generator
from balancer.sampling.stopping import Stopping
from balancer.sampling.weights import Floats, SamplingWeights

STATE_VERSION = 1
BLOCK = 1 << 16
"""Rows of an epoch that are drawn together; each block has its own random numbers."""
_CERTAIN = -40.0
"""Logarithm of a probability that is as good as 0."""

AnyController = TypeVar("AnyController", bound=Controller)


class SamplerCore(Compensation):
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
        self.epochs = whole_number(epochs, "epochs", 1)
        given = int(coded.counts.sum()) if num_samples is None else num_samples
        self.num_samples = whole_number(given, "num_samples, the rows of an epoch,", num_classes, "the number of classes")
        self.seed = whole_number(seed, "seed", 0)
        self.policy: Policy = chosen_policy(policy, coded.order)
        age = None if times is None else ages(times, coded.codes >= 0)
        super().__init__(coded, RowSampler(coded.codes, num_classes, age=age), self.num_samples, compensated)
        self._stopping = Stopping(self.epochs, None if patience is None else whole_number(patience, "patience", 1))
        self._policy_name: str | None = None
        self._quotas: tuple[tuple[Any, ...], QuotaPlan] | None = None  # of the last blocks of batches
        self._state_notes: list[str] = []  # on the state that was loaded last
        self._controller: Controller = self._new_controller()
        self.epoch = 0
        """Number of the epoch that :meth:`draw` draws next."""

    def _new_controller(self) -> SamplingController:
        return SamplingController(
            self._rows.prior,
            self.policy,
            epochs=self.epochs,
            batch_budget=self.epochs * self.num_samples,
            train_counts=self._rows.counts,
            reward_counts=self._rows.counts,
            compensated=self.compensated,
        )

    def __repr__(self) -> str:
        """Policy, epoch, sizes and present weights."""
        return f"SamplerCore({self.describe()}, num_samples={self.num_samples}, rows={self.num_rows})"

    def describe(self) -> str:
        """The state as text for a ``repr``: policy, epoch, share of each class, hardness and floor."""
        return f"policy={self.policy_name!r}, epoch={self.epoch} of {self.epochs}, {self.weights.described(self.classes_)}"

    def use_controller(self, make: Callable[[NDArray[np.int64]], AnyController], name: str) -> AnyController:
        """Let another controller set the weights from now on.

        Args:
            make: Makes the controller from the (K,) training rows of each class, commonest class first.
            name: Name of its policy.

        Returns:
            The controller.
        """
        controller = make(self._labels.counts)
        self._controller, self._policy_name = controller, name
        return controller

    @property
    def weights(self) -> SamplingWeights:
        """Weights of the next draw, shares in the order of :attr:`classes_`."""
        return self._controller.weights.reordered(self._labels.rank)

    @property
    def unlabelled(self) -> Any:
        """The label that marks rows that are never drawn."""
        return self._labels.unlabelled

    def class_indices(self, labels: ArrayLike | Sequence[str], name: str = "labels") -> NDArray[np.int64]:
        """(n,) index into :attr:`classes_` of each of ``labels`` (n,), -1 without a label.

        Raises:
            InputError: A label that the training rows lack; the message calls the argument ``name``.
        """
        codes = self._labels.encode(labels, name)
        return np.where(codes < 0, -1, self._labels.order[codes])

    @property
    def best_epoch(self) -> int | None:
        """Number of the update, from 0, after which the average precision was best; None before any."""
        return self._stopping.best_epoch

    @property
    def improved(self) -> bool:
        """Whether the last update was the best so far: save the model then."""
        return self._stopping.improved

    def use_best_epoch(self) -> None:
        """Say that the model has its weights of :attr:`best_epoch` again.

        :meth:`probabilities` then belong to them, until rows are drawn again. Without it they belong to the
        model that was trained last: hardness has another effect on it.
        """
        if self.best_epoch is not None:
            self._tilt, self._trained = self._best_tilt, False

    @property
    def finished(self) -> bool:
        """Whether training may stop: all epochs are done, or none of the last ``patience`` was better."""
        return self._stopping.finished

    if not TYPE_CHECKING:  # a type checker says itself that there is none

        def __getattr__(self, name: str) -> object:
            if name in ("loss", "validation_loss"):
                raise AttributeError(
                    f"{type(self).__name__} needs no torch and has no {name}: use that of AdaptiveSampler, or count rows by "
                    "sample_weight and add logit_offset to the logits"
                )
            return object.__getattribute__(self, name)  # raises the usual error

    @property
    def updates(self) -> int:
        """Number of epochs whose scores were given to :meth:`update`."""
        return self._controller.epoch

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the last update: ``f1`` at its best threshold and ``average_precision``; 0 before it."""
        return self._controller.metrics

    @property
    def policy_name(self) -> str:
        """Name of the policy."""
        return self._policy_name or str(getattr(self.policy, "name", type(self.policy).__name__))

    @property
    def notes(self) -> list[str]:
        """Notes on what may surprise, e.g. that the policy used a constant instead; mostly none."""
        weights = self._controller.weights
        notes = policy_notes(self.policy) + self._compensation_notes() + self._state_notes
        if self._batch_size:
            notes += quota_notes(weights.share, self._batch_size)
        chosen = isinstance(self.policy, ConstantPolicy)  # a learned policy without times does what it can
        if chosen and np.isfinite(weights.half_life) and not self._rows.has_age:
            notes.append("the weights have a half-life, but the times of the rows are not known: give the sampler times")
        return notes

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
            return self._rows.draw(size, self._controller.weights, rng, keep_minority=True)
        rows = np.concatenate([self.draw_block(number, block, size) for block in range(-(-size // BLOCK))])
        if epoch is None:
            self.epoch += 1
        return rows

    def draw_block(self, epoch: int, block: int, epoch_draws: int) -> NDArray[np.int64]:
        """Draw a part of an epoch: positions ``block * BLOCK`` to the next block or the end.

        The result is a function of seed, epoch, block and weights, so any part of an epoch can be drawn
        without the others.

        Args:
            epoch: Number of the epoch.
            block: Number of the block.
            epoch_draws: Rows of the whole epoch.

        Returns:
            (n,) int64 rows, n at most :data:`BLOCK`.
        """
        self._begun = self._trained = True
        rng = generator(self.seed, "draw", epoch, *([block] if block else []))
        size = min(BLOCK, epoch_draws - block * BLOCK)
        weights = self._controller.weights
        if epoch_draws <= BLOCK:
            return self._rows.draw(size, weights, rng, keep_minority=True)
        rows = self._rows.fill(self._rows.draw_classes(size, weights, rng), weights, rng, epoch_draws=epoch_draws)
        if block == 0 and self._only_common(epoch, epoch_draws):
            rows[rng.integers(size)] = self._rows.minority_row(weights, rng, epoch_draws=epoch_draws)
        return rows

    def _only_common(self, epoch: int, epoch_draws: int) -> bool:
        """Whether all draws of an epoch of several blocks are of the commonest class, though not meant to be.

        Where that is possible the classes of the blocks are drawn again, until one has another class.
        """
        weights = self._controller.weights
        common = float(self._rows.class_share(weights)[0])
        if common >= 1 or epoch_draws * np.log(max(common, 1e-12)) < _CERTAIN:
            return False
        return not any(
            self._rows.draw_classes(
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

    def draw_batch_block(self, epoch: int, block: int, num_batches: int, batch_size: int) -> NDArray[np.int64]:
        """Draw a part of the batches of an epoch, as :meth:`draw_block` draws a part of its rows.

        Returns:
            (n, batch_size) int64 rows, n at most :func:`batches_of_block`.
        """
        self._begun = self._trained = True
        each, weights = batches_of_block(batch_size), self._controller.weights
        asked = (self.seed, epoch, num_batches, batch_size, weights)
        if self._quotas is None or not _same(self._quotas[0], asked):
            self._quotas = asked, QuotaPlan(weights.share, num_batches, batch_size, generator(self.seed, "draw batches", epoch))
        counts = self._quotas[1].rows(block * each, (block + 1) * each)
        expected = dataclasses.replace(weights, share=batch_share(weights.share, batch_size))
        rng = generator(self.seed, "draw batches", epoch, block + 1)
        classes = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel()).reshape(len(counts), batch_size)
        mixed = rng.permuted(classes, axis=1)
        return self._rows.fill(mixed.ravel(), expected, rng, epoch_draws=num_batches * batch_size).reshape(mixed.shape)

    def batch_share(self, batch_size: int) -> Floats:
        """(K,) share of each class in batches of ``batch_size`` rows, in the order of :attr:`classes_`.

        See :func:`~balancer.sampling.quotas.batch_share`.
        """
        return batch_share(self._controller.weights.share, batch_size)[self._labels.rank]

    def row_weights(self) -> Floats:
        """(N,) expected draws of each row in the next epoch, relative to the mean over the labelled rows.

        The mean is 1, and unlabelled rows have 0. This is the deterministic counterpart of :meth:`draw`, for
        estimators that take ``sample_weight``.
        """
        weights = self._rows.probabilities(self._controller.weights, self.num_samples, keep_minority=True)
        weights *= self._labels.counts.sum()
        return weights

    def update(
        self,
        y_true: ArrayLike | Sequence[str],
        y_score: ArrayLike,
        *,
        rows: ArrayLike | None = None,
        row_score: ArrayLike | None = None,
        y_weight: ArrayLike | None = None,
    ) -> SamplingWeights:
        """Report the model's scores; call it once, after each epoch.

        Args:
            y_true: (n,) classes of held-out rows, named as in ``labels``: the commonest class and at least
                one other. Rows without a label are ignored.
            y_score: (n, K) probabilities in the order of :attr:`classes_`; with two classes also (n,) or
                (n, 1) probabilities of the rarer class. Tensors may be on any device and carry gradients.
            rows: (m,) indices of some of the training rows; rows without a label are ignored.
            row_score: Scores of these rows, in the same form as ``y_score``. Hardness has an effect only with
                them.
            y_weight: (n,) how much each held-out row counts in the figures; None: 1 each.

        Returns:
            The weights of the next epoch, shares in the order of :attr:`classes_`.

        Raises:
            InputError: NaN, values that are no probabilities, different lengths, a class that ``labels``
                lacks, held-out rows of one class only, a row out of range, or a policy's answer that can't be
                used. Nothing has changed then.
        """
        if (rows is None) != (row_score is None):
            raise InputError("give rows and row_score together, or neither")
        held_out = held_out_rows(self._labels, y_true, y_score, y_weight)
        train, chosen = held_out, None
        if rows is not None:
            chosen = self._chosen(rows)
            codes = self._labels.codes[chosen].astype(np.int64)
            train = scored_rows(self._labels, codes, row_score, "rows", "row_score")
            chosen = chosen[codes >= 0]
        controller, tilt = self._controller, self._present_tilt()
        before = getattr(controller, "compensated", None)
        if before is not None:
            controller.compensated = self.compensated  # type: ignore[attr-defined]
        try:
            controller.update(train, held_out)
        except Exception:  # whatever a policy or the scores raise, an update that fails changes nothing
            if before is not None:
                controller.compensated = before  # type: ignore[attr-defined]
            raise
        self._stopping.update(controller.metrics["average_precision"])
        if chosen is not None:
            self._rows.refresh(chosen, self._raw_scores(train, tilt))
        self._tilt, self._trained = tilt, False
        if self.improved:
            self._best_tilt = tilt
        return self.weights

    def measure(self, y_true: ArrayLike | Sequence[str], y_score: ArrayLike, y_weight: ArrayLike | None = None) -> dict[str, float]:
        """Figures of held-out rows as in :attr:`metrics`, but without an update.

        Args:
            y_true: As for :meth:`update`.
            y_score: As for :meth:`update`.
            y_weight: As for :meth:`update`.
        """
        held_out = held_out_rows(self._labels, y_true, y_score, y_weight)
        figures = macro_metrics(held_out.label, held_out.score[None], np.asarray(held_out.weight))
        return {"f1": float(figures.f1[0]), "average_precision": float(figures.average_precision[0])}

    def state_dict(self) -> dict[str, Any]:
        """State from which :meth:`load_state_dict` continues exactly.

        JSON can hold it, except for the NumPy arrays in ``rows``.
        """
        return {
            "version": STATE_VERSION,
            "labels": self._labels.fingerprint,
            "order": self._labels.order.tolist(),
            "policy": self.policy_name,
            "epochs": self.epochs,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "epoch": self.epoch,
            "controller": self._controller.state_dict(),
            "rows": self._rows.state_dict(),
            "stopping": self._stopping.state_dict(),
        } | self._compensation_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`, including the seed.

        A state may have been saved with another patience; the one that the sampler was made with holds. Where
        seed or patience differ, :attr:`notes` say so.

        Raises:
            InputError: It was saved for other labels, another policy, number of epochs or ``num_samples``, or
                is no such state. Nothing has changed then.
        """
        if not isinstance(state, Mapping) or state.get("version") != STATE_VERSION:
            raise InputError("saved state is not that of a sampler of this version; start the training again")
        present = {"labels": self._labels.fingerprint, "policy": self.policy_name, "epochs": self.epochs, "num_samples": self.num_samples}
        for name, value in present.items():
            if state.get(name) == value:
                continue
            if name == "labels":
                raise InputError("saved state is for other training rows; load it with the labels it was saved with, in the same order")
            raise InputError(f"saved state is for {name} {state.get(name)!r}, this sampler has {value!r}; make the sampler as it was saved")
        if list(state.get("order", self._labels.order)) != self._labels.order.tolist():  # version 0.1 has no order
            raise InputError(
                "saved state is for other labels: another class is the most frequent one; load it with the labels it was saved with"
            )
        before, stopping = self._controller.state_dict(), Stopping(self.epochs, self._stopping.patience)
        try:
            seed, epoch = whole_number(state["seed"], "seed", 0), whole_number(state["epoch"], "epoch", 0)
            compensation = self._read_compensation(state)
            stopping.load_state_dict(state.get("stopping", {"figures": []}))
            self._controller.load_state_dict(state["controller"])
            self._rows.load_state_dict(state["rows"])
        except (KeyError, TypeError, ValueError) as error:
            self._controller.load_state_dict(before)  # the rows come last and change as a whole
            raise error if isinstance(error, InputError) else InputError(f"saved state is corrupt ({error!r}); load another one") from error
        self._state_notes = stopping.notes(state.get("stopping", {}))
        if seed != self.seed:
            self._state_notes.append(f"the loaded state has seed {seed}, the sampler was made with {self.seed}: {seed} is used")
        self.seed, self.epoch, self._stopping = seed, epoch, stopping
        self._take_compensation(compensation)


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two keys that end with weights are the same; weights are compared by identity."""
    return one[:-1] == other[:-1] and one[-1] is other[-1]


def batches_of_block(batch_size: int) -> int:
    """Number of batches that are drawn together."""
    return max(1, BLOCK // batch_size)


if not TYPE_CHECKING:  # the name of version 0.1

    def __getattr__(name: str) -> object:
        return deprecated_attribute(__name__, name)
