"""The clock of a run's stages: it goes on after an interruption."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from balancer.errors import CorruptFileError
from balancer.runs import progress
from balancer.runs.progress import StageClock, TrainingProgress


def test_seconds_are_added_up_over_interruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    clock = StageClock(tmp_path / "seconds.json")
    with pytest.raises(KeyboardInterrupt), clock.stage("policy"):
        now += 10
        raise KeyboardInterrupt
    resumed = StageClock(tmp_path / "seconds.json")
    with resumed.stage("policy"):
        now += 20
    with resumed.stage("run"):
        now += 70
    assert resumed.seconds == {"policy": 30.0, "run": 70.0}
    assert StageClock(tmp_path / "seconds.json").share("policy") == "30 s, 30 % of the run's 100 s"
    assert StageClock(tmp_path / "other.json").share("policy") == "0 s, 0 % of the run's 0 s"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    file.write_text("{")
    with pytest.raises(CorruptFileError, match=r"seconds\.json .*delete it"):
        StageClock(file)


def test_the_time_left_is_not_estimated_from_the_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    file, output = tmp_path / "progress.json", io.StringIO()
    left: list[float | None] = []
    with TrainingProgress(Console(file=output), file) as shown, shown.stage("trees", 700) as advance:
        for step, seconds in ((1, 60.0), (34, 11.0), (35, 11.0), (350, 11.0), (700, 11.0)):
            now += seconds
            advance(step)
            left.append(json.loads(file.read_text())["seconds_left"])
    assert left[:2] == [None, None] and left[2] == pytest.approx(82 / 35 * 665) and left[4] == 0.0
    lines = output.getvalue().splitlines()
    assert "left" not in lines[0] and "left" not in lines[1] and lines[2].endswith("s left)")


def test_a_resumed_stage_estimates_from_its_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    file = tmp_path / "progress.json"
    with TrainingProgress(Console(file=io.StringIO()), file) as shown, shown.stage("trees", 100, 60) as advance:
        for step, wanted in ((61, None), (70, 3 * 2.0 * 2)):
            now += 2.0
            advance(step)
            assert json.loads(file.read_text())["seconds_left"] == wanted
