"""The sampler for a training loop of one's own: a ``torch.utils.data.Sampler`` that a policy steers from validation scores.

    sampler = AdaptiveSampler(labels, policy="constant", epochs=10)
    loader = DataLoader(dataset, batch_size=256, sampler=sampler)
    for epoch in range(10):
        train_one_epoch(model, loader)
        sampler.update(valid_labels, model_scores(valid))

Nothing but NumPy and torch is needed. Learned policies and hardness want the scores of some training rows too: give ``rows`` and
``row_score``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from balancer.errors import InputError
from balancer.sampling.controller import SamplingController
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import load_policy
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.seeding import generator
from balancer.sampling.weights import SamplingWeights


class AdaptiveSampler(Sampler[int]):
    """Draws training rows by class and hardness; the weights move once an epoch, by :meth:`update`.

    Args:
        labels: (N,) class of each training row, integers or strings.
        policy: ``constant`` (also ``constant:share=.2,hardness=1``), ``rule``, or the folder of a learned policy.
        epochs: how many epochs the training has.
        num_samples: rows an epoch draws; None: as many as there are labels.
        seed: every epoch's draw is a function of it and of the epoch's number.

    Raises:
        InputError: fewer than two classes, no epoch, or a policy that can't be loaded.

    >>> sampler = AdaptiveSampler(["ok"] * 990 + ["fraud"] * 10, policy="constant:share=.2", epochs=3, num_samples=100)
    >>> sampler.classes_, len(list(sampler))
    (['fraud', 'ok'], 100)
    >>> dict(zip(sampler.classes_, sampler.weights.share.round(3).tolist()))
    {'fraud': 0.2, 'ok': 0.8}
    """

    def __init__(
        self, labels: ArrayLike | Sequence[str], *, policy: str = "constant", epochs: int, num_samples: int | None = None, seed: int = 0
    ) -> None:
        given = np.asarray(labels)
        if given.ndim != 1 or not len(given):
            raise InputError(f"labels must be one non-empty vector, not of shape {given.shape}")
        if given.dtype.kind not in "iubUS":
            raise InputError(f"labels must be integers or strings, not {given.dtype}; convert them first")
        if epochs < 1 or (num_samples is not None and num_samples < 1):
            raise InputError("epochs and num_samples must be at least 1")
        classes, coded = np.unique(given, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"labels hold one class only ({classes[0]}); sampling needs at least two")
        # Policies take the first class for the common one; ties go by the order of the labels.
        self._order = np.argsort(-np.bincount(coded), kind="stable")
        self._rank = np.argsort(self._order)
        self._classes = classes
        self._labels = self._rank[coded]
        self._rows = RowSampler(self._labels, len(classes))
        self.num_samples = len(given) if num_samples is None else num_samples
        self.epochs, self.seed = epochs, seed
        self._controller = SamplingController(
            self._rows.prior,
            load_policy(policy, num_classes=len(classes)),
            epochs=epochs,
            batch_budget=epochs * self.num_samples,
            train_counts=self._rows.counts,
            reward_counts=self._rows.counts,
        )
        self._epoch = 0

    @property
    def classes_(self) -> list[Any]:
        """The K classes in sorted order: the order of the columns of scores, and of :attr:`weights`."""
        return list(self._classes.tolist())

    @property
    def weights(self) -> SamplingWeights:
        """Weights of the next draw, shares in the order of :attr:`classes_`."""
        now = self._controller.weights
        return SamplingWeights(now.share[self._rank], now.hardness, now.floor)

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch drawn next; without it each iteration counts on by itself."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        rows = self._rows.draw(self.num_samples, self._controller.weights, generator(self.seed, "draw", self._epoch))
        self._epoch += 1
        return iter(rows.tolist())

    def update(
        self, y_true: ArrayLike, y_score: ArrayLike, *, rows: ArrayLike | None = None, row_score: ArrayLike | None = None
    ) -> SamplingWeights:
        """Tell the sampler how the model does; call it once, after each epoch.

        Args:
            y_true: (n,) classes of held-out rows, named as in ``labels``.
            y_score: (n, K) probabilities in the order of :attr:`classes_`; with two classes also (n,), that of the rarer one.
            rows: (m,) indices of training rows, any part of them.
            row_score: their scores, in the same form as ``y_score``; hardness has something to act on only with these.

        Returns:
            The weights of the next epoch.

        Raises:
            InputError: NaN, differing lengths, a class that ``labels`` lacks, a row out of range; the sampler is then as it was.
        """
        held_out = ScoredRows(self._coded(np.asarray(y_true)), self._ranked(np.asarray(y_score)))
        train = held_out
        if (rows is None) != (row_score is None):
            raise InputError("give rows and row_score together, or neither")
        if rows is not None:
            chosen = np.asarray(rows)
            if (
                chosen.ndim != 1
                or chosen.dtype.kind not in "iu"
                or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self._labels))
            ):
                raise InputError(f"rows must be indices of training rows, from 0 to {len(self._labels) - 1}")
            train = ScoredRows(self._labels[chosen], self._ranked(np.asarray(row_score)))
        self._controller.update(train, held_out)
        if rows is not None:
            self._rows.refresh(np.asarray(rows), train.score)
        return self.weights

    def _coded(self, label: NDArray[Any]) -> NDArray[np.int64]:
        if label.ndim != 1:
            raise InputError(f"y_true must be one vector of classes, not of shape {label.shape}")
        unseen = ~np.isin(label, self._classes)
        if unseen.any():
            raise InputError(f"class {label[unseen][0]!r} of y_true is not among the labels of training ({self.classes_})")
        return np.asarray(self._rank[np.searchsorted(self._classes, label)], dtype=np.int64)

    def _ranked(self, score: NDArray[Any]) -> NDArray[np.float64]:
        """Scores as (n, K), the common class first."""
        score = np.asarray(score, dtype=np.float64)
        if score.ndim == 1 and len(self._classes) == 2:
            return np.stack([1.0 - score, score], axis=1)
        if score.ndim != 2 or score.shape[1] != len(self._classes):
            raise InputError(f"scores must have one column for each of the {len(self._classes)} classes, not shape {score.shape}")
        return score[:, self._order]

    def state_dict(self) -> dict[str, Any]:
        """State after the last finished epoch: the weights, their history, the errors of the training rows (arrays), the epoch's number."""
        return {"epoch": self._epoch, "controller": self._controller.state_dict(), "rows": self._rows.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; InputError where it was saved for other labels."""
        self._rows.load_state(state["rows"])
        self._controller.load_state_dict(state["controller"])
        self._epoch = int(state["epoch"])
