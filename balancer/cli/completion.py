"""``balancer completion bash|zsh|fish``: a script that makes a shell complete commands, flags and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from balancer.dependencies import require
from balancer.options.flags import Flag, Options, read_flags


@dataclass(frozen=True, kw_only=True)
class CompletionConfig(Options):
    """Print a script with which the shell completes commands, flags and values of balancer.

    bash: eval "$(balancer completion bash)" in ~/.bashrc. zsh: write the output to a file _balancer in a
    folder of fpath. fish: write it to ~/.config/fish/completions/balancer.fish.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], Flag("Shell that the script is for.", metavar="SHELL", positional=True)]


def main(arguments: Sequence[str]) -> int:
    """Print the script; returns the exit code."""
    config = read_flags(CompletionConfig, "balancer completion", arguments)
    require("shtab", "balancer completion")
    import shtab

    from balancer.cli.flags_of import whole_parser

    print(shtab.complete(whole_parser(), shell=config.shell))
    return 0
