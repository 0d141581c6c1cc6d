"""Read and write ONNX files with metadata and a digest.

Optional packages are imported only when they are used. The metadata follows the graph as another piece of the
same protobuf message, so the digest of the graph is checked without parsing it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from balancer.dependencies import missing
from balancer.errors import CorruptFileError, InputError, MissingFileError
from balancer.files import write_bytes

META = "balancer"
"""Key of the file's metadata. Its JSON value describes the inputs and maps layers to nodes."""
FORMAT = "balancer.onnx"
VERSION = 1


def check_feed(feed: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
    """Check that windows and lengths fit a model.

    Args:
        feed: `values` (B, n, C) and `lengths` (B,).
        about: metadata of the model.

    Raises:
        InputError: They do not fit.
    """
    values, lengths = feed["values"], feed["lengths"]
    if values.ndim != 3 or lengths.shape != values.shape[:1]:
        raise InputError(f"windows must be (B, n, C) and lengths (B,), given {values.shape} and {lengths.shape}")
    if values.shape[2] != len(about["fields"]):
        raise InputError(f"the windows have {values.shape[2]} fields, the model takes {len(about['fields'])}: {', '.join(about['fields'])}")
    if not 1 <= values.shape[1] <= about["history"]:
        raise InputError(
            f"the windows are {values.shape[1]} transactions long, the model takes 1 to {about['history']}; cut windows of that length"
        )
    least = 1 if about["trees"] else 0  # the network gives a score to an empty window too; trees need a row
    if len(lengths) and (lengths.min() < least or lengths.max() > values.shape[1]):
        raise InputError(f"lengths must be from {least} to {values.shape[1]}, given {lengths.min()} to {lengths.max()}")


def write_model(proto: Any, about: dict[str, Any], file: Path) -> None:
    """Write the graph, then its metadata with a digest.

    Appending a second protobuf message to a first one merges both, so a reader can check the digest without a
    parser.

    Args:
        proto: the ONNX model.
        about: metadata.
        file: replaced atomically.
    """
    onnx = package("onnx")
    del proto.metadata_props[:]
    graph = proto.SerializeToString(deterministic=True)
    digest = {"bytes": len(graph), "sha256": hashlib.sha256(graph).hexdigest()}
    rest = onnx.ModelProto()
    onnx.helper.set_model_props(rest, {META: json.dumps({**about, **digest})})
    write_bytes(file, graph + rest.SerializeToString(deterministic=True))


def read_model(file: Path, *, quantized: bool = False) -> tuple[Any, dict[str, Any]]:
    """Read the graph and the metadata of a file.

    Args:
        file: the file.
        quantized: whether it may have INT8 layers.

    Raises:
        MissingFileError: The file does not exist.
        CorruptFileError: The file is damaged or was not written by balancer.
        InputError: The file is quantized already, and may not be.
    """
    onnx = package("onnx")
    decode_error = package("google.protobuf.message").DecodeError
    try:
        content = read_content(file)
        proto = onnx.load_model_from_string(content)
        about = read_about(file, content, {entry.key: entry.value for entry in proto.metadata_props}.get(META))
        onnx.checker.check_model(proto)
    except (decode_error, onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise corrupt(file, error) from error
    if not set(about["layers"].values()) <= {node.name for node in proto.graph.node}:
        raise corrupt(file, "layers are missing")
    if not quantized and any(node.op_type == "DequantizeLinear" for node in proto.graph.node):
        raise InputError(f"{file} is quantized already; give a file written by export_onnx")
    return proto, about


def read_content(file: Path) -> bytes:
    """Read the bytes of a file.

    Raises:
        MissingFileError: The file does not exist.
        InputError: The file can't be read.
    """
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"the ONNX model {file} is missing: create it by export_onnx") from None
    except OSError as error:
        raise InputError(f"the ONNX model {file} can't be read ({error.strerror or error}): check its permissions") from error


def read_about(file: Path, content: bytes, text: str | None) -> dict[str, Any]:
    """Parse the metadata and check the digest of the graph.

    Args:
        file: path, for the error message.
        content: bytes of the file.
        text: JSON of the metadata, or None.

    Raises:
        CorruptFileError: The file is damaged or was not written by this version of balancer.
    """
    try:
        about = json.loads(text or "null")
        if about["format"] == FORMAT and about["version"] == VERSION:
            if hashlib.sha256(content[: about["bytes"]]).hexdigest() != about["sha256"]:
                raise corrupt(file, "its content does not match its digest")
            found = {key: about[key] for key in ("format", "version", "history", "fields", "classes", "layers")}
            return found | {"trees": bool(about.get("trees", False))}  # files of version 0.1 have no trees
    except (ValueError, KeyError, TypeError) as error:
        raise corrupt(file, "its metadata is incomplete") from error
    raise corrupt(file, "it is from another version")


def corrupt(file: Path, reason: object) -> CorruptFileError:
    """Build the error for a file that is damaged or was not written by balancer."""
    text = str(reason).splitlines()[0] if str(reason) else repr(reason)
    return CorruptFileError(f"{file} is damaged or not an ONNX model written by balancer ({text}); export it again")


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return the exception classes of ONNX Runtime, which have no common base class except Exception."""
    state = package("onnxruntime.capi.onnxruntime_pybind11_state")
    return (RuntimeError, *(item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)))


def package(name: str) -> Any:
    """Import a module of the packages of `balancer[export]`.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise missing(name.partition(".")[0], "an ONNX model", "balancer[export]") from error


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Suppress warnings and log messages of the exporter and the quantizer, which the caller can't act on.

    Args:
        loggers: names of loggers to limit to errors.
    """
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
