"""Contenders of the quantized models: float32 and INT8 of oneDNN, ONNX Runtime, torchao and OpenVINO."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Calls = dict[str, Callable[[], Any]]


class OneDnnLinear(nn.Module):
    """A float32 linear layer in the memory layout of oneDNN, as torch's inductor uses it."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def onednn(model: nn.Module, rows: int) -> nn.Module:
    """A copy of ``model`` with every linear layer in the layout of oneDNN for inputs of ``rows`` rows."""
    made = copy.deepcopy(model).requires_grad_(False)
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, OneDnnLinear(module, rows))
    return made


def onnx_calls(model: nn.Module, ids: Tensor, folder: Path, threads: int) -> Calls:
    """Calls of the same model in ONNX Runtime, by name: in float32, and in its dynamic INT8.

    The float32 model remains in ``folder`` as ``model.onnx``.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    full, low = folder / "model.onnx", folder / "model.int8.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (ids,), str(full), dynamo=True, external_data=True, verbose=False)
        quantize_dynamic(str(full), str(low), weight_type=QuantType.QInt8, use_external_data_format=True)
    calls: Calls = {}
    for name, file in (("ONNX Runtime FP32", full), ("ONNX Runtime INT8, dynamic", low)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: ids.numpy()}
        calls[name] = partial(session.run, None, feed)
    return calls


def torchao_calls(model: nn.Module, ids: Tensor) -> Calls:
    """A call of ``model`` in torchao's dynamic INT8, without a compiler; ``model`` is changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return {"torchao INT8": lambda: model(ids)}


def openvino_calls(ids: Tensor, folder: Path, threads: int) -> Calls:
    """Calls in OpenVINO of the model that :func:`onnx_calls` left in ``folder``: float32 and static INT8.

    The INT8 model is calibrated on ``ids`` by ONNX Runtime, with a scale per output channel.
    """
    import openvino
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        """The batches of the calibration."""

        def __init__(self, name: str) -> None:
            self.batches: Iterator[dict[str, Any]] = iter([{name: ids.numpy()}])

        def get_next(self) -> dict[str, Any] | None:
            """The next batch, or None after the last one."""
            return next(self.batches, None)

    core = openvino.Core()
    full, low = folder / "model.onnx", folder / "model.qdq.onnx"
    read = core.read_model(str(full))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(
            str(full),
            str(low),
            Batches(read.inputs[0].get_any_name()),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    calls: Calls = {}
    for name, file in (("OpenVINO FP32", full), ("OpenVINO INT8, static", low)):
        request = core.compile_model(str(file), "CPU", settings).create_infer_request()
        calls[name] = partial(request.infer, [ids.numpy()])
    return calls


def absent(package: str) -> str | None:
    """Why a contender can't be measured: its package is not installed; None if it is."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed: pip install {package}"
