"""Store a classifier in a folder: `model.safetensors` (weights) and `model.json` (configuration). No pickle.

A model of which only some parts were trained is stored as those parts and a reference to the folder with the
rest, which is checked by hash. Such a base may itself have a base. The configuration contains the hash of the
weights, so that files of two different runs, or a truncated file, raise an error instead of giving wrong
scores.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from balancer.errors import CorruptFileError, InputError, MissingFileError, UnwritableFileError
from balancer.files import read_json, write_bytes, write_json
from balancer.models.classifier import Classifier
from balancer.models.config import ModelConfig
from balancer.models.parts import part_of

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
FORMAT, DELTA_FORMAT = "balancer.classifier", "balancer.classifier.delta"
VERSION = 1
LONGEST_CHAIN = 16
"""Maximum number of nested bases; a longer chain is treated as a cycle."""


def save_classifier(model: Classifier, folder: Path | str) -> None:
    """Write weights and configuration into `folder`, which is created if it does not exist.

    Raises:
        UnwritableFileError: The folder can't be written, or the disk is full; existing files are not changed.
    """
    digest = _write_weights(model.state_dict(), Path(folder))
    content = {"format": FORMAT, "version": VERSION, "weights_sha256": digest, "config": model.config.to_dict()}
    write_json(Path(folder) / CONFIG_FILE, content)


def save_delta(model: Classifier, folder: Path | str, *, base: Path | str, parts: Collection[str]) -> None:
    """Write only the tensors of `parts`, and a reference to the folder with the others.

    Args:
        model: model whose other tensors equal those of `base` exactly.
        folder: created if it does not exist.
        base: folder written by :func:`save_classifier` or by this function. Its path is stored relative to
            `folder`, so both can be moved together.
        parts: names in :data:`balancer.models.parts.PARTS`.

    Raises:
        InputError: A tensor outside `parts` differs from that of the base, or a folder can't be read or
            written.
    """
    folder, base = Path(folder), Path(base)
    base_tensors = load_classifier(base).state_dict()
    delta = {name: tensor for name, tensor in model.state_dict().items() if part_of(name) in parts}
    for name, tensor in model.state_dict().items():
        if name not in delta and (name not in base_tensors or not torch.equal(base_tensors[name], tensor.cpu())):
            raise InputError(f"{name} differs from that of the base {base}: name its part ({part_of(name)}) too, or store the whole model")
    digest = _write_weights(delta, folder)
    reference = {"path": os.path.relpath(base.resolve(), folder.resolve()), "digest": weights_digest(base)}
    content = {"format": DELTA_FORMAT, "version": VERSION, "weights_sha256": digest, "base": reference, "parts": sorted(parts)}
    write_json(folder / CONFIG_FILE, content | {"config": model.config.to_dict()})


def weights_digest(folder: Path | str) -> str:
    """Hash that identifies the weights in a folder.

    It is the hash of the weights file, combined with that of the base if there is one.
    """
    content = _read_config(Path(folder))
    digest = str(content.get("weights_sha256"))
    if content["format"] == FORMAT:
        return digest
    return hashlib.sha256(f"{digest} on {content['base']['digest']}".encode()).hexdigest()


def base_of(folder: Path | str) -> Path | None:
    """Return the folder of the base of the model in `folder`, or None if the model is complete."""
    folder = Path(folder)
    content = _read_config(folder)
    return None if content["format"] == FORMAT else folder / content["base"]["path"]


def load_classifier(folder: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Load a classifier written by `save_classifier` or `save_delta`, in evaluation mode.

    Args:
        folder: folder of the classifier.
        device: device of the weights.

    Raises:
        InputError: A file is missing, truncated, of another format, or does not match the others, or a base
            is missing or has changed. The message names the file.
    """
    folder = Path(folder)
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    content = _read_config(folder)
    weights = _weights(folder, content, LONGEST_CHAIN)
    try:
        with torch.random.fork_rng(devices=[]):  # drawing initial weights must not change the state of the caller's generator
            model = Classifier(ModelConfig.from_dict(content["config"]))
    except InputError as error:
        raise InputError(f"{config_path}: {error}") from error
    wanted = model.state_dict()
    if content["format"] == DELTA_FORMAT:
        weights = {name: tensor for name, tensor in weights.items() if name in wanted}  # without replaced parts of the base
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # load_state_dict reports wrong names and shapes as RuntimeError
        raise CorruptFileError(f"{weights_path} does not fit {config_path}; restore both files from one run, or train again") from error
    return model.to(device).eval()


def _weights(folder: Path, content: dict[str, Any], chain: int) -> dict[str, Tensor]:
    """Read all tensors of the model in a folder, possibly including those of replaced parts of its base."""
    if content["format"] == FORMAT:
        return _read_weights(folder, content)
    base = folder / content["base"]["path"]
    if not (base / CONFIG_FILE).is_file():
        raise InputError(
            f"{folder} holds only some parts of a model, and the folder with the others, {base.resolve()}, is missing: put that folder back"
        )
    if chain == 0:
        raise InputError(f"{folder} is based on itself: restore its {CONFIG_FILE}")
    if weights_digest(base) != content["base"]["digest"]:
        raise InputError(
            f"{base.resolve()} is not the model that {folder} is based on, or has changed since: restore it, or train the part again with --from"
        )
    base_tensors = _weights(base, _read_config(base), chain - 1)
    delta, parts = _read_weights(folder, content), content["parts"]
    return {name: tensor for name, tensor in base_tensors.items() if part_of(name) not in parts} | delta


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    content = read_json(path, what="the classifier's configuration")
    known = content.get("format") in (FORMAT, DELTA_FORMAT) and content.get("version") == VERSION
    if known and content["format"] == DELTA_FORMAT:
        base, parts = content.get("base"), content.get("parts")
        known = isinstance(base, dict) and all(isinstance(base.get(key), str) for key in ("path", "digest")) and isinstance(parts, list)
    if not known or not isinstance(content.get("config"), dict):
        raise CorruptFileError(f"{path} is not a classifier's configuration of this version; give a folder that balancer wrote")
    return content


def _write_weights(tensors: dict[str, Tensor], folder: Path) -> str:
    """Write the tensors and return the hash of the file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableFileError(f"cannot make the folder {folder}: {error.strerror}; choose another place with --out") from error
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_bytes(folder / WEIGHTS_FILE, weights)
    return hashlib.sha256(weights).hexdigest()


def _read_weights(folder: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise MissingFileError(f"{path} can't be read ({error.strerror}): the classifier's weights; give a complete run folder") from error
    if hashlib.sha256(weights).hexdigest() != content.get("weights_sha256"):
        raise CorruptFileError(f"{path} is damaged or belongs to another {CONFIG_FILE}; restore both files from one run, or train again")
    try:
        return load(weights)
    except SafetensorError as error:
        raise CorruptFileError(f"{path} does not fit {folder / CONFIG_FILE}; restore both files from one run, or train again") from error
