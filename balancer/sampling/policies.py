"""Policies: each chooses the sampling weights of the next epoch.

A policy sees an :class:`Observation` and answers in one of three forms. :func:`ask` asks it and turns the
answer into the next weights:

- a residual action in ``[-1, 1] ** (K + 4)``, applied to the present weights (learned policies), or in
  ``[-1, 1] ** (K + 2)``, also bounded by the run's share limit (those of version 0.1);
- the :class:`SamplingWeights` it wants, used unchanged (constants and rules that a person wrote);
- a :class:`ConstantPolicy`, for shares that depend on the run's prior and limit (the fallback of learned
    policies).

Per-class arrays in observations and answers have the order of the run: class 0 is the negative class, which
is the commonest one in a sampler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.bundle import (
    BUNDLES,
    CONFIG_FILE,
    LAYERS,
    WEIGHTS_FILE,
    AutoPolicy,
    BundlePolicy,
    OutsideTraining,
    bundle_layout,
    load_bundle,
)
from balancer.sampling.constant_policy import DEFAULT_SHARE, FALLBACK, ConstantPolicy, DefaultPolicy, PriorPower, total_share
from balancer.sampling.observation import SHARED_FEATURES, Observation
from balancer.sampling.seeding import generator
from balancer.sampling.weights import HALF_LIVES, MAX_HARDNESS, START_FLOOR, Floats, SamplingWeights

__all__ = [
    "BUNDLES",
    "CONFIG_FILE",
    "FALLBACK",
    "LAYERS",
    "SHIPPED",
    "WEIGHTS_FILE",
    "Answer",
    "AutoPolicy",
    "BundlePolicy",
    "ConstantPolicy",
    "DefaultPolicy",
    "OutsideTraining",
    "Policy",
    "PriorPower",
    "RandomPolicy",
    "RulePolicy",
    "SchedulePolicy",
    "StartPolicy",
    "answered",
    "ask",
    "bundle_layout",
    "chosen_policy",
    "compensates",
    "load_bundle",
    "load_policy",
    "policy_notes",
]

Answer = Floats | SamplingWeights | ConstantPolicy
SHIPPED = ("ppo", "bandit")
"""Learned policies in the package."""


class Policy(Protocol):
    """An object with a name and :meth:`act`.

    Its answers depend on the observation alone, so a resumed run needs no state of the policy.

    >>> class Keep:
    ...     name = "keep"
    ...
    ...     def act(self, observation):
    ...         return np.zeros(len(observation.prior) + 4)  # no weight changes
    >>> from balancer import SamplerCore
    >>> sampler = SamplerCore(["ok"] * 99 + ["fraud"], policy=Keep(), epochs=2)
    >>> sampler.policy_name
    'keep'
    """

    @property
    def name(self) -> str:
        """Name in reports."""
        ...

    def act(self, observation: Observation) -> Answer:
        """Choose the weights of the next epoch.

        Args:
            observation: Of one classifier; classes in the order of the run, the negative class first.

        Returns:
            (K + 4,) residual action in [-1, 1] (change of each log share, of the hardness, of the two
            importance exponents, of the half-life), or the weights themselves. Classes have the order of the
            observation.
        """
        ...


def ask(policy: Policy, observation: Observation, weights: SamplingWeights, prior: Floats, limit: float) -> SamplingWeights:
    """Ask a policy for the next weights and check its answer.

    Args:
        policy: The policy.
        observation: What it sees, of one classifier.
        weights: Present weights.
        prior: (K,) class prior of the training rows.
        limit: Largest total share of the minority (:func:`balancer.sampling.weights.share_limit`).

    Raises:
        InputError: The answer has another form or number of classes, is not finite, or gives all draws to
            classes without training rows; the message names the policy.
    """
    name, num_classes = getattr(policy, "name", type(policy).__name__), len(prior)
    try:
        answer = policy.act(observation)
    except InputError as error:
        raise InputError(f"policy {name!r}: {error}") from error
    if not isinstance(answer, (SamplingWeights, ConstantPolicy)):
        action = np.asarray(answer)
        if action.shape not in ((num_classes + 4,), (num_classes + 2,)) or action.dtype.kind not in "iuf":
            raise InputError(
                f"policy {name!r} must answer with SamplingWeights or {num_classes + 4} numbers for {num_classes} classes, "
                f"not {action.dtype} of shape {action.shape}"
            )
        if not np.isfinite(action).all():
            raise InputError(f"policy {name!r} answered {action.tolist()}, which is not finite; check what it was trained on")
    new = answered(weights, answer, prior, limit)
    if len(new.share) != num_classes:
        raise InputError(f"policy {name!r} answered shares for {len(new.share)} classes, the training rows have {num_classes}")
    if not new.share[prior > 0].sum() > 0:
        raise InputError(f"policy {name!r} gives all draws to classes without training rows, the weights of the others sum to zero")
    return new


def answered(weights: SamplingWeights, answer: Answer, prior: Floats, limit: float) -> SamplingWeights:
    """The next weights, from the present ones and a policy's answer.

    Args:
        weights: Weights of the last epoch.
        answer: Return value of :meth:`Policy.act`.
        prior: (K,) class prior of the training rows.
        limit: Largest total share of the minority. Residuals and the fallback of learned policies stay below
            it; weights that a person chose are used unchanged.
    """
    if isinstance(answer, SamplingWeights):
        return answer
    if isinstance(answer, ConstantPolicy):
        return answer.weights(prior, limit)
    return weights.moved(answer, prior, limit)


def compensates(policy: Policy) -> bool:
    """Whether a policy is made for the sampler's loss.

    Those of version 0.1, which answer with K + 2 numbers, and the rules of this module that a person wrote
    are made for a loss that counts every drawn row alike.
    """
    learned = getattr(policy, "bundle", policy)
    return getattr(learned, "version", 1) != 0 and not isinstance(policy, (RandomPolicy, RulePolicy, SchedulePolicy, StartPolicy))


def policy_notes(policy: Policy) -> list[str]:
    """Remarks of ``policy`` for the report, e.g. that it used its constant; mostly none."""
    return list(getattr(policy, "notes", ()))


@dataclass(frozen=True)
class SchedulePolicy:
    """A schedule written by a person: share and hardness change linearly from start to end over the run.

    The default is the curriculum that a learned policy found on the card-fraud stream of the Fraud Detection
    Handbook: few easy negatives first, then fewer frauds and harder negatives.
    """

    start_share: float = 0.5
    """Total share of the minority in the first epoch; never below its prior."""
    end_share: float = 0.29
    start_hardness: float = 0.5
    end_hardness: float = 1.5
    name: str = "schedule"

    def act(self, observation: Observation) -> SamplingWeights:
        """The weights at the observation's progress (0 before the first epoch, 1 after the last)."""
        progress = float(observation.shared[SHARED_FEATURES.index("progress")])
        share = (1.0 - progress) * self.start_share + progress * self.end_share
        return SamplingWeights(
            total_share(observation.prior, share), (1.0 - progress) * self.start_hardness + progress * self.end_hardness, START_FLOOR
        )


