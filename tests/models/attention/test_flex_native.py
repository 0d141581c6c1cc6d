"""The kernel of flex_attention: every instruction set against float64 and against torch's forward, the same
bits for any number of threads, NaN that stays where it is seen, and a torch operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as of_torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from balancer.errors import UnsupportedError
from balancer.models.attention import flex_native
from balancer.models.attention.flex import flex_attention, prepare_block_mask
from balancer.models.attention.flex_plan import plan_of

pytestmark = pytest.mark.skipif(flex_native.absence() is not None, reason=f"the kernel is not here: {flex_native.absence()}")
Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over all pairs, and lse; zeros and -inf where nothing is seen."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    none = (scores == -math.inf).all(-1, keepdim=True)
    weights = torch.where(none, 0.0, scores.softmax(-1))
    return weights @ value, torch.where(none, -math.inf, scores.logsumexp(-1, keepdim=True)).squeeze(-1)


def masks(batch: int, heads: int, queries: int, keys: int, seed: int) -> dict[str, Mask | None]:
    """Masks by name; those of documents and of chance differ from sequence to sequence."""
    generator = torch.Generator().manual_seed(seed)
    document = torch.randint(0, 4, (batch, max(queries, keys)), generator=generator).sort().values
    seen = torch.rand(batch, heads, queries, keys, generator=generator) < 0.3
    seen[:, :, ::3] = False  # queries without any key
    return {
        "none": None,
        "causal": lambda b, h, q, k: q >= k,
        "sliding": lambda b, h, q, k: (q >= k) & (q - k < 20),
        "prefix": lambda b, h, q, k: (q >= k) | (k < 30),
        "documents": lambda b, h, q, k: (document[b, q] == document[b, k]) & (q >= k),
        "global nodes": lambda b, h, q, k: ((q - k).abs() < 9) | (k % 37 == 0) | (q % 41 == 0),
        "chance": lambda b, h, q, k: seen[b, h, q, k],
        "nothing": lambda b, h, q, k: (q > 1000) & (k >= 0),
    }


NAMES = list(masks(1, 1, 1, 1, 0))
BY_BATCH = ("documents", "chance")


@settings(max_examples=150)
@given(
    name=st.sampled_from(NAMES),
    batch=st.integers(1, 2),
    key_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.sampled_from([1, 5, 17, 64, 100, 130, 200]),
    keys=st.sampled_from([0, 1, 7, 65, 129, 250]),
    channels=st.sampled_from([1, 3, 8, 16, 20, 32, 64]),
    value_channels=st.sampled_from([0, 5, 16, 48]),
    block=st.sampled_from([(128, 128), (16, 16), (32, 64), (48, 20), (7, 9), (256, 512)]),
    per_batch=st.booleans(),
    per_head=st.booleans(),
    heads_last=st.booleans(),
    full_blocks=st.booleans(),
    seed=st.integers(0, 3),
)
def test_equals_float64_in_every_instruction_set(
    name: str,
    batch: int,
    key_heads: int,
    group: int,
    queries: int,
    keys: int,
    channels: int,
    value_channels: int,
    block: tuple[int, int],
    per_batch: bool,
    per_head: bool,
    heads_last: bool,
    full_blocks: bool,
    seed: int,
) -> None:
    keys, heads, value_channels = keys or queries, key_heads * group, value_channels or channels
    generator = torch.Generator().manual_seed(seed)

    def made(count: int, length: int, width: int) -> Tensor:
        x = torch.randn(batch, length, count, width, generator=generator).transpose(1, 2)
        return x if heads_last else x.contiguous()

    leaves = [made(heads, queries, channels), made(key_heads, keys, channels), made(key_heads, keys, value_channels)]
    function = masks(batch, heads, queries, keys, seed)[name]
    plan = mask = block_mask = None
    if function is not None:
        sizes = (batch if per_batch or name in BY_BATCH else 1, heads if per_head or name == "chance" else 1, queries, keys)
        block_mask = create_block_mask(function, *sizes, device="cpu", BLOCK_SIZE=block, separate_full_blocks=full_blocks)
        plan, mask = plan_of(block_mask), create_mask(function, *sizes, device="cpu")
    exact = [x.double().requires_grad_() for x in leaves]
    scale = 0.7 / math.sqrt(channels)
    expected, sums = dense(*exact, mask, scale)
    upstream, upstream_sums = torch.randn(expected.shape, generator=generator), torch.randn(sums.shape, generator=generator)
    seen = sums > -math.inf
    (expected.mul(upstream).sum() + torch.where(seen, sums, 0.0).mul(upstream_sums).sum()).backward()
    upstream_sums = torch.where(seen, upstream_sums, 0.0)
    of_torch._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True  # else it compiles itself for every shape
    try:
        theirs = of_torch.flex_attention(*leaves, block_mask=block_mask, scale=scale, enable_gqa=True)
    finally:
        of_torch._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = False
    torch_threads = torch.get_num_threads()
    best = flex_native.instruction_set()
    assert best is not None
    for isa in range(best + 1):
        results = []
        for threads in (1, 5):  # five threads compute the gradients of few heads in two passes
            torch.set_num_threads(threads)
            try:
                out, lse = torch.full(expected.shape, 7.0), torch.full(sums.shape, 7.0)
                flex_native._call(*leaves, plan, scale, lse, mixed=out, isa=isa)
                slopes = [torch.full_like(x, 7.0) for x in leaves]
                flex_native._call(*leaves, plan, scale, lse, out=out, grad=upstream, grad_lse=upstream_sums, slopes=slopes, isa=isa)
            finally:
                torch.set_num_threads(torch_threads)
            results.append([out, lse, *slopes])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        torch.testing.assert_close(out.double(), expected.detach(), atol=3e-6, rtol=0)
        torch.testing.assert_close(out, theirs, atol=3e-6, rtol=0)
        torch.testing.assert_close(lse.double(), sums.detach(), atol=5e-6, rtol=0)
        for own, wanted in zip(slopes, exact, strict=True):
            grad = torch.zeros_like(wanted) if wanted.grad is None else wanted.grad
            # Relative to the largest: sums that cancel have no digits of their own.
            assert float((own.double() - grad).abs().max()) <= 5e-6 * max(1.0, float(grad.abs().max()))


def leaves_of(length: int = 150, batch: int = 2, heads: int = 2, channels: int = 16, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, length, channels, generator=generator) for _ in range(3)]


def mask_of(function: Mask, length: int = 150, block: int = 128) -> Any:
    return create_block_mask(function, None, None, length, length, device="cpu", BLOCK_SIZE=block)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["causal", "sliding", "documents", "global nodes"])
def test_nan_reaches_only_what_sees_it(name: str, which: int, odd: float) -> None:
    """Position 70 of the query, key, value or gradient of the output is NaN or infinite: outputs of queries
    that do not see it, and gradients of what it does not see, keep their bits."""
    function = masks(1, 1, 150, 150, 1)[name]
    assert function is not None
    visible = create_mask(function, 1, 1, 150, 150, device="cpu")[0, 0]
    block_mask = mask_of(function)
    results = []
    for value in (0.5, odd):
        leaves = [*leaves_of(batch=1), leaves_of(batch=1, seed=1)[0]]
        leaves[which][:, :, 70, 3] = value
        own = [x.requires_grad_() for x in leaves[:3]]
        out = flex_attention(*own, block_mask=block_mask)
        results.append([out.detach(), *torch.autograd.grad(out, own, leaves[3])])
    rows = ~visible[:, 70] if which in (1, 2) else torch.arange(150) != 70  # whose output has nothing to do with it
    columns = ~visible[70] if which in (0, 3) else ~(visible & visible[:, 70:71]).any(0)
    assert rows.any()
    before, after = results
    for index, unchanged in ((0, rows), (1, rows), (2, columns), (3, columns)):
        assert torch.equal(before[index][:, :, unchanged], after[index][:, :, unchanged]), index
    assert not all(x.isfinite().all() for x in after)


def test_a_query_that_is_nan_has_a_result_that_is_nan() -> None:
    query, key, value = leaves_of()
    query[0, 1, 40, 2] = math.nan
    out = flex_attention(query, key, value)
    assert out[0, 1, 40].isnan().all()
    assert out.isnan().sum() == out.shape[-1]
    value[1, 0, 60, 5] = math.nan
    assert flex_attention(query, key, value)[1, 0, :, 5].isnan().all()


def test_large_logits_stay_finite() -> None:
    query, key, value = leaves_of()
    own = [x.requires_grad_() for x in (query * 100, key * 100, value)]
    out = flex_attention(*own, block_mask=mask_of(lambda b, h, q, k: q >= k))
    assert out.isfinite().all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), own))


def test_any_strides() -> None:
    leaves = leaves_of()
    block_mask = mask_of(lambda b, h, q, k: q >= k)
    plain = flex_attention(*leaves, block_mask=block_mask)
    fused = torch.stack([x.transpose(1, 2) for x in leaves], 3).flatten(3)  # (B, n, H, 3 E), as one linear gives them
    given_by_linear = [x.transpose(1, 2) for x in fused.chunk(3, -1)]
    out = flex_attention(*given_by_linear, block_mask=block_mask)
    assert torch.equal(out, plain)
    assert out.transpose(1, 2).is_contiguous()  # so that heads are put together without a copy
    turned = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in leaves]  # channels apart
    assert torch.equal(flex_attention(*turned, block_mask=block_mask), plain)
    one = leaves[1][:, :1].expand(-1, 2, -1, -1)
    assert torch.equal(flex_attention(leaves[0], one, leaves[2]), flex_attention(leaves[0], one.clone(), leaves[2]))


def test_a_row_does_not_depend_on_the_batch() -> None:
    leaves = leaves_of(batch=3)
    block_mask = mask_of(lambda b, h, q, k: q - k < 40)
    together = flex_attention(*leaves, block_mask=block_mask)
    assert torch.equal(flex_attention(*(x[1:2] for x in leaves), block_mask=block_mask), together[1:2])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads_last", [False, True])
def test_is_an_operator_that_torch_can_check(masked: bool, heads_last: bool) -> None:
    leaves = [x.transpose(1, 2).contiguous().transpose(1, 2) if heads_last else x for x in leaves_of(20)]
    plan = plan_of(mask_of(lambda b, h, q, k: q >= k, 20, 16)) if masked else None
    torch.library.opcheck(torch.ops.balancer.flex_attention.default, (*(x.clone().requires_grad_() for x in leaves), plan, 0.3))
    out, lse = flex_native.run(*leaves, plan, 0.3)
    backward = (torch.ones_like(out), torch.ones_like(lse), *leaves, plan, out, lse, 0.3)
    torch.library.opcheck(torch.ops.balancer.flex_attention_backward.default, backward)


def test_compiles_in_one_graph() -> None:
    leaves = leaves_of(40)
    function = torch.compile(lambda *x: flex_attention(*x[:3], block_mask=x[3]) * 2, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    for mask in (lambda b, h, q, k: q >= k, lambda b, h, q, k: q - k < 9):
        block_mask = mask_of(mask, 40, 16)
        own, plain = ([x.clone().requires_grad_() for x in leaves] for _ in range(2))
        out, expected = function(*own, block_mask), flex_attention(*plain, block_mask=block_mask) * 2
        assert torch.equal(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(own, plain, strict=True))  # type: ignore[arg-type]


def test_prepared_masks_do_not_compile_again() -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    leaves = leaves_of(40)
    function = torch.compile(lambda *x: flex_attention(*x[:3], block_mask=x[3]), fullgraph=True, backend=counter)
    torch._dynamo.reset()
    for width in range(2, 12):
        block_mask = prepare_block_mask(mask_of(lambda b, h, q, k, width=width: q - k < width, 40, 16))  # type: ignore[misc]
        assert torch.equal(function(*leaves, block_mask), flex_attention(*leaves, block_mask=block_mask))
    assert counter.frame_count <= 2  # once for one size of the plan, once for any size


def test_a_mask_made_in_the_compiled_function_is_refused() -> None:
    def attend(*x: Tensor) -> Tensor:
        result: Tensor = flex_attention(*x, block_mask=mask_of(lambda b, h, q, k: q >= k, 20))
        return result

    torch._dynamo.reset()
    with pytest.raises(Exception, match="made before the compiled function is called"):
        torch.compile(attend, fullgraph=True, backend="eager")(*leaves_of(20))


def test_maps_and_gradients_of_torch_func() -> None:
    many = [x.unflatten(0, (3, 2)) for x in leaves_of(40, batch=6)]
    block_mask = mask_of(lambda b, h, q, k: (q >= k) | (b > 0), 40, 16)

    def attend(*x: Tensor) -> Tensor:
        result: Tensor = flex_attention(*x, block_mask=block_mask)
        return result

    def loss(*x: Tensor) -> Tensor:
        return attend(*x).square().sum()

    expected = torch.stack([attend(*(x[i] for x in many)) for i in range(3)])
    assert torch.equal(torch.vmap(attend)(*many), expected)
    assert torch.equal(torch.vmap(attend, in_dims=(1, 1, 1))(*(x.movedim(0, 1) for x in many)), expected)
    some = torch.vmap(attend, in_dims=(0, None, None))(many[0], many[1][0], many[2][0])
    assert torch.equal(some[2], attend(many[0][2], many[1][0], many[2][0]))
    slopes = []
    for i in range(3):
        own = [x[i].clone().requires_grad_() for x in many]
        slopes.append(torch.autograd.grad(loss(*own), own))
    wanted = [torch.stack(each) for each in zip(*slopes, strict=True)]
    gradients = torch.func.grad(loss, argnums=(0, 1, 2))
    for found in (torch.vmap(gradients)(*many), torch.func.grad(lambda *x: torch.vmap(loss)(*x).sum(), argnums=(0, 1, 2))(*many)):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    rows = torch.func.jacrev(lambda q: attend(q, many[1][0], many[2][0]).sum((1, 2, 3)))(many[0][0])
    assert rows.shape == (2, *many[0][0].shape)


def test_a_mask_may_be_new_inside_a_transformation() -> None:
    query, key, value = leaves_of(40)
    block_mask = mask_of(lambda b, h, q, k: q >= k, 40, 16)
    slope = torch.func.grad(lambda q: flex_attention(q, key, value, block_mask=block_mask).sum())(query)
    assert slope.shape == query.shape


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, in jvp
def test_other_derivatives_are_refused_by_name() -> None:
    query, key, value = leaves_of(20)
    own = query.clone().requires_grad_()
    (slope,) = torch.autograd.grad(flex_attention(own, key, value).square().sum(), own, create_graph=True)
    with pytest.raises(UnsupportedError, match="flex_attention has no second derivative"):
        slope.sum().backward()
    with pytest.raises(UnsupportedError, match="flex_attention has no second derivative"):
        torch.func.grad(lambda q: torch.func.grad(lambda q: flex_attention(q, key, value).square().sum())(q).sum())(query)
    with pytest.raises(UnsupportedError, match="flex_attention has no derivatives in forward mode"):
        torch.func.jvp(lambda q: flex_attention(q, key, value), (query,), (query,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(UnsupportedError, match="forward mode"):
        flex_attention(torch.autograd.forward_ad.make_dual(query, query), key, value)


def test_the_variable_restricts_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "portable")
    flex_native.instruction_set.cache_clear()
    try:
        assert flex_native.instruction_set() == 0
    finally:
        flex_native.instruction_set.cache_clear()


def test_without_the_library_torch_computes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = leaves_of(40)
    expected = flex_attention(*leaves)
    monkeypatch.setattr(flex_native, "STEM", "_no_such_library")
    library, absence = flex_native._load()
    assert library is None
    monkeypatch.setattr(flex_native, "_ABSENCE", absence)
    monkeypatch.setattr(flex_native, "_LIBRARY", None)
    with pytest.warns(UserWarning, match=r"computed by torch operations.*not built"):
        out = flex_attention(*leaves)
    torch.testing.assert_close(out, expected, atol=3e-6, rtol=0)
    with pytest.raises(UnsupportedError, match="not built"):
        flex_native.run(*leaves, None, 0.3)
