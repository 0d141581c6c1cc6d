"""The native kernel: every instruction set against float64, the same result for any number of threads, a
torch operator, and installation without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balancer.errors import InputError
from balancer.models.attention import native, reference
from balancer.models.attention.functional import sparse_attention
from balancer.models.attention.layout import Layout
from balancer.models.attention.selection import select_globals

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(native.absence() is not None, reason=f"the native kernel is not here: {native.absence()}")


def problem(
    n: int, d: int, k: int, layout: Layout, *, gated: bool, padded: bool, seed: int = 0
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Query, key, value and gate as leaves (the gate may be missing), index and padding; the second sequence
    may be padding only."""
    generator = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(2, n, 3, d, generator=generator) for _ in range(3)]
    if gated:
        leaves.append(-torch.rand(2, n, generator=generator))
    padding = torch.rand(2, n, generator=generator) < 0.25 if padded else None
    if padding is not None and seed % 2:
        padding[1] = True
    score = torch.randn(2, n, generator=generator).round(decimals=1)
    index = select_globals(score, k, causal=layout.causal, chunk=layout.chunk, padding=padding)
    return leaves, index, padding


@settings(max_examples=80)
@given(
    n=st.integers(1, 90),
    d=st.sampled_from([1, 7, 16, 20, 32, 64]),
    k=st.sampled_from([0, 1, 3, 8, 17, 100]),
    window=st.integers(1, 40),
    chunk=st.integers(1, 40),
    causal=st.booleans(),
    mode=st.sampled_from(["sliding", "block"]),
    gated=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 3),
)
def test_equals_float64_in_every_instruction_set(
    n: int, d: int, k: int, window: int, chunk: int, causal: bool, mode: str, gated: bool, padded: bool, seed: int
) -> None:
    layout = Layout(window, min(chunk, window), causal, mode)  # type: ignore[arg-type]
    leaves, index, padding = problem(n, d, k, layout, gated=gated, padded=padded, seed=seed)
    exact = [x.double().requires_grad_() for x in leaves]
    expected = reference.run(*exact[:3], exact[3] if gated else None, index, padding, layout)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    expected.backward(upstream.double())
    best = native.instruction_set()
    assert best is not None
    for isa in range(best + 1):
        out, lse = torch.full_like(leaves[0], 7.0), torch.empty(2, 3, n)
        knobs = (layout.window, layout.chunk, layout.causal, layout.mode == "block")
        gate = leaves[3] if gated else None
        native._call(*leaves[:3], gate, index, padding, *knobs, out, lse, isa=isa)
        torch.testing.assert_close(out.double(), expected.detach(), atol=3e-6, rtol=0)
        slopes = [torch.full_like(leaves[0], 7.0) for _ in range(3)]
        dgate = torch.zeros((2, 3, n) if gated else (0, 0, 0))
        native._call(*leaves[:3], gate, index, padding, *knobs, out, lse, upstream, *slopes, dgate, isa=isa)
        given_slopes = [*slopes, *([dgate.sum(1)] if gated else [])]
        for own, wanted in zip(given_slopes, exact, strict=True):
            assert wanted.grad is not None or wanted is exact[-1]
            grad = torch.zeros_like(wanted) if wanted.grad is None else wanted.grad
            # Relative to the largest: sums that cancel have no digits of their own.
            assert float((own.double() - grad).abs().max()) <= 5e-6 * max(1.0, float(grad.abs().max()))


LAYOUT = Layout(16, 8)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    leaves, index, padding = problem(200, 32, 4, LAYOUT, gated=True, padded=True)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            own = [x.clone().requires_grad_() for x in leaves]
            out = native.run(*own[:3], own[3], index, padding, LAYOUT)
            out.square().sum().backward()
            results.append([out.detach(), *(x.grad for x in own)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))  # type: ignore[arg-type]


def test_any_strides() -> None:
    layout = LAYOUT
    leaves, index, _ = problem(50, 16, 4, layout, gated=False, padded=False)
    plain = native.run(*leaves, None, index, None, layout)
    fused = torch.stack(leaves, 3).flatten(3)  # (B, n, H, 3 d), as one linear gives them
    assert torch.equal(native.run(*fused.chunk(3, -1), None, index, None, layout), plain)
    turned = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in leaves]  # channels apart
    assert turned[0].stride(-1) != 1
    assert torch.equal(native.run(*turned, None, index, None, layout), plain)
    one = leaves[0][:, :1].expand(-1, 50, -1, -1)
    assert torch.equal(
        native.run(one, *leaves[1:], None, index, None, layout), native.run(one.clone(), *leaves[1:], None, index, None, layout)
    )


