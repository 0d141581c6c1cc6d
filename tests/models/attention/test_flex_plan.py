"""Plans of block masks: what they list, when they are made, and what is refused."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask, create_mask, noop_mask, or_masks

from balancer.errors import InputError
from balancer.models.attention import flex_plan
from balancer.models.attention.flex import flex_attention
from balancer.models.attention.flex_plan import plan_of, prepare_block_mask, read


def causal(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def mask_of(mask_mod: Any = causal, length: int = 100, block: Any = 16, batch: int | None = None, heads: int | None = None) -> BlockMask:
    return create_block_mask(mask_mod, batch, heads, length, length, device="cpu", BLOCK_SIZE=block)


def leaves_of(length: int = 100, batch: int = 2, heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, length, 8, generator=generator) for _ in range(3)]


def dense(block_mask: BlockMask, length: int, keys: int) -> Tensor:
    """The mask of a plan, bool (B, H, n, m), from its bits."""
    blocks = read(plan_of(block_mask))
    out = torch.zeros(blocks.batch, blocks.heads, length, keys, dtype=torch.bool)
    for row in range(blocks.rows):
        places = flex_plan.positions(blocks.visited(row), blocks.width)
        begin, end = row * blocks.height, min((row + 1) * blocks.height, length)
        out[:, :, begin:end, places[places < keys]] = torch.from_numpy(blocks.seen(row, 0, end - begin, keys))
    return out


@given(
    queries=st.integers(1, 70),
    keys=st.integers(1, 70),
    block=st.sampled_from([(16, 16), (8, 32), (7, 9), (128, 128), (64, 1)]),
    batch=st.integers(1, 2),
    full=st.booleans(),
    seed=st.integers(0, 2),
)
def test_a_plan_is_its_mask(queries: int, keys: int, block: tuple[int, int], batch: int, full: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(batch, 2, queries, keys, generator=generator) < 0.2
    seen[:, :, : queries // 2, : keys // 2] = True
    sizes = (batch, 2, queries, keys)
    block_mask = create_block_mask(lambda b, h, q, k: seen[b, h, q, k], *sizes, device="cpu", BLOCK_SIZE=block, separate_full_blocks=full)
    assert torch.equal(dense(block_mask, queries, keys), seen)


def test_only_partial_blocks_are_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []
    evaluated = flex_plan.evaluated

    def counted(mask_mod: Any, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        pairs.append(query.numel() * key.shape[1])
        return evaluated(mask_mod, batch, head, query, key)

    monkeypatch.setattr(flex_plan, "evaluated", counted)
    monkeypatch.setattr(flex_plan, "AT_A_TIME", 1024)
    block_mask = mask_of(length=256)
    plan_of(block_mask)
    assert sum(pairs) == 16 * 16 * 16  # the blocks of the diagonal
    assert max(pairs) <= 1024


def test_blocks_seen_in_full_need_no_bits() -> None:
    everything = read(plan_of(create_block_mask(lambda b, h, q, k: q >= 0, None, None, 50, 50, device="cpu", BLOCK_SIZE=16)))
    assert not len(everything.bits)  # torch lists the blocks at the end as partial
    assert len(everything.columns) == 16


def test_a_plan_is_made_once_and_lives_as_long_as_its_mask() -> None:
    calls = []

    def counted(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        calls.append(1)
        return query >= key

    block_mask = mask_of(counted)
    plan = plan_of(block_mask)
    made = len(calls)
    flex_attention(*leaves_of(), block_mask=block_mask)
    flex_attention(*leaves_of(batch=3), block_mask=block_mask)
    assert prepare_block_mask(block_mask) is block_mask
    assert plan_of(block_mask) is plan
    assert len(calls) == made
    gone = weakref.ref(plan)
    del block_mask, plan
    gc.collect()
    assert gone() is None


def test_inference_mode() -> None:
    leaves = leaves_of()
    expected = flex_attention(*leaves, block_mask=mask_of())
    with torch.inference_mode():
        block_mask = mask_of()
        assert torch.equal(flex_attention(*leaves, block_mask=block_mask), expected)
    own = [x.requires_grad_() for x in leaves]
    flex_attention(*own, block_mask=block_mask).sum().backward()  # its plan is an ordinary tensor
    assert own[0].grad is not None


def test_a_mask_that_changes_gets_another_plan() -> None:
    block_mask = mask_of(length=96)
    leaves = leaves_of(96)
    flex_attention(*leaves, block_mask=block_mask)
    block_mask.mask_mod = lambda b, h, q, k: q > k  # its partial blocks are among those of the causal mask
    expected = flex_attention(*leaves, block_mask=mask_of(lambda b, h, q, k: q > k, 96))
    assert torch.equal(flex_attention(*leaves, block_mask=block_mask), expected)
    block_mask.kv_num_blocks.zero_()  # in place: the diagonal is gone
    assert torch.equal(dense(block_mask, 96, 96).sum(), (torch.arange(96) // 16 * 16).sum())


def test_the_function_gets_the_true_batch_and_head() -> None:
    """Lists for one batch entry and head, with a function that tells them apart in partial blocks."""
    column = torch.arange(2, dtype=torch.int32).expand(1, 1, 2, 2).contiguous()
    width = torch.tensor([[5, 9, 30], [40, 1, 17]])

    def band(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < width[batch, head])

    count = torch.full((1, 1, 2), 2, dtype=torch.int32)
    block_mask = BlockMask.from_kv_blocks(count, column, BLOCK_SIZE=32, mask_mod=band, seq_lengths=(50, 50))
    leaves = leaves_of(50, heads=3)
    out = flex_attention(*leaves, block_mask=block_mask)
    seen = create_mask(band, 2, 3, 50, 50, device="cpu")
    expected = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=seen)
    torch.testing.assert_close(out, expected, atol=3e-6, rtol=0)
    for count in (1, 2):  # the plan of one batch entry is not that of two
        some = flex_attention(*(x[:count] for x in leaves), block_mask=block_mask)
        assert torch.equal(some, out[:count])
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: flex_attention(*x[:3], block_mask=x[3]), fullgraph=True, backend="eager")
    assert torch.equal(compiled(*leaves, prepare_block_mask(block_mask)), out)


def test_a_function_that_ignores_batch_and_head_has_one_plan() -> None:
    """Whatever the batch: masks put together by torch begin with a constant of the batch's device."""
    near = lambda b, h, q, k: q - k < 20  # noqa: E731
    for function in (causal, and_masks(causal, near), or_masks(causal, near), noop_mask, lambda b, h, q, k: torch.ones_like(b) * k <= q):
        assert flex_plan._arguments(function) == (False, False)
    width = torch.tensor([3, 4])
    assert flex_plan._arguments(and_masks(causal, lambda b, h, q, k: q - k < width[h])) == (False, True)
    assert flex_plan._arguments(lambda b, h, q, k: (b == 0) | (q >= k)) == (True, False)
    block_mask = mask_of(and_masks(causal, near))
    plan = plan_of(block_mask)
    assert plan_of(block_mask, (4, 3)) is plan


