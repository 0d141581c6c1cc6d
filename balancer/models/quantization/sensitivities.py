"""How much each layer's rounding moves the model's answer.

The answer is a distribution, and what rounding does to it is a Kullback-Leibler divergence; the loss on labels barely moves at 8 bits and is noise. Brute
force (`exact`) rounds one layer at a time and costs a forward pass each. `output_fisher` foresees the same from a few passes: the divergence is, to second
order, half the mean square of the product of a row's change of the layer's output with the gradient of the row's log-likelihood there, labels drawn from the
model itself (the Fisher information; compare Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", for its use on units).
Summed before it is squared: squares of single elements, which leave out that errors of one row cancel, rank worse (docs/experiments.md). `gradient` is the
product of the weight's change with its gradient, squared (as in first-order pruning): cheaper by the quantized passes, and worse.
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
from balancer.models.quantization.swapping import cpu_supports, low_precision, swapped

if TYPE_CHECKING:
    import altair as alt

Score = Literal["output_fisher", "gradient", "exact"]
SCORES: tuple[Score, ...] = ("output_fisher", "gradient", "exact")
Loss = Callable[[nn.Module, Any], Tensor]
_LOW: tuple[Precision, ...] = ("int8", "bf16")
MOST_BATCHES = 8
"""Batches used of those given; the ranking settles before."""
PROBES = 7
"""Runs of each layer from which the median is taken, after two that don't count."""


@dataclass(frozen=True)
class SensitivityRow:
    """One layer."""

    name: str
    kind: str
    parameters: int
    score: dict[str, float]
    """Expected divergence from the float32 model, in nats a row, by precision; float32 has 0."""
    bytes: dict[str, int]
    ms: dict[str, float]
    """Milliseconds on the first batch, by precision; empty where latency was not asked for."""


