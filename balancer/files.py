"""Files that are either the old one or the whole new one: write beside the target, flush to disk, rename over it.

Every file of a run goes through here, so that a kill or a full disk at any moment leaves no half-written file under a final name.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from balancer.errors import CorruptFileError, MissingFileError, UnwritableFileError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on a clean exit it replaces ``target``, on an error it is removed.

    Raises
    ------
    InputError
        When the folder can't be written or the disk is full; the target is as it was.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; a run folder is shared like any other output
        temporary.replace(target)
    except OSError as error:
        raise UnwritableFileError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another place with --out"
        ) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_bytes(target: Path, content: bytes) -> None:
    """Replace ``target`` by ``content``, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Replace ``target`` by ``content`` in UTF-8, atomically."""
    write_bytes(target, content.encode())


def write_json(target: Path, content: Any) -> None:
    """Replace ``target`` by ``content`` as indented JSON without NaN (strict JSON), atomically."""
    write_text(target, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read a JSON object that this project wrote; ``what`` says in the error what the file is for.

    Raises
    ------
    InputError
        When the file is missing, truncated, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing: {what}; give a complete run folder") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptFileError(f"{path} can't be read ({error}): {what}; it is damaged or not written by balancer") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} holds no JSON object: {what}; it is damaged or not written by balancer")
    return content


def write_arrays(target: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> None:
    """Write named arrays and a JSON-able ``meta`` as one safetensors file, atomically."""
    from safetensors.numpy import save

    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # ascontiguousarray would make scalars vectors
    write_bytes(target, save(contiguous, metadata={"balancer": json.dumps(dict(meta or {}), allow_nan=False)}))


def read_arrays(path: Path, *, what: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`write_arrays` wrote: (arrays by name, meta).

    Raises
    ------
    InputError
        When the file is missing, truncated or foreign.
    """
    with _opened(path, what) as (stream, meta):
        return {name: stream.get_tensor(name) for name in stream.keys()}, meta  # noqa: SIM118 - not a dict


def read_meta(path: Path, *, what: str) -> dict[str, Any]:
    """Only the meta of what :func:`write_arrays` wrote; raises as :func:`read_arrays` does."""
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
        raise CorruptFileError(f"{path} can't be read ({error}): {what}; it is damaged or not written by balancer") from error
