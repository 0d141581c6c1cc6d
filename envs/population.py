"""A population of small students, trained as one stack of matrix products: many episodes for the price of a few.

M nets of two hidden layers share every kernel launch (``baddbmm``); forward, backward and AdamW are written out, on one flat parameter
tensor, which spares autograd's bookkeeping on products this small. Students differ, so that a policy meets weak and strong learners:
learning rate, weight decay, dropout and width are drawn per group. The students of a group are *siblings*: same net, same initial
weights, same random numbers in every draw, so that their rewards differ by what their policies did.

Row draws follow :class:`balancer.sampling.row_sampler.RowSampler`, for all students at once; a test compares the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from balancer.envs.problem import PopulationProblem
from balancer.sampling.row_sampler import NEWTON_STEPS, largest_probability, scored_part
from balancer.sampling.seeding import generator
from balancer.sampling.weights import ERROR_OFFSET, Floats

HIDDEN = 32
WARMUP_SHARE = 0.05
SCORE_CHUNK = 1024
"""Rows scored at once: what stays in cache is twice as fast."""
_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class StudentKinds:
    """What sets students apart; all (M,) float64."""

    learning_rate: Floats
    weight_decay: Floats
    dropout: Floats
    width: Floats
    """Hidden units in use, of 32."""

    @classmethod
    def drawn(cls, seed: int, episode: int, groups: int, siblings: int) -> StudentKinds:
        """Kinds of ``groups`` groups of ``siblings`` equal students, for one episode."""
        u = generator(seed, "population kinds", episode).random((groups, 4))
        rate = 3e-3 * 10.0 ** (0.8 * u[:, 0])
        decay = np.where(u[:, 1] < 0.3, 0.0, 10.0 ** (-3.0 + 2.0 * u[:, 1]))
        dropout = np.where(u[:, 2] < 0.3, 0.0, 0.4 * (u[:, 2] - 0.3))
        width = np.round(HIDDEN * 2.0 ** (-2.0 * u[:, 3]))
        return cls(*(np.repeat(each, siblings) for each in (rate, decay, dropout, width)))


class PopulationStack:
    """M students on one problem.

    Args:
        problem: their data.
        groups: groups of siblings; M = groups * siblings.
        siblings: students of a group.
        batch_size: rows of a mini-batch.
        seed: everything random is a function of it, the episode and the group.
        device: where the stack lives.
    """

    def __init__(
        self, problem: PopulationProblem, *, groups: int, siblings: int = 1, batch_size: int = 128, seed: int = 0, device: str = "cpu"
    ) -> None:
        self.problem, self.groups, self.siblings, self.batch_size, self.seed = problem, groups, siblings, batch_size, seed
        self.device = torch.device(device)
        self.num = groups * siblings
        self._x = torch.as_tensor(problem.x_train, device=self.device)
        self._y = torch.as_tensor(problem.y_train, device=self.device)
        self._rows = [torch.as_tensor(np.flatnonzero(problem.y_train == c), device=self.device) for c in range(problem.num_classes)]
        self._place = np.full(len(problem.y_train), -1)
        self._place[problem.y_train == 0] = np.arange(len(self._rows[0]))
        features, classes = problem.x_train.shape[1], problem.num_classes
        self._shapes = ((features, HIDDEN), (1, HIDDEN), (HIDDEN, HIDDEN), (1, HIDDEN), (HIDDEN, classes), (1, classes))
        self.begin(0, total_steps=1)

    def begin(self, episode: int, *, total_steps: int) -> None:
        """Fresh students for ``episode``, with a learning rate that warms up and falls to zero over ``total_steps``."""
        self.episode, self.total_steps, self.step = episode, total_steps, 0
        self.kinds = StudentKinds.drawn(self.seed, episode, self.groups, self.siblings)
        rng = generator(self.seed, "population weights", episode)
        used = np.arange(HIDDEN) < self.kinds.width[:: self.siblings, None]
        parts = []
        for index, shape in enumerate(self._shapes):
            drawn = rng.normal(size=(self.groups, *shape)) * math.sqrt(2.0 / shape[0]) * (index % 2 == 0) * (0.5 if index == 4 else 1.0)
            if shape[1] == HIDDEN:  # a unit that is 0 at the start gets no gradient and stays out
                drawn = drawn * used[:, None, :]
            parts.append(drawn.reshape(self.groups, -1))
        flat = np.repeat(np.concatenate(parts, axis=1), self.siblings, axis=0)
        self._flat = torch.as_tensor(flat, dtype=torch.float32, device=self.device)
        self._grad = torch.zeros_like(self._flat)
        self._first, self._second = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._parameters, self._gradients = self._views(self._flat), self._views(self._grad)
        self._rate = self._column(self.kinds.learning_rate)
        self._decay = self._column(self.kinds.weight_decay)
        self._keep = self._column(1.0 - self.kinds.dropout)[:, :, None]
        self._error = torch.full((self.num, len(self._rows[0])), math.nan, device=self.device)
        self._scored = torch.zeros(len(self._rows[0]), dtype=torch.bool, device=self.device)

    def _column(self, values: Floats) -> Tensor:
        """(M, 1)."""
        return torch.as_tensor(values[:, None], dtype=torch.float32, device=self.device)

    def _views(self, flat: Tensor) -> list[Tensor]:
        views, start = [], 0
        for shape in self._shapes:
            size = shape[0] * shape[1]
            views.append(flat[:, start : start + size].view(self.num, *shape))
            start += size
        return views

    def fit(self, rows: Tensor) -> None:
        """Train on ``rows`` (M, n), each student on its own, a mini-batch of columns at a time."""
        for first in range(0, rows.shape[1], self.batch_size):
            self._train_step(rows[:, first : first + self.batch_size])

    @torch.no_grad()
    def _train_step(self, rows: Tensor) -> None:
        w1, b1, w2, b2, w3, b3 = self._parameters
        g1, c1, g2, c2, g3, c3 = self._gradients
        noise = generator(self.seed, "population dropout", self.episode, self.step).random((2, rows.shape[1], HIDDEN), dtype=np.float32)
        keep = torch.as_tensor(noise, device=self.device)[:, None] < self._keep
        x = self._x[rows]
        h1 = torch.baddbmm(b1, x, w1).relu_().mul_(keep[0]).div_(self._keep)
        h2 = torch.baddbmm(b2, h1, w2).relu_().mul_(keep[1]).div_(self._keep)
        delta = torch.softmax(torch.baddbmm(b3, h2, w3), dim=2)
        delta.scatter_add_(2, self._y[rows][:, :, None], delta.new_full((), -1.0).expand(*rows.shape, 1))
        delta /= rows.shape[1]
        torch.bmm(h2.transpose(1, 2), delta, out=g3)
        torch.sum(delta, 1, keepdim=True, out=c3)
        back = torch.bmm(delta, w3.transpose(1, 2)).mul_(h2 > 0).div_(self._keep)  # a dropped unit's output is 0, and so is its gradient
        torch.bmm(h1.transpose(1, 2), back, out=g2)
        torch.sum(back, 1, keepdim=True, out=c2)
        back = torch.bmm(back, w2.transpose(1, 2)).mul_(h1 > 0).div_(self._keep)
        torch.bmm(x.transpose(1, 2), back, out=g1)
        torch.sum(back, 1, keepdim=True, out=c1)
        self._adamw()

    def _adamw(self) -> None:
        factor = self._schedule()
        self.step += 1
        self._first.lerp_(self._grad, 1.0 - _BETA_1)
        self._second.mul_(_BETA_2).addcmul_(self._grad, self._grad, value=1.0 - _BETA_2)
        spread = (self._second / (1.0 - _BETA_2**self.step)).sqrt_().add_(_EPS)
        rate = self._rate * factor
        self._flat.mul_(1.0 - rate * self._decay)
        self._flat.sub_(self._first / spread * (rate / (1.0 - _BETA_1**self.step)))

    def _schedule(self) -> float:
        """Factor on the learning rates: linear warm-up, then cosine to zero, as the real classifier's."""
        warmup = max(1, int(WARMUP_SHARE * self.total_steps))
        if self.step < warmup:
            return (self.step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (self.step - warmup) / max(1, self.total_steps - warmup))))

    @torch.no_grad()
    def score(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(M, n, K) class probabilities of rows ``x`` (n, F), the same for every student."""
        w1, b1, w2, b2, w3, b3 = self._parameters
        parts = []
        for rows in torch.as_tensor(x, device=self.device).split(SCORE_CHUNK):
            h1 = torch.baddbmm(b1, rows.expand(self.num, -1, -1), w1).relu_()
            h2 = torch.baddbmm(b2, h1, w2).relu_()
            parts.append(torch.softmax(torch.baddbmm(b3, h2, w3), dim=2))
        return np.asarray(torch.cat(parts, dim=1).cpu().numpy())

    def refresh(self, rows: NDArray[np.integer[Any]], score: NDArray[np.floating[Any]]) -> None:
        """Remember the scores (M, n, K) of training ``rows`` (n,); those of other classes than the first are ignored."""
        place = self._place[rows]
        known = place >= 0
        at = torch.as_tensor(place[known], device=self.device)
        self._error[:, at] = torch.as_tensor(1.0 - score[:, known, 0], dtype=torch.float32, device=self.device)
        self._scored[at] = True

    def draw(self, n: int, epoch: int, share: Floats, hardness: Floats, floor: Floats) -> Tensor:
        """(M, n) training rows by the weights ``share`` (M, K), ``hardness`` (M,), ``floor`` (M,); siblings use the same random numbers."""
        rng = generator(self.seed, "population draw", self.episode, epoch)
        numbers = rng.random((self.groups, n, 3), dtype=np.float32).repeat(self.siblings, axis=0)
        u = torch.as_tensor(numbers, device=self.device)
        pick, within, mixed = u[..., 0].contiguous(), u[..., 1].contiguous(), u[..., 2]
        edges = torch.as_tensor(np.cumsum(share, axis=1)[:, :-1], dtype=torch.float32, device=self.device).contiguous()
        drawn = torch.searchsorted(edges, pick, right=True)
        result = torch.empty((self.num, n), dtype=torch.int64, device=self.device)
        for c, own in enumerate(self._rows):
            if not len(own):
                continue
            place = (within * len(own)).long().clamp_(max=len(own) - 1)
            if c == 0 and hardness.max() > 0:
                level = self._column(floor)
                stage = (mixed - level) / (1.0 - level).clamp_min(1e-12)
                steered = (stage >= 0) & torch.as_tensor(hardness[:, None] > 0, device=self.device)
                place = torch.where(steered, self._hard_place(within, stage, (drawn == 0).sum(dim=1), hardness), place)
            result = torch.where(drawn == c, own[place], result)
        return result

    def _hard_place(self, within: Tensor, stage: Tensor, draws: Tensor, hardness: Floats) -> Tensor:
        """Places among the rows of the first class: of a scored row by hardness, or of one never scored."""
        scored, unscored = self._scored.nonzero()[:, 0], (~self._scored).nonzero()[:, 0]
        place = torch.zeros_like(within, dtype=torch.int64)
        if len(unscored):
            place = unscored[(within * len(unscored)).long().clamp_(max=len(unscored) - 1)]
        if not len(scored):
            return place
        power = self._column(hardness)
        drawn = draws.cpu().numpy()
        shares = scored_part(len(scored), len(self._scored), drawn)
        most = torch.as_tensor(largest_probability(len(scored), shares * drawn), device=self.device)[:, None]
        weight = (self._error[:, scored] + ERROR_OFFSET).pow_(power).double()
        limit = most * weight.sum(dim=1, keepdim=True)
        for _ in range(NEWTON_STEPS):
            over = weight > limit
            limit = most * weight.masked_fill(over, 0.0).sum(dim=1, keepdim=True) / (1.0 - most * over.sum(dim=1, keepdim=True))
        cumulative = torch.minimum(weight, limit).cumsum(dim=1)
        found = torch.searchsorted(cumulative, within.double() * cumulative[:, -1:], right=True)
        part = torch.as_tensor(shares, dtype=torch.float32, device=self.device)
        return torch.where(stage < part[:, None], scored[found.clamp_(max=len(scored) - 1)], place)
