"""The precision plan at the end of training: what is stored, what uses it, and what the report says."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from balancer.cli import main
from balancer.evaluation.report_parts import part_lines
from balancer.models import Classifier, ModelConfig, SequenceBatch, save_classifier
from balancer.models.attention.dense import DenseAttention
from balancer.models.quantization.modules import Int8Linear
from balancer.runs.trained_run import TrainedRun, training_table
from balancer.serving.models.loaded_model import LoadedModel
from balancer.training.precision_stage import PlannedNetwork, plan_network
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("few_trees")
SHORT = (*TINY, "--policy", "auto", "--learner", "network")


class WithATorchModule(DenseAttention):
    """An attention with a module whose linear layers can't be replaced."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model, config.num_heads)
        self.mixed = nn.MultiheadAttention(config.d_model, 2, batch_first=True)


class WithABuffer(DenseAttention):
    """An attention with a table that is not among the stored weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model, config.num_heads)
        self.register_buffer("table", torch.linspace(1, 2, config.d_model), persistent=False)

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        out = super().forward(batch, last_only=last_only)
        return replace(out, values=out.values * self.table)


class InNumPy(DenseAttention):
    """An attention without gradients in evaluation mode."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model, config.num_heads)

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        out = super().forward(batch, last_only=last_only)
        return out if self.training else replace(out, values=torch.from_numpy(out.values.numpy()))


class WithAStateHook(DenseAttention):
    """An attention with a layer that can be rounded and not stored."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model, config.num_heads)
        self.query.register_state_dict_post_hook(lambda *_: None)


def report_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "report.json").read_text())
    return content


def scores(run: Path, table: Path, out: Path, *flags: str) -> np.ndarray:
    assert main(["score", str(run), "--input", str(table), "--output", str(out), "--overwrite", *flags]) == 0
    found: np.ndarray = pl.read_parquet(out)["score"].to_numpy()
    return found


def linear_layers(model: Classifier | None) -> set[type[nn.Module]]:
    assert model is not None
    return {type(module) for module in model.modules() if isinstance(module, (nn.Linear, Int8Linear))}


def test_scoring_and_the_service_use_the_planned_network(network_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.parquet"
    low, full = (scores(network_run, tiny_table, out, *flags) for flags in ((), ("--precision", "full")))
    assert np.array_equal(low, scores(network_run, tiny_table, out, "--precision", "quantized"))
    assert not np.array_equal(low, full)
    assert np.abs(low - full).max() < 0.1
    predicted = pl.read_parquet(network_run / "predictions.parquet")["score"].to_numpy()
    assert np.array_equal(low[-len(predicted) :], predicted), "the report is about what scores"
    assert linear_layers(TrainedRun.load(network_run, precision="auto").detector.model) == {Int8Linear}
    assert linear_layers(TrainedRun.load(network_run).detector.model) == {nn.Linear}
    served = LoadedModel.load(network_run, "run")
    assert linear_layers(served.detector.model) == {Int8Linear}
    assert served.digest == LoadedModel.load(network_run, "run", "quantized").digest
    assert served.digest != LoadedModel.load(network_run, "run", "full").digest


def test_the_report_says_what_rounding_saved_and_cost(tiny_run: Path) -> None:
    report = report_of(tiny_run)
    precision = report["run"]["precision"]
    assert precision["bytes"]["planned"] == (tiny_run / "model.quantized.safetensors").stat().st_size
    assert precision["bytes"]["planned"] < 0.45 * precision["bytes"]["full"]
    assert set(report["timing"]["network_ms"]) == {"full", "planned"}
    assert abs(report["baselines"]["full"]["average_precision"] - report["test"]["average_precision"]) < 0.01
    lines = part_lines(report)
    assert list(lines) == ["sampling", "attention", "precision", "modules"]
    assert "layers in INT8" in lines["precision"] and "batch of 1" in lines["precision"]
    assert "dense over the last 6 rows" in lines["attention"]
    page = (tiny_run / "report.md").read_text()
    assert all(f"- **{name}**: " in page for name in lines)
    assert "batch of 1" not in page, "equal runs have equal pages"


def test_all_layers_may_stay_in_full_precision(tiny_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *SHORT, "--precision", "full"]) == 0
    assert not (out / "precision.json").exists()
    assert "float32 (--precision full)" in part_lines(report_of(out))["precision"]
    assert linear_layers(TrainedRun.load(out, precision="auto").detector.model) == {nn.Linear}


def test_a_part_that_cannot_be_rounded_keeps_its_precision_and_the_reason_is_said(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ("--attention", "tests.training.test_precision_stage:WithATorchModule")
    assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *SHORT, *flags]) == 0
    assert "the network keeps its full precision" in " ".join(capsys.readouterr().out.split())
    assert "MultiheadAttention" in part_lines(report_of(out))["precision"]
    assert scores(out, tiny_table, tmp_path / "scored.parquet").min() >= 0


@pytest.mark.parametrize(
    ("part", "reason"),
    [("WithABuffer", None), ("InNumPy", "with InNumPy can't be rounded .RuntimeError"), ("WithAStateHook", "hook on its state dict")],
)
def test_a_part_of_any_kind_lets_training_end(network_run: Path, tmp_path: Path, part: str, reason: str | None) -> None:
    run = TrainedRun.load(network_run)
    model = Classifier(replace(run.model.config, attention=f"tests.training.test_precision_stage:{part}")).eval()
    save_classifier(model, tmp_path)
    planned = plan_network(training_table(run.folder), model, tmp_path, seed=0, device=torch.device("cpu"))
    if reason is None:
        assert isinstance(planned, PlannedNetwork) and planned.about["layers"]
        return
    assert isinstance(planned, str) and re.search(reason, planned)
    assert not (tmp_path / "precision.json").exists() and not (tmp_path / "model.quantized.safetensors").exists()


@pytest.mark.parametrize("damage", ["missing plan", "missing weights", "plan of another run", "edited plan"])
def test_a_plan_that_is_not_the_runs_is_refused(
    network_run: Path, tiny_run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    run, plan = tmp_path / "run", tmp_path / "run" / "precision.json"
    shutil.copytree(network_run, run)
    name = "model.quantized.safetensors" if damage == "missing weights" else "precision.json"
    if damage.startswith("missing"):
        (run / name).unlink()
    elif damage == "edited plan":
        plan.write_text(plan.read_text() + " ")
    else:
        shutil.copy(tiny_run / "precision.json", plan)
    command = ["score", str(run), "--input", str(tiny_table), "--output", str(tmp_path / "scored.parquet")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1
    assert main([*command, "--precision", "full"]) == 0


def test_a_later_quantize_replaces_the_plan(network_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(network_run, run)
    (run / "precision.json").unlink()
    assert main(["quantize", str(run), "--max-drop", "0.5", "--dataset", str(tiny_table)]) == 0
    assert scores(run, tiny_table, tmp_path / "scored.parquet").min() >= 0
