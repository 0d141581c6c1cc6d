"""The population as student of a comparison: all arms of a seed are siblings in one stack, so what differs is what their policies did.

One stack a seed rather than one for all: groups of a stack share their dropout masks, seeds must not. SMOTE and random under-sampling train on other
rows, hence in stacks of their own; the same seed gives them the same initial weights and random numbers.

Baselines' sources: SMOTE, Chawla et al. 2002, by imbalanced-learn on the encoded rows; focal loss, Lin et al. 2017, gamma 2; logit adjustment, Menon et al.
2021, tau 1; class weights n / (K n_c), as scikit-learn's "balanced".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from balancer.comparison.figures import JudgedRows
from balancer.comparison.treatments import Arm, Rows, ScorePair, Tick, Trained
from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.envs.population import PopulationStack, StudentKinds
from balancer.envs.problem import PopulationProblem, RowEncoder, encoded_problem
from balancer.envs.student_losses import Losses
from balancer.envs.vec_env import PopulationEpisode
from balancer.evaluation.calibration import pooled_score
from balancer.sampling.observation import Observation
from balancer.sampling.policies import OutsideTraining, answered, policy_notes
from balancer.sampling.scores import ranking_metrics
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import Floats, SamplingWeights, class_prior, start_weights
from balancer.training.fitting import baseline_scheme

FOCAL_GAMMA = 2.0
SCORE_ROWS = 16_384
"""Rows scored at once; of a stack's scores only those asked for are kept."""
SMOTE_NEIGHBOURS = 5


@dataclass(frozen=True)
class PopulationTask:
    """A window as the population sees it."""

    problem: PopulationProblem
    x_threshold: np.ndarray
    """(n, F) features of the threshold half, all of it."""
    x_test: np.ndarray
    """(t, F) features of the test rows, none left out."""
    judged: JudgedRows

    @classmethod
    def of(cls, dataset: Dataset, seed: int) -> PopulationTask:
        """From a data set that was split; encodings come from its training rows alone."""
        store = dataset.store
        train, reward, held, test = (dataset.rows(split) for split in (Split.TRAIN, Split.REWARD, Split.THRESHOLD, Split.TEST))
        problem, encoder = encoded_problem(
            store.values[train],
            store.label[train].astype(np.int64),
            store.values[reward],
            store.label[reward].astype(np.int64),
            num_numeric=store.num_numeric,
            num_classes=len(dataset.schema.classes),
            seed=integer_seed(seed, "problem"),
        )
        return cls(problem, _encoded(encoder, store.values, held), _encoded(encoder, store.values, test), JudgedRows.of(dataset))


