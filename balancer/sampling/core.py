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
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.deprecation import deprecated_attribute
from balancer.errors import InputError
from balancer.sampling.ages import ages
from balancer.sampling.controller import SamplingController
from balancer.sampling.inputs import numbers, plain
from balancer.sampling.labels import LabelCodes
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import ConstantPolicy, Policy, load_policy, policy_notes
from balancer.sampling.quotas import QuotaPlan, batch_share
from balancer.sampling.row_sampler import RowSampler, kept_share
from balancer.sampling.scores import macro_metrics
from balancer.sampling.seeding import generator
from balancer.sampling.stopping import Stopping
from balancer.sampling.tilt import HardnessTilt, are_natural
from balancer.sampling.weights import Floats, SamplingWeights

STATE_VERSION = 1
BLOCK = 1 << 16
"""Rows of an epoch that are drawn together; each block has its own random numbers."""
MAX_LOGIT = 1e4
"""Logits beyond it, infinite ones too, count as this, so that their difference is a number."""
_CERTAIN = -40.0
"""Logarithm of a probability that is as good as 0."""
MOST_SHOWN = 10
"""Classes that a ``repr`` shows at most."""
MANY_CLASSES = 100
"""Labels with more classes than this are checked for being amounts or numbers of things."""
_ROWS_OF_CODES, _ROWS_OF_IDS = 50, 1000
"""Fewest rows of the average class that pass that check: for classes 0 to K - 1, and for other numbers."""
_TOLERANCE = 1e-6
"""How far a rounded probability may lie outside [0, 1]."""


