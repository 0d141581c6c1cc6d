"""What version 0.1 saved can still be used: runs, models, policies, sampler states, comparisons, and a run to
resume.

The files are in ``tests/stored/0.1``; the README there says how they were made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.app.browsing import read_comparison, read_run
from balancer.cli import main
from balancer.data.context_features import ACTIVITY_AMOUNT_FIELDS, ACTIVITY_FIELDS, LABEL_FIELDS
from balancer.files import read_arrays
from balancer.models import SequenceBatch, load_classifier
from balancer.runs.tables import evaluate_file
from balancer.runs.trained_run import TrainedRun, training_table
from balancer.sampling import SamplerCore, load_policy
from balancer.sampling.torch_sampler import AdaptiveSampler

STORED = Path(__file__).parents[1] / "stored" / "0.1"
RUNS = ("rows", "histories", "delta", "types")
ROUNDING = 1e-5
"""Scores differ by this much at most between processors: sums of float32 in another order."""
STEP = 5e-3
"""With INT8 weights a rounding difference can move an activation to the next of 256 steps."""
TRAINING = 1e-2
"""After six training steps rounding differences have grown: AdamW divides gradients by their size."""
LABELS = ["fine"] * 270 + ["fraud"] * 30


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stored files, as the working directory: runs name their table by a relative path."""
    folder = tmp_path / "stored"
    shutil.copytree(STORED, folder)
    monkeypatch.chdir(folder)
    return folder


def scores_of(run: Path, *flags: str) -> np.ndarray:
    """Scores of the last rows of the run's table, as many as were stored."""
    table = run.parent / ("types.parquet" if run.name == "types" else "transactions.parquet")
    output = run.parent / "scored.parquet"
    assert main(["score", str(run), "--input", str(table), "--output", str(output), *flags]) == 0
    return pl.read_parquet(output)["score"].to_numpy()[-expected().height :]


def expected() -> pl.DataFrame:
    """Scores that version 0.1 gave, a column per model."""
    return pl.read_parquet(STORED / "scores.parquet")


@pytest.mark.parametrize("run", RUNS)
def test_a_run_gives_the_same_scores(stored: Path, run: str) -> None:
    scores = scores_of(stored / run)
    np.testing.assert_allclose(scores, expected()[run].to_numpy(), atol=ROUNDING)
    assert np.std(scores) > 100 * ROUNDING  # scores that are all alike would show nothing


def test_a_quantized_model_gives_the_same_scores(stored: Path) -> None:
    np.testing.assert_allclose(scores_of(stored / "rows", "--precision", "quantized"), expected()["quantized"].to_numpy(), atol=STEP)


def test_histories_can_be_read_row_by_row(stored: Path) -> None:
    np.testing.assert_allclose(scores_of(stored / "histories", "--streaming"), expected()["histories"].to_numpy(), atol=ROUNDING)


def test_old_names_of_the_configuration_are_read(stored: Path) -> None:
    config = TrainedRun.load(stored / "histories").model.config
    assert (config.form, config.history_length, config.attention, config.attention_window) == ("histories", 6, "sparse", 4)
    assert TrainedRun.load(stored / "rows").model.config.form == "rows"


@pytest.mark.parametrize("run", RUNS)
def test_the_app_reads_a_run(stored: Path, run: str) -> None:
    found = read_run(stored / run)
    assert (found.status, found.problem) == ("complete", "")
    assert len(found.curve) == 2
    assert found.metrics["average_precision"] == json.loads((STORED / run / "report.json").read_text())["test"]["average_precision"]


