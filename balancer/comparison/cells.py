"""Finished cells on disk: one small JSON file per (treatment, fold, seed), complete or absent.

So a comparison can be stopped at any moment.
"""

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
from balancer.runs.run_folder import make_folder, refuse_existing

FORMAT = 1
CONFIG_FILE = "compare.json"
RESULT_FILE = "comparison.json"
"""Document of a comparison in its folder; ``--json`` writes a copy of it."""
OLD_KEYS = {"policy": "treatment", "window": "fold", "windows": "folds", "windows_better": "folds_better"}
"""Keys of version 0.1 and their present names."""


@dataclass(frozen=True)
class Cell:
    """Name of one training."""

    treatment: str
    fold: int
    seed: int


class CellFolder:
    """Cells of one comparison.

    Args:
        path: The folder; use :meth:`create` or :meth:`resume`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, flags: Mapping[str, Any]) -> CellFolder:
        """Make the folder of a new comparison.

        Args:
            path: The folder.
            flags: All flags of the comparison, by field name.

        Raises:
            InputError: The folder is not empty, or it can't be made.
        """
        refuse_existing(path, CONFIG_FILE, "comparison")
        make_folder(path)
        write_json(path / CONFIG_FILE, {"format": FORMAT, "flags": dict(flags)})
        return cls(path)

    @classmethod
    def resume(cls, path: Path, flags: Mapping[str, Any], *, may_differ: Collection[str]) -> CellFolder:
        """Open the folder of a comparison to continue it.

        Args:
            path: The folder.
            flags: All flags, by field name.
            may_differ: Flags that may differ from those that the comparison was started with.

        Raises:
            InputError: There is no comparison in the folder, or another flag differs.
        """
        before = cls.flags(path)
        for name in sorted(before.keys() | flags.keys()):
            if name not in may_differ and _plain(name, before.get(name)) != _plain(name, flags.get(name)):
                raise InputError(
                    f"{flag_of(name)} {flags.get(name)} differs from the comparison in {path}, started with {before.get(name)}: "
                    f"leave {flag_of(name)} out to resume it, or name another folder"
                )
        _rename_old_files(path)
        write_json(path / CONFIG_FILE, {"format": FORMAT, "flags": dict(flags)})
        return cls(path)

    @staticmethod
    def flags(path: Path) -> dict[str, Any]:
        """All flags of the comparison in ``path``, by field name.

        Raises:
            InputError: There is no comparison in ``path``.
        """
        if not path.is_dir():
            raise InputError(f"--out {path} is no folder: give the one of the comparison to continue, or leave --resume out")
        content = read_json(path / CONFIG_FILE, what="it says what is compared here")
        if content.get("format") != FORMAT or not isinstance(content.get("flags"), dict):
            raise CorruptFileError(
                f"{path / CONFIG_FILE} was not written by this version of balancer compare: start again in another folder"
            )
        return present_names(CompareConfig, content["flags"])

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The content of a finished cell, or None."""
        file = self._file(cell)
        if not file.is_file():
            return None
        content = present_keys(read_json(file, what="it is a finished cell of the comparison, delete it to train it again"))
        if (content.get("treatment"), content.get("fold"), content.get("seed")) != (cell.treatment, cell.fold, cell.seed):
            raise CorruptFileError(f"{file} is of another cell: delete it to train it again")
        return content

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells that are not finished."""
        return [cell for cell in cells if not self._file(cell).is_file()]

    def write(self, cell: Cell, content: dict[str, Any]) -> None:
        """Store the content of a finished cell."""
        file = self._file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"treatment": cell.treatment, "fold": cell.fold, "seed": cell.seed} | content)

    def _file(self, cell: Cell) -> Path:
        return self.path / "cells" / slug(cell.treatment) / f"fold-{cell.fold}-seed-{cell.seed}.json"


def present_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a cell, or of another mapping, that version 0.1 may have written: with the present keys.

    >>> present_keys({"policy": "auto", "window": 2, "seed": 0})
    {'treatment': 'auto', 'fold': 2, 'seed': 0}
    """
    return {OLD_KEYS.get(key, key): value for key, value in content.items()}


def _rename_old_files(path: Path) -> None:
    """Give files and folders of a comparison that version 0.1 started their present names."""
    for file in [*path.glob("cells/*/window-*"), *path.glob("policies/window-*"), *path.glob("work/window-*")]:
        file.rename(file.with_name(file.name.replace("window-", "fold-", 1)))


def slug(name: str) -> str:
    """The name of a treatment as a file name; a digest keeps names apart that differ in other characters.

    >>> slug("one_to_one"), slug("constant:share=.2")
    ('one_to_one', 'constant-share-.2-bd3b76')
    """
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[-60:]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _plain(name: str, value: Any) -> Any:
    """A flag's value for comparison: paths are resolved, and a list is the text that version 0.1 stored."""
    if isinstance(value, list | tuple):
        return ",".join(value)
    return str(Path(value).resolve()) if name in ("dataset", "spec") and value is not None else value
