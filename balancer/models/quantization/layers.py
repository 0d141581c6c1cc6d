"""Find the layers of a model whose precision can be chosen, and refuse models that can't be quantized.

Any torch model is accepted; layers are found by the type of the modules. Modules that share a weight form one
layer with several names, so a tied weight is quantized once. Models raise an error whose layers can't be
replaced without a change of what they compute: torch modules that read the weights of their linear layers
without calling them, layers without values, and layers with a forward pass of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from balancer.errors import InputError, UnsupportedError
from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.quantization.rounding import DTYPES
from balancer.models.quantization.shared_memory import Span, memory_key, named_tensors, span_of
from balancer.models.quantization.used_weights import check_computable, is_computed, is_computing_hook, plain_type, source, used

Precision = Literal["int8", "bf16", "fp16", "fp32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Kind = Literal["linear", "embedding", "table"]
SCALE_BYTES = 4
"""Bytes of the float32 scale of each row of an INT8 weight."""
_ACCEPTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of the layers that are accepted."""
_NOT_CALLING_LAYERS = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    *([nn.LinearCrossEntropyLoss] if hasattr(nn, "LinearCrossEntropyLoss") else []),  # from torch 2.13 on
)


@dataclass(frozen=True)
class Layer:
    """A layer whose precision can be chosen."""

    name: str
    """Name of the first module that holds the weight, as in `model.named_modules()`."""
    kind: Kind
    module: nn.Module
    tied: tuple[str, ...] = ()
    """Names of the other modules with the same weight."""
    modules: tuple[nn.Module, ...] = ()
    """All modules with the weight, each once."""
    outside: tuple[str, ...] = ()
    """Names of tensors that use the memory of the weight and are not part of a layer."""
    outside_alike: bool = True
    """Whether all of these are the whole weight in its shape: if it is not rounded, it is stored once."""
    parts: tuple[str, ...] = ()
    """Names of other layers whose weights use the same memory in another way, e.g. as a part of it."""
    held: tuple[str, ...] = ()
    """Names of attributes, e.g. lists, that hold the layer without being modules of the model."""

    @property
    def module_names(self) -> tuple[str, ...]:
        """Names of all modules that hold the weight."""
        return (self.name, *self.tied)

    @property
    def rows(self) -> Tensor:
        """The weight as rows of channels, (R, d); each row has its own scale.

        A row is an output channel of a linear layer or an entry of a table. Where other tensors determine the
        weight, it is computed.
        """
        if isinstance(self.module, PiecewiseLinearEncoder):
            return self.module.table()
        weight = used(self.module, "weight")
        assert weight is not None
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (R, d) of the rows."""
        if isinstance(self.module, PiecewiseLinearEncoder):
            return 2 * self.module.places.fields * self.module.places.bins, self.module.slope.shape[-1]
        if parametrize.is_parametrized(self.module, "weight"):  # the shapes of what it is computed from may differ
            sizes = ("num_embeddings", "embedding_dim") if self.kind == "embedding" else ("out_features", "in_features")
            channels, width = (getattr(self.module, size) for size in sizes)
        else:
            channels, width = source(self.module, "weight").shape
        return channels, width

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weight."""
        return self._source.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return self._source.device

    @property
    def _source(self) -> Tensor:
        return self.module.slope if isinstance(self.module, PiecewiseLinearEncoder) else source(self.module, "weight")

    @property
    def biases(self) -> int:
        """Number of elements of the biases of all modules."""
        return sum(bias_channels(module) for module in self.modules or (self.module,))

    @property
    def parameters(self) -> int:
        """Number of elements of weight and biases."""
        return math.prod(self.shape) + self.biases

    def bytes(self, precision: Precision) -> int:
        """Exact number of bytes of weight, scales and biases on disk.

        The bias of an INT8 layer remains in float32. A weight that is used outside the layers is stored a
        second time, as it is.
        """
        size = math.prod(self.shape)
        kept = size * self.dtype.itemsize if self.outside and not self._is_stored_once(precision) else 0
        if precision == "int8":
            return size + SCALE_BYTES * (self.shape[0] + self.biases) + kept
        return (4 if precision == "fp32" else 2) * (size + self.biases) + kept

    @property
    def bytes_now(self) -> int:
        """Bytes of weight and biases in the model as it is."""
        return self.dtype.itemsize * (math.prod(self.shape) + self.biases)

    def _is_stored_once(self, precision: Precision) -> bool:
        return self.outside_alike and DTYPES.get(precision) == self.dtype

    def note(self, precision: Precision) -> str:
        """What should be known about the use of the layer and its weight elsewhere, or an empty text."""
        notes = []
        if self.outside and not self._is_stored_once(precision):
            notes.append(f"its weight is also used by {', '.join(self.outside)}, which is not quantized: the weight is stored twice")
        elif self.parts:
            notes.append(f"its weight uses the memory of the weight of {', '.join(self.parts)} in another way: each is stored")
        if self.held:
            notes.append(f"calls through {', '.join(self.held)} reach the full-precision layer: use nn.ModuleList or nn.ModuleDict")
        return "; ".join(notes)

    def of(self, model: nn.Module) -> Layer:
        """Return the same layer of a copy of the model."""
        modules = tuple({id(module): module for module in map(model.get_submodule, self.module_names)}.values())
        return dataclasses.replace(self, module=model.get_submodule(self.name), modules=modules)


