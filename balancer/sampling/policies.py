"""Policies: what chooses the sampling weights of the next epoch.

A policy sees an :class:`Observation` and answers with a residual action in ``[-1, 1] ** (K + 2)``, or, where it aims at a state rather
than a direction (constants and hand-written rules), with the :class:`SamplingWeights` it wants at once. Learned policies are bundles: a
folder of ``policy.safetensors`` and ``policy.json`` that runs here in NumPy, without Stable-Baselines3 or torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES, Observation
from balancer.sampling.weights import FLOOR_STEP, HARDNESS_STEP, MAX_HARDNESS, SHARE_STEP, START_FLOOR, SamplingWeights, minority_share

BUNDLE_VERSION = 1
WEIGHTS_FILE = "policy.safetensors"
CONFIG_FILE = "policy.json"


class Policy(Protocol):
    """Anything with a name and :meth:`act`; it keeps no state, so it resumes for free."""

    @property
    def name(self) -> str:
        """Shown in reports."""
        ...

    def act(self, observation: Observation) -> NDArray[np.float64] | SamplingWeights:
        """(K + 2,) residual action in [-1, 1] (log share per class, hardness, floor), or the weights to take on at once."""
        ...


@dataclass(frozen=True)
class ConstantPolicy:
    """The same weights in every epoch; the default is the best of the constants of the published grid over share and hardness."""

    share: float | None = 0.2
    """Total share of the classes other than the first, divided among them by the root of their prior; None: every class at its prior."""
    hardness: float = 1.0
    floor: float = START_FLOOR
    name: str = "constant"

    def act(self, observation: Observation) -> SamplingWeights:
        """The constant weights; a total share below the prior of the minority is raised to it (a balanced table needs no thinning)."""
        prior = observation.prior
        share = prior if self.share is None else minority_share(prior, max(self.share, 1.0 - float(prior[0])))
        return SamplingWeights(share, self.hardness, self.floor)


@dataclass(frozen=True)
class RulePolicy:
    """ART: each class by ``1 - F1`` of that class on validation, without hardness.

    It overshoots where a class is rare, and stands here as a baseline.

    Source: Adaptive Resampling-based Training, 2025 (class distribution from class-wise performance at fixed intervals).
    """

    name: str = "rule"

    def act(self, observation: Observation) -> NDArray[np.float64] | SamplingWeights:
        """Starting weights before the first epoch, shares in proportion to ``1 - F1`` after."""
        f1 = observation.class_feature("f1_argmax").astype(np.float64)
        if not observation.started:
            return np.zeros(len(f1) + 2)
        need = np.maximum(1.0 - f1, 1e-3)
        return SamplingWeights(need / need.sum(), 0.0, START_FLOOR)


class BundlePolicy:
    """A learned policy in NumPy: a per-class encoder shared by all classes, pooled, so that one trained on two classes runs on any number.

    The arrays are those of ``balancer.envs.policy_network.ActorNetwork``; their names and the layout of the observation are checked on
    loading.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], summary: dict[str, Any], name: str = "ppo") -> None:
        self.name = name
        self.summary = summary
        """What ``policy.json`` says of the training."""
        self._arrays = {key: np.asarray(value, dtype=np.float64) for key, value in arrays.items()}
        missing = [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias") if f"{layer}.{kind}" not in arrays]
        if missing:
            raise InputError(f"policy has no array {missing[0]!r}; train it again with this version")

    def act(self, observation: Observation) -> NDArray[np.float64]:
        """(K + 2,) mean action."""
        per_class, shared = observation.per_class.astype(np.float64), observation.shared.astype(np.float64)
        spread = np.broadcast_to(shared, (len(per_class), len(shared)))
        code = np.tanh(self._linear("encode_2", np.tanh(self._linear("encode_1", np.concatenate([per_class, spread], axis=1)))))
        context = np.tanh(self._linear("context", np.concatenate([code.mean(axis=0), code.max(axis=0), shared])))
        joined = np.concatenate([code, np.broadcast_to(context, (len(code), len(context)))], axis=1)
        share = self._linear("share_2", np.tanh(self._linear("share_1", joined)))[:, 0]
        mean: NDArray[np.float64] = np.tanh(np.concatenate([share - share.mean(), self._linear("overall", context)]))
        return mean

    def _linear(self, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(x @ self._arrays[f"{name}.weight"].T + self._arrays[f"{name}.bias"], dtype=np.float64)


LAYERS = ("encode_1", "encode_2", "context", "share_1", "share_2", "overall")


def load_policy(text: str | Path, *, num_classes: int) -> Policy:
    """Policy from its name or its folder.

    Args:
        text: ``constant``, ``constant:share=.2,hardness=1`` (keys ``share``, a number or ``prior``; ``hardness``; ``floor``), ``rule``,
            or a bundle folder.
        num_classes: K of the run.

    Raises:
        InputError: unknown name, key or number, or a bundle that is missing, torn or of another version.

    >>> load_policy("constant:share=.2,hardness=.5", num_classes=2)
    ConstantPolicy(share=0.2, hardness=0.5, floor=0.05, name='constant')
    """
    if num_classes < 2:
        raise InputError(f"a policy needs at least two classes, not {num_classes}")
    name, _, options = str(text).partition(":")
    if name == "constant":
        return _constant(options)
    if str(text) == "rule":
        return RulePolicy()
    return load_bundle(Path(text))


def _constant(options: str) -> ConstantPolicy:
    given: dict[str, float | None] = {}
    limits = {"share": (0.0, 1.0), "hardness": (0.0, MAX_HARDNESS), "floor": (0.0, 1.0)}
    for part in options.split(",") if options else []:
        key, _, value = part.partition("=")
        if key not in limits:
            raise InputError(
                f"policy option {key!r} is not known; constant takes share, hardness and floor, as in constant:share=.2,hardness=1"
            )
        if key == "share" and value == "prior":
            given[key] = None
            continue
        try:
            number = float(value)
        except ValueError:
            raise InputError(f"policy option {part!r} needs a number, as in constant:share=.2,hardness=1") from None
        low, high = limits[key]
        if not low <= number <= high or (key == "share" and number in (low, high)):
            raise InputError(f"policy option {part!r} must lie between {low:g} and {high:g}")
        given[key] = number
    base = ConstantPolicy()
    share = given.get("share", base.share)
    return ConstantPolicy(
        share, given.get("hardness") or 0.0 if "hardness" in given else base.hardness, _or(given.get("floor"), base.floor)
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def load_bundle(folder: Path) -> BundlePolicy:
    """Learned policy from ``folder``; InputError where it is missing, torn or made for another layout of the observation."""
    config_file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for file in (config_file, weights_file):
        if not file.is_file():
            raise InputError(
                f"no policy at {str(folder)!r}: {file.name} is missing; use constant, rule, or a folder written by a training run"
            )
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        arrays = load_file(weights_file)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InputError(f"policy at {str(folder)!r} can't be read ({error}); it may be torn, train it again or copy it anew") from error
    if not isinstance(config, dict) or any(config.get(key) != value for key, value in bundle_layout().items()):
        raise InputError(
            f"policy at {str(folder)!r} was made for another version of observation or action; train it again with this version"
        )
    return BundlePolicy(arrays, config.get("training", {}))


def bundle_layout() -> dict[str, Any]:
    """What a bundle and the code that runs it must agree on: version, features (already scaled, they need no normalisation), steps of the action."""
    return {
        "format_version": BUNDLE_VERSION,
        "observation": {"per_class": list(PER_CLASS_FEATURES), "shared": list(SHARED_FEATURES)},
        "action": {"share_step": SHARE_STEP, "hardness_step": HARDNESS_STEP, "floor_step": FLOOR_STEP, "max_hardness": MAX_HARDNESS},
    }
