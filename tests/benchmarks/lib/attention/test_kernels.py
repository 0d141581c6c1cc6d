"""Kernels of sparse attention on the CPU: what the benchmark computes from times, and its inputs."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from balancer.errors import UnsupportedError
from balancer.models.attention import sparse_attention
from benchmarks.lib.attention import kernels


def power_law(exponent: float) -> list[dict[str, Any]]:
    return [
        {"tokens": n, "causal": True, "passes": "forward", "milliseconds": {"torch block": 3.0 * (n if n >= 1024 else 1e6) ** exponent}}
        for n in (512, 1024, 2048, 4096)
    ]


@pytest.mark.parametrize(("exponent", "holds"), [(1.0, "met"), (1.5, "not met")])
def test_growth_is_the_exponent_from_1024_tokens_on(exponent: float, holds: str) -> None:
    (found,) = kernels.growth(power_law(exponent))
    assert found["exponent"] == pytest.approx(exponent)
    assert found["tokens"] == [1024, 4096]
    claims = {claim["claim"]: claim["holds"] for claim in kernels.claims([], [found])}
    assert claims["torch block, causal, forward: time grows at most as tokens ** 1.1"] == holds
    assert claims["native sliding, causal, forward: time grows at most as tokens ** 1.1"] == "not measured"


def test_claims_on_speed() -> None:
    cell = {"tokens": 512, "causal": True, "passes": "forward", "times_faster": {"torch block": 2.0, "native sliding": 4.9}}
    other_way = cell | {"causal": False, "times_faster": {"torch block": 0.1, "native sliding": 99.0}}
    found = {claim["claim"]: claim["holds"] for claim in kernels.claims([other_way, cell], [])}
    assert found["torch block, causal, forward, 512 tokens: at least 2 times faster than dense"] == "met"
    assert found["native sliding, causal, forward, 512 tokens: at least 5 times faster than dense"] == "not met"
    assert found["native sliding, causal, forward + backward, 512 tokens: at least 7 times faster than dense"] == "not measured"


def test_claims_on_speed_by_instruction_set() -> None:
    cell = {"tokens": 512, "causal": True, "passes": "forward", "times_faster": {"native sliding": 4.5}}
    found = {name: {claim["claim"]: claim["holds"] for claim in kernels.claims([cell], [], name)} for name in kernels.CLAIMS}
    assert found["avx512"]["native sliding, causal, forward, 512 tokens: at least 5 times faster than dense"] == "not met"
    assert found["avx2"]["native sliding, causal, forward, 512 tokens: at least 4 times faster than dense"] == "met"
    assert not any("native" in name and "faster" in name for name in found["portable"])


def test_kernels_time_what_can_work_and_say_why_the_rest_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def attend(*tensors: torch.Tensor, backend: str, **given: Any) -> torch.Tensor:
        if backend == "native":
            raise UnsupportedError("no compiler is there")
        asked.append(given["causal"])
        return sparse_attention(*tensors, backend="reference", **given)

    monkeypatch.setattr(kernels, "sparse_attention", attend)
    before = torch.get_num_threads()
    found = kernels.kernels((64,), (128,), (), budget=0.0)
    torch.set_num_threads(before)
    assert found["refused"] == {"native block": "no compiler is there", "native sliding": "no compiler is there"}
    assert {tuple(cell["milliseconds"]) for cell in found["cells"] if cell["tokens"] == 64} == {("dense", "torch block", "torch sliding")}
    assert all("times_faster" not in cell for cell in found["cells"] if cell["tokens"] == 128)
    assert len(found["cells"]) == 8
    assert {True, False} == set(asked)


def test_contenders_attend_to_the_same_inputs() -> None:
    setting = kernels.Setting(batch=2, window=16, num_global=2)
    first, second = setting.inputs(40), setting.inputs(40)
    assert all(torch.equal(a, b) for a, b in zip([*first[0], *first[1:]], [*second[0], *second[1:]], strict=True))
    assert not torch.equal(first[0][0], first[0][1])
    # A window of the whole length is dense attention.
    (query, key, value), _, score = first
    whole = sparse_attention(query, key, value, score, window=40, num_global=2, backend="reference")
    assert torch.allclose(whole, kernels.dense(query, key, value, causal=True), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a resident set is read from /proc")
def test_memory_of_a_child_process() -> None:
    found = kernels.memory(["dense"], kernels.Setting(), 4096, "forward_backward")["mib"]["dense"]
    # Output and three gradients of 8 * 4096 * 128 numbers are 64 MiB; a matrix of all pairs would be
    # 2 GiB for each head.
    assert found is None or 50 < found < 500
