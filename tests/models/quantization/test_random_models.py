"""Random small models of all ingredients, quantized at random, against the full-precision model."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils as hook_form
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.quantization import PrecisionPlan, apply_precision, load_quantized, save_quantized, uniform_plan
from tests.models.quantization.kinds import BACKENDS, DTYPES, PRECISIONS

pytestmark = [pytest.mark.usefixtures("every_precision"), pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")]
COMPUTE = (
    hook_form.weight_norm,
    hook_form.spectral_norm,
    parametrizations.weight_norm,
    lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
)
HOOK = (
    lambda layer: layer.register_forward_hook(lambda *given: given[-1] * 1.5),
    lambda layer: layer.register_forward_hook(lambda *given: given[-1] - 1, prepend=True, always_call=True),
    lambda layer: layer.register_forward_pre_hook(lambda _, args: (args[0] + 0.25,)),
    lambda layer: layer.register_forward_pre_hook(lambda _, args, keywords: ((2 * args[0],), keywords), with_kwargs=True, prepend=True),
)


class Random(nn.Module):
    """An embedding, an encoder or neither, then linear layers; ties, computed weights and hooks by chance."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = draw = random.Random(seed)
        torch.manual_seed(seed)
        self.dtype, self.width, self.codes = draw.choice(DTYPES), draw.choice([1, 4, 8, 17]), draw.choice([3, 9])
        kind = draw.choice(["embedding", "table", "none"])
        self.embed = nn.Embedding(self.codes, self.width) if kind == "embedding" else None
        self.table = PiecewiseLinearEncoder([[0.0, 1.0, 2.0], [0.0, 5.0]], self.width) if kind == "table" else None
        self.layers = nn.ModuleList(nn.Linear(self.width, self.width, bias=draw.random() < 0.7) for _ in range(draw.randint(2, 4)))
        self.out = nn.Linear(self.width, self.codes, bias=draw.random() < 0.5)
        self._tie(draw.choice(["none", "embedding", "memory", "weight", "module", "transposed", "bias"]))
        self.to(self.dtype)
        for layer in [*self.layers, self.out]:
            if draw.random() < 0.3 and "weight" in layer._parameters and not layer._forward_pre_hooks:
                draw.choice(COMPUTE)(layer)
            for hook in draw.sample(HOOK, draw.choice([0, 0, 1, 2])):
                hook(layer)

    def _tie(self, kind: str) -> None:
        first, second = self.layers[0], self.layers[1]
        if kind == "embedding" and self.embed is not None:
            self.out.weight = self.embed.weight
        elif kind == "memory" and self.embed is not None:
            self.out.weight = nn.Parameter(self.embed.weight.data)
        elif kind == "weight":
            second.weight = first.weight
        elif kind == "module":
            self.layers[1] = first
        elif kind == "transposed":
            second.weight = nn.Parameter(first.weight.data.t())
        elif kind == "bias" and first.bias is not None:
            second.bias = first.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map numbers (R, n) or codes (R, 2) to (R, ..., codes)."""
        hidden = x[..., : self.width]
        if self.embed is not None:
            hidden = self.embed(x)
        elif self.table is not None:
            hidden = self.table(x[:, :2], x[:, :2].isfinite())
        for layer in self.layers:
            hidden = layer(hidden).clamp(-4, 4)
        return self.out(hidden)  # type: ignore[no-any-return]

    def data(self, rows: int) -> Tensor:
        """Draw an input."""
        if self.embed is not None:
            return torch.randint(0, self.codes, (rows, 2))
        return (2 * torch.randn(rows, max(self.width, 2))).to(self.dtype)


@pytest.mark.parametrize("seed", range(60))
def test_a_random_model(seed: int, tmp_path: Path) -> None:
    model = Random(seed)
    draw = model.draw
    if draw.random() < 0.5:
        model(model.data(3))
    before = copy.deepcopy(model.state_dict())
    plan = uniform_plan(model, draw.choice(PRECISIONS))
    if draw.random() < 0.5:
        plan = PrecisionPlan({name: draw.choice(PRECISIONS) for name in plan.precision}, plan.fingerprint)
    backend: Any = draw.choice(BACKENDS) if draw.random() < 0.3 else "torch"
    other, applied = apply_precision(model, plan, backend)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    exact = {row.got for row in applied.rows} == {"fp32"} and model.dtype in (torch.float32, torch.float64)
    model.eval()
    x = model.data(20)
    with torch.no_grad():
        found = other(x)
        for rows in (0, 20):
            expected = model(x[:rows])
            assert other(x[:rows]).shape == expected.shape
            assert found.dtype == expected.dtype
        difference = (found.double() - expected.double()).abs().max() / (expected.double().abs().max() + 0.2)
        assert difference < (1e-4 if exact else 0.12)
        assert torch.equal(copy.deepcopy(other)(x), found)
        converted = copy.deepcopy(other).double()(x.double() if x.is_floating_point() else x)
        assert (converted - found.double()).abs().max() < 0.12 * (found.double().abs().max() + 0.2)
        if any(row.backend != "torch" for row in applied.rows):
            return
        for row in (0, 7):
            assert torch.equal(other(x[row : row + 1]), found[row : row + 1])
        save_quantized(other, applied, tmp_path, plan=plan)
        assert torch.equal(load_quantized(lambda: Random(seed), tmp_path)[0](x), found)