@dataclass(frozen=True)
class RulePolicy:
    """ART: each class is drawn in proportion to ``1 - F1`` of that class on validation, without hardness.

    A baseline: it overshoots where a class is rare.

    Source: Adaptive Resampling-based Training, 2025 (class distribution from class-wise performance at fixed
    intervals).
    """

    name: str = "rule"

    def act(self, observation: Observation) -> Floats | SamplingWeights:
        """The starting weights before the first epoch, shares in proportion to ``1 - F1`` afterwards."""
        f1 = observation.class_feature("f1_argmax").astype(np.float64)
        if not observation.started:
            return np.zeros(len(f1) + 2)
        need = np.maximum(1.0 - f1, 1e-3)
        return SamplingWeights(need / need.sum(), 0.0, START_FLOOR)


@dataclass(frozen=True)
class RandomPolicy:
    """Uniform residual actions: a baseline that ignores the observation."""

    seed: int = 0
    name: str = "random"

    def act(self, observation: Observation) -> Floats:
        """(K + 2,) action, a function of the seed and the observation, so it needs no state."""
        counter = int(np.frombuffer(hashlib.sha256(observation.flat().tobytes()).digest()[:4], np.uint32)[0])
        return generator(self.seed, "random policy", counter).uniform(-1.0, 1.0, len(observation.per_class) + 2)


@dataclass(frozen=True)
class StartPolicy:
    """Keeps the starting weights in every epoch."""

    name: str = "start"

    def act(self, observation: Observation) -> Floats:
        """A residual of zero."""
        return np.zeros(len(observation.per_class) + 2)


