"""A population of small students, trained as one stack of matrix products.

M networks share every kernel launch (``baddbmm``); AdamW is written out on one flat parameter tensor.
Students differ, so that a policy sees weak and strong learners: learning rate, weight decay, dropout and
width are drawn per group. The students of a group are *siblings*: same network, same initial weights, same
random numbers in every draw, so that their rewards differ only by the effects of their policies. The networks
are in :mod:`balancer.envs.student_nets` and their losses in :mod:`balancer.envs.student_losses`; this module
has the rows, the random numbers and the steps.

Rows are drawn as by :class:`balancer.sampling.row_sampler.RowSampler`, for all students at once; a test
compares the two. Initial weights, dropout and draws come from NumPy on every device, so the same seed gives
the same students on a GPU, up to rounding. They are sent to the GPU once for many steps, and no step waits
for the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from balancer.envs.problem import PopulationProblem
from balancer.envs.student_losses import Losses, StudentLoss
from balancer.envs.student_nets import NETS, Net
from balancer.errors import InputError
from balancer.models.schedule import learning_rate_factor
from balancer.sampling.hard_table import NEWTON_STEPS, largest_probability, scored_part
from balancer.sampling.row_sampler import is_chosen
from balancer.sampling.seeding import generator
from balancer.sampling.weights import ERROR_OFFSET, Floats, WeightArrays, class_prior

HIDDEN, WIDE_HIDDEN = 32, 64
"""Units of a hidden layer for ``spread="default"`` and for ``spread="wide"``."""
SCORE_FLOATS = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Activations that exist at once when scoring.

Three times as fast on a CPU if they stay in its cache; a GPU needs large products."""
DRAW_FLOATS = {"cpu": 1 << 16, "cuda": 1 << 26}
"""Draws, or weights of rows, processed at once when drawing, for the same reason."""
NOISE_FLOATS = 1 << 22
"""Random numbers for dropout that are generated at once."""
_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class StudentKinds:
    """Hyperparameters in which students differ; all (M,) float64.

    Raises:
        InputError: A value is out of range, or lengths differ.
    """

    learning_rate: Floats
    weight_decay: Floats
    dropout: Floats
    width: Floats
    """Number of hidden units in use."""
    hidden: int = HIDDEN
    """Hidden units of the network of all students."""

    def __post_init__(self) -> None:
        values = [np.asarray(getattr(self, each.name), dtype=np.float64) for each in fields(self) if each.name != "hidden"]
        rate, decay, dropout, width = values
        if any(value.ndim != 1 or value.shape != rate.shape or not np.isfinite(value).all() for value in values):
            raise InputError("learning_rate, weight_decay, dropout and width of students must be finite vectors of one length")
        if len(rate) and (rate.min() <= 0 or decay.min() < 0 or dropout.min() < 0 or dropout.max() >= 1):
            raise InputError("students need a learning_rate above 0, a weight_decay of 0 or more and a dropout in [0, 1)")
        if len(width) and (width.min() < 1 or width.max() > self.hidden):
            raise InputError(f"width of students must lie in 1 to {self.hidden}, the hidden units of their net")

    @classmethod
    def drawn(cls, seed: int, episode: int, groups: int, siblings: int, *, spread: Literal["default", "wide"] = "default") -> StudentKinds:
        """Draw the kinds of one episode.

        Args:
            seed: Random seed.
            episode: Number of the episode.
            groups: Number of groups.
            siblings: Students of a group, which are equal.
            spread: ``wide`` draws learning rates from 1e-3 to 2e-2, weight decays of 0 or from 1e-4 to 3e-2,
                dropout from 0 to .4, widths from 4 to 64.
        """
        u = generator(seed, "population kinds", episode).random((groups, 4))
        hidden = HIDDEN
        if spread == "default":
            rate = 3e-3 * 10.0 ** (0.8 * u[:, 0])
            decay = np.where(u[:, 1] < 0.3, 0.0, 10.0 ** (-3.0 + 2.0 * u[:, 1]))
            dropout = np.where(u[:, 2] < 0.3, 0.0, 0.4 * (u[:, 2] - 0.3))
            width = np.round(HIDDEN * 2.0 ** (-2.0 * u[:, 3]))
        else:
            hidden = WIDE_HIDDEN
            above = np.maximum(u - 0.3, 0.0) / 0.7  # 0 for three in ten
            rate = 1e-3 * 20.0 ** u[:, 0]
            decay = np.where(above[:, 1] == 0, 0.0, 1e-4 * 300.0 ** above[:, 1])
            dropout = 0.4 * above[:, 2]
            width = np.round(4.0 * 16.0 ** u[:, 3])
        rate, decay, dropout, width = (np.repeat(each, siblings) for each in (rate, decay, dropout, width))
        return cls(rate, decay, dropout, width, hidden)

    @classmethod
    def fixed(
        cls, num: int, learning_rate: float = 6e-3, weight_decay: float = 1e-3, dropout: float = 0.1, width: float = HIDDEN
    ) -> StudentKinds:
        """The kinds of ``num`` equal students."""
        one = np.ones(num)
        return cls(learning_rate * one, weight_decay * one, dropout * one, width * one, max(HIDDEN, math.ceil(width)))


