"""Choose a precision for each layer within a budget: a knapsack problem.

Costs are exact bytes or measured milliseconds, to be traded against the expected divergence. A budget is met
or an error is raised. The knapsack is solved exactly on the Pareto front of (cost, divergence), layer by
layer. Because the divergences of single layers need not add up, a budget on the metric is verified on the
whole model, and layers are raised to higher precisions until it is met. A layer that is slower in low
precision at the given shapes stays in float32, unless the budget is in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from balancer.errors import InputError
from balancer.models.quantization.applying import apply_precision
from balancer.models.quantization.layers import Precision
from balancer.models.quantization.plan import PrecisionPlan
from balancer.models.quantization.sensitivity_report import SensitivityReport, SensitivityRow

Metric = Callable[[nn.Module], float]
FRONT = 4096
"""Maximum number of points of a Pareto front.

Beyond it, points closer than this fraction of the range are merged.
"""


def plan_precision(
    report: SensitivityReport,
    *,
    max_metric_drop: float | None = None,
    max_bytes: int | None = None,
    max_latency_ratio: float | None = None,
    metric: Metric | None = None,
    model: nn.Module | None = None,
    precisions: Sequence[Precision] = ("int8", "bf16", "fp32"),
) -> PrecisionPlan:
    """Choose a precision for every layer.

    Args:
        report: result of :func:`sensitivity` at 8 bits.
        max_metric_drop: maximum loss of ``metric`` of the quantized model; the plan is then the smallest and
            fastest that meets it.
        max_bytes: maximum bytes of all layers; the plan is then the one with the least divergence that fits.
        max_latency_ratio: maximum latency of the whole model, relative to that in float32; likewise.
        metric: ``metric(model)``, higher is better; required with ``max_metric_drop``, as is ``model``.
        model: the full-precision model.
        precisions: precisions to choose from.

    Raises:
        InputError: There is no budget, the report is of other bits, or a budget can't be met; then the
            message gives the best value that can be reached.

    >>> import torch
    >>> from balancer.models.quantization import sensitivity
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> report = sensitivity(model, [torch.randn(32, 8)], latency=False)
    >>> plan = plan_precision(report, max_bytes=400)
    >>> sorted(plan.precision)
    ['0', '2']
    """
    if max_metric_drop is None and max_bytes is None and max_latency_ratio is None:
        raise InputError("no budget: give max_metric_drop, max_bytes or max_latency_ratio")
    if report.bits != 8:
        raise InputError(f"the report is for {report.bits} bits, but plans need 8: call sensitivity with bits=8")
    options = {row.name: _options(row, precisions, by_bytes=max_bytes is not None) for row in report.rows}
    if max_bytes is not None:
        chosen = _cheapest_divergence(report, options, "bytes", float(max_bytes))
    elif max_latency_ratio is not None:
        full = _whole_ms(report, dict.fromkeys(options, "fp32"))
        if full is None:
            raise InputError("the report has no milliseconds, which max_latency_ratio needs: call sensitivity with latency=True")
        chosen = _cheapest_divergence(report, options, "ms", max_latency_ratio * full - report.other_ms)
    else:
        chosen = {name: _smallest(report, name, precisions) for name, precisions in options.items()}
    plan = PrecisionPlan(chosen, report.fingerprint, _expected(report, chosen))
    if max_latency_ratio is not None and max_bytes is not None and plan.expected.get("ms_ratio", 0.0) > max_latency_ratio:
        raise InputError(
            "max_bytes and max_latency_ratio can't both be met: the plan within max_bytes has a latency ratio of "
            f"{plan.expected['ms_ratio']:.2f}; raise one of them"
        )
    if max_metric_drop is None:
        return plan
    if metric is None or model is None:
        raise InputError("max_metric_drop needs metric and model: the drop is measured on the whole model")
    return _verified(report, plan, options, max_metric_drop, metric, model, fixed_bytes=max_bytes)


def _options(row: SensitivityRow, precisions: Sequence[Precision], *, by_bytes: bool) -> list[Precision]:
    """Return the useful precisions of a layer: if timed, only those not slower than float32."""
    useful: list[Precision] = []
    for precision in precisions:
        timed = row.ms and not by_bytes
        if timed and (precision not in row.ms or row.ms[precision] > row.ms["fp32"]):
            continue  # the processor does not support it, or it is slower at these shapes
        useful.append(precision)
    return useful or ["fp32"]


def _smallest(report: SensitivityReport, name: str, precisions: Sequence[Precision]) -> Precision:
    """Return the precision with the fewest bytes, and among equals the fastest."""
    row = _row(report, name)
    return min(precisions, key=lambda precision: (row.bytes[precision], row.ms.get(precision, 0.0)))


def _row(report: SensitivityReport, name: str) -> SensitivityRow:
    return next(row for row in report.rows if row.name == name)


def _whole_ms(report: SensitivityReport, chosen: Mapping[str, str]) -> float | None:
    rows = [row for row in report.rows if row.ms]
    return report.other_ms + sum(row.ms.get(chosen[row.name], row.ms["fp32"]) for row in rows) if rows else None


def _expected(report: SensitivityReport, chosen: Mapping[str, Precision]) -> dict[str, float]:
    size = float(sum(row.bytes[chosen[row.name]] for row in report.rows))
    expected = {
        "divergence": sum(row.score[chosen[row.name]] for row in report.rows),
        "bytes": size,
        "bytes_ratio": size / sum(row.bytes["fp32"] for row in report.rows),
    }
    ms, full = _whole_ms(report, chosen), _whole_ms(report, dict.fromkeys(chosen, "fp32"))
    return expected if ms is None or full is None else expected | {"ms": ms, "ms_ratio": ms / full}


def _cheapest_divergence(
    report: SensitivityReport, options: Mapping[str, Sequence[Precision]], cost: str, budget: float
) -> dict[str, Precision]:
    """Minimize the divergence within a budget: a knapsack with one choice per layer."""
    front: list[tuple[float, float, tuple[Precision, ...]]] = [(0.0, 0.0, ())]
    for row in report.rows:
        costs = row.bytes if cost == "bytes" else (row.ms or {"fp32": 0.0})
        extended = [
            (total_cost + costs.get(precision, costs["fp32"]), total_divergence + row.score[precision], (*choices, precision))
            for total_cost, total_divergence, choices in front
            for precision in options[row.name]
        ]
        front = _pareto(extended)
    least = front[0][0]
    within = [point for point in front if point[0] <= budget * (1 + 1e-9)]
    if not within:
        unit = "bytes" if cost == "bytes" else "ms of the layers"
        raise InputError(
            f"the budget of {budget:,.4g} {unit} can't be met: the least that these precisions reach is {least:,.4g}; raise the budget"
        )
    return dict(zip((row.name for row in report.rows), within[-1][2], strict=True))


def _pareto(points: list[tuple[float, float, tuple[Precision, ...]]]) -> list[tuple[float, float, tuple[Precision, ...]]]:
    """Return the Pareto-optimal points by increasing cost, at most about `FRONT` of them."""
    points.sort(key=lambda point: (point[0], point[1]))
    best: list[tuple[float, float, tuple[Precision, ...]]] = []
    for point in points:
        if not best or point[1] < best[-1][1]:
            best.append(point)
    if len(best) <= FRONT:
        return best
    step = (best[-1][0] - best[0][0]) / FRONT
    thinned = [best[0]]
    for point in best[1:-1]:
        if point[0] - thinned[-1][0] >= step:
            thinned.append(point)
    return [*thinned, best[-1]]


def _verified(
    report: SensitivityReport,
    plan: PrecisionPlan,
    options: Mapping[str, Sequence[Precision]],
    most: float,
    metric: Metric,
    model: nn.Module,
    *,
    fixed_bytes: int | None,
) -> PrecisionPlan:
    """Raise layers of ``plan`` to higher precisions until the metric is met.

    Layers with the largest divergence per byte are raised first.
    """
    full, chosen = metric(model), dict(plan.precision)
    if not math.isfinite(full):
        raise InputError(f"the metric of the full-precision model is {full}: give a metric that is a finite number on its rows")
    reached = float("-inf")
    while True:
        quantized, _ = apply_precision(model, PrecisionPlan(chosen, plan.fingerprint), backend="torch")
        reached = metric(quantized)
        if full - reached <= most:
            expected = _expected(report, chosen) | {"metric": reached, "metric_drop": full - reached}
            return PrecisionPlan(chosen, plan.fingerprint, expected)
        step = _promotion(report, chosen, options)
        size = _expected(report, chosen)["bytes"]
        if step is None or (fixed_bytes is not None and size >= fixed_bytes):
            raise InputError(
                f"max_metric_drop {most:g} can't be met: with the highest allowed precisions the metric is {reached:.4f} instead of {full:.4f}; "
                f"the shortfall is {full - reached - most:.4f}. Raise max_metric_drop"
                + (", or max_bytes" if fixed_bytes is not None else "")
            )
        # Several layers at a time, because each verification is a pass over all rows of the metric.
        for name, precision in step:
            chosen[name] = precision


def _promotion(
    report: SensitivityReport, chosen: Mapping[str, Precision], options: Mapping[str, Sequence[Precision]]
) -> list[tuple[str, Precision]] | None:
    """Select the next layers to raise, and their new precisions.

    These are the layers with the highest gain per byte that together remove half of the remaining divergence.

    Returns:
        Names and precisions, or None if no layer can be raised.
    """
    gains = []
    for row in report.rows:
        now = chosen[row.name]
        for other in options[row.name]:
            if row.bytes[other] > row.bytes[now]:
                gains.append(((row.score[now] - row.score[other]) / (row.bytes[other] - row.bytes[now]), row.name, other))
    if not gains:
        return None
    gains.sort(key=lambda gain: -gain[0])
    remaining, removed = sum(row.score[chosen[row.name]] for row in report.rows), 0.0
    steps: dict[str, Precision] = {}
    for _, name, other in gains:
        if name in steps:
            continue
        row = _row(report, name)
        steps[name] = other
        removed += row.score[chosen[name]] - row.score[other]
        if removed >= remaining / 2:
            break
    return list(steps.items())
