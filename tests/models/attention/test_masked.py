"""The backend `dense`: when it uses no mask, and that the result is then correct."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from balancer.models.attention import masked
from balancer.models.attention.functional import sparse_attention
from balancer.models.attention.layout import Layout


@given(length=st.integers(1, 30), window=st.integers(1, 30), causal=st.booleans(), mode=st.sampled_from(["sliding", "block"]))
def test_covers_where_every_window_holds_all_that_may_be_seen(length: int, window: int, causal: bool, mode: str) -> None:
    layout = Layout(window, window, causal, mode)  # type: ignore[arg-type]
    first, last = layout.bounds(length)
    everything = not first.any() and (last == (torch.arange(length) if causal else length - 1)).all()
    assert masked.covers(layout, length) == bool(everything)


PADDINGS: dict[str, Tensor | None] = {
    "none": None,
    "right": torch.arange(12) >= torch.tensor([12, 5, 0])[:, None],
    "left": torch.arange(12) < torch.tensor([0, 5, 12])[:, None],
    "inside": (torch.arange(12) == 6).expand(3, -1),
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", ["sliding", "block"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_mask_only_where_it_says_something(causal: bool, mode: str, padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    build = masked.key_bias
    monkeypatch.setattr(masked, "key_bias", lambda *given: asked.append(1) or build(*given))
    results = []
    for backend in ("reference", "dense"):
        generator = torch.Generator().manual_seed(0)
        leaves = [torch.randn(3, 12, 2, 16, generator=generator).requires_grad_() for _ in range(3)]
        out = sparse_attention(
            *leaves,
            torch.randn(3, 12, generator=generator),
            gate=torch.randn(3, 12, generator=generator),
            window=24,
            causal=causal,
            mode=mode,  # type: ignore[arg-type]
            key_padding_mask=PADDINGS[padding],
            backend=backend,
        )
        out.backward(torch.randn(out.shape, generator=generator))
        results.append([out.detach(), *(x.grad for x in leaves)])
    for expected, own in zip(*results, strict=True):
        # The gradient of a query that sees one key is zero: 3e-6 covers the rounding of the products that
        # cancel, whose sum of absolute values is about ten.
        torch.testing.assert_close(own, expected, atol=3e-6, rtol=1e-5)
    assert bool(asked) == (padding != "none" if not causal else padding not in ("none", "right"))


def test_traced_as_one_graph() -> None:
    tensors = [torch.randn(3, 12, 2, 16) for _ in range(3)]

    def attend() -> Tensor:
        return sparse_attention(*tensors, window=16, num_global=0, key_padding_mask=PADDINGS["right"], backend="dense")

    torch.testing.assert_close(torch.compile(attend, backend="eager", fullgraph=True)(), attend())
