"""Learned policies: a folder of ``policy.safetensors`` and ``policy.json``, run by NumPy alone.

Such a folder is called a bundle. It may hold the range of every feature in the policy's training
(``support``) and the best constant of that training (``fallback``). Outside that range the answer of a
learned policy can't be trusted, so it answers with the constant, warns once and keeps a note for the report;
as soon as an observation lies inside the range, the policy acts again. The answer depends on the observation
alone, so a resumed run needs no state of the policy.

A policy that was trained on one table is compared with the constant at the end. Where the constant is as
good, the bundle says so (``"kept": "constant"``) and answers with it.

``ppo`` and ``bandit`` are bundles in the package (:data:`BUNDLES`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from balancer.errors import CorruptFileError, InputError, MissingFileError
from balancer.sampling.constant_policy import FALLBACK, ConstantPolicy, DefaultPolicy, fallback_from_dict
from balancer.sampling.observation import (
    PER_CLASS_FEATURES,
    PER_CLASS_FEATURES_V0,
    SHARED_FEATURES,
    SHARED_FEATURES_V0,
    Observation,
)
from balancer.sampling.weights import (
    FLOOR_STEP,
    HALF_LIFE_STEP,
    HALF_LIVES,
    HARDNESS_STEP,
    IMPORTANCE_STEP,
    MAX_HARDNESS,
    SHARE_STEP,
    Floats,
    SamplingWeights,
)

WEIGHTS_FILE = "policy.safetensors"
CONFIG_FILE = "policy.json"
BUNDLES = Path(__file__).parent / "bundles"
"""Folder that holds the bundles of the package, one folder each."""
FEATURES = {0: (PER_CLASS_FEATURES_V0, SHARED_FEATURES_V0), 1: (PER_CLASS_FEATURES, SHARED_FEATURES)}
"""Features of each class and shared features, by the version of the environment that a policy learned in."""
OVERALL = {0: 2, 1: 4}
"""Numbers of an action besides the log shares, by that version."""
LAYERS = ("encode_1", "encode_2", "context", "share_1", "share_2", "overall")

Kept = Literal["policy", "constant"]
SLACK_PART, SLACK = 0.1, 0.05
"""How far a feature may lie beyond its training range: this fraction of the range, plus this amount.

Features are scaled to about 1."""


class OutsideTraining(UserWarning):
    """An observation lies outside the training range of a learned policy, so its constant is used."""


@dataclass(frozen=True)
class Support:
    """Range of every feature over the observations of a policy's training."""

    per_class: tuple[Floats, Floats]
    """Lowest and highest (D,) of each column of ``Observation.per_class``."""
    shared: tuple[Floats, Floats]
    """Lowest and highest (G,) of each column of ``Observation.shared``."""
    num_classes: tuple[int, int]
    version: int = 1
    """Version of the environment."""

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], version: int) -> Support:
        """Read the ``support`` of a ``policy.json`` of a policy for this version of the environment.

        Raises:
            ValueError, KeyError, TypeError: The content has another form.
        """
        ranges = []
        for part, size in zip(("per_class", "shared"), map(len, FEATURES[version]), strict=True):
            low, high = (np.asarray(state[part][end], dtype=np.float64) for end in ("low", "high"))
            if low.shape != (size,) or high.shape != (size,) or not (low <= high).all() or not np.isfinite(high - low).all():
                raise ValueError(f"support of {part} must be {size} finite ranges, low and high")
            ranges.append((low, high))
        fewest, most = (int(number) for number in state["num_classes"])
        if not 2 <= fewest <= most:
            raise ValueError(f"support of num_classes must be a range from 2, not {fewest} to {most}")
        return cls(ranges[0], ranges[1], (fewest, most), version)

    def outside(self, observation: Observation) -> tuple[str, str] | None:
        """Find the feature that lies farthest outside its range.

        Args:
            observation: Of one classifier, per_class (K, D) and shared (G,).

        Returns:
            The feature's name and a sentence with its value and range; None where all features are inside.
        """
        num_classes = len(observation.per_class)
        if not self.num_classes[0] <= num_classes <= self.num_classes[1]:
            low, high = self.num_classes
            return "num_classes", f"the table has {num_classes} classes, the training had {low} to {high}"
        worst, found = 0.0, None
        for names, values, (lows, highs) in (
            (FEATURES[self.version][0], observation.per_class, self.per_class),
            (FEATURES[self.version][1], observation.shared[None], self.shared),
        ):
            scale = SLACK_PART * (highs - lows) + SLACK
            excess = np.maximum(lows - values, values - highs) / scale - 1.0
            line, column = np.unravel_index(int(excess.argmax()), excess.shape)
            if excess[line, column] > worst:
                worst, name = float(excess[line, column]), names[column]
                found = name, _sentence(name, float(values[line, column]), float(lows[column]), float(highs[column]))
        return found


def _sentence(name: str, value: float, low: float, high: float) -> str:
    if name == "log_prior":  # show the prior, not its scaled logarithm
        name, value, low, high = "prior of a class", *(float(np.exp(5.0 * number)) for number in (value, low, high))
    return f"{name} is {value:.3g}, in training it was {low:.3g} to {high:.3g}"


