"""Layers whose weights are computed from other tensors: replacements have those of the forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils as hook_form
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from balancer.errors import InputError
from balancer.models.adapter import AdaptedLinear
from balancer.models.quantization import apply_precision, find_layers, load_quantized, save_quantized, sensitivity, uniform_plan
from tests.models.quantization.kinds import distance, quantized

pytestmark = [
    pytest.mark.usefixtures("every_precision"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated"),
]


def linear() -> nn.Linear:
    return nn.Linear(8, 8)


def embedding() -> nn.Embedding:
    return nn.Embedding(9, 8)


def adapted() -> nn.Linear:
    layer = AdaptedLinear(linear(), 2)
    nn.init.normal_(layer.adapter_up)
    return layer


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight norm, hook": lambda: hook_form.weight_norm(linear()),
    "spectral norm, hook": lambda: hook_form.spectral_norm(linear()),
    "pruned": lambda: prune.l1_unstructured(linear(), "weight", 0.5),
    "pruned twice, bias too": lambda: prune.l1_unstructured(
        prune.random_structured(prune.l1_unstructured(linear(), "weight", 0.5), "weight", 0.3, dim=0), "bias", 0.5
    ),
    "weight norm": lambda: parametrizations.weight_norm(linear()),
    "spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "adapted": adapted,
    "embedding with weight norm, hook": lambda: hook_form.weight_norm(embedding()),
    "embedding with spectral norm": lambda: parametrizations.spectral_norm(embedding()),
    "pruned embedding": lambda: prune.l1_unstructured(embedding(), "weight", 0.5),
}


def model_of(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(COMPUTED[kind](), nn.Linear(8, 4))
    return model, torch.arange(9) if "embedding" in kind else torch.randn(6, 8)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("kind", COMPUTED)
def test_the_weight_is_the_one_of_the_next_forward_pass(kind: str, precision: Any, tmp_path: Path) -> None:
    model, x = model_of(kind)
    model.train()
    model(x)  # leaves weights with a history, which can't be copied by deepcopy
    scaled = {
        name: 1.7 * tensor if tensor.is_floating_point() and "mask" not in name else tensor for name, tensor in state_of(model).items()
    }
    model.load_state_dict(scaled)
    before, plan = state_of(model), uniform_plan(model, precision)
    other, applied = apply_precision(model, plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert distance(other, model.eval(), x) < {"int8": 0.03, "bf16": 0.02, "fp32": 1e-5}[precision]
    save_quantized(other, applied, tmp_path, plan=plan)
    for make in (lambda: model_of(kind)[0], lambda: nn.Sequential(embedding() if "embedding" in kind else linear(), nn.Linear(8, 4))):
        loaded, _ = load_quantized(make, tmp_path)
        assert torch.equal(loaded(x), other(x))


@pytest.mark.parametrize("kind", COMPUTED)
def test_sensitivity_is_measured_and_the_model_left(kind: str) -> None:
    model, x = model_of(kind)
    before, modes = state_of(model), [module.training for module in model.modules()]
    for score in ("output_fisher", "exact"):
        report = sensitivity(model, [x], score=score, latency=score == "exact")  # type: ignore[arg-type]
        assert all(row.score["int8"] > row.score["bf16"] >= 0 for row in report.rows[:1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(InputError, match="the weight of 0 is computed"):
        sensitivity(model, [x], score="gradient")


def test_two_parametrized_layers_are_two_layers() -> None:
    model = nn.Sequential(*(parametrizations.weight_norm(linear()) for _ in range(4)))
    assert [layer.tied for layer in find_layers(model)] == [()] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_computed_weights_in_other_dtypes(dtype: torch.dtype) -> None:
    for kind in ("weight norm, hook", "pruned", "weight norm", "adapted"):
        model, x = model_of(kind)
        model = model.to(dtype).eval()
        assert distance(quantized(model, "int8"), model, x.to(dtype)) < 0.05


def test_weights_without_values_are_refused_with_the_remedy() -> None:
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(InputError, match="0 is a LazyLinear without weights: call the model once"):
        uniform_plan(lazy)
    lazy(torch.randn(2, 8))
    assert distance(quantized(lazy, "int8"), lazy, torch.randn(2, 8)) < 0.03
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(8, 3))
    for call in (lambda: apply_precision(meta, uniform_plan(meta)), lambda: sensitivity(meta, [torch.randn(1, 8)])):
        with pytest.raises(InputError, match="0 is on the device meta"):
            call()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_weights_computed_by_unknown_code_are_refused_with_the_remedy() -> None:
    model = nn.Sequential(linear())
    weight = model[0].weight
    del model[0].weight
    model[0].register_parameter("weight_orig", weight)
    model[0].register_forward_pre_hook(lambda module, _: setattr(module, "weight", module.weight_orig * 2))
    model[0].weight = weight.detach()
    with pytest.raises(InputError, match=r"0\.weight is a plain tensor.*make it an nn\.Parameter"):
        uniform_plan(model)
    with pytest.raises(InputError, match=r"result of torch\.compile: quantize"):
        uniform_plan(torch.compile(nn.Sequential(linear())))  # type: ignore[arg-type]
    locked = nn.Sequential(linear())
    locked.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match="the model can't be copied"):
        apply_precision(locked, uniform_plan(locked))


def test_models_prepared_for_quantization_aware_training() -> None:
    class Rounding(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return (weight * 64).round() / 64

    model = nn.Sequential(linear()).eval()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Rounding())
    x = torch.randn(5, 8)
    assert distance(quantized(model, "fp32"), model, x) < 1e-6
    assert distance(quantized(model, "int8"), model, x) < 0.03
