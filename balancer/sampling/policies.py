"""Policies: what chooses the sampling weights of the next epoch.

A policy sees an :class:`Observation` and answers in one of three forms, which :func:`answered` turns into the next weights:

- a residual action in ``[-1, 1] ** (K + 2)``, applied to the weights there are and bounded by the run's share limit (learned policies);
- the :class:`SamplingWeights` it wants, taken as they are (constants and rules a person has written: they mean what they say);
- a :class:`GoodConstant`, a constant for any table, bounded as residuals are (what learned policies fall back on).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from balancer.errors import InputError
from balancer.sampling.bundle import (
    BUNDLES,
    CONFIG_FILE,
    LAYERS,
    WEIGHTS_FILE,
    AutoPolicy,
    BundlePolicy,
    GoodConstant,
    OutsideTraining,
    bundle_layout,
    load_bundle,
)
from balancer.sampling.observation import SHARED_FEATURES, Observation
from balancer.sampling.seeding import generator
from balancer.sampling.weights import MAX_HARDNESS, START_FLOOR, Floats, SamplingWeights, minority_share

__all__ = [
    "BUNDLES",
    "CONFIG_FILE",
    "LAYERS",
    "WEIGHTS_FILE",
    "Answer",
    "AutoPolicy",
    "BundlePolicy",
    "ConstantPolicy",
    "GoodConstant",
    "OutsideTraining",
    "Policy",
    "RandomPolicy",
    "RulePolicy",
    "SchedulePolicy",
    "StartPolicy",
    "answered",
    "bundle_layout",
    "load_bundle",
    "load_policy",
    "policy_notes",
]

Answer = Floats | SamplingWeights | GoodConstant
SHIPPED = ("auto", "bandit")
"""Learned policies that the package ships."""


class Policy(Protocol):
    """Anything with a name and :meth:`act`; its answers depend on the observation alone, so it resumes for free."""

    @property
    def name(self) -> str:
        """Shown in reports."""
        ...

    def act(self, observation: Observation) -> Answer:
        """(K + 2,) residual action in [-1, 1] (log share per class, hardness, floor), or the weights to take on at once."""
        ...


def answered(weights: SamplingWeights, answer: Answer, prior: Floats, limit: float) -> SamplingWeights:
    """The next weights, from those there are and a policy's answer.

    Args:
        weights: of the last epoch.
        answer: what :meth:`Policy.act` said.
        prior: (K,) class prior of the training rows.
        limit: largest total share of the classes but the first (:func:`balancer.sampling.weights.share_limit`); residuals and the
            fallback of learned policies stay below it, weights that a person chose are taken as they are.
    """
    if isinstance(answer, SamplingWeights):
        return answer
    if isinstance(answer, GoodConstant):
        return answer.weights(prior, limit)
    return weights.moved(answer, prior, limit)


def policy_notes(policy: Policy) -> list[str]:
    """What a report should say of ``policy`` beyond its name: where a learned one fell back on its constant. Mostly nothing."""
    return list(getattr(policy, "notes", ()))


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
        return SamplingWeights(prior if self.share is None else _total(prior, self.share), self.hardness, self.floor)


@dataclass(frozen=True)
class SchedulePolicy:
    """A schedule by hand: share and hardness go in a straight line from start to end as the run progresses.

    The default is the curriculum that a learned policy found on the card-fraud stream of the Fraud Detection Handbook: few easy negatives first, then
    fewer frauds and harder negatives.
    """

    start_share: float = 0.5
    """Total share of the classes other than the first in the first epoch; never below their prior."""
    end_share: float = 0.29
    start_hardness: float = 0.5
    end_hardness: float = 1.5
    name: str = "schedule"

    def act(self, observation: Observation) -> SamplingWeights:
        """The weights at the observation's progress (0 before the first epoch, 1 after the last)."""
        progress = float(observation.shared[SHARED_FEATURES.index("progress")])
        share = (1.0 - progress) * self.start_share + progress * self.end_share
        return SamplingWeights(
            _total(observation.prior, share), (1.0 - progress) * self.start_hardness + progress * self.end_hardness, START_FLOOR
        )


