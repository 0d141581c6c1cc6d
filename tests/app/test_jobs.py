"""Processes that outlive the page: started, watched, stopped, resumed; names and uploads that stay where they
belong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from balancer.app import jobs
from balancer.app.browsing import metrics_so_far, progress_of, read_run
from balancer.errors import InputError
from tests.conftest import FINE_TUNED, HYBRID, TINY

T = TypeVar("T")


def until(reached: Callable[[], T], seconds: float = 600) -> T:
    """Return the first true value of ``reached``; the limit only ends a test that hangs, on a slow machine
    too."""
    deadline = time.monotonic() + seconds
    while not (value := reached()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return value


def advanced(job: jobs.Job) -> dict[str, Any] | None:
    """The progress of a job, once it has finished a step of its stage."""
    now = progress_of(job.out)
    return now if now is not None and now["done"] > 0 else None


@pytest.mark.slow
def test_started_watched_stopped_and_resumed_to_the_same_end(tiny_table: Path, tiny_run: Path, tmp_path: Path) -> None:
    flags = ["--dataset", str(tiny_table), *HYBRID, *TINY, *FINE_TUNED]
    job = jobs.start(tmp_path, "mine", "train", flags)
    assert job.alive
    with pytest.raises(InputError, match="already"):
        jobs.start(tmp_path, "mine", "train", flags)
    until(lambda: progress_of(job.out) is not None or not job.alive)
    (found,) = jobs.find_jobs(tmp_path)  # as another session sees it
    assert (found.name, found.kind, found.pid) == ("mine", "train", job.pid)
    found.stop()
    assert not job.alive
    assert job.error is None
    state = read_run(job.out)
    assert (state.status, "--resume" in state.problem) == ("stopped", True)
    again = jobs.start(tmp_path, "mine", "train", [], resume=True)
    until(lambda: not again.alive)
    assert read_run(job.out).status == "complete", again.tail()
    same = (job.out / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()
    assert same  # pytest would compare the bytes one by one to show a difference
    assert "continuing" in again.tail() or "1/1" in again.tail()


@pytest.mark.slow
def test_progress_and_metrics_of_a_running_job(tiny_table: Path, tmp_path: Path) -> None:
    job = jobs.start(
        tmp_path, "long", "train", ["--dataset", str(tiny_table), *TINY, "--epochs", "300", "--policy", "auto", "--learner", "network"]
    )
    try:
        # The metrics of an epoch are written before its progress, so that progress is what the test waits
        # for.
        now = until(lambda: advanced(job) or not job.alive)
        assert isinstance(now, dict), job.tail()
        assert read_run(job.out).status == "running"
        assert now["stage"] == "classifier"
        assert 0 < now["done"] <= now["total"] == 300
        metrics = metrics_so_far(job.out)
        assert metrics.height > 0
        assert metrics["average_precision"].is_between(0, 1).all()
    finally:
        job.stop()


def test_what_a_job_ended_with_is_told(tmp_path: Path) -> None:
    job = jobs.start(tmp_path, "bad", "train", ["--dataset", str(tmp_path / "missing.parquet")])
    until(lambda: not job.alive)
    assert "missing.parquet" in str(job.error)
    assert not job.out.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-flag", ".jobs", "x" * 65, "a b", "ä"])
def test_names_that_are_no_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="name"):
        jobs.start(tmp_path / "runs", name, "train", [])
    assert not (tmp_path / "runs").exists()


def test_uploads_stay_in_their_folder_and_within_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    for name, kept in (("../../etc/passwd.csv", "passwd.csv"), ("a b!.PARQUET", "a_b.parquet"), ("....csv", "table.csv")):
        assert jobs.keep_upload(runs, name, b"x") == runs.resolve() / "uploads" / kept
    for name, kept in (("a.b.csv.gz", "a_b.csv.gz"), ("x.JSONL.zst", "x.jsonl.zst"), ("x.tsv", "x.tsv"), ("x.gz", "x.gz")):
        assert jobs.keep_upload(runs, name, b"x") == runs.resolve() / "uploads" / kept
    with pytest.raises(InputError, match="not a table"):
        jobs.keep_upload(runs, "model.pkl", b"x")
    monkeypatch.setattr(jobs, "MAX_UPLOAD", 3)
    with pytest.raises(InputError, match="more than"):
        jobs.keep_upload(runs, "big.csv", b"1234")


def test_damaged_notes_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".jobs").mkdir()
    (tmp_path / ".jobs" / "damaged.json").write_text("{")
    (tmp_path / ".jobs" / "odd.json").write_text(json.dumps({"kind": "train"}))
    assert jobs.find_jobs(tmp_path) == []
