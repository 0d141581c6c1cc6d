"""How drawn rows count: their weights in the loss, the offset of the logits, probabilities from raw logits.

:class:`Compensation` is the part of a sampler that undoes what drawing does to a model. It knows the training
rows and the weights that they are drawn with; how rows are drawn is the matter of
:class:`~balancer.sampling.core.SamplerCore`, which is made from it.

Results have the order of :attr:`Compensation.classes_`. Inside the commonest class comes first.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.sampling.controller import Controller, SamplingController
from balancer.sampling.drawn_rows import DrawnRows
from balancer.sampling.inputs import numbers, whole_number
from balancer.sampling.labels import Labels
from balancer.sampling.observation import ScoredRows
from balancer.sampling.quotas import batch_share
from balancer.sampling.reported import row_indices
from balancer.sampling.row_sampler import kept_share
from balancer.sampling.tilt import HardnessTilt, are_natural
from balancer.sampling.weights import Floats, SamplingWeights

MAX_LOGIT = 1e4
"""Logits beyond it, infinite ones too, count as this, so that their difference is a number."""


class _Saved(NamedTuple):
    """What a state holds of a compensation, checked."""

    compensation: bool | None
    trained: bool
    counted: bool
    tilt: HardnessTilt | None
    best_tilt: HardnessTilt | None


class Compensation(ABC):
    """What follows for a loss from how rows are drawn.

    Args:
        labels: Labels of the training rows.
        rows: The training rows as they are drawn.
        epoch_draws: Rows of an epoch.
        compensated: Whether the loss counts drawn rows by their weights; None: from the first use of a
            weight, an offset or a loss.

    Raises:
        InputError: ``compensated`` is another value.
    """

    _controller: Controller

    def __init__(self, labels: Labels, rows: DrawnRows, epoch_draws: int, compensated: bool | None) -> None:
        if compensated not in (None, True, False):
            raise InputError(f"compensated must be True, False or None (find out), not {compensated!r}")
        self._labels, self._rows, self._compensation = labels, rows, compensated
        self._drawn: tuple[SamplingWeights, SamplingWeights] | None = None  # weights, and those with the shares drawn
        self._epoch_draws, self._batch_size = epoch_draws, 0  # as rows are drawn in the loop; 0: no batches
        self._begun = False  # whether rows were drawn
        self._trained = False  # whether rows were drawn, to be trained on, since the last update
        self._counted = False  # whether the loss counts rows by their own weights
        self._tilt: HardnessTilt | None = None  # of the last epoch before the last update
        self._best_tilt: HardnessTilt | None = None  # of the best epoch
        self._contradicted = False  # whether the weights are used although compensated=False was given

    @abstractmethod
    def _new_controller(self) -> SamplingController:
        """The controller of a training that begins."""

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

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,) training rows of each class, in the order of :attr:`classes_`."""
        return self._labels.counts[self._labels.rank]

    @property
    def num_rows(self) -> int:
        """N, number of training rows with and without a label."""
        return self._labels.num_rows

    @property
    def prior(self) -> Floats:
        """(K,) class prior of the training rows, in the order of :attr:`classes_`."""
        return self._rows.prior[self._labels.rank]

    @property
    def compensated(self) -> bool:
        """Whether the loss counts drawn rows by their weights: as given, or as seen so far."""
        return bool(self._compensation)

    def use_compensation(self) -> None:
        """Note that the loss counts drawn rows by their weights, unless ``compensated=False`` was given.

        Policies take it into account from the next :meth:`update` on, and at once where no row was drawn yet.
        """
        if self._compensation is None:
            self._compensation = True
            if not self._begun and isinstance(self._controller, SamplingController):
                self._controller = self._new_controller()
        self._contradicted = self._contradicted or not self._compensation

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

    def effective_weights(self) -> Floats:
        """(N,) mass of each row in the next epoch, relative to the mean over the labelled rows.

        The mass is the expected draws of a row (:meth:`row_weights`) times its loss weight
        (:meth:`sample_weight`); its mean is 1, and unlabelled rows have 0. An estimator that is fitted on all
        rows with these weights is trained with what a network is trained with that draws its rows. The class
        shares of its stream are ``exp(logit_offset)``; :meth:`init_score` takes them out of its raw scores.

        >>> from balancer import SamplerCore
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

        >>> from balancer import SamplerCore
        >>> policy = "constant:share=.2,hardness=0,class_importance=.5"
        >>> SamplerCore([0] * 98 + [1] * 2, epochs=1, policy=policy).init_score(1).round(2).tolist()
        [-2.64]
        """
        offset, rows = self.logit_offset, self.num_rows if num_rows is None else whole_number(num_rows, "num_rows", 0)
        return np.full(rows, offset[1] - offset[0]) if len(offset) == 2 else np.tile(offset, (rows, 1))

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

    def _drawn_weights(self) -> SamplingWeights:
        """The present weights with the shares that rows are drawn with, commonest class first.

        A batch with quotas holds at least one row of every class, and an epoch one row of the minority.
        """
        weights = self._controller.weights
        if self._drawn is None or self._drawn[0] is not weights:
            share = self._rows.class_share(weights)
            if self._batch_size:
                share = batch_share(share, self._batch_size)
            elif self._rows.keeps_minority:
                share = kept_share(share, self._epoch_draws)
            self._drawn = weights, dataclasses.replace(weights, share=share)
        return self._drawn[1]

    def _drawing(self) -> tuple[SamplingWeights, bool]:
        """Weights that rows are drawn with, and whether an epoch keeps a row of the minority."""
        return (self._drawn_weights(), False) if self._batch_size else (self._controller.weights, self._rows.keeps_minority)

    def _present_tilt(self) -> HardnessTilt | None:
        """The tilt of the rows that the model was last trained on."""
        if not self._trained:
            return self._tilt
        weights, _ = self._drawing()
        return self._rows.tilt(weights, self._epoch_draws, counted=self._counted)

    def _raw_scores(self, score: NDArray[np.floating[Any]], train: ScoredRows, tilt: HardnessTilt | None) -> NDArray[np.floating[Any]]:
        """Scores of training rows that hardness goes by: with compensation, the softmax of the raw logits.

        Args:
            score: (n, K) scores of some training rows.
            train: All scored training rows, which show what the scores are.
            tilt: What hardness has done to the model.
        """
        prior = self._rows.prior
        weight = None if train.weight is None or (train.weight == 1).all() else train.weight
        if not self.compensated or not are_natural(train.label, train.score, prior, weight):
            return score
        if tilt is not None:
            return tilt.raw_scores(np.asarray(score, dtype=np.float64), prior)
        odds = score / np.maximum(prior, 1e-12)
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def _chosen(self, rows: ArrayLike) -> NDArray[np.int64]:
        return row_indices(rows, self.num_rows)

    def _compensation_notes(self) -> list[str]:
        """What is wrong between the weights and the loss that is used."""
        notes, differs = [], self._controller.weights.compensated
        if self._compensation is None and self._controller.epoch and differs:
            notes.append("the weights count drawn rows differently, but no loss or weights of the sampler were used: use sampler.loss")
        if self._compensation is False and differs:
            notes.append("the weights count drawn rows differently, but the loss does not: give compensated=None or another policy")
        if self._contradicted:
            notes.append("compensated=False was given, but the loss or the weights of the sampler are used: leave it out")
        return notes

    def _compensation_state(self) -> dict[str, Any]:
        """State as values that JSON can hold."""
        return {
            "compensated": self._compensation,
            "trained": [self._trained, self._counted],
            "tilt": None if self._tilt is None else self._tilt.to_dict(),
            "best_tilt": None if self._best_tilt is None else self._best_tilt.to_dict(),
        }

    def _read_compensation(self, state: Mapping[str, Any]) -> _Saved:
        """What the state holds; nothing changes.

        Raises:
            KeyError, TypeError, ValueError: The state is corrupt.
        """
        compensation = state.get("compensated", self._compensation)
        if compensation not in (None, True, False):
            raise ValueError(f"compensated is {compensation!r}")
        trained, counted = map(bool, state.get("trained", (False, False)))
        tilt, best_tilt = (
            None if state.get(name) is None else HardnessTilt.from_dict(state[name], len(self._labels.counts))
            for name in ("tilt", "best_tilt")
        )
        return _Saved(compensation, trained, counted, tilt, best_tilt)

    def _take_compensation(self, saved: _Saved) -> None:
        self._compensation, self._trained, self._counted, self._tilt, self._best_tilt = saved
        self._begun = True


def two_columns(logits: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """Logits (n, K); of two classes also from (n,) or (n, 1), the log-odds of the second class."""
    if num_classes == 2 and (logits.ndim == 1 or logits.shape[1:] == (1,)):
        column = logits.reshape(-1)
        return np.stack([np.zeros_like(column), column], axis=1)
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise InputError(f"logits must have the shape (n, {num_classes}), not {logits.shape}; move the classes to the last axis")
    return logits
