"""The window classifier as one ONNX file, in float32 or with calibrated INT8 layers, and a scorer that runs it without torch.

What is special: scales are fixed while calibrating, so a row's score never depends on the rows beside it (with scales taken from each batch it would), and
nodes carry the names of the model's layers, so a precision plan made on the torch model needs nothing but the file. The numeric encoding is written out as
the linear map that it is: in float32 that costs about what the look-ups do here, and its product takes calibrated INT8 like any other linear's.

The packages of `balancer[export]` are imported where they are used: importing this module needs none of them.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.files import write_bytes
from balancer.models.attention import DenseAttention
from balancer.models.batch import SequenceBatch
from balancer.models.blocks import Block
from balancer.models.classifier import Classifier
from balancer.models.embedding import TransactionEmbedding
from balancer.models.encoding import LARGEST, PiecewiseLinearEncoder
from balancer.models.heads import BinaryHead, MulticlassHead

META = "balancer"
"""Key of the file's metadata under which JSON says what the model takes and which node each layer is."""
FORMAT = "balancer.onnx"
VERSION = 1
OPSET = 20  # the first with Gelu as one node
_STEEPEST = 3e38
"""Slope of a step: times the smallest distance between two float32 of ordinary size it is above 1, and finite itself."""


def export_onnx(model: Classifier, file: Path) -> None:
    """Write a classifier of the form `window` with dense attention as an ONNX graph.

    Inputs are `values` (B, n, C) float32, left-aligned windows with NaN for a missing number, and `lengths` (B,) int64; the output is `probabilities`
    (B, K) float32. B >= 1 and n, from 1 to the model's history, are free.

    Args:
        model: in any mode, on any device; it stays as it is.
        file: replaced atomically.

    Raises:
        InputError: The model has a form, a part or a layer that can't be exported, a package is missing, or the file can't be written.
    """
    _check_exportable(model)
    _package("onnxscript")
    _package("onnx")
    with torch.random.fork_rng(devices=[]):  # copying and tracing must not move the caller's generator
        wrapped = _Exported(copy.deepcopy(model).cpu().float()).eval()
        proto = _trace(wrapped, len(model.config.numeric_fields) + len(model.config.categorical_fields))
    layers = _name_layers(proto, [name for name, part in wrapped.named_modules() if isinstance(part, nn.Linear | nn.Embedding)])
    about = {
        "format": FORMAT,
        "version": VERSION,
        "history": model.config.history,
        "fields": [*model.config.numeric_fields, *model.config.categorical_fields],
        "classes": list(model.config.classes),
        "layers": layers,
    }
    _write(proto, about, file)


def quantize_onnx(source: Path, target: Path, batches: Iterable[SequenceBatch], keep: Collection[str]) -> list[str]:
    """Store linears as INT8 with calibrated INT8 inputs, and tables as INT8 rows; everything else stays float32.

    Args:
        source: what `export_onnx` wrote.
        target: replaced atomically.
        batches: rows like those to be scored, values (B, n, C) in which NaN is a missing number; the ranges of each layer's input are read off them.
        keep: names of layers that stay float32, as in `model.named_modules()`.

    Returns:
        Names of the layers that are INT8 in `target`, in the order of the graph.

    Raises:
        InputError: `source` is missing, damaged or foreign, `keep` names no layer of it, a batch holds infinite values or does not fit, there is no batch, a
            package is missing, or the file can't be written.
    """
    _package("onnxruntime")
    proto, about = _read(source)
    layers: dict[str, str] = about["layers"]
    unknown = sorted(set(keep) - set(layers))
    if unknown:
        raise InputError(f"{source} has no layer {', '.join(unknown)} to keep; its layers are {', '.join(layers)}")
    feeds = [_feed(batch, about) for batch in batches if len(batch.lengths)]
    if not feeds:
        raise InputError("there is no row to calibrate on; give at least one batch of windows like those to be scored")
    kinds = {node.name: node.op_type for node in proto.graph.node}
    wanted = [node for name, node in layers.items() if name not in keep]
    linears = [node for node in wanted if kinds[node] == "MatMul"]
    result = _quantize_linears(proto, linears, feeds) if linears else proto
    for node in wanted:
        if kinds[node] == "Gather":
            _quantize_table(result, node)
    _drop_unused(result)
    _write(result, about, target)
    return [name for name, node in layers.items() if _is_int8(result, node)]


