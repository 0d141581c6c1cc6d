"""``balancer compare`` in two processes and on two nodes: the results of one process, also after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from balancer.comparison.cells import CellFolder
from balancer.comparison.config import CompareConfig
from balancer.comparison.running import run_comparison
from balancer.errors import InputError
from balancer.runs.progress import PROGRESS_FILE, TrainingProgress

pytestmark = pytest.mark.xdist_group("ray")


class _Stopped(TrainingProgress):
    """A progress display that stops the comparison after some finished cells."""

    def say(self, text: str) -> None:
        super().say(text)
        if " AP " in text:
            raise KeyboardInterrupt


def _config(table: Path, out: Path, **changed: Any) -> CompareConfig:
    base = CompareConfig(
        dataset=table,
        treatments=("none", "ppo", "constant"),
        folds=1,
        seeds=2,
        epochs=2,
        steps_per_epoch=4,
        batch_size=64,
        search_trials=2,
        ppo_rollouts=1,
        out=out,
        device="cpu",
    )
    return replace(base, **changed)


@pytest.mark.parametrize("on_cluster", [False, True])
def test_cells_of_a_stopped_and_resumed_comparison_are_those_of_one_process(
    on_cluster: bool, cluster: Any, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balancer.runs.progress.LOG_SECONDS", 0.0)
    quiet = Console(quiet=True)
    _, alone = run_comparison(_config(tiny_table, tmp_path / "alone"), TrainingProgress(quiet))
    config = _config(tiny_table, tmp_path / "cluster", cluster=cluster.address if on_cluster else None, workers=2)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(config, _Stopped(quiet))
    kept = len(list((tmp_path / "cluster").glob("cells/*/*.json")))
    assert 0 < kept < 6
    _, found = run_comparison(replace(config, resume=True), TrainingProgress(quiet))
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(alone | {"flags": found["flags"]}))
    assert not {"cluster", "workers"} & set(CellFolder.flags(tmp_path / "cluster"))
    assert not (tmp_path / "cluster" / "work").exists()
    assert not (tmp_path / "cluster" / PROGRESS_FILE).exists()


def test_a_gpu_that_no_machine_has_is_refused(cluster: Any, tiny_table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a task takes 1 GPU, and no machine of the cluster has more than 0: use --device cpu"):
        run_comparison(_config(tiny_table, tmp_path / "c", cluster=cluster.address, device="cuda"), TrainingProgress(Console(quiet=True)))


def test_no_folder_is_made_where_no_cluster_answers(tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any) -> Any:
        raise InputError("no cluster answers")

    monkeypatch.setattr("balancer.comparison.running.connected", silent)
    with pytest.raises(InputError, match="no cluster answers"):
        run_comparison(_config(tiny_table, tmp_path / "out", cluster="127.0.0.1:1"), TrainingProgress(Console(quiet=True)))
    assert not (tmp_path / "out").exists()
