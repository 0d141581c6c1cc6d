"""The clock of a run's stages: it goes on after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from balancer.errors import CorruptFileError
from balancer.runs import progress
from balancer.runs.progress import StageClock


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
