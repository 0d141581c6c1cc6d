"""Putting a layer in another precision in the place of the one it comes from, and what this machine can multiply fast."""

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
    """Whether the processor has instructions for products in ``precision``; on CUDA always."""
    if torch.device(device).type != "cpu" or precision == "fp32":
        return True
    if precision == "int8":
        return bool(torch.cpu._is_vnni_supported())
    return precision == "bf16" and bool(torch.cpu._is_avx512_bf16_supported())


def low_precision(layer: Layer, precision: Precision, *, rows: Tensor | None = None) -> nn.Module:
    """A module that does what ``layer`` does in ``precision``; ``rows`` (R, d) instead of the layer's own weight."""
    weight = layer.rows.detach() if rows is None else rows
    if layer.kind == "table":
        assert isinstance(layer.module, PiecewiseLinearEncoder)
        places = layer.module.places
        return (
            TableEncoder(places, *quantize_rows(weight))
            if precision == "int8"
            else TableEncoder(places, weight.to(DTYPES[precision]), None)
        )
    if precision == "int8":
        return int8_module(layer.module, *quantize_rows(weight))
    return float_module(layer.module, weight.to(DTYPES[precision]))


def int8_module(module: nn.Module, weight: Tensor, scale: Tensor) -> nn.Module:
    """What stands for a Linear or an Embedding, with an INT8 weight that may be shared."""
    return Int8Embedding(weight, scale) if isinstance(module, nn.Embedding) else Int8Linear(weight, scale, _bias(module))


def float_module(module: nn.Module, weight: Tensor) -> nn.Module:
    """The same with a floating weight."""
    if isinstance(module, nn.Embedding):
        return LowEmbedding(weight)
    bias = _bias(module)
    return (
        RowwiseLinear(weight, bias) if weight.dtype == torch.float32 else LowLinear(weight, None if bias is None else bias.to(weight.dtype))
    )


def _bias(module: nn.Module) -> Tensor | None:
    assert isinstance(module, nn.Linear)
    return None if module.bias is None else module.bias.detach()


@contextmanager
def swapped(model: nn.Module, layer: Layer, module: nn.Module) -> Iterator[None]:
    """``model`` with ``module`` in the place of ``layer``, under all its names of the same kind."""
    places = [name for name in (layer.name, *layer.tied) if type(model.get_submodule(name)) is type(layer.module)]
    before = [model.get_submodule(name) for name in places]
    try:
        for name in places:
            put(model, name, module)
        yield
    finally:
        for name, own in zip(places, before, strict=True):
            put(model, name, own)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, module.train(model.training))
