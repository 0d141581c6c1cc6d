"""The command line of a benchmark script, and the command line of ``balancer``."""

from __future__ import annotations

import argparse
import sys

BALANCER = (sys.executable, "-m", "balancer")
"""Command that runs ``balancer`` in a separate process, with the Python of this process."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows ``description``, the docstring of the script, with its line breaks."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
