"""Settings shared by all tests: one thread per process, seeded examples, and no accelerator unless it is
asked for."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before NumPy, torch and polars are first imported: workers of pytest-xdist share the cores, and sums in a
# fixed order repeat exactly.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("KERAS_BACKEND", "torch")  # else Keras takes TensorFlow
# Processes that tests start may keep compiled modules: compiling the package takes them half a second each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What is measured while other tests keep the cores busy is not kept for the user.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="balancer-tests-")

import pytest
from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what all tests import out of garbage collection, which would walk it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give whole files to the workers of `-n`, unless `--dist` asks for something else."""
    from tests.scheduling import ByFile

    return ByFile(config, log) if config.getvalue("dist") == "load" else None


TINY = (
    *("--epochs", "2", "--steps-per-epoch", "8", "--policy", "auto", "--history-length", "6"),
    *("--d-model", "16", "--layers", "1", "--threads", "1"),
)
"""Flags that make a run of a few seconds: everything real, everything short."""
FINE_TUNED = ("--policy", "ppo", "--policy-rollouts", "1")
"""Flags after `TINY` for a policy that is fine-tuned on the table, as in a run without flags."""
HYBRID = ("--learner", "hybrid")
"""The tiny table has too few frauds for trees where nothing is said."""


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated transactions: 6,000 rows of 120 days, 3 % fraud."""
    from balancer.data.simulation.stream import simulate, write_simulation

    path = tmp_path_factory.mktemp("tiny") / "transactions.parquet"
    write_simulation(simulate(6_000, seed=3, fraud_rate=0.03), path)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_table: Path) -> Path:
    """A finished run on the tiny table; read it, don't write it."""
    from balancer.cli import main

    out = tiny_table.parent / "run"
    assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *HYBRID, *TINY, *FINE_TUNED]) == 0
    return out


@pytest.fixture(scope="session")
def network_run(tiny_table: Path) -> Path:
    """A finished run of a network without boosted trees on the tiny table; read it, don't write it."""
    return _run_with(tiny_table, "network")


@pytest.fixture(scope="session")
def trees_run(tiny_table: Path) -> Path:
    """A finished run of boosted trees without a network on the tiny table; read it, don't write it."""
    return _run_with(tiny_table, "trees")


@contextmanager
def fewer_trees() -> Iterator[None]:
    """Fit few boosted trees, where a test is about something else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balancer.training.tree_fitting.FIXED_ROUNDS", 15)
        patch.setattr("balancer.evaluation.baselines.MAX_ROUNDS", 15)
        yield


@pytest.fixture
def few_trees() -> Iterator[None]:
    """`fewer_trees` during a test; shared runs are complete before it begins."""
    with fewer_trees():
        yield


def _run_with(table: Path, learner: str) -> Path:
    from balancer.cli import main

    out = table.parent / f"{learner}_run"
    with fewer_trees():
        assert main(["train", "--dataset", str(table), "--out", str(out), "--learner", learner, *TINY]) == 0
    return out
