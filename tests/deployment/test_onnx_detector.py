"""The graphs of a detector with boosted trees: every split decides as in `balancer.trees`, and network, trees
and blend give the scores of the detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from balancer.deployment.onnx_detector import FirstStage, add_trees, first_stage_file, write_first_stage
from balancer.errors import InputError
from balancer.inference.detector import Detector
from balancer.inference.tree_stages import TreeStages
from balancer.models import Classifier, SequenceBatch
from balancer.models.checks import example_config
from balancer.models.export.onnx_backend import OnnxClassifier, export_onnx, quantize_onnx
from balancer.trees import TreeEnsemble
from tests.trees.models import HandTree, random_values, train, written

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime", reason="exporting needs balancer[export]")


def first_stage(folder: Path, *ensembles: TreeEnsemble) -> FirstStage:
    write_first_stage(TreeStages(ensembles, (), 0.0), ensembles[0].feature_names, folder / "model.first.onnx")
    return FirstStage(folder / "model.first.onnx")


def check(found: np.ndarray, ensembles: tuple[TreeEnsemble, ...], values: np.ndarray) -> None:
    """The graph's log-odds are the mean of the trees', rounded to float32 and limited."""
    expected = np.mean([trees.raw(values) for trees in ensembles], axis=0)
    assert np.abs(found - np.clip(expected, -12, 12)).max() < 1e-6


@pytest.mark.parametrize(
    "settings",
    [{}, {"zero_as_missing": True}, {"use_missing": False}, {"max_cat_to_onehot": 1, "max_cat_threshold": 64}, {"max_cat_to_onehot": 200}],
    ids=lambda settings: ",".join(settings) or "default",
)
def test_every_kind_of_split_decides_as_the_trees_do(settings: dict[str, object], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fitted = random_values(rng, 3_000, 5, codes=(3, 4))
    ensembles = tuple(
        TreeEnsemble.from_text(train(fitted, rounds=20, codes=(3, 4), seed=seed, **settings).model_to_string()) for seed in (1, 2)
    )
    assert any(tree.categorical.any() for tree in ensembles[0].model.trees)
    values = random_values(rng, 5_000, 5, codes=(3, 4))
    # Codes that no training row had, fractions, negative and infinite ones.
    odd = np.array([90, 1_000, 2**24, 2**31, 3e38, np.inf, -np.inf, -0.5, -1, -7, 3.7, 64.99], np.float32)
    values[:1_000, 3] = rng.choice(odd, 1_000)
    values[500:1_500, 4] = rng.choice(odd, 1_000)
    check(first_stage(tmp_path, *ensembles).logit(values), ensembles, values)


def test_thresholds_between_two_numbers_of_float32(tmp_path: Path) -> None:
    near = np.nextafter(np.float32(0.3), np.float32(1))
    between = (float(np.float32(0.3)) + float(near)) / 2
    limits = [between, float(near), float("inf"), float("-inf"), 1e-36, -1e-36, 0.0]
    trees = [HandTree([0], [limit], [-1], [-2], [1.0 * 3**n, -1.0 * 3**n], [2]) for n, limit in enumerate(limits)]
    ensemble = TreeEnsemble.from_text(written([HandTree([], [], [], [], [0.25]), *trees], 1))
    odd = [0.3, near, np.nan, np.inf, -np.inf, 0, -0.0, 1e-40, -1e-40, 1e-35, -1e-35, 2e-35, -2e-35]
    values = np.array(odd, np.float32)[:, None]
    check(first_stage(tmp_path, ensemble).logit(values), (ensemble,), values)


def test_trees_without_a_split_add_a_constant(tmp_path: Path) -> None:
    ensemble = TreeEnsemble.from_text(written([HandTree([], [], [], [], [0.25]), HandTree([], [], [], [], [-2.0])], 2))
    assert first_stage(tmp_path, ensemble).logit(np.zeros((3, 2), np.float32)).tolist() == [-1.75] * 3


@pytest.fixture(scope="module", params=[2, 3])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    """A network of random weights on the margin of its first field, trees on the same three fields, and the
    network's file."""
    torch.manual_seed(0)
    classes = ("legitimate", "stolen", "sold")[: request.param]
    head = "binary" if request.param == 2 else "multiclass"
    model = Classifier(example_config(history_length=7, classes=classes, head=head)).eval()
    model = Classifier(type(model.config)(**{**vars(model.config), "margin": model.config.numeric_fields[0]})).eval()
    rng = np.random.default_rng(0)
    fitted = random_values(rng, 2_000, 3, codes=(2,))
    second = tuple(TreeEnsemble.from_text(train(fitted, rounds=30, codes=(2,), seed=seed).model_to_string()) for seed in (1, 2))
    base = TreeEnsemble.from_text(train(fitted[:, 1:], rounds=5, codes=(1,)).model_to_string())
    file = tmp_path_factory.mktemp("exported") / "network.onnx"
    export_onnx(model, file, logits=True)
    return Detector(model, TreeStages((base,), second, 0.0), {"network": 0.35, "stage2": 0.65}, request.param), file


