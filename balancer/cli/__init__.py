"""The command line: `balancer COMMAND --flags`.

Each command's flags are a dataclass (balancer.options.flags); its module is imported only when it is called, so `balancer --help` answers at once.
A person's mistake ends in one line and exit code 2, Ctrl-C in how to go on and 130.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": "learn the sampling weights, train a classifier under them, report it beside its baselines",
    "pretrain": "teach a model without labels what follows what, to start from",
    "score": "score rows with a trained run",
    "evaluate": "figures of a trained run on labelled rows",
    "quantize": "make a trained run smaller and faster, within a budget of average precision",
    "export": "a trained run as one file for a machine without torch, or a light build of it",
    "compare": "sampling policies and baselines on a table of yours, over time windows and seeds, with intervals",
    "app": "look at runs in a browser, choose thresholds, compare, train",
    "serve": "balancing sessions and scores of transactions over HTTP",
    "keys": "API keys of the service",
    "policy": "train a sampling policy on a distribution of tasks, or evaluate one",
    "doctor": "what this machine has: versions, device, attention backends",
    "simulate": "make a table of card transactions with fraud in it",
}
EXTRAS = {"app": "app", "compare": "compare", "export": "export", "keys": "serve", "serve": "serve"}
"""The extra that installs what a command needs; `train` for the others."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0 if given else 2
    if given[0] == "--version":
        from balancer import __version__

        print(f"balancer {__version__}")
        return 0
    if given[0] not in COMMANDS:
        print(f"error: unknown command {given[0]!r}: one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(given[0], given[1:])


def _run(name: str, arguments: list[str]) -> int:
    from balancer.dependencies import explained_imports
    from balancer.errors import InputError

    try:
        with explained_imports(f"balancer {name}", f"balancer[{EXTRAS.get(name, 'train')}]"):
            code = import_module(f"balancer.cli.{name}").main(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    assert isinstance(code, int)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: balancer COMMAND [--flags]", "", "Learns how to sample imbalanced data while a model trains on it.", "", "commands:"]
    lines += [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    lines += ["", "balancer COMMAND --help lists the flags of a command; balancer --version prints the version."]
    return "\n".join(lines)
