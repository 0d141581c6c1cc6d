"""What the fits of the trees see, how rows are thinned, and how network and trees are weighted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate
from balancer.data.split import Split
from balancer.inference.decision import NETWORK, STAGE2
from balancer.inference.detector import with_kinds
from balancer.inference.tree_stages import FOLDS, TreeStages, row_folds
from balancer.runs.results import Scores
from balancer.training import tree_fitting, tree_stage
from balancer.training.tree_fitting import enough_frauds, few_frauds, fit_fold, fit_kinds, fit_second, second_members
from balancer.training.tree_stage import FEW_WEIGHT, SMALL_WEIGHT, STEPS, blend_weights, run_scores, stage_scores
from balancer.trees import TreeEnsemble
from tests.inference.hand_stages import stages_of


def loaded(labels: str = "binary", rows: int = 2_400, seed: int = 3) -> Dataset:
    frame = simulate(rows, seed=seed, fraud_rate=0.08, labels=labels)  # type: ignore[arg-type]
    roles = {"gap": "1d"} | ({} if labels == "binary" else {"label": "fraud_type", "negative": "legitimate"})
    return load_dataset(frame, resolve_spec(frame, overrides=roles), score_fields=True)


@pytest.fixture
def dataset() -> Dataset:
    return loaded()


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_fitting, "FIXED_ROUNDS", 8)
    monkeypatch.setattr(tree_fitting, "MAX_ROUNDS", 30)


def silent(done: int, most: int) -> None:
    """Progress that nobody sees."""


def fold(dataset: Dataset, number: int = 0, seed: int = 1) -> str:
    return fit_fold(dataset.without_score_fields(), number, seed=seed, threads=1, progress=silent)


def second(dataset: Dataset, member: int = 0) -> str:
    return fit_second(dataset, member, seed=1, threads=1, progress=silent)


def flipped(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """The data set with other labels, and amounts a thousand times higher, in some rows."""
    label, values = dataset.store.label.copy(), dataset.store.values.copy()
    label[rows] = np.where(label[rows] > 0, 0, 1)
    values[rows] *= 1000
    return replace(dataset, store=replace(dataset.store, label=label, values=values))


def test_a_fold_is_fitted_without_the_rows_of_its_entities(dataset: Dataset) -> None:
    train, folds = dataset.rows(Split.TRAIN), row_folds(dataset)
    own, other = train[folds[train] == 0], train[folds[train] == 1]
    assert len(own) > 100 and len(other) > 100
    whole = fold(dataset)
    assert fold(flipped(dataset, own)) == whole
    assert fold(flipped(dataset, other)) != whole
    later = np.flatnonzero(dataset.split != Split.TRAIN)
    assert fold(flipped(dataset, later)) == whole  # the number of trees is fixed
    assert len({whole, fold(dataset, 1), fold(dataset, 2), fold(dataset, seed=2)}) == 4
    assert fold(loaded()) == whole


def test_the_second_stage_is_fitted_on_the_training_rows(dataset: Dataset) -> None:
    whole = second(dataset)
    assert second(flipped(dataset, np.flatnonzero(dataset.split != Split.TRAIN))) == whole
    assert second(flipped(dataset, dataset.rows(Split.TRAIN)[:50])) != whole
    assert second(dataset, 1) != whole and second_members(dataset) == 2
    assert TreeEnsemble.from_text(whole).num_features == dataset.store.values.shape[1]
    dataset.fill_score_fields(np.where(dataset.store.label > 0, 3.0, -3.0))
    assert second(dataset) != whole


def test_with_few_frauds_trees_are_small(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a leaf of 200 rows would leave nothing to split, a tree has splits."""
    small = TreeEnsemble.from_text(second(dataset))
    assert max(len(tree.leaf_value) for tree in small.model.trees) <= tree_fitting.SMALL["num_leaves"]
    rows = len(dataset.rows(Split.TRAIN))
    least = min(int(tree.leaf_count.min()) for tree in small.model.trees if len(tree.feature))
    # LightGBM estimates how many rows a leaf has.
    assert 0.8 * rows / tree_fitting.ROWS_PER_LEAF < least < tree_fitting.SMALL_LEAF
    monkeypatch.setattr(tree_fitting, "SMALL_FRAUDS", 5)
    usual = TreeEnsemble.from_text(second(dataset))
    assert min(int(tree.leaf_count.min()) for tree in usual.model.trees if len(tree.feature)) > 1.5 * least


