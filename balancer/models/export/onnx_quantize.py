"""Calibrated INT8 quantization of the layers in an ONNX file.

The scales of activations are fixed during calibration, so a row's score never depends on the other rows of
the batch, as it would with scales computed per batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.models.batch import SequenceBatch
from balancer.models.export.onnx_files import check_feed, package, quiet, read_model, write_model


def quantize_onnx(source: Path, target: Path, batches: Iterable[SequenceBatch], keep: Collection[str]) -> list[str]:
    """Quantize linear layers to INT8 with calibrated INT8 inputs, and tables to INT8 rows.

    Everything else remains in float32.

    Args:
        source: file written by `export_onnx`.
        target: replaced atomically.
        batches: rows like those to be scored, values (B, n, C) with NaN for a missing number. The ranges of
            the layers' inputs are taken from them.
        keep: names of layers that remain in float32, as in `model.named_modules()`.

    Returns:
        Names of the layers in INT8, in the order of the graph.

    Raises:
        MissingFileError: `source` does not exist.
        CorruptFileError: `source` is damaged or was not written by balancer.
        InputError: `keep` names an unknown layer, a batch has infinite values or does not fit, or there is no
            batch.
        MissingDependencyError: A package is not installed.
        UnwritableFileError: `target` can't be written.
    """
    package("onnxruntime")
    proto, about = read_model(source)
    layers: dict[str, str] = about["layers"]
    unknown = sorted(set(keep) - set(layers))
    if unknown:
        raise InputError(f"{source} has no layer {', '.join(unknown)} to keep; its layers are {', '.join(layers)}")
    feeds = [_feed(batch, about) for batch in batches if len(batch.lengths)]
    if not feeds:
        raise InputError("there is no row to calibrate with; give at least one batch of windows like those to be scored")
    kinds = {node.name: node.op_type for node in proto.graph.node}
    wanted = [node for name, node in layers.items() if name not in keep]
    linears = [node for node in wanted if kinds[node] == "MatMul"]
    result = _quantize_linears(proto, linears, feeds) if linears else proto
    for node in wanted:
        if kinds[node] == "Gather":
            _quantize_table(result, node)
    _drop_unused(result)
    write_model(result, about, target)
    return [name for name, node in layers.items() if _is_int8(result, node)]


def _quantize_linears(proto: Any, nodes: list[str], feeds: list[dict[str, NDArray[Any]]]) -> Any:
    onnx, quantization = package("onnx"), package("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.remaining = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.remaining, None)

    with tempfile.TemporaryDirectory() as folder, quiet("root"):
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
            # The sums have 32 bits; rounding them to 8 bits as well would save nothing.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        result = onnx.load(quantized)
    _restore_float_inputs(result, set(nodes))
    return result


def _restore_float_inputs(proto: Any, quantized: set[str]) -> None:
    """Give float layers their original inputs again.

    The quantizer rounds a tensor for all its readers if one of them is quantized.
    """
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
    """Replace a Gather of float rows by a Gather of INT8 rows and a scale per channel.

    Only the weights are rounded.
    """
    onnx = package("onnx")
    index, node = next((index, node) for index, node in enumerate(proto.graph.node) if node.name == name)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[0])
    weight = onnx.numpy_helper.to_array(tensor)
    scale = np.maximum(np.abs(weight).max(0) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    codes = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    axis = 2  # indices are (B, n), gathered rows are (B, n, d)
    rows, output = f"{name}.rows", node.output[0]
    proto.graph.initializer.extend(
        [onnx.numpy_helper.from_array(codes, f"{name}.weight_quantized"), onnx.numpy_helper.from_array(scale, f"{name}.weight_scale")]
    )
    node.input[0], node.output[0] = f"{name}.weight_quantized", rows
    for info in [info for info in proto.graph.value_info if info.name in (output, rows)]:
        proto.graph.value_info.remove(info)
    scaled = onnx.helper.make_node("DequantizeLinear", [rows, f"{name}.weight_scale"], [output], f"{name}.scaled", axis=axis)
    proto.graph.node.insert(index + 1, scaled)


def _drop_unused(proto: Any) -> None:
    used = {name for node in proto.graph.node for name in node.input} | {output.name for output in proto.graph.output}
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in used]:
        proto.graph.initializer.remove(tensor)


def _is_int8(proto: Any, name: str) -> bool:
    onnx = package("onnx")
    node = next(node for node in proto.graph.node if node.name == name)
    integer = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    if node.op_type == "Gather":
        return node.input[0] in integer
    scaled = {other.output[0] for other in proto.graph.node if other.op_type == "DequantizeLinear" and other.input[0] in integer}
    return node.input[1] in scaled


def _feed(batch: SequenceBatch, about: dict[str, Any]) -> dict[str, NDArray[Any]]:
    values, lengths = batch.values.detach().float().cpu(), batch.lengths.cpu()
    feed = {"values": values.contiguous().numpy(), "lengths": lengths.contiguous().numpy()}
    check_feed(feed, about)
    # Values at padding are ignored.
    infinite = (values.isinf() & batch.mask.cpu()[..., None]).any(1).any(0)
    if bool(infinite.any()):
        field = about["fields"][int(infinite.nonzero()[0])]
        raise InputError(f"field '{field}' of a calibration batch has infinite values; remove those rows, or give NaN for missing values")
    return feed