def load_policy(text: str | Path, *, num_classes: int) -> Policy:
    """Load a policy by its name, or from its folder.

    Args:
        text: One of

            - ``auto``, the best policy of the package for a table that it has not seen: the constant
              (:class:`~balancer.sampling.constant_policy.DefaultPolicy`), which ``constant`` is too;
            - ``constant:share=.2,hardness=1``: a constant of one's own (keys ``share``, a number, ``prior``,
              ``root``, ``third`` or ``equal``; ``hardness``; ``floor``; ``class_importance``;
              ``hardness_importance``; ``half_life``);
            - ``ppo``, learned, part of the package; outside its training range it answers with a constant;
              ``bandit``, the same, trained on the reward of single epochs;
            - ``schedule``, ``schedule:start_share=.5,end_share=.29`` (also ``start_hardness``,
              ``end_hardness``);
            - ``rule``; ``random``, ``random:seed=3``; ``start`` (keeps the starting weights);
            - the folder of a learned policy.
        num_classes: K, number of classes of the run.

    Raises:
        InputError: An unknown name, key or number, or a folder that is missing, corrupt or of another
            version.

    >>> load_policy("constant:share=.2,hardness=.5", num_classes=2)
    ConstantPolicy(share=0.2, hardness=0.5, ...)
    >>> load_policy("schedule:end_share=.1", num_classes=2)
    SchedulePolicy(start_share=0.5, end_share=0.1, start_hardness=0.5, end_hardness=1.5, name='schedule')
    """
    if num_classes < 2:
        raise InputError(f"a policy needs at least two classes, not {num_classes}")
    if not isinstance(text, (str, Path)):
        raise InputError(f"a policy must be a name or a folder, not {text!r}")
    name, colon, options = str(text).partition(":")
    if name == "auto" or (name == "constant" and not colon):
        if colon:
            raise InputError(f"policy auto takes no options, so leave {options!r} out")
        return DefaultPolicy(name)
    if name == "constant":
        share, options = _named_share(options)
        given = _options(name, options, _CONSTANT, "share=.2,hardness=1")
        if "share" in given:
            share = given.pop("share")
        bounded = not isinstance(share, PriorPower)
        return ConstantPolicy(share, given.pop("hardness", 1.0), given.pop("floor", START_FLOOR), "constant", **given, bounded=bounded)
    if name == "schedule":
        limits = {"start_share": _SHARE, "end_share": _SHARE, "start_hardness": _HARDNESS, "end_hardness": _HARDNESS}
        given = _options(name, options, limits, "start_share=.5,end_share=.29")
        return SchedulePolicy(*(given.get(key, getattr(SchedulePolicy, key)) for key in limits))
    if name == "random":
        seed = _options(name, options, {"seed": (0.0, 2.0**31)}, "seed=3").get("seed", 0.0)
        if seed != int(seed):
            raise InputError(f"policy option seed must be a whole number, not {seed:g}")
        return RandomPolicy(int(seed))
    if name in (*SHIPPED, "rule", "start"):
        if colon:
            raise InputError(f"policy {name} takes no options, so leave {options!r} out")
        return AutoPolicy(name) if name in SHIPPED else RulePolicy() if name == "rule" else StartPolicy()
    return load_bundle(Path(text))


def chosen_policy(policy: str | Path | Policy | SamplingWeights, order: NDArray[np.integer[Any]]) -> Policy:
    """The policy that a sampler was given: by name, as an object, or as weights for all epochs.

    Args:
        policy: As for :class:`~balancer.sampling.core.SamplerCore`; shares of weights in the order of
            ``classes_``.
        order: (K,) index into ``classes_`` of each class, the commonest first.

    Raises:
        InputError: It can't be loaded, is no policy, or has shares for another number of classes.
    """
    num_classes = len(order)
    if isinstance(policy, (str, Path)):
        return load_policy(policy, num_classes=num_classes)
    if not isinstance(policy, SamplingWeights):
        if not callable(getattr(policy, "act", None)):
            raise InputError(
                f"policy must be a name, the folder of a policy, weights, or an object with name and act(observation), not {policy!r}"
            )
        return policy
    if len(policy.share) != num_classes:
        raise InputError(f"policy holds shares for {len(policy.share)} classes, the labels have {num_classes}")
    return ConstantPolicy.of(policy.reordered(order), name="fixed")


_SHARE, _HARDNESS = (0.0, 1.0), (0.0, MAX_HARDNESS)


_IMPORTANCE = (0.0, 1.0)
_CONSTANT = {
    "share": _SHARE,
    "hardness": _HARDNESS,
    "floor": (0.0, 1.0),
    "class_importance": _IMPORTANCE,
    "hardness_importance": _IMPORTANCE,
    "half_life": HALF_LIVES,
}
_NAMED_SHARES: dict[str, PriorPower | None] = {
    "prior": None,
    "root": PriorPower(0.5),
    "third": PriorPower(1.0 / 3.0),
    "equal": PriorPower(0.0),
}


def _named_share(options: str) -> tuple[float | PriorPower | None, str]:
    """The share of the option ``share=NAME``, or the default share, and the other options.

    Raises:
        InputError: Two shares are given.
    """
    parts = options.split(",")
    if sum(part.partition("=")[0] == "share" for part in parts) > 1:
        raise InputError("policy option 'share' is given twice; give it once")
    for name, share in _NAMED_SHARES.items():
        if f"share={name}" in parts:
            return share, ",".join(part for part in parts if part != f"share={name}")
    return DEFAULT_SHARE, options


def _options(name: str, options: str, limits: Mapping[str, tuple[float, float]], example: str) -> dict[str, float]:
    """Parse ``key=number,...`` into numbers by key.

    Raises:
        InputError: An unknown key, a value that is no number, or a number outside its limits.
    """
    given: dict[str, float] = {}
    for part in options.split(",") if options else []:
        key, _, value = part.partition("=")
        if key not in limits:
            raise InputError(f"policy option {key!r} is not known; {name} takes {', '.join(limits)}, as in {name}:{example}")
        if key in given:
            raise InputError(f"policy option {key!r} is given twice; give it once")
        try:
            number = float(value)
        except ValueError:
            named = f" or one of {', '.join(_NAMED_SHARES)}" if key == "share" else ""
            raise InputError(f"policy option {part!r} needs a number{named}, as in {name}:{example}") from None
        low, high = limits[key]
        if not low <= number <= high or (key.endswith("share") and number in (low, high)):
            raise InputError(f"policy option {part!r} must lie between {low:g} and {high:g}")
        given[key] = number
    return given
