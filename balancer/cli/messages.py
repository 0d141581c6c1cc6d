"""Errors, notes and warnings on stderr: wrapped at words on a terminal, else one line each, for `grep`."""

from __future__ import annotations

import shutil
import sys
import textwrap

NARROWEST = 40


def say(kind: str, text: object) -> None:
    """Print a message on stderr.

    Args:
        kind: `error`, `note` or `warning`.
        text: One sentence.
    """
    print(wrapped(f"{kind}: {text}") if sys.stderr.isatty() else f"{kind}: {text}", file=sys.stderr)


def wrapped(line: str, width: int | None = None) -> str:
    """A long line in lines of the width of the terminal; a path or another long word stays whole.

    >>> print(wrapped("note: numbers in time are read as seconds", 24))
    note: numbers in time
      are read as seconds
    """
    size = max(NARROWEST, shutil.get_terminal_size().columns) if width is None else width
    return "\n".join(
        textwrap.fill(part, size, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) for part in line.splitlines()
    )
