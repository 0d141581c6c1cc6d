"""What makes a token worth keeping in sight: a score per token, of the token alone.

Because no score looks at another token, causal attention stays causal and a stream can be scored as it comes. The default is an information
entropy in the literal sense: of the token's distribution over learned landmarks. The others are there to be compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.errors import InputError

LANDMARKS = 16


class TokenScore(nn.Module):
    """Maps tokens (B, n, d), and their raw fields (B, n, C) where they are given, to scores (B, n); the higher, the rather a global node."""

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """Scores (B, n)."""
        raise NotImplementedError  # the protocol: each score below, or one of your own, says how


class LandmarkEntropy(TokenScore):
    """`H = -sum p log p` with `p = softmax(W x)` over m learned landmarks: high for what is like many things at once, and what training makes so.

    Args:
        d_model: channels of a token.
        landmarks: m.
    """

    def __init__(self, d_model: int, landmarks: int = LANDMARKS) -> None:
        super().__init__()
        self.landmarks = nn.Linear(d_model, landmarks)

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """Entropy in nats, 0 to log m."""
        log_p = F.log_softmax(self.landmarks(x).float(), -1)
        return -(log_p.exp() * log_p).sum(-1)


class LearnedScore(TokenScore):
    """A linear map of the token; takes part in training through the gate and the distillation like the landmarks.

    Args:
        d_model: channels of a token.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, 1)

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """The map's value."""
        score: Tensor = self.project(x).float()
        return score[..., 0]


class ChannelEntropy(TokenScore):
    """Entropy of the softmax over a token's channels; nothing is learned."""

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """Entropy in nats, 0 to log d."""
        log_p = F.log_softmax(x.float(), -1)
        return -(log_p.exp() * log_p).sum(-1)


class Surprisal(TokenScore):
    """Negative log-density under a normal distribution per field, whose means and variances are running averages over training, as in batch norm.

    A batch is scored before it enters the averages, so no token is judged by a later one of its own batch. Scores the raw fields where they are given, else
    the token's channels.

    Args:
        width: fields, or channels.
        momentum: weight of a new batch.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor, fields: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Surprisal in nats, up to a constant; tokens of `padding` (B, n) stay out of the averages.

        Raises:
            InputError: What is scored has not `width` channels.
        """
        given = (x if fields is None else fields).detach().float()
        if given.shape[-1] != len(self.mean):
            raise InputError(
                f"score 'surprisal' was made for {len(self.mean)} channels, given {given.shape[-1]}; give score=Surprisal({given.shape[-1]})"
            )
        score = 0.5 * ((given - self.mean) ** 2 / self.variance + self.variance.log()).sum(-1)
        if self.training:
            self._observe(given.flatten(0, -2) if padding is None else given[~padding])
        return score

    @torch.no_grad()
    def _observe(self, tokens: Tensor) -> None:
        """Move the averages towards `tokens` (N, width); none move nothing."""
        if len(tokens):
            tokens = tokens.to(self.mean.dtype)
            self.mean.lerp_(tokens.mean(0), self.momentum)
            self.variance.lerp_(tokens.var(0, unbiased=False).clamp(min=1e-6), self.momentum)


class RandomScore(TokenScore):
    """The control: a number that looks random, is a function of the token alone, and can't be trained.

    The sine of a fixed random projection, many periods wide: it varies wildly over tokens, but not with the last bits of one, which are
    others in a batch of another shape.

    Args:
        d_model: channels of a token.
    """

    weight: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        drawn = torch.randn(d_model, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weight", 32 * drawn / math.sqrt(d_model))

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """-1 to 1."""
        return (x.detach().float() @ self.weight.float()).sin()


SCORES: dict[str, Callable[[int], TokenScore]] = {
    "landmark_entropy": LandmarkEntropy,
    "channel_entropy": lambda _: ChannelEntropy(),
    "surprisal": Surprisal,
    "learned": LearnedScore,
    "random": RandomScore,
}
"""By name: a score over d_model channels."""


class Gate(nn.Module):
    """What is added to the logit of a global node of score s: `logsigmoid(a s + b)`, never above 0; by it the choice is trained.

    It starts almost open for every score, so that a model trained densely changes little when it turns sparse.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.offset = nn.Parameter(torch.tensor(3.0))

    def forward(self, score: Tensor) -> Tensor:
        """(B, n) to (B, n)."""
        return F.logsigmoid(self.slope * score + self.offset)


def ranked(score: Tensor) -> Tensor:
    """Scores as the choice compares them: float32 with 13 fractional bits, NaN the lowest; not differentiable.

    The last bits of a score depend on the shape of the batch it is computed in. Without them equal tokens tie and the earlier wins, one token at a time as in
    one pass; with them any of the equals might.
    """
    clean = score.detach().float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return ((clean.view(torch.int32) + 0x200) & -0x400).view(torch.float32)


def make_score(
    score: str | TokenScore | Callable[[Tensor, Tensor | None], Tensor], d_model: int
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A score by name over `d_model` channels, or the one given.

    Raises:
        InputError: There is none of that name.
    """
    if not isinstance(score, str):
        return score
    if score not in SCORES:
        raise InputError(f"unknown score '{score}'; known are {', '.join(sorted(SCORES))}")
    return SCORES[score](d_model)
