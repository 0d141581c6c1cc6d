"""Sparse attention on CUDA: errors and claims, which need no CUDA device to be tested."""

from __future__ import annotations

import pytest
import torch

from benchmarks.lib.attention import cuda


def test_error_against_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CHECK_LENGTH", 96)
    setting = cuda.Setting(window=32, num_global=4, width=16)
    found = cuda.error("torch sliding", setting, True, device="cpu", dtype=torch.float32)["relative_error"]
    assert set(found["sparse"]) == {"output", "query", "key", "value"}
    assert all(value < 1e-5 for kind in found.values() for value in kind.values())
    coarse = cuda.error("torch sliding", setting, True, device="cpu", dtype=torch.bfloat16)["relative_error"]
    assert 1e-4 < coarse["sparse"]["output"] < 0.1


def test_claims_on_cuda_are_of_the_best_that_has_global_nodes() -> None:
    cell = {"tokens": 2048, "width": 32, "causal": True, "passes": "forward"}
    cells = [
        cell | {"times_faster": {"torch block": 2.0, "triton sliding": 3.3, cuda.FLEX: 9.0}},
        cell | {"width": 64, "times_faster": {}},
    ]
    found = {claim["claim"]: claim for claim in cuda.claims(cells)}
    checked = found["CUDA, causal, forward, 2,048 tokens: at least 3.2 times faster than flash attention"]
    assert (checked["figure"], checked["holds"]) == (3.3, "met")
    assert {claim["holds"] for claim in found.values() if claim is not checked} == {"not measured"}
