"""The ONNX file against torch: the same scores for any batch and length, INT8 where it is requested, and rows
that do not depend on other rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from balancer.cli import main
from balancer.errors import InputError
from balancer.models import SequenceBatch
from balancer.models.export.onnx_backend import OnnxClassifier, export_onnx, quantize_onnx
from tests.models.quantization.test_quantization import CODES, FIELDS, HISTORY, batch, classifier

onnx = pytest.importorskip("onnx", reason="the ONNX backend needs balancer[export]")
pytest.importorskip("onnxruntime", reason="the ONNX backend needs balancer[export]")


@pytest.fixture(scope="module", params=[2, 3])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, Path]:
    model = classifier(classes=request.param)
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, file)
    return model, file


def probabilities(model: object, given: SequenceBatch) -> np.ndarray:
    with torch.inference_mode():
        return model.probabilities(given).numpy()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, HISTORY), (5, 3), (33, HISTORY)])
def test_scores_are_torchs_at_any_size(exported: tuple[object, Path], rows: int, length: int) -> None:
    model, file = exported
    given = batch(rows, 3)
    values = given.values[:, :length].clone()
    lengths = given.lengths.clamp(max=length)
    values[0, 0, 1] = torch.nan  # missing
    values[0, 0, FIELDS] = CODES + 5  # never seen
    cut = SequenceBatch.from_windows(values, lengths)
    found = OnnxClassifier(file).probabilities(values.numpy(), lengths.numpy())
    assert np.abs(found - probabilities(model, cut)).max() < 1e-4
    assert np.allclose(found.sum(1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def quantized(exported: tuple[object, Path]) -> tuple[object, Path, list[str]]:
    model, file = exported
    target = file.with_name("int8.onnx")
    got = quantize_onnx(file, target, [batch(64, seed) for seed in (10, 11)], ["blocks.0.attention.query", "head.project"])
    return model, target, got


def test_int8_where_it_was_asked_for_and_close(quantized: tuple[object, Path, list[str]]) -> None:
    model, file, got = quantized
    assert "blocks.0.ff1" in got
    assert "embedding.numeric" in got
    assert not {"blocks.0.attention.query", "head.project"} & set(got)
    given = batch(200, 4)
    found, expected = OnnxClassifier(file).probabilities(given.values.numpy(), given.lengths.numpy()), probabilities(model, given)
    logit = [np.log(p[:, 1:].sum(1).clip(1e-9, 1) / p[:, 0].clip(1e-9, 1)) for p in (found, expected)]
    assert np.corrcoef(*logit)[0, 1] > 0.99
    assert file.stat().st_size < 0.6 * file.with_name("model.onnx").stat().st_size
    graph = onnx.load(file).graph
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    inputs = {node.name: set(node.input) for node in graph.node}
    # The query reads what the keys read, rounded for those alone.
    assert not rounded & (inputs["blocks.0.attention.query"] | inputs["head.project"])
    assert len(rounded & inputs["blocks.0.attention.key_value"]) == 2
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kept = next(tensor for name, tensor in weights.items() if name.startswith("blocks.0.attention.query.weight"))
    assert kept.data_type == onnx.TensorProto.FLOAT


def test_a_row_is_scored_the_same_alone_and_in_any_batch(quantized: tuple[object, Path, list[str]]) -> None:
    scorer, given = OnnxClassifier(quantized[1]), batch(40, 6)
    values, lengths = given.values.numpy(), given.lengths.numpy()
    together = scorer.probabilities(values, lengths)
    for first, count in ((0, 1), (7, 1), (3, 2), (10, 17)):
        part = slice(first, first + count)
        assert np.array_equal(scorer.probabilities(values[part], lengths[part]), together[part])


def test_bad_input(exported: tuple[object, Path], tmp_path: Path) -> None:
    _, file = exported
    with pytest.raises(InputError, match="missing"):
        OnnxClassifier(tmp_path / "none.onnx")
    (tmp_path / "torn.onnx").write_bytes(file.read_bytes()[:-500])
    with pytest.raises(InputError):
        OnnxClassifier(tmp_path / "torn.onnx")
    flipped = bytearray(file.read_bytes())
    flipped[len(flipped) // 2] ^= 1  # in a weight: still a graph, but another model
    (tmp_path / "torn.onnx").write_bytes(flipped)
    with pytest.raises(InputError, match=r"torn\.onnx is damaged"):
        OnnxClassifier(tmp_path / "torn.onnx")
    with pytest.raises(InputError, match=r"torn\.onnx is damaged"):
        quantize_onnx(tmp_path / "torn.onnx", tmp_path / "o.onnx", [batch(2)], [])
    (tmp_path / "odd.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError):
        quantize_onnx(tmp_path / "odd.onnx", tmp_path / "o.onnx", [batch(2)], [])
    with pytest.raises(InputError, match="no row to calibrate"):
        quantize_onnx(file, tmp_path / "o.onnx", [], [])
    with pytest.raises(InputError, match="no layer"):
        quantize_onnx(file, tmp_path / "o.onnx", [batch(2)], ["blocks.9"])
    wild = batch(4)
    wild.values[0, 0, 0] = torch.inf
    with pytest.raises(InputError):
        quantize_onnx(file, tmp_path / "o.onnx", [wild], [])
    with pytest.raises(InputError, match="histories"):
        export_onnx(classifier(form="histories"), tmp_path / "o.onnx")
    with pytest.raises(InputError, match="attention"):
        export_onnx(classifier(attention="sparse", attention_window=4), tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(exported: tuple[object, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    model, file = exported
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}: pip install 'balancer\[export\]'"):
        if package == "onnxruntime":
            OnnxClassifier(file)
        else:
            export_onnx(model, tmp_path / "m.onnx")  # type: ignore[arg-type]


def test_importing_it_needs_none_of_its_packages() -> None:
    code = "import sys; import balancer.models.export.onnx_backend; sys.exit('onnx' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("learner", ["hybrid", "network"])
def test_the_command_writes_an_onnx_file(
    learner: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(request.getfixturevalue("tiny_run" if learner == "hybrid" else "network_run"), run)
    capsys.readouterr()
    assert main(["quantize", str(run), "--backend", "onnxruntime", "--max-drop", ".05", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["backend"] == "onnxruntime"
    size = (run / "model.int8.onnx").stat().st_size
    # The bytes are those of the network, and the file of a hybrid holds its trees too.
    assert result["after"]["bytes"] < size if learner == "hybrid" else result["after"]["bytes"] == size
    assert (run / "model.first.onnx").exists() == (learner == "hybrid")
    assert result["after"]["test"]["average_precision"] == pytest.approx(result["before"]["test"]["average_precision"], abs=0.1)
    assert {row["got"] for row in result["applied"]["rows"]} <= {"int8", "fp32"}
