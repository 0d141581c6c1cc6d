"""A run killed at random moments and resumed ends in the same bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balancer.cli import main
from tests.conftest import FINE_TUNED, HYBRID, TINY
from tests.training.test_pipeline import report_of, without_times


def start(out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "balancer", "train", "--out", str(out), *flags]
    # A shell that runs the tests in its background hands on an ignored Ctrl-C; a person's shell does not.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)


def written(out: Path) -> set[str]:
    """What is finished so far: files of the policy and of the stages after it."""
    return {str(path) for folder in ("policy", "work") for path in out.glob(f"{folder}/*")}


@pytest.mark.slow
def test_killed_at_three_random_moments(tiny_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    moments, out = random.Random(20), tmp_path / "run"
    flags: tuple[str, ...] = ("--dataset", str(tiny_table), *HYBRID, *TINY, *FINE_TUNED)
    kills = 0
    while kills < 3:
        process = start(out, *flags)
        before = written(out)
        # Wait until this process has written something, so that three kills hit three different places of the
        # work.
        while process.poll() is None and written(out) <= before:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 0.8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        if (out / "run.json").exists():
            flags = ("--resume",)
    process = start(out, *flags)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert without_times(report_of(out)) == without_times(report_of(tiny_run))
    for name in ("model.safetensors", "policy/policy.safetensors", "decision.json"):
        assert (out / name).read_bytes() == (tiny_run / name).read_bytes()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_a_second_process_is_refused(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    # Long enough to be at work still when the signal comes, on a busy machine too.
    process = start(out, "--dataset", str(tiny_table), *HYBRID, *TINY, "--epochs", "400")
    while process.poll() is None and not list(out.glob("work/*")):
        time.sleep(0.02)
    assert main(["train", "--resume", "--out", str(out)]) == 2
    assert "another balancer process" in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    assert f"balancer train --resume --out {out}" in output
    assert "Traceback" not in output


def test_a_changed_table_is_refused_on_resume(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    content = json.loads((tiny_run / "run.json").read_text())
    content |= {"status": "running", "fingerprint": "0" * 64}
    (out / "run.json").write_text(json.dumps(content))
    assert main(["train", "--resume", "--out", str(out)]) == 2
    assert "changed since" in capsys.readouterr().err
