"""`sparse_attention`: local windows and a few global nodes, at a cost linear in the length.

Each query attends to its window and to the k tokens with the highest scores outside it. This is the pattern
of Longformer (Beltagy et al. 2020), but global nodes are selected by a score instead of by position. In the
causal case they are selected again for each chunk, so no output depends on a later token or its score.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.errors import InputError, UnsupportedError
from balancer.models.attention.backends import BACKENDS
from balancer.models.attention.choice import choose
from balancer.models.attention.layout import Layout, Mode
from balancer.models.attention.selection import select_globals
from balancer.models.attention.transforms import first_order, refuse_tangents

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor | None = None,
    *,
    window: int = 64,
    num_global: int = 8,
    causal: bool = True,
    key_padding_mask: Tensor | None = None,
    mode: Mode = "sliding",
    chunk: int | None = None,
    gate: Tensor | None = None,
    global_queries: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Attend to a local window and to the `num_global` tokens with the highest scores.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 300, 4, 16)
        >>> sparse_attention(q, k, v, score=torch.randn(2, 300)).shape
        torch.Size([2, 300, 4, 16])

    Args:
        query: (B, n, H, d), as linear projections return it. Logits are scaled by d ** -.5.
        key: (B, n, H, d).
        value: (B, n, H, d).
        score: (B, n) score of each token; not needed if `num_global` is 0. The selection is not
            differentiable.
        window: number of keys in a window, including the query's position.
        num_global: number of global nodes, shared by all heads. In the causal case each chunk selects them
            among the tokens before it.
        causal: whether a query attends only to itself and earlier tokens.
        key_padding_mask: (B, n) bool, True where a token is padding (torch's convention): it is not attended
            to, and its output is zero.
        mode: `sliding` windows, or fixed `block`s, which are cheaper and see less.
        chunk: number of queries that share global nodes, at most `window` (default: `window`).
        gate: (B, n), added to the logit of a key where it is a global node; through it the score can be
            trained.
        global_queries: whether global nodes attend to every token; only if not causal.
        backend: auto, or a key of `BACKENDS`. `explain_choice` returns the reason for the choice of auto.

    Returns:
        (B, n, H, d) in the dtype of `query`, with autocast or without. NaN where a query is not finite or
        sees a token that is not (`finite.py`); other tokens, such as later ones and padding, change nothing.

    Raises:
        InputError: Shapes, dtypes or options are invalid; the message names the argument.
        UnsupportedError: The backend can't be used here, or has no forward-mode derivatives. Second
            derivatives are refused in the second backward pass. `backend="reference"` has both.
    """
    layout = Layout(window, window if chunk is None else chunk, causal, mode)
    _check(query, key, value, score, gate, key_padding_mask, num_global, global_queries, layout)
    batch, length = query.shape[:2]
    if not length or not batch:
        return torch.zeros_like(query)
    if num_global and score is not None:
        index = select_globals(score, num_global, causal=causal, chunk=layout.chunk, padding=key_padding_mask)
    else:
        index = torch.empty(batch, layout.num_chunks(length), 0, dtype=torch.int64, device=query.device)
    name = resolve(backend, query, layout, num_global)
    if name != "reference":
        refuse_tangents(name, query, key, value, gate)
    if name in ("dense", "torch"):  # the others refuse second derivatives themselves
        query, key, value = (first_order(name, x) for x in (query, key, value))
        gate = None if gate is None else first_order(name, gate)
    # Autocast would change the dtype with some backends only.
    kind = query.device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        out = BACKENDS[name].run(query, key, value, gate, index, key_padding_mask, layout)
        return _with_global_queries(out, query, key, value, index[:, 0], key_padding_mask) if global_queries else out


def resolve(backend: str, query: Tensor, layout: Layout, num_global: int) -> str:
    """Return the name of the backend to use.

    Raises:
        InputError: The backend is unknown.
        UnsupportedError: The backend can't be used here.
    """
    if backend == "auto":
        return choose(query, layout, num_global)
    if backend not in BACKENDS:
        raise InputError(f"unknown backend '{backend}'; known backends are auto, {', '.join(BACKENDS)}")
    reason = BACKENDS[backend].refuses(query, layout)
    if reason is not None:
        raise UnsupportedError(f"backend '{backend}' can't be used: {reason}; use backend='auto'")
    return backend


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor | None,
    gate: Tensor | None,
    padding: Tensor | None,
    num_global: int,
    global_queries: bool,
    layout: Layout,
) -> None:
    if query.ndim != 4 or key.shape != query.shape or value.shape != query.shape:
        raise InputError(
            f"query, key and value must have the same shape (B, n, H, d), given {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if query.dtype not in DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        raise InputError(
            f"query, key and value must have the same floating dtype of 16, 32 or 64 bits, given {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if not query.shape[2] or not query.shape[3]:
        raise InputError(f"query must have heads and channels, given (B, n, H, d) = {tuple(query.shape)}")
    if not isinstance(num_global, int) or num_global < 0:
        raise InputError(f"num_global must be a whole number of at least 0, given {num_global!r}")
    if num_global and score is None:
        raise InputError("score is needed to select global nodes; give one, or num_global=0")
    for name, given in (("key", key), ("value", value), ("score", score), ("gate", gate), ("key_padding_mask", padding)):
        if given is not None and given.device != query.device:
            raise InputError(f"{name} is on {given.device}, query on {query.device}; move one of them")
    for name, given in (("score", score), ("gate", gate), ("key_padding_mask", padding)):
        if given is not None and given.shape != query.shape[:2]:
            raise InputError(f"{name} must be (B, n) = {tuple(query.shape[:2])}, given {tuple(given.shape)}")
    if score is not None and score.dtype.is_complex:
        raise InputError(f"score must be real, given {score.dtype}")
    if gate is not None and not gate.dtype.is_floating_point:
        raise InputError(f"gate must be floating, because it is added to logits, given {gate.dtype}")
    if padding is not None and padding.dtype != torch.bool:
        raise InputError(f"key_padding_mask must be bool, True where a token is padding, given {padding.dtype}")
    if global_queries and layout.causal:
        raise InputError("global_queries would make causal outputs depend on later tokens; use causal=False")


def _with_global_queries(out: Tensor, query: Tensor, key: Tensor, value: Tensor, index: Tensor, padding: Tensor | None) -> Tensor:
    """Replace the outputs of the global nodes (B, k) by their attention to all tokens except padding."""
    if not index.shape[1]:
        return out
    at = index.clamp(min=0)[..., None, None].expand(-1, -1, *query.shape[2:])
    # A sequence of only padding has no global node. The values computed for it are discarded, but their
    # gradient must not be NaN.
    mask = None if padding is None else (~padding | padding.all(1, keepdim=True))[:, None, None]
    if padding is not None:
        key, value = (x.masked_fill(padding[..., None, None], 0) for x in (key, value))
    q, k, v = (x.transpose(1, 2) for x in (query.gather(1, at), key, value))
    whole = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    # Empty slots have index 0 but must not change that row: they are written to an extra row, which is cut
    # off.
    place = index.where(index >= 0, query.shape[1])[..., None, None].expand_as(at)
    return torch.cat([out, torch.zeros_like(out[:, :1])], 1).scatter(1, place, whole)[:, :-1]