class BundlePolicy:
    """A learned policy: one encoder for every class, pooled over the classes.

    So a policy that was trained on two classes runs on any number. The arrays are those of
    ``balancer.policy_learning.network.ActorNetwork``.

    Args:
        arrays: ``<layer>.weight`` and ``<layer>.bias`` of :data:`LAYERS`.
        summary: Description of the training in ``policy.json``.
        name: Name in reports.
        support: Range of the training observations; None: the policy acts on every observation.
        fallback: Constant used outside ``support``; None: that of the version.
        together: Change the log shares of all minority classes by their mean, so that their proportions stay
            those of the start.
        version: Version of the environment that it learned in.
        kept: Whether the policy acts, or the constant that it was compared with and that was better.
        notes: Remarks for the report.

    Raises:
        InputError: An array is missing, not finite, or does not fit the observation or the neighbouring
            layers.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        summary: dict[str, Any],
        name: str = "ppo",
        *,
        support: Support | None = None,
        fallback: ConstantPolicy | DefaultPolicy | None = None,
        together: bool = False,
        version: int = 1,
        kept: Kept = "policy",
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.version, self.kept = name, version, kept
        self.together = together
        self.summary = summary
        """Description of the training in ``policy.json``."""
        self.support = support
        self.fallback = fallback or (DefaultPolicy() if version else FALLBACK)
        self.notes: list[str] = list(notes)
        """Remarks for the report, e.g. where the policy used its constant."""
        self._warned: set[str] = set()
        _check_arrays(arrays, version)
        self.arrays = {key: np.asarray(value, dtype=np.float64) for key, value in arrays.items()}

    def __repr__(self) -> str:
        """Name, classes of the training, and whether the constant was used."""
        classes = "any" if self.support is None else "{} to {}".format(*self.support.num_classes)
        return f"BundlePolicy({self.name!r}, num_classes={classes}, kept={self.kept!r}, used_fallback={bool(self._warned)})"

    def act(self, observation: Observation) -> Floats | SamplingWeights | ConstantPolicy:
        """(K + 4,) mean action, (K + 2,) for version 0.

        Outside the support, and where the constant was kept, the answer of the fallback.
        """
        full = observation
        if self.kept == "constant":
            return self.fallback.act(full)
        if self.version == 0:
            observation = observation.v0()
        outside = self.support.outside(observation) if self.support is not None else None
        if outside is not None:
            if outside[0] != "compensated":
                self._note(*outside)
            elif full.started:  # before the first epoch it is not known yet whether the loss will be used
                self._note("compensated", "the loss does not count drawn rows by their weights (use sampler.loss)")
            return self.fallback.act(full)
        action: Floats = self.act_many(Observation(observation.per_class[None], observation.shared[None]))[0]
        return action

    def act_many(self, observation: Observation) -> Floats:
        """(M, K + 4) mean actions for observations of M classifiers; the support is ignored."""
        if self.version == 0:
            observation = observation.v0()
        per_class, shared = observation.per_class.astype(np.float64), observation.shared.astype(np.float64)
        spread = np.broadcast_to(shared[:, None], (*per_class.shape[:2], shared.shape[1]))
        code = np.tanh(self._linear("encode_2", np.tanh(self._linear("encode_1", np.concatenate([per_class, spread], axis=2)))))
        context = np.tanh(self._linear("context", np.concatenate([code.mean(axis=1), code.max(axis=1), shared], axis=1)))
        joined = np.concatenate([code, np.broadcast_to(context[:, None], (*code.shape[:2], context.shape[1]))], axis=2)
        share = self._linear("share_2", np.tanh(self._linear("share_1", joined)))[:, :, 0]
        mean: Floats = np.tanh(np.concatenate([share - share.mean(axis=1, keepdims=True), self._linear("overall", context)], axis=1))
        if self.together:
            minority = slice(1, per_class.shape[1])
            mean[:, minority] = mean[:, minority].mean(axis=1, keepdims=True)
        return mean

    def _linear(self, name: str, x: Floats) -> Floats:
        return np.asarray(x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"], dtype=np.float64)

    def _note(self, feature: str, sentence: str) -> None:
        if feature in self._warned:
            return
        text = f"policy {self.name} was not trained for this: {sentence}; its constant is used in such epochs"
        if not self._warned:
            warnings.warn(text, OutsideTraining, stacklevel=4)
        self._warned.add(feature)
        self.notes.append(text)


class AutoPolicy:
    """A policy of the package by its name; without that bundle it is the fallback constant, with a note.

    Args:
        name: ``ppo`` or ``bandit``.
        bundles: Folder that holds the bundle's folder.

    Raises:
        InputError: The bundle is there but can't be used (:func:`load_bundle`).
    """

    def __init__(self, name: str = "ppo", bundles: Path = BUNDLES) -> None:
        self.name = name
        self.bundle = load_bundle(bundles / name, name=name) if (bundles / name).is_dir() else None
        """The learned policy; None where it is not installed."""
        self.fallback = self.bundle.fallback if self.bundle is not None else DefaultPolicy()

    def __repr__(self) -> str:
        """Name, and whether the bundle is installed."""
        return f"AutoPolicy({self.name!r}, installed={self.bundle is not None})"

    @property
    def summary(self) -> dict[str, Any]:
        """Description of the training in ``policy.json``; empty where the bundle is not installed."""
        return self.bundle.summary if self.bundle is not None else {}

    @property
    def notes(self) -> list[str]:
        """Remarks for the report: where the policy used its constant, and why."""
        if self.bundle is not None:
            return self.bundle.notes
        return [f"policy {self.name} is not part of this installation; its constant is used instead"]

    def act(self, observation: Observation) -> Floats | SamplingWeights | ConstantPolicy:
        """The answer of the bundle (:meth:`BundlePolicy.act`); without a bundle that of the fallback."""
        return (self.fallback if self.bundle is None else self.bundle).act(observation)


def load_bundle(folder: Path, name: str = "ppo") -> BundlePolicy:
    """Load a learned policy.

    Raises:
        MissingFileError: The folder or one of its files is missing.
        CorruptFileError: A file is damaged or was made for another layout of the observation.
        InputError: An array does not fit the others.
    """
    config_file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for file in (config_file, weights_file):
        if not file.is_file():
            raise MissingFileError(
                f"no policy at {str(folder)!r}: {file.name} is missing; use auto, constant, ppo, bandit, rule, schedule, random, start, "
                "or a folder written by a training run"
            )
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        arrays = load_file(weights_file)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise CorruptFileError(
            f"policy at {str(folder)!r} can't be read ({error}); it may be corrupt: train it again or copy it again"
        ) from error
    version = next((version for version in FEATURES if _has_layout(config, version)), None)
    if version is None:
        raise CorruptFileError(
            f"policy at {str(folder)!r} was made for another version of observation or action; train it again with this version"
        )
    try:
        support = Support.from_dict(config["support"], version) if "support" in config else None
        fallback = fallback_from_dict(config["fallback"]) if version == 0 and "fallback" in config else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(f"policy at {str(folder)!r} can't be read ({error}); copy {CONFIG_FILE} again or train it again") from error
    kept, notes = config.get("kept", "policy"), config.get("notes", [])
    if kept not in get_args(Kept) or not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise CorruptFileError(f"policy at {str(folder)!r} can't be read (kept or notes); copy {CONFIG_FILE} again or train it again")
    together = config.get("minority", "apart") == "together"
    return BundlePolicy(
        arrays,
        config.get("training", {}),
        name,
        support=support,
        fallback=fallback,
        together=together,
        version=version,
        kept=kept,
        notes=notes,
    )


def _has_layout(config: Any, version: int) -> bool:
    return isinstance(config, dict) and all(config.get(key) == value for key, value in bundle_layout(version).items())


def bundle_layout(version: int = 1) -> dict[str, Any]:
    """What a bundle and the code that runs it must agree on: version, features, steps of the action.

    Features are already scaled: they need no normalisation.

    Args:
        version: Version of the environment that the policy learned in.
    """
    per_class, shared = FEATURES[version]
    steps: dict[str, Any] = {"share_step": SHARE_STEP, "hardness_step": HARDNESS_STEP, "max_hardness": MAX_HARDNESS}
    if version == 0:
        steps |= {"floor_step": FLOOR_STEP}
    else:
        steps |= {"importance_step": IMPORTANCE_STEP, "half_life_step": HALF_LIFE_STEP, "half_lives": list(HALF_LIVES)}
    return {
        "format_version": version + 1,
        "observation": {"per_class": list(per_class), "shared": list(shared)},
        "action": steps,
    }


def _check_arrays(arrays: Mapping[str, NDArray[Any]], version: int) -> None:
    """Check that all layers are there, finite, and fit one another; their widths are free.

    Raises:
        InputError: A layer is missing or does not fit.
    """
    remedy = "train the policy again with this version"
    for name in (f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")):
        if name not in arrays:
            raise InputError(f"policy has no array {name!r}; {remedy}")
        if np.asarray(arrays[name]).dtype.kind != "f" or not np.isfinite(arrays[name]).all():
            raise InputError(f"array {name!r} of the policy must be finite floating-point numbers; {remedy}")
    width = {layer: int(np.size(arrays[f"{layer}.bias"])) for layer in LAYERS}
    per_class, shared = map(len, FEATURES[version])
    inputs = {
        "encode_1": per_class + shared,
        "encode_2": width["encode_1"],
        "context": 2 * width["encode_2"] + shared,
        "share_1": width["encode_2"] + width["context"],
        "share_2": width["share_1"],
        "overall": width["context"],
    }
    outputs = width | {"share_2": 1, "overall": OVERALL[version]}
    for layer in LAYERS:
        weight, bias = np.shape(arrays[f"{layer}.weight"]), np.shape(arrays[f"{layer}.bias"])
        if weight != (outputs[layer], inputs[layer]) or bias != (outputs[layer],):
            raise InputError(
                f"layer {layer!r} of the policy must have weights ({outputs[layer]}, {inputs[layer]}), not {weight} with bias {bias}; {remedy}"
            )