@dataclass(frozen=True)
class SensitivityReport:
    """What :func:`sensitivity` found."""

    rows: list[SensitivityRow]
    method: str
    bits: int
    batches: int
    seconds: float
    fingerprint: str
    """Of the model's layers; a plan made of the report carries it."""
    other_ms: float = 0.0
    """Milliseconds of the whole model on the first batch that are none of the layers'."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> SensitivityReport:
        """Inverse of :meth:`to_dict`; InputError where keys are missing or unknown."""
        try:
            rows = [SensitivityRow(**row) for row in content["rows"]]
            return cls(**(content | {"rows": rows}))
        except (TypeError, KeyError) as error:
            raise CorruptFileError(f"the sensitivity report can't be read ({error}): make it anew") from error

    def table(self) -> list[dict[str, Any]]:
        """A flat row per layer, the most sensitive to INT8 first."""
        flat = [
            {"layer": row.name, "kind": row.kind, "parameters": row.parameters}
            | {f"{key} {name}": value for key in ("score", "bytes", "ms") for name, value in getattr(row, key).items()}
            for row in self.rows
        ]
        return sorted(flat, key=lambda row: -row.get("score int8", 0.0))

    def chart(self, precision: Mapping[str, str] | None = None) -> alt.Chart:
        """An Altair chart: what rounding each layer to INT8 does to the answer, the most first; ``precision`` by layer colours them. Needs altair."""
        import altair as alt

        worst = sorted(self.rows, key=lambda row: -row.score["int8"])
        given = precision or {}
        # A logarithmic axis has no place for nothing at all.
        values: Any = [
            {"layer": r.name, "divergence": max(r.score["int8"], 1e-12), "precision": given.get(r.name, "not planned")} for r in worst
        ]
        colours = {"int8": "#0072B2", "bf16": "#E69F00", "fp16": "#009E73", "fp32": "#CC79A7", "not planned": "#8A8A8A"}
        found: alt.Chart = (
            alt.Chart(alt.InlineData(values=values))
            .mark_point(filled=True, size=90)
            .encode(
                alt.X(
                    "divergence:Q",
                    title="divergence if INT8 (nats a row, log scale)",
                    scale=alt.Scale(type="log"),
                    axis=alt.Axis(format="~e"),
                ),
                alt.Y("layer:N", title="layer", sort=None, axis=alt.Axis(labelLimit=260)),
                alt.Color("precision:N", title="it has", scale=alt.Scale(domain=list(colours), range=list(colours.values()))),
                alt.Shape("precision:N", title="it has"),
                tooltip=["layer:N", "precision:N", alt.Tooltip("divergence:Q", format=".2e")],
            )
            .properties(width=640, height=70 + 20 * len(values))
        )
        return found


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
    """Score every Linear, Embedding and encoder table of ``model``.

    Args:
        model: any torch model; it is left as it was, in evaluation mode or not.
        batches: what ``model(batch)`` takes, at the shapes it will meet; the first `MOST_BATCHES` are used.
        loss: ``loss(model, batch)`` where labels are known; None: labels are drawn from the model's own output, (B,) logits as yes or no, (B, K) as
            classes, any other shape as means of unit variance.
        score: ``output_fisher``, ``gradient`` or ``exact``.
        bits: of the integers; other than 8 only to study rankings, a plan is made of 8.
        latency: also time every layer in every precision on the first batch.
        seed: of the labels that are drawn.

    Raises:
        InputError: no batch, no layer, an unknown score, or an output that is not finite (NaN among the calibration rows).
    """
    if score not in SCORES:
        raise InputError(f"unknown score {score!r}; known are {', '.join(SCORES)}")
    layers = find_layers(model)
    used = [batch for _, batch in zip(range(MOST_BATCHES), batches, strict=False)]
    if not used:
        raise InputError("no calibration batch was given: give some of what the model is called with")
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
    """Mean Kullback-Leibler divergence of outputs ``other`` from ``reference``, in nats a row: of (B,) logits, (B, K) class logits, or unit Gaussians."""
    reference, other = reference.double(), other.double()
    if reference.ndim == 1:
        p, one = torch.sigmoid(reference), F.logsigmoid
        apart = p * (one(reference) - one(other)) + (1 - p) * (one(-reference) - one(-other))
        return apart.mean()
    if reference.ndim == 2:
        logs = reference.log_softmax(-1)
        return (logs.exp() * (logs - other.log_softmax(-1))).sum(-1).mean()
    return 0.5 * (reference - other).square().flatten(1).sum(1).mean()


def own_loss(output: Tensor) -> Tensor:
    """Sum over rows of the negative log-likelihood of labels drawn from the output itself."""
    drawn = output.detach().float()
    if output.ndim == 1:
        return F.binary_cross_entropy_with_logits(output.float(), torch.bernoulli(torch.sigmoid(drawn)), reduction="sum")
    if output.ndim == 2:
        return F.cross_entropy(output.float(), torch.multinomial(drawn.softmax(-1), 1)[:, 0], reduction="sum")
    return 0.5 * (output.float() - (drawn + torch.randn_like(drawn))).square().sum()


def _exact(model: nn.Module, layers: Sequence[Layer], batches: list[Any], loss: Loss | None, bits: int) -> dict[str, dict[str, float]]:  # noqa: ARG001
    found: dict[str, dict[str, float]] = {layer.name: {"int8": 0.0, "bf16": 0.0} for layer in layers}
    with torch.inference_mode():
        plain = [_checked(model(batch)) for batch in batches]
        for layer in layers:
            for precision in _LOW:
                with swapped(model, _rounded(model, layer, precision, bits)):
                    apart = [divergence(reference, model(batch)) for reference, batch in zip(plain, batches, strict=True)]
                found[layer.name][precision] = float(torch.stack(apart).mean())
    return found


def _output_fisher(
    model: nn.Module, layers: Sequence[Layer], batches: list[Any], loss: Loss | None, bits: int
) -> dict[str, dict[str, float]]:
    totals: dict[str, dict[str, float]] = {layer.name: {"int8": 0.0, "bf16": 0.0} for layer in layers}
    rounded = {precision: _rounded_everywhere(model, layers, precision, bits) for precision in _LOW}
    owner = {place: layer.name for layer in layers for place in layer.places}
    rows = 0
    for batch in batches:
        seen, total = _gradients(model, layers, batch, loss)
        rows += total
        with torch.inference_mode():
            along: dict[tuple[str, str], Tensor] = {}
            for place, inputs, output, gradient in seen:
                for precision, modules in rounded.items():
                    products = gradient * (modules[place](*inputs) - output)
                    own = products.double().flatten(1).sum(1) if products.ndim > 1 else products.double()
                    # Positions of one row of the answer lie side by side; calls of one layer add up before they are squared.
                    own = own.view(total, -1).sum(1) if total and len(own) % total == 0 else own
                    key = owner[place], precision
                    along[key] = along[key] + own if key in along and along[key].shape == own.shape else own
            for (name, kind), own in along.items():
                totals[name][kind] += float(own.square().sum())
    return {name: {precision: 0.5 * value / max(rows, 1) for precision, value in own.items()} for name, own in totals.items()}


def _gradients(
    model: nn.Module, layers: Sequence[Layer], batch: Any, loss: Loss | None
) -> tuple[list[tuple[str, tuple[Any, ...], Tensor, Tensor]], int]:
    """Of every call of every layer its place, inputs, output, and the gradient of the summed loss there; and the rows of the output."""
    calls: list[tuple[str, tuple[Any, ...], Tensor, Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def note(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            # A zero that is added: its gradient is that of the output, whether or not the weights have one.
            zero = torch.zeros_like(output, requires_grad=True)
            held = tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)
            calls.append((name, held, output.detach(), zero))
            return output + zero

        return note

    modules = dict(model.named_modules(remove_duplicate=False))
    handles = [modules[place].register_forward_hook(hook(place)) for layer in layers for place in layer.places]
    try:
        with torch.enable_grad():
            if loss is None:
                output = _checked(model(batch))
                value, rows = own_loss(output), len(output)
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
    """(g . dW)^2 of each batch, summed over the batches."""
    found: dict[str, dict[str, float]] = {layer.name: {"int8": 0.0, "bf16": 0.0} for layer in layers}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        changes = {layer.name: {p: _rounded_rows(layer, p, bits) - layer.rows.detach() for p in _LOW} for layer in layers}
        for batch in batches:
            with torch.enable_grad():
                value = own_loss(_checked(model(batch))) if loss is None else loss(model, batch)
                # A table is made of the encoder's parameters; the chain rule through it is torch's.
                weights = [layer.module.weight if layer.kind != "table" else None for layer in layers]
                parameters = [p for p in model.parameters() if p.requires_grad]
                grads = dict(zip(map(id, parameters), torch.autograd.grad(value, parameters, allow_unused=True), strict=True))
            for layer, weight in zip(layers, weights, strict=True):
                for precision, change in changes[layer.name].items():
                    product = _along(layer, weight, change, grads)
                    found[layer.name][precision] += 0.5 * product**2
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return found


def _along(layer: Layer, weight: Any, change: Tensor, grads: Mapping[int, Tensor | None]) -> float:
    """The loss' change along a change of the layer's rows, to first order."""
    if layer.kind != "table":
        gradient = grads.get(id(weight))
        return 0.0 if gradient is None else float((gradient * change).sum(dtype=torch.float64))
    encoder = layer.module
    slope, step = grads.get(id(encoder.slope)), grads.get(id(encoder.step))
    if slope is None or step is None:
        return 0.0
    # The table's second half is the slope itself; of its first half, the steps' running sums, the change is carried back to the steps.
    half = len(change) // 2
    below, own = change[:half].view_as(step), change[half:].view_as(slope)
    back = below - (own.cumsum(1) - own)
    steps = torch.cat([back[:, :1], back[:, 1:] - back[:, :-1]], 1)
    return float((slope * own).sum(dtype=torch.float64) + (step * steps).sum(dtype=torch.float64))


_MEASURES: dict[str, Callable[..., dict[str, dict[str, float]]]] = {
    "output_fisher": _output_fisher,
    "gradient": _gradient,
    "exact": _exact,
}


def _checked(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise InputError(f"model(batch) gave a {type(output).__name__}: wrap the model so that it gives one tensor of logits")
    if not output.isfinite().all():
        raise InputError("the model's output on the calibration rows is not finite: leave out rows with NaN or infinite values")
    return output


def _rounded(model: nn.Module, layer: Layer, precision: Precision, bits: int) -> dict[str, nn.Module]:
    """What stands at the layer's places in low precision; with other bits than 8 the weight is rounded to them and kept as a float."""
    if precision == "int8" and bits != 8:
        return low_precision(model, layer, "fp32", rows=_rounded_rows(layer, precision, bits))
    return low_precision(model, layer, precision)


