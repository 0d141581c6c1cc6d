"""``torchrun`` trains a run with two processes; one of them is killed in mid-epoch and replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from balancer.cli import main
from balancer.runs.run_folder import RunFolder
from benchmarks.lib.logged_training import train
from benchmarks.lib.scale_runs import rows_by_step
from tests.conftest import TINY

STEPS = 8
"""Steps of an epoch of `TINY`, which has two."""
KILLED = 11
"""The step, in the second epoch, before which a process is killed."""


@pytest.fixture(scope="module")
def flags(tiny_table: Path) -> list[str]:
    learning = ["--learner", "network", "--policy", "auto", "--precision", "full", "--micro-batches", "2", "--deterministic"]
    return ["--dataset", str(tiny_table), *learning, *TINY]


def test_a_killed_process_is_replaced_and_no_row_is_lost_or_drawn_twice(flags: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for log in (one, two):
        log.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["-m", "benchmarks.lib.logged_training", str(two), str(KILLED), "--out", str(two / "run"), *flags]
    root = Path(__file__).resolve().parents[2]
    started = subprocess.Popen(
        command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert train(one, 0, ["--out", str(one / "run"), *flags]) == 0  # meanwhile, in this process alone
    output, _ = started.communicate(timeout=110)
    assert started.returncode == 0, output
    assert output.count("Average precision") == 1, "one process prints"
    expected, first, second = rows_by_step(one, 0), rows_by_step(two, 0), rows_by_step(two, 1)
    assert sorted(expected) == list(range(2 * STEPS))
    assert max(first) < KILLED + 1
    assert sorted(second) == list(range(STEPS, 2 * STEPS)), "the first epoch was finished, the second is drawn again"
    assert {step: first[step] for step in range(STEPS)} | second == expected
    predictions = [pl.read_parquet(folder / "run" / "predictions.parquet") for folder in (one, two)]
    assert predictions[0].equals(predictions[1])
    config = RunFolder.open_complete(two / "run").config()
    assert (config.micro_batches, config.deterministic) == (2, True)


@pytest.fixture
def as_one_of_two(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """Call the command as torchrun does."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    return main


def test_what_can_not_be_combined(
    as_one_of_two: Callable[[list[str]], int], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert as_one_of_two(["train", *flags]) == 2
    assert "--out is missing: several processes need a run folder that all of them see" in capsys.readouterr().err
    assert as_one_of_two(["train", *flags, "--out", str(tmp_path / "run"), "--workers", "2"]) == 2
    assert "--cluster starts the processes itself: leave torchrun out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