class OnnxClassifier:
    """Scores windows by a file of `export_onnx` or `quantize_onnx`, on the CPU.

    Bit for bit, a row's result does not depend on the rows beside it, as long as windows are padded to the same n.

    Args:
        file: the model.
        threads: of one call.

    Attributes:
        size: bytes of the file.
        history: longest window, in transactions.
        fields: names of the C fields, in the order of the columns.
        classes: names of the K classes.
        layers: names of the layers whose precision could be chosen.

    Raises:
        InputError: The file is missing, damaged or foreign, or onnxruntime is not installed.
    """

    def __init__(self, file: Path, threads: int = 1) -> None:
        runtime = _package("onnxruntime")
        content = _bytes(file)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised; the runtime would print it as well
        # Without VNNI, sums of u8 x s8 products overflow 16 bits and are cut off; this has them computed exactly.
        options.add_session_config_entry("session.x64quantprecision", "1")
        errors: tuple[type[Exception], ...] = (*_runtime_errors(), UnicodeDecodeError)
        try:
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=False)
            metadata = self._session.get_modelmeta().custom_metadata_map
        except errors as error:
            raise _foreign(file, error) from error
        about = _about(file, content, metadata.get(META))
        self.size = len(content)
        self.history: int = about["history"]
        self.fields: tuple[str, ...] = tuple(about["fields"])
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.layers: tuple[str, ...] = tuple(about["layers"])
        self._about = about
        self._file = file

    def probabilities(self, values: NDArray[np.float32], lengths: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Class probabilities (B, K) float32 of left-aligned windows (B, n, C) with lengths (B,) from 0 to n; the fraud score is 1 minus column 0.

        Raises:
            InputError: Windows do not fit the model, or lengths do not fit them.
        """
        feed: dict[str, NDArray[Any]] = {
            "values": np.ascontiguousarray(values, np.float32),
            "lengths": np.ascontiguousarray(lengths, np.int64),
        }
        _check_feed(feed, self._about)
        rows = len(feed["lengths"])
        if rows == 0:
            return np.empty((0, len(self.classes)), np.float32)
        if rows == 1:
            # A product with a single row takes another path in the runtime, which sums in another order; two equal rows take the common one.
            feed = {name: np.repeat(array, 2, axis=0) for name, array in feed.items()}
        try:
            (scores,) = self._session.run(["probabilities"], feed)
        except _runtime_errors() as error:
            raise _foreign(self._file, error) from error
        result: NDArray[np.float32] = scores[:rows]
        return result


# Tracing --------------------------------------------------------------------------------------------------------------


class _Exported(nn.Module):
    """The model's own layers under their own names, called from plain ops: what torch's fused kernels and look-ups compute, in words ONNX has."""

    embedding: Any
    head: Any

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        own = model.embedding
        assert isinstance(own, TransactionEmbedding) and own.position is not None
        self.embedding = nn.Module()  # only gives its layers their names
        self.numeric = _numeric_layer(own.numeric) if own.numeric is not None else None
        if self.numeric is not None:
            self.embedding.numeric = self.numeric.linear
        self.embedding.categorical, self.embedding.position = own.categorical, own.position
        self.blocks, self.norm, self.head = model.blocks, model.norm, model.head
        self.num_numeric = own.num_numeric

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Windows (B, n, C), lengths (B,) to (B, K)."""
        everywhere = torch.arange(values.shape[1])
        mask = everywhere < lengths[:, None]
        last, real = (lengths - 1).clamp(min=0), (lengths > 0)[:, None, None]
        x = self._embed(values, lengths, mask, everywhere)
        for position, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            x = self._last_block(block, x, last) if position == len(self.blocks) else self._block(block, x) * mask[..., None]
        # From here on a row is its last position, (B, 1, d); a row of padding only is zero, as in torch.
        scores = self.head.project(self.norm(x) * real)[:, 0]
        negative, fraud = torch.sigmoid(-scores[:, :1]), torch.sigmoid(scores[:, :1])
        kinds = fraud if isinstance(self.head, BinaryHead) else fraud * scores[:, 1:].softmax(-1)
        return torch.cat([negative, kinds], -1)

    def _embed(self, values: Tensor, lengths: Tensor, mask: Tensor, everywhere: Tensor) -> Tensor:
        total: Tensor = self.embedding.position((lengths[:, None] - 1 - everywhere).clamp(min=0))
        if self.numeric is not None:
            total = total + self.embedding.numeric(self.numeric(values[..., : self.num_numeric], mask))
        for column, table in enumerate(self.embedding.categorical, start=self.num_numeric):
            code = values[..., column]
            known = mask & (code >= 0) & (code < table.num_embeddings)
            total = total + table(torch.where(known, code, 0).to(torch.int64))
        return total * mask[..., None]

    def _block(self, block: Block, x: Tensor) -> Tensor:
        normed = block.attention_norm(x)
        place = torch.arange(x.shape[1])
        return self._mixed(block, x, normed, normed, place > place[:, None])

    def _last_block(self, block: Block, x: Tensor, last: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0])
        normed = block.attention_norm(x)
        unseen = torch.arange(x.shape[1]) > last[:, None]
        return self._mixed(block, x[rows, last][:, None], normed[rows, last][:, None], normed, unseen[:, None, None])

    def _mixed(self, block: Block, x: Tensor, asking: Tensor, seen: Tensor, unseen: Tensor) -> Tensor:
        """A block at the m positions `x` (B, m, d), which ask with `asking` (B, m, d) what is in `seen` (B, n, d)."""
        attention = block.attention
        assert isinstance(attention, DenseAttention)
        query = attention.query(asking).unflatten(-1, (attention.num_heads, -1)).permute(0, 2, 1, 3)
        key, value = (part.unflatten(-1, (attention.num_heads, -1)) for part in attention.key_value(seen).chunk(2, -1))
        logits = (query / math.sqrt(query.shape[-1])) @ key.permute(0, 2, 3, 1)
        share = torch.where(unseen, -torch.inf, logits).softmax(-1)
        hidden = x + attention.out((share @ value.permute(0, 2, 1, 3)).permute(0, 2, 1, 3).flatten(2))
        added: Tensor = hidden + block.ff2(nn.functional.gelu(block.ff1(block.ff_norm(hidden))))
        return added


