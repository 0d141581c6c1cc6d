"""Train treatments with the population of small students: all treatments of a seed are siblings in one stack.

So the treatments differ only by what their policies did. Each seed has its own stack, because the groups of a
stack share their dropout masks and seeds must not. SMOTE and random under-sampling train on other rows and so
have their own stacks; the same seed gives them the same initial weights and random numbers.

Sources of the baselines: SMOTE, Chawla et al. 2002, by imbalanced-learn on the encoded rows; focal loss, Lin
et al. 2017, gamma 2; logit adjustment, Menon et al. 2021, tau 1; class weights n / (K n_c), as scikit-learn's
"balanced".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from balancer.comparison.figures import EvaluatedRows
from balancer.comparison.treatments import ScorePair, Tick, Trained
from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.envs.population import PopulationStack, StudentKinds
from balancer.envs.problem import PopulationProblem, RowEncoder, dataset_problem
from balancer.envs.student_losses import Losses
from balancer.envs.vec_env import PopulationEpisode
from balancer.evaluation.calibration import pooled_score
from balancer.policy_learning.walking import walk_policies
from balancer.sampling.policies import OutsideTraining, policy_notes
from balancer.sampling.scores import ranking_metrics
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import Floats, class_prior, stacked
from balancer.training.treatment import Rows, Treatment, balanced_class_weight

FOCAL_GAMMA = 2.0
SCORE_ROWS = 16_384
"""Rows scored at once; only the requested scores of a stack are kept."""
SMOTE_NEIGHBOURS = 5


@dataclass(frozen=True)
class PopulationFold:
    """A fold as the students see it: the fields of each row, encoded."""

    problem: PopulationProblem
    x_threshold: np.ndarray
    """(n, F) features of all rows of the threshold half."""
    x_test: np.ndarray
    """(t, F) features of all test rows."""
    evaluated: EvaluatedRows

    @classmethod
    def of(cls, dataset: Dataset, seed: int) -> PopulationFold:
        """Encode a data set that has been split; the encodings are fitted on its training rows alone."""
        problem, encoder = dataset_problem(dataset, seed)
        values, threshold, test = dataset.store.values, dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)
        return cls(problem, _encoded(encoder, values, threshold), _encoded(encoder, values, test), EvaluatedRows.of(dataset))


def _encoded(encoder: RowEncoder, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Features of ``rows``, computed in pieces because the encoder uses float64."""
    pieces = np.array_split(rows, max(1, len(rows) // SCORE_ROWS))
    return np.concatenate([encoder.transform(values[piece]) for piece in pieces])


class PopulationTrainer:
    """Trains students of one kind on one fold.

    Args:
        fold: The fold.
        epochs: Epochs of every treatment.
        steps_per_epoch: Mini-batches of an epoch.
        batch_size: Rows of a mini-batch.
        device: Where the stack is.
        keep_best: Score each student as it was after the epoch with its best average precision on the reward
            rows (early stopping), not as it was after the last.
    """

    side_by_side = True

    def __init__(
        self,
        fold: PopulationFold,
        *,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        device: str = "cpu",
        keep_best: bool = False,
    ) -> None:
        self.keep_best = keep_best
        self.fold, self.epochs, self.steps_per_epoch, self.batch_size, self.device = fold, epochs, steps_per_epoch, batch_size, device

    @property
    def counts(self) -> Floats:
        """(K,) training rows of each class in the data set."""
        return self.fold.problem.train_counts

    def train(self, treatments: Sequence[Treatment], seed: int, tick: Tick) -> Trained:
        """Train all treatments; see :class:`balancer.comparison.treatments.Trainer`."""
        kinds: list[Rows] = list(dict.fromkeys(treatment.rows for treatment in treatments))
        stacks = [
            _Stack(self, kind, [i for i, treatment in enumerate(treatments) if treatment.rows == kind], treatments, seed, tick)
            for kind in kinds
        ]

        def gathered(name: str) -> Floats:
            values = np.zeros(len(treatments))
            for stack in stacks:
                values[stack.places] = getattr(stack, name)
            return values

        def scores(wanted: Sequence[int]) -> list[ScorePair]:
            found: dict[int, ScorePair] = {}
            for stack in stacks:
                found |= stack.scores([index for index in wanted if index in stack.places])
            return [found[index] for index in wanted]

        notes = tuple(tuple(policy_notes(treatment.policy)) for treatment in treatments)
        return Trained(gathered("reward"), gathered("minority_share"), gathered("hardness"), notes, scores)


class _Stack:
    """The trained treatments of one kind of rows; ``places`` are their numbers among all treatments."""

    def __init__(
        self, trainer: PopulationTrainer, rows: Rows, places: list[int], treatments: Sequence[Treatment], seed: int, tick: Tick
    ) -> None:
        self.fold, self.places = trainer.fold, places
        chosen = [treatments[place] for place in places]
        problem = resampled(self.fold.problem, rows, seed)
        self.stack = PopulationStack(
            problem,
            siblings=len(chosen),
            groups=1,
            batch_size=trainer.batch_size,
            seed=integer_seed(seed, "comparison"),
            device=trainer.device,
            kinds=StudentKinds.fixed(len(chosen), learning_rate=6e-3, weight_decay=1e-3, dropout=0.1, width=32),
            losses=_losses(chosen, trainer.counts),
            compensated=np.array([treatment.loss == "sampler" for treatment in chosen]),
        )
        episode = PopulationEpisode(self.stack, epochs=trainer.epochs, steps_per_epoch=trainer.steps_per_epoch, keep_best=trainer.keep_best)
        together = f"{len(chosen)} side by side, " if len(chosen) > 1 else ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideTraining)  # the cell's notes report it
            walk = walk_policies(
                episode,
                [treatment.policy for treatment in chosen],
                lambda epoch: tick(f"{together}epoch {epoch}/{trainer.epochs}"),
                bias=lambda weights, _: np.stack(
                    [treatment.initial_bias(problem.train_counts, first) for treatment, first in zip(chosen, weights, strict=True)]
                ),
            )
        last = stacked(walk.weights)
        self.hardness, self.minority_share = last.hardness, 1.0 - last.share[:, 0]
        if trainer.keep_best:
            self.stack.restore_kept()
        # A model that was trained with an offset has the logits of a balanced stream: add the log prior.
        natural = np.array([treatment.loss in ("sampler", "logit_adjustment") for treatment in chosen])
        self._stream_prior = np.where(natural[:, None], class_prior(trainer.counts), 1.0)
        score = self._natural(self.stack.score(problem.x_val), self._stream_prior)
        pooled = pooled_score(score.reshape(-1, problem.num_classes)).reshape(len(chosen), -1)
        self.reward = ranking_metrics(problem.y_val > 0, pooled, problem.val_weight).average_precision

    def scores(self, wanted: Sequence[int]) -> dict[int, ScorePair]:
        """Scores of treatments, by their numbers."""
        chosen = [self.places.index(place) for place in wanted]
        if not chosen:
            return {}
        threshold, test = self._score(self.fold.x_threshold, chosen), self._score(self.fold.x_test, chosen)
        return {place: (threshold[i], test[i]) for i, place in enumerate(wanted)}

    def _score(self, x: np.ndarray, chosen: list[int]) -> np.ndarray:
        """(chosen, n, K)."""
        pieces = [self.stack.score(x[first : first + SCORE_ROWS])[chosen] for first in range(0, len(x), SCORE_ROWS)]
        return self._natural(np.concatenate(pieces, axis=1), self._stream_prior[chosen])

    @staticmethod
    def _natural(score: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """Probabilities (M, n, K) times ``prior`` (M, K), normalised."""
        score = score * prior[:, None]
        return np.asarray(score / score.sum(axis=2, keepdims=True))


def _losses(treatments: Sequence[Treatment], counts: Floats) -> Losses:
    """The loss of each treatment."""
    prior, shape = class_prior(counts), (len(treatments), len(counts))
    class_weight, logit_offset, focal_gamma = np.ones(shape), np.zeros(shape), np.zeros(len(treatments))
    for index, treatment in enumerate(treatments):
        if treatment.loss == "class_weight":
            class_weight[index] = balanced_class_weight(counts)
        elif treatment.loss == "logit_adjustment":
            logit_offset[index] = np.log(np.maximum(prior, 1e-9))
        elif treatment.loss == "focal":
            focal_gamma[index] = FOCAL_GAMMA
    kinds = {treatment.loss for treatment in treatments}  # leaving out what no treatment needs saves time
    return Losses(
        class_weight=class_weight if "class_weight" in kinds else None,
        logit_offset=logit_offset if "logit_adjustment" in kinds else None,
        focal_gamma=focal_gamma if "focal" in kinds else None,
    )


def resampled(problem: PopulationProblem, rows: Rows, seed: int) -> PopulationProblem:
    """``problem`` with other training rows and the same validation rows.

    Args:
        problem: The problem.
        rows: ``under`` thins class 0 to the number of the other rows. ``smote`` adds synthetic rows to the
            other classes until together they have as many rows as class 0, in their proportions; a class of
            one row has no neighbour and stays as it is.
        seed: Random seed.
    """
    if rows == "all":
        return problem
    x, y = problem.x_train, problem.y_train
    common, others = np.flatnonzero(y == 0), np.flatnonzero(y > 0)
    if rows == "under":
        kept = generator(seed, "under-sampling").choice(common, min(len(others), len(common)), replace=False)
        chosen = np.sort(np.concatenate([kept, others]))
        x, y = x[chosen], y[chosen]
    else:
        from imblearn.over_sampling import SMOTE

        count = np.bincount(y, minlength=problem.num_classes)
        wanted = {c: max(int(n), round(len(common) * n / len(others))) for c, n in enumerate(count) if c > 0 and n > 1}
        neighbours = min([SMOTE_NEIGHBOURS, *(int(count[c]) - 1 for c in wanted)])
        if wanted:
            sampler = SMOTE(sampling_strategy=wanted, k_neighbors=neighbours, random_state=integer_seed(seed, "smote"))
            x, y = sampler.fit_resample(x, y)
    ones = np.ones(len(y))
    return PopulationProblem(
        x.astype(np.float32), y.astype(np.int64), problem.x_val, problem.y_val, ones, problem.val_weight, problem.num_classes
    )
