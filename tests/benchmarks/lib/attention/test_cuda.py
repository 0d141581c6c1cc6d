"""Sparse attention on CUDA: errors and claims, which need no CUDA device to be tested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from benchmarks.lib.attention import cuda
from benchmarks.lib.gpu_timing import Ready


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


@pytest.mark.parametrize(("tokens", "window"), [(512, 64), (512, 200), (384, 1), (256, 1000), (128, 2)])
@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_of_flex_attention_is_that_of_torch(tokens: int, window: int, causal: bool) -> None:
    def inside(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        if causal:
            return (query - key >= 0) & (query - key < window)
        return (query - key <= window // 2) & (key - query <= (window - 1) // 2)

    # Torch's mask lists blocks without any masked pair apart.
    wanted = create_block_mask(inside, None, None, tokens, tokens, device="cpu", separate_full_blocks=False)
    found = cuda.window_mask(tokens, window, causal=causal, device="cpu")
    assert torch.equal(found.to_dense(), wanted.to_dense())
    at = torch.arange(tokens)
    zero = torch.zeros(1, dtype=torch.int64)
    assert torch.equal(found.mask_mod(zero, zero, at[:, None], at), inside(zero, zero, at[:, None], at))


def test_what_failed_is_not_tried_again_unless_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def ready(makers: Mapping[str, Any], _device: str) -> Ready:
        tried.append(list(makers))
        reasons = {"triton block": "UnsupportedError: no", "torch block": "OutOfMemoryError: too large"}
        return Ready(reasons={name: reason for name, reason in reasons.items() if name in makers})

    monkeypatch.setattr(cuda, "ready", ready)
    monkeypatch.setattr(cuda, "error", lambda name, *_, **__: {"contender": name})
    kept: list[int] = []
    chosen = [cuda.Combination(n, True, passes, flex=n == 64) for passes in ("forward", "forward_backward") for n in (64, 128)]
    found = cuda.measure(chosen, cuda.Run(device="cpu", keep=lambda part: kept.append(len(part["cells"]))))
    every = ["dense", *cuda.CONTENDERS]
    fewer = [name for name in every if name != "triton block"]
    assert tried == [[*every, cuda.FLEX], fewer, [*every, cuda.FLEX], fewer]
    assert kept == [1, 2, 3, 4, 4]
    assert {each["contender"] for each in found["errors"]} == {"torch block", "torch sliding", "triton sliding"}
    assert [each["reason"] for each in found["failed"]].count("UnsupportedError: no") == 2
    late = cuda.measure(chosen, cuda.Run(device="cpu", limit=-1.0))
    assert (late["cells"], late["left_out"]) == ([], 4 + 8)
    assert {claim["holds"] for claim in late["claims"]} == {"not measured"}
