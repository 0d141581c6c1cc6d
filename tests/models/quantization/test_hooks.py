"""Hooks and attributes of a layer act on its replacement as they did on the layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from balancer.errors import InputError
from balancer.models.quantization import apply_precision, save_quantized, sensitivity, uniform_plan
from tests.models.quantization.kinds import BACKENDS, KINDS, PRECISIONS, distance, quantized

pytestmark = pytest.mark.usefixtures("every_precision")
FORWARD = {
    "forward": lambda layer: layer.register_forward_hook(lambda *given: given[-1] + 100),
    "forward with keywords": lambda layer: layer.register_forward_hook(
        lambda _, args, keywords, out: out * (1 + len(args) + len(keywords)), with_kwargs=True
    ),
    "always called": lambda layer: layer.register_forward_hook(lambda *given: given[-1] * 2, always_call=True),
    "prepended": lambda layer: (
        layer.register_forward_hook(lambda *given: given[-1] + 1),
        layer.register_forward_hook(lambda *given: given[-1] * 3, prepend=True),
    ),
    "reads the layer": lambda layer: layer.register_forward_hook(lambda module, _, out: out + getattr(module, "gain", 7.0)),
}


def first_layer(model: nn.Module) -> Any:
    return model.encoder if hasattr(model, "encoder") else model[0]  # type: ignore[index]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("hook", FORWARD)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_hooks_act(kind: str, hook: str, precision: Any) -> None:
    torch.manual_seed(0)
    model = KINDS[kind].make().eval()
    first_layer(model).gain = 50.0
    FORWARD[hook](first_layer(model))
    other = quantized(model, precision)
    x = KINDS[kind].data(4)
    assert distance(other, model, x) < 0.05
    assert distance(copy.deepcopy(other), model, x) < 0.05


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_hooks_before_the_layer_act_in_their_order(precision: Any, backend: str) -> None:
    torch.manual_seed(0)
    model = KINDS["linear"].make().eval()
    layer = first_layer(model)
    layer.register_forward_pre_hook(lambda _, args, keywords: ((args[0] * 2,), keywords), with_kwargs=True)
    layer.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    layer.register_forward_pre_hook(lambda _, args: (args[0] * 3,), prepend=True)
    assert distance(quantized(model, precision, backend), model, torch.randn(4, 8)) < 0.05


@pytest.mark.parametrize("precision", PRECISIONS)
def test_backward_hooks_act(precision: Any) -> None:
    torch.manual_seed(0)
    model, calls = KINDS["linear"].make().eval(), []
    model[0].register_full_backward_pre_hook(lambda *_: calls.append("before"))
    model[0].register_full_backward_hook(lambda _, gradient, __: (gradient[0] * 10,))
    x = torch.randn(4, 8, requires_grad=True)
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    found = torch.autograd.grad(quantized(model, precision)(x).sum(), x)[0]
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert calls == ["before", "before"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_called_by_keyword_and_parts_added_to_them(precision: Any) -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.project = nn.Embedding(9, 8), nn.Linear(8, 3)
            self.project.extra = nn.Linear(8, 3)  # as adapters do it that work by hooks
            self.project.register_parameter("gain", nn.Parameter(torch.tensor(3.0)))
            self.project.register_buffer("shift", torch.tensor(5.0), persistent=False)
            self.project.register_forward_hook(self.add, with_kwargs=True)

        @staticmethod
        def add(layer: Any, args: tuple[Tensor, ...], keywords: dict[str, Tensor], out: Tensor) -> Tensor:
            return out * layer.gain + layer.shift + layer.extra(keywords["input"])  # type: ignore[no-any-return]

        def forward(self, index: Tensor) -> Tensor:
            return self.project(input=self.embed(input=index))  # type: ignore[no-any-return]

    model = Adapted().eval()
    other: Any = quantized(model, precision)
    assert distance(other, model, torch.arange(9)) < 0.03
    assert not other.project.gain.requires_grad
    assert other.project.shift is not model.project.shift
    assert type(other.project.extra) is not nn.Linear
    for score in ("output_fisher", "exact"):
        assert len(sensitivity(model, [torch.arange(9)], score=score).rows) == 3  # type: ignore[arg-type]


def test_hooks_on_state_dicts_act_and_are_not_stored(tmp_path: Path) -> None:
    model = KINDS["linear"].make()
    model[0].register_state_dict_post_hook(lambda _, state, prefix, __: state.update({prefix + "mark": torch.ones(1)}))
    plan = uniform_plan(model)
    other, applied = apply_precision(model, plan)
    assert "0.mark" in other.state_dict()
    with pytest.raises(InputError, match="0 has a hook on its state dict"):
        save_quantized(other, applied, tmp_path, plan=plan)


def test_hooks_on_loading_get_the_replacement() -> None:
    model, seen = KINDS["linear"].make(), []
    model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    model[0].register_load_state_dict_post_hook(lambda module, _: seen.append(module))
    other: Any = quantized(model, "int8")
    other.load_state_dict(other.state_dict())
    assert [each is other[0] for each in seen] == [True, True]


def test_hooks_that_can_not_act_are_refused_by_name() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    model[0].parametrizations.weight.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"0 has a hook on a parametrization.*remove_parametrizations"):
        uniform_plan(model)
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(InputError, match="the forward pass of 0 was replaced"):
        apply_precision(model, uniform_plan(nn.Sequential(nn.Linear(4, 4))))


@pytest.mark.parametrize("score", ["output_fisher", "exact", "gradient"])
def test_sensitivity_is_that_of_the_layers_and_leaves_modes_and_hooks(score: Any) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    hooked = copy.deepcopy(plain)
    hooked[0].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    hooked[0].register_forward_hook(lambda *given: given[-1] - hooked[0].weight.sum(1))  # W (x + 1) - W 1 = W x
    hooked.train()
    hooked[2].eval()
    x = torch.randn(64, 8)
    rows = [sensitivity(model, [x], score=score, latency=False).rows for model in (plain, hooked)]
    for first, second in zip(*rows, strict=True):
        assert first.score["int8"] == pytest.approx(second.score["int8"], rel=0.9)
        assert second.score["int8"] > 0
    assert [module.training for module in hooked] == [True, True, False]
    assert [len(module._forward_hooks) for module in hooked] == [1, 0, 0]
