"""The command line: ``balancer COMMAND --flags``.

Each command's flags are a dataclass (:mod:`balancer.options.flags`). A command's module is imported only when
the command is called, so that ``balancer --help`` answers at once. Bad input ends in one line on stderr and
exit code 2, Ctrl-C in exit code 130 and the command that continues. Where what reads the output ends early,
as ``head`` does, a command ends quietly.
"""

from __future__ import annotations

import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module

COMMANDS = {
    "inspect": "show the role of each column of a table and why, suspected leaks, and a spec file to start from",
    "prepare": "prepare a large table as a store on disk, in bounded memory, for train, score and the other commands",
    "train": "learn sampling weights, train a fraud classifier with them, and compare it with baselines",
    "pretrain": "pretrain a model without labels (masked fields, next transaction)",
    "score": "score the rows of a table with a trained run",
    "evaluate": "evaluate a trained run on labelled data",
    "report": "print the report of a trained run again, or write it as a one-page PDF",
    "quantize": "reduce a trained run's size and latency within a given drop of average precision",
    "export": "export a trained run to one file for machines without torch",
    "compare": "compare sampling treatments and baselines on your table, over time folds and seeds",
    "app": "open the app in a browser: runs, thresholds, comparisons, training",
    "serve": "serve scores and sampling sessions over HTTP",
    "service": "migrate, purge, back up, restore, import, export and monitor the data of the service",
    "keys": "create, list and revoke API keys of the service",
    "policy": "train a sampling policy on a distribution of tasks, or evaluate one",
    "doctor": "show versions, device and attention backends of this machine",
    "simulate": "simulate a table of card transactions with fraud",
    "completion": "print a script that makes the shell complete commands and flags",
}
EXTRAS = {"app": "app", "compare": "compare", "export": "export", "keys": "serve", "serve": "serve", "service": "serve"}
"""The extra that installs what a command needs; ``train`` for the others."""
SUMMARY = "Learn how to sample imbalanced data while a model trains on it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--version"]:
        from balancer import __version__

        print(f"balancer {__version__}")
        return 0
    from balancer.cli.messages import say
    from balancer.errors import InputError

    try:
        with _short_warnings():
            code = run_command("balancer", SUMMARY, COMMANDS, given, _run)
        sys.stdout.flush()  # what is still buffered may find that nobody reads it
        return code
    except InputError as error:
        say("error", error)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what reads the output has ended, as head does
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
        return 141


def run_command(
    program: str,
    summary: str,
    commands: Mapping[str, str],
    arguments: Sequence[str],
    run: Callable[[str, list[str]], int],
) -> int:
    """Run the command that the arguments begin with, or print the help.

    Args:
        program: What was typed before the arguments.
        summary: What the program does, for the help.
        commands: Description of each command by name.
        arguments: Name of a command and the arguments after it.
        run: Called with both; returns the exit code.

    Returns:
        The exit code: 0 after ``--help``, 2 if no command was given.

    Raises:
        InputError: There is no such command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(program, summary, commands))
        return 0 if arguments else 2
    name = arguments[0]
    if name not in commands:
        from balancer.errors import InputError
        from balancer.options.flags import did_you_mean

        raise InputError(f"unknown command {did_you_mean(name, commands)} ({program} --help)")
    return run(name, list(arguments[1:]))


def _run(name: str, arguments: list[str]) -> int:
    from balancer.dependencies import explained_imports
    from balancer.native_library import forced_instructions

    forced_instructions()  # a wrong name is an error of every command, also of one that uses no kernel or only later
    with explained_imports(f"balancer {name}", f"balancer[{EXTRAS.get(name, 'train')}]"):
        code = import_module(f"balancer.cli.{name}").main(arguments)
    assert isinstance(code, int)
    return code


def _help(program: str, summary: str, commands: Mapping[str, str]) -> str:
    width = max(map(len, commands))
    lines = [f"usage: {program} COMMAND [flags]", "", summary, "", "Commands:"]
    for name, text in commands.items():
        lines += textwrap.wrap(text, 78, initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4))
    return "\n".join([*lines, "", f"{program} COMMAND --help lists the flags of a command."])


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show the warnings of this package, such as that of a renamed flag, in one line each."""
    from balancer.cli.messages import say
    from balancer.options.flags import DeprecatedFlag

    with warnings.catch_warnings():
        warnings.simplefilter("always", DeprecatedFlag)
        show = warnings.showwarning

        def one_line(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
            if category.__module__.startswith("balancer."):
                say("warning", message)
            else:
                show(message, category, *where, **more)  # type: ignore[arg-type]

        warnings.showwarning = one_line
        yield
