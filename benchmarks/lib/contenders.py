"""Contenders of the quantized models: oneDNN's float32, ONNX Runtime's float32 and dynamic INT8."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


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


def onnx_calls(model: nn.Module, ids: Tensor, folder: Path, threads: int) -> dict[str, Callable[[], Any]]:
    """Calls of the same model in ONNX Runtime, by name: in float32, and in its dynamic INT8."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    full, low = folder / "bert.onnx", folder / "bert.int8.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (ids,), str(full), dynamo=True, external_data=True, verbose=False)
        quantize_dynamic(str(full), str(low), weight_type=QuantType.QInt8, use_external_data_format=True)
    calls: dict[str, Callable[[], Any]] = {}
    for name, file in (("ONNX Runtime FP32", full), ("ONNX Runtime INT8, dynamic", low)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: ids.numpy()}
        calls[name] = partial(session.run, None, feed)
    return calls
