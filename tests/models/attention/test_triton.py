"""The Triton kernels against masked dense attention in float64: in Triton's interpreter on CPU tensors, and
the same on CUDA.

Whether kernels are interpreted is settled when Triton is first imported, for the whole process,
`torch.compile` included. So one test here runs this
file once more in a process of its own, with TRITON_INTERPRET=1; there the tests marked `on_device` run on the
CPU. Elsewhere they need CUDA.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balancer.errors import UnsupportedError
from balancer.models.attention import Layout, reference, select_globals, sparse_attention, triton_backend
from balancer.models.attention.layout import Mode
from balancer.models.attention.triton_backend import INSTALLED, INTERPRETED

pytestmark = pytest.mark.skipif(not INSTALLED, reason="Triton is not installed")
DEVICE = "cpu" if INTERPRETED else "cuda"
LAYOUTS: list[tuple[bool, Mode]] = [(True, "sliding"), (True, "block"), (False, "sliding"), (False, "block")]
# NaN met on purpose: the interpreter computes in NumPy, which says so.
nan_is_meant = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def on_device(test: Callable[..., None]) -> Callable[..., None]:
    """A test of the kernels: in the interpreter's process as it is, elsewhere for CUDA alone."""
    return test if INTERPRETED else pytest.mark.gpu(test)


