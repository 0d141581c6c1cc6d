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
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.deprecation import deprecated_attribute
from balancer.errors import InputError
from balancer.sampling.controller import SamplingController
from balancer.sampling.labels import LabelCodes
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import ConstantPolicy, Policy, load_policy, policy_notes
from balancer.sampling.quotas import batch_share, quotas
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.seeding import generator
from balancer.sampling.stopping import Stopping
from balancer.sampling.weights import Floats, SamplingWeights

STATE_VERSION = 1
BLOCK = 1 << 16
"""Rows of an epoch that are drawn together; each block has its own random numbers."""
_CERTAIN = -40.0
"""Logarithm of a probability that is as good as 0."""
MOST_SHOWN = 10
"""Classes that a ``repr`` shows at most."""
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
        num_classes = len(self._labels.counts)
        self.epochs = whole_number(epochs, "epochs", 1)
        given = int(self._labels.counts.sum()) if num_samples is None else num_samples
        self.num_samples = whole_number(given, "num_samples, the rows of an epoch,", num_classes, "the number of classes")
        self.seed = whole_number(seed, "seed", 0)
        self.policy: Policy = self._loaded(policy)
        age = None if times is None else ages(times, self._labels.codes)
        self._rows = RowSampler(self._labels.codes, num_classes, age=age)
        self._compensation = compensated
        self._stopping = Stopping(self.epochs, None if patience is None else whole_number(patience, "patience", 1))
        self._policy_name: str | None = None
        self._quotas: tuple[tuple[Any, ...], NDArray[np.int64]] | None = None  # of the last blocks of batches
        self._controller: Controller = SamplingController(
            self._rows.prior,
            self.policy,
            epochs=self.epochs,
            batch_budget=self.epochs * self.num_samples,
            train_counts=self._rows.counts,
            reward_counts=self._rows.counts,
            compensated=bool(compensated),
        )
        self.epoch = 0
        """Number of the epoch that :meth:`draw` draws next."""

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
        )

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
        return self._controller.weights.class_weight(self._rows.prior)[self._labels.rank]

    @property
    def logit_offset(self) -> Floats:
        """(K,) what to add to the logits in training, never in scoring, in the present epoch."""
        self.use_compensation()
        return self._controller.weights.logit_offset(self._rows.prior)[self._labels.rank]

    def use_compensation(self) -> None:
        """Note that the loss counts drawn rows by their weights, unless ``compensated=False`` was given.

        Policies take it into account from the next :meth:`update` on.
        """
        if self._compensation is None:
            self._compensation = True

    def sample_weight(self, rows: ArrayLike) -> Floats:
        """(n,) loss weight of drawn ``rows`` (n,) in the present epoch, with mean 1 over the drawn rows.

        It is the weight of the row's class times that of the row within its class. Rows without a label get
        0.

        Raises:
            InputError: A row out of range.
        """
        chosen = self._chosen(rows)
        self.use_compensation()
        return self._rows.loss_weights(chosen, self._controller.weights, self.num_samples)

    def probabilities(self, logits: ArrayLike, prior: str | ArrayLike = "natural") -> Floats:
        """Class probabilities from the raw logits of a model that was trained with the compensation.

        Args:
            logits: (n, K) in the order of :attr:`classes_`; with two classes also (n,) or (n, 1), the
                log-odds of ``classes_[1]``.
            prior: Stream to which the probabilities belong: ``natural`` (the class prior of the training
                rows), ``balanced`` (all classes equally frequent), or a prior (K,).

        Returns:
            (n, K) in the order of :attr:`classes_`.

        Raises:
            InputError: Logits of another shape, or a prior that is none.
        """
        wide = two_columns(np.asarray(logits, dtype=np.float64), len(self.classes_)) + np.log(self.stream_prior(prior))
        wide -= wide.max(axis=1, keepdims=True)
        odds = np.exp(wide)
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def stream_prior(self, prior: str | ArrayLike) -> Floats:
        """(K,) the prior that :meth:`probabilities` takes, in the order of :attr:`classes_`."""
        if isinstance(prior, str):
            if prior not in ("natural", "balanced"):
                raise InputError(f"prior must be natural, balanced or {len(self.classes_)} numbers, not {prior!r}")
            given = self.prior if prior == "natural" else np.ones(len(self.classes_))
        else:
            given = np.asarray(prior, dtype=np.float64)
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
        if self._compensation is False and weights.compensated:
            notes.append("the weights count drawn rows differently, but the loss does not: give compensated=None or another policy")
        if np.isfinite(weights.half_life) and not self._rows.has_age:
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
        """Whether all draws of an epoch of several blocks are of the commonest class though others have a share."""
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
        each = batches_of_block(batch_size)
        weights = self._controller.weights
        asked = (self.seed, epoch, num_batches, batch_size, weights)
        if self._quotas is None or not _same(self._quotas[0], asked):
            self._quotas = asked, quotas(weights.share, num_batches, batch_size, generator(self.seed, "draw batches", epoch))
        counts = self._quotas[1]
        expected = dataclasses.replace(weights, share=counts.sum(axis=0) / counts.sum())
        part = counts[block * each : (block + 1) * each]
        rng = generator(self.seed, "draw batches", epoch, block + 1)
        classes = np.repeat(np.tile(np.arange(counts.shape[1]), len(part)), part.ravel()).reshape(len(part), batch_size)
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
    ) -> SamplingWeights:
        """Report the model's scores; call it once, after each epoch.

        Args:
            y_true: (n,) classes of held-out rows, named as in ``labels``: the commonest class and at least
                one other. Rows without a label are ignored.
            y_score: (n, K) probabilities in the order of :attr:`classes_`; with two classes also (n,)
                probabilities of the rarer class.
            rows: (m,) indices of some of the training rows; rows without a label are ignored.
            row_score: Scores of these rows, in the same form as ``y_score``. Hardness has an effect only with
                them.

        Returns:
            The weights of the next epoch, shares in the order of :attr:`classes_`.

        Raises:
            InputError: NaN, values that are no probabilities, different lengths, a class that ``labels``
                lacks, held-out rows of one class only, a row out of range, or a policy's answer that can't be
                used. Nothing has changed then.
        """
        if (rows is None) != (row_score is None):
            raise InputError("give rows and row_score together, or neither")
        held_out = self._scored(self._labels.encode(y_true, "y_true"), y_score, "y_true", "y_score")
        counts = np.bincount(held_out.label, minlength=len(self._labels.counts))
        if not counts[0] or not counts[1:].any():
            common = self._labels.classes[self._labels.order[0]]
            lacks = f"no row of class {common!r}" if not counts[0] else f"rows of class {common!r} only"
            raise InputError(
                f"y_true holds {lacks}, so nothing can be measured; hold out rows of at least two classes, {common!r} among them"
            )
        train, chosen = held_out, None
        if rows is not None:
            chosen = self._chosen(rows)
            codes = self._labels.codes[chosen].astype(np.int64)
            train = self._scored(codes, row_score, "rows", "row_score")
            chosen = chosen[codes >= 0]
        controller = self._controller
        before = getattr(controller, "compensated", None)
        if before is not None:
            controller.compensated = self.compensated  # type: ignore[attr-defined]
        try:
            controller.update(train, held_out)
        except Exception:
            if before is not None:
                controller.compensated = before  # type: ignore[attr-defined]
            raise
        self._stopping.update(controller.metrics["average_precision"])
        if chosen is not None:
            self._rows.refresh(chosen, train.score)
        return self.weights

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
        chosen = np.asarray(rows)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < self.num_rows):
            raise InputError(f"rows must be one vector of indices of training rows, from 0 to {self.num_rows - 1}")
        return chosen.astype(np.int64)

    def _scored(self, codes: NDArray[np.int64], score: Any, rows_name: str, score_name: str) -> ScoredRows:
        """Labelled rows with their scores as (n, K), commonest class first."""
        num_classes = len(self._labels.counts)
        try:
            scores = np.asarray(score, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{score_name} must be numbers ({error})") from error
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
            "policy": self.policy_name,
            "epochs": self.epochs,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "epoch": self.epoch,
            "controller": self._controller.state_dict(),
            "rows": self._rows.state_dict(),
            "stopping": self._stopping.state_dict(),
            "compensated": self._compensation,
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
        before = self._controller.state_dict()
        try:
            seed, epoch = whole_number(state["seed"], "seed", 0), whole_number(state["epoch"], "epoch", 0)
            self._controller.load_state_dict(state["controller"])
            self._rows.load_state_dict(state["rows"])
            self._stopping.load_state_dict(state.get("stopping", {"figures": []}))
        except (KeyError, TypeError, ValueError) as error:
            self._controller.load_state_dict(before)  # the rows come last and change as a whole
            raise error if isinstance(error, InputError) else InputError(f"saved state is corrupt ({error!r}); load another one") from error
        self.seed, self.epoch = seed, epoch
        self._compensation = state.get("compensated", self._compensation)


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two keys that end with weights are the same; weights are compared by identity."""
    return one[:-1] == other[:-1] and one[-1] is other[-1]


def batches_of_block(batch_size: int) -> int:
    """Number of batches that are drawn together."""
    return max(1, BLOCK // batch_size)


def ages(times: ArrayLike, codes: NDArray[np.signedinteger[Any]]) -> NDArray[np.float32]:
    """(N,) age of each row as a fraction of the time span of the labelled rows, 0 for the newest of them.

    Args:
        times: (N,) numbers or ``datetime64``.
        codes: (N,) class of each row, negative without a label.

    Raises:
        InputError: Another number of times, or a time of a labelled row that is missing.
    """
    given = np.asarray(times)
    if given.shape != codes.shape or given.dtype.kind not in "iufMm":
        raise InputError(f"times must be {len(codes)} numbers or datetime64, one for each row, not {given.dtype} of shape {given.shape}")
    number = given.astype("datetime64[ns]").astype(np.int64) if given.dtype.kind == "M" else given.astype(np.float64)
    missing = np.isnat(given) if given.dtype.kind in "Mm" else ~np.isfinite(number)
    labelled = codes >= 0
    if (missing & labelled).any():
        raise InputError(f"times has no time for row {int(np.flatnonzero(missing & labelled)[0])}; give a time for each labelled row")
    newest, oldest = number[labelled].max(), number[labelled].min()
    age = (newest - number) / max(float(newest - oldest), 1e-300)
    return np.where(labelled, age, 0.0).astype(np.float32)


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