def _encoded(encoder: RowEncoder, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Features of ``rows``, a piece at a time: the encoder works in float64."""
    pieces = np.array_split(rows, max(1, len(rows) // SCORE_ROWS))
    return np.concatenate([encoder.transform(values[piece]) for piece in pieces])


class PopulationStudent:
    """Students of one kind on one task.

    Args:
        task: the window. epochs, steps_per_epoch, batch_size: budget of every arm. device: where the stack lives.
    """

    side_by_side = True

    def __init__(self, task: PopulationTask, *, epochs: int, steps_per_epoch: int, batch_size: int, device: str = "cpu") -> None:
        self.task, self.epochs, self.steps_per_epoch, self.batch_size, self.device = task, epochs, steps_per_epoch, batch_size, device

    @property
    def counts(self) -> Floats:
        """(K,) rows of each class in the data set's training part."""
        return self.task.problem.train_counts

    def train(self, arms: Sequence[Arm], seed: int, tick: Tick) -> Trained:
        """Train all arms; see :class:`balancer.comparison.treatments.Student`."""
        kinds: list[Rows] = list(dict.fromkeys(arm.rows for arm in arms))
        stacks = [_Stack(self, rows, [i for i, arm in enumerate(arms) if arm.rows == rows], arms, seed, tick) for rows in kinds]

        def gathered(name: str) -> Floats:
            values = np.zeros(len(arms))
            for stack in stacks:
                values[stack.places] = getattr(stack, name)
            return values

        def scores(wanted: Sequence[int]) -> list[ScorePair]:
            found: dict[int, ScorePair] = {}
            for stack in stacks:
                found |= stack.scores([index for index in wanted if index in stack.places])
            return [found[index] for index in wanted]

        notes = tuple(tuple(policy_notes(arm.policy)) for arm in arms)
        return Trained(gathered("reward"), gathered("minority_share"), gathered("hardness"), notes, scores)


class _Stack:
    """The arms of one kind of rows, trained; ``places`` are theirs among all arms."""

    def __init__(self, student: PopulationStudent, rows: Rows, places: list[int], arms: Sequence[Arm], seed: int, tick: Tick) -> None:
        self.task, self.places = student.task, places
        own = [arms[place] for place in places]
        problem = resampled(self.task.problem, rows, seed)
        self.stack = PopulationStack(
            problem,
            siblings=len(own),
            groups=1,
            batch_size=student.batch_size,
            seed=integer_seed(seed, "comparison"),
            device=student.device,
            kinds=StudentKinds.fixed(len(own), learning_rate=6e-3, weight_decay=1e-3, dropout=0.1, width=32),
            losses=_losses(own, student.counts),
        )
        walk = PopulationEpisode(self.stack, epochs=student.epochs, steps_per_epoch=student.steps_per_epoch)
        weights = _walk(walk, own, tick)
        score = self.stack.score(problem.x_val)
        pooled = pooled_score(score.reshape(-1, problem.num_classes)).reshape(len(own), -1)
        self.reward = ranking_metrics(problem.y_val > 0, pooled, problem.val_weight).average_precision
        self.minority_share = np.array([1.0 - each.share[0] for each in weights])
        self.hardness = np.array([each.hardness for each in weights])

    def scores(self, wanted: Sequence[int]) -> dict[int, ScorePair]:
        """Scores by place."""
        chosen = [self.places.index(place) for place in wanted]
        if not chosen:
            return {}
        threshold, test = self._score(self.task.x_threshold, chosen), self._score(self.task.x_test, chosen)
        return {place: (threshold[i], test[i]) for i, place in enumerate(wanted)}

    def _score(self, x: np.ndarray, chosen: list[int]) -> np.ndarray:
        """(chosen, n, K)."""
        pieces = [self.stack.score(x[first : first + SCORE_ROWS])[chosen] for first in range(0, len(x), SCORE_ROWS)]
        return np.concatenate(pieces, axis=1)


def _walk(walk: PopulationEpisode, arms: Sequence[Arm], tick: Tick) -> list[SamplingWeights]:
    """Train to the end; the weights of the last epoch."""
    weights = [start_weights(walk.prior, walk.share_limit)] * len(arms)
    observation = walk.first(*stacked(weights))
    for epoch in range(walk.epochs):
        for index, arm in enumerate(arms):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OutsideTraining)  # said in the cell's notes instead
                answer = arm.policy.act(Observation(observation.per_class[index], observation.shared[index]))
            weights[index] = answered(weights[index], answer, walk.prior, walk.share_limit)
        observation, _ = walk.train_epoch(*stacked(weights))
        tick(f"{len(arms)} side by side, epoch {epoch + 1}/{walk.epochs}" if len(arms) > 1 else f"epoch {epoch + 1}/{walk.epochs}")
    return weights


def stacked(weights: Sequence[SamplingWeights]) -> tuple[Floats, Floats, Floats]:
    """Shares (M, K), hardness (M,), floor (M,) of M weights."""
    return np.stack([w.share for w in weights]), np.array([w.hardness for w in weights]), np.array([w.floor for w in weights])


def _losses(arms: Sequence[Arm], counts: Floats) -> Losses:
    """What each arm minimises."""
    prior, shape = class_prior(counts), (len(arms), len(counts))
    class_weight, logit_offset, focal_gamma = np.ones(shape), np.zeros(shape), np.zeros(len(arms))
    for index, arm in enumerate(arms):
        if arm.loss == "class_weight":
            balanced = baseline_scheme("class_weight", counts).class_weight
            assert balanced is not None
            class_weight[index] = balanced
        elif arm.loss == "logit_adjustment":
            logit_offset[index] = np.log(np.maximum(prior, 1e-9))
        elif arm.loss == "focal":
            focal_gamma[index] = FOCAL_GAMMA
    kinds = {arm.loss for arm in arms}  # a part that no arm needs costs nothing when it is left out
    return Losses(
        class_weight=class_weight if "class_weight" in kinds else None,
        logit_offset=logit_offset if "logit_adjustment" in kinds else None,
        focal_gamma=focal_gamma if "focal" in kinds else None,
    )


def resampled(problem: PopulationProblem, rows: Rows, seed: int) -> PopulationProblem:
    """``problem`` with other training rows: once thinned (``under``) or once multiplied (``smote``), the validation rows as they are.

    SMOTE fills the classes but the first up to the number of the first, in their own proportions; a class of one row has no neighbour and stays as it is.
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