class Case:
    """Random inputs of one call, and its results beside the reference's."""

    def __init__(
        self,
        batch: int,
        length: int,
        heads: int,
        dim: int,
        layout: Layout,
        num_global: int,
        *,
        padded: bool = False,
        gated: bool = False,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        shape = (batch, length, heads, dim)
        self.query, self.key, self.value, self.out_grad = (torch.randn(shape, generator=draw).to(DEVICE, dtype) for _ in range(4))
        self.layout = layout
        self.padding = (torch.rand(batch, length, generator=draw) < 0.3).to(DEVICE) if padded else None
        self.gate = torch.randn(batch, length, generator=draw).to(DEVICE) if gated else None
        score = torch.randn(batch, length, generator=draw).to(DEVICE)
        self.index = select_globals(score, num_global, causal=layout.causal, chunk=layout.chunk, padding=self.padding)

    def results(self, run: Callable[..., Tensor] = triton_backend.run, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The output and the gradients of query, key, value and, where there is one, of the gate."""
        given = [x for x in (self.query, self.key, self.value, self.gate) if x is not None]
        given = [x.detach().to(dtype or x.dtype).requires_grad_() for x in given]
        gate = None if self.gate is None else given[3]
        out = run(*given[:3], gate, self.index, self.padding, self.layout)
        grads = torch.autograd.grad(out, given, self.out_grad.to(out.dtype), allow_unused=True)
        return [out.detach(), *(torch.zeros_like(x) if grad is None else grad for x, grad in zip(given, grads, strict=True))]

    def check(self, forward: float = 3e-6, backward: float = 5e-6) -> None:
        """Check the absolute error of the output, and the error of each gradient.

        The error of a gradient is relative to its largest number, with :meth:`rounding` as the floor.
        """
        names = ("out", "query", "key", "value", "gate")
        floor = self.rounding()
        for name, got, wanted in zip(names, self.results(), self.results(reference.run, torch.float64), strict=False):
            error = (got.double() - wanted).abs().max().item()
            limit = forward if name == "out" else max(backward * wanted.abs().max().item(), floor.get(name, 0.0))
            assert error <= limit, f"{name}: {error}, allowed {limit}"

    def rounding(self) -> dict[str, float]:
        """What float32 rounding can leave of the gradients of query and key.

        Both gradients are weighted sums of differences: (output gradient times value) minus (output gradient
        times output). For a query that sees one key only, the two products are equal and the exact gradient
        is
        zero, so no relative error exists. Each product is a sum of d terms in float32, and processors add the
        terms in different orders. The floor allows each product an error of one unit roundoff, 2^-24, of the
        sum of the absolute values of its terms.
        """
        query, key, value, out_grad = (x.double().transpose(1, 2) for x in (self.query, self.key, self.value, self.out_grad))
        scale = query.shape[-1] ** -0.5
        gate = None if self.gate is None else self.gate.double()
        bias = reference.key_bias(gate, self.index, self.padding, self.layout, query.shape[2])[:, None]
        weight = (query @ key.mT * scale + bias).softmax(-1).nan_to_num(0.0)  # NaN where a query sees nothing
        if self.padding is not None:
            weight = weight.masked_fill(self.padding[:, None, :, None], 0.0)
        flow = out_grad.abs() @ value.abs().mT
        terms = scale * weight * (flow + (weight * flow).sum(-1, keepdim=True))
        roundings = 2 * 2.0**-24
        return {"query": roundings * (terms @ key.abs()).max().item(), "key": roundings * (terms.mT @ query.abs()).max().item()}


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    if INTERPRETED:
        pytest.skip("this is the interpreter's process")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(Path(__file__).resolve())],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"in the interpreter:\n{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout


# Against the reference
# --------------------------------------------------------------------------------------------------


@on_device
@pytest.mark.parametrize(
    ("length", "dim", "window", "chunk", "num_global", "padded", "gated"),
    [
        pytest.param(75, 20, 64, 7, 3, True, True, id="chunks that straddle tiles"),
        pytest.param(100, 16, 24, 24, 5, False, True, id="chunk is window"),
        pytest.param(37, 16, 1, 1, 2, False, True, id="a window of one"),
        pytest.param(34, 8, 16, 5, 9, True, False, id="more slots than a tile gathers"),
        pytest.param(40, 16, 9, 9, 0, True, True, id="no global nodes"),
        pytest.param(20, 33, 100, 50, 30, True, True, id="all in one window"),
        pytest.param(1, 16, 4, 4, 2, False, False, id="one token"),
    ],
)
@pytest.mark.parametrize(("causal", "mode"), LAYOUTS)
def test_equals_the_reference(
    causal: bool, mode: Mode, length: int, dim: int, window: int, chunk: int, num_global: int, padded: bool, gated: bool
) -> None:
    layout = Layout(window, chunk, causal, mode)
    Case(1, length, 2 if length < 64 else 1, dim, layout, num_global, padded=padded, gated=gated).check()


@on_device
@settings(max_examples=6)
@given(st.data())
def test_any_sizes(data: st.DataObject) -> None:
    window = data.draw(st.integers(1, 40))
    layout = Layout(window, data.draw(st.integers(1, window)), data.draw(st.booleans()), data.draw(st.sampled_from(["sliding", "block"])))
    length, dim, num_global = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20)), data.draw(st.integers(0, 10))
    Case(2, length, 1, dim, layout, num_global, padded=data.draw(st.booleans()), gated=data.draw(st.booleans())).check()


@on_device
@pytest.mark.parametrize("causal", [True, False])
def test_many_slots_of_one_key(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "SEGMENT", 3)
    case = Case(1, 90, 1, 16, Layout(8, 3, causal), 3, gated=True)
    if causal:
        case.index[:, 5:] = torch.tensor([5, 7, -1])  # the same nodes in all later chunks
    case.check()


@on_device
def test_half_precision() -> None:
    Case(1, 60, 2, 32, Layout(24, 24), 4, padded=True, gated=True, dtype=torch.float16).check(4e-3, 4e-3)


@on_device
def test_wide_heads() -> None:
    Case(1, 40, 1, 128, Layout(20, 20), 4).check()


@on_device
def test_strides_as_they_come() -> None:
    case = Case(1, 18, 2, 8, Layout(9, 4), 2)
    packed = torch.randn(1, 18, 3 * 2 * 8, device=DEVICE)
    case.query, case.key, case.value = (x.unflatten(-1, (2, 8)) for x in packed.chunk(3, -1))
    assert not case.key.is_contiguous()
    case.check()
    case.key, case.value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.key, case.value))
    case.out_grad = torch.ones(1, 1, 1, 1, device=DEVICE).expand_as(case.query)
    case.check()
    case.query = case.query.mT.contiguous().mT
    assert case.query.stride(-1) != 1
    case.check()


# Padding, NaN, order
# ----------------------------------------------------------------------------------------------------


@on_device
@nan_is_meant
def test_what_stands_in_padding_is_never_looked_at() -> None:
    case = Case(2, 24, 1, 16, Layout(12, 12), 3, padded=True, gated=True)
    assert case.padding is not None
    case.padding[1] = True
    clean = case.results()
    for tensor in (case.query, case.key, case.value):
        tensor[case.padding] = torch.nan
    for name, before, after in zip("oqkvg", clean, case.results(), strict=True):
        assert torch.equal(before, after), name
        assert not after[1].any(), name
    assert not clean[0][case.padding].any()


@on_device
@nan_is_meant
@pytest.mark.parametrize("place", ["query", "key", "value", "gate"])
def test_nan_stays_in_its_sequence(place: str) -> None:
    case = Case(3, 16, 1, 16, Layout(6, 6), 2, gated=True)
    clean = case.results()
    getattr(case, place)[1, int(case.index[1, -1, 0])] = torch.nan
    spoilt = case.results()
    assert spoilt[0][1].isnan().any()
    for before, after in zip(clean, spoilt, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])


@on_device
@nan_is_meant
@pytest.mark.parametrize(("place", "number"), [("query", math.nan), ("key", math.inf), ("value", math.nan), ("gate", math.inf)])
@pytest.mark.parametrize(("causal", "mode"), [LAYOUTS[0], LAYOUTS[3]])
def test_a_number_that_is_not_finite_reaches_only_what_sees_it(causal: bool, mode: Mode, place: str, number: float) -> None:
    case = Case(2, 40, 1, 16, Layout(12, 5, causal, mode), 3, gated=True, padded=True)
    tensor = getattr(case, place)
    tensor[(0, 21) if place == "gate" else (0, 21, 0, 3)] = number
    (out, *_), (wanted, *_) = case.results(), case.results(reference.run, torch.float64)
    assert torch.equal(out.isnan(), wanted.isnan())
    # Gradients from the other outputs are finite and those of the reference.
    case.out_grad = case.out_grad.masked_fill(out.isnan(), 0)
    for own, expected in zip(case.results()[1:], case.results(reference.run, torch.float64)[1:], strict=True):
        torch.testing.assert_close(own.double(), expected, atol=2e-5, rtol=1e-5)


@on_device
def test_torch_func() -> None:
    case = Case(4, 24, 1, 16, Layout(8, 8), 2, gated=True)

    def loss(query: Tensor, key: Tensor, index: Tensor) -> Tensor:
        return triton_backend.run(query[None], key[None], case.value[:1], None, index[None], None, case.layout).square().sum()

    each = torch.func.vmap(torch.func.grad(loss))(case.query, case.key, case.index)
    for row in range(4):
        leaf = case.query[row].clone().requires_grad_()
        (wanted,) = torch.autograd.grad(loss(leaf, case.key[row], case.index[row]), leaf)
        torch.testing.assert_close(each[row], wanted, atol=1e-6, rtol=1e-5)
    leaf = case.query.clone().requires_grad_()
    first = torch.autograd.grad(
        triton_backend.run(leaf, case.key, case.value, None, case.index, None, case.layout).square().sum(), leaf, create_graph=True
    )[0]
    with pytest.raises(UnsupportedError, match="second derivatives"):
        first.sum().backward()


@on_device
def test_no_output_depends_on_a_later_token() -> None:
    case = Case(1, 50, 1, 16, Layout(16, 5), 3)
    before = case.results()[0]
    for start in (1, 16, 32, 47):
        moved = Case(1, 50, 1, 16, Layout(16, 5), 3)
        for tensor in (moved.query, moved.key, moved.value):
            tensor[:, start:] += 5
        after = moved.results()[0]
        assert torch.equal(after[:, :start], before[:, :start])
        assert not torch.equal(after[:, start], before[:, start])


@on_device
def test_results_repeat_to_the_bit() -> None:
    case = Case(1, 60, 2, 16, Layout(16, 4), 3, gated=True)
    for first, second in zip(case.results(), case.results(), strict=True):
        assert torch.equal(first, second)


@on_device
@pytest.mark.parametrize("shape", [(0, 5, 1, 8), (2, 0, 1, 8), (2, 5, 0, 8)])
def test_nothing_to_do(shape: tuple[int, int, int, int]) -> None:
    query = torch.zeros(shape, device=DEVICE, requires_grad=True)
    index = torch.full((shape[0], Layout().num_chunks(shape[1]), 2), -1, device=DEVICE)
    out = triton_backend.run(query, query, query, None, index, None, Layout())
    out.sum().backward()
    assert out.shape == shape and query.grad is not None


# As operators of torch
# --------------------------------------------------------------------------------------------------


@on_device
@pytest.mark.parametrize("gated", [True, False])
def test_operators_are_well_formed(gated: bool) -> None:
    case = Case(1, 20, 1, 8, Layout(8, 4), 2, gated=gated, padded=gated)
    given = [None if x is None else x.requires_grad_() for x in (case.query, case.key, case.value, case.gate)]
    knobs = (case.layout.window, case.layout.chunk, True, False)
    torch.library.opcheck(torch.ops.balancer.sparse_attention_triton, (*given, case.index, case.padding, *knobs))
    plain = [None if x is None else x.detach() for x in given]
    out, lse = torch.ops.balancer.sparse_attention_triton(*plain, case.index, case.padding, *knobs)
    assert not out.requires_grad and not lse.requires_grad
    arguments = (case.out_grad, *plain, case.index, case.padding, out, lse, *knobs)
    torch.library.opcheck(torch.ops.balancer.sparse_attention_triton_backward, arguments)


@on_device
def test_log_sum_exp() -> None:
    case = Case(1, 30, 1, 16, Layout(8, 8), 2, padded=True, gated=True)
    assert case.padding is not None
    case.padding[:, :4] = True  # so that some see nothing
    gate, index, padding = case.gate, case.index, case.padding
    lse = torch.ops.balancer.sparse_attention_triton(case.query, case.key, case.value, gate, index, padding, 8, 8, True, False)[1][0, 0]
    assert gate is not None
    logits = case.query[0, :, 0].double() @ case.key[0, :, 0].double().T / 4 + reference.key_bias(gate, index, padding, case.layout, 30)[0]
    wanted = logits.logsumexp(-1) / math.log(2)
    assert torch.equal(lse == torch.inf, padding[0])
    torch.testing.assert_close(lse[~padding[0]].double(), wanted[~padding[0]], rtol=1e-6, atol=1e-6)


@on_device
def test_compiles_without_a_break() -> None:
    def attend(qkv: Tensor, score: Tensor) -> Tensor:
        query, key, value = qkv.unbind(0)
        return sparse_attention(query, key, value, score, gate=score, window=16, num_global=3, chunk=4, backend="triton").square()

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for length in (20, 33):
        results = []
        for call in (attend, compiled):
            torch.manual_seed(0)
            qkv = torch.randn(3, 1, length, 1, 8, device=DEVICE, requires_grad=True)
            score = torch.randn(1, length, device=DEVICE, requires_grad=True)
            call(qkv, score).sum().backward()
            results.append((qkv.grad, score.grad))
        for eager, traced in zip(*results, strict=True):
            assert eager is not None and traced is not None and torch.equal(eager, traced)


# On CUDA alone
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("causal", "mode"), LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [
        pytest.param(torch.float32, 5e-6, id="float32"),
        pytest.param(torch.float16, 4e-3, id="float16"),
        pytest.param(torch.bfloat16, 3e-2, id="bfloat16"),
    ],
)
@pytest.mark.parametrize("dim", [16, 32, 64, 128])
def test_equals_the_reference_on_cuda(dim: int, dtype: torch.dtype, limit: float, causal: bool, mode: Mode) -> None:
    for chunk in (64, 13):
        Case(2, 1500, 2, dim, Layout(64, chunk, causal, mode), 8, padded=True, gated=True, dtype=dtype).check(limit, limit)


@pytest.mark.gpu
def test_memory_grows_with_length() -> None:
    def peak(length: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        Case(1, length, 2, 32, Layout(), 8, gated=True, dtype=torch.bfloat16).results()
        return torch.cuda.max_memory_allocated()

    peak(1024)
    assert peak(65_536) < 4.6 * peak(16_384)


@pytest.mark.gpu
def test_both_passes_can_be_recorded_in_a_cuda_graph() -> None:
    case = Case(2, 500, 2, 32, Layout(), 8, gated=True, padded=True, dtype=torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wanted = case.results()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = case.results()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


# Without CUDA and without the interpreter
# -------------------------------------------------------------------------------


def test_says_in_words_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(query: Tensor) -> str:
        return triton_backend.refuses(query, Layout()) or "nothing"

    query = torch.zeros(1, 4, 1, 16)
    monkeypatch.setattr(triton_backend, "INTERPRETED", False)
    assert "needs cuda" in reason(query)
    monkeypatch.setattr(triton_backend, "INTERPRETED", True)
    assert reason(query) == "nothing"
    assert "float64" in reason(query.double())
    assert "interpreter" in reason(query.bfloat16())
    assert "at most 128" in reason(torch.zeros(1, 4, 1, 129))
    monkeypatch.setattr(triton_backend, "INSTALLED", False)
    assert "not installed" in reason(query)


def test_triton_is_not_imported_before_it_is_used() -> None:
    code = "import sys, balancer.models, balancer.models.attention; assert 'triton' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


POINTERS = {
    **dict.fromkeys(("gate", "lse", "delta", "slot_key_grad", "slot_value_grad", "slot_gate_grad", "gate_grad"), "*fp32"),
    **dict.fromkeys(("index", "slot_key", "sorted_key", "sorted_slot", "begin"), "*i64"),
    "padding": "*u8",
    "scale": "fp32",
}
STRIDES = ("_batch", "_token", "_head")
SLOT_ARGUMENTS = ("begin", "sorted_key", "sorted_slot", "slot_key_grad", "slot_value_grad", "slot_gate_grad", "gate_grad")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="what is interpreted is not compiled")
@pytest.mark.parametrize(
    ("number", "dim", "layout", "bare"),
    [
        ("bf16", 64, Layout(), False),
        ("fp16", 128, Layout(causal=False, mode="block"), True),
        ("fp32", 32, Layout(causal=False), False),
    ],
)
def test_kernels_compile_for_cuda(
    number: str, dim: int, layout: Layout, bare: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes more than the compiler does; the compiler needs no GPU. `bare`: no gate, padding
    and global nodes."""
    compiler = pytest.importorskip("triton.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", 80, 32)
    from balancer.models.attention import triton_gradients, triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    query = torch.zeros(1, 500, 1, dim, dtype={"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[number])
    plan = triton_backend._Plan.of(query, torch.zeros(1, 8, 8), layout.window, layout.chunk, layout.causal)
    options = plan.options()
    sizes: dict[str, Any] = {"CAUSAL": layout.causal, "BLOCKED": layout.mode == "block", "DIM": dim, **options}
    kernels = (triton_kernels.forward, triton_kernels.query_gradient, triton_gradients.slot_gradient, triton_gradients.key_gradient)
    for kernel in kernels:
        names, fixed = kernel.arg_names, {name: sizes[name] for name in kernel.arg_names if name.isupper()}
        if bare:
            absent = ("gate", "padding", *(SLOT_ARGUMENTS if kernel is triton_gradients.key_gradient else ()))
            fixed |= {name: None for name in names if name in absent}
        signature = {
            name: "constexpr"
            if name in fixed
            else POINTERS.get(name)
            or ("*" + number if name.startswith(("query", "key", "value", "out")) and not name.endswith(STRIDES) else "i32")
            for name in names
        }
        source = compiler.ASTSource(kernel, signature, constexprs={(names.index(name),): value for name, value in fixed.items()})
        chosen = {name: options[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
        compiled = compiler.compile(source, target=target, options=chosen)
        assert compiled.metadata.shared <= 99 * 1024, "more shared memory than a consumer's GPU has for one program"
