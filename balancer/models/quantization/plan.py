"""A precision for every layer of a model: the plan itself, as JSON; :mod:`planning` chooses one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from balancer.errors import CorruptFileError, InputError
from balancer.models.quantization.layers import PRECISIONS, Precision, find_layers, fingerprint

FORMAT = 1


@dataclass(frozen=True)
class PrecisionPlan:
    """A precision for every layer of a model."""

    precision: dict[str, Precision]
    fingerprint: str
    """Of the model's layers."""
    foreseen: dict[str, float] = field(default_factory=dict)
    """``divergence``, ``bytes``, ``bytes_ratio`` and, where timed, ``ms``, ``ms_ratio``; ``metric_drop`` where it was verified."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"format": FORMAT, "precision": self.precision, "fingerprint": self.fingerprint, "foreseen": self.foreseen}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PrecisionPlan:
        """Inverse of :meth:`to_dict`; InputError where it is no plan."""
        precision = content.get("precision")
        if content.get("format") != FORMAT or not isinstance(precision, dict) or not set(precision.values()) <= set(PRECISIONS):
            raise CorruptFileError("this is no precision plan of this version: make one by balancer quantize or plan_precision")
        return cls(cast(dict[str, Precision], precision), str(content.get("fingerprint")), dict(content.get("foreseen", {})))

    def check(self, model: nn.Module) -> None:
        """Raise InputError where the plan is for another model."""
        layers = find_layers(model)
        if fingerprint(layers) != self.fingerprint:
            names = {layer.name for layer in layers}
            odd = sorted(names ^ set(self.precision))[:3]
            hint = f" (it differs in {', '.join(odd)})" if odd else " (the shapes differ)"
            raise InputError(f"the plan is for another model{hint}: make a plan for this one by plan_precision")


def uniform_plan(model: nn.Module, precision: Precision = "int8", *, keep: Sequence[str] = (), kept: Precision = "bf16") -> PrecisionPlan:
    """Every layer in ``precision`` but those whose name is, or begins with, one of ``keep``, or contains it between dots: they get ``kept``."""
    layers = find_layers(model)
    wanted = {layer.name: kept if any(f".{part}." in f".{layer.name}." for part in keep) else precision for layer in layers}
    return PrecisionPlan(wanted, fingerprint(layers), {"bytes": float(sum(layer.bytes(wanted[layer.name]) for layer in layers))})
