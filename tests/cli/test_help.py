"""Help of every command, and mistyped commands and flags: as a person in an 80-column terminal meets them."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from balancer.cli import COMMANDS, keys, main, policy, service
from balancer.cli.flags_of import CONFIGS, config_of
from balancer.cli.messages import say
from balancer.options.data import TABLE_KINDS
from balancer.options.flags import parameters

EVERY = [
    *([name] for name in COMMANDS),
    *(["keys", name] for name in keys.COMMANDS),
    *(["policy", name] for name in policy.COMMANDS),
    *(["service", name] for name in service.COMMANDS),
]


def exit_code(arguments: list[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize("command", [[], *EVERY], ids=lambda command: " ".join(command) or "balancer")
def test_help_fits_80_columns(command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert exit_code([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {' '.join(['balancer', *command])} ")
    assert max(map(len, text.splitlines())) <= 80
    assert "==SUPPRESS==" not in text


def test_help_needs_no_library() -> None:
    """The help is fast because nothing heavy is imported; time itself depends on the machine."""
    code = f"""
import sys
from balancer.cli import main

for command in {EVERY!r}:
    try:
        main([*command, "--help"])
    except SystemExit:
        pass
print([name for name in ("numpy", "polars", "rich", "torch", "fastapi") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command trian: did you mean train? (balancer --help)"),
        (["policy", "evalute"], "unknown command evalute: did you mean evaluate? (balancer policy --help)"),
        (["keys", "creat"], "unknown command creat: did you mean create? (balancer keys --help)"),
        (["train", "--epoch", "3"], "unknown flag --epoch: did you mean --epochs? (balancer train --help)"),
        (["train", "--dataset", "x", "--budget", "quik"], "--budget: unknown value 'quik'; did you mean 'quick'?"),
        (["score", "--input", "x"], "RUN is missing: it is required (balancer score --help)"),
        (["simulate"], "--out is missing: it is required (balancer simulate --help)"),
        (["serve", "--prot", "1"], "unknown flag --prot: did you mean --port? (balancer serve --help)"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["keys"], ["policy"]):
        assert main(command) == 2
        assert capsys.readouterr().out.startswith("usage: ")


def test_an_old_flag_works_and_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dataset", "absent.parquet", "--history", "8", "--form", "window"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "warning: --history is now --history-length; the old name will be removed in version 0.3",
        "warning: --form window is now --form rows; the old name will be removed in version 0.3",
        "error: absent.parquet does not exist: check the path of the table",
    ]


def test_messages_are_wrapped_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = "left out of /a/very/long/path/that-has-a-hyphen/mine.csv: " + "a column and " * 9 + "a row"
    say("note", text)
    assert capsys.readouterr().err == f"note: {text}\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    say("note", text)
    shown = capsys.readouterr().err
    assert max(map(len, shown.splitlines())) <= 60
    assert "/a/very/long/path/that-has-a-hyphen/mine.csv:" in shown
    assert " ".join(shown.split()) == f"note: {text}"


@pytest.mark.parametrize("command", ["train", "score", "compare", "evaluate", "inspect", "pretrain"])
def test_help_names_the_kinds_of_tables(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert TABLE_KINDS in shown
    assert all(word in TABLE_KINDS for word in ("Parquet", "CSV", "JSON", ".gz", ".zst", "folder", "Delta"))


def test_every_command_has_its_flags_in_the_list() -> None:
    groups = {"keys", "policy", "service"}
    assert {" ".join(command) for command in EVERY} - groups == set(CONFIGS)


@pytest.mark.parametrize("command", CONFIGS)
def test_the_long_help_has_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.split()
    assert exit_code([*words, "--help"]) == 0
    short = capsys.readouterr().out
    assert exit_code([*words, "--help-all"]) == 0
    shown = capsys.readouterr().out
    known = [each.shown for each in parameters(config_of(command))]
    assert all(name in shown for name in known)
    assert "``" not in shown
    if "--cluster" in known:  # what exchanges data while it works needs Ray also on one machine
        assert ("local with --workers above 1" in " ".join(shown.split())) == (command in ("train", "policy train"))
    left_out = [name for name in known if f"\n  {name} " not in short and f"\n  {name}\n" not in short]
    assert (f"{len(left_out)} more flags: balancer {command} --help-all" in short) == bool(left_out)


def test_the_help_of_train_fits_two_screens(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["train", "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 90


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_flags_and_values(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(
        word in script for word in ("evaluate", "migrate", "budget", "thorough", "label-delay" if shell == "fish" else "--label-delay")
    )


def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = 'COMP_WORDS=(balancer train --budget th); COMP_CWORD=3; $(complete -p balancer | sed "s/.*-F \\([^ ]*\\) .*/\\1/") balancer th --budget; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["thorough"], done.stderr