def windows(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 3, size=(300, 7, 3)).astype(np.float32)
    values[..., 2] = rng.integers(0, 9, (300, 7))  # codes of 5 and later are unseen by the network
    values[rng.random((300, 7)) < 0.1, 1] = np.nan
    values[:30, :, 0] *= 30  # log-odds of which probabilities in float32 are 0 or 1
    return values, rng.integers(1, 8, 300)


def expected_scores(detector: Detector, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    assert detector.model is not None
    with torch.inference_mode():
        network = detector.model.probabilities(SequenceBatch.from_windows(values, lengths)).numpy()
    return detector.combine(network, values[np.arange(len(values)), lengths - 1])


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
def test_the_graph_gives_the_detectors_scores(exported: tuple[Detector, Path], weight: float, tmp_path: Path) -> None:
    detector, network = exported
    detector = replace(detector, members={"network": weight, "stage2": 1 - weight})
    file = tmp_path / "model.onnx"
    add_trees(network, file, detector)
    scorer, (values, lengths) = OnnxClassifier(file), windows()
    found = scorer.probabilities(values, lengths)
    assert np.abs(found - expected_scores(detector, values, lengths)).max() < 1e-5
    assert np.array_equal(scorer.probabilities(values[3:4], lengths[3:4]), found[3:4])
    with pytest.raises(InputError, match="lengths must be from 1 to 7"):
        scorer.probabilities(values[:2], np.array([0, 1]))


def in_runtime(file: Path, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The probabilities as a client of ONNX Runtime gets them, without this package."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"values": values, "lengths": lengths.astype(np.int64)})[0])


def test_a_length_outside_of_the_window_counts_as_the_nearest_one(exported: tuple[Detector, Path], tmp_path: Path) -> None:
    detector, network = exported
    add_trees(network, tmp_path / "model.onnx", detector)
    values, _ = windows()
    given, valid = np.array([-5, 0, 1, 7, 8, 2**40]), np.array([1, 1, 1, 7, 7, 7])
    found = in_runtime(tmp_path / "model.onnx", values[:6], given)
    np.testing.assert_array_equal(found, in_runtime(tmp_path / "model.onnx", values[:6], valid))
    # The network alone: a length below 1 is a window without rows.
    given, valid = np.array([-5, 8, 2**40]), np.array([0, 7, 7])
    np.testing.assert_array_equal(in_runtime(network, values[:3], given), in_runtime(network, values[:3], valid))


def test_dimensions_have_names(exported: tuple[Detector, Path], tmp_path: Path) -> None:
    import onnx

    detector, network = exported
    add_trees(network, tmp_path / "model.onnx", detector)
    for file in (network, tmp_path / "model.onnx"):
        graph = onnx.load(file).graph
        found = {
            each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in (*graph.input, *graph.output)
        }
        assert found["values"] == ["rows", "n", 3] and found["lengths"] == ["rows"]
        assert found["probabilities"] == ["rows", detector.num_classes]


def test_a_network_in_int8_is_blended_with_the_same_trees(exported: tuple[Detector, Path], tmp_path: Path) -> None:
    (detector, network), file = exported, tmp_path / "model.onnx"
    batches = [SequenceBatch.from_windows(*windows(2))]
    assert quantize_onnx(network, file, batches, [])
    values, lengths = windows()
    values[..., 0] = values[..., 0].clip(-8, 8)  # the runtime's own probabilities are exact enough in this range
    in_int8 = OnnxClassifier(file).probabilities(values, lengths)
    add_trees(file, file, detector)
    expected = detector.combine(in_int8, values[np.arange(300), lengths - 1])
    assert np.abs(OnnxClassifier(file).probabilities(values, lengths) - expected).max() < 1e-5
    # The whole detector's file can be quantized as well: the same layers, and the trees as they were.
    add_trees(network, tmp_path / "whole.onnx", detector)
    quantize_onnx(tmp_path / "whole.onnx", tmp_path / "int8.onnx", batches, [])
    assert np.abs(OnnxClassifier(tmp_path / "int8.onnx").probabilities(values, lengths) - expected).max() < 1e-5


def test_the_first_stages_file_lies_beside_the_other() -> None:
    assert first_stage_file(Path("runs/mine/model.onnx")) == Path("runs/mine/model.first.onnx")
