"""Weights that share memory: the same parameter, views of it, with layers and with other modules."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.quantization import (
    apply_precision,
    find_layers,
    load_quantized,
    plan_precision,
    save_quantized,
    sensitivity,
    uniform_plan,
)
from balancer.models.quantization.storage import WEIGHTS_FILE
from tests.models.quantization.kinds import BACKENDS, distance, quantized

pytestmark = pytest.mark.usefixtures("every_precision")


class OwnLinear(nn.Linear):
    """A subclass, which is not replaced."""


class Shared(nn.Module):
    """An embedding, two linear layers, and an output, some of which share a weight or a bias."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.middle = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.out: nn.Module = nn.Linear(8, 9)
        table = self.embed.weight
        if kind == "one parameter":
            self.out.weight = table
        elif kind == "one memory":
            self.out.weight = nn.Parameter(table.data)
        elif kind == "part":
            self.out = nn.Linear(8, 4)
            self.out.weight = nn.Parameter(table.data[2:6])
        elif kind == "transposed":
            self.out = nn.Linear(8, 8)
            self.out.weight = nn.Parameter(self.middle.weight.data.t())
        elif kind == "convolution":
            self.out = nn.Conv1d(8, 9, 1)
            self.out.weight = nn.Parameter(table.data[..., None])
        elif kind == "bare parameter":
            self.out = nn.Identity()
            self.table = table
        elif kind == "subclass":
            self.out = OwnLinear(8, 9)
            self.out.weight = table
        elif kind == "one bias":
            self.out = nn.Linear(8, 8)
            self.out.bias = self.middle.bias
        elif kind == "two biases":
            self.out = nn.Linear(8, 8)
            self.out.weight = self.middle.weight
        elif kind == "one module":
            self.out = self.middle

    def forward(self, index: Tensor) -> Tensor:
        """Embed, mix and project."""
        mixed = self.middle(self.embed(index))
        if self.kind == "convolution":
            return self.out(mixed.mT[None])[0].mT  # type: ignore[no-any-return]
        out: Tensor = self.out(mixed)
        return out @ self.table.t() if self.kind == "bare parameter" else out


TIED = {"one parameter", "one memory", "two biases", "one module"}
OUTSIDE = {"convolution": "out.weight", "bare parameter": "table", "subclass": "out.weight"}
KINDS = [*sorted(TIED), *OUTSIDE, "part", "transposed", "one bias"]


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_bytes_and_what_is_said(kind: str, precision: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, index = Shared(kind).eval(), torch.arange(9)
    plan = uniform_plan(model, precision)
    other, applied = apply_precision(model, plan)
    assert distance(other, model, index) < {"int8": 0.03, "bf16": 0.02, "fp32": 1e-6}[precision]
    assert any(row.tied for row in applied.rows) == (kind in TIED)
    reasons = "; ".join(row.reason for row in applied.rows if row.reason)
    if kind in OUTSIDE and (precision != "fp32" or kind == "convolution"):
        assert f"its weight is also used by {OUTSIDE[kind]}, which is not quantized: the weight is stored twice" in reasons
    elif kind in ("part", "transposed"):
        assert "in another way: each is stored" in reasons
    else:
        assert reasons == ""
    save_quantized(other, applied, tmp_path, plan=plan)
    loaded, _ = load_quantized(lambda: Shared(kind), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(index), other(index))
        assert torch.equal(copy.deepcopy(other)(index), other(index))
    unshared = 4 * 9 if kind in ("convolution", "subclass") else 0  # a bias that is not quantized
    header = 8 + int.from_bytes((tmp_path / WEIGHTS_FILE).read_bytes()[:8], "little")
    stored = (tmp_path / WEIGHTS_FILE).stat().st_size - header
    assert stored - unshared <= applied.bytes_after
    assert stored - unshared >= applied.bytes_after - 4 * 9 * (kind == "one bias") - 4 * 9


def memories(model: nn.Module) -> int:
    return len({tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]})


@pytest.mark.parametrize("kind", sorted(TIED))
def test_a_shared_weight_stays_shared_when_a_model_is_copied_or_moved(kind: str) -> None:
    other = quantized(Shared(kind), "int8")
    assert memories(copy.deepcopy(other)) == memories(other)
    assert memories(copy.deepcopy(other).to("meta")) == memories(other)
    assert memories(copy.deepcopy(other).double()) == memories(other)


