"""The adaptive sampler for any training loop, in NumPy alone: labels of any kind go in, rows to train on come out.

    sampler = SamplerCore(labels, epochs=10)
    for _ in range(sampler.epochs):
        model.fit(x[rows := sampler.draw()], y[rows])
        sampler.update(y_valid, model.predict_proba(x_valid)[:, 1])

The torch samplers and the integrations stand on it. Everything a caller hands over is checked before anything changes, so an
:class:`~balancer.errors.InputError` leaves the sampler as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.deprecation import deprecated_attribute
from balancer.errors import InputError
from balancer.sampling.controller import SamplingController
from balancer.sampling.labels import CHUNK, LabelCodes
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import Policy, load_policy, policy_notes
from balancer.sampling.quotas import batch_share, quotas
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.seeding import generator
from balancer.sampling.weights import Floats, SamplingWeights

STATE_VERSION = 1
_TOLERANCE = 1e-6
"""How far beyond 0 and 1 a rounded probability may lie."""


class Controller(Protocol):
    """What sets the weights; `SamplingController` is one."""

    weights: SamplingWeights
    """Weights to draw the coming epoch with, the commonest class first."""

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the last update."""

    def update(self, train: ScoredRows, reward: ScoredRows) -> SamplingWeights:
        """Weights for the next epoch."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""


class SamplerCore:
    """Draws training rows by class and hardness; the weights move once an epoch, by :meth:`update`.

    An epoch never consists of the commonest class alone: where chance would have it so, one draw goes to another class (see :meth:`draw`).

    Args:
        labels: (N,) class of each training row: whole numbers (negative ones too), booleans, text or bytes. ``None`` and NaN mean no label.
        policy: ``auto`` (the learned one that comes with the package), ``constant`` (also ``constant:share=.2,hardness=1``), ``rule``, the folder of a
            learned policy, or an object with ``name`` and ``act``.
        epochs: how many epochs the training has.
        num_samples: rows an epoch draws, at least one for each class; None: as many as there are labelled rows.
        unlabelled: a label that marks rows never to be drawn, e.g. -1.
        seed: every epoch's draw is a function of it, of the epoch's number and of the weights.

    Raises:
        InputError: fewer than two classes, no epoch, too few rows an epoch, or a policy that can't be loaded or answers nonsense.

    >>> sampler = SamplerCore(["ok"] * 990 + ["fraud"] * 10, policy="constant:share=.2", epochs=3, num_samples=100)
    >>> sampler.classes_, sampler.counts.tolist(), sampler.draw().shape
    (['fraud', 'ok'], [10, 990], (100,))
    >>> sampler.weights.share.round(3).tolist()
    [0.2, 0.8]
    """

    def __init__(
        self,
        labels: ArrayLike | Sequence[str],
        *,
        policy: str | Path | Policy = "auto",
        epochs: int,
        num_samples: int | None = None,
        unlabelled: Any = None,
        seed: int = 0,
    ) -> None:
        self._labels = LabelCodes(labels, unlabelled)
        num_classes = len(self._labels.counts)
        self.epochs = whole_number(epochs, "epochs", 1)
        given = int(self._labels.counts.sum()) if num_samples is None else num_samples
        self.num_samples = whole_number(given, "num_samples, the rows of an epoch,", num_classes, "the number of classes")
        self.seed = whole_number(seed, "seed", 0)
        self.policy: Policy = load_policy(policy, num_classes=num_classes) if isinstance(policy, (str, Path)) else policy
        self._rows = RowSampler(self._labels.codes, num_classes)
        self._policy_name: str | None = None
        self._controller: Controller = SamplingController(
            self._rows.prior,
            self.policy,
            epochs=self.epochs,
            batch_budget=self.epochs * self.num_samples,
            train_counts=self._rows.counts,
            reward_counts=self._rows.counts,
        )
        self.epoch = 0
        """Number of the epoch that :meth:`draw` draws next."""

    @property
    def classes_(self) -> list[Any]:
        """The K classes in sorted order, plain Python values: the order of the columns of scores, of :attr:`weights` and of :attr:`counts`."""
        return self._labels.classes

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """(K,) training rows of each class, the commonest first: the order in which a controller holds them."""
        return self._labels.counts

    def use_controller(self, controller: Controller, name: str) -> None:
        """Let another controller set the weights from now on, under the name of its policy."""
        self._controller, self._policy_name = controller, name

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,) training rows of each class, in the order of :attr:`classes_`."""
        return self._labels.counts[self._labels.rank]

    @property
    def num_rows(self) -> int:
        """N, labelled or not."""
        return len(self._labels.codes)

    @property
    def weights(self) -> SamplingWeights:
        """Weights of the next draw, shares in the order of :attr:`classes_`."""
        now = self._controller.weights
        return SamplingWeights(now.share[self._labels.rank], now.hardness, now.floor)

    @property
    def updates(self) -> int:
        """Epochs whose scores were handed over."""
        return self._controller.epoch

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the last update: ``f1`` at its best threshold and ``average_precision``; 0 before the first."""
        return self._controller.metrics

    @property
    def policy_name(self) -> str:
        """Name of the policy."""
        return self._policy_name or str(getattr(self.policy, "name", type(self.policy).__name__))

    @property
    def notes(self) -> list[str]:
        """What the policy has to say of itself, e.g. that it fell back to a constant; empty where it says nothing."""
        return policy_notes(self.policy)

    def draw(self, epoch: int | None = None, n: int | None = None, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """Rows of an epoch, with replacement: a class by its share, then a row of it.

        Where all of them would be of the commonest class although others have a share, one draw, at a random place, goes to one of those others, by
        their shares. So no epoch is without a positive row; :meth:`row_weights` counts it in. Draw an epoch at once: many small draws would each get one.

        Args:
            epoch: its number; None: the next one, which is counted on.
            n: how many rows, at least one for each class; None: ``num_samples``.
            rng: randomness of the caller's own in place of that of seed and epoch; the epoch is then not counted on.

        Returns:
            (n,) int64 rows.
        """
        size = self.num_samples if n is None else whole_number(n, "n", len(self._labels.counts), "the number of classes")
        number = self.epoch if epoch is None else whole_number(epoch, "epoch", 0)
        rows = self._rows.draw(size, self._controller.weights, rng or generator(self.seed, "draw", number), keep_minority=True)
        if epoch is None and rng is None:
            self.epoch += 1
        return rows

    def draw_batches(self, epoch: int, num_batches: int, batch_size: int) -> NDArray[np.int64]:
        """(num_batches, batch_size) rows of an epoch whose every batch holds its exact quota of each class; see :func:`~balancer.sampling.quotas.quotas`.

        Within its class a row is drawn as by :meth:`draw`. The epoch is not counted on.
        """
        rng = generator(self.seed, "draw batches", epoch)
        weights = self._controller.weights
        counts = quotas(weights.share, num_batches, batch_size, rng)
        share = SamplingWeights(counts.sum(axis=0) / counts.sum(), weights.hardness, weights.floor)
        rows = np.empty((num_batches, batch_size), dtype=np.int64)
        step = max(1, CHUNK // batch_size)
        for first in range(0, num_batches, step):
            part = counts[first : first + step]
            classes = np.repeat(np.tile(np.arange(counts.shape[1]), len(part)), part.ravel()).reshape(len(part), batch_size)
            mixed = rng.permuted(classes, axis=1)
            rows[first : first + step] = self._rows.fill(mixed.ravel(), share, rng, epoch_draws=rows.size).reshape(mixed.shape)
        return rows

    def batch_share(self, batch_size: int) -> Floats:
        """(K,) share of each class in batches of ``batch_size`` rows, in the order of :attr:`classes_`; see :func:`~balancer.sampling.quotas.batch_share`."""
        return batch_share(self._controller.weights.share, batch_size)[self._labels.rank]

    def row_weights(self) -> Floats:
        """(N,) how often each row is expected in the next epoch, relative to the mean over labelled rows: mean 1, and 0 for unlabelled rows.

        The deterministic counterpart of :meth:`draw`, for estimators that take ``sample_weight``.
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
        """Tell the sampler how the model does; call it once, after each epoch.

        Args:
            y_true: (n,) classes of held-out rows, named as in ``labels``: the commonest class and at least one other. Rows without a label are ignored.
            y_score: (n, K) probabilities in the order of :attr:`classes_`; with two classes also (n,), that of the rarer one.
            rows: (m,) indices of training rows, any part of them; those without a label are ignored.
            row_score: their scores, in the same form as ``y_score``; hardness has something to act on only with these.

        Returns:
            The weights of the next epoch.

        Raises:
            InputError: NaN, no probabilities, differing lengths, a class that ``labels`` lacks, nothing to measure, a row out of range, or a policy whose
                answer can't be drawn by. The sampler is then as it was.
        """
        if (rows is None) != (row_score is None):
            raise InputError("give rows and row_score together, or neither")
        held_out = self._scored(self._labels.encode(y_true, "y_true"), y_score, "y_true", "y_score")
        counts = np.bincount(held_out.label, minlength=len(self._labels.counts))
        if not counts[0] or not counts[1:].any():
            common = self._labels.classes[self._labels.order[0]]
            lacks = f"no row of class {common!r}" if not counts[0] else f"rows of class {common!r} only"
            raise InputError(
                f"y_true holds {lacks}, nothing can be measured by it; hold out rows of at least two classes, {common!r} among them"
            )
        train, chosen = held_out, None
        if rows is not None:
            chosen = self._chosen(rows)
            codes = self._labels.codes[chosen].astype(np.int64)
            train = self._scored(codes, row_score, "rows", "row_score")
            chosen = chosen[codes >= 0]
        self._controller.update(train, held_out)
        if chosen is not None:
            self._rows.refresh(chosen, train.score)
        return self.weights

    def _chosen(self, rows: ArrayLike) -> NDArray[np.int64]:
        chosen = np.asarray(rows)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < self.num_rows):
            raise InputError(f"rows must be one vector of indices of training rows, from 0 to {self.num_rows - 1}")
        return chosen.astype(np.int64)

    def _scored(self, codes: NDArray[np.int64], score: Any, rows_name: str, score_name: str) -> ScoredRows:
        """Labelled rows with their scores as (n, K), the commonest class first."""
        num_classes = len(self._labels.counts)
        try:
            given = np.asarray(score, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{score_name} must be numbers ({error})") from error
        if given.ndim not in (1, 2) or (given.shape[1:] or (2,)) != (num_classes,):
            raise InputError(
                f"{score_name} must have one column for each of the {num_classes} classes"
                f"{' or be one vector' if num_classes == 2 else ''}, not shape {given.shape}"
            )
        if len(given) != len(codes):
            raise InputError(f"{score_name} has {len(given)} rows and {rows_name} {len(codes)}; give one label and one score a row")
        if not np.isfinite(given).all():
            row = int(np.flatnonzero(~np.isfinite(given.reshape(len(given), -1)).all(axis=1))[0])
            raise InputError(f"{score_name} of row {row} is not finite; check the model's output for NaN before handing it over")
        if len(given) and (given.min() < -_TOLERANCE or given.max() > 1 + _TOLERANCE):
            raise InputError(
                f"{score_name} must be probabilities from 0 to 1, found {given.min():.4g} to {given.max():.4g}; apply the sigmoid or softmax"
            )
        given = np.clip(given, 0.0, 1.0)
        ranked = np.stack([1.0 - given, given], axis=1) if given.ndim == 1 else given[:, self._labels.order]
        return ScoredRows(codes[codes >= 0], ranked[codes >= 0])

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on exactly; JSON-able but for the NumPy arrays in ``rows``."""
        return {
            "version": STATE_VERSION,
            "labels": self._labels.fingerprint,
            "policy": self.policy_name,
            "epochs": self.epochs,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "epoch": self.epoch,
            "controller": self._controller.state_dict(),
            "rows": self._rows.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, seed included.

        InputError where it was saved for other labels, another policy, number of epochs or ``num_samples``, or is no such state; nothing is changed then.
        """
        if not isinstance(state, Mapping) or state.get("version") != STATE_VERSION:
            raise InputError("saved state is not that of a sampler of this version; start the training anew")
        own = {"labels": self._labels.fingerprint, "policy": self.policy_name, "epochs": self.epochs, "num_samples": self.num_samples}
        for name, value in own.items():
            if state.get(name) == value:
                continue
            if name == "labels":
                raise InputError("saved state is for other training rows; load it with the labels it was saved with, in the same order")
            raise InputError(f"saved state is for {name} {state.get(name)!r}, this sampler has {value!r}; make the sampler as it was saved")
        before = self._controller.state_dict()
        try:
            seed, epoch = whole_number(state["seed"], "seed", 0), whole_number(state["epoch"], "epoch", 0)
            self._controller.load_state_dict(state["controller"])
            self._rows.load_state(state["rows"])
        except (KeyError, TypeError, ValueError) as error:
            self._controller.load_state_dict(before)  # the rows come last, and change all at once
            raise error if isinstance(error, InputError) else InputError(f"saved state is torn ({error!r}); load another one") from error
        self.seed, self.epoch = seed, epoch


def whole_number(value: Any, name: str, least: int, why: str = "") -> int:
    """``value`` as an int; InputError naming ``name`` where it is none, or less than ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} must be a whole number and at least {least}{f' ({why})' if why else ''}, not {value!r}")
    return int(value)


if not TYPE_CHECKING:  # the name of version 0.1

    def __getattr__(name: str) -> object:
        return deprecated_attribute(__name__, name)