def find_layers(model: nn.Module) -> list[Layer]:
    """Find every Linear, Embedding and encoder table of ``model``, in the order of its modules.

    Linear layers with a low-rank adapter count as linear layers.

    Raises:
        InputError: There is no such layer, or one can't be replaced; the message names it.
        UnsupportedError: A torch module reads the weights of its linear layers without calling them.
    """
    found: dict[Hashable, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        _check_module(name or "the model", module)
        kind = _kind(module)
        if kind is None:
            continue
        _check_layer(name or "the model", module, kind)
        computed = kind == "table" or is_computed(module, "weight")
        found.setdefault(id(module) if computed else memory_key(source(module, "weight")), []).append((name, module))
    if not found:
        raise InputError("the model has no Linear, Embedding or encoder table: there is nothing to quantize")
    layers, holders = [], _holders(model)
    for group in found.values():
        (first, module), *others = group
        modules = tuple({id(each): each for _, each in group}.values())
        held = tuple(name for each in modules for name in holders.get(id(each), ()))
        layers.append(Layer(first, _kind(module) or "linear", module, tuple(name for name, _ in others), modules, held=held))
    return _with_shared_memory(model, layers)


def _holders(model: nn.Module) -> dict[int, list[str]]:
    """Names of attributes that hold a module without registering it, by the identity of the module."""
    found: dict[int, list[str]] = {}
    internal = vars(nn.Module()).keys()
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else (value,)
            if name not in internal:
                for item in items:
                    if isinstance(item, nn.Module):
                        found.setdefault(id(item), []).append(f"{prefix}.{name}" if prefix else name)
    return found


def _check_module(name: str, module: nn.Module) -> None:
    if isinstance(module, _NOT_CALLING_LAYERS):
        raise UnsupportedError(
            f"{name} is a torch {type(module).__name__}, which does not call its linear layers, so they can't be replaced: "
            "use a module that calls them (as balancer.models.attention.SparseSelfAttention does), or quantize other modules only"
        )
    if type(module).__name__ == "OptimizedModule":
        raise InputError(f"{name} is a result of torch.compile: quantize the model that it was made from, its _orig_mod, then compile that")
    if any(each is not None and nn.parameter.is_lazy(each) for each in module._parameters.values()):
        raise InputError(f"{name} is a {type(module).__name__} without weights: call the model once on a batch, then quantize it")


def _kind(module: nn.Module) -> Kind | None:
    kind = plain_type(module)
    if kind is nn.Linear:  # a subclass may compute something else
        return "linear"
    if kind is nn.Embedding and getattr(module, "max_norm", None) is None:
        return "embedding"
    return "table" if kind is PiecewiseLinearEncoder else None


def _check_layer(name: str, module: nn.Module, kind: Kind) -> None:
    """Check that a layer can be replaced.

    Raises:
        InputError: It can't, for the reason in the message.
    """
    if "forward" in vars(module):
        raise InputError(
            f"the forward pass of {name} was replaced, e.g. to offload it, which a quantized layer does not do: restore it, e.g. by "
            "accelerate.hooks.remove_hook_from_module, or make the layer a subclass, which is left as it is"
        )
    if kind == "table":
        if any(map(is_computing_hook, module._forward_pre_hooks.values())):
            raise InputError(f"the weights of {name} are computed by hooks: remove them, e.g. by torch.nn.utils.remove_weight_norm")
        dtype = source(module, "slope").dtype
    else:
        check_computable(name, module)
        dtype = source(module, "weight").dtype
    if dtype not in _ACCEPTED:
        accepted = ", ".join(str(each).removeprefix("torch.") for each in _ACCEPTED)
        raise InputError(f"the weight of {name} is {dtype}, which can't be quantized: convert the model to one of {accepted}")


def bias_channels(module: nn.Module) -> int:
    """Return the number of elements of the bias of a module."""
    if not isinstance(module, nn.Linear) or (not is_computed(module, "bias") and module.bias is None):
        return 0
    return source(module, "bias").numel()


def _with_shared_memory(model: nn.Module, layers: list[Layer]) -> list[Layer]:
    """Name the tensors that share memory with the weight of each layer."""
    own: dict[str, tuple[str, Span]] = {}
    for layer in layers:
        span = None if layer.kind == "table" or is_computed(layer.module, "weight") else span_of(source(layer.module, "weight"))
        if span is not None:
            own |= {f"{name}.weight" if name else "weight": (layer.name, span) for name in layer.module_names}
    replaced = [f"{name}." if name else "" for layer in layers for name in layer.module_names]
    by_storage: dict[int, list[tuple[str, Span]]] = {}
    tensors = dict(named_tensors(model))
    for name, tensor in tensors.items():
        span = span_of(tensor)
        if span is not None:
            by_storage.setdefault(span.storage, []).append((name, span))
    result = []
    for layer in layers:
        mine = own.get(f"{layer.name}.weight" if layer.name else "weight")
        if mine is None:
            result.append(layer)
            continue
        sharing = [name for name, span in by_storage.get(mine[1].storage, []) if span.overlaps(mine[1])]
        parts = {own[name][0] for name in sharing if name in own} - {layer.name}
        outside = [name for name in sharing if name not in own and not any(_is_dropped(name, prefix) for prefix in replaced)]
        key = memory_key(source(layer.module, "weight"))
        alike = all(memory_key(tensors[name]) == key for name in outside)
        result.append(dataclasses.replace(layer, outside=tuple(outside), outside_alike=alike, parts=tuple(sorted(parts))))
    return result


def _is_dropped(name: str, prefix: str) -> bool:
    """Whether a tensor determines the weight or bias of the replaced module ``prefix``."""
    if not name.startswith(prefix):
        return False
    first, _, rest = name.removeprefix(prefix).partition(".")
    return first == "parametrizations" or (not rest and first.split("_")[0] in ("weight", "bias"))


def fingerprint(layers: list[Layer]) -> str:
    """Hex digest of names, kinds and shapes of the layers.

    A plan fits every model with the same fingerprint.
    """
    description = [[layer.name, layer.kind, list(layer.shape), list(layer.tied)] for layer in layers]
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()
