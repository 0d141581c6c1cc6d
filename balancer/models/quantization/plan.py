"""The precision plan: one precision for each layer of a model, stored as JSON.

:mod:`balancer.models.quantization.planning` computes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from balancer.deprecation import renamed_keyword
from balancer.errors import CorruptFileError, InputError
from balancer.models.quantization.layers import PRECISIONS, Precision, find_layers, fingerprint

FORMAT = 1


@dataclass(frozen=True)
class PrecisionPlan:
    """One precision for each layer of a model."""

    precision: dict[str, Precision]
    fingerprint: str
    """Fingerprint of the model's layers."""
    expected: dict[str, float] = field(default_factory=dict)
    """Expected ``divergence``, ``bytes`` and ``bytes_ratio``.

    Also ``ms`` and ``ms_ratio`` if latencies were measured, and ``metric`` and ``metric_drop`` if the metric
    was measured.
    """

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {"format": FORMAT, "precision": self.precision, "fingerprint": self.fingerprint, "expected": self.expected}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> PrecisionPlan:
        """Build a plan from the result of :meth:`to_dict`.

        Raises:
            CorruptFileError: The content is not a plan.
        """
        precision = content.get("precision")
        if content.get("format") != FORMAT or not isinstance(precision, dict) or not set(precision.values()) <= set(PRECISIONS):
            raise CorruptFileError("this is not a precision plan of this version: create one by balancer quantize or plan_precision")
        expected = content.get("expected", content.get("foreseen", {}))  # version 0.1 wrote "foreseen"
        return cls(cast(dict[str, Precision], precision), str(content.get("fingerprint")), dict(expected))

    def check(self, model: nn.Module) -> None:
        """Check that the plan is for ``model``.

        Raises:
            InputError: It is for another model.
        """
        layers = find_layers(model)
        if fingerprint(layers) != self.fingerprint:
            names = {layer.name for layer in layers}
            odd = sorted(names ^ set(self.precision))[:3]
            hint = f" (layers differ: {', '.join(odd)})" if odd else " (shapes of layers differ)"
            raise InputError(f"the plan is for another model{hint}: create one for this model by plan_precision")


@renamed_keyword("kept", "keep_as")
def uniform_plan(
    model: nn.Module, precision: Precision = "int8", *, keep: Sequence[str] = (), keep_as: Precision = "bf16"
) -> PrecisionPlan:
    """Plan one precision for every layer, with exceptions.

    Args:
        model: the full-precision model.
        precision: precision of most layers.
        keep: names, or parts of names between dots, of layers that get ``keep_as`` instead.
        keep_as: precision of those layers.
    """
    layers = find_layers(model)
    wanted = {layer.name: keep_as if any(f".{part}." in f".{layer.name}." for part in keep) else precision for layer in layers}
    return PrecisionPlan(wanted, fingerprint(layers), {"bytes": float(sum(layer.bytes(wanted[layer.name]) for layer in layers))})
