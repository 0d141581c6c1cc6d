"""Makes `balancer.models`, `balancer.envs`, ... importable in a plain checkout, where their folders stand beside the package.

Installed, the folders lie inside `balancer/` (pyproject's `package-dir` puts them there) and nothing happens here. In a
checkout `models/` and the others stand next to `balancer/`, because they are rooms of their own; a finder of four names
bridges the gap. It acts only where `pyproject.toml` and the folders stand beside the package, and because the package's
first statement imports this module, pytest, `python -m` and spawned workers all have it without doing anything.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

SIBLINGS = ("app", "data_samples", "envs", "models")


class CheckoutFinder(MetaPathFinder):
    """Finds `balancer.<sibling>` in `root/<sibling>`; everything below a sibling is then found by its own `__path__`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = {f"balancer.{name}" for name in SIBLINGS if (root / name).is_dir()}

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        # PathFinder looks for the last part of the name in the folders given, and makes the module under its full name.
        return PathFinder.find_spec(fullname, [str(self.root)], target)


def install(root: Path) -> bool:
    """Put a finder for the checkout at `root` on the meta path, once; says whether `root` is a checkout."""
    if not (root / "pyproject.toml").is_file():
        return False
    finder = CheckoutFinder(root)
    if not finder.names:
        return False
    if not any(isinstance(other, CheckoutFinder) and other.root == root for other in sys.meta_path):
        # In front: a virtual environment may hold an editable install of another checkout, whose finder would answer with its folders.
        sys.meta_path.insert(0, finder)
    return True


install(Path(__file__).resolve().parents[1])
