"""The detector: the weighted mean of log-odds, class probabilities that sum to 1, and its stored weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.split import Split
from balancer.errors import CorruptFileError
from balancer.evaluation.calibration import Calibration
from balancer.inference import detector as detectors
from balancer.inference.decision import NETWORK, STAGE2, Decision, fraud_score
from balancer.inference.detector import Detector, log_odds, with_kinds
from balancer.inference.scoring import score_rows
from balancer.inference.tree_stages import TreeStages
from balancer.models import Classifier, ModelConfig
from tests.data.test_features import SPEC, make_table
from tests.inference.hand_stages import stages_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(make_table(300, 1), SPEC, score_fields=True)


@pytest.fixture(scope="module")
def stages(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TreeStages:
    made = stages_of(dataset, tmp_path_factory.mktemp("trees"))
    made.fill(dataset)
    return made


def network(dataset: Dataset, **changes: Any) -> Classifier:
    torch.manual_seed(0)
    schema = dataset.schema
    edges = [[-1.0, 0.0, 1.0, 5.0]] * len(schema.numeric_fields)
    parts: dict[str, Any] = {"history_length": 6, "d_model": 16, "num_heads": 2, "margin": "stage1_logit"} | changes
    return Classifier(ModelConfig(schema.numeric_fields, schema.categorical_fields, schema.cardinalities, edges, **parts)).eval()


def scores_of(logit: np.ndarray, classes: int) -> np.ndarray:
    """Class probabilities of a network (n, K) float32 with these log-odds of fraud."""
    rng = np.random.default_rng(0)
    kinds = rng.dirichlet(np.ones(classes - 1), len(logit))
    return with_kinds(logit, kinds).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
def test_classes_sum_to_1_and_log_odds_are_the_weighted_mean(
    classes: int, weight: float, dataset: Dataset, stages: TreeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector(None, stages, {NETWORK: weight, STAGE2: 1 - weight}, classes)
    given = np.array([-800.0, -60.0, -20.0, -3.0, -1e-9, 0.0, 2.0, 15.0, 60.0, 800.0])
    trees = np.array([-900.0, -40.0, -5.0, 3.0, 0.0, 0.0, -2.0, 15.0, 30.0, 700.0])
    monkeypatch.setattr(TreeStages, "second_logit", lambda self, values: trees[: len(values)])
    own = scores_of(given, classes)
    found = detector.combine(own, dataset.store.values[:10])
    assert found.shape == (10, classes) and found.dtype == np.float64
    assert np.isfinite(found).all() and (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    expected = weight * log_odds(own) + (1 - weight) * trees
    middle = np.abs(expected) < 600
    shown = np.log(found[middle, 1:].sum(1)) - np.log(found[middle, 0])
    np.testing.assert_allclose(shown, expected[middle], atol=1e-6)
    if classes > 2:  # the kinds are the network's
        use = (own[:, 1:].sum(1) > 1e-20) & (expected > -600)
        shares = [each[use, 1:] / each[use, 1:].sum(1, keepdims=True) for each in (found, own.astype(np.float64))]
        np.testing.assert_allclose(*shares)


@pytest.mark.parametrize("classes", [2, 6])
def test_more_log_odds_never_give_a_lower_score(classes: int) -> None:
    logit = np.concatenate([np.linspace(-740, 740, 2001), [-1e6, -1e5, 1e5, 1e6]])
    logit.sort()
    score = fraud_score(with_kinds(logit, np.full((len(logit), classes - 1), 1 / (classes - 1))))
    assert (np.diff(score) >= 0).all()
    assert score[0] == 0 and score[-1] == 1
    resolved = (logit[1:] < 30) & (logit[:-1] > -740)
    assert (np.diff(score)[resolved] > 0).all()


def test_log_odds_of_a_network_survive_float32() -> None:
    logit = np.array([-60.0, -30.0, -1.0, 0.0, 1.0, 30.0, 60.0])
    for classes in (2, 6):
        np.testing.assert_allclose(log_odds(scores_of(logit, classes)), logit, atol=2e-6)
    assert np.isfinite(log_odds(np.array([[1.0, 0.0], [0.0, 1.0]]))).all()
    assert log_odds(np.array([[0.25, 0.75]]))[0] == pytest.approx(math.log(3))


@pytest.mark.parametrize("form", ["rows", "histories"])
def test_a_table_and_a_stream_give_what_the_members_give(form: str, dataset: Dataset, stages: TreeStages) -> None:
    model = network(dataset, form=form, attention="dense" if form == "rows" else "sparse", attention_window=4, global_nodes=2)
    detector = Detector(model, stages, {NETWORK: 0.5, STAGE2: 0.5})
    rows = dataset.rows(Split.TEST)
    found = detector.scores(dataset, rows, device=CPU)
    half = 0.5 * log_odds(score_rows(model, dataset, rows, device=CPU)) + 0.5 * stages.second_logit(dataset.store.values[rows])
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-half)), rtol=1e-9)
    assert len(np.unique(found[:, 1])) > 20
    read: list[int] = []
    streamed = detector.streamed_scores(dataset, rows, device=CPU, progress=read.append)
    np.testing.assert_allclose(streamed, found, atol=1e-5)


def test_trees_alone_give_the_same_bits_in_a_table_a_stream_and_pieces(
    dataset: Dataset, stages: TreeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, rows = Detector(None, stages, {STAGE2: 1.0}), np.arange(299, -1, -3)
    found = detector.scores(dataset, rows, device=CPU)
    np.testing.assert_array_equal(detector.streamed_scores(dataset, rows, device=CPU), found)
    expected = 1 / (1 + np.exp(-stages.second_logit(dataset.store.values[rows])))
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-12)
    monkeypatch.setattr(detectors, "AT_ONCE", 7)
    np.testing.assert_array_equal(detector.scores(dataset, rows, device=CPU), found)
    assert detector.scores(dataset, rows[:0], device=CPU).shape == (0, 2)


def test_a_network_alone_is_not_changed(dataset: Dataset) -> None:
    model, rows = network(dataset, margin=""), np.arange(50)
    found = Detector(model, None).scores(dataset, rows, device=CPU)
    np.testing.assert_array_equal(found, score_rows(model, dataset, rows, device=CPU))
    assert found.dtype == np.float32


def stored(folder: Path, **values: object) -> Decision:
    Decision(Calibration("identity", 1.0, 1.0, 0.0), 0.4).save(folder)
    content = json.loads((folder / "decision.json").read_text())
    (folder / "decision.json").write_text(json.dumps(content | values))
    return Decision.load(folder)


def test_members_are_stored_and_survive_another_threshold(tmp_path: Path) -> None:
    assert stored(tmp_path).members is None
    assert "members" not in json.loads((tmp_path / "decision.json").read_text())
    decision = stored(tmp_path, members={"network": 0.15, "stage2": 0.85})
    assert decision.members == {NETWORK: 0.15, STAGE2: 0.85}
    moved = decision.with_threshold(0.7, "by hand")
    moved.save(tmp_path)
    again = Decision.load(tmp_path)
    assert again == moved and again.members == decision.members and again.tuned == 0.4
    assert again.with_threshold(0.4, "back") == decision


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"network": 0.5},
        {"network": 0.5, "stage2": 0.6},
        {"network": 1.5, "stage2": -0.5},
        {"network": 0.5, "trees": 0.5},
        {"network": "all"},
        {"network": float("nan"), "stage2": 1.0},
        {"stage2": True},
        ["network"],
        1.0,
    ],
)
def test_members_that_are_no_weights_are_refused(members: object, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"decision\.json has members without valid weights"):
        stored(tmp_path, members=members)
