"""What needs CUDA is run in parts: their limits, what is kept of each, and what happens without CUDA."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.lib import gpu

ROOT = Path(__file__).resolve().parents[3]
STUB = """
import argparse, json, os, signal, sys, time
options = argparse.ArgumentParser()
options.add_argument("--out"), options.add_argument("--limit"), options.add_argument("--dry", action="store_true")
given = options.parse_args()
def write(**changes):
    about = {"part": "stub", "dry": given.dry, "complete": False, "headline": "1 figure", "seed": 0, "device": {"name": "a device"}}
    about |= {"machine": {}, "versions": {}, "date": "2026-01-01"} | changes
    text = json.dumps({key: value for key, value in about.items() if value is not None})
    open(given.out, "w").write(text)
"""
"""The beginning of a part that needs no torch."""
PARTS = {
    "good": "write(complete=True)",
    "wrong": "write(failed={'a contender': 'OutOfMemoryError'}); raise ImportError('no module named missing')",
    "slow": "write(); sys.stdout.write('still at it'); sys.stdout.flush(); time.sleep(60)",
    "killed": "write(); os.kill(os.getpid(), signal.SIGKILL)",
    "silent": "pass",
    "cut": "open(given.out, 'w').write('{')",
    "poor": "write(complete=True, versions=None)",
    "unfinished": "write()",
}
STATUS = {
    "good": "finished",
    "wrong": "ended with status 1",
    "slow": "stopped at its limit of 4 s",
    "killed": "ended by signal 9",
    **dict.fromkeys(("silent", "cut", "poor", "unfinished"), "wrote no complete result"),
}


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, gpu.Step]:
    """A part of each kind."""
    for name, body in PARTS.items():
        (tmp_path / f"stub_{name}.py").write_text(textwrap.dedent(STUB) + body + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    return {name: gpu.Step(name, f"stub_{name}", 4 if name == "slow" else 60, out / f"gpu_{name}.json") for name in PARTS}


def test_all_parts_fit_into_eight_minutes() -> None:
    assert sum(gpu.PARTS.values()) + 20 <= 8 * 60
    for step in gpu.steps(gpu.PARTS, Path("out"), dry=False):
        assert step.seconds == gpu.PARTS[step.name]
        assert (ROOT / f"{step.module.replace('.', '/')}.py").is_file()
    assert [step.name for step in gpu.steps(["training", "tests"], Path("out"), dry=True)] == ["tests", "training"]


def test_a_part_that_fails_does_not_stop_the_others(stubs: dict[str, gpu.Step], tmp_path: Path) -> None:
    summary = tmp_path / "out" / gpu.SUMMARY
    ended = gpu.run_all(list(stubs.values()), summary, dry=False)
    assert {name: one["status"] for name, one in ended.items()} == STATUS
    content = json.loads(summary.read_text())
    assert content["parts"] == ended
    assert {"machine", "versions", "date"} <= content.keys()
    assert ended["wrong"]["last_lines"][-1] == "ImportError: no module named missing"
    assert ended["slow"]["last_lines"] == ["still at it"]
    assert [name for name, one in ended.items() if one["result"]] == ["good", "wrong", "slow", "killed", "unfinished"]
    shown = gpu.table(ended, list(stubs.values()), dry=False).splitlines()
    assert shown[1].endswith("1 figure")
    assert shown[2].endswith("ended with status 1; ImportError: no module named missing; 1 figure; 1 failed")
    assert shown[3].endswith("stopped at its limit of 4 s; still at it; 1 figure")


def test_a_result_of_an_earlier_run_does_not_count(stubs: dict[str, gpu.Step]) -> None:
    stubs["silent"].file.write_text(json.dumps({"complete": True}))
    found = gpu.run(stubs["silent"], dry=False)
    assert (found["status"], found["written"], found["result"]) == ("wrote no complete result", False, "")


def interrupt_when_written(file: Path) -> None:
    """Interrupt this process, as Ctrl-C does, when there is a file that can be read."""
    end = time.monotonic() + 40
    while gpu.result_of(file) is None and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGALRM)


def test_interrupting_keeps_what_was_finished(stubs: dict[str, gpu.Step], tmp_path: Path) -> None:
    summary = tmp_path / "out" / gpu.SUMMARY
    gpu.run_all([stubs["killed"]], summary, dry=False)
    chosen = [stubs["good"], gpu.Step("slow", "stub_slow", 50, stubs["slow"].file), stubs["silent"]]
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    waiting = threading.Thread(target=interrupt_when_written, args=(stubs["slow"].file,))
    waiting.start()
    try:
        ended = gpu.run_all(chosen, summary, dry=False)
    finally:
        waiting.join()
        signal.signal(signal.SIGALRM, before)
    assert {name: one["status"] for name, one in ended.items()} == {"good": "finished", "slow": "interrupted"}
    assert ended["slow"]["result"] == "1 figure"
    assert list(json.loads(summary.read_text())["parts"]) == ["killed", "good", "slow"]
    assert gpu.table(ended, chosen, dry=False).splitlines()[-1].split() == ["silent", "-", "not", "started"]


def test_a_dry_run_is_no_result_of_a_gpu(stubs: dict[str, gpu.Step], tmp_path: Path) -> None:
    summary = tmp_path / "out" / gpu.SUMMARY
    gpu.run_all([stubs["killed"]], summary, dry=False)
    gpu.run_all([stubs["good"]], summary, dry=True)
    content = json.loads(summary.read_text())
    assert content["dry"] is True
    assert list(content["parts"]) == ["good"]


def shell(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run gpu.sh with results in ``folder``/out."""
    settings = os.environ | {"OUT": "out", "PYTHON": sys.executable} | environment
    command = [ROOT / "benchmarks" / "gpu.sh", *arguments]
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_nothing_is_written(tmp_path: Path) -> None:
    done = shell(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no CUDA device" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = shell(tmp_path, "--dry", "--only", "tests", "graphics")
    assert done.returncode == 2
    assert "invalid choice: 'graphics'" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("ended with status 1", 1), ("interrupted", 130)])
