"""Which layer gets which precision: a knapsack over exact bytes, measured milliseconds and foreseen divergence, then held against the metric itself.

Special: a budget is met or refused, never nearly met. The knapsack is solved exactly on the Pareto front of (cost, divergence), layer by layer; because
divergences of single layers need not add up, a metric budget is verified on the whole model and layers are promoted until it holds. A layer that is
slower in low precision at the user's shapes stays as it is unless bytes are what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from balancer.errors import InputError
from balancer.models.quantization.applying import apply_precision
from balancer.models.quantization.layers import Precision
from balancer.models.quantization.plan import PrecisionPlan
from balancer.models.quantization.sensitivities import SensitivityReport, SensitivityRow

Metric = Callable[[nn.Module], float]
FRONT = 4096
"""Points kept of a Pareto front; beyond, neighbours closer than this share of the range are merged."""


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
        report: of :func:`sensitivity` at 8 bits.
        max_metric_drop: what ``metric`` of the quantized model may lack of the full model's; the plan is then the smallest and fastest that holds it.
        max_bytes: bytes of all layers; the plan is then the one of least divergence that fits.
        max_latency_ratio: milliseconds of the whole model in units of its own in float32; likewise.
        metric: ``metric(model)``, more is better; needed with ``max_metric_drop``, as is ``model``.
        model: the full model.
        precisions: which may be chosen.

    Raises:
        InputError: no budget, a report at other bits, or a budget that can't be met; then the message tells what could be reached.
    """
    if max_metric_drop is None and max_bytes is None and max_latency_ratio is None:
        raise InputError("no budget: give max_metric_drop, max_bytes or max_latency_ratio")
    if report.bits != 8:
        raise InputError(f"the report is of {report.bits} bits: plans are made of 8, call sensitivity with bits=8")
    options = {row.name: _options(row, precisions, by_bytes=max_bytes is not None) for row in report.rows}
    if max_bytes is not None:
        chosen = _cheapest_divergence(report, options, "bytes", float(max_bytes))
    elif max_latency_ratio is not None:
        full = _whole_ms(report, dict.fromkeys(options, "fp32"))
        if full is None:
            raise InputError("the report has no milliseconds: call sensitivity with latency=True to plan by latency")
        chosen = _cheapest_divergence(report, options, "ms", max_latency_ratio * full - report.other_ms)
    else:
        chosen = {name: _least(report, name, own) for name, own in options.items()}
    plan = PrecisionPlan(chosen, report.fingerprint, _foreseen(report, chosen))
    if max_latency_ratio is not None and max_bytes is not None and plan.foreseen.get("ms_ratio", 0.0) > max_latency_ratio:
        raise InputError(
            f"max_bytes and max_latency_ratio can't both be met: within the bytes the latency is {plan.foreseen['ms_ratio']:.2f}; raise one"
        )
    if max_metric_drop is None:
        return plan
    if metric is None or model is None:
        raise InputError("max_metric_drop needs metric and model: the drop is measured on the whole model")
    return _verified(report, plan, options, max_metric_drop, metric, model, fixed_bytes=max_bytes)


def _options(row: SensitivityRow, precisions: Sequence[Precision], *, by_bytes: bool) -> list[Precision]:
    """Precisions worth having for a layer: where time counts, those that are no slower than float32 here."""
    own: list[Precision] = []
    for precision in precisions:
        timed = row.ms and not by_bytes
        if timed and (precision not in row.ms or row.ms[precision] > row.ms["fp32"]):
            continue  # no instructions for it, or slower at these shapes
        own.append(precision)
    return own or ["fp32"]


def _least(report: SensitivityReport, name: str, own: Sequence[Precision]) -> Precision:
    """The smallest of the options, of equally small ones the faster."""
    row = _row(report, name)
    return min(own, key=lambda precision: (row.bytes[precision], row.ms.get(precision, 0.0)))


def _row(report: SensitivityReport, name: str) -> SensitivityRow:
    return next(row for row in report.rows if row.name == name)


def _whole_ms(report: SensitivityReport, chosen: Mapping[str, str]) -> float | None:
    rows = [row for row in report.rows if row.ms]
    return report.other_ms + sum(row.ms.get(chosen[row.name], row.ms["fp32"]) for row in rows) if rows else None


