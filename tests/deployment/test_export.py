"""`balancer export`: the file gives the scores of the run; the light model is small and close; errors name
the part."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from balancer.cli import main
from balancer.data.split import Split
from balancer.deployment import distil as distilling
from balancer.deployment import export as exporting
from balancer.deployment.distil import light_config
from balancer.deployment.onnx_detector import FirstStage
from balancer.errors import InputError
from balancer.models import Classifier, SequenceBatch, load_classifier
from balancer.models.checks import example_config
from balancer.models.export.onnx_backend import OnnxClassifier, export_onnx
from balancer.runs.trained_run import TrainedRun, training_table

onnx = pytest.importorskip("onnx", reason="exporting needs balancer[export]")
pytest.importorskip("onnxruntime", reason="exporting needs balancer[export]")
NO_EXECUTORCH = importlib.util.find_spec("executorch") is None


@pytest.fixture
def light(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, object], Path]:
    """A light model after few steps, and the result of its export."""
    monkeypatch.setattr(exporting, "STEPS", 60)
    monkeypatch.setattr(exporting, "distil", lambda *given, **named: distilling.distil(*given, **named, steps=60))
    file = tmp_path / "light.onnx"
    assert main(["export", str(tiny_run), "--lite", "--out", str(file), "--max-drop", "0.5", "--json"]) == 0
    return json.loads(capsys.readouterr().out), file


def test_the_whole_model_scores_as_torch_does(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.onnx"
    assert main(["export", str(tiny_run), "--target", "onnx", "--out", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    run = TrainedRun.load(tiny_run)
    dataset = training_table(run.folder)
    rows = dataset.rows(Split.TEST)[:200]
    scorer = OnnxClassifier(file)
    found = scorer.probabilities(*dataset.store.windows(rows, run.model.config.history_length))
    assert np.abs(found - run.scores(dataset, rows)).max() < 1e-5
    assert scorer.fields == dataset.schema.numeric_fields + dataset.schema.categorical_fields


def test_the_first_stage_gives_the_score_field_of_later_rows(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "some.onnx"
    assert main(["export", str(tiny_run), "--out", str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["first_stage"] == str(tmp_path / "some.first.onnx")
    assert result["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    run = TrainedRun.load(tiny_run)
    dataset = training_table(run.folder)
    assert run.detector.stages is not None
    rows = np.flatnonzero(dataset.store.time > run.detector.stages.train_end)
    found = FirstStage(Path(result["first_stage"])).logit(dataset.without_score_fields().store.values[rows])
    assert len(rows) > 1_000
    (about,) = onnx.load(result["first_stage"]).metadata_props
    assert json.loads(about.value)["later_than"] == run.detector.stages.train_end
    assert tuple(json.loads(about.value)["fields"]) == OnnxClassifier(file).fields[len(dataset.schema.score_fields) :]
    assert np.abs(found - dataset.store.values[rows, 0]).max() < 1e-6


def test_a_network_without_trees_is_one_file(network_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.onnx"
    assert main(["export", str(network_run), "--out", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(file), "target": "onnx", "bytes": file.stat().st_size}
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    run = TrainedRun.load(network_run)
    dataset = training_table(run.folder)
    rows = dataset.rows(Split.TEST)[:200]
    found = OnnxClassifier(file).probabilities(*dataset.store.windows(rows, run.model.config.history_length))
    assert np.abs(found - run.scores(dataset, rows)).max() < 1e-5


@pytest.mark.parametrize(
    "command",
    [("export",), ("export", "--lite"), ("export", "--target", "executorch"), ("quantize",), ("quantize", "--backend", "onnxruntime")],
    ids=" ".join,
)
def test_trees_without_a_network_are_refused(command: tuple[str, ...], trees_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(trees_run.iterdir())
    assert main([command[0], str(trees_run), *command[1:]]) == 2
    error = capsys.readouterr().err
    assert "has boosted trees and no network" in error
    assert "--learner hybrid" in error
    assert sorted(trees_run.iterdir()) == before


def test_executorch_does_not_leave_out_the_trees(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_run), "--target", "executorch"]) == 2
    assert "boosted trees can't be exported to ExecuTorch" in capsys.readouterr().err
    assert not (tiny_run / "model.pte").exists()


def test_the_light_model_is_small_and_measured_beside_the_full_model(light: tuple[dict[str, object], Path]) -> None:
    result, file = light
    assert result["bytes"] == file.stat().st_size < 1_000_000
    assert result["int8_layers"]
    test, ms, apart = result["test"], result["ms"], result["largest_difference_to_torch"]
    assert isinstance(test, dict)
    assert isinstance(ms, dict)
    assert isinstance(apart, dict)
    assert set(test) == {"full", "lite"}
    assert {"full", "full_onnx", "lite"} <= set(ms)
    assert apart["float"] < 1e-3
    content = json.loads(file.with_name("lite.json").read_text())
    assert content["full"] == "network and boosted trees"
    # The light model reads no scores of trees.
    assert content["config"]["numeric_fields"][0] == "amount_log"
    assert content["config"].get("margin", "") == ""
    assert not any(name.startswith("stage1") for name in OnnxClassifier(file).fields)
    assert content["config"]["num_layers"] == content["config"]["num_heads"] == 1
    assert content["config"]["attention"] == "window"
    assert 0 <= content["decision"]["threshold"] <= 1


@pytest.mark.parametrize(("name", "split"), [("tiny_run", Split.TRAIN), ("network_run", Split.TEST)])
def test_the_student_learns_what_the_teacher_thinks(name: str, split: Split, request: pytest.FixtureRequest) -> None:
    """Trees see the scores of earlier rows, which a student doesn't: their scores of new rows differ more."""
    run = TrainedRun.load(request.getfixturevalue(name))
    dataset = training_table(run.folder)
    rows = dataset.rows(split)
    expected = run.scores(dataset, rows)[:, 1]
    agreed = []
    for steps in (1, 200):
        student = distilling.distil(run.detector, dataset, seed=0, device=torch.device("cpu"), steps=steps)
        values, lengths = dataset.without_score_fields().store.windows(rows, student.config.history_length)
        with torch.inference_mode():
            found = student.probabilities(SequenceBatch.from_windows(values, lengths))[:, 1].numpy()
        agreed.append(np.corrcoef(found, expected)[0, 1])
    assert agreed[1] > max(0.8, agreed[0]), agreed
    again = distilling.distil(run.detector, dataset, seed=0, device=torch.device("cpu"), steps=200)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), student.state_dict().values(), strict=True))


