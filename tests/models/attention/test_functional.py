"""`sparse_attention`: errors beyond the common checks, and sequences of only padding."""

from __future__ import annotations

import pytest
import torch

from balancer.errors import InputError
from balancer.models.attention.backends import BACKENDS
from balancer.models.attention.functional import resolve, sparse_attention
from balancer.models.attention.layout import Layout

THREE = [torch.randn(2, 10, 2, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
SCORE = torch.randn(2, 10, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_odd_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="floating dtype of 16, 32 or 64 bits"):
        sparse_attention(*(x.to(dtype) for x in THREE), SCORE)


def test_scores_and_gates_that_are_no_numbers_to_add_or_to_sort_are_refused() -> None:
    with pytest.raises(InputError, match="score must be real"):
        sparse_attention(*THREE, SCORE.to(torch.complex64))
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(InputError, match="gate must be floating"):
            sparse_attention(*THREE, SCORE, gate=SCORE.to(dtype))


def test_devices_and_empty_heads_are_refused_by_name() -> None:
    query, key, value = THREE
    with pytest.raises(InputError, match="key is on meta"):
        sparse_attention(query, key.to("meta"), value, SCORE)
    with pytest.raises(InputError, match="gate is on meta"):
        sparse_attention(query, key, value, SCORE, gate=SCORE.to("meta"))
    with pytest.raises(InputError, match="heads and channels"):
        sparse_attention(*(x[..., :0] for x in THREE), SCORE)


def test_any_real_score_will_do() -> None:
    ranks = SCORE.argsort(1).argsort(1)
    knobs = {"window": 2, "num_global": 2, "backend": "torch"}
    assert torch.equal(sparse_attention(*THREE, ranks, **knobs), sparse_attention(*THREE, SCORE, **knobs))  # type: ignore[arg-type]


def test_the_backend_asked_for_is_the_one_taken() -> None:
    assert resolve("torch", THREE[0], Layout(4, 4), 2) == "torch"
    assert resolve("auto", THREE[0], Layout(16, 16), 2) == "dense"
    with pytest.raises(InputError, match="imaginary"):
        resolve("imaginary", THREE[0], Layout(4, 4), 2)


@pytest.mark.parametrize("global_queries", [False, True])
@pytest.mark.parametrize("name", [name for name in BACKENDS if BACKENDS[name].refuses(THREE[0], Layout()) is None and name != "triton"])
def test_a_sequence_of_padding_gives_zeros_and_has_no_slope(name: str, global_queries: bool) -> None:
    leaves = [x.clone().requires_grad_() for x in THREE]
    gate = SCORE.clone().requires_grad_()
    padding = torch.tensor([True, False])[:, None].expand(-1, 10)
    out = sparse_attention(
        *leaves, SCORE, gate=gate, window=2, causal=False, global_queries=global_queries, key_padding_mask=padding, backend=name
    )
    out.sum().backward()
    assert not out[0].any() and out[1].all()
    for leaf in (*leaves, gate):
        assert leaf.grad is not None and not leaf.grad[0].any() and leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in BACKENDS if BACKENDS[name].refuses(THREE[0], Layout()) is None and name != "triton"])
def test_slopes_repeat_to_the_bit(name: str) -> None:
    def slopes() -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in (*THREE, SCORE)]
        out = sparse_attention(*leaves[:3], SCORE, gate=leaves[3], window=3, num_global=4, backend=name)
        return list(torch.autograd.grad(out.square().sum(), leaves))

    assert all(torch.equal(a, b) for a, b in zip(slopes(), slopes(), strict=True))
