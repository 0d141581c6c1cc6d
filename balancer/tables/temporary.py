"""Temporary copies of tables: text that had to be decompressed, decoded or cleaned before it can be scanned.

A copy is deleted when nothing refers to it any more, at the latest when the process ends.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from balancer.errors import UnwritableFileError, reason_of


class TemporaryCopy:
    """A file in the folder for temporary files.

    Args:
        suffix: End of its name.

    Raises:
        UnwritableFileError: If the file can't be created.
    """

    def __init__(self, suffix: str = "") -> None:
        with written():
            handle, name = tempfile.mkstemp(prefix="balancer-", suffix=suffix)
        os.close(handle)
        self.path = Path(name)
        # A forked process has the object too, but the file belongs to the process that wrote it.
        self._finalizer = weakref.finalize(self, _delete, self.path, os.getpid())


def _delete(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def written() -> Iterator[None]:
    """Turn an error of the disk into one sentence.

    Raises:
        UnwritableFileError: If the block raises an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UnwritableFileError(
            f"the folder for temporary files, {tempfile.gettempdir()}, can't hold a copy of the table ({reason_of(error)}): "
            "make room there, or name another folder in the environment variable TMPDIR"
        ) from error
