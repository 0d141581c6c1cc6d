"""A quantized model on disk: the tensors as they are used, and the plan in JSON. No pickle.

Special: loading builds the quantized modules from the plan on torch's meta device and hands them the tensors of the mapped file, so the full model is never
made and no tensor is copied; a tied weight is stored once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from balancer.errors import CorruptFileError, InputError, MissingFileError, UnsupportedError
from balancer.files import read_json, write_bytes, write_json
from balancer.models.classifier import Classifier
from balancer.models.config import ModelConfig
from balancer.models.encoding import Bins, PiecewiseLinearEncoder
from balancer.models.quantization.applying import Applied
from balancer.models.quantization.layers import find_layers, fingerprint
from balancer.models.quantization.modules import DTYPES
from balancer.models.quantization.plan import PrecisionPlan
from balancer.models.quantization.swapping import module_of, put
from balancer.models.storage import CONFIG_FILE

WEIGHTS_FILE = "model.quantized.safetensors"
PLAN_FILE = "precision.json"
FORMAT = 1


def save_quantized(model: nn.Module, applied: Applied, folder: Path, *, plan: PrecisionPlan, about: dict[str, Any] | None = None) -> None:
    """Write the tensors of a model that :func:`apply_precision` made on the torch backend, and ``precision.json``.

    ``about`` is JSON-able and kept beside, under ``about``. Raises InputError for another backend, or where the folder can't be written.
    """
    if any(row.backend != "torch" for row in applied.rows):
        raise UnsupportedError(
            "only a model on the torch backend is saved: other backends are put on when they are used; apply the plan with backend='torch'"
        )
    tensors, aliases = _unshared(model.state_dict())
    content = save(tensors)
    write_bytes(folder / WEIGHTS_FILE, content)
    told = {
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "aliases": aliases,
        "plan": plan.to_dict(),
        "got": {row.layer: row.got for row in applied.rows},
        "applied": applied.to_dict(),
        "about": about or {},
    }
    write_json(folder / PLAN_FILE, told)


def load_quantized(make: Callable[[], nn.Module], folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The quantized model and the content of ``precision.json``.

    Args:
        make: builds the full model's skeleton; it is called on the meta device, so its weights take no memory.
        folder: what :func:`save_quantized` wrote to.

    Raises:
        InputError: a file that is missing, damaged, foreign or of another model.
    """
    told = read_json(folder / PLAN_FILE, what="it is the precision plan of a quantized model; make it by balancer quantize")
    missing = [key for key in ("format", "weights_sha256", "aliases", "plan", "got") if key not in told]
    if missing or told["format"] != FORMAT:
        raise CorruptFileError(f"{folder / PLAN_FILE} was not written by this version of balancer quantize: quantize the run anew")
    plan = PrecisionPlan.from_dict(told["plan"])
    with torch.device("meta"):
        model = make().eval().requires_grad_(False)
    layers = find_layers(model)
    if fingerprint(layers) != plan.fingerprint:
        raise InputError(f"{folder / PLAN_FILE} is of another model than the one it is loaded into: quantize the run anew")
    tensors = _read(folder / WEIGHTS_FILE, told["weights_sha256"])
    tensors |= {alias: tensors[name] for alias, name in told["aliases"].items()}
    try:
        for layer in layers:
            for name in layer.places:
                own = {key: tensors.pop(f"{name}.{key}") for key in ("weight", "scale") if f"{name}.{key}" in tensors}
                put(model, name, _module(model.get_submodule(name), own, tensors.pop(f"{name}.bias", None), told["got"][layer.name]))
        rest = model.load_state_dict(tensors, strict=False, assign=True)
        left = [name for name in rest.missing_keys if not _held(model, name)]
        if left or rest.unexpected_keys:
            raise KeyError(", ".join([*left, *rest.unexpected_keys][:3]))
    except (KeyError, RuntimeError) as error:
        raise CorruptFileError(f"{folder / WEIGHTS_FILE} does not fit {PLAN_FILE} ({error}): quantize the run anew") from error
    return model, told


def load_quantized_classifier(folder: Path, device: torch.device | str = "cpu") -> Classifier:
    """The classifier of a run folder in its planned precision; see :func:`load_quantized`."""
    content = read_json(folder / CONFIG_FILE, what="it is the configuration of the model")
    try:
        # What is quantized is the deployable model: adapters are in its weights, further tasks left out.
        config = dataclasses.replace(ModelConfig.from_dict(content["config"]), adapter_rank=0, tasks=())
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"{folder / CONFIG_FILE} can't be used ({error}): give a run folder as balancer train wrote it") from error
    model, _ = load_quantized(lambda: Classifier(config), folder)
    _fill_bins(model, config)
    assert isinstance(model, Classifier)
    return model.to(device)


def _fill_bins(model: nn.Module, config: ModelConfig) -> None:
    """Buffers that no file holds, since the configuration tells them: the edges of the encoder's bins."""
    for module in model.modules():
        if isinstance(module, Bins):
            fresh = Bins(config.edges)
            for name, buffer in fresh.named_buffers():
                setattr(module, name, buffer)


def _module(module: nn.Module, own: dict[str, Tensor], bias: Tensor | None, got: str) -> nn.Module:
    if "weight" not in own or (got == "int8") != ("scale" in own):
        raise KeyError("weight or scale of a layer is missing")
    if own["weight"].dtype != (torch.int8 if got == "int8" else DTYPES[got]):
        raise KeyError(f"a weight is {own['weight'].dtype}, not {got}")
    if isinstance(module, PiecewiseLinearEncoder):
        wanted: tuple[int, ...] = (2 * module.places.fields * module.places.bins, module.slope.shape[-1])
    else:
        wanted = tuple(module.get_parameter("weight").shape)
    if own["weight"].shape != wanted:
        raise KeyError("a weight has another shape")
    made = module_of(module, own["weight"], own.get("scale"))
    if getattr(made, "bias", None) is not None:
        if bias is None:
            raise KeyError("a bias is missing")
        made.bias = bias
    return made


def _held(model: nn.Module, name: str) -> bool:
    """Whether a tensor is there already, put in with its module."""
    parent, _, child = name.rpartition(".")
    tensor = getattr(model.get_submodule(parent), child, None)
    return isinstance(tensor, Tensor) and not tensor.is_meta


def _unshared(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, and which names are aliases of which."""
    first: dict[tuple[int, int], str] = {}
    tensors, aliases = {}, {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.contiguous()
    return tensors, aliases


def _read(file: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a file, mapped, not copied."""
    try:
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise CorruptFileError(f"{file} is damaged, or of another run than {PLAN_FILE}: quantize the run anew")
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise MissingFileError(f"{file} is missing: it holds the quantized weights; make them by balancer quantize") from None
    except (OSError, SafetensorError) as error:
        raise CorruptFileError(f"{file} can't be read ({error}): quantize the run anew") from error