def test_a_module_with_two_names_has_one_replacement() -> None:
    model = Shared("one module")
    model.middle.register_forward_hook(lambda *given: given[-1] + 1)
    other: Any = quantized(model, "int8")
    assert other.middle is other.out
    assert distance(other, model.eval(), torch.arange(9)) < 0.03


@pytest.mark.parametrize("backend", BACKENDS)
def test_modules_with_one_weight_keep_their_own_biases(backend: str) -> None:
    torch.manual_seed(0)
    model = Shared("two biases").eval()
    assert distance(quantized(model, "int8", backend), model, torch.arange(9)) < 0.03
    (layer,) = (layer for layer in find_layers(model) if layer.tied)
    assert layer.biases == 16


def test_a_weight_that_would_be_stored_twice_is_left_in_its_precision() -> None:
    model = Shared("bare parameter")
    report = sensitivity(model, [torch.arange(9)], latency=False)
    plan = plan_precision(report, max_metric_drop=1e9, metric=lambda _: 0.0, model=model)
    assert plan.precision == {"embed": "fp32", "middle": "int8"}


def test_a_view_that_no_file_contains_is_refused_on_saving(tmp_path: Path) -> None:
    model = Shared("one bias").eval()
    model.view = model.embed.weight.t()  # type: ignore[assignment]
    plan = uniform_plan(model)
    other, applied = apply_precision(model, plan)
    assert distance(other, model, torch.arange(9)) < 0.03
    with pytest.raises(InputError, match="view is a view of the weight of embed"):
        save_quantized(other, applied, tmp_path, plan=plan)


def test_layers_whose_memory_is_one_block_but_does_not_overlap_share_nothing() -> None:
    block = torch.randn(2 * 64)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for number, layer in enumerate(model):
        layer.weight = nn.Parameter(block[64 * number : 64 * (number + 1)].view(8, 8))
    _, applied = apply_precision(model, uniform_plan(model))
    assert [(row.tied, row.reason) for row in applied.rows] == [((), ""), ((), "")]


def test_tensors_that_are_in_no_file_are_computed_on_loading(tmp_path: Path) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 8)
            self.register_buffer("place", torch.arange(8.0), persistent=False)
            self.factor = torch.full((8,), 2.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.project(x + self.place) * self.factor  # type: ignore[no-any-return]

    model = Positions().eval()
    plan = uniform_plan(model)
    other, applied = apply_precision(model, plan)
    save_quantized(other, applied, tmp_path, plan=plan)
    x = torch.randn(3, 8)
    assert torch.equal(load_quantized(Positions, tmp_path)[0](x), other(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Shared("one parameter").to(dtype).eval()
    plan = uniform_plan(model)
    other, applied = apply_precision(model, plan)
    assert applied.bytes_before == sum(tensor.nbytes for tensor in model.state_dict(keep_vars=True).values()) - model.embed.weight.nbytes
    save_quantized(other, applied, tmp_path, plan=plan)
    loaded, _ = load_quantized(lambda: Shared("one parameter"), tmp_path)
    assert loaded(torch.arange(9)).dtype == dtype
    assert torch.equal(loaded(torch.arange(9)), other(torch.arange(9)))


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
def test_a_model_that_is_a_single_layer(precision: Any, tmp_path: Path) -> None:
    model = nn.Linear(8, 3).eval()
    plan = uniform_plan(model, precision)
    other, applied = apply_precision(model, plan)
    assert type(other) is not nn.Linear
    assert distance(other, model, torch.randn(4, 8)) < 0.03
    assert sensitivity(model, [torch.randn(4, 8)], score="exact").rows[0].score["int8"] > 0
    save_quantized(other, applied, tmp_path, plan=plan)
    x = torch.randn(4, 8)
    assert torch.equal(load_quantized(lambda: nn.Linear(8, 3), tmp_path)[0](x), other(x))


def test_a_layer_that_a_list_holds_too_is_said() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 3)
            self.order = [self.project]

        def forward(self, x: Tensor) -> Tensor:
            return self.order[0](x)  # type: ignore[no-any-return]

    model = Listed().eval()
    other, applied = apply_precision(model, uniform_plan(model))
    assert "calls through order reach the full-precision layer" in applied.rows[0].reason
    assert distance(other, model, torch.randn(3, 8)) < 1e-6