def test_with_enough_frauds_the_reward_rows_stop_a_fit(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert few_frauds(dataset) and TreeEnsemble.from_text(second(dataset)).num_trees == 8
    monkeypatch.setattr(tree_fitting, "FEW_FRAUDS", 5)
    monkeypatch.setattr(tree_fitting, "PATIENCE", 4)
    assert not few_frauds(dataset) and second_members(dataset) == 1
    seen: list[tuple[int, int]] = []
    text = fit_second(dataset, 0, seed=1, threads=1, progress=lambda done, most: seen.append((done, most)))
    assert 1 <= TreeEnsemble.from_text(text).num_trees <= len(seen) <= 30 and seen[-1] == (len(seen), 30)
    held = np.flatnonzero(np.isin(dataset.split, (Split.THRESHOLD, Split.TEST, Split.GAP)))
    assert second(flipped(dataset, held)) == text
    assert second(flipped(dataset, dataset.rows(Split.REWARD))) != text
    assert fold(flipped(dataset, held)) == fold(dataset)


def test_thinned_rows_keep_all_frauds_and_stand_for_all_others() -> None:
    label = np.zeros(1000, np.int16)
    label[::50] = 1 + np.arange(20) % 3
    rows = np.arange(100, 1000)
    thin = tree_fitting._thinned(rows, label, 120, np.random.default_rng(0))
    assert set(rows[label[rows] > 0]) <= set(thin.rows.tolist()) <= set(rows.tolist())
    assert (np.diff(thin.rows) > 0).all() and (label[thin.rows] == 0).sum() == 120
    assert thin.weight is not None and (thin.weight[label[thin.rows] > 0] == 1).all()
    assert thin.weight[label[thin.rows] == 0].sum() == pytest.approx((label[rows] == 0).sum())
    again = tree_fitting._thinned(rows, label, 120, np.random.default_rng(0))
    np.testing.assert_array_equal(thin.rows, again.rows)
    whole = tree_fitting._thinned(rows, label, 882, np.random.default_rng(0))
    np.testing.assert_array_equal(whole.rows, rows)
    assert whole.weight is None


def test_thinning_changes_the_first_stage_alone(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first, two = fold(dataset), second(dataset)
    monkeypatch.setattr(tree_fitting, "FIRST_NEGATIVES", 300)
    assert fold(dataset) != first and fold(dataset) == fold(dataset)
    assert second(dataset) == two


def test_kinds_are_learned_from_frauds_of_the_training_rows() -> None:
    dataset = loaded("types", rows=4_000)
    text = fit_kinds(dataset, seed=1, threads=1)
    kinds = TreeEnsemble.from_text(text)
    assert kinds.num_outputs == len(dataset.schema.classes) - 1 == 4
    store, train = dataset.store, dataset.rows(Split.TRAIN)
    frauds = train[store.label[train] > 0]
    assert (kinds.raw(store.values[frauds]).argmax(1) + 1 == store.label[frauds]).mean() > 0.9
    assert fit_kinds(flipped(dataset, train[store.label[train] == 0][:0]), seed=1, threads=1) == text
    values = store.values.copy()
    values[store.label == 0] *= 7
    assert fit_kinds(replace(dataset, store=replace(store, values=values)), seed=1, threads=1) == text


def test_every_fold_needs_frauds(dataset: Dataset) -> None:
    assert enough_frauds(dataset, 3)
    assert not enough_frauds(dataset, 500)


@pytest.fixture
def stages(dataset: Dataset, tmp_path: Path) -> TreeStages:
    made = stages_of(dataset, tmp_path / "trees")
    made.fill(dataset)
    return made


def network_scores(dataset: Dataset, logit: np.ndarray) -> Scores:
    """Scores of a network with these log-odds (N,) of the store rows."""
    parts = [with_kinds(logit[dataset.rows(split)], np.ones((len(dataset.rows(split)), 1))) for split in (Split.THRESHOLD, Split.TEST)]
    reward = with_kinds(logit[dataset.rows(Split.REWARD)], np.ones((len(dataset.rows(Split.REWARD)), 1)))
    return Scores(parts[0], parts[1], [{"epoch": 1}], reward)


@pytest.mark.parametrize(("quality", "of_trees"), [(0.0, 1.5), (0.7, 1.2), (3.0, 0.0)])
def test_the_weight_of_the_network_is_the_best_on_the_reward_rows(
    quality: float, of_trees: float, dataset: Dataset, stages: TreeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows, rng = dataset.store, dataset.rows(Split.REWARD), np.random.default_rng(0)
    fraud = store.label > 0
    trees = rng.normal(size=len(store)) + of_trees * fraud
    logit = rng.normal(size=len(store)) + quality * fraud
    monkeypatch.setattr(TreeStages, "second_logit", lambda self, values: trees[rows])
    given = network_scores(dataset, logit)
    assert blend_weights(stages, dataset, given) == {NETWORK: SMALL_WEIGHT, STAGE2: 1 - SMALL_WEIGHT}
    monkeypatch.setattr(tree_stage, "SMALL_FRAUDS", 5)
    assert blend_weights(stages, dataset, given) == {NETWORK: FEW_WEIGHT, STAGE2: 1 - FEW_WEIGHT}
    monkeypatch.setattr(tree_fitting, "FEW_FRAUDS", 2)
    found = blend_weights(stages, dataset, given)
    assert sum(found.values()) == pytest.approx(1) and set(found) == {NETWORK, STAGE2}
    best = [
        average_precision_score(fraud[rows], step / STEPS * logit[rows] + (1 - step / STEPS) * trees[rows]) for step in range(STEPS + 1)
    ]
    assert best[round(found[NETWORK] * STEPS)] == pytest.approx(max(best), abs=1e-9)
    assert quality != 3.0 or found[NETWORK] > 0.5
    assert quality != 0.0 or found[NETWORK] < 0.5


def test_scores_of_the_run_are_the_detectors(dataset: Dataset, stages: TreeStages) -> None:
    logit = np.random.default_rng(0).normal(size=len(dataset.store))
    given = network_scores(dataset, logit)
    found = run_scores(stages, dataset, {NETWORK: 0.25, STAGE2: 0.75}, given)
    assert found.figures == given.figures
    for split, scores in ((Split.THRESHOLD, found.threshold), (Split.TEST, found.test)):
        rows = dataset.rows(split)
        mean = 0.25 * logit[rows] + 0.75 * stages.second_logit(dataset.store.values[rows])
        np.testing.assert_allclose(scores[:, 1], 1 / (1 + np.exp(-mean)), rtol=1e-9)
    alone = run_scores(stages, dataset, blend_weights(stages, dataset, None), None)
    parts = stage_scores(stages, dataset)
    np.testing.assert_array_equal(alone.test[:, 1], parts["stage2"].test)
    rows = dataset.rows(Split.TEST)
    first = 1 / (1 + np.exp(-dataset.store.values[rows, 0].astype(np.float64)))
    np.testing.assert_allclose(parts["stage1"].test, first, rtol=1e-9)
    assert tree_stage.STEPS == STEPS and FOLDS == 3


def test_too_few_frauds_are_counted(dataset: Dataset) -> None:
    rows = dataset.rows(Split.TRAIN)
    fold, fraud = row_folds(dataset)[rows], dataset.store.label[rows] > 0
    least = min(int((fraud & (fold == number)).sum()) for number in range(FOLDS))
    assert enough_frauds(dataset, least) and not enough_frauds(dataset, least + 1)
    text = tree_fitting.too_few(dataset, least + 1)
    assert text == (
        f"a fold of the training rows has fewer than {least + 1} frauds ({least}, and each of the {FOLDS} folds needs {least + 1})"
    )
    label = np.where(dataset.store.label > 0, 0, 1).astype(dataset.store.label.dtype)
    assert f"{least + 1} legitimate rows ({least}," in tree_fitting.too_few(
        replace(dataset, store=replace(dataset.store, label=label)), least + 1
    )
