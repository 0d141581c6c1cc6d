"""Replace layers by their low-precision versions, and find out which precisions the processor supports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.quantization.layers import Layer, Precision
from balancer.models.quantization.modules import (
    DTYPES,
    Int8Embedding,
    Int8Linear,
    LowEmbedding,
    LowLinear,
    RowwiseLinear,
    TableEncoder,
    quantize_rows,
)


def cpu_supports(precision: str, device: torch.device | str = "cpu") -> bool:
    """Whether the processor has instructions for products in ``precision``; always True on CUDA."""
    if torch.device(device).type != "cpu" or precision == "fp32":
        return True
    if precision == "int8":
        return bool(torch.cpu._is_vnni_supported())
    return precision == "bf16" and bool(torch.cpu._is_avx512_bf16_supported())


def convert_layer(model: nn.Module, layer: Layer, precision: Precision, *, rows: Tensor | None = None) -> dict[str, nn.Module]:
    """Build the replacements of a layer in ``precision``, without putting them into the model.

    Args:
        model: model of the layer.
        layer: layer of :func:`find_layers`.
        precision: precision of the replacements.
        rows: (R, d) weight to use instead of the layer's weight.

    Returns:
        Replacement by module name. All share one weight.
    """
    weight, scale = convert_weight(layer.rows.detach() if rows is None else rows, precision)
    return {name: convert_module(model.get_submodule(name), weight, scale) for name in layer.module_names}


def convert_weight(rows: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """Round a weight (R, d) to ``precision``; return it and, for INT8, the scales of its rows."""
    return quantize_rows(rows) if precision == "int8" else (rows.to(DTYPES[precision]), None)


def convert_module(module: nn.Module, weight: Tensor, scale: Tensor | None) -> nn.Module:
    """Build the replacement of one module with a weight of :func:`convert_weight`.

    Args:
        module: a Linear, Embedding or PiecewiseLinearEncoder; its bias is used.
        weight: rounded weight, which may be shared.
        scale: scales of the rows of an INT8 weight, else None.
    """
    if isinstance(module, PiecewiseLinearEncoder):
        return TableEncoder(module.places, weight, scale)
    if isinstance(module, nn.Embedding):
        return LowEmbedding(weight) if scale is None else Int8Embedding(weight, scale)
    bias = _bias(module)
    if scale is not None:
        return Int8Linear(weight, scale, bias)
    return (
        RowwiseLinear(weight, bias) if weight.dtype == torch.float32 else LowLinear(weight, None if bias is None else bias.to(weight.dtype))
    )


def _bias(module: nn.Module) -> Tensor | None:
    assert isinstance(module, nn.Linear)
    return None if module.bias is None else module.bias.detach()


@contextmanager
def replaced_modules(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[None]:
    """Replace submodules of ``model`` by ``modules``, by name, for the duration of a with block."""
    before = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            set_module(model, name, module)
        yield
    finally:
        for name, module in before.items():
            set_module(model, name, module)


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule ``name`` of ``model``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, module.train(model.training))
