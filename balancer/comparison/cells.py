"""Finished cells on disk: one small JSON file per (policy, window, seed), whole or absent, so that a comparison can be stopped at any moment."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancer.comparison.config import CompareConfig
from balancer.errors import CorruptFileError, InputError
from balancer.files import read_json, write_json
from balancer.options.flags import flag_of, present_names

FORMAT = 1
CONFIG_FILE = "compare.json"


@dataclass(frozen=True)
class Cell:
    """What one training is called."""

    policy: str
    window: int
    seed: int


class CellFolder:
    """Cells of one comparison.

    Args:
        path: the folder; use :meth:`create` or :meth:`resume`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, said: Mapping[str, Any]) -> CellFolder:
        """Make the folder for a comparison of which ``said`` holds all flags, by field name; InputError where it holds something."""
        if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
            hint = "add --resume to continue that comparison, or " if (path / CONFIG_FILE).is_file() else ""
            raise InputError(f"--out {path} exists and is not empty: {hint}name another folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {path} can't be made: {error.strerror or error}; name another folder") from error
        write_json(path / CONFIG_FILE, {"format": FORMAT, "flags": dict(said)})
        return cls(path)

    @classmethod
    def resume(cls, path: Path, said: Mapping[str, Any], *, may_differ: Collection[str]) -> CellFolder:
        """Open the folder of a comparison with the same flags but for ``may_differ``; InputError naming one that differs."""
        before = cls.flags(path)
        for name in sorted(before.keys() | said.keys()):
            if name not in may_differ and _plain(name, before.get(name)) != _plain(name, said.get(name)):
                raise InputError(
                    f"{flag_of(name)} {said.get(name)} differs from the comparison in {path}, started with {before.get(name)}: "
                    f"leave {flag_of(name)} out to resume it, or name another folder"
                )
        write_json(path / CONFIG_FILE, {"format": FORMAT, "flags": dict(said)})
        return cls(path)

    @staticmethod
    def flags(path: Path) -> dict[str, Any]:
        """All flags of the comparison in ``path``, by field name; InputError where there is none."""
        if not path.is_dir():
            raise InputError(f"--out {path} is no folder: give the one of the comparison to continue, or leave --resume out")
        content = read_json(path / CONFIG_FILE, what="it says what is compared here")
        if content.get("format") != FORMAT or not isinstance(content.get("flags"), dict):
            raise CorruptFileError(f"{path / CONFIG_FILE} was not written by this version of balancer compare: start anew in another folder")
        return present_names(CompareConfig, content["flags"])

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """A finished cell, or None."""
        file = self._file(cell)
        if not file.is_file():
            return None
        content = read_json(file, what="it is a finished cell of the comparison, delete it to have it made again")
        if (content.get("policy"), content.get("window"), content.get("seed")) != (cell.policy, cell.window, cell.seed):
            raise CorruptFileError(f"{file} is of another cell: delete it to have it made again")
        return content

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those not finished yet."""
        return [cell for cell in cells if not self._file(cell).is_file()]

    def write(self, cell: Cell, content: dict[str, Any]) -> None:
        """Finish a cell."""
        file = self._file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"policy": cell.policy, "window": cell.window, "seed": cell.seed} | content)

    def _file(self, cell: Cell) -> Path:
        return self.path / "cells" / slug(cell.policy) / f"window-{cell.window}-seed-{cell.seed}.json"


def slug(name: str) -> str:
    """A policy's name as a file name; one that can't be is told apart by a digest.

    >>> slug("one_to_one"), slug("constant:share=.2")
    ('one_to_one', 'constant-share-.2-bd3b76')
    """
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[-60:]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _plain(name: str, value: Any) -> Any:
    """A flag's value as it is compared: paths by what they lead to."""
    return str(Path(value).resolve()) if name in ("dataset", "spec") and value is not None else value