@dataclass(frozen=True)
class RulePolicy:
    """ART: each class by ``1 - F1`` of that class on validation, without hardness.

    It overshoots where a class is rare, and stands here as a baseline.

    Source: Adaptive Resampling-based Training, 2025 (class distribution from class-wise performance at fixed intervals).
    """

    name: str = "rule"

    def act(self, observation: Observation) -> Floats | SamplingWeights:
        """Starting weights before the first epoch, shares in proportion to ``1 - F1`` after."""
        f1 = observation.class_feature("f1_argmax").astype(np.float64)
        if not observation.started:
            return np.zeros(len(f1) + 2)
        need = np.maximum(1.0 - f1, 1e-3)
        return SamplingWeights(need / need.sum(), 0.0, START_FLOOR)


@dataclass(frozen=True)
class RandomPolicy:
    """Uniform residual actions: what a policy is worth that looks at nothing."""

    seed: int = 0
    name: str = "random"

    def act(self, observation: Observation) -> Floats:
        """(K + 2,), drawn from the seed and what is seen, so it needs no state."""
        counter = int(np.frombuffer(hashlib.sha256(observation.flat().tobytes()).digest()[:4], np.uint32)[0])
        return generator(self.seed, "random policy", counter).uniform(-1.0, 1.0, len(observation.per_class) + 2)


@dataclass(frozen=True)
class StartPolicy:
    """Keeps the starting weights."""

    name: str = "start"

    def act(self, observation: Observation) -> Floats:
        """Zero."""
        return np.zeros(len(observation.per_class) + 2)


def _total(prior: Floats, share: float) -> Floats:
    """(K,) shares with ``share`` given to the classes other than the first, or their prior where that is more."""
    return minority_share(prior, max(share, 1.0 - float(prior[0])))


def load_policy(text: str | Path, *, num_classes: int) -> Policy:
    """Policy from its name or its folder.

    Args:
        text: one of

            - ``auto`` (learned, shipped with the package; its good constant outside what it was trained on), ``bandit`` (the same, learned
              one epoch at a time);
            - ``constant``, ``constant:share=.2,hardness=1`` (keys ``share``, a number or ``prior``; ``hardness``; ``floor``);
            - ``schedule``, ``schedule:start_share=.5,end_share=.29`` (also ``start_hardness``, ``end_hardness``);
            - ``rule``; ``random``, ``random:seed=3``; ``start`` (keeps the starting weights);
            - a bundle folder.
        num_classes: K of the run.

    Raises:
        InputError: unknown name, key or number, or a bundle that is missing, torn or of another version.

    >>> load_policy("constant:share=.2,hardness=.5", num_classes=2)
    ConstantPolicy(share=0.2, hardness=0.5, floor=0.05, name='constant')
    >>> load_policy("schedule:end_share=.1", num_classes=2)
    SchedulePolicy(start_share=0.5, end_share=0.1, start_hardness=0.5, end_hardness=1.5, name='schedule')
    """
    if num_classes < 2:
        raise InputError(f"a policy needs at least two classes, not {num_classes}")
    name, colon, options = str(text).partition(":")
    if name == "constant":
        natural, options = _natural(options)
        given = _options(name, options, {"share": _SHARE, "hardness": _HARDNESS, "floor": (0.0, 1.0)}, "share=.2,hardness=1")
        base = ConstantPolicy()
        share = None if natural else given.get("share", base.share)
        return ConstantPolicy(share, given.get("hardness", base.hardness), given.get("floor", base.floor))
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


_SHARE, _HARDNESS = (0.0, 1.0), (0.0, MAX_HARDNESS)


def _natural(options: str) -> tuple[bool, str]:
    """Whether ``share=prior`` is among the options, and the options without it."""
    parts = options.split(",")
    return "share=prior" in parts, ",".join(part for part in parts if part != "share=prior")


def _options(name: str, options: str, limits: Mapping[str, tuple[float, float]], example: str) -> dict[str, float]:
    """Numbers by key from ``key=number,...``; InputError for an unknown key, no number, or one outside its limits."""
    given: dict[str, float] = {}
    for part in options.split(",") if options else []:
        key, _, value = part.partition("=")
        if key not in limits:
            raise InputError(f"policy option {key!r} is not known; {name} takes {', '.join(limits)}, as in {name}:{example}")
        try:
            number = float(value)
        except ValueError:
            raise InputError(f"policy option {part!r} needs a number, as in {name}:{example}") from None
        low, high = limits[key]
        if not low <= number <= high or (key.endswith("share") and number in (low, high)):
            raise InputError(f"policy option {part!r} must lie between {low:g} and {high:g}")
        given[key] = number
    return given
