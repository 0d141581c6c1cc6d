"""Scores by which tokens are selected as global nodes, computed for each token independently.

Because no score depends on another token, causal attention remains causal, and a stream can be scored token
by token. The default score is the entropy of the token's distribution over learned landmarks. The other
scores are baselines for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.errors import InputError

LANDMARKS = 16
"""Default number of landmarks."""


class TokenScore(nn.Module):
    """Base class of scores.

    A score maps tokens (B, n, d), and optionally their raw fields (B, n, C), to (B, n). The tokens with the
    highest scores become global nodes.
    """

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """Compute the scores (B, n)."""
        raise NotImplementedError  # implemented by subclasses


class LandmarkEntropy(TokenScore):
    """`H = -sum p log p` with `p = softmax(W x)` over m learned landmarks.

    The score is high for tokens similar to many landmarks; training determines the landmarks.

    Args:
        d_model: number of channels of a token.
        landmarks: m.
    """

    def __init__(self, d_model: int, landmarks: int = LANDMARKS) -> None:
        super().__init__()
        self.landmarks = nn.Linear(d_model, landmarks)

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """Compute the entropy in nats, from 0 to log m."""
        log_p = F.log_softmax(self.landmarks(x).float(), -1)
        return -(log_p.exp() * log_p).sum(-1)


class LearnedScore(TokenScore):
    """A linear map of the token, trained through the gate and by distillation, like the landmarks.

    Args:
        d_model: number of channels of a token.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.project = nn.Linear(d_model, 1)

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """Compute the linear map."""
        score: Tensor = self.project(x).float()
        return score[..., 0]


class ChannelEntropy(TokenScore):
    """Entropy of the softmax over a token's channels, without parameters."""

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """Compute the entropy in nats, from 0 to log d."""
        log_p = F.log_softmax(x.float(), -1)
        return -(log_p.exp() * log_p).sum(-1)


class Surprisal(TokenScore):
    """Negative log-density under independent normal distributions of the fields.

    Means and variances are running averages over the training batches, as in batch normalization. A batch is
    scored before it updates the averages, so no token's score depends on a later token of the same batch. The
    raw fields are scored if given, else the token's channels.

    Args:
        width: number of fields or channels.
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
        """Compute the surprisal in nats, up to a constant.

        Tokens of `padding` (B, n) do not update the averages.

        Raises:
            InputError: The number of fields or channels is not `width`.
        """
        given = (x if fields is None else fields).detach().float()
        if given.shape[-1] != len(self.mean):
            raise InputError(
                f"score 'surprisal' was built for {len(self.mean)} channels, given {given.shape[-1]}; give score=Surprisal({given.shape[-1]})"
            )
        score = 0.5 * ((given - self.mean) ** 2 / self.variance + self.variance.log()).sum(-1)
        if self.training:
            self._observe(given.flatten(0, -2) if padding is None else given[~padding])
        return score

    @torch.no_grad()
    def _observe(self, tokens: Tensor) -> None:
        """Update the averages with those of `tokens` (N, width) that are finite.

        Without such tokens they do not change.
        """
        tokens = tokens[tokens.isfinite().all(-1)]
        if len(tokens):
            tokens = tokens.to(self.mean.dtype)
            self.mean.lerp_(tokens.mean(0), self.momentum)
            self.variance.lerp_(tokens.var(0, unbiased=False).clamp(min=1e-6), self.momentum)


class RandomScore(TokenScore):
    """Baseline: a pseudo-random number that is a fixed function of the token.

    It is the sine of a fixed random projection, over many periods. It varies strongly between tokens, but not
    with rounding errors of one token, which differ between batches of different shapes.

    Args:
        d_model: number of channels of a token.
    """

    weight: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        drawn = torch.randn(d_model, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weight", 32 * drawn / math.sqrt(d_model))

    def forward(self, x: Tensor, fields: Tensor | None = None) -> Tensor:
        """Compute the score, from -1 to 1."""
        return (x.detach().float() @ self.weight.float()).sin()


SCORES: dict[str, Callable[[int], TokenScore]] = {
    "landmark_entropy": LandmarkEntropy,
    "channel_entropy": lambda _: ChannelEntropy(),
    "surprisal": Surprisal,
    "learned": LearnedScore,
    "random": RandomScore,
}
"""Scores over d_model channels by name."""


class Gate(nn.Module):
    """Bias added to the logit of a global node with score s: `logsigmoid(a s + b)`, at most 0.

    Through the gate the loss trains the score. Initially the gate is close to 0 for every score, so that a
    model trained with dense attention changes little when it becomes sparse.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.offset = nn.Parameter(torch.tensor(3.0))

    def forward(self, score: Tensor) -> Tensor:
        """Map scores (B, n) to biases (B, n)."""
        return F.logsigmoid(self.slope * score + self.offset)


def ranked(score: Tensor) -> Tensor:
    """Round scores for the selection: float32 with 13 fractional bits, NaN as the lowest; not differentiable.

    The last bits of a score depend on the shape of the batch. After rounding, equal tokens have equal scores
    and the earlier one is selected, whether tokens are read one at a time or in one pass.
    """
    clean = score.detach().float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return ((clean.view(torch.int32) + 0x200) & -0x400).view(torch.float32)


def make_score(
    score: str | TokenScore | Callable[[Tensor, Tensor | None], Tensor], d_model: int
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Build the score of a given name over `d_model` channels, or return the given score.

    Raises:
        InputError: The name is unknown.
    """
    if not isinstance(score, str):
        return score
    if score not in SCORES:
        raise InputError(f"unknown score '{score}'; known scores are {', '.join(sorted(SCORES))}")
    return SCORES[score](d_model)