@pytest.mark.parametrize("window", [1, 3, 7])
def test_window_attention_is_carried(window: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = example_config(attention="window", attention_window=window, history_length=7)
    model = Classifier(config).eval()
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 7, 3)).astype(np.float32)
    values[..., 2] = rng.integers(0, 7, (20, 7))  # codes of 5 and 6 are unseen
    values[3, 2, 0] = np.nan
    lengths = rng.integers(0, 8, 20)
    export_onnx(model, tmp_path / "model.onnx")
    with torch.inference_mode():
        expected = model.probabilities(SequenceBatch.from_windows(values, lengths)).numpy()
    assert np.abs(OnnxClassifier(tmp_path / "model.onnx").probabilities(values, lengths) - expected).max() < 1e-5


def test_adapters_are_folded_and_tasks_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(example_config(history_length=7)).replace(adapter_rank=2).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("adapter_up"):
                parameter.normal_()
    export_onnx(model.eval(), tmp_path / "model.onnx")
    values, lengths = np.random.default_rng(0).normal(size=(9, 7, 3)).astype(np.float32), np.full(9, 7)
    with torch.inference_mode():
        expected = model.probabilities(SequenceBatch.from_windows(values, lengths)).numpy()
    assert np.abs(OnnxClassifier(tmp_path / "model.onnx").probabilities(values, lengths) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention": "sparse"},
            "attention 'sparse' can't be exported to ONNX; train a model with attention dense or window, or export a light build",
        ),
        ({"form": "histories"}, "form 'histories' can't be exported to ONNX; train a model with --form rows, or export a light build"),
        ({"numeric_encoding": "periodic"}, "numeric_encoding 'periodic' and cycles can't be exported to ONNX"),
    ],
)
def test_an_unsupported_part_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_onnx(Classifier(example_config(**changes)), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_light_build_of_what_it_cannot_be_made_of_is_refused() -> None:
    with pytest.raises(InputError, match="embedding 'tabular' can't be used in a light model"):
        light_config(example_config(embedding="tabular", history_length=1))
    config = light_config(example_config(attention="sparse", form="histories", adapter_rank=4))
    assert (config.attention, config.form, config.adapter_rank, config.history_length) == ("window", "rows", 0, distilling.HISTORY)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--out", "somewhere.bin"), "--out somewhere.bin: give a file name that ends in .onnx for --target onnx"),
        (("--out", "missing/model.onnx"), "the folder missing does not exist"),
        (("--max-drop", "2"), "--max-drop is 2.0"),
    ],
)
def test_bad_flags(flags: tuple[str, ...], message: str, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_run), *flags]) == 2
    assert message in capsys.readouterr().err


def test_no_run_and_no_table(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path)]) == 2
    capsys.readouterr()
    other = tmp_path / "run"
    shutil.copytree(tiny_run, other)
    content = json.loads((other / "run.json").read_text())
    content["config"]["dataset"] = str(tmp_path / "gone.parquet")
    content["table"] = {}  # neither is it at its absolute path, nor beside the run
    (other / "run.json").write_text(json.dumps(content))
    assert main(["export", str(other), "--lite"]) == 2
    assert "gone.parquet is not here" in capsys.readouterr().err
    assert not (other / "model.lite.onnx").exists()


@pytest.mark.skipif(not NO_EXECUTORCH, reason="executorch is installed")
def test_executorch_that_is_not_there(network_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(network_run), "--target", "executorch"]) == 2
    assert "pip install 'balancer[executorch]'" in capsys.readouterr().err
    assert not (network_run / "model.pte").exists()


@pytest.mark.skipif(NO_EXECUTORCH, reason="executorch is heavy and not among the tests' requirements")
@pytest.mark.filterwarnings("ignore")  # of the imports of executorch
def test_executorch_scores_as_torch_does(network_run: Path, tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    file = tmp_path / "model.pte"
    assert main(["export", str(network_run), "--target", "executorch", "--out", str(file)]) == 0
    model = load_classifier(network_run)
    content = file.read_bytes()
    program = Runtime.get().load_program(content)  # a method does not keep its program alive, nor that the bytes
    method = program.load_method("forward")
    dataset = training_table(TrainedRun.load(network_run).folder)
    for row in dataset.rows(Split.TEST)[:20]:
        values, lengths = dataset.store.windows(np.array([row]), model.config.history_length)
        (found,) = method.execute((torch.from_numpy(values), torch.from_numpy(lengths)))
        with torch.inference_mode():
            expected = model.probabilities(SequenceBatch.from_windows(values, lengths))
        assert (found - expected).abs().max() < 1e-3


def test_importing_the_command_loads_no_runtime() -> None:
    code = "import sys, balancer.cli.export; sys.exit('onnx' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
