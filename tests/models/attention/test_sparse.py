"""Sparse attention as modules: against dense masked attention, causality, as a part of torch's encoder layer,
and token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models import SequenceBatch
from balancer.models.attention import (
    SCORES,
    DenseAttention,
    SparseAttention,
    SparseSelfAttention,
    distillation_loss,
    select_globals,
    sparse_attention,
    warm_up,
)
from balancer.models.attention.reference import key_bias

D, HEADS = 16, 2


def module(**given: object) -> SparseSelfAttention:
    torch.manual_seed(0)
    return SparseSelfAttention(D, HEADS, **({"window": 8, "num_global": 3} | given)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["sliding", "block"])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_masked_dense_attention_in_float64(causal: bool, mode: str) -> None:
    made, x = module(causal=causal, mode=mode, chunk=5), torch.randn(2, 37, D)
    exact = module(causal=causal, mode=mode, chunk=5).double()
    query, key, value = exact._projected(x.double())
    score, gate = exact.core.scores_and_gates(x.double())
    assert score is not None
    index = select_globals(score, 3, causal=causal, chunk=5)
    bias = key_bias(gate, index, None, exact.core.layout, 37)[:, None]
    weight = (torch.einsum("bihd,bjhd->bhij", query, key) * (D // HEADS) ** -0.5 + bias).softmax(-1)
    expected = exact.out_proj(torch.einsum("bhij,bjhd->bihd", weight, value).flatten(2))
    torch.testing.assert_close(made(x).double(), expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["sliding", "block"])
@pytest.mark.parametrize("score", sorted(SCORES))
def test_no_output_depends_on_a_later_token(score: str, mode: str) -> None:
    made, x = module(score=score, mode=mode, chunk=4), torch.randn(2, 40, D)
    before = made(x)
    for border in (*range(4, 40, 4), 1, 7, 9, 39):
        moved = torch.cat([x[:, :border], x[:, border:] + 5 * torch.randn(2, 40 - border, D)], 1)
        after = made(moved)
        assert torch.equal(after[:, :border], before[:, :border])
        assert not torch.equal(after[:, border], before[:, border])


def test_the_check_catches_a_choice_over_the_whole_sequence() -> None:
    def leaking(x: Tensor) -> Tensor:
        # The best of all tokens, later ones too, under a causal mask: what may be looked at depends on what
        # comes.
        heads = x.unflatten(-1, (HEADS, -1))
        score = x.sum(-1)
        kept = score >= score.topk(12, dim=1).values[:, -1:]
        gate = torch.zeros_like(score).masked_fill(~kept, -1e9)
        return sparse_attention(heads, heads, heads, score, window=8, num_global=30, gate=gate)

    x = torch.randn(2, 40, D)
    moved = torch.cat([x[:, :24], x[:, 24:] + 5], 1)
    assert not torch.equal(leaking(moved)[:, :24], leaking(x)[:, :24])


def test_a_short_history_is_dense() -> None:
    torch.manual_seed(0)
    sparse, dense = SparseAttention(D, HEADS, 64, 3), DenseAttention(D, HEADS)
    missing = dense.load_state_dict(sparse.state_dict(), strict=False).unexpected_keys
    assert all(name.startswith("core.") for name in missing)
    batch = SequenceBatch.from_windows(torch.randn(3, 30, D), torch.tensor([30, 12, 0]))
    torch.testing.assert_close(sparse(batch).values, dense(batch).values, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("mode", "chunk"), [("sliding", 8), ("sliding", 5), ("block", 8), ("block", 3)])
def test_one_token_at_a_time_gives_the_same(mode: str, chunk: int, rotary: bool) -> None:
    made = module(mode=mode, chunk=chunk, rotary=rotary)
    x = torch.randn(2, 75, D)
    x[:, 10:14] = x[:, 3:4]  # equal scores
    whole, state = made(x), made.init_state(2)
    for t in range(75):
        before = [tensor.clone() for tensor in state[:3]]
        out, after = made.step(x[:, t], state)
        torch.testing.assert_close(out, whole[:, t], atol=1e-5, rtol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(before, state[:3], strict=True))  # the given state stays as it was
        state = after


def test_the_state_does_not_grow_and_rows_may_stand_anywhere() -> None:
    made, x = module(), torch.randn(2, 1000, D)
    whole = made(x)

    def read(row: int, tokens: int) -> object:
        state = made.init_state(1)
        for t in range(tokens):
            _, state = made.step(x[row : row + 1, t], state)
        return state

    one, two = read(0, 999), read(1, 17)
    flat = [torch.utils._pytree.tree_flatten(each) for each in (one, two)]
    assert [leaf.shape for leaf in flat[0][0]] == [leaf.shape for leaf in flat[1][0]]
    both = torch.utils._pytree.tree_unflatten([torch.cat(pair) for pair in zip(flat[0][0], flat[1][0], strict=True)], flat[0][1])
    out, _ = made.step(torch.stack([x[0, 999], x[1, 17]]), both)
    torch.testing.assert_close(out, torch.stack([whole[0, 999], whole[1, 17]]), atol=1e-5, rtol=1e-5)


def test_where_a_query_looks() -> None:
    torch.manual_seed(0)
    sparse = SparseAttention(D, HEADS, 8, 3)
    batch = SequenceBatch.from_windows(torch.randn(2, 40, D), torch.tensor([40, 33]))
    row, position = torch.tensor([0, 0, 1]), torch.tensor([39, 3, 20])
    seen = sparse.attended(batch, row, position)
    torch.testing.assert_close(seen.mass.sum(1), torch.ones(3))
    assert (seen.mass[seen.position < 0] == 0).all()
    assert seen.is_global[0].sum() == 3
    assert not seen.is_global[1].any()
    score, gate = sparse.core.scores_and_gates(batch.values)
    assert score is not None and gate is not None
    bias = key_bias(gate, select_globals(score, 3, causal=True, chunk=8), None, sparse.core.layout, 40)
    everywhere = torch.arange(40)
    query, key = sparse._queries(batch.values, everywhere), sparse._keys(batch.values, everywhere)[0]
    weight = (torch.einsum("bihd,bjhd->bhij", query, key) * (D // HEADS) ** -0.5 + bias[:, None]).softmax(-1).mean(1)
    for index, (b, t) in enumerate(zip(row, position, strict=True)):
        given = torch.zeros(41).scatter(0, seen.position[index].where(seen.position[index] >= 0, 40), seen.mass[index])[:40]
        torch.testing.assert_close(given, weight[b, t], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_takes_the_place_of_self_attn_in_torchs_encoder(training: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, HEADS, 32, dropout=0.0, batch_first=True)
    layer.self_attn = module(window=4, num_global=2)  # type: ignore[assignment]
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    x = torch.randn(3, 20, D)
    mask = nn.Transformer.generate_square_subsequent_mask(20)
    with torch.no_grad():  # where torch would take its fused path
        out = encoder(x, mask=mask, is_causal=True)
        other = encoder(torch.cat([x[:, :15], x[:, 15:] + 1], 1), mask=mask, is_causal=True)
        attention = encoder.layers[0].self_attn
        mixed = layer.norm1(x + attention(x))
        first = layer.norm2(mixed + layer.linear2(torch.relu(layer.linear1(mixed))))
        torch.testing.assert_close(encoder.layers[0](x, src_mask=mask, is_causal=True), first)
        padding = torch.arange(20) >= torch.tensor([20, 12, 0])[:, None]
        padded = encoder(x, mask=mask, is_causal=True, src_key_padding_mask=torch.zeros(3, 20).masked_fill(padding, -torch.inf))
    assert torch.equal(out[:, :15], other[:, :15])
    torch.testing.assert_close(padded[~padding], out[~padding], atol=1e-5, rtol=1e-5)
    assert padded.isfinite().all()


def test_refuses_what_it_cannot_honour() -> None:
    made, x = module(), torch.randn(2, 9, D)
    with pytest.raises(InputError, match="attn_mask"):
        made(x, x, x, attn_mask=torch.zeros(9, 9))
    with pytest.raises(InputError, match="need_weights"):
        made(x, x, x, need_weights=True)
    with pytest.raises(InputError, match="self-attention"):
        made(x, x.clone(), x)
    with pytest.raises(InputError, match="causal=True"):
        module(causal=False)(x, x, x, is_causal=True)
    with pytest.raises(InputError, match="causal=True"):
        module(causal=False).init_state(1)
    with pytest.raises(InputError, match="landmark_entropy"):
        module(score="imaginary")
    with pytest.raises(InputError, match="num_heads"):
        SparseSelfAttention(10, 3)
    with pytest.raises(InputError, match="num_global"):
        SparseSelfAttention(D, HEADS, num_global=-1)


def test_the_gate_trains_the_score_and_the_distillation_does_so_too() -> None:
    made, x = module().train(), torch.randn(2, 40, D)
    made(x).square().sum().backward()
    assert made.core.score is not None
    landmarks = made.core.score.landmarks.weight
    assert landmarks.grad is not None and landmarks.grad.abs().sum() > 0
    landmarks.grad = None
    warm_up(made, True)
    dense = made(x)
    loss = distillation_loss(made)
    assert float(loss.detach()) > 0
    loss.backward()
    assert landmarks.grad is not None and landmarks.grad.abs().sum() > 0
    warm_up(made, False)
    assert float(distillation_loss(made)) == 0
    assert not torch.allclose(made(x), dense, atol=1e-3)


def test_distillation_finds_the_token_that_is_looked_at() -> None:
    torch.manual_seed(0)
    made = SparseSelfAttention(D, HEADS, window=8, num_global=1).train()
    x = 0.3 * torch.randn(8, 64, D)
    x[:, 5] += 2 * torch.randn(D)  # one kind of token, to which every query will be turned
    with torch.no_grad():
        made.in_proj_weight[:D] = 0.0
        assert made.input_bias is not None
        made.input_bias[:D] = 3 * (x[:, 5].mean(0) @ made.in_proj_weight[D : 2 * D].T)
    warm_up(made, True)
    assert made.core.score is not None
    optimizer = torch.optim.Adam(made.core.score.parameters(), 0.05)
    for _ in range(60):
        made(x)
        loss = distillation_loss(made)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    score, _ = made.core.scores_and_gates(x)
    assert score is not None
    assert (score.argmax(1) == 5).all()


def test_survives_being_saved() -> None:
    made, x = module(), torch.randn(2, 40, D)
    other = SparseSelfAttention(D, HEADS, window=8, num_global=3).eval()
    assert not torch.equal(other(x), made(x))
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), made(x))