class Controller(Protocol):
    """Object that sets the weights, such as `SamplingController`; the commonest class comes first."""

    weights: SamplingWeights
    """Weights of the next epoch."""

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""

    @property
    def metrics(self) -> dict[str, float]:
        """Validation figures of the last update."""

    def update(self, train: ScoredRows, reward: ScoredRows) -> SamplingWeights:
        """Choose the weights of the next epoch from scores of training rows and of held-out rows."""

    def state_dict(self) -> dict[str, Any]:
        """State as values that JSON can hold."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""


AnyController = TypeVar("AnyController", bound=Controller)


class SamplerCore:
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
        self._labels = LabelCodes(labels, unlabelled)
        _check_classes(self._labels)
        num_classes = len(self._labels.counts)
        self.epochs = whole_number(epochs, "epochs", 1)
        given = int(self._labels.counts.sum()) if num_samples is None else num_samples
        self.num_samples = whole_number(given, "num_samples, the rows of an epoch,", num_classes, "the number of classes")
        self.seed = whole_number(seed, "seed", 0)
        self.policy: Policy = self._loaded(policy)
        age = None if times is None else ages(times, self._labels.codes >= 0)
        self._rows = RowSampler(self._labels.codes, num_classes, age=age)
        if compensated not in (None, True, False):
            raise InputError(f"compensated must be True, False or None (find out), not {compensated!r}")
        self._compensation = compensated
        self._stopping = Stopping(self.epochs, None if patience is None else whole_number(patience, "patience", 1))
        self._policy_name: str | None = None
        self._quotas: tuple[tuple[Any, ...], QuotaPlan] | None = None  # of the last blocks of batches
        self._drawn: tuple[SamplingWeights, SamplingWeights] | None = None  # weights, and those with the shares drawn
        self._epoch_draws, self._batch_size = self.num_samples, 0  # as rows are drawn in the loop; 0: no batches
        self._begun = False  # whether rows were drawn
        self._trained = False  # whether rows were drawn, to be trained on, since the last update
        self._counted = False  # whether the loss counts rows by their own weights
        self._tilt: HardnessTilt | None = None  # of the last epoch before the last update
        self._best_tilt: HardnessTilt | None = None  # of the best epoch
        self._contradicted = False  # whether the weights are used although compensated=False was given
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
        weights = self.weights
        names = [repr(name) for name in self.classes_]
        shares = [f"{name}: {share:.3g}" for name, share in zip(names, weights.share, strict=True)]
        if len(shares) > MOST_SHOWN:
            shares = [*shares[:MOST_SHOWN], f"... {len(shares)} classes"]
        return (
            f"policy={self.policy_name!r}, epoch={self.epoch} of {self.epochs}, share={{{', '.join(shares)}}}, "
            f"hardness={weights.hardness:.3g}, floor={weights.floor:.3g}"
            + "".join(
                f", {name}={getattr(weights, name):.3g}"
                for name in ("class_importance", "hardness_importance")
                if getattr(weights, name) > 0
            )
            + (f", half_life={weights.half_life:.3g}" if np.isfinite(weights.half_life) else "")
        )

    def use_draws(self, epoch_draws: int, batch_size: int = 0) -> None:
        """Say how the loop draws its rows, where it is not by :meth:`draw` with ``num_samples``.

        The weights of the loss depend on it: few rows, or batches with quotas, change the shares.

        Args:
            epoch_draws: Rows of an epoch.
            batch_size: Rows of a batch with quotas; 0: rows are drawn one by one.
        """
        self._epoch_draws, self._batch_size, self._drawn = epoch_draws, batch_size, None

    @property
    def classes_(self) -> list[Any]:
        """The K classes in sorted order, plain Python values.

        Columns of scores, :attr:`weights` and :attr:`counts` have this order.
        """
        return self._labels.classes

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
    def counts(self) -> NDArray[np.int64]:
        """(K,) training rows of each class, in the order of :attr:`classes_`."""
        return self._labels.counts[self._labels.rank]

    @property
    def num_rows(self) -> int:
        """N, number of training rows with and without a label."""
        return len(self._labels.codes)

    @property
    def weights(self) -> SamplingWeights:
        """Weights of the next draw, shares in the order of :attr:`classes_`."""
        return self._controller.weights.reordered(self._labels.rank)

    @property
    def prior(self) -> Floats:
        """(K,) class prior of the training rows, in the order of :attr:`classes_`."""
        return self._rows.prior[self._labels.rank]

    @property
    def unlabelled(self) -> Any:
        """The label that marks rows that are never drawn."""
        return self._labels.unlabelled

    @property
    def compensated(self) -> bool:
        """Whether the loss counts drawn rows by their weights: as given, or as seen so far."""
        return bool(self._compensation)

    @property
    def class_weight(self) -> Floats:
        """(K,) loss weight of each class in the present epoch, with mean 1 over the drawn rows."""
        self.use_compensation()
        return self._drawn_weights().class_weight(self._rows.prior)[self._labels.rank]

    @property
    def logit_offset(self) -> Floats:
        """(K,) what to add to the logits in training, never in scoring, in the present epoch."""
        self.use_compensation()
        return self._drawn_weights().logit_offset(self._rows.prior)[self._labels.rank]

    def _drawn_weights(self) -> SamplingWeights:
        """The present weights with the shares that rows are drawn with, commonest class first.

        A batch with quotas holds at least one row of every class, and an epoch one row of the minority.
        """
        weights = self._controller.weights
        if self._drawn is None or self._drawn[0] is not weights:
            share = self._rows.class_share(weights)
            share = batch_share(share, self._batch_size) if self._batch_size else kept_share(share, self._epoch_draws)
            self._drawn = weights, dataclasses.replace(weights, share=share)
        return self._drawn[1]

    def _drawing(self) -> tuple[SamplingWeights, bool]:
        """Weights that rows are drawn with, and whether an epoch keeps a row of the minority."""
        return (self._drawn_weights(), False) if self._batch_size else (self._controller.weights, True)

    def use_compensation(self) -> None:
        """Note that the loss counts drawn rows by their weights, unless ``compensated=False`` was given.

        Policies take it into account from the next :meth:`update` on, and at once where no row was drawn yet.
        """
        if self._compensation is None:
            self._compensation = True
            if not self._begun and isinstance(self._controller, SamplingController):
                self._controller = self._new_controller()
        self._contradicted = self._contradicted or not self._compensation

    def class_indices(self, labels: ArrayLike | Sequence[str], name: str = "labels") -> NDArray[np.int64]:
        """(n,) index into :attr:`classes_` of each of ``labels`` (n,), -1 without a label.

        Raises:
            InputError: A label that the training rows lack; the message calls the argument ``name``.
        """
        codes = self._labels.encode(labels, name)
        return np.where(codes < 0, -1, self._labels.order[codes])

    def sample_weight(self, rows: ArrayLike) -> Floats:
        """(n,) loss weight of drawn ``rows`` (n,) in the present epoch, with mean 1 over the drawn rows.

        It is the weight of the row's class times that of the row within its class. Rows without a label get
        0.

        Raises:
            InputError: A row out of range.
        """
        chosen = self._chosen(rows)
        self.use_compensation()
        self._counted = True
        weights, kept = self._drawing()
        return self._rows.loss_weights(chosen, weights, self._epoch_draws, keep_minority=kept)

    def probabilities(self, logits: ArrayLike, prior: str | ArrayLike = "natural") -> Floats:
        """Class probabilities from the raw logits of a model that was trained with the compensation.

        Args:
            logits: (n, K) in the order of :attr:`classes_`; with two classes also (n,) or (n, 1), the
                log-odds of ``classes_[1]``.
            prior: Stream to which the probabilities belong: ``natural`` (the class prior of the training
                rows), ``balanced`` (all classes equally frequent), or a prior (K,).

        What hardness has done to the logits in the last epoch is taken out of them, see
        :mod:`balancer.sampling.tilt`.

        Returns:
            (n, K) in the order of :attr:`classes_`.

        Raises:
            InputError: Logits of another shape, or a prior that is none.
        """
        wide = np.clip(two_columns(numbers(logits, "logits"), len(self.classes_)), -MAX_LOGIT, MAX_LOGIT)
        wide = wide + self.correction(wide) + np.log(self.stream_prior(prior))
        wide -= wide.max(axis=1, keepdims=True)
        odds = np.exp(wide)
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def correction(self, logits: Floats) -> Floats:
        """(n, K) what to add to raw logits (n, K) so that hardness has no effect on the probabilities.

        It is 0 where no class is drawn by hardness. Classes have the order of :attr:`classes_`.
        """
        tilt = self._present_tilt()
        if tilt is None or not np.isfinite(logits).all():
            return np.zeros_like(logits)
        order, rank = self._labels.order, self._labels.rank
        return tilt.correction(logits[:, order])[:, rank]

    def _present_tilt(self) -> HardnessTilt | None:
        """The tilt of the rows that the model was last trained on."""
        if not self._trained:
            return self._tilt
        weights, _ = self._drawing()
        return self._rows.tilt(weights, self._epoch_draws, counted=self._counted)

    def stream_prior(self, prior: str | ArrayLike) -> Floats:
        """(K,) the prior that :meth:`probabilities` takes, in the order of :attr:`classes_`."""
        if isinstance(prior, str):
            if prior not in ("natural", "balanced"):
                raise InputError(f"prior must be natural, balanced or {len(self.classes_)} numbers, not {prior!r}")
            given = self.prior if prior == "natural" else np.ones(len(self.classes_))
        else:
            given = numbers(prior, "prior")
        if given.shape != (len(self.classes_),) or not np.isfinite(given).all() or given.min() < 0 or not given.sum() > 0:
            raise InputError(f"prior must be {len(self.classes_)} numbers of 0 or more, one for each class, not {prior!r}")
        return np.asarray(np.maximum(given / given.sum(), 1e-12), dtype=np.float64)

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
        notes = policy_notes(self.policy)
        weights = self._controller.weights
        if self._compensation is None and self.updates and weights.compensated:
            notes.append("the weights count drawn rows differently, but no loss or weights of the sampler were used: use sampler.loss")
        if self._compensation is False and weights.compensated:
            notes.append("the weights count drawn rows differently, but the loss does not: give compensated=None or another policy")
        if self._contradicted:
            notes.append("compensated=False was given, but the loss or the weights of the sampler are used: leave it out")
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

    def effective_weights(self) -> Floats:
        """(N,) mass of each row in the next epoch, relative to the mean over the labelled rows.

        The mass is the expected draws of a row (:meth:`row_weights`) times its loss weight
        (:meth:`sample_weight`); its mean is 1, and unlabelled rows have 0. An estimator that is fitted on all
        rows with these weights is trained with what a network is trained with that draws its rows. The class
        shares of its stream are ``exp(logit_offset)``; :meth:`init_score` takes them out of its raw scores.

        >>> policy = "constant:share=.2,hardness=0,class_importance=.5"
        >>> sampler = SamplerCore([0] * 98 + [1] * 2, epochs=1, policy=policy)
        >>> sampler.effective_weights()[[0, -1]].round(2).tolist()
        [0.95, 3.33]
        """
        self.use_compensation()
        self._trained = self._counted = True
        weights, kept = self._drawing()
        mass = self._rows.probabilities(weights, self._epoch_draws, keep_minority=kept)
        mass *= self._rows.loss_weights(np.arange(self.num_rows), weights, self._epoch_draws, keep_minority=kept)
        mass *= self._labels.counts.sum()
        return mass

    def init_score(self, num_rows: int | None = None) -> Floats:
        """Raw scores that boosted trees start from: ``init_score`` of LightGBM, ``base_margin`` of XGBoost.

        Trees that are trained with :meth:`effective_weights` from these scores have, without them, the raw
        scores of a stream with equally frequent classes; :meth:`probabilities` takes them. (XGBoost adds its
        ``base_score`` in scoring: set it to .5, which is a raw score of 0.)

        Args:
            num_rows: Number of rows; None: all training rows.

        Returns:
            Two classes: (n,), the log-odds of ``classes_[1]``, the same for each row. More: (n, K).

        >>> policy = "constant:share=.2,hardness=0,class_importance=.5"
        >>> SamplerCore([0] * 98 + [1] * 2, epochs=1, policy=policy).init_score(1).round(2).tolist()
        [-2.64]
        """
        offset, rows = self.logit_offset, self.num_rows if num_rows is None else whole_number(num_rows, "num_rows", 0)
        return np.full(rows, offset[1] - offset[0]) if len(offset) == 2 else np.tile(offset, (rows, 1))

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
        held_out = self._held_out(y_true, y_score, y_weight)
        train, chosen = held_out, None
        if rows is not None:
            chosen = self._chosen(rows)
            codes = self._labels.codes[chosen].astype(np.int64)
            train = self._scored(codes, row_score, "rows", "row_score")
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

    def _raw_scores(self, train: ScoredRows, tilt: HardnessTilt | None) -> NDArray[np.floating[Any]]:
        """Scores of training rows that hardness goes by: with compensation, the softmax of the raw logits."""
        prior = self._rows.prior
        if not self.compensated or not are_natural(train.label, train.score, prior):
            return train.score
        if tilt is not None:
            return tilt.raw_scores(np.asarray(train.score, dtype=np.float64), prior)
        odds = train.score / np.maximum(prior, 1e-12)
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def measure(self, y_true: ArrayLike | Sequence[str], y_score: ArrayLike, y_weight: ArrayLike | None = None) -> dict[str, float]:
        """Figures of held-out rows as in :attr:`metrics`, but without an update.

        Args:
            y_true: As for :meth:`update`.
            y_score: As for :meth:`update`.
            y_weight: As for :meth:`update`.
        """
        held_out = self._held_out(y_true, y_score, y_weight)
        figures = macro_metrics(held_out.label, held_out.score[None], np.asarray(held_out.weight))
        return {"f1": float(figures.f1[0]), "average_precision": float(figures.average_precision[0])}

    def _held_out(self, y_true: ArrayLike | Sequence[str], y_score: ArrayLike, y_weight: ArrayLike | None = None) -> ScoredRows:
        """Checked labels, scores and weights of held-out rows."""
        codes = self._labels.encode(y_true, "y_true")
        held_out = self._scored(codes, y_score, "y_true", "y_score")
        if y_weight is not None:
            weight = numbers(y_weight, "y_weight")
            if weight.shape != codes.shape or not np.isfinite(weight).all() or not weight.min() >= 0 or not weight.max() > 0:
                raise InputError(f"y_weight must be {len(codes)} finite numbers of 0 or more, one for each of y_true, not all 0")
            held_out = dataclasses.replace(held_out, weight=weight[codes >= 0])
        counts = np.bincount(held_out.label, minlength=len(self._labels.counts))
        if not counts[0] or not counts[1:].any():
            common = self._labels.classes[self._labels.order[0]]
            lacks = f"no row of class {common!r}" if not counts[0] else f"rows of class {common!r} only"
            raise InputError(
                f"y_true holds {lacks}, so nothing can be measured; hold out rows of at least two classes, {common!r} among them"
            )
        return held_out

    def _loaded(self, policy: str | Path | Policy | SamplingWeights) -> Policy:
        num_classes = len(self._labels.counts)
        if isinstance(policy, (str, Path)):
            return load_policy(policy, num_classes=num_classes)
        if not isinstance(policy, SamplingWeights):
            if not callable(getattr(policy, "act", None)):
                raise InputError(
                    f"policy must be a name, the folder of a policy, weights, or an object with name and act(observation), not {policy!r}"
                )
            return policy
        if len(policy.share) != num_classes:
            raise InputError(f"policy holds shares for {len(policy.share)} classes, the labels have {num_classes}")
        return ConstantPolicy.of(policy.reordered(self._labels.order), name="fixed")

    def _chosen(self, rows: ArrayLike) -> NDArray[np.int64]:
        chosen = np.asarray(plain(rows))
        if chosen.ndim == 2 and chosen.shape[1] == 1:
            chosen = chosen[:, 0]
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < self.num_rows):
            raise InputError(f"rows must be one vector of indices of training rows, from 0 to {self.num_rows - 1}")
        return chosen.astype(np.int64)

    def _scored(self, codes: NDArray[np.int64], score: Any, rows_name: str, score_name: str) -> ScoredRows:
        """Labelled rows with their scores as (n, K), commonest class first."""
        num_classes = len(self._labels.counts)
        scores = numbers(score, score_name)
        if num_classes == 2 and scores.shape[1:] == (1,):
            scores = scores[:, 0]
        if scores.ndim not in (1, 2) or (scores.shape[1:] or (2,)) != (num_classes,):
            raise InputError(
                f"{score_name} must have one column for each of the {num_classes} classes"
                f"{' or be one vector' if num_classes == 2 else ''}, not shape {scores.shape}"
            )
        if len(scores) != len(codes):
            raise InputError(f"{score_name} has {len(scores)} rows and {rows_name} {len(codes)}; give one label and one score a row")
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(axis=1))[0])
            raise InputError(f"{score_name} of row {row} is not finite; check the model's output for NaN first")
        if len(scores) and (scores.min() < -_TOLERANCE or scores.max() > 1 + _TOLERANCE):
            raise InputError(
                f"{score_name} must be probabilities from 0 to 1, found {scores.min():.4g} to {scores.max():.4g}; apply the sigmoid or softmax"
            )
        scores = np.clip(scores, 0.0, 1.0)
        ranked = np.stack([1.0 - scores, scores], axis=1) if scores.ndim == 1 else scores[:, self._labels.order]
        return ScoredRows(codes[codes >= 0], ranked[codes >= 0])

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
            "compensated": self._compensation,
            "trained": [self._trained, self._counted],
            "tilt": None if self._tilt is None else self._tilt.to_dict(),
            "best_tilt": None if self._best_tilt is None else self._best_tilt.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`, including the seed.

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
        compensation = state.get("compensated", self._compensation)
        try:
            seed, epoch = whole_number(state["seed"], "seed", 0), whole_number(state["epoch"], "epoch", 0)
            if compensation not in (None, True, False):
                raise ValueError(f"compensated is {compensation!r}")
            stopping.load_state_dict(state.get("stopping", {"figures": []}))
            trained, counted = map(bool, state.get("trained", (False, False)))
            tilt, best_tilt = (
                None if state.get(name) is None else HardnessTilt.from_dict(state[name], len(self._labels.counts))
                for name in ("tilt", "best_tilt")
            )
            self._controller.load_state_dict(state["controller"])
            self._rows.load_state_dict(state["rows"])
        except (KeyError, TypeError, ValueError) as error:
            self._controller.load_state_dict(before)  # the rows come last and change as a whole
            raise error if isinstance(error, InputError) else InputError(f"saved state is corrupt ({error!r}); load another one") from error
        self.seed, self.epoch = seed, epoch
        self._stopping, self._compensation, self._begun = stopping, compensation, True
        self._trained, self._counted, self._tilt, self._best_tilt = trained, counted, tilt, best_tilt


def _check_classes(labels: LabelCodes) -> None:
    """Refuse values that nearly all differ, and warn of whole numbers that look like amounts or identifiers.

    Raises:
        InputError: There are more than :data:`MANY_CLASSES`, most of them with one row.
    """
    classes, rows = labels.classes, int(labels.counts.sum())
    if len(classes) <= MANY_CLASSES:
        return
    held = f"labels hold {len(classes)} different values in {rows} rows"
    if rows < 2 * len(classes):
        raise InputError(f"{held}, so they are no classes; give the class of each row, or divide a quantity into a few ranges")
    if isinstance(classes[0], (str, bytes)):
        return
    if rows < len(classes) * (_ROWS_OF_CODES if classes == list(range(len(classes))) else _ROWS_OF_IDS):
        text = f"{held}, and each is taken as a class of its own; divide a quantity into a few ranges, give names of classes as text"
        warnings.warn(text, stacklevel=4)


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two keys that end with weights are the same; weights are compared by identity."""
    return one[:-1] == other[:-1] and one[-1] is other[-1]


def batches_of_block(batch_size: int) -> int:
    """Number of batches that are drawn together."""
    return max(1, BLOCK // batch_size)


def two_columns(logits: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """Logits (n, K); of two classes also from (n,) or (n, 1), the log-odds of the second class."""
    if num_classes == 2 and (logits.ndim == 1 or logits.shape[1:] == (1,)):
        column = logits.reshape(-1)
        return np.stack([np.zeros_like(column), column], axis=1)
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise InputError(f"logits must have the shape (n, {num_classes}), not {logits.shape}; move the classes to the last axis")
    return logits


def whole_number(value: Any, name: str, least: int, why: str = "") -> int:
    """``value`` as an int.

    Raises:
        InputError: It is no whole number, or less than ``least``; the message names ``name`` and ends with
            ``why``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} must be a whole number and at least {least}{f' ({why})' if why else ''}, not {value!r}")
    return int(value)


if not TYPE_CHECKING:  # the name of version 0.1

    def __getattr__(name: str) -> object:
        return deprecated_attribute(__name__, name)
