"""Linear layers in FP8; where torch can't multiply in FP8 on this CPU, the product is replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.lib.gpu_fp8 import Fp8Linear, in_fp8, rounded_rows


def exact_product(first: Tensor, second: Tensor, *, scale_a: Tensor, scale_b: Tensor, out_dtype: torch.dtype, **_: Any) -> Tensor:
    """``torch._scaled_mm`` in float64, with the shapes that it demands."""
    assert first.dtype == second.dtype == torch.float8_e4m3fn
    assert second.stride(0) == 1, "column-major"
    assert scale_a.shape == (len(first), 1) and scale_b.shape == (1, second.shape[1])
    assert scale_a.is_contiguous() and scale_b.is_contiguous() and scale_a.dtype == scale_b.dtype == torch.float32
    return ((first.double() @ second.double()) * scale_a * scale_b).to(out_dtype)


def test_rows_are_rounded_each_by_its_own_scale() -> None:
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-3], [1.0], [1e3], [1.0], [0.0]])
    low, scale = rounded_rows(rows)
    error = (low.float() * scale - rows).abs()
    assert (error <= rows.abs() / 16 + scale * 2**-10).all()
    assert torch.equal(low[4].float(), torch.zeros(64))


def test_the_layer_is_near_the_float32_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_scaled_mm", exact_product)
    torch.manual_seed(0)
    for bias in (True, False):
        linear, x = nn.Linear(48, 32, bias=bias), torch.randn(2, 3, 48)
        for dtype in (torch.float32, torch.bfloat16):
            got = Fp8Linear(linear)(x.to(dtype))
            assert got.shape == (2, 3, 32) and got.dtype == dtype
            assert torch.nn.functional.cosine_similarity(got.float().flatten(), linear(x).flatten(), dim=0) > 0.998


def test_layers_of_other_sizes_are_left() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    made = in_fp8(model)
    assert [type(layer).__name__ for layer in made] == ["Fp8Linear", "ReLU", "Linear"]
    assert isinstance(model[0], nn.Linear), "the model is not changed"