def test_a_dry_run_leaves_the_results_of_the_repository(status: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def run_all(chosen: list[gpu.Step], summary: Path, *, dry: bool) -> dict[str, dict[str, Any]]:
        assert dry
        folders.extend([summary.parent, *(step.file.parent for step in chosen)])
        return {"tests": {"status": status, "seconds": 1.0, "result": "", "last_lines": []}}

    monkeypatch.setattr(gpu, "run_all", run_all)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    assert gpu.main(["--dry", "--only", "tests"]) == code
    assert len(folders) == 2 and not any(folder.exists() or ROOT in folder.parents for folder in folders)


@pytest.mark.slow
def test_a_dry_run_goes_through_every_part(tmp_path: Path) -> None:
    done = shell(tmp_path, "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert list(summary["parts"]) == list(gpu.PARTS)
    for name, one in summary["parts"].items():
        assert one["status"] == "finished" and "failed" not in one, one
        content = json.loads((tmp_path / "out" / f"gpu_{name}.json").read_text())
        assert content["dry"] and content["complete"] and content["headline"] == ""
        assert content["device"]["name"] == "cpu"
    assert done.stdout.count("no figures of a GPU") == len(gpu.PARTS)
    found = {name: json.loads((tmp_path / "out" / f"gpu_{name}.json").read_text()) for name in gpu.PARTS}
    check(found)


def check(found: dict[str, dict[str, Any]]) -> None:
    """Every part of a dry run has computed what it measures on CUDA, but for what exists there only."""
    tests = found["tests"]["tests"]
    assert tests["collected"] == tests["skipped"] > 0
    cells = found["attention"]["kernels"]["cells"]
    assert {(cell["dtype"], cell["passes"]) for cell in cells} == {
        (d, p) for d in ("bfloat16", "float32") for p in ("forward", "forward_backward")
    }
    for cell in cells:
        flex = {"flex window"} if cell["passes"] == "forward" else set()
        assert cell["milliseconds"].keys() == {"dense", "torch block", "torch sliding"} | flex
    assert all(name.startswith(("triton", "flex window")) or "as a graph" in name for name in found["attention"]["skipped"])
    assert set(found["population"]["student_batches_per_second"]) == {"2", "4"}
    assert found["population"]["training"]["env_steps_per_second"] > 0
    models = found["quantization"]["cells"]
    assert len(models) == 2
    kept = {name.partition(": ")[2] for name in found["quantization"]["skipped"]}
    assert kept <= {"bitsandbytes INT8", "torch FP8"}
    for cell in models:
        assert cell["milliseconds"].keys() | kept >= {"FP32", "BF16", "torch INT8", "bitsandbytes INT8", "torch FP8"}
        assert all(value > 0.99 for value in cell["cosine"].values())
        assert cell["layers"].keys() | kept >= {"torch INT8", "torch INT8, attention BF16", "bitsandbytes INT8"}
    assert list(found["training"]["trainings"]) == ["fp32, AdamW"]
    assert "adamw8bit needs a CUDA device" in found["training"]["skipped"]["bf16, AdamW8bit"]