def _foreseen(report: SensitivityReport, chosen: Mapping[str, Precision]) -> dict[str, float]:
    size = float(sum(row.bytes[chosen[row.name]] for row in report.rows))
    told = {
        "divergence": sum(row.score[chosen[row.name]] for row in report.rows),
        "bytes": size,
        "bytes_ratio": size / sum(row.bytes["fp32"] for row in report.rows),
    }
    ms, full = _whole_ms(report, chosen), _whole_ms(report, dict.fromkeys(chosen, "fp32"))
    return told if ms is None or full is None else told | {"ms": ms, "ms_ratio": ms / full}


def _cheapest_divergence(
    report: SensitivityReport, options: Mapping[str, Sequence[Precision]], cost: str, budget: float
) -> dict[str, Precision]:
    """Least divergence within a budget of bytes or milliseconds: the knapsack of one choice per layer."""
    front: list[tuple[float, float, tuple[Precision, ...]]] = [(0.0, 0.0, ())]
    for row in report.rows:
        prices = row.bytes if cost == "bytes" else (row.ms or {"fp32": 0.0})
        grown = [
            (spent + prices.get(precision, prices["fp32"]), lost + row.score[precision], (*taken, precision))
            for spent, lost, taken in front
            for precision in options[row.name]
        ]
        front = _pareto(grown)
    least = front[0][0]
    within = [point for point in front if point[0] <= budget * (1 + 1e-9)]
    if not within:
        unit = "bytes" if cost == "bytes" else "ms of the layers"
        raise InputError(
            f"the budget of {budget:,.4g} {unit} can't be met: the least that these precisions reach is {least:,.4g}; raise the budget"
        )
    return dict(zip((row.name for row in report.rows), within[-1][2], strict=True))


def _pareto(points: list[tuple[float, float, tuple[Precision, ...]]]) -> list[tuple[float, float, tuple[Precision, ...]]]:
    """Points that no other beats in both cost and divergence, by rising cost; at most about `FRONT` of them."""
    points.sort(key=lambda point: (point[0], point[1]))
    best: list[tuple[float, float, tuple[Precision, ...]]] = []
    for point in points:
        if not best or point[1] < best[-1][1]:
            best.append(point)
    if len(best) <= FRONT:
        return best
    step = (best[-1][0] - best[0][0]) / FRONT
    kept = [best[0]]
    for point in best[1:-1]:
        if point[0] - kept[-1][0] >= step:
            kept.append(point)
    return [*kept, best[-1]]


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
    """``plan`` with layers promoted, the most divergence per byte first, until the whole model keeps the metric."""
    full, chosen = metric(model), dict(plan.precision)
    reached = float("-inf")
    while True:
        quantized, _ = apply_precision(model, PrecisionPlan(chosen, plan.fingerprint), backend="torch")
        reached = metric(quantized)
        if full - reached <= most:
            told = _foreseen(report, chosen) | {"metric": reached, "metric_drop": full - reached}
            return PrecisionPlan(chosen, plan.fingerprint, told)
        step = _promotion(report, chosen, options)
        size = _foreseen(report, chosen)["bytes"]
        if step is None or (fixed_bytes is not None and size >= fixed_bytes):
            raise InputError(
                f"max_metric_drop {most:g} can't be met: with every layer as high as allowed the metric is {reached:.4f} against {full:.4f}; "
                f"the shortfall is {full - reached - most:.4f}. Raise max_metric_drop"
                + (", or max_bytes" if fixed_bytes is not None else "")
            )
        # A handful at a time: each verification is a pass over the metric's rows.
        for name, precision in step:
            chosen[name] = precision


def _promotion(
    report: SensitivityReport, chosen: Mapping[str, Precision], options: Mapping[str, Sequence[Precision]]
) -> list[tuple[str, Precision]] | None:
    """The next layers to lift, and to what: those that take away half of the divergence that is left, by gain per byte; None where all are at the top."""
    gains = []
    for row in report.rows:
        now = chosen[row.name]
        for other in options[row.name]:
            if row.bytes[other] > row.bytes[now]:
                gains.append(((row.score[now] - row.score[other]) / (row.bytes[other] - row.bytes[now]), row.name, other))
    if not gains:
        return None
    gains.sort(key=lambda gain: -gain[0])
    left, taken = sum(row.score[chosen[row.name]] for row in report.rows), 0.0
    steps: dict[str, Precision] = {}
    for _, name, other in gains:
        if name in steps:
            continue
        row = _row(report, name)
        steps[name] = other
        taken += row.score[chosen[name]] - row.score[other]
        if taken >= left / 2:
            break
    return list(steps.items())
