"""ONNX files of ours: written with what they take and a digest, read only when they are whole; and the packages for it, imported where they are used.

Special: what a file says of itself stands behind the graph as one more piece of the same protobuf message, so it is checked without parsing the graph.
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
"""Key of the file's metadata under which JSON says what the model takes and which node each layer is."""
FORMAT = "balancer.onnx"
VERSION = 1


def check_feed(feed: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
    """InputError where windows (B, n, C) with lengths (B,) are not what a model takes that says `about` of itself."""
    values, lengths = feed["values"], feed["lengths"]
    if values.ndim != 3 or lengths.shape != values.shape[:1]:
        raise InputError(f"windows are (B, n, C) with lengths (B,), given {values.shape} and {lengths.shape}")
    if values.shape[2] != len(about["fields"]):
        raise InputError(f"the windows have {values.shape[2]} fields, the model takes {len(about['fields'])}: {', '.join(about['fields'])}")
    if not 1 <= values.shape[1] <= about["history"]:
        raise InputError(
            f"the windows are {values.shape[1]} transactions long, the model takes 1 to {about['history']}; cut shorter windows"
        )
    if len(lengths) and (lengths.min() < 0 or lengths.max() > values.shape[1]):
        raise InputError(f"lengths must lie within 0 to {values.shape[1]}, given {lengths.min()} to {lengths.max()}")


def write_model(proto: Any, about: dict[str, Any], file: Path) -> None:
    """Write the graph, then `about` with its digest: a protobuf message goes on where more of it is appended, so the reader needs no parser to check it."""
    onnx = package("onnx")
    del proto.metadata_props[:]
    graph = proto.SerializeToString(deterministic=True)
    digest = {"bytes": len(graph), "sha256": hashlib.sha256(graph).hexdigest()}
    rest = onnx.ModelProto()
    onnx.helper.set_model_props(rest, {META: json.dumps({**about, **digest})})
    write_bytes(file, graph + rest.SerializeToString(deterministic=True))


def read_model(file: Path) -> tuple[Any, dict[str, Any]]:
    """The graph of a float file and what it says of itself; InputError where it is missing, damaged, foreign or quantized already."""
    onnx = package("onnx")
    decode_error = package("google.protobuf.message").DecodeError
    try:
        content = read_content(file)
        proto = onnx.load_model_from_string(content)
        about = read_about(file, content, {entry.key: entry.value for entry in proto.metadata_props}.get(META))
        onnx.checker.check_model(proto)
    except (decode_error, onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise foreign(file, error) from error
    if not set(about["layers"].values()) <= {node.name for node in proto.graph.node}:
        raise foreign(file, "layers are missing")
    if any(node.op_type == "DequantizeLinear" for node in proto.graph.node):
        raise InputError(f"{file} is quantized already; give the file that export_onnx wrote")
    return proto, about


def read_content(file: Path) -> bytes:
    """The bytes of a file; InputError where it can't be read."""
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{file} is missing: an ONNX model; export_onnx writes one") from None
    except OSError as error:
        raise InputError(f"{file} can't be read ({error.strerror or error}): an ONNX model") from error


def read_about(file: Path, content: bytes, text: str | None) -> dict[str, Any]:
    """What the metadata `text` of a file's `content` says, once it is known that the graph before it is whole."""
    try:
        about = json.loads(text or "null")
        if about["format"] == FORMAT and about["version"] == VERSION:
            if hashlib.sha256(content[: about["bytes"]]).hexdigest() != about["sha256"]:
                raise foreign(file, "its content does not fit its digest")
            return {key: about[key] for key in ("format", "version", "history", "fields", "classes", "layers")}
    except (ValueError, KeyError, TypeError) as error:
        raise foreign(file, "it does not say what it takes") from error
    raise foreign(file, "of another version")


def foreign(file: Path, why: object) -> CorruptFileError:
    """What to raise of a file that is none of ours."""
    return CorruptFileError(
        f"{file} is damaged or not an ONNX model that balancer wrote ({str(why).splitlines()[0] if str(why) else why!r}); export it again"
    )


def runtime_errors() -> tuple[type[Exception], ...]:
    """The runtime's exceptions, which have no base of their own but Exception."""
    state = package("onnxruntime.capi.onnxruntime_pybind11_state")
    return (RuntimeError, *(item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)))


def package(name: str) -> Any:
    """A module of the packages of `balancer[export]`; MissingDependencyError where it is not installed."""
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise missing(name.partition(".")[0], "an ONNX model", "balancer[export]") from error


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without the exporter's or the quantizer's own warnings, of which a caller can mend none."""
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