class PopulationStack:
    """M students on one problem.

    Args:
        problem: Data of the students.
        groups: Groups of siblings; M = groups * siblings.
        siblings: Students of a group; they are next to one another.
        batch_size: Rows of a mini-batch.
        seed: Random seed; random numbers are functions of it, the episode and the group.
        device: Where the stack is.
        net: ``mlp`` or ``transformer``.
        losses: Losses of the students; None: cross-entropy for all.
        kinds: Kinds of the students in every episode; None: drawn for each episode.
        compensated: (M,) whether each student counts drawn rows by their weights; None: none does.

    Raises:
        InputError: An unknown network, numbers below 1, or kinds or losses for another number of students.
    """

    def __init__(
        self,
        problem: PopulationProblem,
        *,
        groups: int,
        siblings: int = 1,
        batch_size: int = 128,
        seed: int = 0,
        device: str = "cpu",
        net: Net = "mlp",
        losses: Losses | None = None,
        kinds: StudentKinds | None = None,
        compensated: NDArray[np.bool_] | None = None,
    ) -> None:
        if net not in NETS:
            raise InputError(f"net {net!r} is not known; choose one of {', '.join(NETS)}")
        if min(groups, siblings, batch_size) < 1:
            raise InputError(f"groups ({groups}), siblings ({siblings}) and batch_size ({batch_size}) must be at least 1")
        self.problem, self.groups, self.siblings, self.batch_size, self.seed = problem, groups, siblings, batch_size, seed
        self.device = torch.device(device)
        self.num = groups * siblings
        self._net, self._fixed = net, kinds
        self._loss = StudentLoss(losses, self.num, problem.num_classes, device=self.device)
        self._x = torch.as_tensor(problem.x_train, device=self.device)
        self._y = torch.as_tensor(problem.y_train, device=self.device)
        self.compensated = np.zeros(self.num, dtype=bool) if compensated is None else np.asarray(compensated, dtype=bool)
        self._prior = class_prior(problem.train_counts)
        order = np.argsort(problem.y_train, kind="stable")
        self._counts = np.bincount(problem.y_train, minlength=problem.num_classes)
        self._starts = np.cumsum(self._counts) - self._counts
        self._order = torch.as_tensor(order, device=self.device)  # rows class by class
        self._count = torch.as_tensor(self._counts, device=self.device)
        self._start = torch.as_tensor(self._starts, device=self.device)
        self._place = np.argsort(order)  # of each row in that order
        self._age = None if problem.train_age is None else torch.as_tensor(problem.train_age[order], device=self.device)
        self._batch = self._x.new_empty((self.num * batch_size, self._x.shape[1]))
        self.begin(0, total_steps=1)

    def begin(self, episode: int, *, total_steps: int, kinds: StudentKinds | None = None) -> None:
        """Make new students for an episode.

        Args:
            episode: Number of the episode, on which the random numbers depend.
            total_steps: Mini-batches of the episode; the learning rate warms up and falls to zero over them.
            kinds: Kinds of the students in this episode; None: those of the stack, or drawn.

        Raises:
            InputError: ``kinds`` are for another number of students.
        """
        kinds = kinds or self._fixed or StudentKinds.drawn(self.seed, episode, self.groups, self.siblings)
        if len(kinds.width) != self.num:
            raise InputError(f"kinds are of {len(kinds.width)} students, but the stack has {self.num}")
        self.episode, self.total_steps, self.step, self.kinds = episode, total_steps, 0, kinds
        self.net = NETS[self._net](self.problem.x_train.shape[1], self.problem.num_classes, kinds.hidden)
        used = np.arange(kinds.hidden) < kinds.width[:: self.siblings, None]
        values = self.net.initial(generator(self.seed, "population weights", episode), used)
        flat = np.concatenate([np.repeat(value, self.siblings, axis=0).ravel() for value in values])
        self._flat = torch.as_tensor(flat, dtype=torch.float32, device=self.device)
        self._grad, self._buffer = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._first, self._second = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._parameters, self._gradients = self.net.views(self._flat, self.num), self.net.views(self._grad, self.num)
        self._kept: list[Tensor] | None = None
        self._rate = self._of_parameters(kinds.learning_rate)
        self._decay = self._of_parameters(kinds.learning_rate * kinds.weight_decay)
        self._keep = self._column(1.0 - kinds.dropout)[:, :, None]
        self._drops = bool(kinds.dropout.any())
        self._error = torch.full((self.num, len(self._order)), math.nan, device=self.device)
        self._scored = torch.zeros(len(self._order), dtype=torch.bool, device=self.device)

    def _column(self, values: Floats) -> Tensor:
        """Values (M,) as (M, 1)."""
        return torch.as_tensor(values[:, None], dtype=torch.float32, device=self.device)

    def _of_parameters(self, values: Floats) -> Tensor:
        """The value of each student for each of its parameters, in the layout of the flat tensor."""
        parts = [np.repeat(values, math.prod(shape)) for shape in self.net.shapes]
        return torch.as_tensor(np.concatenate(parts), dtype=torch.float32, device=self.device)

    dtype = torch.float32

    def add_bias(self, bias: Floats) -> None:
        """Add ``bias`` (M, K) to the biases of the output layers, the last parameter of every network."""
        self._parameters[-1].add_(torch.as_tensor(bias[:, :, None], dtype=torch.float32, device=self.device))

    def set_offset(self, logit_offset: Floats) -> None:
        """Set what is added to the logits (M, K) in training from here on."""
        self._loss.compensate(np.ones_like(logit_offset), logit_offset)

    def fit(self, rows: Tensor, row_weight: Tensor | None = None) -> None:
        """Train each student on its ``rows`` (M, n), a mini-batch of columns at a time.

        ``row_weight`` (M, n) are the weights of the rows in the loss besides those of their classes.
        """
        batches = rows.split(self.batch_size, dim=1)
        weights = [None] * len(batches) if row_weight is None else row_weight.split(self.batch_size, dim=1)
        at_once = max(1, NOISE_FLOATS // self.net.noise_size(self.batch_size))
        for first in range(0, len(batches), at_once):
            chosen = batches[first : first + at_once]
            for batch, weight, noise in zip(chosen, weights[first : first + at_once], self._noise(chosen), strict=True):
                flat, features = batch.reshape(-1), self._x.shape[1]
                x = torch.index_select(self._x, 0, flat, out=self._batch[: len(flat)]).view(*batch.shape, features)
                y = self._y.index_select(0, flat).view(batch.shape)
                self.net.gradient(self._parameters, self._gradients, x, y, self._loss, noise, self._keep, weight)
                self._adamw()

    def _noise(self, batches: tuple[Tensor, ...]) -> list[Tensor | None]:
        """Uniform numbers for the dropout of each of ``batches``, sent to the device together."""
        if not self._drops:
            return [None] * len(batches)
        sizes = [self.net.noise_size(batch.shape[1]) for batch in batches]
        drawn = [
            generator(self.seed, "population dropout", self.episode, self.step + i).random(size, dtype=np.float32)
            for i, size in enumerate(sizes)
        ]
        return list(torch.as_tensor(np.concatenate(drawn), device=self.device).split(sizes))

    def _adamw(self) -> None:
        factor = learning_rate_factor(self.step, self.total_steps)
        self.step += 1
        self._first.lerp_(self._grad, 1.0 - _BETA_1)
        self._second.mul_(_BETA_2).addcmul_(self._grad, self._grad, value=1.0 - _BETA_2)
        spread = torch.sqrt(self._second, out=self._buffer).div_(math.sqrt(1.0 - _BETA_2**self.step)).add_(_EPS)
        self._flat.addcmul_(self._flat, self._decay, value=-factor)
        self._flat.addcmul_(torch.div(self._first, spread, out=spread), self._rate, value=-factor / (1.0 - _BETA_1**self.step))

    @torch.no_grad()
    def score(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(M, n, K) class probabilities of the same rows ``x`` (n, F) for every student."""
        at_once = max(1, SCORE_FLOATS.get(self.device.type, SCORE_FLOATS["cpu"]) // (self.num * self.net.row_floats))
        score = torch.empty((self.num, self.problem.num_classes, len(x)), device=self.device)
        for first, rows in enumerate(torch.as_tensor(x, device=self.device).split(at_once)):
            place = slice(first * at_once, first * at_once + len(rows))
            score[:, :, place] = torch.softmax(self.net.logits(self._parameters, rows), dim=1)
        return np.asarray(score.transpose(1, 2).cpu().numpy())

    def refresh(self, rows: NDArray[np.integer[Any]], score: NDArray[np.floating[Any]]) -> None:
        """Store the scores (M, n, K) of training ``rows`` (n,)."""
        label = self.problem.y_train[rows]
        at = torch.as_tensor(self._place[rows], device=self.device)
        self._error[:, at] = torch.as_tensor(1.0 - score[:, np.arange(len(rows)), label], dtype=torch.float32, device=self.device)
        self._scored[at] = True

    def keep(self, students: NDArray[np.bool_]) -> None:
        """Keep the present parameters of some ``students`` (M,), for :meth:`restore_kept`."""
        if self._kept is None:
            self._kept = [parameter.clone() for parameter in self._parameters]
        chosen = torch.as_tensor(students, device=self.device)
        for kept, parameter in zip(self._kept, self._parameters, strict=True):
            kept[chosen] = parameter[chosen]

    def restore_kept(self) -> None:
        """Set the parameters to those that were kept, where there are any."""
        for parameter, kept in zip(self._parameters, self._kept or [], strict=False):
            parameter.copy_(kept)

    def draw(self, n: int, epoch: int, weights: WeightArrays) -> tuple[Tensor, Tensor | None]:
        """Draw training rows; siblings use the same random numbers.

        The loss of students with compensation takes the weights into account from here on.

        Args:
            n: Rows per student.
            epoch: Number of the epoch, on which the random numbers depend.
            weights: Weights of the students. The share of a class without rows goes to the other classes.

        Returns:
            (M, n) rows, and (M, n) their weights in the loss within their class; None where all are 1.
        """
        share = weights.share * (self._counts > 0)
        weights = weights._replace(share=share / share.sum(axis=1, keepdims=True))
        if self.compensated.any():
            counts = self.compensated[:, None]
            class_weight = np.where(counts, weights.class_weight(self._prior), 1.0)
            self._loss.compensate(class_weight, np.where(counts, weights.logit_offset(self._prior), 0.0))
        importance = np.where(self.compensated & (weights.hardness > 0), weights.hardness_importance, 0.0)
        aged = np.isfinite(weights.half_life) & (self._age is not None)
        rng = generator(self.seed, "population draw", self.episode, epoch)
        scored = [self._scored[start : start + count].nonzero()[:, 0] for start, count in zip(self._starts, self._counts, strict=True)]
        rows = torch.empty((self.num, n), dtype=torch.int64, device=self.device)
        row_weight = torch.ones((self.num, n), device=self.device) if importance.any() else None
        longest = max([len(self._order) if aged.any() else 0, n, *map(len, scored)])
        groups = max(1, DRAW_FLOATS.get(self.device.type, DRAW_FLOATS["cpu"]) // (self.siblings * longest))
        for first in range(0, self.groups, groups):
            numbers = rng.random((min(groups, self.groups - first), n, 3), dtype=np.float32)
            u = torch.as_tensor(numbers, device=self.device).permute(2, 0, 1).contiguous().repeat_interleave(self.siblings, dim=1)
            part = slice(first * self.siblings, first * self.siblings + u.shape[1])
            own = WeightArrays(*(values[part] for values in weights))
            edges = torch.as_tensor(_edges(own.share), dtype=torch.float32, device=self.device).contiguous()
            drawn = torch.searchsorted(edges, u[0], right=True)
            count = self._count[drawn]
            place = (u[1] * count).long()
            place = torch.minimum(place, count.sub_(1), out=place)
            level = self._column(own.floor)
            rescaled = (u[2] - level) / (1.0 - level).clamp_min(1e-12)
            for c in np.flatnonzero(own.share.any(axis=0)).tolist():
                draws = _Draws(self._error[part], c, self._starts, self._counts, scored[c], n, own, self._prior[c])
                found = place if draws.even else torch.where((rescaled >= 0) & draws.hard, draws.places(u[1], rescaled), place)
                if aged[part].any():
                    assert self._age is not None
                    old = torch.as_tensor(np.flatnonzero(aged[part]), device=self.device)
                    # Beside siblings without a half-life nothing changes for these.
                    found = found.index_copy(0, old, _inverse(draws.probabilities(self._age)[old], u[1][old]))
                if found is place:
                    continue
                chosen = drawn == c
                place = torch.where(chosen, found, place)
                if row_weight is not None and not draws.even:
                    ratio = draws.ratios(self._age if aged[part].any() else None, self._column(importance[part]))
                    column = found.clamp(0, draws.count - 1)  # of other classes' draws, which are not used
                    row_weight[part] = torch.where(chosen, ratio.gather(1, column), row_weight[part])
            torch.index_select(self._order, 0, place.add_(self._start[drawn]).view(-1), out=rows[part].view(-1))
        return rows, row_weight


def _edges(share: Floats) -> Floats:
    """(G, K - 1) upper edges of the classes but the last, for shares (G, K).

    Rounding must not give a class without a share a draw: from the last class with a share on, edges are
    above 1.
    """
    left = np.cumsum(share[:, ::-1], axis=1)[:, ::-1][:, 1:]  # share of the classes behind each
    return np.where(left > 0, np.cumsum(share, axis=1)[:, :-1], 2.0)


class _Draws:
    """How the rows of one class are drawn by some students.

    Args:
        error: (G, N) errors, class by class.
        number: The class.
        starts: (K,) first column of each class.
        counts: (K,) rows of each class.
        scored: (s,) places of the scored rows within the class, ascending.
        n: Draws of the epoch, of all classes.
        weights: Weights of the students.
        prior: Prior of the class.
    """

    def __init__(
        self,
        error: Tensor,
        number: int,
        starts: NDArray[np.int64],
        counts: NDArray[np.int64],
        scored: Tensor,
        n: int,
        weights: WeightArrays,
        prior: float,
    ) -> None:
        device = error.device
        start, self.count = int(starts[number]), int(counts[number])
        self._start, self._scored, self._weights = start, scored, weights
        draws = np.maximum(np.round(n * weights.share[:, number]), 1.0)
        self._shares: Floats = scored_part(len(scored), self.count, draws) * np.ones(len(draws))
        most = largest_probability(len(scored), self._shares * draws)
        room = most * len(scored) > 1.0
        hard = room & (weights.hardness > 0) & is_chosen(weights.share[:, number], prior)
        self.even = not hard.any()
        """Whether no row is preferred for its error."""
        self.hard = torch.as_tensor(hard, device=device)[:, None]
        """(G, 1) of which students rows are preferred for their errors."""
        if self.even:
            return
        weight = error.index_select(1, start + scored).add_(ERROR_OFFSET).pow_(_column(weights.hardness, device)).double()
        limit_of = torch.as_tensor(np.where(room, most, 1.0), device=device)[:, None]
        limit = limit_of * weight.sum(dim=1, keepdim=True)
        for _ in range(NEWTON_STEPS):
            over = weight > limit
            last, limit = (
                limit,
                limit_of
                * weight.masked_fill(over, 0.0).sum(dim=1, keepdim=True)
                / (1.0 - limit_of * over.sum(dim=1, keepdim=True)).clamp_min(1e-12),
            )
            if torch.equal(last, limit):
                break
        self._weight = torch.minimum(weight, limit, out=weight)

    def places(self, within: Tensor, rescaled: Tensor) -> Tensor:
        """(G, n) places within the class: of scored rows by hardness, or of unscored rows."""
        place = self._scored[_inverse(self._weight, within)]
        unscored = self._unscored()
        if not len(unscored):
            return place
        other = unscored[(within * len(unscored)).long().clamp_(max=len(unscored) - 1)]
        part = torch.as_tensor(self._shares, dtype=torch.float32, device=place.device)
        return torch.where(rescaled < part[:, None], place, other)

    def ratios(self, age: Tensor | None, exponent: Tensor) -> Tensor:
        """(G, rows of the class) loss weight of each row, with mean 1 over the draws."""
        probability = self.probabilities(age)
        even = torch.full_like(probability, 1.0 / self.count) if age is None else self._recent(age)
        ratio = (even / probability.clamp_min(1e-30)) ** exponent
        return (ratio / (ratio * probability).sum(dim=1, keepdim=True)).float()

    def probabilities(self, age: Tensor | None) -> Tensor:
        """(G, rows of the class) float64 probability of each row in a draw of the class."""
        floor, device = _column(self._weights.floor, self._scored.device).double(), self._scored.device
        students = len(self._weights.hardness)
        mixed = torch.full((students, self.count), 1.0 / self.count, dtype=torch.float64, device=device)
        if not self.even:
            shares = torch.as_tensor(self._shares, device=device)[:, None]
            unscored = self.count - len(self._scored)
            part = mixed * floor + (1.0 - floor) * (1.0 - shares) / max(unscored, 1)
            by_error = floor / self.count + (1.0 - floor) * shares * self._weight / self._weight.sum(dim=1, keepdim=True)
            part[:, self._scored] = by_error
            mixed = torch.where(self.hard, part, mixed)
        if age is not None:
            mixed = mixed * self._recent(age)
            mixed = mixed / mixed.sum(dim=1, keepdim=True)
        return mixed

    def _recent(self, age: Tensor) -> Tensor:
        """(G, rows of the class) probability of each row by its age alone."""
        own = age[self._start : self._start + self.count].double()
        recent = torch.exp2(-(own - own.min()) / _column(self._weights.half_life, age.device).double())
        return recent / recent.sum(dim=1, keepdim=True)

    def _unscored(self) -> Tensor:
        unscored = torch.ones(self.count, dtype=torch.bool, device=self._scored.device)
        unscored[self._scored] = False
        return unscored.nonzero()[:, 0]


def _column(values: Floats, device: torch.device) -> Tensor:
    return torch.as_tensor(values[:, None], dtype=torch.float32, device=device)


def _inverse(probability: Tensor, within: Tensor) -> Tensor:
    """(G, n) columns of ``probability`` (G, m), up to a factor, for uniform numbers ``within`` (G, n)."""
    cumulative = probability.cumsum(dim=1)
    found = torch.searchsorted(cumulative, within.double() * cumulative[:, -1:], right=True)
    return found.clamp_(max=probability.shape[1] - 1)
