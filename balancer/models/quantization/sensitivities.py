"""Measure how sensitive each layer is to quantization.

The sensitivity is the Kullback-Leibler divergence between the output distributions of the model before and
after rounding the layer. The loss on labels is not used: at 8 bits its changes are within the noise.

Three scores are available. `exact` rounds one layer at a time, which costs a forward pass per layer.
`output_fisher` estimates the same from a few passes: to second order, the divergence is half the mean square
of the dot product between the change of the layer's output for a row and the gradient of the row's
log-likelihood at that output, with labels drawn from the model itself (the Fisher information; Theis et al.
2018, "Faster gaze prediction with dense networks and Fisher pruning", use it for units). The products are
summed per row before squaring: squares of single elements ignore that errors of one row cancel, and rank
layers worse (docs/experiments.md). `gradient` is the squared product of the weight's change with its
gradient, as in first-order pruning; it needs no passes with rounded layers, and ranks worse.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.quantization.divergences import divergence, sampled_label_loss
from balancer.models.quantization.layers import Layer, Precision, find_layers, fingerprint
from balancer.models.quantization.modules import quantize_rows
from balancer.models.quantization.sensitivity_report import SensitivityReport, SensitivityRow
from balancer.models.quantization.swapping import convert_layer, cpu_supports, replaced_modules
from balancer.models.quantization.used_weights import evaluating, is_computed

Score = Literal["output_fisher", "gradient", "exact"]
SCORES: tuple[Score, ...] = ("output_fisher", "gradient", "exact")
Loss = Callable[[nn.Module, Any], Tensor]
_LOW: tuple[Precision, ...] = ("int8", "bf16")
MOST_BATCHES = 8
"""Maximum number of batches that are used; the ranking is stable with fewer."""
PROBES = 7
"""Number of timed runs of each layer, of which the fastest is taken, after two warm-up runs."""


class _Call(NamedTuple):
    """A call of a layer."""

    name: str
    """Name of the module."""
    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Tensor

    def repeated(self, module: nn.Module) -> Tensor:
        """Call another module in the same way, without its hooks: these acted on the inputs already."""
        result: Tensor = module.forward(*self.inputs, **self.keywords)
        return result


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    score: Score = "output_fisher",
    bits: int = 8,
    latency: bool = True,
    seed: int = 0,
) -> SensitivityReport:
    """Measure the sensitivity of every Linear, Embedding and encoder table of ``model``.

    Args:
        model: any torch model, in training or evaluation mode; it is not changed.
        batches: inputs for ``model(batch)`` with realistic shapes; the first `MOST_BATCHES` are used.
        loss: ``loss(model, batch)`` if labels are known. If None, labels are drawn from the model's output:
            (B,) logits as binary labels, (B, K) as classes, any other shape as means of Gaussians with unit
            variance.
        score: ``output_fisher``, ``gradient`` or ``exact``.
        bits: bits of the integers. Values other than 8 are for studying rankings only; a plan needs 8.
        latency: also measure the time of every layer in every precision on the first batch.
        seed: random seed of the drawn labels.

    Raises:
        InputError: There is no batch or no layer, the score is unknown, a batch has no rows, or an output is
            not finite (NaN in the calibration rows).

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> report = sensitivity(model, [torch.randn(32, 8)], latency=False)
    >>> [(row.name, row.bytes["fp32"], row.bytes["int8"]) for row in report.rows]
    [('0', 576, 256), ('2', 204, 72)]
    """
    if score not in SCORES:
        raise InputError(f"unknown score {score!r}; known scores are {', '.join(SCORES)}")
    layers = find_layers(model)
    used = [batch for _, batch in zip(range(MOST_BATCHES), batches, strict=False)]
    if not used:
        raise InputError("no calibration batch was given: give at least one input of the model")
    for layer in layers:
        if layer.device.type == "meta":
            raise InputError(f"{layer.name or 'the model'} is on the device meta and has no values: load its weights first")
        if score == "gradient" and layer.kind != "table" and any(is_computed(module, "weight") for module in layer.modules):
            raise InputError(f"the weight of {layer.name or 'the model'} is computed from others: use score='output_fisher' or 'exact'")
    started = time.perf_counter()
    with evaluating(model):
        with torch.random.fork_rng(devices=[layers[0].device] if layers[0].device.type == "cuda" else []):
            torch.manual_seed(seed)
            measured = _MEASURES[score](model, layers, used, loss, bits)
        for name, scores in measured.items():
            if not all(map(math.isfinite, scores.values())):
                raise InputError(
                    f"the divergence of rounding {name or 'the model'} is not finite: give calibration rows with smaller values"
                )
        seconds = time.perf_counter() - started
        ms, other = _latencies(model, layers, used[0]) if latency else ({}, 0.0)
    rows = [
        SensitivityRow(
            layer.name,
            layer.kind,
            layer.parameters,
            measured[layer.name] | {"fp32": 0.0},
            {precision: layer.bytes(precision) for precision in ("int8", "bf16", "fp32")},
            ms.get(layer.name, {}),
        )
        for layer in layers
    ]
    return SensitivityReport(rows, score, bits, len(used), seconds, fingerprint(layers), other)


def _exact(model: nn.Module, layers: Sequence[Layer], batches: list[Any], loss: Loss | None, bits: int) -> dict[str, dict[str, float]]:  # noqa: ARG001
    scores = _zero_scores(layers)
    with torch.inference_mode():
        references = [_checked(model(batch), number) for number, batch in enumerate(batches, 1)]
        for layer in layers:
            for precision in _LOW:
                with replaced_modules(model, _rounded(model, layer, precision, bits)) as replaced:
                    each = [divergence(reference, replaced(batch)) for reference, batch in zip(references, batches, strict=True)]
                scores[layer.name][precision] = float(torch.stack(each).mean())
    return scores


def _zero_scores(layers: Sequence[Layer]) -> dict[str, dict[str, float]]:
    return {layer.name: {"int8": 0.0, "bf16": 0.0} for layer in layers}


def _output_fisher(
    model: nn.Module, layers: Sequence[Layer], batches: list[Any], loss: Loss | None, bits: int
) -> dict[str, dict[str, float]]:
    totals = _zero_scores(layers)
    rounded = {precision: _rounded_everywhere(model, layers, precision, bits) for precision in _LOW}
    layer_of = {name: layer.name for layer in layers for name in layer.module_names}
    rows = 0
    for number, batch in enumerate(batches, 1):
        calls, total = _gradients(model, layers, batch, loss, number)
        rows += total
        with torch.inference_mode():
            changes: dict[tuple[str, Precision], Tensor] = {}
            for call, gradient in calls:
                for precision, modules in rounded.items():
                    products = gradient.double() * (call.repeated(modules[call.name]) - call.output).double()
                    change = products.flatten(1).sum(1) if products.ndim > 1 else products
                    # Positions of one row are consecutive. All calls of one layer are summed before squaring.
                    change = change.view(total, -1).sum(1) if total and len(change) % total == 0 else change
                    key = layer_of[call.name], precision
                    changes[key] = changes[key] + change if key in changes and changes[key].shape == change.shape else change
            for (layer, precision), change in changes.items():
                totals[layer][precision] += float(change.square().sum())
    return {layer: {precision: 0.5 * value / max(rows, 1) for precision, value in sums.items()} for layer, sums in totals.items()}


def _gradients(
    model: nn.Module, layers: Sequence[Layer], batch: Any, loss: Loss | None, number: int
) -> tuple[list[tuple[_Call, Tensor]], int]:
    """Record every call of every layer, with the gradient of the summed loss with respect to the output.

    Returns:
        Each call with its gradient; and the number of rows of the model's output.
    """
    calls: list[tuple[_Call, Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], Tensor]:
        def record(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> Tensor:
            # The gradient of the added zero is that of the output, whether or not the weights require
            # gradients.
            zero = torch.zeros_like(output, requires_grad=True)
            positional = tuple(map(_detached, inputs))
            calls.append((_Call(name, positional, {key: _detached(value) for key, value in keywords.items()}, output.detach()), zero))
            return output + zero

        return record

    with _hooked(model, layers, hook), torch.enable_grad():
        if loss is None:
            output = _checked(model(batch), number)
            value, rows = sampled_label_loss(output), len(output)
        else:
            value, rows = _checked_loss(loss(model, batch), number), 0
        gradients = torch.autograd.grad(value, [zero for _, zero in calls], allow_unused=True) if calls else ()
    return [(call, gradient) for (call, _), gradient in zip(calls, gradients, strict=True) if gradient is not None], rows


@contextmanager
def _hooked(model: nn.Module, layers: Sequence[Layer], hook: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    """Register forward hooks on all modules of the layers, for the duration of a with block.

    They run before other hooks, so they get the outputs of the layers themselves.
    """
    handles = []
    try:
        for layer in layers:
            names = {id(model.get_submodule(name)): name for name in reversed(layer.module_names)}
            for name in names.values():
                handles.append(model.get_submodule(name).register_forward_hook(hook(name), prepend=True, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _gradient(model: nn.Module, layers: Sequence[Layer], batches: list[Any], loss: Loss | None, bits: int) -> dict[str, dict[str, float]]:
    """Sum of the squares of (gradient . change of weight) of each batch, divided by two."""
    scores = _zero_scores(layers)
    frozen = [parameter for parameter in model.parameters() if parameter.is_floating_point() and not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        changes = {layer.name: {p: _rounded_rows(layer, p, bits) - layer.rows.detach() for p in _LOW} for layer in layers}
        for number, batch in enumerate(batches, 1):
            with torch.enable_grad():
                value = sampled_label_loss(_checked(model(batch), number)) if loss is None else _checked_loss(loss(model, batch), number)
                # A table is computed from the encoder's parameters; torch applies the chain rule.
                weights = [layer.module.weight if layer.kind != "table" else None for layer in layers]
                parameters = [p for p in model.parameters() if p.requires_grad]
                grads = dict(zip(map(id, parameters), torch.autograd.grad(value, parameters, allow_unused=True), strict=True))
            for layer, weight in zip(layers, weights, strict=True):
                for precision, change in changes[layer.name].items():
                    product = _loss_change(layer, weight, change, grads)
                    scores[layer.name][precision] += 0.5 * product**2
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return scores


def _loss_change(layer: Layer, weight: Any, change: Tensor, grads: Mapping[int, Tensor | None]) -> float:
    """Compute the change of the loss for a change of the layer's rows, to first order."""
    if layer.kind != "table":
        gradient = grads.get(id(weight))
        return 0.0 if gradient is None else float((gradient * change).sum(dtype=torch.float64))
    encoder = layer.module
    slope, step = grads.get(id(encoder.slope)), grads.get(id(encoder.step))
    if slope is None or step is None:
        return 0.0
    # The second half of the table is the slope. The first half contains cumulative sums; its change is
    # converted back to a change of the steps.
    half = len(change) // 2
    below, slope_change = change[:half].view_as(step), change[half:].view_as(slope)
    step_sums = below - (slope_change.cumsum(1) - slope_change)
    step_change = torch.cat([step_sums[:, :1], step_sums[:, 1:] - step_sums[:, :-1]], 1)
    return float((slope * slope_change).sum(dtype=torch.float64) + (step * step_change).sum(dtype=torch.float64))