def _rounded_everywhere(model: nn.Module, layers: Sequence[Layer], precision: Precision, bits: int) -> dict[str, nn.Module]:
    return {place: module for layer in layers for place, module in _rounded(model, layer, precision, bits).items()}


def _rounded_rows(layer: Layer, precision: Precision, bits: int) -> Tensor:
    """The layer's rows after rounding, as float32."""
    rows = layer.rows.detach().float()
    if precision != "int8":
        return rows.to(torch.bfloat16).float()
    whole, scale = quantize_rows(rows, bits)
    return whole.float() * scale[:, None]


def _latencies(model: nn.Module, layers: Sequence[Layer], batch: Any) -> tuple[dict[str, dict[str, float]], float]:
    """Median milliseconds of every layer in every precision this machine has instructions for, at the inputs of ``batch``, in turns; and the rest."""
    inputs: dict[str, tuple[Any, ...]] = {}

    def keep(name: str) -> Callable[..., None]:
        def note(_: nn.Module, given: tuple[Any, ...], __: Any) -> None:
            inputs.setdefault(name, tuple(value.detach().clone() if isinstance(value, Tensor) else value for value in given))

        return note

    handles = [layer.module.register_forward_hook(keep(layer.name)) for layer in layers]
    with torch.inference_mode():
        model(batch)
        for handle in handles:
            handle.remove()
        found: dict[str, dict[str, float]] = {}
        for layer in layers:
            if layer.name not in inputs:
                continue
            low: list[Precision] = [precision for precision in _LOW if cpu_supports(precision, layer.rows.device)]
            forms = {"fp32": layer.module} | {precision: low_precision(model, layer, precision)[layer.name] for precision in low}
            found[layer.name] = timed({name: _call(module, inputs[layer.name]) for name, module in forms.items()})
        whole = timed({"model": lambda: model(batch)})["model"]
    return found, max(0.0, whole - sum(own["fp32"] for own in found.values()))


def _call(module: nn.Module, given: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: module(*given)


def timed(calls: Mapping[str, Callable[[], Any]], repeats: int = PROBES) -> dict[str, float]:
    """Median milliseconds of each call, taken in turns so that what else the machine does falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name, call in calls.items():
            _wait()
            started = time.perf_counter()
            call()
            _wait()
            if turn >= 2:
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: sorted(own)[len(own) // 2] for name, own in taken.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
