"""Replace layers by their low-precision versions, and find out which precisions the processor supports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.quantization.carrying import carry_over
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
from balancer.models.quantization.used_weights import used


def cpu_supports(precision: str, device: torch.device | str = "cpu") -> bool:
    """Whether layers in ``precision`` are stored and computed on this processor; always True on CUDA.

    INT8 works on every processor. float16 is slower than float32 on all of them, and bfloat16 is without
    instructions for it.
    """
    if torch.device(device).type != "cpu" or precision in ("fp32", "int8"):
        return True
    return precision == "bf16" and bool(torch.cpu._is_avx512_bf16_supported())


def convert_layer(model: nn.Module, layer: Layer, precision: Precision, *, rows: Tensor | None = None) -> dict[str, nn.Module]:
    """Build the replacements of a layer in ``precision``, without putting them into the model.

    Args:
        model: model of the layer.
        layer: layer of :func:`find_layers`.
        precision: precision of the replacements.
        rows: (R, d) weight to use instead of the layer's weight.

    Returns:
        Replacement by module name. All share one weight; a module with several names has one replacement.

    Raises:
        InputError: The weight has values that the precision can't represent.
    """
    weight, scale = convert_weight(layer.rows.detach() if rows is None else rows, precision, layer.name)
    made: dict[int, nn.Module] = {}
    replacements = {}
    for name in layer.module_names:
        module = model.get_submodule(name)
        if id(module) not in made:
            bias = used(module, "bias") if isinstance(module, nn.Linear) else None
            made[id(module)] = convert_module(module, weight, scale, bias, layer.dtype)
        replacements[name] = made[id(module)]
    return replacements


def convert_weight(rows: Tensor, precision: Precision, name: str = "the layer") -> tuple[Tensor, Tensor | None]:
    """Round a weight (R, d) to ``precision``; return it and, for INT8, the scales of its rows.

    Raises:
        InputError: It has values that the precision can't represent; the message has the ``name``.
    """
    largest = torch.finfo(DTYPES.get(precision, torch.float32)).max
    if rows.numel() and torch.finfo(rows.dtype).max > largest:
        magnitudes = rows.detach().abs()
        above = float(magnitudes.where(magnitudes.isfinite(), 0).max())
        if above > largest:
            raise InputError(f"{name} has a weight of {above:.3g}, but {precision} ends at {largest:.3g}: plan another precision for it")
    return quantize_rows(rows) if precision == "int8" else (rows.to(DTYPES[precision]).contiguous(), None)


def convert_module(
    module: nn.Module, weight: Tensor, scale: Tensor | None, bias: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Build the replacement of one module with a weight of :func:`convert_weight`.

    It has the hooks of the module, and all that was added to it.

    Args:
        module: a Linear, Embedding or PiecewiseLinearEncoder.
        weight: rounded weight, which may be shared.
        scale: scales of the rows of an INT8 weight, else None.
        bias: (N,) of a Linear, or None.
        dtype: dtype of the results.
    """
    made: nn.Module
    if isinstance(module, PiecewiseLinearEncoder):
        made = TableEncoder(module.places, weight, scale, dtype)
    elif isinstance(module, nn.Embedding):
        made = LowEmbedding(weight, dtype) if scale is None else Int8Embedding(weight, scale, dtype)
    elif scale is not None:
        made = Int8Linear(weight, scale, bias, dtype)
    else:
        made = RowwiseLinear(weight, bias, dtype) if weight.dtype == torch.float32 else LowLinear(weight, bias, dtype)
    carry_over(module, made)
    return made


@contextmanager
def replaced_modules(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[nn.Module]:
    """Replace submodules of ``model`` by ``modules``, by name, for the duration of a with block.

    The block gets the model to call: another one if a replacement is the model itself.
    """
    before = {name: model.get_submodule(name) for name in modules}
    try:
        replaced = model
        for name, module in modules.items():
            replaced = with_module(replaced, name, module)
        yield replaced
    finally:
        for name, module in before.items():
            with_module(model, name, module)


def with_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace the submodule ``name`` of ``model``, and return the model; if the name is empty, ``module``."""
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model