_MEASURES: dict[str, Callable[..., dict[str, dict[str, float]]]] = {
    "output_fisher": _output_fisher,
    "gradient": _gradient,
    "exact": _exact,
}


def _checked(output: Any, number: int) -> Tensor:
    """Check the output for calibration batch ``number``, counted from 1."""
    if not isinstance(output, Tensor):
        raise InputError(f"model(batch) returned a {type(output).__name__}: wrap the model so that it returns one tensor of logits")
    if not output.numel():
        raise InputError(f"calibration batch {number} has no rows: leave it out")
    if not output.isfinite().all():
        raise InputError(
            f"the model's output on the calibration rows of batch {number} is not finite: remove rows with NaN or infinite values"
        )
    return output


def _checked_loss(value: Tensor, number: int) -> Tensor:
    if not value.isfinite().all():
        raise InputError(
            f"the loss of calibration batch {number} is not finite: give a batch with rows, and remove rows with NaN or infinite values"
        )
    return value


def _rounded(model: nn.Module, layer: Layer, precision: Precision, bits: int) -> dict[str, nn.Module]:
    """Build the layer's replacements in low precision.

    With bits other than 8, the rounded weight is stored as float.
    """
    if precision == "int8" and bits != 8:
        return convert_layer(model, layer, "fp32", rows=_rounded_rows(layer, precision, bits))
    return convert_layer(model, layer, precision)


