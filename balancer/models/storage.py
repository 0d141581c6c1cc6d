"""A classifier in a folder: `model.safetensors` (weights) and `model.json` (configuration). No pickle.

Special: a model of which only some parts were trained is stored as those parts and a reference to the folder that has the rest, checked by hash; a base may
itself have a base. The configuration holds the hash of the weights, so that a pair from two runs, or a file cut short, is noticed instead of giving wrong
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
"""Bases of bases; more are a circle."""


def save_classifier(model: Classifier, folder: Path | str) -> None:
    """Write weights and configuration into `folder`, which is made where it is missing.

    Raises:
        InputError: The folder can't be written, or the disk is full; earlier files stay as they were.
    """
    digest = _write_weights(model.state_dict(), Path(folder))
    content = {"format": FORMAT, "version": VERSION, "weights_sha256": digest, "config": model.config.to_dict()}
    write_json(Path(folder) / CONFIG_FILE, content)


def save_delta(model: Classifier, folder: Path | str, *, base: Path | str, parts: Collection[str]) -> None:
    """Write the tensors of `parts` only, and where the rest is.

    Args:
        model: whose other tensors are those of `base`, to the last bit.
        folder: made where it is missing.
        base: folder of :func:`save_classifier`, or of this function; it is stored relative to `folder`, so both can be moved together.
        parts: of :data:`balancer.models.parts.PARTS`.

    Raises:
        InputError: A tensor outside `parts` is not the base's, or a folder can't be read or written.
    """
    folder, base = Path(folder), Path(base)
    held = load_classifier(base).state_dict()
    own = {name: tensor for name, tensor in model.state_dict().items() if part_of(name) in parts}
    for name, tensor in model.state_dict().items():
        if name not in own and (name not in held or not torch.equal(held[name], tensor.cpu())):
            raise InputError(f"{name} is not what the base {base} has: name its part ({part_of(name)}) too, or store the whole model")
    digest = _write_weights(own, folder)
    reference = {"path": os.path.relpath(base.resolve(), folder.resolve()), "digest": weights_digest(base)}
    content = {"format": DELTA_FORMAT, "version": VERSION, "weights_sha256": digest, "base": reference, "parts": sorted(parts)}
    write_json(folder / CONFIG_FILE, content | {"config": model.config.to_dict()})


def weights_digest(folder: Path | str) -> str:
    """What the weights in a folder are known by: the hash of the file, and where they have a base of the file's and the base's."""
    content = _read_config(Path(folder))
    own = str(content.get("weights_sha256"))
    if content["format"] == FORMAT:
        return own
    return hashlib.sha256(f"{own} on {content['base']['digest']}".encode()).hexdigest()


def base_of(folder: Path | str) -> Path | None:
    """The folder whose model the one in `folder` is based on; None where it is whole."""
    folder = Path(folder)
    content = _read_config(folder)
    return None if content["format"] == FORMAT else folder / content["base"]["path"]


def load_classifier(folder: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Read what `save_classifier` or `save_delta` wrote, in evaluation mode, on `device`.

    Raises:
        InputError: A file is missing, truncated, foreign, or does not fit the other, or a base is gone or another; the message names it.
    """
    folder = Path(folder)
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    content = _read_config(folder)
    weights = _weights(folder, content, LONGEST_CHAIN)
    try:
        with torch.random.fork_rng(devices=[]):  # the first weights are overwritten; drawing them must not move the caller's generator
            model = Classifier(ModelConfig.from_dict(content["config"]))
    except InputError as error:
        raise InputError(f"{config_path}: {error}") from error
    wanted = model.state_dict()
    if content["format"] == DELTA_FORMAT:
        weights = {name: tensor for name, tensor in weights.items() if name in wanted}  # a base's replaced parts
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # load_state_dict reports wrong names and shapes as RuntimeError
        raise CorruptFileError(f"{weights_path} does not fit {config_path}; restore both files from one run, or train again") from error
    return model.to(device).eval()


def _weights(folder: Path, content: dict[str, Any], chain: int) -> dict[str, Tensor]:
    """Every tensor of the model in a folder, and those of its base that it replaced."""
    if content["format"] == FORMAT:
        return _read_weights(folder, content)
    base = folder / content["base"]["path"]
    if not (base / CONFIG_FILE).is_file():
        raise InputError(
            f"{folder} holds a part of a model whose rest was in {base.resolve()}: put that folder back, the two belong side by side as they were"
        )
    if chain == 0:
        raise InputError(f"{folder} is based on itself: restore it from the run that it was made from")
    if weights_digest(base) != content["base"]["digest"]:
        raise InputError(
            f"{base.resolve()} is not the model that {folder} is based on, or has changed since: restore it, or train the part again with --from"
        )
    beneath = _weights(base, _read_config(base), chain - 1)
    own, parts = _read_weights(folder, content), content["parts"]
    return {name: tensor for name, tensor in beneath.items() if part_of(name) not in parts} | own


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
    """Write the tensors; the hash of the file."""
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
