"""``balancer train --cluster`` on two nodes: a killed worker is replaced, with the results of one process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch.distributed as dist

from balancer.cli import main
from balancer.cluster.workers import Say
from balancer.runs.run_folder import RunFolder
from balancer.training import on_cluster
from balancer.training.on_cluster import Shared
from balancer.training.trainer import ClassifierTrainer
from tests.cli.several_processes import SHORT
from tests.conftest import TINY

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context"),
]

KILLED = 11
"""The step, in the second epoch, before which worker 1 is killed."""
train_worker = on_cluster.train_worker


def _killed_once(shared: Shared, restarts: int, say: Say) -> None:
    """A worker; number 1 kills itself where it was not started again."""
    one_pass = ClassifierTrainer._pass

    def deadly(self: ClassifierTrainer, *arguments: Any) -> Any:
        if self.step == KILLED and restarts == 0 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return one_pass(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SHORT.items():
            patch.setattr(name, value)
        patch.setattr(ClassifierTrainer, "_pass", deadly)
        train_worker(shared, restarts, say)


@pytest.fixture
def flags(tiny_table: Path) -> list[str]:
    learning = ["--learner", "network", "--policy", "auto", "--precision", "full", "--micro-batches", "2", "--deterministic"]
    return ["--dataset", str(tiny_table), *learning, *TINY]


def test_a_killed_worker_is_replaced(
    cluster: Any, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_cluster, "train_worker", _killed_once)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *flags, "--out", "run", "--cluster", cluster.address, "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"2 workers, each with 1 CPU, on {cluster.address}" in printed
    assert "classifier: continuing at 1/2" in printed, "it was resumed after the first epoch"
    assert "Average precision" in printed, "the report is printed here"
    for name, value in SHORT.items():
        monkeypatch.setattr(name, value)
    assert main(["train", *flags, "--out", "alone"]) == 0
    tables = [pl.read_parquet(folder / "predictions.parquet") for folder in (tmp_path / "run", tmp_path / "alone")]
    assert tables[0].equals(tables[1])
    config = RunFolder.open_complete(tmp_path / "run").config()
    assert (config.micro_batches, config.out, config.workers) == (2, tmp_path / "run", 2)


def test_errors_of_workers_are_those_of_the_command(
    cluster: Any, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = ["train", *flags, "--out", str(tmp_path / "run"), "--cluster", cluster.address]
    monkeypatch.setattr(on_cluster, "MARK", ".elsewhere")
    monkeypatch.setattr(on_cluster, "train_worker", _of_another_folder)
    assert main([*started, "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert "is not on storage that this worker shares with the machine where balancer train was started" in error
    assert not (tmp_path / "run").exists()
    assert main([*started, "--workers", "3"]) == 2
    assert "--micro-batches is 2: give a multiple of the 3 processes of --workers" in capsys.readouterr().err
    assert main([*started, "--device", "cuda"]) == 2
    assert "--device cuda: the cluster has 0 GPUs" in capsys.readouterr().err
    assert main(["train", *flags, "--workers", "2"]) == 2
    assert "--out is missing: several processes need a run folder" in capsys.readouterr().err


def _of_another_folder(shared: Shared, restarts: int, say: Say) -> None:
    """A worker that does not see the file of the machine where the command was typed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_cluster, "VISIBLE_SECONDS", 0.1)
        train_worker(shared, restarts, say)
