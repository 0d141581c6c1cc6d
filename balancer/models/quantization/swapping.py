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


def low_precision(model: nn.Module, layer: Layer, precision: Precision, *, rows: Tensor | None = None) -> dict[str, nn.Module]:
    """By place what does there in ``precision`` what ``layer`` of ``model`` does, with one weight for all; ``rows`` (R, d) instead of the layer's own."""
    weight, scale = rounded(layer.rows.detach() if rows is None else rows, precision)
    return {place: module_of(model.get_submodule(place), weight, scale) for place in layer.places}


def rounded(rows: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """A weight in ``precision``, and the scales of its rows where it has them."""
    return quantize_rows(rows) if precision == "int8" else (rows.to(DTYPES[precision]), None)


def module_of(module: nn.Module, weight: Tensor, scale: Tensor | None) -> nn.Module:
    """What stands for a Linear, an Embedding or an encoder with a weight of :func:`rounded`, which may be shared; a bias is the module's own."""
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
def swapped(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[None]:
    """``model`` with ``modules`` at their places."""
    before = {place: model.get_submodule(place) for place in modules}
    try:
        for place, module in modules.items():
            put(model, place, module)
        yield
    finally:
        for place, module in before.items():
            put(model, place, module)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, module.train(model.training))
