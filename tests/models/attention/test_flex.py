"""flex_attention: the arguments of torch's, dtypes, shapes, `score_mod` with gradients of what it captures,
and what is refused."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as of_torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask

from balancer.errors import InputError, UnsupportedError
from balancer.models.attention import flex, flex_blocks
from balancer.models.attention.flex import flex_attention

PAGE = Path(__file__).resolve().parents[3] / "docs" / "flex_attention.md"


def leaves_of(length: int = 60, keys: int | None = None, heads: int = 2, key_heads: int | None = None, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, length, 8), (key_heads or heads, keys or length, 8), (key_heads or heads, keys or length, 5))
    return [torch.randn(batch, *shape, generator=generator) for shape in shapes]


def causal(length: int = 60, keys: int | None = None) -> BlockMask:
    return create_block_mask(lambda b, h, q, k: q >= k, None, None, length, keys or length, device="cpu", BLOCK_SIZE=16)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch's function, not compiled."""
    monkeypatch.setattr(of_torch, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    return of_torch.flex_attention


def test_has_the_arguments_of_torch() -> None:
    own, wanted = (inspect.signature(f).parameters for f in (flex_attention, of_torch.flex_attention))
    assert [(p.name, p.kind, p.default) for p in own.values()] == [(p.name, p.kind, p.default) for p in wanted.values()]


def test_torch_has_no_gradients_here() -> None:
    """When this fails, torch has a backward on CPUs: compare with it in the benchmark and in the docs."""
    query = torch.randn(1, 1, 8, 8, requires_grad=True)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        of_torch.flex_attention(query, query, query)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    exact = [x.to(dtype).double().requires_grad_() for x in leaves_of()]
    own = [x.detach().to(dtype).requires_grad_() for x in exact]
    expected = flex_attention(*exact, block_mask=causal())
    out, lse = flex_attention(*own, block_mask=causal(), return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    upstream = torch.randn(out.shape).to(dtype)
    out.backward(upstream)
    expected.backward(upstream.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    for x, wanted in zip(own, exact, strict=True):
        assert x.grad is not None and x.grad.dtype == dtype
        torch.testing.assert_close(x.grad.double(), wanted.grad, atol=4 * tolerance, rtol=4 * tolerance)


def test_keys_of_another_dtype() -> None:
    query, key, value = leaves_of()
    out = flex_attention(query.bfloat16(), key, value)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, flex_attention(query.bfloat16().float(), key, value).bfloat16())


@pytest.mark.parametrize("score_mod", [None, lambda score, b, h, q, k: score])
def test_grouped_queries_and_one_sequence_of_keys(score_mod: Any, theirs: Any) -> None:
    query, key, value = leaves_of(heads=6, key_heads=2)
    mask = create_block_mask(lambda b, h, q, k: (q >= k) | (h == b), 2, 6, 60, 60, device="cpu", BLOCK_SIZE=16)
    expected = theirs(query, key, value, block_mask=mask, enable_gqa=True)
    own = [x.requires_grad_() for x in (query, key, value)]
    out = flex_attention(*own, score_mod, block_mask=mask, enable_gqa=True)
    torch.testing.assert_close(out.detach(), expected, atol=3e-6, rtol=0)
    repeated = [query, *(x.detach().repeat_interleave(3, 1).requires_grad_() for x in (key, value))]
    slopes = torch.autograd.grad(out.square().sum(), own)
    wanted = torch.autograd.grad(flex_attention(*repeated, score_mod, block_mask=mask).square().sum(), repeated)
    for index, slope in enumerate(slopes):
        summed = wanted[index] if not index else wanted[index].unflatten(1, (2, 3)).sum(2)
        torch.testing.assert_close(slope, summed, atol=2e-5, rtol=1e-5)
    one = [x[:1].detach().requires_grad_() for x in (key, value)]
    shared = flex_attention(query.detach(), *one, score_mod, block_mask=mask, enable_gqa=True)
    torch.testing.assert_close(shared[0], out[0])
    assert torch.autograd.grad(shared.sum(), one)[0].shape == one[0].shape


@pytest.mark.parametrize("score_mod", [None, lambda score, b, h, q, k: score])
def test_queries_without_a_key(score_mod: Any, theirs: Any) -> None:
    """The first 20 queries see no key: zeros, and -inf as torch gives; their gradients are zeros."""
    own = [x.requires_grad_() for x in leaves_of()]
    mask = create_block_mask(lambda b, h, q, k: q - 20 >= k, None, None, 60, 60, device="cpu", BLOCK_SIZE=16)
    expected = theirs(*(x.detach() for x in own), block_mask=mask)
    out, aux = flex_attention(*own, score_mod, block_mask=mask, return_aux=AuxRequest(lse=True))
    torch.testing.assert_close(out.detach(), expected, atol=3e-6, rtol=0)
    assert not out[:, :, :20].any()
    assert (aux.lse[:, :, :20] == -math.inf).all() and aux.lse[:, :, 20:].isfinite().all()
    for x in torch.autograd.grad(out.sum() + aux.lse[:, :, 20:].sum(), own):
        assert x.isfinite().all()
    nothing = create_block_mask(lambda b, h, q, k: q < k - 99, None, None, 60, 60, device="cpu", BLOCK_SIZE=16)
    empty = flex_attention(*own, score_mod, block_mask=nothing)
    assert not empty.any() and not torch.autograd.grad(empty.sum(), own[0])[0].any()


def test_lse_has_gradients() -> None:
    own = [x.requires_grad_() for x in leaves_of()]
    exact = [x.detach().double().requires_grad_() for x in own]
    for leaves in (own, exact):
        out, lse = flex_attention(*leaves, block_mask=causal(), return_lse=True)
        (out.sum() + lse.square().sum()).backward()
    for x, wanted in zip(own, exact, strict=True):
        torch.testing.assert_close(x.grad.double(), wanted.grad, atol=3e-5, rtol=1e-5)  # type: ignore[union-attr]
    assert flex_attention(*own, return_aux=AuxRequest())[1].lse is None


def test_gradients_in_float64() -> None:
    leaves = [torch.randn(1, 2, 6, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 6, 6, device="cpu", BLOCK_SIZE=4)
    assert torch.autograd.gradcheck(lambda *x: flex_attention(*x, block_mask=mask), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: flex_attention(*x, block_mask=mask), leaves)


@pytest.mark.parametrize("at_a_time", [1, 1 << 22])
def test_score_mod_and_what_it_captures(at_a_time: int, monkeypatch: pytest.MonkeyPatch, theirs: Any) -> None:
    monkeypatch.setattr(flex_blocks, "AT_A_TIME", at_a_time)
    own = [x.requires_grad_() for x in leaves_of(150)]
    bias = torch.randn(2, 300, requires_grad=True)

    def relative(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(score / 3) * 3 + bias[head, query - key + 150] + 0.1 * batch

    places = torch.arange(150)
    distance = places[:, None] - places
    for mask in (None, causal(150)):
        out, lse = flex_attention(*own, relative, mask, return_lse=True)
        scores = (
            torch.tanh(own[0] @ own[1].mT / math.sqrt(8) / 3) * 3 + bias[:, distance + 150] + 0.1 * torch.arange(2)[:, None, None, None]
        )
        if mask is not None:
            scores = scores.masked_fill(distance < 0, -math.inf)
        expected = scores.softmax(-1) @ own[2]
        torch.testing.assert_close(out, expected, atol=3e-6, rtol=0)
        torch.testing.assert_close(lse, scores.logsumexp(-1), atol=5e-6, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(theirs(*(x.detach() for x in own), relative, mask), out.detach(), atol=3e-6, rtol=0)
        for found, wanted in zip(*(torch.autograd.grad(x.square().sum(), [*own, bias]) for x in (out, expected)), strict=True):
            torch.testing.assert_close(found, wanted, atol=3e-5, rtol=1e-5)
    only = [x.detach() for x in own]
    assert torch.autograd.grad(flex_attention(*only, relative).sum(), bias)[0].any()


def test_score_mod_maps_and_has_second_derivatives() -> None:
    query, key, value = leaves_of(20)
    doubled = lambda score, b, h, q, k: score * 2  # noqa: E731
    expected = flex_attention(query, key, value, scale=2 / math.sqrt(8))
    torch.testing.assert_close(flex_attention(query, key, value, doubled), expected)
    mapped = torch.vmap(lambda q: flex_attention(q, key, value, doubled))(torch.stack([query, query]))
    torch.testing.assert_close(mapped[1], expected)
    assert torch.func.grad(lambda q: flex_attention(q, key, value, doubled).sum())(query).shape == query.shape
    own = query.requires_grad_()
    (slope,) = torch.autograd.grad(flex_attention(own, key, value, doubled).square().sum(), own, create_graph=True)
    slope.sum().backward()
    assert own.grad is not None and own.grad.any()


def test_score_mod_holds_no_matrix_of_all_pairs() -> None:
    """What is kept for the backward pass is less than the matrix of one head."""
    kept = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    length = 1024
    own = [torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = flex_attention(*own, lambda score, b, h, q, k: score * 2)
    assert sum(kept) < length * length / 2
    out.sum().backward()


def test_nan_where_no_query_sees_it_with_a_score_mod() -> None:
    query, key, value = leaves_of()
    before = flex_attention(query, key, value, lambda score, *_: score, causal())
    key[:, :, 40] = math.nan
    value[:, :, 40, 1] = math.inf
    after = flex_attention(query, key, value, lambda score, *_: score, causal())
    assert torch.equal(before[:, :, :40], after[:, :, :40])
    assert not after[:, :, 40:].isfinite().all()


def test_score_mod_is_computed_outside_the_compiled_graph() -> None:
    leaves = leaves_of(20)
    score_mod = lambda score, b, h, q, k: score - (q - k).abs()  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: flex_attention(*x, score_mod) * 2, backend="eager")
    torch.testing.assert_close(compiled(*leaves), flex_attention(*leaves, score_mod) * 2)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="flex_attention with a score_mod"):
        torch.compile(lambda *x: flex_attention(*x, score_mod), backend="eager", fullgraph=True)(*leaves)


def test_empty_tensors() -> None:
    for sizes in ({"batch": 0}, {"length": 0, "keys": 4}):
        leaves = [x.requires_grad_() for x in leaves_of(**sizes)]  # type: ignore[arg-type]
        if not sizes.get("length", 1):
            leaves[0] = leaves[0][:, :, :0].detach().requires_grad_()
        out = flex_attention(*leaves)
        assert out.shape == (*leaves[0].shape[:3], 5)
        assert all(not x.any() for x in torch.autograd.grad(out.sum(), leaves))
    query, key, value = leaves_of()
    assert not flex_attention(query, key[:, :, :0], value[:, :, :0]).any()


def test_autocast_leaves_the_precision_alone() -> None:
    leaves = leaves_of()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(flex_attention(*leaves), flex_attention(*leaves, lambda score, *_: score), atol=3e-6, rtol=0)


def test_other_devices_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(of_torch, "flex_attention", lambda *arguments, **options: given.append((arguments, options)) or "theirs")
    query = torch.empty(1, 1, 4, 4, device="meta")
    assert flex_attention(query, query, query, scale=0.5) == "theirs"
    assert given[0][0][5] == 0.5 and given[0][1] == {}
    request = AuxRequest(max_scores=True)
    assert flex_attention(query, query, query, return_aux=request) == "theirs"
    assert given[1][1] == {"return_aux": request}


def test_refuses_in_words() -> None:
    query, key, value = leaves_of()
    meta = torch.empty(key.shape, device="meta")
    wrong: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("query must have four dimensions", (query[0], key, value), {}),
        ("key must have a floating-point dtype", (query, key.long(), value), {}),
        ("key must be on the device of query", (query, meta, value), {}),
        ("same number of channels", (query[..., :4], key, value), {}),
        ("same batch, heads and length", (query, key, value[:, :, :9]), {}),
        ("one batch entry or those of query", (query, *(torch.cat([x, x]) for x in (key, value))), {}),
        ("unless enable_gqa=True", (query, key[:, :1], value[:, :1]), {}),
        ("must divide the heads", (torch.cat([query, query[:, :1]], 1), key, value), {"enable_gqa": True}),
        ("must be a BlockMask", (query, key, value), {"block_mask": torch.ones(60, 60)}),
        ("for 50 and 60 queries and keys, given 60 and 60", (query, key, value), {"block_mask": causal(50, 60)}),
        (
            "for 3 batch entries",
            (query, key, value),
            {"block_mask": create_block_mask(lambda b, h, q, k: q >= k, 3, 1, 60, 60, device="cpu")},
        ),
        ("give one of them", (query, key, value), {"return_lse": True, "return_aux": AuxRequest(lse=True)}),
    ]
    for words, arguments, options in wrong:
        with pytest.raises(InputError, match=re.escape(words)):
            flex_attention(*arguments, **options)
    with pytest.raises(UnsupportedError, match="max_scores"):
        flex_attention(query, key, value, return_aux=AuxRequest(max_scores=True))
    elsewhere = causal()
    elsewhere.kv_indices = elsewhere.kv_indices.to("meta")
    with pytest.raises(InputError, match=r"block_mask must be on the device of query.*block_mask.to"):
        flex_attention(query, key, value, block_mask=elsewhere)


def test_the_names_are_those_of_the_package() -> None:
    import balancer.models.attention as package

    assert package.flex_attention is flex_attention
    assert package.prepare_block_mask is flex.prepare_block_mask


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
    first, last = re.findall(r"loss (\d\.\d+)", capsys.readouterr().out)
    assert float(last) < float(first) / 2
