"""Errors that the user can correct.

Bad input, a missing library, an unsuitable machine and a damaged file all raise `InputError` or one of its
subclasses. The text names the column, row, file or flag, and the remedy, in one sentence.

The command line prints the text after ``error:`` and exits with code 2, the HTTP service answers with it, and
the app shows it. They catch `InputError`, so the subclasses need no handlers there. The subclasses are for
code that must distinguish causes: catch `UnsupportedError`, never `InputError`, to find out that something
can't be done here.
"""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, with a message for the person who gave it. A library user can catch it as `ValueError`."""


class LostWorkerError(InputError):
    """One of several processes that compute together has ended, or can't be reached: they can start again."""


class MissingDependencyError(InputError, ImportError):
    """An optional library is not installed. The message ends with the command that installs it.

    A library user can catch it as `ImportError`. `name` is the module that could not be imported.

    Args:
        message: What needs which library.
        install: What to install, as `pip` is given it: a distribution, or an extra of this package.

    >>> print(MissingDependencyError("balancer train needs polars", "balancer[train]"))
    balancer train needs polars: pip install 'balancer[train]'
    """

    def __init__(self, message: str, install: str) -> None:
        super().__init__(message, install)  # both are in args, so that pickle can make the error again
        self.install = install

    def __str__(self) -> str:
        return f"{self.args[0]}: pip install '{self.args[1]}'"


class UnsupportedError(InputError):
    """Something that is valid elsewhere can't be done here.

    Examples: a backend that lacks the processor's instructions, a device that is not there, a custom
    attention without weights to show, a part that an export format can't hold. It is an `InputError` because
    the user can choose another backend, device or part.
    """


class MissingFileError(InputError):
    """A file or folder does not exist. It is not an `OSError`: handlers for disk errors must not catch it."""


class CorruptFileError(InputError):
    """A file is damaged, truncated, or was not written by this package or this version of it."""


class UnwritableFileError(InputError):
    """A file or folder can't be written: no permission, a full disk, or another object with that name."""


class MissingClassError(InputError):
    """A table, or one of its splits, has no labelled row of a class that is needed there."""


def reason_of(error: Exception) -> str:
    """Why a file can't be read, in one line, for the inside of a sentence that names the file.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "/a/b"))
    'no such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    if isinstance(error, KeyError):
        return f"it has no key {error}"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
