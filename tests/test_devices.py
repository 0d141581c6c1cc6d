"""Devices and threads: each call uses its run's number of torch threads and restores the process's number."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from balancer.cli import main
from balancer.devices import choose_device, torch_threads
from balancer.errors import InputError, UnsupportedError
from balancer.runs import trained_run
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
    monkeypatch.setattr(trained_run, "score_rows", lambda *_, **__: used.append(torch.get_num_threads()))
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
    from balancer.serving.scoring.registry import LoadedModel
    from balancer.serving.scoring.scorer import Scorer
    from tests.serving.tools import opened, parsed

    model, used, step = LoadedModel.load(tiny_run, "run"), [], RowStream.step
    monkeypatch.setattr(RowStream, "step", lambda *given: (used.append(torch.get_num_threads()), step(*given))[1])
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
