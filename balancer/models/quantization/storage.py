"""Store a quantized model: the tensors as they are used, and the plan in JSON. No pickle.

Loading builds the quantized modules from the plan on torch's meta device and assigns them the tensors of the
memory-mapped file, so the full-precision model is never built and no tensor is copied. A tied weight is
stored once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from balancer.errors import CorruptFileError, InputError, MissingFileError, UnsupportedError, reason_of
from balancer.files import read_json, write_bytes, write_json
from balancer.models.classifier import Classifier
from balancer.models.config import ModelConfig
from balancer.models.encoding import Bins
from balancer.models.quantization.applying import Applied
from balancer.models.quantization.carrying import STATE_HOOKS
from balancer.models.quantization.layers import Layer, bias_channels, find_layers, fingerprint
from balancer.models.quantization.modules import DTYPES
from balancer.models.quantization.plan import PrecisionPlan
from balancer.models.quantization.shared_memory import named_tensors
from balancer.models.quantization.swapping import convert_module, with_module
from balancer.models.storage import CONFIG_FILE

WEIGHTS_FILE = "model.quantized.safetensors"
PLAN_FILE = "precision.json"
FORMAT = 1


def save_quantized(model: nn.Module, applied: Applied, folder: Path, *, plan: PrecisionPlan, about: dict[str, Any] | None = None) -> None:
    """Write the tensors of a quantized model, and ``precision.json``.

    The model must be the result of :func:`apply_precision` on the torch backend.

    Args:
        model: the quantized model.
        applied: report of :func:`apply_precision`.
        folder: folder to write to.
        plan: the plan that was applied.
        about: JSON-compatible values that are stored in ``precision.json`` under ``about``.

    Raises:
        UnsupportedError: A layer uses another backend, or has a hook on its state dict.
        UnwritableFileError: The folder can't be written.
    """
    if any(row.backend != "torch" for row in applied.rows):
        raise UnsupportedError(
            "only a model on the torch backend can be stored: apply the plan with backend='torch', and again with another backend after loading"
        )
    for row in applied.rows:
        if row.views:
            raise UnsupportedError(
                f"{', '.join(row.views)} is a view of the weight of {row.layer}, which can't be stored: make it a property"
            )
        for name in (row.layer, *row.tied):
            if any(getattr(model.get_submodule(name), kind) for kind in STATE_HOOKS):
                raise UnsupportedError(
                    f"{name} has a hook on its state dict, which may change what is stored: remove it from the full-precision model first"
                )
    tensors, aliases = _unshared(model.state_dict())
    content = save(tensors)
    write_bytes(folder / WEIGHTS_FILE, content)
    description = {
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "aliases": aliases,
        "plan": plan.to_dict(),
        "got": {row.layer: row.got for row in applied.rows},
        "dtype": {row.layer: row.dtype for row in applied.rows},
        "applied": applied.to_dict(),
        "about": about or {},
    }
    write_json(folder / PLAN_FILE, description)


def load_quantized(make: Callable[[], nn.Module], folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a quantized model.

    Args:
        make: builds the full-precision model. It is called on the meta device, so its weights need no memory.
        folder: folder written by :func:`save_quantized`.

    Returns:
        The quantized model and the content of ``precision.json``.

    Raises:
        InputError: A file is missing, damaged, of another format, or of another model.
    """
    model, stored = _load(make, folder)
    _fill_buffers(model, make)
    return model, stored


def _load(make: Callable[[], nn.Module], folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """See :func:`load_quantized`; buffers that are not in the file remain on the meta device."""
    stored = read_json(folder / PLAN_FILE, what="the precision plan of a quantized model, which balancer quantize writes")
    missing = [key for key in ("format", "weights_sha256", "aliases", "plan", "got") if key not in stored]
    if missing or stored["format"] != FORMAT:
        raise CorruptFileError(f"{folder / PLAN_FILE} was not written by this version of balancer quantize: quantize the run again")
    plan = PrecisionPlan.from_dict(stored["plan"])
    model = _without_values(make).eval().requires_grad_(False)
    layers = find_layers(model)
    if fingerprint(layers) != plan.fingerprint:
        raise InputError(f"{folder / PLAN_FILE} is for another model than the one it is loaded into: quantize the run again")
    tensors = _read(folder / WEIGHTS_FILE, stored["weights_sha256"])
    tensors |= {alias: tensors[name] for alias, name in stored["aliases"].items()}
    try:
        for layer in layers:
            dtype = _dtype(stored.get("dtype", {}).get(layer.name, str(layer.dtype)))
            for name, made in _replacements(model, layer, tensors, stored["got"][layer.name], dtype).items():
                model = with_module(model, name, made)
        rest = model.load_state_dict(tensors, strict=False, assign=True)
        absent = [name for name in rest.missing_keys if not _is_loaded(model, name)]
        if absent or rest.unexpected_keys:
            raise KeyError(", ".join([*absent, *rest.unexpected_keys][:3]))
    except (KeyError, RuntimeError) as error:
        raise CorruptFileError(f"{folder / WEIGHTS_FILE} does not fit {PLAN_FILE} ({error}): quantize the run again") from error
    return model, stored


def load_quantized_classifier(folder: Path, device: torch.device | str = "cpu") -> Classifier:
    """Load the quantized classifier of a run folder; see :func:`load_quantized`."""
    content = read_json(folder / CONFIG_FILE, what="the configuration of the model")
    try:
        # Quantization applies to the deployable model: adapters are merged into its weights, auxiliary tasks
        # removed.
        config = dataclasses.replace(ModelConfig.from_dict(content["config"]), adapter_rank=0, tasks=())
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"{folder / CONFIG_FILE} can't be used ({error}): give a run folder written by balancer train") from error

    def make() -> Classifier:
        return Classifier(config)

    model, _ = _load(make, folder)
    _fill_bins(model, config)
    _fill_buffers(model, make)  # those of parts from outside this package
    assert isinstance(model, Classifier)
    return model.to(device)


