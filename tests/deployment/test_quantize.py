"""balancer quantize, train --quantize, score and evaluate --precision, as they are typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from balancer.cli import main
from balancer.cli.quantize import print_quantization
from balancer.data.split import Split
from balancer.deployment.quantize import quantize_run
from balancer.errors import InputError
from balancer.inference.decision import evaluate_rows
from balancer.inference.scoring import score_rows
from balancer.models.quantization import applying
from balancer.runs.trained_run import TrainedRun, training_table
from tests.conftest import TINY


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def printed_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(arguments) == 0
    content: dict[str, object] = json.loads(capsys.readouterr().out)
    return content


def test_a_run_is_quantized_and_scored_in_its_new_precision(
    run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = printed_json(["quantize", str(run), "--max-drop", "0.05", "--json"], capsys)
    before, after = content["before"], content["after"]
    report = json.loads((run / "report.json").read_text())["baselines"]["full"]
    assert before["test"]["average_precision"] == pytest.approx(report["average_precision"], abs=1e-6)  # type: ignore[index]
    assert after["bytes"] == (run / "model.quantized.safetensors").stat().st_size  # type: ignore[index]
    assert set(after["ms"]) == {"1", "32", "256"}  # type: ignore[index]
    evaluated = printed_json(["evaluate", str(run), "--dataset", str(tiny_table), "--precision", "quantized", "--json"], capsys)
    assert evaluated["test"] == after["test"]  # type: ignore[index]
    full, low = tmp_path / "full.parquet", tmp_path / "low.parquet"
    assert main(["score", str(run), "--input", str(tiny_table), "--output", str(full), "--precision", "full"]) == 0
    assert main(["score", str(run), "--input", str(tiny_table), "--output", str(low), "--precision", "quantized"]) == 0
    scores = [pl.read_parquet(file)["score"].to_numpy() for file in (full, low)]
    assert not np.array_equal(*scores) or "int8" not in set(json.loads((run / "precision.json").read_text())["got"].values())
    assert np.abs(scores[0] - scores[1]).max() < 0.2


def test_the_quantized_network_is_blended_with_the_trees(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = printed_json(["quantize", str(run), "--max-drop", "0.5", "--prefer", "size", "--json"], capsys)
    of = {"bytes": "network", "ms": "network", "test": "network and boosted trees"}
    assert content["of"] == json.loads((run / "precision.json").read_text())["about"]["of"] == of
    full, low = TrainedRun.load(run), TrainedRun.load(run, precision="quantized")
    dataset = training_table(full.folder)
    rows = dataset.rows(Split.TEST)
    network = [score_rows(each.model, dataset, rows, device=each.device) for each in (full, low)]
    assert not np.array_equal(*network)
    expected = full.detector.combine(network[1], dataset.store.values[rows])
    assert np.array_equal(low.scores(dataset, rows), expected)
    test = evaluate_rows(dataset, rows, expected, full.decision)
    assert content["after"]["test"]["average_precision"] == test["average_precision"]  # type: ignore[index]


def test_figures_of_a_run_without_trees_are_all_the_networks(network_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(network_run, tmp_path / "network")
    assert main(["quantize", str(tmp_path / "network"), "--max-drop", "0.5"]) == 0
    assert "bytes and ms are those of the network" not in capsys.readouterr().out
    of = json.loads((tmp_path / "network" / "precision.json").read_text())["about"]["of"]
    assert of == {"bytes": "network", "ms": "network", "test": "network"}


def test_size_may_be_preferred_to_speed(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(applying, "cpu_supports", lambda *_: True)  # without INT8 instructions torch computes the same, more slowly
    content = printed_json(["quantize", str(run), "--max-drop", "0.5", "--prefer", "size", "--json"], capsys)
    assert {row["got"] for row in content["applied"]["rows"]} == {"int8"}  # type: ignore[index]
    assert content["after"]["bytes"] < 0.35 * content["before"]["bytes"]  # type: ignore[index]


def test_the_table_of_before_and_after_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(run), "--max-drop", "0.05"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "weights on disk",
        "ms at batch 256",
        "average precision",
        "embedding.numeric",
        "false-positive rate",
        "network and boosted trees",
    ):
        assert text in printed


@pytest.mark.usefixtures("few_trees")
def test_the_flag_that_quantized_after_training_says_that_it_has_no_effect(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *TINY, "--policy", "auto", "--quantize"]) == 0
    assert (out / "precision.json").is_file()
    assert "--quantize has no effect any more" in capsys.readouterr().err


def test_mistakes_end_in_one_line_and_write_nothing(
    run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in run.iterdir()}
    assert main(["quantize", str(tmp_path / "none")]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert main(["quantize", str(run), "--max-drop", "2"]) == 2
    assert "--max-drop is 2" in capsys.readouterr().err
    for name in ("precision.json", "model.quantized.safetensors"):
        (run / name).unlink()
    before = {path.name for path in run.iterdir()}
    scored = ["score", str(run), "--input", str(tiny_table), "--output", str(tmp_path / "o.csv"), "--precision", "quantized"]
    assert main(scored) == 2
    assert "balancer quantize" in capsys.readouterr().err
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"fingerprint": "0"}))
    assert main(["quantize", str(run)]) == 2
    assert "changed since" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} <= before | {".lock"}


def test_8_bit_moments_need_cuda(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    arguments = ["train", "--dataset", str(tiny_table), "--out", str(tmp_path / "r"), *TINY, "--optimizer", "adamw8bit"]
    assert main(arguments) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
def test_training_with_8_bit_moments_comes_to_the_same(tiny_table: Path, tmp_path: Path) -> None:
    figures = []
    for name in ("adamw", "adamw8bit"):
        out = tmp_path / name
        assert (
            main(
                [
                    "train",
                    "--dataset",
                    str(tiny_table),
                    "--out",
                    str(out),
                    *TINY,
                    "--policy",
                    "auto",
                    "--device",
                    "cuda",
                    "--optimizer",
                    name,
                ]
            )
            == 0
        )
        figures.append(json.loads((out / "report.json").read_text())["test"]["average_precision"])
    assert figures[0] == pytest.approx(figures[1], abs=0.1)


def test_a_run_can_be_scored_with_its_old_plan_after_an_interruption(
    network_run: Path, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "network"
    shutil.copytree(network_run, run)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("balancer.deployment.quantize.latencies", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize_run(run, max_drop=0.5, backend="auto", console=Console(quiet=True), dataset=tiny_table)
    for name in ("precision.json", "model.quantized.safetensors", "run.json"):
        assert (run / name).read_bytes() == (network_run / name).read_bytes()


def test_a_run_without_a_plan_says_how_to_get_one(network_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "network"
    shutil.copytree(network_run, run)
    content = json.loads((run / "run.json").read_text())
    del content["parts"]["precision.json"]
    (run / "run.json").write_text(json.dumps(content))
    (run / "precision.json").unlink()
    with pytest.raises(InputError, match=r"run balancer quantize .* or leave --precision quantized out"):
        TrainedRun.load(run, precision="quantized")


@pytest.mark.parametrize(("backend", "said"), [("torch", "written to run"), ("bitsandbytes", "run is unchanged")])
def test_what_was_written_is_said(capsys: pytest.CaptureFixture[str], backend: str, said: str) -> None:
    figures = {"bytes": 10, "ms": {}, "test": {"average_precision": 0.5, "f1": 0.5, "fpr": 0.0}}
    result = {"before": figures, "after": figures, "of": {"test": "network"}, "applied": {"rows": []}, "backend": backend}
    print_quantization(result | {"plan": {"expected": {}}, "max_drop": 0.1}, Console(), Path("run"))
    assert said in capsys.readouterr().out