def test_lists_decide_where_there_is_no_function() -> None:
    count = torch.tensor([[[1, 2]]], dtype=torch.int32)
    index = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.int32)
    block_mask = BlockMask.from_kv_blocks(count, index, BLOCK_SIZE=16, seq_lengths=(20, 30))
    seen = dense(block_mask, 20, 30)[0, 0]
    assert seen[:16, 16:].all() and not seen[:16, :16].any() and seen[16:].all()


def test_slices_and_crops() -> None:
    block_mask = mask_of()
    part = block_mask[:, :, 2:4]
    with pytest.raises(InputError, match=r"sliced.*set block_mask.mask_mod"):
        plan_of(part)
    part.mask_mod = lambda b, h, q, k: q + 32 >= k
    part.seq_lengths = (32, 100)
    leaves = leaves_of()
    whole = flex_attention(*leaves, block_mask=block_mask)
    some = flex_attention(leaves[0][:, :, 32:64], *leaves[1:], block_mask=part)
    torch.testing.assert_close(some, whole[:, :, 32:64], atol=3e-6, rtol=0)
    cropped = flex_attention(*(x[:, :, :50] for x in leaves), block_mask=block_mask._adjust(50, 50))
    torch.testing.assert_close(cropped, whole[:, :, :50], atol=3e-6, rtol=0)
    flat = mask_of()  # without the dimensions of batch and heads
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        setattr(flat, name, getattr(flat, name)[0, 0])
    assert torch.equal(flex_attention(*leaves, block_mask=flat), whole)


def test_wrong_lists_are_refused() -> None:
    count = torch.tensor([[[2]]], dtype=torch.int32)
    for index, words in (([0, 0], "twice"), ([-1, 0], "negative")):
        block_mask = BlockMask.from_kv_blocks(
            count, torch.tensor([[[index]]], dtype=torch.int32), BLOCK_SIZE=16, seq_lengths=(16, 32), compute_q_blocks=False
        )
        with pytest.raises(InputError, match=words):
            plan_of(block_mask)
    block_mask = mask_of(length=100)
    block_mask.seq_lengths = (200, 100)
    with pytest.raises(InputError, match="7 rows of blocks for 13"):
        plan_of(block_mask)


def test_positions_lie_side_by_side() -> None:
    assert flex_plan.positions(np.array([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]
