"""Calibrated INT8 layers in an ONNX file.

What is special: scales are fixed while calibrating, so a row's score never depends on the rows beside it; with scales taken from each batch it would.
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
    package("onnxruntime")
    proto, about = read_model(source)
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
    write_model(result, about, target)
    return [name for name, node in layers.items() if _is_int8(result, node)]


def _quantize_linears(proto: Any, nodes: list[str], feeds: list[dict[str, NDArray[Any]]]) -> Any:
    onnx, quantization = package("onnx"), package("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.left, None)

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
    onnx = package("onnx")
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
    # What stands in the padding is not looked at.
    infinite = (values.isinf() & batch.mask.cpu()[..., None]).any(1).any(0)
    if bool(infinite.any()):
        field = about["fields"][int(infinite.nonzero()[0])]
        raise InputError(f"field '{field}' of a calibration batch holds infinite values; leave those rows out, or give NaN for missing")
    return feed
