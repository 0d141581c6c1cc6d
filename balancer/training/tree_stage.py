"""The stages of ``balancer train`` that fit boosted trees, each stored as soon as it is finished.

The first stage fills the score fields of the data set; everything after it reads them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.evaluation.baselines import MAX_ROUNDS
from balancer.files import write_text
from balancer.inference.decision import NETWORK, STAGE2
from balancer.inference.detector import Detector, log_odds, with_kinds
from balancer.inference.tree_stages import FOLDS, TREES_FOLDER, TreeStages
from balancer.names import counted
from balancer.runs.progress import StageClock, TrainingProgress
from balancer.runs.results import Scores
from balancer.runs.run_folder import RunFolder
from balancer.runs.work_files import WorkFiles
from balancer.training.preparation import Prepared
from balancer.training.tree_fitting import (
    FIXED_ROUNDS,
    KIND_ROUNDS,
    SMALL_FRAUDS,
    Progress,
    few_frauds,
    fit_fold,
    fit_kinds,
    fit_second,
    second_members,
    train_frauds,
)
from balancer.trees import TreeEnsemble

STEPS = 20
"""The weight of the network in the blend is a multiple of 1 / STEPS."""
FEW_WEIGHT, SMALL_WEIGHT = 0.5, 0.2
"""Weight of the network where validation has too few frauds to choose it; the second with fewer than
`SMALL_FRAUDS` to train on, because the network needs more frauds than the trees."""


def fit_stages(prepared: Prepared, folder: RunFolder, files: WorkFiles, clock: StageClock, progress: TrainingProgress) -> TreeStages:
    """Fit both stages, or read what was fitted before, and fill the score fields.

    Args:
        prepared: The run; its data set has score fields.
        folder: Where the trees are stored: under ``work/`` while they are fitted, at the end in ``trees/``.
        files: What is finished there.
        clock: Measures each stage.
        progress: Display.
    """
    dataset, seed, threads = prepared.dataset, prepared.config.seed, prepared.threads
    base = dataset.without_score_fields()
    usual = FIXED_ROUNDS if few_frauds(dataset) else MAX_ROUNDS

    def fitted(name: str, title: str, fit: Callable[[Progress], str], rounds: int = usual) -> TreeEnsemble:
        path = folder.work / f"{name}.txt"
        if files.readable(path, TreeEnsemble.read):
            return TreeEnsemble.read(path)
        with progress.stage(title, rounds) as advance:
            write_text(path, fit(lambda done, most: advance(min(done, most - 1))))
            files.keep(path)
            trees = TreeEnsemble.read(path)
            each = f", {trees.num_trees // trees.num_outputs} for each kind" if trees.num_outputs > 1 else ""
            advance(rounds, f"kept {counted(trees.num_trees, 'tree')}{each}")
        return trees

    with clock.stage("stage1"):
        folds = tuple(
            fitted(
                f"first-{number}",
                f"trees, first stage, fold {number + 1} of {FOLDS}",
                lambda step, number=number: fit_fold(base, number, seed=seed, threads=threads, progress=step),  # type: ignore[misc]
            )
            for number in range(FOLDS)
        )
        train_end = float(dataset.store.time[dataset.rows(Split.TRAIN)].max())
        TreeStages(folds, (), train_end).fill(dataset)
    with clock.stage("stage2"):
        second = tuple(
            fitted(
                f"second-{member}",
                "trees, second stage" + (f", {member + 1} of {second_members(dataset)}" if second_members(dataset) > 1 else ""),
                lambda step, member=member: fit_second(dataset, member, seed=seed, threads=threads, progress=step),  # type: ignore[misc]
            )
            for member in range(second_members(dataset))
        )
        kinds = None
        if prepared.learner == "trees" and len(dataset.schema.classes) > 2:
            kinds = fitted(
                "kinds", "trees, kinds of fraud", lambda step: fit_kinds(dataset, seed=seed, threads=threads, progress=step), KIND_ROUNDS
            )
        stages = TreeStages(folds, second, train_end, kinds)
        stages.save(folder.path / TREES_FOLDER, dataset.schema, folder.work)
    return stages


def stage_scores(stages: TreeStages, dataset: Dataset) -> dict[str, Scores]:
    """Fraud probabilities of each stage by its name, ``stage1`` and ``stage2``."""
    store = dataset.store

    def scores(logit: Callable[[np.ndarray], np.ndarray]) -> Scores:
        held, test = (_fraud(logit(dataset.rows(split))) for split in (Split.THRESHOLD, Split.TEST))
        return Scores(held, test, [])

    return {
        "stage1": scores(lambda rows: store.values[rows, 0].astype(np.float64)),
        "stage2": scores(lambda rows: stages.second_logit(store.values[rows])),
    }


def blend_weights(stages: TreeStages, dataset: Dataset, network: Scores | None) -> dict[str, float]:
    """Weight of network and second stage with the best average precision on the reward rows.

    Where these have too few frauds, the weight is fixed.

    Args:
        stages: The trees.
        dataset: The data set with filled score fields.
        network: Scores of the network; None without one.
    """
    if network is None:
        return {STAGE2: 1.0}
    if few_frauds(dataset):
        weight = SMALL_WEIGHT if train_frauds(dataset) < SMALL_FRAUDS else FEW_WEIGHT
        return {NETWORK: weight, STAGE2: 1 - weight}
    assert network.reward is not None
    rows = dataset.rows(Split.REWARD)
    fraud = dataset.store.label[rows] > 0
    one, two = log_odds(network.reward), stages.second_logit(dataset.store.values[rows])
    found = [average_precision_score(fraud, step / STEPS * one + (1 - step / STEPS) * two) for step in range(STEPS + 1)]
    weight = int(np.argmax(found)) / STEPS
    return {NETWORK: weight, STAGE2: 1 - weight}


def run_scores(stages: TreeStages, dataset: Dataset, members: dict[str, float], network: Scores | None) -> Scores:
    """Scores of the detector.

    Args:
        stages: Its trees.
        dataset: The data set with filled score fields.
        members: Weights of network and second stage.
        network: Scores of the network; None without one.
    """
    detector = Detector(None, stages, members, len(dataset.schema.classes))
    held, test = (
        detector.combine(given, dataset.store.values[dataset.rows(split)])
        for split, given in (
            (Split.THRESHOLD, None if network is None else network.threshold),
            (Split.TEST, None if network is None else network.test),
        )
    )
    return Scores(held, test, [] if network is None else network.figures)


def _fraud(logit: np.ndarray) -> np.ndarray:
    """Fraud probabilities (n,) from log-odds (n,)."""
    fraud: np.ndarray = with_kinds(logit, np.ones((len(logit), 1)))[:, 1]
    return fraud
