"""The benchmark of the service: short runs of its parts, and what is recorded."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.claims import service
from benchmarks.lib.service_abuse import abuse
from benchmarks.lib.service_odd_values import drawn


@pytest.fixture
def models(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "models" / "one")
    (tmp_path / "transactions.parquet").touch()
    return tmp_path


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "service.json"
    monkeypatch.setattr(service, "FILE", path)
    monkeypatch.setattr(service.signal, "signal", lambda *_: None)
    monkeypatch.setattr(service, "postgres_programs", lambda: None)
    return path


def test_parts_are_recorded_and_others_kept(file: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(json.dumps({"results": {"storage": {"skipped": "test"}, "of an older version": {}}}))
    monkeypatch.setattr(service, "Size", lambda: service.QUICK)
    service.main(["--only", "step", "trouble", "--models", str(models)])
    content = json.loads(file.read_text())
    assert set(content["results"]) == {"storage", "step", "trouble"}
    assert content["results"]["trouble"] == service.MISSING
    assert "native_of_torch" in content["results"]["step"][0] or content["results"]["step"]["skipped"]
    assert len(content["claims"]) in (0, len(service.STEPS))
    assert {"machine", "versions", "date", "seeds"} <= set(content)


def test_what_was_measured_is_kept_after_an_interruption(file: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_: service.Parts, name: str) -> dict[str, str]:
        if name == "storage":
            raise KeyboardInterrupt
        return {"skipped": name}

    monkeypatch.setattr(service.Parts, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        service.main(["--models", str(models)])
    assert set(json.loads(file.read_text())["results"]) == {"latency", "throughput"}


def test_both_members_must_weigh(models: Path) -> None:
    decision = models / "models" / "one" / "decision.json"
    decision.write_text(json.dumps({"members": {"network": 0.0, "stage2": 1.0}}))
    with pytest.raises(SystemExit, match="must weigh"):
        service.trained(models, "one", 0)


@pytest.mark.slow
def test_a_quick_run(file: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.main(["--quick", "--only", "latency", "storage", "--models", str(models)])
    assert not file.exists()
    shown = capsys.readouterr().out
    assert "SQLite, a history of 16: median" in shown
    assert "processes that have torch loaded" in shown


@pytest.mark.slow
def test_attacks_are_survived(models: Path, tmp_path: Path) -> None:
    found = abuse(tmp_path, models / "models" / "one", None, 0.01, lambda _: None, ["unauthenticated", "big_batches", "race_postgresql"])
    assert found["unauthenticated"]["workers_killed"] == found["big_batches"]["workers_killed"] == 0
    assert found["unauthenticated"]["statuses"] == {"401": 2, "413": 2}
    assert found["big_batches"]["not_stored"] == 0
    assert found["race_postgresql"] == {"skipped": "PostgreSQL is not installed"}


def test_odd_values_are_drawn_for_every_kind_of_request() -> None:
    rng = random.Random(0)
    requests = [drawn(number, rng) for number in range(500)]
    paths = Counter(path.split("?")[0] for _, path, _ in requests)
    assert {"/v1/score", "/v1/labels", "/v1/sessions", "/v1/entities/a%00b"} <= set(paths)
    assert len({method for method, _, _ in requests}) > 5
    assert sum("VALUE HERE" in body for _, _, body in requests) == 0
