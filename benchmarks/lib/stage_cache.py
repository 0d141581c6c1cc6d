"""What `balancer train` has before it trains the network of a detector: tables, trees, sampling policy.

It is made once for each stream and kept under ``runs/network_variants``, so that many networks can be trained
on exactly the same trees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.inference.tree_stages import TreeStages
from balancer.options.train import TrainConfig
from balancer.runs.progress import SECONDS_FILE, StageClock, TrainingProgress
from balancer.runs.run_folder import RunFolder
from balancer.runs.work_files import WorkFiles
from balancer.sampling.policies import load_policy
from balancer.training.opening import opened_run
from balancer.training.policy_stage import learn_policy
from balancer.training.preparation import Prepared
from balancer.training.treatment import Treatment, policy_treatment
from balancer.training.tree_stage import fit_stages
from benchmarks.lib.recording import ROOT
from benchmarks.lib.streams import STREAMS

CACHE = ROOT / "runs" / "network_variants"
"""Not part of the repository."""


@dataclass(frozen=True)
class Stages:
    """A stream with fitted trees."""

    name: str
    prepared: Prepared
    """With the score fields filled, and the network's configuration complete."""
    trees: TreeStages
    treatment: Treatment
    """How the run draws the rows of its network."""
    folder: Path
    """Where more can be kept."""
    second: dict[Split, NDArray[np.float64]]
    """Log-odds of the second stage on the reward and test rows."""

    @property
    def dataset(self) -> Dataset:
        """All fields, the score fields first."""
        return self.prepared.dataset

    def fraud(self, split: Split) -> NDArray[np.bool_]:
        """(n,) whether each row of a split is a fraud."""
        return np.asarray(self.dataset.store.label[self.dataset.rows(split)] > 0)


@contextmanager
def opened_stages(name: str) -> Iterator[Stages]:
    """The stream ``name`` with its trees, which are fitted with seed 0 where they are not there yet.

    Inside the block torch uses one thread.
    """
    stream, console = STREAMS[name], Console(stderr=True)
    path = CACHE / name
    config = TrainConfig(dataset=stream.table, spec=stream.spec, device="cpu", threads=1, seed=0, out=path, budget=stream.budget)  # type: ignore[arg-type]
    saved = RunFolder.open(path) if path.exists() else None
    with opened_run(config, console, saved=saved) as (prepared, run):
        run.work.mkdir(exist_ok=True)
        with TrainingProgress(console) as progress:
            files = WorkFiles(run, console.print)
            trees = fit_stages(prepared, run, files, StageClock(run.work / SECONDS_FILE), progress)
            prepared = prepared.with_network()
            base = prepared.dataset.without_score_fields()
            config = prepared.config
            policy, classes = config.policy, len(base.schema.classes)
            if policy == "ppo":
                policy = str(path / "policy")
                learn_policy(base, config, budget=config.budget, seed=0, folder=Path(policy), device="cpu", progress=progress)
        dataset = prepared.dataset
        second = {split: trees.second_logit(dataset.store.values[dataset.rows(split)]) for split in (Split.REWARD, Split.TEST)}
        treatment = policy_treatment("run", load_policy(policy, num_classes=classes))
        yield Stages(name, prepared, trees, treatment, path, second)
