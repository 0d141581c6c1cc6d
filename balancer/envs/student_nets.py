"""The nets of a stack of students: M of them side by side in every matrix product, behind one small interface.

``mlp``, two hidden layers, has forward and backward written out, which spares autograd's bookkeeping on products this small; ``transformer`` makes a token of
each feature (the feature tokenizer of Gorishniy et al. 2021, "Revisiting deep learning models for tabular data") for one pre-norm block, and leaves the
backward to autograd, one call for all students. All parameters lie in one flat tensor, so optimizer and schedule know nothing of nets.

A net of ``hidden`` units holds narrower students too: a unit whose weights all begin at 0 gets no gradient and stays out. Dropout noise comes from outside,
uniform numbers shared by all students; what differs is the share each keeps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from balancer.envs.student_losses import StudentLoss
from balancer.sampling.weights import Floats

Net = Literal["mlp", "transformer"]
D_MODEL, NUM_HEADS = 16, 2
"""Channels of a token and attention heads of the transformer."""


class StudentNet(ABC):
    """Shapes, first weights, gradient and logits of M equal nets.

    Args:
        features: F of a row.
        classes: K.
        hidden: units of a hidden layer.
    """

    shapes: tuple[tuple[int, ...], ...]
    """Of each parameter of one student, in the order of the flat tensor."""
    row_floats: int
    """Numbers held at once per student and row when scoring."""

    def __init__(self, features: int, classes: int, hidden: int) -> None:
        self.features, self.classes, self.hidden = features, classes, hidden

    @property
    def size(self) -> int:
        """Parameters of one student."""
        return sum(math.prod(shape) for shape in self.shapes)

    def views(self, flat: Tensor, num: int) -> list[Tensor]:
        """Each parameter (M, ...) as a view into ``flat`` (M * size,): one parameter of all students, then the next."""
        sizes = [num * math.prod(shape) for shape in self.shapes]
        return [part.view(num, *shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]

    @abstractmethod
    def initial(self, rng: np.random.Generator, used: NDArray[np.bool_]) -> list[Floats]:
        """First value of each parameter, (G, ...), for G students whose hidden units in use are ``used`` (G, hidden)."""

    @abstractmethod
    def noise_size(self, rows: int) -> int:
        """Uniform numbers that the dropout of a mini-batch of ``rows`` takes."""

    @abstractmethod
    def gradient(
        self, parameters: list[Tensor], out: list[Tensor], x: Tensor, y: Tensor, loss: StudentLoss, noise: Tensor | None, keep: Tensor
    ) -> None:
        """Write into ``out`` the gradient of each student's loss.

        Args:
            parameters: as :meth:`views` gives them. out: the same of the gradients.
            x: (M, B, F). y: (M, B).
            loss: of the students.
            noise: (noise_size,) uniform numbers for dropout; None: nobody drops.
            keep: (M, 1, 1) share of the units that each student keeps.
        """

    @abstractmethod
    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """(M, K, n) logits of ``x`` (n, F) without dropout, the same rows for every student."""


class MlpNet(StudentNet):
    """Two hidden layers of rectified units."""

    def __init__(self, features: int, classes: int, hidden: int) -> None:
        super().__init__(features, classes, hidden)
        self.shapes = ((features, hidden), (1, hidden), (hidden, hidden), (1, hidden), (classes, hidden), (classes, 1))
        self.row_floats = hidden
        self._held: dict[str, Tensor] = {}

    def initial(self, rng: np.random.Generator, used: NDArray[np.bool_]) -> list[Floats]:
        """Normal, scaled as He et al. 2015; the last layer half of that, biases 0."""
        groups, hidden = len(used), self.hidden

        def normal(rows: int, columns: int) -> Floats:
            weight = rng.normal(size=(groups, rows, columns)) * math.sqrt(2.0 / rows)
            rng.normal(size=(groups, 1, columns))  # biases had random numbers once; drawn still, so that a seed keeps its students
            return weight

        first, second, last = normal(self.features, hidden), normal(hidden, hidden), 0.5 * normal(hidden, self.classes)
        zero = np.zeros((groups, 1, hidden))
        return [
            first * used[:, None],
            zero,
            second * used[:, None],
            zero,
            np.ascontiguousarray(last.transpose(0, 2, 1)),
            np.zeros((groups, self.classes, 1)),
        ]

    def noise_size(self, rows: int) -> int:
        """One number per unit of both layers and row."""
        return 2 * rows * self.hidden

    @torch.no_grad()
    def gradient(
        self, parameters: list[Tensor], out: list[Tensor], x: Tensor, y: Tensor, loss: StudentLoss, noise: Tensor | None, keep: Tensor
    ) -> None:
        """By hand, into memory that is kept from step to step: to ask the system for fresh megabytes takes longer than to fill them."""
        w1, b1, w2, b2, w3, b3 = parameters
        g1, c1, g2, c2, g3, c3 = out
        shape = (*x.shape[:2], self.hidden)
        first, second, back, mask = (self._room(name, shape, x) for name in ("first", "second", "back", "mask"))
        masks = (None, None) if noise is None else noise.view(2, *shape[1:])
        h1 = _dropped(torch.baddbmm(b1, x, w1, out=first).relu_(), masks[0], keep, mask)
        h2 = _dropped(torch.baddbmm(b2, h1, w2, out=second).relu_(), masks[1], keep, mask)
        delta = loss.derivative(torch.baddbmm(b3, w3, h2.transpose(1, 2)), y)
        torch.bmm(delta, h2, out=g3)
        torch.sum(delta, 2, keepdim=True, out=c3)
        back = _through(torch.bmm(delta.transpose(1, 2), w3, out=back), h2, noise, keep)
        torch.bmm(h1.transpose(1, 2), back, out=g2)
        torch.sum(back, 1, keepdim=True, out=c2)
        back = _through(torch.bmm(back, w2.transpose(1, 2), out=second), h1, noise, keep)  # the second layer's output is done with
        torch.bmm(x.transpose(1, 2), back, out=g1)
        torch.sum(back, 1, keepdim=True, out=c1)

    @torch.no_grad()
    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """See :meth:`StudentNet.logits`."""
        w1, b1, w2, b2, w3, b3 = parameters
        shape = (len(w1), len(x), self.hidden)
        h1 = torch.baddbmm(b1, x.expand(len(w1), -1, -1), w1, out=self._room("first", shape, x)).relu_()
        h2 = torch.baddbmm(b2, h1, w2, out=self._room("second", shape, x)).relu_()
        return torch.baddbmm(b3, w3, h2.transpose(1, 2))

    def _room(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory of the same name as last time, or more of it."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size or held.dtype != like.dtype:
            held = self._held[name] = like.new_empty(size)
        return held[:size].view(shape)


class TransformerNet(StudentNet):
    """One pre-norm block over the features as tokens, mean pooling, a linear head. A gain is kept as its distance from 1, so that decay pulls it there."""

    def __init__(self, features: int, classes: int, hidden: int) -> None:
        super().__init__(features, classes, hidden)
        d = D_MODEL
        norm = ((d,), (d,))
        tokens, attention = ((features, d), (features, d)), ((d, 3 * d), (1, 3 * d), (d, d), (1, d))
        self.shapes = (*tokens, *norm, *attention, *norm, (d, hidden), (1, hidden), (hidden, d), (1, d), *norm, (classes, d), (classes, 1))
        self.row_floats = features * max(3 * d, hidden)

    def initial(self, rng: np.random.Generator, used: NDArray[np.bool_]) -> list[Floats]:
        """Normal with the variance of the inputs kept; tokens of unit size; biases and gains 0; head and ends of branches smaller."""
        groups, d = len(used), D_MODEL
        scale = {0: 0.5, 1: 0.5, 4: d**-0.5, 6: 0.5 * d**-0.5, 10: (2.0 / d) ** 0.5, 12: 0.5 * self.hidden**-0.5, 16: 0.5 * d**-0.5}
        values = [
            rng.normal(size=(groups, *shape)) * scale[index] if index in scale else np.zeros((groups, *shape))
            for index, shape in enumerate(self.shapes)
        ]
        values[10] *= used[:, None, :]
        values[12] *= used[:, :, None]
        return values

    def noise_size(self, rows: int) -> int:
        """One number per token and channel of what attention adds, and per hidden unit of the token's own layer."""
        return rows * self.features * (D_MODEL + self.hidden)

    def gradient(
        self, parameters: list[Tensor], out: list[Tensor], x: Tensor, y: Tensor, loss: StudentLoss, noise: Tensor | None, keep: Tensor
    ) -> None:
        """One backward of the sum of the students' losses: no student's parameter enters another's."""
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        with torch.enable_grad():
            total = loss.value(self._forward(leaves, x, noise, keep), y).sum()
        for own, found in zip(out, torch.autograd.grad(total, leaves), strict=True):
            own.copy_(found)

    @torch.no_grad()
    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """See :meth:`StudentNet.logits`."""
        return self._forward(parameters, x.expand(len(parameters[0]), -1, -1), None, None)

    def _forward(self, parameters: list[Tensor], x: Tensor, noise: Tensor | None, keep: Tensor | None) -> Tensor:
        token, place, n1, m1, w_in, b_in, w_out, b_out, n2, m2, w1, b1, w2, b2, n3, m3, head, bias = parameters
        (num, rows, features), d = x.shape, D_MODEL
        masks: list[Tensor | float] = [1.0, 1.0]
        if noise is not None and keep is not None:
            parts = noise.split([rows * features * d, rows * features * self.hidden])
            masks = [(keep - part.view(rows * features, -1)).ceil_().div_(keep) for part in parts]
        t = torch.addcmul(place[:, None], x[..., None], token[:, None]).view(num, rows * features, d)
        mixed = torch.baddbmm(b_in, _norm(t, n1, m1), w_in).view(num * rows, features, 3, NUM_HEADS, d // NUM_HEADS)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(num, rows * features, d)
        t = t + torch.baddbmm(b_out, seen, w_out) * masks[0]
        t = t + torch.baddbmm(b2, torch.baddbmm(b1, _norm(t, n2, m2), w1).relu() * masks[1], w2)
        pooled = _norm(t, n3, m3).view(num, rows, features, d).mean(dim=2)
        return torch.baddbmm(bias, head, pooled.transpose(1, 2))


NETS: dict[Net, type[StudentNet]] = {"mlp": MlpNet, "transformer": TransformerNet}
"""By name."""


def _dropped(h: Tensor, noise: Tensor | None, keep: Tensor, mask: Tensor) -> Tensor:
    """``h`` (M, B, H), divided by the share kept where ``noise`` (B, H) is below that, 0 elsewhere; in place, with room for a ``mask``.

    The mask is a difference rounded up: a comparison gives booleans, which cost ten times as much to multiply by.
    """
    return h if noise is None else h.mul_(torch.sub(keep, noise, out=mask).ceil_()).div_(keep)


def _through(back: Tensor, h: Tensor, noise: Tensor | None, keep: Tensor) -> Tensor:
    """Gradient before dropout and rectifier, from ``back`` after them, in place; where ``h`` is 0, dropped or not, there is none."""
    torch.ops.aten.threshold_backward.grad_input(back, h, 0, grad_input=back)
    return back if noise is None else back.div_(keep)


def _norm(t: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Layer norm over the channels of ``t`` (M, n, d) with each student's gain and shift (M, d)."""
    return torch.addcmul(shift[:, None], F.layer_norm(t, t.shape[-1:]), 1.0 + gain[:, None])