def test_nan_stays_in_its_sequence_and_large_logits_stay_finite() -> None:
    leaves, index, _ = problem(60, 16, 4, LAYOUT, gated=False, padded=False)
    before = native.run(*leaves, None, index, None, LAYOUT)
    leaves[1][0, 30, 1, 2] = torch.nan
    after = native.run(*leaves, None, index, None, LAYOUT)
    assert torch.equal(after[1], before[1])
    assert after[0, 30:].isnan().any()
    assert torch.equal(after[0, :30], before[0, :30])
    huge = [100 * x for x in leaves[:2]]
    huge[1] = huge[1].nan_to_num()
    assert native.run(*huge, leaves[2], None, index, None, LAYOUT).isfinite().all()


@pytest.mark.parametrize("gated", [False, True])
def test_is_an_operator_that_torch_can_check_and_trace(gated: bool) -> None:
    leaves, index, padding = problem(20, 8, 2, Layout(8, 8), gated=gated, padded=True)
    own = [x.requires_grad_() for x in leaves]
    gate = own[3] if gated else None
    arguments = (*own[:3], gate, index, padding, 8, 8, True, False)
    torch.library.opcheck(torch.ops.balancer.sparse_attention_native.default, arguments)

    def attend(query: Tensor, key: Tensor, value: Tensor, score: Tensor) -> Tensor:
        return sparse_attention(query, key, value, score, window=8, num_global=2, backend="native") * 2

    score = torch.randn(2, 20)
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*own[:3], score), attend(*own[:3], score))
    compiled(*own[:3], score).sum().backward()


def test_a_variable_restricts_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    unmemorized = native.instruction_set.__wrapped__
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "portable")
    assert unmemorized() == 0
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "sse9")
    with pytest.raises(InputError, match="sse9"):
        unmemorized()


@pytest.mark.parametrize("isa", range((native.instruction_set() or 0) + 1))
def test_large_results(isa: int) -> None:
    # Large enough for large pages, with a head of a width that is no constant of the kernel.
    leaves, index, _ = problem(15_000, 24, 3, LAYOUT, gated=False, padded=False)
    out, lse = torch.full_like(leaves[0], 7.0), torch.empty(2, 3, 15_000)
    native._call(*leaves, None, index, None, 16, 8, True, False, out, lse, isa=isa)
    last = [x[:, -40:] for x in leaves]
    none = index.new_full((2, 5, 0), -1)
    wanted = reference.run(*last, None, none, None, LAYOUT)
    assert not torch.equal(out[:, -8:], wanted[:, -8:])  # global nodes count
    native._call(*leaves, None, index[..., :0], None, 16, 8, True, False, out, lse, isa=isa)
    torch.testing.assert_close(out[:, -8:], wanted[:, -8:], atol=3e-6, rtol=0)


def test_refuses_in_words() -> None:
    layout = Layout()
    assert "float32" in str(native.refuses(torch.zeros(1, 1, 1, 8, dtype=torch.float64), layout))
    assert "256" in str(native.refuses(torch.zeros(1, 1, 1, 300), layout))
    assert native.refuses(torch.zeros(1, 1, 1, 8), layout) is None


def test_without_the_library_the_rest_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "STEM", "_no_such_library")
    library, absence = native._load()
    assert library is None
    assert "compiler" in str(absence)
    monkeypatch.setattr(native, "_ABSENCE", absence)
    query = torch.randn(1, 40, 2, 8)
    assert native.refuses(query, Layout()) == absence
    assert sparse_attention(query, query, query, torch.randn(1, 40), window=8).shape == query.shape


def test_a_library_that_is_another_one_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    (tmp_path / f"{native.STEM}.so").write_bytes(b"not a library")
    library, absence = native._load()
    assert library is None
    assert "install balancer again" in str(absence)


@pytest.mark.slow
def test_installs_where_there_is_no_compiler(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout: the files of the project can't be listed")
    for name in tracked:
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/", "docs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    environment = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--target",
        str(tmp_path / "out"),
        str(source),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    installed = tmp_path / "out" / "balancer" / "models" / "attention"
    assert (installed / "native.py").is_file()
    assert not list(installed.glob("_native_attention*.so"))
