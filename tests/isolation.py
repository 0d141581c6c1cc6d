"""Run code as if only some distributions were installed: all others can't be imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

_BLOCK = """
import re, sys
from importlib.machinery import PathFinder
blocked, needed = set({blocked!r}), set({needed!r})
class Installed:
    @staticmethod
    def find_distributions(*given, **named):
        every = PathFinder.find_distributions(*given, **named)
        return (each for each in every if re.sub(r"[-_.]+", "-", each.name).lower() in needed)
    @staticmethod
    def find_spec(fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in blocked else PathFinder.find_spec(fullname, path, target)
sys.meta_path[:] = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
"""


def plain(name: str) -> str:
    """The name of a distribution, written in one way."""
    return re.sub(r"[-_.]+", "-", name).lower()


def ranges(*extras: str) -> list[Requirement]:
    """What pyproject.toml lists for the core and for `extras`, those that an extra includes too."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, EXTRAS[extra]):
            found += ranges(*sorted(requirement.extras)) if requirement.name == "balancer" else [requirement]
    return found


def installed(requirements: Iterable[Requirement]) -> set[str]:
    """Names of all distributions that these requirements install, as far as this environment has them."""
    found: set[tuple[str, str]] = set()
    todo = [(requirement, "") for requirement in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in {"", *requirement.extras} - {extra for name, extra in found if name == plain(requirement.name)}:
            found.add((plain(requirement.name), wanted))
            with suppress(metadata.PackageNotFoundError):
                todo += [(Requirement(text), wanted) for text in metadata.requires(requirement.name) or []]
    return {name for name, _ in found}


def run_with_only(requirements: Iterable[Requirement], code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run code where only the standard library, this package and what `requirements` bring can be imported.

    The code finds the names of the modules that can't be imported in `blocked`.
    """
    needed = installed(requirements)
    blocked = {
        module
        for module, owners in metadata.packages_distributions().items()
        if module != "balancer" and not {plain(owner) for owner in owners} & needed
    }
    return subprocess.run(
        [sys.executable, "-c", _BLOCK.format(blocked=sorted(blocked), needed=sorted(needed | {"balancer"})) + code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
