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

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.errors import CorruptFileError, InputError
from balancer.models.quantization.layers import Layer, Precision, find_layers, fingerprint
from balancer.models.quantization.modules import quantize_rows
from balancer.models.quantization.swapping import convert_layer, cpu_supports, replaced_modules

if TYPE_CHECKING:
    import altair as alt

Score = Literal["output_fisher", "gradient", "exact"]
SCORES: tuple[Score, ...] = ("output_fisher", "gradient", "exact")
Loss = Callable[[nn.Module, Any], Tensor]
_LOW: tuple[Precision, ...] = ("int8", "bf16")
MOST_BATCHES = 8
"""Maximum number of batches that are used; the ranking is stable with fewer."""
PROBES = 7
"""Number of timed runs of each layer, of which the median is taken, after two warm-up runs."""


@dataclass(frozen=True)
class SensitivityRow:
    """Sensitivity of one layer."""

    name: str
    kind: str
    parameters: int
    score: dict[str, float]
    """Expected divergence from the float32 model, in nats per row, by precision; 0 for float32."""
    bytes: dict[str, int]
    ms: dict[str, float]
    """Milliseconds on the first batch, by precision; empty if latencies were not measured."""


@dataclass(frozen=True)
class SensitivityReport:
    """Result of :func:`sensitivity`."""

    rows: list[SensitivityRow]
    method: str
    bits: int
    batches: int
    seconds: float
    fingerprint: str
    """Fingerprint of the model's layers; a plan computed from the report carries it."""
    other_ms: float = 0.0
    """Milliseconds of the whole model on the first batch that are not spent in these layers."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> SensitivityReport:
        """Build a report from the result of :meth:`to_dict`.

        Raises:
            CorruptFileError: Keys are missing or unknown.
        """
        try:
            rows = [SensitivityRow(**row) for row in content["rows"]]
            return cls(**(content | {"rows": rows}))
        except (TypeError, KeyError) as error:
            raise CorruptFileError(f"the sensitivity report can't be read ({error}): create it again") from error

    def table(self) -> list[dict[str, Any]]:
        """Return one flat dictionary per layer, the most sensitive to INT8 first."""
        flat = [
            {"layer": row.name, "kind": row.kind, "parameters": row.parameters}
            | {f"{key} {name}": value for key in ("score", "bytes", "ms") for name, value in getattr(row, key).items()}
            for row in self.rows
        ]
        return sorted(flat, key=lambda row: -row.get("score int8", 0.0))

    def chart(self, precision: Mapping[str, str] | None = None) -> alt.Chart:
        """Draw the divergence of each layer in INT8 as an Altair chart, the most sensitive first.

        Altair must be installed.

        Args:
            precision: precision by layer, shown as color.
        """
        import altair as alt

        ordered = sorted(self.rows, key=lambda row: -row.score["int8"])
        planned = precision or {}
        # A logarithmic axis can't show zero.
        values: Any = [
            {"layer": r.name, "divergence": max(r.score["int8"], 1e-12), "precision": planned.get(r.name, "not planned")} for r in ordered
        ]
        colours = {"int8": "#0072B2", "bf16": "#E69F00", "fp16": "#009E73", "fp32": "#CC79A7", "not planned": "#8A8A8A"}
        chart: alt.Chart = (
            alt.Chart(alt.InlineData(values=values))
            .mark_point(filled=True, size=90)
            .encode(
                alt.X(
                    "divergence:Q",
                    title="divergence in INT8 (nats per row, log scale)",
                    scale=alt.Scale(type="log"),
                    axis=alt.Axis(format="~e"),
                ),
                alt.Y("layer:N", title="layer", sort=None, axis=alt.Axis(labelLimit=260)),
                alt.Color("precision:N", title="precision", scale=alt.Scale(domain=list(colours), range=list(colours.values()))),
                alt.Shape("precision:N", title="precision"),
                tooltip=["layer:N", "precision:N", alt.Tooltip("divergence:Q", format=".2e")],
            )
            .properties(width=640, height=70 + 20 * len(values))
        )
        return chart


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
        InputError: There is no batch or no layer, the score is unknown, or an output is not finite (NaN in
            the calibration rows).
    """
    if score not in SCORES:
        raise InputError(f"unknown score {score!r}; known scores are {', '.join(SCORES)}")
    layers = find_layers(model)
    used = [batch for _, batch in zip(range(MOST_BATCHES), batches, strict=False)]
    if not used:
        raise InputError("no calibration batch was given: give at least one input of the model")
    was_training, started = model.training, time.perf_counter()
    model.eval()
    devices = [layers[0].rows.device] if layers[0].rows.is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            measured = _MEASURES[score](model, layers, used, loss, bits)
        seconds = time.perf_counter() - started
        ms, other = _latencies(model, layers, used[0]) if latency else ({}, 0.0)
    finally:
        model.train(was_training)
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


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """Compute the mean Kullback-Leibler divergence of ``other`` from ``reference``, in nats per row.

    Args:
        reference: outputs: (B,) binary logits, (B, K) class logits, or means of Gaussians with unit variance.
        other: outputs of the same shape.
    """
    reference, other = reference.double(), other.double()
    if reference.ndim == 1:
        p, log_sigmoid = torch.sigmoid(reference), F.logsigmoid
        each = p * (log_sigmoid(reference) - log_sigmoid(other)) + (1 - p) * (log_sigmoid(-reference) - log_sigmoid(-other))
        return each.mean()
    if reference.ndim == 2:
        log_p = reference.log_softmax(-1)
        return (log_p.exp() * (log_p - other.log_softmax(-1))).sum(-1).mean()
    return 0.5 * (reference - other).square().flatten(1).sum(1).mean()


