"""docs/scale.md: what one machine can do is run, and of every other command the flags are real."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from balancer.cli import main
from balancer.cli.flags_of import CONFIGS, config_of
from balancer.options.flags import from_dict, parse
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
SHORT = {
    "simulate": ("--rows", "6000", "--fraud-rate", "0.03", "--seed", "3"),
    "train": (*TINY, "--policy", "auto", "--learner", "network", "--precision", "full"),
    "compare": ("--epochs", "2", "--steps-per-epoch", "4", "--batch-size", "64"),
}
"""Flags that make a command of the page short."""
ELSEWHERE = ("ray", "kubectl", "curl")
"""Programs that need a cluster or a running service."""


def commands() -> list[list[str]]:
    """The words of all commands, without those that are continued on the next line being cut."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [shlex.split(line) for line in lines]


def of_balancer(words: list[str]) -> list[str] | None:
    """The words after ``balancer``, also where torchrun or a job of Ray starts it."""
    return words[words.index("balancer") + 1 :] if "balancer" in words else None


def is_run(words: list[str]) -> bool:
    """Whether a command needs nothing but this process."""
    return words[0] == "balancer" and not {"--workers", "--cluster"} & set(words)


def test_commands_of_one_process_do_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in filter(is_run, commands()):
        assert main([*words[1:], *SHORT.get(words[1], ())]) == 0, words
    assert len(list((tmp_path / "scores").glob("part-*.parquet"))) == 8
    assert (tmp_path / "runs" / "compared" / "comparison.json").is_file()


def test_flags_of_the_others_are_real() -> None:
    others = [words for words in commands() if not is_run(words)]
    assert {words[0] for words in others} == {"balancer", "torchrun", *ELSEWHERE}
    for given in filter(None, map(of_balancer, others)):
        command = next(name for name in CONFIGS if given[: len(name.split())] == name.split())
        config = config_of(command)
        typed = parse(config, f"balancer {command}", given[len(command.split()) :])
        if not typed.get("resume"):
            from_dict(config, typed)


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"\bdeploy/[\w./]*\w", PAGE))
    assert named
    assert all((ROOT / name).exists() for name in named)
