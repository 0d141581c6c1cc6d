"""What the modules of sparse attention share: scores, gates, the layout, and the dense warm-up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from balancer.errors import InputError
from balancer.models.attention.distillation import DenseWarmUp, divergence, far_attention
from balancer.models.attention.finite import dense_causal, is_finite, readable
from balancer.models.attention.functional import resolve, sparse_attention
from balancer.models.attention.layout import Layout
from balancer.models.attention.scores import Gate, Surprisal, make_score, ranked

Score = Callable[[Tensor, Tensor | None], Tensor]


class SparseCore(DenseWarmUp):
    """Score, gate and layout of sparse attention, shared by the modules of `sparse.py`.

    It takes queries, keys and values (B, n, H, d).

    Args:
        d_model: number of channels of the score's input.
        layout: windows and chunks.
        num_global: k.
        score: a key of `SCORES`, or a function of (x, fields).
        gate: whether the score is trained through the logits of global nodes.
        backend: as for `sparse_attention`.
        history_length: length for which `auto` chooses, if batches are shorter.
    """

    def __init__(
        self, d_model: int, layout: Layout, num_global: int, score: str | Score, gate: bool, backend: str, history_length: int | None = None
    ) -> None:
        super().__init__()
        if num_global < 0:
            raise InputError(f"num_global must be at least 0, given {num_global}")
        self.layout, self.num_global, self.backend, self.history_length = layout, num_global, backend, history_length
        self.score = make_score(score, d_model) if num_global else None
        self.gate = Gate() if num_global and gate else None

    def scores_and_gates(
        self, x: Tensor, fields: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the rounded score and the gate of tokens (B, n, d).

        Returns:
            Score and gate, (B, n) each; None without global nodes, or without a gate.
        """
        if self.score is None:
            return None, None
        score = self._score(x, fields, padding)
        # bfloat16 of autocast is too coarse to rank tokens.
        with torch.autocast(x.device.type, enabled=False):
            # A token without a score is never selected, but NaN in its gate would spoil the gate's gradients.
            return ranked(score), None if self.gate is None else self.gate(score.masked_fill(score.isnan(), 0))

    def is_dense(self, length: int) -> bool:
        """Whether `auto` uses dense attention, because no query has a token outside its window.

        The result is the same, and dense attention is faster. Like the choice of a backend, this depends on
        history_length and not on the padding of a batch, so that a sequence is always computed in the same
        way.
        """
        return self.backend == "auto" and self.layout.causal and max(length, self.history_length or 0) <= self.layout.window

    @property
    def learning(self) -> bool:
        """Whether this attends densely to train the score; never if not causal or without global nodes."""
        return self.warming and self.layout.causal and self.score is not None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, x: Tensor, fields: Tensor | None, padding: Tensor | None, lengths: Tensor | None
    ) -> Tensor:
        """Apply sparse attention, or dense causal attention during the warm-up.

        Args:
            query: (B, n, H, d).
            key: (B, n, H, d).
            value: (B, n, H, d).
            x: (B, n, d) tokens to score.
            fields: (B, n, C) raw fields, or None.
            padding: (B, n) mask for the backend. May be None if padding follows the `lengths` and the
                attention is causal.
            lengths: (B,) number of real tokens, or None if all are real.

        Returns:
            (B, n, H, d).
        """
        length = x.shape[1]
        score_padding = padding
        if padding is None and lengths is not None:
            score_padding = torch.arange(length, device=x.device) >= lengths[:, None]
        if self.learning:
            self.divergence = self._distilled(query, key, x, fields, score_padding, lengths) if self.training else None
            return dense_causal(query, key, value)
        if padding is None and self.is_dense(length):
            return dense_causal(query, key, value)
        score, gate = self.scores_and_gates(x, fields, score_padding)
        backend = self.backend
        if backend == "auto" and self.history_length is not None and length:
            full_length = query[:, :1].expand(-1, max(length, self.history_length), -1, -1)
            backend = resolve(backend, full_length, self.layout, self.num_global)
        return sparse_attention(
            query,
            key,
            value,
            score,
            window=self.layout.window,
            num_global=self.num_global,
            causal=self.layout.causal,
            key_padding_mask=padding,
            mode=self.layout.mode,
            chunk=self.layout.chunk,
            gate=gate,
            backend=backend,
        )

    def _distilled(
        self, query: Tensor, key: Tensor, x: Tensor, fields: Tensor | None, padding: Tensor | None, lengths: Tensor | None
    ) -> Tensor | None:
        received = far_attention(query, key, self.layout, lengths)
        # The distillation loss trains only the score, not the trunk.
        return None if received is None else divergence(received, self._score(x.detach(), fields, padding), lengths)

    def _score(self, x: Tensor, fields: Tensor | None, padding: Tensor | None) -> Tensor:
        """Compute the scores (B, n) of tokens (B, n, d) in at least float32; NaN for tokens with NaN."""
        assert self.score is not None
        wild = None if readable(x) and is_finite(x) else ~x.isfinite().all(-1)
        if wild is not None:
            x, padding = x.masked_fill(wild[..., None], 0), wild if padding is None else wild | padding
        with torch.autocast(x.device.type, enabled=False):
            given = (x if x.dtype == torch.float64 else x.float(), fields)
            score = self.score(*given, padding) if isinstance(self.score, Surprisal) else self.score(*given)
        if score.shape != x.shape[:2]:
            raise InputError(f"score must return one number per token, {tuple(x.shape[:2])}, but returned {tuple(score.shape)}")
        return score if wild is None else score.masked_fill(wild, torch.nan)