def sampled_label_loss(output: Tensor) -> Tensor:
    """Sum over rows of the negative log-likelihood of labels drawn from the output itself."""
    drawn = output.detach().float()
    if output.ndim == 1:
        return F.binary_cross_entropy_with_logits(output.float(), torch.bernoulli(torch.sigmoid(drawn)), reduction="sum")
    if output.ndim == 2:
        return F.cross_entropy(output.float(), torch.multinomial(drawn.softmax(-1), 1)[:, 0], reduction="sum")
    return 0.5 * (output.float() - (drawn + torch.randn_like(drawn))).square().sum()


def _exact(model: nn.Module, layers: Sequence[Layer], batches: list[Any], loss: Loss | None, bits: int) -> dict[str, dict[str, float]]:  # noqa: ARG001
    scores = _zero_scores(layers)
    with torch.inference_mode():
        references = [_checked(model(batch)) for batch in batches]
        for layer in layers:
            for precision in _LOW:
                with replaced_modules(model, _rounded(model, layer, precision, bits)):
                    each = [divergence(reference, model(batch)) for reference, batch in zip(references, batches, strict=True)]
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
    for batch in batches:
        calls, total = _gradients(model, layers, batch, loss)
        rows += total
        with torch.inference_mode():
            changes: dict[tuple[str, Precision], Tensor] = {}
            for name, inputs, output, gradient in calls:
                for precision, modules in rounded.items():
                    products = gradient * (modules[name](*inputs) - output)
                    change = products.double().flatten(1).sum(1) if products.ndim > 1 else products.double()
                    # Positions of one row are consecutive. All calls of one layer are summed before squaring.
                    change = change.view(total, -1).sum(1) if total and len(change) % total == 0 else change
                    key = layer_of[name], precision
                    changes[key] = changes[key] + change if key in changes and changes[key].shape == change.shape else change
            for (layer, precision), change in changes.items():
                totals[layer][precision] += float(change.square().sum())
    return {layer: {precision: 0.5 * value / max(rows, 1) for precision, value in sums.items()} for layer, sums in totals.items()}


def _gradients(
    model: nn.Module, layers: Sequence[Layer], batch: Any, loss: Loss | None
) -> tuple[list[tuple[str, tuple[Any, ...], Tensor, Tensor]], int]:
    """Record every call of every layer, with the gradient of the summed loss with respect to the output.

    Returns:
        For each call the module's name, inputs, output and gradient; and the number of rows of the model's
        output.
    """
    calls: list[tuple[str, tuple[Any, ...], Tensor, Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def record(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            # The gradient of the added zero is that of the output, whether or not the weights require
            # gradients.
            zero = torch.zeros_like(output, requires_grad=True)
            detached = tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)
            calls.append((name, detached, output.detach(), zero))
            return output + zero

        return record

    modules = dict(model.named_modules(remove_duplicate=False))
    handles = [modules[name].register_forward_hook(hook(name)) for layer in layers for name in layer.module_names]
    try:
        with torch.enable_grad():
            if loss is None:
                output = _checked(model(batch))
                value, rows = sampled_label_loss(output), len(output)
            else:
                value, rows = loss(model, batch), 0
            gradients = torch.autograd.grad(value, [zero for *_, zero in calls], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (name, inputs, output, gradient)
        for (name, inputs, output, _), gradient in zip(calls, gradients, strict=True)
        if gradient is not None
    ], rows


def _gradient(model: nn.Module, layers: Sequence[Layer], batches: list[Any], loss: Loss | None, bits: int) -> dict[str, dict[str, float]]:
    """Sum of the squares of (gradient . change of weight) of each batch, divided by two."""
    scores = _zero_scores(layers)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        changes = {layer.name: {p: _rounded_rows(layer, p, bits) - layer.rows.detach() for p in _LOW} for layer in layers}
        for batch in batches:
            with torch.enable_grad():
                value = sampled_label_loss(_checked(model(batch))) if loss is None else loss(model, batch)
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


def _checked(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise InputError(f"model(batch) returned a {type(output).__name__}: wrap the model so that it returns one tensor of logits")
    if not output.isfinite().all():
        raise InputError("the model's output on the calibration rows is not finite: remove rows with NaN or infinite values")
    return output


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
        Median milliseconds by layer and precision, and the milliseconds of the model outside the layers.
    """
    inputs: dict[str, tuple[Any, ...]] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(_: nn.Module, given: tuple[Any, ...], __: Any) -> None:
            inputs.setdefault(name, tuple(value.detach().clone() if isinstance(value, Tensor) else value for value in given))

        return record

    handles = [layer.module.register_forward_hook(hook(layer.name)) for layer in layers]
    with torch.inference_mode():
        model(batch)
        for handle in handles:
            handle.remove()
        latencies: dict[str, dict[str, float]] = {}
        for layer in layers:
            if layer.name not in inputs:
                continue
            supported: list[Precision] = [precision for precision in _LOW if cpu_supports(precision, layer.rows.device)]
            versions = {"fp32": layer.module} | {precision: convert_layer(model, layer, precision)[layer.name] for precision in supported}
            latencies[layer.name] = timed({name: _call(module, inputs[layer.name]) for name, module in versions.items()})
        whole = timed({"model": lambda: model(batch)})["model"]
    return latencies, max(0.0, whole - sum(ms["fp32"] for ms in latencies.values()))


def _call(module: nn.Module, given: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: module(*given)


def timed(calls: Mapping[str, Callable[[], Any]], repeats: int = PROBES) -> dict[str, float]:
    """Measure the median milliseconds of each call.

    The calls are made in turns, so that other load on the machine affects all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name, call in calls.items():
            _wait()
            started = time.perf_counter()
            call()
            _wait()
            if turn >= 2:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: sorted(each)[len(each) // 2] for name, each in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