def _rounded_everywhere(model: nn.Module, layers: Sequence[Layer], precision: Precision, bits: int) -> dict[str, nn.Module]:
    return {name: module for layer in layers for name, module in _rounded(model, layer, precision, bits).items()}


def _rounded_rows(layer: Layer, precision: Precision, bits: int) -> Tensor:
    """Round the layer's rows and return them as float32."""
    rows = layer.rows.detach().float()
    if precision != "int8":
        return rows.to(torch.bfloat16).float()
    whole, scale = quantize_rows(rows, bits)
    return whole.float() * scale[:, None]


def _latencies(model: nn.Module, layers: Sequence[Layer], batch: Any) -> tuple[dict[str, dict[str, float]], float]:
    """Measure every layer in every precision that the processor supports, at its inputs for ``batch``.

    Returns:
        Least milliseconds by layer and precision, and the milliseconds of the model outside the layers.
    """
    calls: dict[str, _Call] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> None:
            if name not in calls:
                calls[name] = _Call(name, tuple(map(_own, inputs)), {key: _own(value) for key, value in keywords.items()}, output)

        return record

    with torch.inference_mode():
        with _hooked(model, layers, hook):
            model(batch)
        latencies: dict[str, dict[str, float]] = {}
        for layer in layers:
            if layer.name not in calls:
                continue
            supported: list[Precision] = [precision for precision in _LOW if cpu_supports(precision, layer.device)]
            versions = {"fp32": layer.module} | {precision: convert_layer(model, layer, precision)[layer.name] for precision in supported}
            latencies[layer.name] = timed({name: _again(calls[layer.name], module) for name, module in versions.items()}, take=min)
        whole = timed({"model": lambda: model(batch)}, take=min)["model"]
    return latencies, max(0.0, whole - sum(ms["fp32"] for ms in latencies.values()))


def _own(value: Any) -> Any:
    """Copy a tensor, because the model may write into it."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def _again(call: _Call, module: nn.Module) -> Callable[[], Any]:
    return lambda: call.repeated(module)


def timed(
    calls: Mapping[str, Callable[[], Any]], repeats: int = PROBES, *, take: Callable[[Sequence[float]], float] = statistics.median_high
) -> dict[str, float]:
    """Measure the milliseconds of each call.

    The calls are made in turns, in the opposite order every second time, so that other load on the machine
    affects all of them alike.

    Args:
        calls: What to measure, by name.
        repeats: Number of measurements of each call, after two warm-up runs.
        take: The measurement that counts. ``min`` is right for short calls on a busy machine: where other
            processes interrupt most of them, the median is the time of the others.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name in reversed(list(calls)) if turn % 2 else list(calls):
            _wait()
            started = time.perf_counter()
            calls[name]()
            _wait()
            if turn >= 2:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: take(each) for name, each in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
