"""Sparse self-attention as modules, for any sequences and for the classifier.

Tokens attend to their window and to the k tokens with the highest scores outside it (scores.py). A gate on
those k tokens lets the loss train the score. A dense warm-up with distillation gives the score a gradient for
all tokens (distillation.py); in experiments top-k selection trained from scratch did not learn which tokens
to select.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.deprecation import renamed_keyword
from balancer.errors import InputError, UnsupportedError
from balancer.models.attention.base import Attended
from balancer.models.attention.core import Score, SparseCore
from balancer.models.attention.dense import DenseAttention, without_padding
from balancer.models.attention.finite import is_finite, readable
from balancer.models.attention.layout import Layout, Mode
from balancer.models.attention.rotary import rotate
from balancer.models.attention.selection import select_globals
from balancer.models.attention.streaming import StreamState, empty_state, state_after, stream
from balancer.models.batch import SequenceBatch


class SparseSelfAttention(nn.Module):
    """Self-attention over (B, n, embed_dim), with the projections of `nn.MultiheadAttention`.

    It can replace `nn.TransformerEncoderLayer.self_attn` (batch_first): a causal one if the layer is called
    with `is_causal=True`, a non-causal one if the layer is called without a mask.

    Args:
        embed_dim: number of input and output channels.
        num_heads: number of heads; must divide embed_dim.
        window: number of keys in a window, including the query's position.
        num_global: number of global nodes outside the window.
        causal: whether a query attends only to itself and earlier tokens.
        mode: `sliding` or `block`.
        chunk: number of queries that share global nodes (default: window).
        score: score of the global nodes: a key of `SCORES`, or a function from tokens (B, n, d) and fields to
            (B, n).
        gate: whether the score is trained through the logits of global nodes.
        rotary: whether queries and keys are rotated by their position.
        bias: whether the projections have a bias.
        backend: as for `sparse_attention`.

    Raises:
        InputError: An argument is out of range.

    >>> layer = SparseSelfAttention(64, 4, window=16, num_global=4)
    >>> layer(torch.randn(2, 100, 64)).shape
    torch.Size([2, 100, 64])
    """

    # Attributes that nn.TransformerEncoderLayer reads from its self_attn. Without in_proj_bias it does not
    # use its fused path, which would not call this module.
    batch_first = True
    _qkv_same_embed_dim = True
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        window: int = 64,
        num_global: int = 8,
        causal: bool = True,
        mode: Mode = "sliding",
        chunk: int | None = None,
        score: str | Score = "landmark_entropy",
        gate: bool = True,
        rotary: bool = False,
        bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise InputError(f"num_heads must divide embed_dim, given {num_heads} and {embed_dim}")
        self.embed_dim, self.num_heads, self.rotary = embed_dim, num_heads, rotary
        layout = Layout(window, window if chunk is None else chunk, causal, mode)
        self.core = SparseCore(embed_dim, layout, num_global, score, gate, backend)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.input_bias = nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self,
        x: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        fields: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,
        is_causal: bool = False,
    ) -> Tensor | tuple[Tensor, None]:
        """Map (B, n, embed_dim) to the same shape.

        If called with key and value, as `nn.MultiheadAttention` is, it returns a pair like that module.

        Args:
            x: tokens.
            key: `x` again, or None.
            value: `x` again, or None.
            key_padding_mask: (B, n), True (or -inf) where a token is padding.
            fields: (B, n, C) raw fields, for scores that use them.
            attn_mask: accepted only with `is_causal=True`, where it is redundant.
            need_weights: not supported.
            is_causal: whether the mask is the causal one.

        Raises:
            InputError: The key or value is not `x`, or padding or causality does not fit this attention.
            UnsupportedError: A mask, weights, or nested tensors are requested.
        """
        if x.is_nested:
            raise UnsupportedError("nested tensors are not supported; build nn.TransformerEncoder with enable_nested_tensor=False")
        for name, given in (("key", key), ("value", value)):
            if given is not None and given is not x:
                raise InputError(f"{name} must be the query itself: this is self-attention")
        if need_weights:
            raise UnsupportedError(
                "need_weights=True is not supported, because sparse attention has no (n, n) weights; use need_weights=False"
            )
        if attn_mask is not None and not is_causal:
            raise UnsupportedError("attn_mask is supported only with is_causal=True; leave it out")
        if is_causal and not self.core.layout.causal:
            raise InputError("is_causal=True needs a causal attention: build it with causal=True")
        if key_padding_mask is not None and key_padding_mask.dtype != torch.bool:
            key_padding_mask = key_padding_mask == -torch.inf
        lengths = None if key_padding_mask is None else (~key_padding_mask).sum(1)
        if self.core.learning and key_padding_mask is not None and bool((key_padding_mask[:, :-1] & ~key_padding_mask[:, 1:]).any()):
            raise InputError("key_padding_mask must have its padding on the right during the dense warm-up; move it there")
        if key_padding_mask is not None and not (readable(x) and is_finite(x)):
            x = x.masked_fill(key_padding_mask[..., None], 0)
        mixed = self.core.attend(*self._projected(x), x, fields, key_padding_mask, lengths)
        out: Tensor = self.out_proj(mixed.flatten(2))
        return out if key is None else (out, None)

    def init_state(self, batch_size: int) -> StreamState:
        """Initial state of `batch_size` empty sequences."""
        if not self.core.layout.causal:
            raise UnsupportedError("streaming needs causal attention: build it with causal=True")
        like = self.in_proj_weight.new_empty(self.num_heads, self.embed_dim // self.num_heads)
        return empty_state(batch_size, self.core.layout, self.core.num_global, like)

    def step(self, x: Tensor, state: StreamState, fields: Tensor | None = None) -> tuple[Tensor, StreamState]:
        """Read one token (B, embed_dim) of each sequence.

        Returns:
            The result, equal to that of :meth:`forward` at this position up to rounding, and the new state.
        """
        query, key, value = (each[:, 0] for each in self._projected(x[:, None], state.position[:, None]))
        scores = self.core.scores_and_gates(x[:, None], None if fields is None else fields[:, None])
        score, gate = (None if each is None else each[:, 0] for each in scores)
        mixed, state = stream(query, key, value, score, gate, state, self.core.layout)
        out: Tensor = self.out_proj(mixed.flatten(1))
        return out, state

    def _projected(self, x: Tensor, position: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = F.linear(x, self.in_proj_weight, self.input_bias).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if self.rotary:
            at = torch.arange(x.shape[1], device=x.device) if position is None else position
            query, key = rotate(query, at), rotate(key, at)
        return query, key, value


class SparseAttention(DenseAttention):
    """The classifier's sparse attention: causal, with sliding windows.

    Its projections have the names of those of dense attention, so weights can be copied from one to the
    other.

    Args:
        d_model: number of input and output channels.
        num_heads: number of heads; must divide d_model.
        window: number of positions attended to, including the position itself.
        num_global: number of global nodes outside the window.
        rotary: whether queries and keys are rotated by their position.
        score: a key of `SCORES`, or a function of tokens.
        backend: as for `sparse_attention`.
        history_length: maximum length of a sequence, for which `auto` chooses (default: the length of each
            batch).
    """

    @renamed_keyword("history", "history_length")
    def __init__(
        self,
        d_model: int,
        num_heads: int,
        window: int = 64,
        num_global: int = 8,
        *,
        rotary: bool = False,
        score: str | Score = "landmark_entropy",
        backend: str = "auto",
        history_length: int | None = None,
    ) -> None:
        super().__init__(d_model, num_heads, rotary=rotary)
        self.core = SparseCore(d_model, Layout(window, window), num_global, score, True, backend, history_length)

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        """Map (B, n, d) to (B, n, d), or to (B, 1, d) for the last real position of each row."""
        if not self.core.learning and self.core.is_dense(batch.values.shape[1]):
            return super().forward(batch, last_only=last_only)
        batch = without_padding(batch)
        if last_only and not self.core.learning:
            row = torch.arange(len(batch.lengths), device=batch.lengths.device)
            mixed, _ = self._attend_single(batch, row, (batch.lengths - 1).clamp(min=0))
            return batch.last().with_values(self.out(mixed[:, None].flatten(2)))
        positions = torch.arange(batch.values.shape[1], device=batch.values.device)
        key, value = self._keys(batch.values, positions)
        # Padding follows all real positions, so no real query attends to it; outputs at padding are set to
        # zero.
        mixed = self.core.attend(self._queries(batch.values, positions), key, value, batch.values, None, None, batch.lengths)
        whole = batch.with_values(self.out(mixed.flatten(2)))
        return whole.last() if last_only else whole

    def attended(self, batch: SequenceBatch, row: Tensor, position: Tensor) -> Attended:
        """See :meth:`Attention.attended`; S is window + k."""
        return self._attend_single(batch, row, position)[1]

    def init_state(self, batch_size: int) -> StreamState:
        """Initial state of `batch_size` empty sequences."""
        like = self.query.weight.new_empty(self.num_heads, self.query.out_features // self.num_heads)
        return empty_state(batch_size, self.core.layout, self.core.num_global, like)

    def step(self, x: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Read one token (B, d) of each sequence; see :meth:`Attention.step`."""
        at = state.position[:, None]
        key, value = (each[:, 0] for each in self._keys(x[:, None], at))
        score, gate = (None if each is None else each[:, 0] for each in self.core.scores_and_gates(x[:, None]))
        mixed, state = stream(self._queries(x[:, None], at)[:, 0], key, value, score, gate, state, self.core.layout)
        out: Tensor = self.out(mixed.flatten(1))
        return out, state

    def read(self, batch: SequenceBatch) -> StreamState:
        """Compute the state after one whole sequence (1, n, d); see :meth:`Attention.read`."""
        key, value = self._keys(batch.values, torch.arange(batch.values.shape[1], device=batch.values.device))
        score, gate = self.core.scores_and_gates(batch.values)
        return state_after(key, value, score, gate, self.core.layout, self.core.num_global)

    def _attend_single(self, batch: SequenceBatch, row: Tensor, position: Tensor) -> tuple[Tensor, Attended]:
        """Compute the results (T, H, d / H) and the weights of single queries."""
        layout = self.core.layout
        query = self._queries(batch.values[row, position][:, None], position[:, None])[:, 0]
        local = position[:, None] - torch.arange(layout.window, device=position.device)
        seen, at, bias = local >= 0, local, torch.zeros_like(local, dtype=query.dtype)
        score, gate = self.core.scores_and_gates(batch.values, None, ~batch.mask)
        if score is not None:
            node = select_globals(score, self.core.num_global, causal=True, chunk=layout.chunk)[row, position // layout.chunk]
            outside = (node >= 0) & (node <= position[:, None] - layout.window)
            seen, at = torch.cat([seen, outside], 1), torch.cat([local, node], 1)
            node_bias = torch.zeros_like(node, dtype=query.dtype) if gate is None else gate[row[:, None], node.clamp(min=0)]
            bias = torch.cat([bias, node_bias.to(query.dtype)], 1)
        key, value = (x.masked_fill(~seen[..., None, None], 0) for x in self._keys_at(batch, row, at.clamp(min=0)))
        logits = torch.einsum("thd,tshd->ths", query, key) * query.shape[-1] ** -0.5 + bias[:, None]
        weight = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        is_global = torch.arange(at.shape[1], device=at.device) >= layout.window
        mass = weight.detach().float().mean(1)
        return torch.einsum("ths,tshd->thd", weight, value), Attended(at.masked_fill(~seen, -1), mass, seen & is_global)

    def _keys_at(self, batch: SequenceBatch, row: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values (T, S, H, d / H) at (row (T,), at (T, S)).

        They are projected before or after gathering, whichever needs fewer projections.
        """
        if at.numel() < batch.mask.numel():
            return self._keys(batch.values[row[:, None], at], at)
        key, value = self._keys(batch.values, torch.arange(batch.values.shape[1], device=at.device))
        return key[row[:, None], at], value[row[:, None], at]


class WindowAttention(SparseAttention):
    """Sparse attention without global nodes.

    Each position attends to itself and the `window - 1` positions before it.

    Args:
        d_model: number of input and output channels.
        num_heads: number of heads; must divide d_model.
        window: number of positions attended to, including the position itself.
        rotary: whether queries and keys are rotated by their position.
        history_length: as for `SparseAttention`.
    """

    @renamed_keyword("history", "history_length")
    def __init__(self, d_model: int, num_heads: int, window: int = 64, *, rotary: bool = False, history_length: int | None = None) -> None:
        super().__init__(d_model, num_heads, window, 0, rotary=rotary, history_length=history_length)