class _Numbers(nn.Module):
    """Numeric fields (B, n, F) to piecewise-linear values and steps, (B, n, F x 2 bins), each within 0 to 1, and the linear map that follows them."""

    lower: Tensor
    rate: Tensor

    def __init__(self, lower: Tensor, rate: Tensor, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("lower", lower)
        self.register_buffer("rate", rate)
        self.linear = linear

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """See the class; a missing number or padding gives zeros."""
        present = mask[..., None] & ~values.isnan()
        # Infinite values would turn into NaN; no edge lies beyond LARGEST. What is missing lies below even the first step, so that all of it is zero.
        number = torch.where(present, values.clamp(-2 * LARGEST, 2 * LARGEST), -4 * LARGEST)
        return ((number[..., None] - self.lower) * self.rate).clamp(0, 1).flatten(2)


def _numeric_layer(encoder: PiecewiseLinearEncoder) -> _Numbers:
    fields, bins, channels = encoder.slope.shape
    lower, width = encoder.places.lower.view(fields, bins).clone(), encoder.places.width.view(fields, bins).clone()
    used = lower.isfinite()  # fields of fewer bins than the widest are padded with infinite edges
    lower[~used], width[~used] = 0, 1
    first = lower.clone()
    first[:, 0] = -3 * LARGEST  # the first step is there for every number, however small
    linear = nn.Linear(fields * 2 * bins, channels, bias=False)
    weight = torch.cat([encoder.step, encoder.slope], 1) * torch.cat([used, used], 1)[..., None]
    linear.weight = nn.Parameter(weight.detach().flatten(0, 1).T.contiguous(), requires_grad=False)
    rate = torch.cat([torch.full_like(width, _STEEPEST), 1 / width], 1)
    return _Numbers(torch.cat([first, lower], 1), rate, linear)


def _check_exportable(model: Classifier) -> None:
    config = model.config
    if config.form != "window":
        raise InputError(f"form '{config.form}' can't be exported to ONNX; train a model with form='window'")
    wanted: list[tuple[str, str, object, tuple[type, ...]]] = [
        ("embedding", config.embedding, model.embedding, (TransactionEmbedding,)),
        ("head", config.head, model.head, (BinaryHead, MulticlassHead)),
        *(("attention", config.attention, block.attention, (DenseAttention,)) for block in model.blocks if isinstance(block, Block)),
    ]
    if config.cycles or config.numeric_encoding != "piecewise":
        raise InputError(
            "numeric_encoding 'periodic' and cycles can't be exported to ONNX; train a model with numeric_encoding piecewise and no cycles"
        )
    for kind, name, part, known in wanted:
        if type(part) not in known:  # a subclass may compute something else
            remedy = {"embedding": "transaction", "attention": "dense", "head": "binary or multiclass"}[kind]
            raise InputError(f"{kind} '{name}' can't be exported to ONNX; train a model with {kind} {remedy}")
    linears = [f"blocks.{i}.{name}" for i in range(len(model.blocks)) for name in _BLOCK_LINEARS]
    tables = ["embedding.position", *(f"embedding.categorical.{i}" for i in range(len(config.cardinalities)))]
    expected: dict[str, type[nn.Module]] = dict.fromkeys((*linears, "head.project"), nn.Linear) | dict.fromkeys(tables, nn.Embedding)
    if config.numeric_fields:
        expected["embedding.numeric"] = PiecewiseLinearEncoder
    for name, own in expected.items():
        if type(model.get_submodule(name)) is not own:
            raise InputError(
                f"layer {name} is a {type(model.get_submodule(name)).__name__} and can't be exported; export the float model, then quantize the file"
            )


_BLOCK_LINEARS = ("attention.query", "attention.key_value", "attention.out", "ff1", "ff2")


def _trace(wrapped: nn.Module, fields: int) -> Any:
    # Lengths of 1 fit a model of any history; nothing is computed with the example, but sizes of 1 would be taken as fixed.
    example = (torch.zeros(3, 2, fields), torch.ones(3, dtype=torch.int64))
    free = torch.export.Dim.DYNAMIC
    with _quiet("torch.onnx", "onnxscript", "onnx_ir"), torch.no_grad():
        program = torch.onnx.export(
            wrapped,
            example,
            dynamo=True,
            input_names=["values", "lengths"],
            output_names=["probabilities"],
            dynamic_shapes={"values": {0: free, 1: free}, "lengths": {0: free}},
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
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


def _name_layers(proto: Any, names: Collection[str]) -> dict[str, str]:
    """Name each layer's node and weight by its module, which the exporter noted beside the node, and drop its notes: they are half the file."""
    layers: dict[str, str] = {}
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    renamed: dict[str, str] = {}
    for node in proto.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "")
        weight = next((name for name in node.input if name in weights), None)
        layer = next((name for name in names if f"'{name}'" in scopes), None)
        if layer is not None and weight is not None and node.op_type in ("MatMul", "Gather"):
            node.name = layers[layer] = layer
            renamed.setdefault(weight, f"{layer}.weight")
        del node.metadata_props[:]
        node.doc_string = ""
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for name, tensor in weights.items():
        tensor.name = renamed.get(name, name)
    del proto.graph.metadata_props[:]
    missing = set(names) - set(layers)
    assert not missing, f"the exporter lost track of {sorted(missing)}"
    return layers


# Quantizing -----------------------------------------------------------------------------------------------------------


def _quantize_linears(proto: Any, nodes: list[str], feeds: list[dict[str, NDArray[Any]]]) -> Any:
    onnx, quantization = _package("onnx"), _package("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder, _quiet("root"):
        quantized = Path(folder) / "quantized.onnx"
        quantization.quantize_static(
            proto,
            quantized,
            Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=nodes,
            # The sums are 32-bit already; rounding them to 8 bits as well would save nothing.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        result = onnx.load(quantized)
    _restore_float_inputs(result, set(nodes))
    return result


def _restore_float_inputs(proto: Any, quantized: set[str]) -> None:
    """Give what stays float its own input back: the quantizer rounds a tensor for all who read it, once one of them is quantized."""
    rounded = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    original = {
        node.output[0]: rounded[node.input[0]]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded
    }
    for node in proto.graph.node:
        if node.name not in quantized:
            node.input[:] = [original.get(name, name) for name in node.input]


def _quantize_table(proto: Any, name: str) -> None:
    """Gather INT8 rows and scale them afterwards, a scale per channel: no rounding but that of the weights."""
    onnx = _package("onnx")
    place, node = next((place, node) for place, node in enumerate(proto.graph.node) if node.name == name)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[0])
    weight = onnx.numpy_helper.to_array(tensor)
    scale = np.maximum(np.abs(weight).max(0) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    codes = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    axis = 2  # indices are (B, n), rows go to (B, n, d)
    rows, output = f"{name}.rows", node.output[0]
    proto.graph.initializer.extend(
        [onnx.numpy_helper.from_array(codes, f"{name}.weight_quantized"), onnx.numpy_helper.from_array(scale, f"{name}.weight_scale")]
    )
    node.input[0], node.output[0] = f"{name}.weight_quantized", rows
    told = [info for info in proto.graph.value_info if info.name in (output, rows)]
    for info in told:
        proto.graph.value_info.remove(info)
    scaled = onnx.helper.make_node("DequantizeLinear", [rows, f"{name}.weight_scale"], [output], f"{name}.scaled", axis=axis)
    proto.graph.node.insert(place + 1, scaled)


def _drop_unused(proto: Any) -> None:
    used = {name for node in proto.graph.node for name in node.input} | {output.name for output in proto.graph.output}
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in used]:
        proto.graph.initializer.remove(tensor)


def _is_int8(proto: Any, name: str) -> bool:
    onnx = _package("onnx")
    node = next(node for node in proto.graph.node if node.name == name)
    integer = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    if node.op_type == "Gather":
        return node.input[0] in integer
    scaled = {other.output[0] for other in proto.graph.node if other.op_type == "DequantizeLinear" and other.input[0] in integer}
    return node.input[1] in scaled


def _feed(batch: SequenceBatch, about: dict[str, Any]) -> dict[str, NDArray[Any]]:
    values, lengths = batch.values.detach().float().cpu(), batch.lengths.cpu()
    feed = {"values": values.contiguous().numpy(), "lengths": lengths.contiguous().numpy()}
    _check_feed(feed, about)
    # What stands in the padding is not looked at.
    infinite = (values.isinf() & batch.mask.cpu()[..., None]).any(1).any(0)
    if bool(infinite.any()):
        field = about["fields"][int(infinite.nonzero()[0])]
        raise InputError(f"field '{field}' of a calibration batch holds infinite values; leave those rows out, or give NaN for missing")
    return feed


def _check_feed(feed: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
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


# Files and packages ---------------------------------------------------------------------------------------------------


def _write(proto: Any, about: dict[str, Any], file: Path) -> None:
    """Write the graph, then `about` with its digest: a protobuf message goes on where more of it is appended, so the reader needs no parser to check it."""
    onnx = _package("onnx")
    del proto.metadata_props[:]
    graph = proto.SerializeToString(deterministic=True)
    digest = {"bytes": len(graph), "sha256": hashlib.sha256(graph).hexdigest()}
    rest = onnx.ModelProto()
    onnx.helper.set_model_props(rest, {META: json.dumps({**about, **digest})})
    write_bytes(file, graph + rest.SerializeToString(deterministic=True))


def _read(file: Path) -> tuple[Any, dict[str, Any]]:
    onnx = _package("onnx")
    decode_error = _package("google.protobuf.message").DecodeError
    try:
        content = _bytes(file)
        proto = onnx.load_model_from_string(content)
        about = _about(file, content, {entry.key: entry.value for entry in proto.metadata_props}.get(META))
        onnx.checker.check_model(proto)
    except (decode_error, onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise _foreign(file, error) from error
    if not set(about["layers"].values()) <= {node.name for node in proto.graph.node}:
        raise _foreign(file, "layers are missing")
    if any(node.op_type == "DequantizeLinear" for node in proto.graph.node):
        raise InputError(f"{file} is quantized already; give the file that export_onnx wrote")
    return proto, about


def _bytes(file: Path) -> bytes:
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{file} is missing: an ONNX model; export_onnx writes one") from None
    except OSError as error:
        raise InputError(f"{file} can't be read ({error.strerror or error}): an ONNX model") from error


def _about(file: Path, content: bytes, text: str | None) -> dict[str, Any]:
    """What the metadata `text` of a file's `content` says, once it is known that the graph before it is whole."""
    try:
        about = json.loads(text or "null")
        if about["format"] == FORMAT and about["version"] == VERSION:
            if hashlib.sha256(content[: about["bytes"]]).hexdigest() != about["sha256"]:
                raise _foreign(file, "its content does not fit its digest")
            return {key: about[key] for key in ("format", "version", "history", "fields", "classes", "layers")}
    except (ValueError, KeyError, TypeError) as error:
        raise _foreign(file, "it does not say what it takes") from error
    raise _foreign(file, "of another version")


def _foreign(file: Path, why: object) -> InputError:
    return InputError(
        f"{file} is damaged or not an ONNX model that balancer wrote ({str(why).splitlines()[0] if str(why) else why!r}); export it again"
    )


def _runtime_errors() -> tuple[type[Exception], ...]:
    """The runtime's exceptions, which have no base of their own but Exception."""
    state = _package("onnxruntime.capi.onnxruntime_pybind11_state")
    return (RuntimeError, *(item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)))


def _package(name: str) -> Any:
    try:
        with _quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"an ONNX model needs {name.split('.')[0]}: pip install 'balancer[export]'") from error
