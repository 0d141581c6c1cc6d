"""Every command and every example of the README runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from balancer.cli import COMMANDS, main
from balancer.models.quantization import applying, sensitivities
from benchmarks.report import readme_tables
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SHORT: dict[str, tuple[str, ...]] = {
    "train": TINY,
    "pretrain": (*TINY[:4], *TINY[6:]),
    "compare": (
        "--folds",
        "1",
        "--seeds",
        "1",
        "--epochs",
        "2",
        "--steps-per-epoch",
        "4",
        "--treatments",
        "none,one_to_one,constant:share=.2",
    ),
    "policy train": ("--rollouts", "1", "--budget", "quick"),
    "policy evaluate": ("--number", "2", "--groups", "1"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (spec,) = blocks("toml")
    (tmp_path / "spec.toml").write_text(spec, encoding="utf-8")
    (script,) = blocks("sh")
    commands = [shlex.split(line) for line in script.splitlines()]
    assert {command[1] for command in commands} == set(COMMANDS) - {
        "app",
        "serve",
        "keys",
        "service",
    }  # they wait for a browser, for requests; tests of their own give them some
    for command in commands:
        assert command[0] == "balancer"
        # Real commands at a length that a test can afford; a resumed run takes its length from the run
        # folder.
        short = () if "--resume" in command else SHORT.get(" ".join(command[1:3]), SHORT.get(command[1], ()))
        assert main([*command[1:], *short]) == 0, command
    assert (tmp_path / "scored.parquet").is_file()
    assert (tmp_path / "scored.csv").is_file()


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples(number: int) -> None:
    exec(compile(blocks("python")[number], f"README.md, python block {number}", "exec"), {})


@pytest.mark.parametrize("supported", [("fp32",), ("int8", "fp32"), ("int8", "bf16", "fp32")], ids="-".join)
def test_the_quantization_example_on_any_processor(
    supported: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the processor lacks a planned precision, the example says what each layer got instead, and
    why."""
    (example,) = (block for block in blocks("python") if "apply_precision" in block)
    for module in (applying, sensitivities):
        monkeypatch.setattr(module, "cpu_supports", lambda precision, *_: precision in supported)
    exec(compile(example, "README.md, quantization", "exec"), {})
    printed = capsys.readouterr().out
    assert ("this CPU has no bfloat16 (AVX512-BF16) instructions: fp32" in printed) == ("bf16" not in supported)


def test_make_targets_and_links() -> None:
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    printed = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "balancer train --dataset balancer/data_samples/transactions.parquet" in printed
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_tables_are_those_of_the_result_files() -> None:
    assert README.count("<!-- table ") == len(readme_tables.TABLES)
    assert readme_tables.filled(README) == README
