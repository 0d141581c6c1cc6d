"""Devices, threads and random state: each call restores the threads and random generators of the process."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from balancer.cli import main
from balancer.devices import choose_device, random_state_kept, torch_threads
from balancer.errors import InputError, UnsupportedError
from balancer.inference.detector import Detector
from balancer.runs.trained_run import TrainedRun
from tests.conftest import TINY

CALLER = 3
"""Threads of the process before each call: another number than any call uses."""


@pytest.fixture(autouse=True)
def caller() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(CALLER)
    try:
        yield
        assert torch.get_num_threads() == CALLER
    finally:
        torch.set_num_threads(before)


def test_threads_are_restored_after_a_block_an_error_and_a_decorated_function() -> None:
    with torch_threads(2):
        assert torch.get_num_threads() == 2
        with torch_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == CALLER
    with pytest.raises(ZeroDivisionError), torch_threads(1):
        _ = 1 / 0
    assert torch.get_num_threads() == CALLER
    assert torch_threads(2)(torch.get_num_threads)() == 2


def drawn() -> tuple[float, float, float]:
    """The next number of each global generator."""
    return float(torch.rand(())), float(np.random.random()), random.random()  # noqa: NPY002 (the global one)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def test_random_states_are_restored_after_a_block_an_error_and_a_decorated_function() -> None:
    seed_all(5)
    first, second, third = drawn(), drawn(), drawn()
    seed_all(5)
    with random_state_kept():
        seed_all(6)
        inside = drawn()
    assert drawn() == first != inside
    with pytest.raises(ZeroDivisionError), random_state_kept():
        seed_all(6)
        _ = 1 / 0
    assert drawn() == second
    random_state_kept()(seed_all)(6)
    assert drawn() == third
    assert torch.initial_seed() == 5


@pytest.mark.gpu
def test_random_states_of_cuda_are_restored() -> None:
    torch.cuda.manual_seed_all(5)
    first = torch.rand(3, device="cuda")
    torch.cuda.manual_seed_all(5)
    with random_state_kept():
        torch.manual_seed(6)
        torch.rand(3, device="cuda")
    assert torch.equal(torch.rand(3, device="cuda"), first)


def test_a_run_keeps_the_random_numbers_of_the_caller_and_its_own(
    tiny_table: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--dataset", str(tiny_table), "--epochs", "1", "--steps-per-epoch", "2", "--device", "cpu"]
    small = ["--d-model", "16", "--layers", "1"]
    commands = [
        ["train", *short, *small, "--policy", "rule", "--out"],
        ["pretrain", *short, *small, "--out"],
        ["compare", *short, "--treatments", "none", "--folds", "1", "--seeds", "1", "--student", "classifier", *small, "--out"],
        ["export", str(tiny_run), "--out"],
    ]
    for number, command in enumerate(commands):
        for seed in (5, 6):
            seed_all(seed)
            expected = drawn()
            seed_all(seed)
            assert main([*command, str(tmp_path / f"{number}-{seed}.onnx")]) == 0, command[0]
            assert drawn() == expected, command[0]
    for file in ("0-{}.onnx/model.safetensors", "1-{}.onnx/model.safetensors"):
        assert Path(file.format(5)).read_bytes() == Path(file.format(6)).read_bytes()


def test_the_student_of_the_environment_keeps_the_random_numbers_of_the_caller(tiny_table: Path) -> None:
    import gymnasium
    from rich.console import Console

    from balancer.options.train import TrainConfig
    from balancer.training.preparation import prepare

    prepared = prepare(TrainConfig(dataset=tiny_table, policy="auto", d_model=16, layers=1, history_length=6), Console())
    made = {"dataset": prepared.baseline_dataset, "model": prepared.model, "epochs": 2, "steps_per_epoch": 2, "batch_size": 32}
    env = gymnasium.make("balancer/ClassWeights-v1", student="classifier", **made)  # type: ignore[arg-type]
    seed_all(5)
    expected = drawn()
    seed_all(5)
    env.reset(seed=0)
    env.step(np.zeros(6, np.float32))
    assert drawn() == expected


def test_a_thread_that_begins_in_the_block_has_its_number() -> None:
    found: list[int] = []
    with torch_threads(2):
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert found == [2]


def test_scores_use_the_threads_of_the_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, used = TrainedRun.load(tiny_run), []
    assert torch.get_num_threads() == CALLER
    monkeypatch.setattr(Detector, "scores", lambda *_, **__: used.append(torch.get_num_threads()))
    run.scores(None, np.zeros(0))  # type: ignore[arg-type]
    assert used == [run.threads] == [1]


def test_training_uses_the_threads_that_its_flag_names(tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from balancer.training import pipeline

    used = []

    def stopped(*_: object) -> None:
        used.append(torch.get_num_threads())
        raise InputError("far enough")

    monkeypatch.setattr(pipeline, "_run_stages", stopped)
    assert main(["train", "--dataset", str(tiny_table), "--out", str(tmp_path / "run"), *TINY, "--threads", "2"]) == 2
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 2
    assert used == [2, 2]


@pytest.mark.slow
def test_no_command_leaves_other_threads(tiny_table: Path, tiny_run: Path, tmp_path: Path) -> None:
    run, table = str(tiny_run), str(tiny_table)
    short = ["--epochs", "1", "--steps-per-epoch", "2", "--d-model", "16", "--layers", "1"]
    commands = [
        ["train", "--dataset", table, "--out", str(tmp_path / "run"), *TINY, "--epochs", "1", "--policy", "rule"],
        ["pretrain", "--dataset", table, "--out", str(tmp_path / "pretrained"), *short],
        ["quantize", str(tmp_path / "run"), "--max-drop", "0.5"],
        ["score", run, "--input", table, "--output", str(tmp_path / "scores.csv")],
        ["evaluate", run, "--dataset", table],
        ["compare", "--dataset", table, "--treatments", "none", "--folds", "1", "--seeds", "1", *short[:4], "--out", str(tmp_path / "c")],
        ["policy", "evaluate", "start", "--number", "1", "--groups", "1"],
        ["doctor"],
    ]
    for command in commands:
        assert main(command) == 0, command[0]
        assert torch.get_num_threads() == CALLER, command[0]


def test_the_service_leaves_them_too(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from balancer.inference.streaming import RowStream
    from balancer.serving.models.registry import LoadedModel
    from balancer.serving.scoring.scorer import Scorer
    from tests.serving.tools import opened, parsed

    model, used, step = LoadedModel.load(tiny_run, "run"), [], RowStream.advance_many
    monkeypatch.setattr(RowStream, "advance_many", lambda *given: (used.append(torch.get_num_threads()), step(*given))[1])
    assert torch.get_num_threads() == CALLER
    row = {"transaction_id": "a", "card_id": "c", "time": "2026-01-05T10:00:00", "amount": 20.0, "merchant_id": "m"}
    row |= {"merchant_category": "grocery", "channel": "chip", "region": "r", "distance_km": 2.5}
    Scorer(opened(f"sqlite:///{tmp_path / 'a.db'}")).score("t", model, [parsed(row, model)])
    assert used == [1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_device() == choose_device("cpu") == "cpu"
    with pytest.raises(UnsupportedError, match="torch finds no CUDA device here"):
        choose_device("cuda")
    for command in (["policy", "evaluate", "auto"], ["policy", "train", "--out", str(tmp_path / "policy")]):
        assert main([*command, "--device", "cuda"]) == 2
        assert capsys.readouterr().err == "error: --device cuda: torch finds no CUDA device here; use --device auto or cpu\n"
    assert not (tmp_path / "policy").exists()