def test_a_run_is_evaluated_with_the_metrics_of_its_report(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(stored / "rows"), "--dataset", "transactions.parquet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["test"]
    report = json.loads((STORED / "rows" / "report.json").read_text())["test"]
    assert (result["rows"], result["positives"]) == (report["rows"], report["positives"]) == (480, 12)
    assert result["average_precision"] == pytest.approx(report["average_precision"])


@pytest.mark.parametrize("base", ["pretrained", "rows"])
def test_training_starts_from_a_stored_model(stored: Path, base: str) -> None:
    flags = ("--epochs", "1", "--steps-per-epoch", "2", "--batch-size", "64", "--policy", "rule", "--out", "new")
    assert main(["train", "--dataset", "transactions.parquet", "--from", base, *flags]) == 0
    assert read_run(stored / "new").status == "complete"


def test_an_unfinished_run_is_resumed_to_the_result_of_a_run_at_one_go(stored: Path) -> None:
    assert read_run(stored / "unfinished").status == "stopped"
    assert main(["train", "--resume", "--out", "unfinished"]) == 0
    assert len(read_run(stored / "unfinished").curve) == 2
    np.testing.assert_allclose(scores_of(stored / "unfinished"), expected()["finished"].to_numpy(), atol=TRAINING)


def test_a_run_that_began_before_trees_keeps_its_fields(tiny_table: Path, tmp_path: Path) -> None:
    """Also where the table has a context column; the fields of its past were added with the trees."""
    newer, older = tmp_path / "newer", tmp_path / "older"
    flags = ("--epochs", "1", "--steps-per-epoch", "2", "--policy", "rule", "--d-model", "16", "--layers", "1", "--threads", "1")
    assert main(["train", "--dataset", str(tiny_table), "--out", str(newer), "--learner", "network", *flags]) == 0
    content = json.loads((newer / "run.json").read_text())
    older.mkdir()
    config = {name: value for name, value in content["config"].items() if name not in ("learner", "margin", "precision")} | {
        "out": str(older)
    }
    (older / "run.json").write_text(json.dumps(content | {"config": config, "status": "running"}))
    assert main(["train", "--resume", "--out", str(older)]) == 0
    run = TrainedRun.load(older)
    fields = run.model.config.numeric_fields
    added = set(TrainedRun.load(newer).schema.numeric_fields) - set(fields)
    assert fields == run.schema.numeric_fields == training_table(run.folder).schema.numeric_fields
    assert added == {f"merchant_id_{name}" for name in (*LABEL_FIELDS, *ACTIVITY_FIELDS, *ACTIVITY_AMOUNT_FIELDS)}
    report = json.loads((older / "report.json").read_text())["test"]
    result = evaluate_file(run, tiny_table, past=None, bad_rows="error")
    assert result["part"] == "test"
    assert result["test"]["average_precision"] == pytest.approx(report["average_precision"])


def test_a_saved_classifier_gives_the_same_probabilities() -> None:
    model = load_classifier(STORED / "classifier")
    assert model.config.cycles == (("hour", 24.0),)
    arrays, _ = read_arrays(STORED / "classifier" / "expected.safetensors", what="it holds inputs and outputs")
    output = model.probabilities(SequenceBatch.from_windows(arrays["values"], arrays["lengths"]))
    np.testing.assert_allclose(output.detach().numpy(), arrays["probabilities"], atol=ROUNDING)


def test_a_policy_is_loaded_and_chooses_weights() -> None:
    policy = load_policy(STORED / "policy", num_classes=2)
    sampler = SamplerCore(LABELS, policy=policy, epochs=3, num_samples=60)
    before = sampler.weights
    sampler.update(["fine"] * 9 + ["fraud"], np.linspace(0.05, 0.95, 10), rows=[0, 280], row_score=[0.2, 0.7])
    assert sampler.weights.to_dict() != before.to_dict()


def as_arrays(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"rows": {name: np.asarray(values) for name, values in state["rows"].items()}}


def test_the_state_of_a_sampler_goes_on_with_the_same_rows() -> None:
    content = json.loads((STORED / "sampler.json").read_text())
    sampler = SamplerCore(LABELS, **content["options"])
    sampler.load_state_dict(as_arrays(content["state"]))
    assert (sampler.epoch, sampler.updates) == (1, 1)
    assert sampler.draw().tolist() == content["next"]


def test_the_state_of_a_torch_sampler_goes_on_in_the_middle_of_an_epoch() -> None:
    content = json.loads((STORED / "torch_sampler.json").read_text())
    sampler = AdaptiveSampler(LABELS, **content["options"])
    sampler.load_state_dict(as_arrays(content["state"]))
    assert list(sampler) == content["next"]
    assert len(content["next"]) == 35


def test_a_comparison_is_read_and_extended(stored: Path) -> None:
    before = read_comparison(stored / "comparison" / "comparison.json")
    treatments = "none,one_to_one,auto,start"
    assert main(["compare", "--resume", "--out", "comparison", "--treatments", treatments, "--dataset", "transactions.parquet"]) == 0
    after = read_comparison(stored / "comparison" / "comparison.json")
    assert set(after["means"]) == {*before["means"], "start"}
    for name, means in before["means"].items():
        assert after["means"][name]["average_precision"] == pytest.approx(means["average_precision"])
