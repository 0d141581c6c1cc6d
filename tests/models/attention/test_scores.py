"""Scores of tokens: each depends on its token alone, and is what its name says."""

from __future__ import annotations

import math

import pytest
import torch

from balancer.errors import InputError
from balancer.models.attention.scores import SCORES, Gate, Surprisal, make_score

D = 12


@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_score_is_a_function_of_the_token_alone(name: str) -> None:
    torch.manual_seed(0)
    score, x = SCORES[name](D).eval(), torch.randn(3, 20, D)
    whole = score(x, None)
    assert whole.shape == (3, 20)
    assert whole.isfinite().all()
    for t in (0, 7, 19):
        torch.testing.assert_close(score(x[:, t : t + 1], None)[:, 0], whole[:, t], atol=1e-4, rtol=1e-5)
    assert whole.flatten().unique().numel() == 60


def test_entropies_are_entropies() -> None:
    torch.manual_seed(0)
    landmarks = SCORES["landmark_entropy"](D)
    x = torch.randn(2, 5, D)
    p = landmarks.landmarks(x).double().softmax(-1)
    torch.testing.assert_close(landmarks(x).double(), torch.special.entr(p).sum(-1), atol=1e-6, rtol=1e-6)
    assert (landmarks(1e4 * x) >= 0).all()
    flat = SCORES["channel_entropy"](D)(torch.zeros(1, 1, D))
    assert float(flat) == pytest.approx(math.log(D))


def test_surprisal_is_the_negative_log_density_and_looks_at_earlier_batches_only() -> None:
    torch.manual_seed(0)
    score, fields = Surprisal(3), 2 + 0.5 * torch.randn(64, 10, 3)
    first = score(torch.zeros(64, 10, D), fields)
    normal = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    expected = -(normal.log_prob(fields) + 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(first, expected)
    for _ in range(200):
        score(torch.zeros(64, 10, D), fields)
    torch.testing.assert_close(score.mean, fields.flatten(0, 1).mean(0), atol=1e-3, rtol=1e-3)
    score.eval()
    odd = torch.full((1, 1, 3), 6.0)
    usual = torch.full((1, 1, 3), 2.0)
    assert float(score(odd, odd)) > float(score(usual, usual)) + 10
    kept = score.mean.clone()
    score(odd, odd)
    assert torch.equal(score.mean, kept)


def test_the_gate_is_nearly_open_at_first_and_never_adds() -> None:
    gate = Gate()(torch.linspace(0, math.log(16), 9)[None])
    assert (gate <= 0).all()
    assert (gate > -0.06).all()


def test_names() -> None:
    def own(x: torch.Tensor, fields: torch.Tensor | None) -> torch.Tensor:
        return (x if fields is None else fields).sum(-1)

    assert make_score(own, D) is own
    with pytest.raises(InputError, match="channel_entropy"):
        make_score("imaginary", D)
