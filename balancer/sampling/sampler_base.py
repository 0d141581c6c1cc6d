"""What the cores of samplers have in common: the controller that sets the weights, updates, and the state.

How rows are drawn is the matter of :class:`~balancer.sampling.core.SamplerCore`, where this process has the
labels of all rows, and of :class:`~balancer.sampling.sharded_core.ShardedCore`, where each rank has those of
its shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.sampling.compensation import Compensation
from balancer.sampling.constant_policy import ConstantPolicy
from balancer.sampling.controller import Controller, SamplingController
from balancer.sampling.drawn_rows import DrawnRows
from balancer.sampling.inputs import whole_number
from balancer.sampling.labels import Labels
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import Policy, chosen_policy, policy_notes
from balancer.sampling.pooled_scores import gathered_training_rows, pooled_rows
from balancer.sampling.quotas import batch_share, quota_notes
from balancer.sampling.ranks import Group, agree
from balancer.sampling.reported import check_measurable, held_out_rows, labelled_scores, scored_rows
from balancer.sampling.scores import macro_metrics
from balancer.sampling.stopping import Stopping
from balancer.sampling.weights import Floats, SamplingWeights

STATE_VERSION = 1

AnyController = TypeVar("AnyController", bound=Controller)


class SamplerBase(Compensation):
    """Sets the weights of a sampler's epochs.

    Args:
        labels: Labels of the training rows.
        make_rows: Makes the rows as they are drawn.
        policy: As for :class:`~balancer.sampling.core.SamplerCore`.
        epochs: Number of epochs of the training.
        num_samples: Rows drawn in an epoch; None: as many as there are labelled rows.
        seed: Random seed.
        compensated: As for :class:`~balancer.sampling.core.SamplerCore`.
        patience: As for :class:`~balancer.sampling.core.SamplerCore`.

    Raises:
        InputError: As :class:`~balancer.sampling.core.SamplerCore`.
    """

    def __init__(
        self,
        labels: Labels,
        make_rows: Callable[[], DrawnRows],
        *,
        policy: str | Path | Policy | SamplingWeights,
        epochs: int,
        num_samples: int | None,
        seed: int,
        compensated: bool | None,
        patience: int | None,
    ) -> None:
        num_classes = len(labels.counts)
        self.epochs = whole_number(epochs, "epochs", 1)
        given = int(labels.counts.sum()) if num_samples is None else num_samples
        self.num_samples = whole_number(given, "num_samples, the rows of an epoch,", num_classes, "the number of classes")
        self.seed = whole_number(seed, "seed", 0)
        self.policy: Policy = chosen_policy(policy, labels.order)
        super().__init__(labels, make_rows(), self.num_samples, compensated)
        self._stopping = Stopping(self.epochs, None if patience is None else whole_number(patience, "patience", 1))
        self._policy_name: str | None = None
        self._state_notes: list[str] = []  # on the state that was loaded last
        self._controller: Controller = self._new_controller()
        self.epoch = 0
        """Number of the epoch that is drawn next."""

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

    def batch_share(self, batch_size: int) -> Floats:
        """(K,) share of each class in batches of ``batch_size`` rows, in the order of :attr:`classes_`.

        See :func:`~balancer.sampling.quotas.batch_share`.
        """
        return batch_share(self._controller.weights.share, batch_size)[self._labels.rank]

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
        _check_pair(rows, row_score)
        held_out = held_out_rows(self._labels, y_true, y_score, y_weight)
        if rows is None:
            return self._updated(held_out, held_out)
        chosen = self._chosen(rows)
        codes = self._labels.codes_of(chosen)
        train = scored_rows(self._labels, codes, row_score, "rows", "row_score")
        return self._updated(train, held_out, (chosen[codes >= 0], train.score))

    def update_together(
        self,
        group: Group,
        y_true: ArrayLike | Sequence[str],
        y_score: ArrayLike,
        *,
        rows: ArrayLike | None = None,
        row_score: ArrayLike | None = None,
        exact: bool = False,
    ) -> SamplingWeights:
        """Update from the scores that all ranks of ``group`` have, each of its own part of the rows.

        Every rank calls it, and all get the same weights to the bit, for every number of ranks. Of two
        classes the held-out scores are exchanged as counts (:mod:`balancer.sampling.pooled_scores`).

        Args:
            group: The ranks.
            y_true: As for :meth:`update`, of this rank's part of the held-out rows, which may be empty.
            y_score: As for :meth:`update`.
            rows: As for :meth:`update`, of this rank's part; all ranks give them, or none.
            row_score: As for :meth:`update`.
            exact: Whether to exchange the scores of two classes row by row.

        Raises:
            InputError: As :meth:`update`, on all ranks where one of them has the cause.
        """
        error, held, trained = None, None, None
        try:
            _check_pair(rows, row_score)
            held = labelled_scores(self._labels, self._labels.encode(y_true, "y_true"), y_score, "y_true", "y_score")
            if rows is not None:
                chosen = self._chosen(rows)
                codes = self._labels.codes_of(chosen)
                label, score = labelled_scores(self._labels, codes, row_score, "rows", "row_score")
                trained = chosen[codes >= 0], label, score
        except InputError as problem:
            error = problem
        agree(group, error)
        assert held is not None
        given = int(group.sum(np.array([trained is not None], dtype=np.int64))[0])
        if given not in (0, group.size):
            raise InputError(
                f"{given} of {group.size} ranks give rows and row_score; give them on all ranks (a part may be empty), or on none"
            )
        held_out = pooled_rows(group, *held, exact=exact)
        check_measurable(self._labels, held_out)
        if trained is None:
            weights = self._updated(held_out, held_out)
        else:
            weights = self._updated(*self._pooled_training(group, *trained, held_out, exact=exact))
        self._share_rows(group)
        return weights

    def _pooled_training(
        self, group: Group, rows: NDArray[np.int64], label: NDArray[np.int64], score: Floats, held_out: ScoredRows, *, exact: bool
    ) -> tuple[ScoredRows, ScoredRows, tuple[NDArray[np.int64], Floats]]:
        """Scored training rows of all ranks, held-out rows, and the rows whose scores are kept here."""
        rows, score = gathered_training_rows(group, rows, score)
        return ScoredRows(self._labels.codes_of(rows), score), held_out, (rows, score)

    def _share_rows(self, group: Group) -> None:
        """Exchange what ranks with rows of their own need to know of the others' rows after an update."""

    def _updated(
        self, train: ScoredRows, held_out: ScoredRows, kept: tuple[NDArray[np.int64], NDArray[np.floating[Any]]] | None = None
    ) -> SamplingWeights:
        """The weights after scores of training rows and of held-out rows.

        Args:
            train: Scored training rows; ``held_out`` where there are none.
            held_out: Scored held-out rows.
            kept: Training rows (n,) and their scores (n, K), which hardness goes by from now on.
        """
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
        if kept is not None:
            self._rows.refresh(kept[0], self._raw_scores(kept[1], train, tilt))
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


def _check_pair(rows: Any, row_score: Any) -> None:
    if (rows is None) != (row_score is None):
        raise InputError("give rows and row_score together, or neither")
