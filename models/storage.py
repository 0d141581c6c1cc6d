"""A classifier in a folder: `model.safetensors` (weights) and `model.json` (configuration). No pickle.

Each file is replaced atomically, the weights first; the JSON carries their digest, so a kill between the two, a truncated file or one from
another run is noticed on loading instead of giving wrong scores.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from balancer.errors import InputError
from balancer.files import read_json, write_bytes, write_json
from balancer.models.classifier import Classifier
from balancer.models.config import ModelConfig

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
FORMAT = "balancer.classifier"
VERSION = 1


def save_classifier(model: Classifier, folder: Path | str) -> None:
    """Write weights and configuration into `folder`, which is made where it is missing.

    Raises:
        InputError: The folder can't be written, or the disk is full; earlier files stay as they were.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}; choose another place with --out") from error
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    write_bytes(folder / WEIGHTS_FILE, weights)
    digest = hashlib.sha256(weights).hexdigest()
    write_json(folder / CONFIG_FILE, {"format": FORMAT, "version": VERSION, "weights_sha256": digest, "config": model.config.to_dict()})


def load_classifier(folder: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Read what `save_classifier` wrote, in evaluation mode, on `device`.

    Raises:
        InputError: A file is missing, truncated, foreign, or does not fit the other; the message names it.
    """
    config_path, weights_path = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
    content = read_json(config_path, what="the classifier's configuration")
    if content.get("format") != FORMAT or content.get("version") != VERSION or not isinstance(content.get("config"), dict):
        raise InputError(f"{config_path} is not a classifier's configuration of this version; give a folder that balancer wrote")
    try:
        with torch.random.fork_rng(devices=[]):  # the first weights are overwritten; drawing them must not move the caller's generator
            model = Classifier(ModelConfig.from_dict(content["config"]))
    except InputError as error:
        raise InputError(f"{config_path}: {error}") from error
    try:
        weights = weights_path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{weights_path} can't be read ({error.strerror}): the classifier's weights; give a complete run folder"
        ) from error
    if hashlib.sha256(weights).hexdigest() != content.get("weights_sha256"):
        raise InputError(f"{weights_path} is damaged or belongs to another {CONFIG_FILE}; restore both files from one run, or train again")
    try:
        model.load_state_dict(load(weights))
    except (SafetensorError, RuntimeError) as error:  # load_state_dict reports wrong names and shapes as RuntimeError
        raise InputError(f"{weights_path} does not fit {config_path}; restore both files from one run, or train again") from error
    return model.to(device).eval()
