"""Files of the finished steps of a run that was interrupted: used again only where they are what was written.

What is special: a step whose file was replaced, cut or damaged since is done again, with a note, so a resumed
run never mixes two runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from balancer.errors import CorruptFileError
from balancer.files import file_digest, read_json, write_json
from balancer.runs.run_folder import RunFolder

DIGESTS_FILE = "digests.json"
"""Name of the file with the digests, beside those of the steps."""


class WorkFiles:
    """The files of finished steps with their digests.

    Args:
        folder: The run.
        say: Prints a note.

    Raises:
        CorruptFileError: `DIGESTS_FILE` is damaged.
    """

    def __init__(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        self._root, self._say = folder.path, say
        self._file = folder.work / DIGESTS_FILE
        what = "it holds the digests of the finished steps, delete it to do them again"
        self._digests = read_json(self._file, what=what) if self._file.is_file() else {}
        # A version without digests began the run: its files are taken as they are.
        self._as_they_are = not self._file.is_file()

    def keep(self, *files: Path) -> None:
        """Store the digests of the files of a step, which are complete."""
        self._digests |= {self._name(file): file_digest(file) for file in files}
        write_json(self._file, self._digests)

    def finished(self, *files: Path) -> bool:
        """Whether a step is finished: all its files are there and are those that it wrote.

        Files that are not are removed, with a note.
        """
        if not all(file.is_file() for file in files):
            return False
        if self._as_they_are:
            self.keep(*(file for file in files if self._name(file) not in self._digests))
        changed = [file for file in files if self._digests.get(self._name(file)) != file_digest(file)]
        if not changed:
            return True
        self._say(f"note: {changed[0]} is not what this run wrote: its step is done again")
        for file in files:
            file.unlink()
        return False

    def readable(self, file: Path, read: Callable[[Path], object]) -> bool:
        """Whether a file of an unfinished step can be read; it is removed, with a note, if it can't."""
        if not self.finished(file):
            return False
        try:
            read(file)
        except CorruptFileError:
            self._say(f"note: {file} is damaged: its step is done again")
            file.unlink()
            return False
        return True

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()