def _without_values(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model on the meta device; where that can't be done, build it with values and drop these."""
    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError):  # a part of the user may read numbers when it is built
        return make().to("meta")


def _fill_buffers(model: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Compute tensors that are not in the file, e.g. of positions, by building the model once more."""
    absent = [name for name, tensor in named_tensors(model) if tensor.is_meta]
    if absent:
        fresh = dict(named_tensors(make()))
        for name in absent:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, fresh[name].detach())


def _fill_bins(model: nn.Module, config: ModelConfig) -> None:
    """Compute the edges of the encoder's bins from the configuration; they are not in the file."""
    for module in model.modules():
        if isinstance(module, Bins):
            fresh = Bins(config.edges)
            for name, buffer in fresh.named_buffers():
                setattr(module, name, buffer)


def _replacements(model: nn.Module, layer: Layer, tensors: dict[str, Tensor], precision: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Build the replacements of a layer from its stored tensors, and remove these from ``tensors``.

    A KeyError is raised if they do not fit.
    """
    made: dict[int, nn.Module] = {}
    replacements = {}
    for name in layer.module_names:
        module, prefix = model.get_submodule(name), f"{name}." if name else ""
        found = {key: tensors.pop(prefix + key) for key in ("weight", "scale", "bias") if prefix + key in tensors}
        if id(module) not in made:
            made[id(module)] = _replacement(layer, module, found, precision, dtype)
        replacements[name] = made[id(module)]
    return replacements


def _replacement(layer: Layer, module: nn.Module, found: dict[str, Tensor], precision: str, dtype: torch.dtype) -> nn.Module:
    """Build the replacement of ``module``; see :func:`_replacements`."""
    if "weight" not in found or (precision == "int8") != ("scale" in found):
        raise KeyError("weight or scale of a layer is missing")
    weight = found["weight"]
    if weight.dtype != (torch.int8 if precision == "int8" else DTYPES[precision]):
        raise KeyError(f"a weight is {weight.dtype}, not {precision}")
    if weight.shape != layer.shape:
        raise KeyError("a weight has another shape")
    if bias_channels(module) != (found["bias"].numel() if "bias" in found else 0):
        raise KeyError("a bias is missing, or of another model")
    return convert_module(module, weight, found.get("scale"), found.get("bias"), dtype)


def _dtype(name: str) -> torch.dtype:
    """Return the dtype of a stored name; a KeyError is raised if it is none."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise KeyError(f"{name} is no dtype")
    return dtype


def _is_loaded(model: nn.Module, name: str) -> bool:
    """Whether a tensor was loaded together with its module."""
    parent, _, child = name.rpartition(".")
    tensor = getattr(model.get_submodule(parent), child, None)
    return isinstance(tensor, Tensor) and not tensor.is_meta


def _unshared(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every tensor once, and the names of the others with the same data."""
    first: dict[Hashable, str] = {}
    tensors, aliases = {}, {}
    storages: set[int] = set()  # a file can't contain different tensors with the same memory
    for name, tensor in state.items():
        key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.contiguous().clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    return tensors, aliases


def _read(file: Path, digest: str) -> dict[str, Tensor]:
    """Memory-map the tensors of a file."""
    try:
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise CorruptFileError(f"{file} is damaged, or from another run than {PLAN_FILE}: quantize the run again")
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise MissingFileError(f"{file} with the quantized weights is missing: create it by balancer quantize") from None
    except (OSError, SafetensorError) as error:
        raise CorruptFileError(f"{file} can't be read ({reason_of(error)}): quantize the run again") from error
