"""Write files atomically: write a temporary file in the same folder, flush it to disk, and rename it to the
target.

Every file of a run is written here, so that a killed process or a full disk never leaves an incomplete file
under its final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.dependencies import is_installed
from balancer.errors import CorruptFileError, InputError, MissingFileError, UnwritableFileError, reason_of

if TYPE_CHECKING:
    import numpy as np


@contextmanager
def atomic_path(target: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of the target.

    When the block ends, the temporary file replaces the target; on an error it is removed.

    Args:
        target: The file.
        private: Whether only its owner may read it.

    Raises:
        UnwritableFileError: If the folder can't be written or the disk is full; the target is unchanged.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        if not private:
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp creates private files, but a run folder is shared
        temporary.replace(target)
    except OSError as error:
        raise UnwritableFileError(
            f"cannot write {target}: {error.strerror or error}; free some space, or choose another folder with --out"
        ) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


def check_writable(target: Path, flag: str) -> None:
    """Check before a long computation that its result can be written to a file; nothing is changed.

    Args:
        target: The file; its folder must exist.
        flag: Flag it was given by.

    Raises:
        UnwritableFileError: The target is a folder, or its folder is missing or can't be written.
    """
    try:
        if target.is_dir():
            raise UnwritableFileError(f"{flag} {target} is a folder: name a file")
        if not target.parent.is_dir():
            raise UnwritableFileError(f"{flag} {target}: the folder {target.parent} does not exist; make it first")
        _try_to_write(target.parent, target.name)
    except OSError as error:
        raise UnwritableFileError(f"{flag} {target} can't be written ({error.strerror or error}): choose another folder") from error


def check_new_file(target: Path, flag: str, *, overwrite: bool, inputs: Mapping[str, Path | None] | None = None) -> None:
    """Check before a long computation that a file which the user named can be written; nothing is changed.

    Args:
        target: The file; its folder must exist.
        flag: Flag it was given by.
        overwrite: Whether an existing file may be replaced.
        inputs: Files and folders that the command reads, by flag. They are never replaced, whatever path
            leads to them.

    Raises:
        InputError: The target exists and may not be replaced, or is one of the inputs.
        UnwritableFileError: The target is a folder, or its folder is missing or can't be written.
    """
    for source_flag, source in (inputs or {}).items():
        if source is not None and _is_part_of(target, source):
            where = "a file in the folder of" if source.is_dir() else "also"
            raise InputError(f"{flag} {target} is {where} {source_flag} {source}, which would be replaced: name another file")
    check_writable(target, flag)
    if not overwrite and target.exists():
        raise InputError(f"{flag} {target} exists: name another file, or add --overwrite to replace it")


def _is_part_of(target: Path, source: Path) -> bool:
    """Whether two paths lead to one file, or the target to a file in a folder, by links of any kind."""
    try:
        if source.is_dir():
            if target.resolve().is_relative_to(source.resolve()):
                return True
            linked = target.is_file() and target.stat().st_nlink > 1  # only then can a hard link lead into the folder
            return linked and any(file.is_file() and file.samefile(target) for file in source.rglob("*"))
        if target.exists() and source.exists():
            return target.samefile(source)
        return target.resolve() == source.resolve()
    except (OSError, RuntimeError):  # what can't be examined is reported where it is read or written
        return False


def check_writable_folder(folder: Path, flag: str) -> None:
    """Check before a long computation that files can be written to a folder; nothing is changed.

    Args:
        folder: The folder. If it does not exist, the nearest folder above it must be writable.
        flag: Flag it was given by.

    Raises:
        UnwritableFileError: The folder can't be written, or can't be made.
    """
    try:
        existing = folder
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not existing.is_dir():
            raise UnwritableFileError(f"{flag} {folder} can't be made, {existing} is a file: name another folder")
        _try_to_write(existing, "")
    except OSError as error:
        done = "written" if folder == existing else "made"
        raise UnwritableFileError(f"{flag} {folder} can't be {done} ({error.strerror or error}): choose another folder") from error


def _try_to_write(folder: Path, name: str) -> None:
    # As in atomic_path. Permissions alone don't tell, e.g. on a read-only file system.
    with tempfile.NamedTemporaryFile(prefix=f".{name}.", dir=folder):
        pass


@contextmanager
def try_lock(folder: Path, remedy: str) -> Iterator[bool]:
    """Try to lock a folder until the block ends; the lock also ends with the process.

    Args:
        folder: The folder; it must exist. The file ``.lock`` in it is kept.
        remedy: What to do where the folder can't be written.

    Yields:
        Whether no other process holds the lock. Always true on a system without file locks.

    Raises:
        UnwritableFileError: The folder can't be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    try:
        descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise UnwritableFileError(f"{folder} can't be written ({error.strerror}): {remedy}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, remedy: str) -> Iterator[None]:
    """Lock a folder until the block ends, so that no other process writes it; see :func:`try_lock`.

    Raises:
        UnwritableFileError: Another process has locked it, or it can't be written.
    """
    if not is_installed("fcntl"):
        warnings.warn(f"this system has no file locks: don't write to {folder} from two processes at once", stacklevel=4)
    with try_lock(folder, remedy) as held:
        if not held:
            raise UnwritableFileError(f"{folder} is being written by another balancer process: wait for it or stop it")
        yield


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to a file, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Write `content` to a file in UTF-8, atomically."""
    write_bytes(target, content.encode())


def write_json(target: Path, content: Any) -> None:
    """Write `content` to a file as indented strict JSON (without NaN), atomically."""
    write_text(target, json_text(content))


def json_text(content: Any) -> str:
    """What :func:`write_json` writes."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read a JSON object that this package wrote.

    Args:
        path: The file.
        what: What the file is for, for the error message.

    Raises:
        MissingFileError: If the file does not exist.
        CorruptFileError: If it is truncated or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing: {what}; give a complete run folder") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptFileError(f"{path} can't be read ({reason_of(error)}): {what}; it is damaged or not written by balancer") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} does not hold a JSON object: {what}; it is damaged or not written by balancer")
    return content


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_arrays(target: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> None:
    """Write named arrays and a JSON-serializable `meta` to a safetensors file, atomically."""
    import numpy as np
    from safetensors.numpy import save

    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # ascontiguousarray would turn scalars into vectors
    write_bytes(target, save(contiguous, metadata={"balancer": json.dumps(dict(meta or {}), allow_nan=False)}))


def read_arrays(path: Path, *, what: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays by name, and `meta`, from a file of `write_arrays`.

    Raises:
        MissingFileError: If the file does not exist.
        CorruptFileError: If it is truncated or was not written by this package.
    """
    with _opened(path, what) as (stream, meta):
        return {name: stream.get_tensor(name) for name in stream.keys()}, meta  # noqa: SIM118 - not a dict


def read_meta(path: Path, *, what: str) -> dict[str, Any]:
    """Read only `meta` from a file of `write_arrays`; raises as `read_arrays` does."""
    with _opened(path, what) as (_, meta):
        return meta


@contextmanager
def _opened(path: Path, what: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stream:
            yield stream, json.loads((stream.metadata() or {})["balancer"])
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing: {what}; give a complete run folder") from None
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CorruptFileError(f"{path} can't be read ({reason_of(error)}): {what}; it is damaged or not written by balancer") from error
