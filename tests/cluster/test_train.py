"""``balancer train --cluster`` on two nodes: a killed worker is replaced, with the results of one process."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch.distributed as dist

from balancer.cli import main
from balancer.cluster.workers import Lines, Say, _run
from balancer.errors import InputError, LostWorkerError
from balancer.options.train import TrainConfig
from balancer.runs.run_folder import RunFolder
from balancer.training import on_cluster
from balancer.training.on_cluster import Shared
from balancer.training.trainer import ClassifierTrainer
from benchmarks.lib.logged_training import SHORT
from tests.conftest import TINY

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context"),
]

KILLED = 11
"""The step, in the second epoch, before which worker 1 is killed."""
train_worker = on_cluster.train_worker


def _killed_once(shared: Shared, restarts: int, say: Say) -> None:
    """A worker; number 1 kills itself once, as a file beside the run folder says."""
    one_pass = ClassifierTrainer._pass
    assert shared[0].out is not None
    killed = shared[0].out.parent / "killed"

    def deadly(self: ClassifierTrainer, *arguments: Any) -> Any:
        if self.step == KILLED and dist.get_rank() == 1 and not killed.exists():
            killed.touch()
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


def test_flags_that_do_not_fit_the_cluster(cluster: Any, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = ["train", *flags, "--out", str(tmp_path / "run"), "--cluster", cluster.address]
    assert main([*started, "--workers", "3"]) == 2
    assert "--micro-batches is 2: give a multiple of the 3 processes of --workers" in capsys.readouterr().err
    assert main([*started, "--device", "cuda"]) == 2
    assert "--device cuda: the cluster has 0 GPUs" in capsys.readouterr().err
    assert main(["train", *flags, "--workers", "2"]) == 2
    assert "--out is missing: several processes need a run folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_number_of_workers_where_none_is_given() -> None:
    config = TrainConfig(dataset=Path("x"), cluster="auto", threads=2)
    assert on_cluster._workers(config, {"CPU": 7.0}) == (3, False)
    assert on_cluster._workers(config, {"CPU": 16.0, "GPU": 2.0}) == (2, True)
    assert on_cluster._workers(replace(config, micro_batches=6), {"CPU": 10.0}) == (3, False), "a number that divides the micro-batches"
    assert on_cluster._workers(replace(config, workers=4, device="cpu"), {"CPU": 10.0, "GPU": 8.0}) == (4, False)


@pytest.mark.usefixtures("cluster")
def test_errors_of_a_worker_are_kept_and_a_lost_one_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, as Ray calls a worker."""
    import ray

    class Context:
        def get_world_rank(self) -> int:
            return 0

    def failing(error: Exception, restarts: int, say: Say) -> None:
        say(f"start {restarts}")
        raise error

    monkeypatch.setattr("ray.train.get_context", Context)
    lines = ray.remote(num_cpus=0)(Lines).remote()
    with pytest.raises(LostWorkerError):
        _run({"function": failing, "shared": LostWorkerError("gone"), "lines": lines, "gpu": False})
    assert ray.get(lines.error.remote()) is None
    _run({"function": failing, "shared": InputError("no table"), "lines": lines, "gpu": False})
    assert ray.get(lines.error.remote()) == "no table"
    assert ray.get(lines.taken.remote()) == ["start 0", "start 1"]
    ray.kill(lines)


def test_a_run_folder_that_a_worker_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_cluster, "VISIBLE_SECONDS", 0.0)
    (tmp_path / on_cluster.MARK).write_text("of another start")
    with pytest.raises(InputError, match=f"--out {tmp_path} is not on storage that this worker shares with the machine"):
        on_cluster._check_mark(tmp_path / on_cluster.MARK, "1234")
    (tmp_path / on_cluster.MARK).write_text("1234")
    on_cluster._check_mark(tmp_path / on_cluster.MARK, "1234")
