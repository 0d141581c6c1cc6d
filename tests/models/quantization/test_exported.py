"""Quantized models exported and compiled with any number of rows, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from balancer.models.quantization import modules
from balancer.models.quantization.modules import rowwise_linear
from balancer.models.quantization.tables import int8_bags
from tests.models.quantization.kinds import KINDS, PRECISIONS, quantized

pytestmark = pytest.mark.usefixtures("every_precision")


@pytest.mark.parametrize("grouped", [False, True], ids=["as here", "grouped"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_model_takes_any_number_of_rows(kind: str, precision: Any, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if grouped:
        if (kind, precision) != ("linear", "fp32"):
            pytest.skip("only this layer multiplies rows in groups")
        monkeypatch.setattr(modules, "_ONE_KERNEL", False)
    model, data = quantized(KINDS[kind].make(), precision), KINDS[kind].data
    with torch.no_grad():
        exported = torch.export.export(model, (data(4),), dynamic_shapes=({0: Dim("rows")},)).module()
        for rows in (1, 2, 33, 200):
            x = data(rows)
            assert torch.equal(exported(x), model(x))
        x = KINDS[kind].data(1)[:0]
        assert exported(x).shape == model(x).shape


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_model_takes_any_number_of_rows(kind: str, precision: Any) -> None:
    torch.compiler.reset()
    model, data = quantized(KINDS[kind].make(), precision), KINDS[kind].data
    compiled = torch.compile(model, dynamic=True, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for rows in (4, 1, 33, 0):
            x = data(max(rows, 1))[:rows]
            assert torch.equal(compiled(x), model(x))
    if kind == "linear":
        x = data(5).requires_grad_()
        gradients = [torch.autograd.grad(each(x).sum(), x)[0] for each in (model, compiled)]
        torch.testing.assert_close(*gradients)


def test_exported_hooks_act() -> None:
    model = nn.Sequential(nn.Linear(8, 3)).eval()
    model[0].register_forward_hook(lambda *given: given[-1] + 100)
    other = quantized(model, "int8")
    exported = torch.export.export(other, (torch.randn(4, 8),), dynamic_shapes=({0: Dim("rows")},)).module()
    x = torch.randn(7, 8)
    assert torch.equal(exported(x), other(x))


def test_the_operators_are_ones_that_torch_can_trace() -> None:
    x = torch.randn(3, 12, requires_grad=True)
    torch.library.opcheck(rowwise_linear, (x, torch.randn(5, 12), torch.randn(5)), raise_exception=True)
    packed = torch.randint(0, 255, (6, 16), dtype=torch.uint8)
    torch.library.opcheck(int8_bags, (torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2), packed), raise_exception=True)
