"""The networks of a stack of students: M of them in every matrix product, behind one small interface.

``mlp``, two hidden layers, has an explicit forward and backward pass, which avoids the overhead of autograd
on such small products. ``transformer`` turns each feature into a token (the feature tokenizer of Gorishniy et
al. 2021, "Revisiting deep learning models for tabular data") for one pre-norm block, and uses autograd with
one backward call for all students. All parameters lie in one flat tensor, so optimizer and schedule don't
depend on the network.

A network of ``hidden`` units can hold narrower students: a unit whose weights all start at 0 gets no gradient
and has no effect. The uniform numbers for dropout are given from outside and shared by all students; the
students differ in the fraction of units they keep.
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
    """Shapes, initial weights, gradient and logits of M equal networks.

    Args:
        features: F, number of features of a row.
        classes: K, number of classes.
        hidden: Units of a hidden layer.
    """

    shapes: tuple[tuple[int, ...], ...]
    """Shape of each parameter of one student, in the order of the flat tensor."""
    row_floats: int
    """Activations per student and row that exist at once when scoring."""

    def __init__(self, features: int, classes: int, hidden: int) -> None:
        self.features, self.classes, self.hidden = features, classes, hidden

    @property
    def size(self) -> int:
        """Number of parameters of one student."""
        return sum(math.prod(shape) for shape in self.shapes)

    def views(self, flat: Tensor, num: int) -> list[Tensor]:
        """Each parameter (M, ...) as a view of ``flat`` (M * size,), which holds them one by one."""
        sizes = [num * math.prod(shape) for shape in self.shapes]
        return [part.view(num, *shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]

    @abstractmethod
    def initial(self, rng: np.random.Generator, used: NDArray[np.bool_]) -> list[Floats]:
        """Initial value (G, ...) of each parameter; ``used`` (G, hidden) are the hidden units in use."""

    @abstractmethod
    def noise_size(self, rows: int) -> int:
        """Number of uniform numbers for the dropout of a mini-batch of ``rows`` rows."""

    @abstractmethod
    def gradient(
        self,
        parameters: list[Tensor],
        out: list[Tensor],
        x: Tensor,
        y: Tensor,
        loss: StudentLoss,
        noise: Tensor | None,
        keep: Tensor,
        row_weight: Tensor | None = None,
    ) -> None:
        """Write the gradient of each student's loss into ``out``.

        Args:
            parameters: Views of the parameters, from :meth:`views`.
            out: Views of the gradients.
            x: (M, B, F) features.
            y: (M, B) class indices.
            loss: Loss of the students.
            noise: (noise_size,) uniform numbers for dropout; None: no dropout.
            keep: (M, 1, 1) fraction of the units that each student keeps.
            row_weight: (M, B) weights of the rows in the loss; None: 1.
        """

    @abstractmethod
    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """(M, K, n) logits of the same rows ``x`` (n, F) for every student, without dropout."""


class MlpNet(StudentNet):
    """Two hidden layers of rectified units."""

    def __init__(self, features: int, classes: int, hidden: int) -> None:
        super().__init__(features, classes, hidden)
        self.shapes = ((features, hidden), (1, hidden), (hidden, hidden), (1, hidden), (classes, hidden), (classes, 1))
        self.row_floats = hidden
        self._buffers: dict[str, Tensor] = {}

    def initial(self, rng: np.random.Generator, used: NDArray[np.bool_]) -> list[Floats]:
        """Normal values, scaled as in He et al. 2015, half of that in the last layer; biases 0."""
        groups, hidden = len(used), self.hidden

        def normal(rows: int, columns: int) -> Floats:
            weight = rng.normal(size=(groups, rows, columns)) * math.sqrt(2.0 / rows)
            rng.normal(size=(groups, 1, columns))  # unused, but keeps the students of a seed the same
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
        """One number per row and unit of both layers."""
        return 2 * rows * self.hidden

    @torch.no_grad()
    def gradient(
        self,
        parameters: list[Tensor],
        out: list[Tensor],
        x: Tensor,
        y: Tensor,
        loss: StudentLoss,
        noise: Tensor | None,
        keep: Tensor,
        row_weight: Tensor | None = None,
    ) -> None:
        """Explicit gradient; buffers are reused, because allocating them takes longer than filling them."""
        w1, b1, w2, b2, w3, b3 = parameters
        g1, c1, g2, c2, g3, c3 = out
        shape = (*x.shape[:2], self.hidden)
        first, second, back, mask = (self._buffer(name, shape, x) for name in ("first", "second", "back", "mask"))
        masks = (None, None) if noise is None else noise.view(2, *shape[1:])
        h1 = _dropped(torch.baddbmm(b1, x, w1, out=first).relu_(), masks[0], keep, mask)
        h2 = _dropped(torch.baddbmm(b2, h1, w2, out=second).relu_(), masks[1], keep, mask)
        delta = loss.derivative(torch.baddbmm(b3, w3, h2.transpose(1, 2)), y, row_weight)
        torch.bmm(delta, h2, out=g3)
        torch.sum(delta, 2, keepdim=True, out=c3)
        back = _through(torch.bmm(delta.transpose(1, 2), w3, out=back), h2, noise, keep)
        torch.bmm(h1.transpose(1, 2), back, out=g2)
        torch.sum(back, 1, keepdim=True, out=c2)
        # The output of the second layer is not needed any more, so its buffer is used again.
        back = _through(torch.bmm(back, w2.transpose(1, 2), out=second), h1, noise, keep)
        torch.bmm(x.transpose(1, 2), back, out=g1)
        torch.sum(back, 1, keepdim=True, out=c1)

    @torch.no_grad()
    def logits(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """See :meth:`StudentNet.logits`."""
        w1, b1, w2, b2, w3, b3 = parameters
        shape = (len(w1), len(x), self.hidden)
        h1 = torch.baddbmm(b1, x.expand(len(w1), -1, -1), w1, out=self._buffer("first", shape, x)).relu_()
        h2 = torch.baddbmm(b2, h1, w2, out=self._buffer("second", shape, x)).relu_()
        return torch.baddbmm(b3, w3, h2.transpose(1, 2))

    def _buffer(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The buffer with this name, as a tensor of ``shape``; a larger one where it is too small."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size or buffer.dtype != like.dtype:
            buffer = self._buffers[name] = like.new_empty(size)
        return buffer[:size].view(shape)


class TransformerNet(StudentNet):
    """One pre-norm block over the features as tokens, mean pooling, a linear head.

    A gain is stored as its difference from 1, so that weight decay moves it towards 1.
    """

    def __init__(self, features: int, classes: int, hidden: int) -> None:
        super().__init__(features, classes, hidden)
        d = D_MODEL
        norm = ((d,), (d,))
        tokens, attention = ((features, d), (features, d)), ((d, 3 * d), (1, 3 * d), (d, d), (1, d))
        self.shapes = (*tokens, *norm, *attention, *norm, (d, hidden), (1, hidden), (hidden, d), (1, d), *norm, (classes, d), (classes, 1))
        self.row_floats = features * max(3 * d, hidden)

    def initial(self, rng: np.random.Generator, used: NDArray[np.bool_]) -> list[Floats]:
        """Normal values that keep the variance of the inputs; biases and gains are 0.

        Tokens have unit size. Values in the head and in the last layer of each branch are smaller.
        """
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
        """One number per token and channel of the attention's output, and per token and hidden unit."""
        return rows * self.features * (D_MODEL + self.hidden)

    def gradient(
        self,
        parameters: list[Tensor],
        out: list[Tensor],
        x: Tensor,
        y: Tensor,
        loss: StudentLoss,
        noise: Tensor | None,
        keep: Tensor,
        row_weight: Tensor | None = None,
    ) -> None:
        """One backward pass of the sum of the losses: each loss depends on its student's parameters only."""
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        with torch.enable_grad():
            total = loss.value(self._forward(leaves, x, noise, keep), y, row_weight).sum()
        for target, gradient in zip(out, torch.autograd.grad(total, leaves), strict=True):
            target.copy_(gradient)

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
"""Networks by name."""


def _dropped(h: Tensor, noise: Tensor | None, keep: Tensor, mask: Tensor) -> Tensor:
    """Dropout of ``h`` (M, B, H), in place.

    Units with ``noise`` (B, H) below the fraction ``keep`` are divided by that fraction, others are 0. The
    mask is a difference rounded up, written into the buffer ``mask``: multiplying by booleans takes ten times
    as long.
    """
    return h if noise is None else h.mul_(torch.sub(keep, noise, out=mask).ceil_()).div_(keep)


def _through(back: Tensor, h: Tensor, noise: Tensor | None, keep: Tensor) -> Tensor:
    """Gradient before dropout and rectifier, from ``back`` after them, in place; it is 0 where ``h`` is 0."""
    torch.ops.aten.threshold_backward.grad_input(back, h, 0, grad_input=back)
    return back if noise is None else back.div_(keep)


def _norm(t: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Layer norm over the channels of ``t`` (M, n, d) with the gain and shift (M, d) of each student."""
    return torch.addcmul(shift[:, None], F.layer_norm(t, t.shape[-1:]), 1.0 + gain[:, None])
