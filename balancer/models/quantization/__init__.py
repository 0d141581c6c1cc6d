"""Mixed-precision quantization of any torch model: measure, plan, apply, store.

See README, "Smaller and faster". report = sensitivity(model, batches) plan = plan_precision(report,
max_bytes=...) quantized, applied = apply_precision(model, plan)
"""

from balancer.models.quantization.applying import Applied, AppliedRow, apply_precision
from balancer.models.quantization.divergences import divergence
from balancer.models.quantization.layers import Layer, Precision, find_layers
from balancer.models.quantization.plan import PrecisionPlan, uniform_plan
from balancer.models.quantization.planning import plan_precision
from balancer.models.quantization.sensitivities import sensitivity, timed
from balancer.models.quantization.sensitivity_report import SensitivityReport, SensitivityRow
from balancer.models.quantization.storage import load_quantized, load_quantized_classifier, save_quantized
from balancer.models.quantization.swapping import cpu_supports

__all__ = [
    "Applied",
    "AppliedRow",
    "Layer",
    "Precision",
    "PrecisionPlan",
    "SensitivityReport",
    "SensitivityRow",
    "apply_precision",
    "cpu_supports",
    "divergence",
    "find_layers",
    "load_quantized",
    "load_quantized_classifier",
    "plan_precision",
    "save_quantized",
    "sensitivity",
    "timed",
    "uniform_plan",
]
