"""Sparse self-attention as modules: for anyone's sequences, for `nn.TransformerEncoderLayer`, and for the classifier here.

Tokens see their window and the k tokens of highest information entropy beyond it (scores.py); a gate on those lets the loss teach the score, and a dense
start with distillation shows it what there is to choose from (distillation.py). Hard top-k trained from scratch finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.errors import InputError, UnsupportedError
from balancer.models.attention.base import Attended
from balancer.models.attention.dense import DenseAttention
from balancer.models.attention.distillation import Warming, divergence, far_attention
from balancer.models.attention.functional import resolve, sparse_attention
from balancer.models.attention.layout import Layout, Mode
from balancer.models.attention.rotary import rotate
from balancer.models.attention.scores import Gate, Surprisal, make_score, ranked
from balancer.models.attention.selection import select_globals
from balancer.models.attention.streaming import StreamState, empty_state, state_after, stream
from balancer.models.batch import SequenceBatch

Score = Callable[[Tensor, Tensor | None], Tensor]


class SparseCore(Warming):
    """Score, gate and layout; what both modules below do with queries, keys and values (B, n, H, d).

    Args:
        d_model: channels that the score sees.
        layout: windows and chunks.
        num_global: k.
        score: a name in `SCORES`, or a function of (x, fields).
        gate: whether the score is trained through the logits of global nodes.
        backend: as of `sparse_attention`.
        history_length: length that `auto` chooses for, where batches are shorter.
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

    def scored(self, x: Tensor, fields: Tensor | None = None, padding: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Score as the choice ranks it and gate of tokens (B, n, d), each (B, n), None where there are no global nodes, or no gate."""
        if self.score is None:
            return None, None
        score = self._score(x, fields, padding)
        # Eight bits, all that autocast leaves, are too few to rank tokens, and what a gate hides should not depend on it.
        with torch.autocast(x.device.type, enabled=False):
            return ranked(score), None if self.gate is None else self.gate(score)

    def is_dense(self, length: int) -> bool:
        """Whether `auto` takes dense attention: no query of a history has a token beyond its window, so that it is the same, and the faster.

        Like the choice of a backend this goes by the history, not by how far a batch happens to be padded: a sequence is computed in one way in all of them.
        """
        return self.backend == "auto" and self.layout.causal and max(length, self.history_length or 0) <= self.layout.window

    @property
    def learning(self) -> bool:
        """Whether this is dense for now, so that its score may learn. Without global nodes, or where later tokens are seen, it never is."""
        return self.warming and self.layout.causal and self.score is not None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, x: Tensor, fields: Tensor | None, padding: Tensor | None, lengths: Tensor | None
    ) -> Tensor:
        """Sparse attention of tokens `x` (B, n, d), or dense causal attention while learning; (B, n, H, d).

        `padding` (B, n) is for the backend, and may be left out where it stands after the `lengths` (B,) of a causal attention.
        """
        length = x.shape[1]
        unreal = padding
        if padding is None and lengths is not None:
            unreal = torch.arange(length, device=x.device) >= lengths[:, None]
        if self.learning:
            self.divergence = self._distilled(query, key, x, fields, unreal, lengths) if self.training else None
            return dense_causal(query, key, value)
        if padding is None and self.is_dense(length):
            return dense_causal(query, key, value)
        score, gate = self.scored(x, fields, unreal)
        backend = self.backend
        if backend == "auto" and self.history_length is not None and length:
            as_long = query[:, :1].expand(-1, max(length, self.history_length), -1, -1)
            backend = resolve(backend, as_long, self.layout, self.num_global)
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
        # The trunk learns from the task alone; the score follows it.
        return None if received is None else divergence(received, self._score(x.detach(), fields, padding), lengths)

    def _score(self, x: Tensor, fields: Tensor | None, padding: Tensor | None) -> Tensor:
        """(B, n) of tokens (B, n, d)."""
        assert self.score is not None
        with torch.autocast(x.device.type, enabled=False):
            given = (x if x.dtype == torch.float64 else x.float(), fields)
            score = self.score(*given, padding) if isinstance(self.score, Surprisal) else self.score(*given)
        if score.shape != x.shape[:2]:
            raise InputError(f"score must give one number per token, {tuple(x.shape[:2])}, given {tuple(score.shape)}")
        return score


def dense_causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (B, n, H, d) to everything before, by torch's fused kernel."""
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class SparseSelfAttention(nn.Module):
    """Self-attention over (B, n, embed_dim), with the projections of `nn.MultiheadAttention`.

    It can take the place of `nn.TransformerEncoderLayer.self_attn` (batch_first): causal ones where the layer is called with `is_causal=True`,
    others where it is called without a mask.

    Args:
        embed_dim: channels in and out.
        num_heads: heads; divides embed_dim.
        window: keys in a window, the query's own included.
        num_global: global nodes beyond it.
        causal: whether a query sees nothing after itself.
        mode: `sliding` or `block`.
        chunk: queries that share a choice of global nodes (default: window).
        score: what makes a global node: a name in `SCORES`, or a function of tokens (B, n, d) and fields to (B, n).
        gate: whether the score is trained through the logits of global nodes.
        rotary: turn queries and keys by their position.
        bias: whether the projections have one.
        backend: as of `sparse_attention`.

    Raises:
        InputError: A knob is out of its range.
    """

    # What nn.TransformerEncoderLayer reads of its self_attn. No in_proj_bias keeps it from a fused path that would go round this module.
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
        """(B, n, embed_dim) to the same; called as `nn.MultiheadAttention` is, with key and value, it gives a pair as that does.

        Args:
            x: tokens.
            key: `x` again, or left out.
            value: `x` again, or left out.
            key_padding_mask: (B, n), True (or -inf) where a token is padding.
            fields: (B, n, C) raw fields, for scores that look at them.
            attn_mask: accepted with `is_causal=True` only, where it says nothing new.
            need_weights: not to be had.
            is_causal: whether the mask is the causal one.

        Raises:
            InputError: A mask or keys that this attention can't honour.
        """
        if x.is_nested:
            raise UnsupportedError("nested tensors can't be read; build nn.TransformerEncoder with enable_nested_tensor=False")
        for name, given in (("key", key), ("value", value)):
            if given is not None and given is not x:
                raise InputError(f"{name} must be the query itself: this is self-attention")
        if need_weights:
            raise UnsupportedError("need_weights=True can't be honoured: sparse attention makes no (n, n) weights")
        if attn_mask is not None and not is_causal:
            raise UnsupportedError("attn_mask can't be honoured: sparse attention takes a causal mask only, with is_causal=True")
        if is_causal and not self.core.layout.causal:
            raise InputError("is_causal=True was asked of an attention that is not: build it with causal=True")
        if key_padding_mask is not None and key_padding_mask.dtype != torch.bool:
            key_padding_mask = key_padding_mask == -torch.inf
        lengths = None if key_padding_mask is None else (~key_padding_mask).sum(1)
        if self.core.learning and key_padding_mask is not None and bool((key_padding_mask[:, :-1] & ~key_padding_mask[:, 1:]).any()):
            raise InputError("key_padding_mask must have its padding on the right while attention warms up densely; move it there")
        mixed = self.core.attend(*self._projected(x), x, fields, key_padding_mask, lengths)
        out: Tensor = self.out_proj(mixed.flatten(2))
        return out if key is None else (out, None)

    def init_state(self, batch_size: int) -> StreamState:
        """The state of `batch_size` sequences before their first token."""
        if not self.core.layout.causal:
            raise UnsupportedError("only causal attention can stream: build it with causal=True")
        like = self.in_proj_weight.new_empty(self.num_heads, self.embed_dim // self.num_heads)
        return empty_state(batch_size, self.core.layout, self.core.num_global, like)

    def step(self, x: Tensor, state: StreamState, fields: Tensor | None = None) -> tuple[Tensor, StreamState]:
        """Read one token (B, embed_dim) of each sequence: what `forward` gives at its position, and the state after it."""
        query, key, value = (each[:, 0] for each in self._projected(x[:, None], state.position[:, None]))
        score, gate = self.core.scored(x[:, None], None if fields is None else fields[:, None])
        one, two = (None if each is None else each[:, 0] for each in (score, gate))
        mixed, state = stream(query, key, value, one, two, state, self.core.layout)
        out: Tensor = self.out_proj(mixed.flatten(1))
        return out, state

    def _projected(self, x: Tensor, position: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = F.linear(x, self.in_proj_weight, self.input_bias).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if self.rotary:
            at = torch.arange(x.shape[1], device=x.device) if position is None else position
            query, key = rotate(query, at), rotate(key, at)
        return query, key, value


class SparseAttention(DenseAttention):
    """The classifier's sparse attention: causal, sliding; parameters of dense attention keep their names, so weights go from one to the other.

    Args:
        d_model: channels in and out.
        num_heads: heads; divides d_model.
        window: how many positions are seen, the own one included.
        num_global: global nodes beyond it.
        rotary: turn queries and keys by their position.
        score: a name in `SCORES`, or a function of tokens.
        backend: as of `sparse_attention`.
        history_length: longest sequence to come; what `auto` chooses then goes by it in every batch (default: by each batch).
    """

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
        """Mix (B, n, d) to (B, n, d), or to (B, 1, d) for the last real position alone."""
        if not self.core.learning and self.core.is_dense(batch.values.shape[1]):
            return super().forward(batch, last_only=last_only)
        if last_only and not self.core.learning:
            row = torch.arange(len(batch.lengths), device=batch.lengths.device)
            mixed, _ = self._some(batch, row, (batch.lengths - 1).clamp(min=0))
            return batch.last().with_values(self.out(mixed[:, None].flatten(2)))
        everywhere = torch.arange(batch.values.shape[1], device=batch.values.device)
        key, value = self._keys(batch.values, everywhere)
        # Padding stands after all that is real: no real query sees it, and what a padded one gives is zeroed.
        mixed = self.core.attend(self._queries(batch.values, everywhere), key, value, batch.values, None, None, batch.lengths)
        whole = batch.with_values(self.out(mixed.flatten(2)))
        return whole.last() if last_only else whole

    def attended(self, batch: SequenceBatch, row: Tensor, position: Tensor) -> Attended:
        """See `Attention.attended`; S is window + k."""
        return self._some(batch, row, position)[1]

    def init_state(self, batch_size: int) -> StreamState:
        """The state of `batch_size` sequences before their first token."""
        like = self.query.weight.new_empty(self.num_heads, self.query.out_features // self.num_heads)
        return empty_state(batch_size, self.core.layout, self.core.num_global, like)

    def step(self, x: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Read one token (B, d) of each sequence: what `forward` gives at its position, and the state after it."""
        at = state.position[:, None]
        key, value = (each[:, 0] for each in self._keys(x[:, None], at))
        score, gate = (None if each is None else each[:, 0] for each in self.core.scored(x[:, None]))
        mixed, state = stream(self._queries(x[:, None], at)[:, 0], key, value, score, gate, state, self.core.layout)
        out: Tensor = self.out(mixed.flatten(1))
        return out, state

    def read(self, batch: SequenceBatch) -> StreamState:
        """The state after the whole of one sequence, a batch of one (1, n, d)."""
        key, value = self._keys(batch.values, torch.arange(batch.values.shape[1], device=batch.values.device))
        score, gate = self.core.scored(batch.values)
        return state_after(key, value, score, gate, self.core.layout, self.core.num_global)

    def _some(self, batch: SequenceBatch, row: Tensor, position: Tensor) -> tuple[Tensor, Attended]:
        """Mixed values (T, H, d / H) of single queries, and where they look."""
        layout = self.core.layout
        query = self._queries(batch.values[row, position][:, None], position[:, None])[:, 0]
        local = position[:, None] - torch.arange(layout.window, device=position.device)
        seen, at, bias = local >= 0, local, torch.zeros_like(local, dtype=query.dtype)
        score, gate = self.core.scored(batch.values, None, ~batch.mask)
        if score is not None:
            node = select_globals(score, self.core.num_global, causal=True, chunk=layout.chunk)[row, position // layout.chunk]
            kept = (node >= 0) & (node <= position[:, None] - layout.window)
            seen, at = torch.cat([seen, kept], 1), torch.cat([local, node], 1)
            worth = torch.zeros_like(node, dtype=query.dtype) if gate is None else gate[row[:, None], node.clamp(min=0)]
            bias = torch.cat([bias, worth.to(query.dtype)], 1)
        key, value = self._held(batch, row, at.clamp(min=0))
        logits = torch.einsum("thd,tshd->ths", query, key) * query.shape[-1] ** -0.5 + bias[:, None]
        weight = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        is_global = torch.arange(at.shape[1], device=at.device) >= layout.window
        mass = weight.detach().float().mean(1)
        return torch.einsum("ths,tshd->thd", weight, value), Attended(at.masked_fill(~seen, -1), mass, seen & is_global)

    def _held(self, batch: SequenceBatch, row: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (T, S, H, d / H) at (row (T,), at (T, S)), projected before or after they are gathered: where there are fewer."""
        if at.numel() < batch.mask.numel():
            return self._keys(batch.values[row[:, None], at], at)
        key, value = self._keys(batch.values, torch.arange(batch.values.shape[1], device=at.device))
        return key[row[:, None], at], value[row[:, None], at]


class WindowAttention(SparseAttention):
    """Each position sees itself and the `window - 1` before it: sparse attention without global nodes.

    Args:
        d_model: channels in and out.
        num_heads: heads; divides d_model.
        window: how many positions are seen, the own one included.
        rotary: turn queries and keys by their position.
        history_length: as of `SparseAttention`.
    """

    def __init__(self, d_model: int, num_heads: int, window: int = 64, *, rotary: bool = False, history_length: int | None = None) -> None:
        super().__init__(d_model, num_heads, window, 0, rotary=rotary, history_length=history_length)
