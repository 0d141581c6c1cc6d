"""Attention with a block mask in plain torch operations, for what the kernel does not compute.

These are logits changed by a `score_mod`, float64, and machines without the library. One block of queries
after the other is computed with the keys it visits, and computed again in the backward pass: no matrix of all
queries and keys is held. Gradients are those of torch, also of tensors that `score_mod` captures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from balancer.models.attention.flex_plan import OF_EACH, WORD, mapped, positions, read

AT_A_TIME = 1 << 22
"""Logits that are held at a time, unless `WORD` queries have more."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Part:
    """Some queries with the keys they visit."""

    begin: int
    end: int
    keys: Tensor | None
    """Positions of the keys, int64 (K,); None for all."""
    seen: Tensor | None
    """bool, broadcast to (B, H, end - begin, K); None if all is seen."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod | None, plan: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute attention with a block mask; see `balancer.models.attention.flex_native.run`.

    Args:
        query: (B, H, n, E).
        key: (B, Hk, m, E); Hk divides H.
        value: (B, Hk, m, Ev).
        score_mod: changes a logit; None for no change.
        plan: of the block mask, see `balancer.models.attention.flex_plan`; None if every query sees every
            key.
        scale: factor of the logits.

    Returns:
        The output (B, H, n, Ev) and the logarithm of the softmax's denominator (B, H, n).
    """
    # Captured tensors may need gradients that the inputs do not. The transformations of torch.func can't
    # compute again.
    again = torch.is_grad_enabled() and (score_mod is not None or any(x.requires_grad for x in (query, key, value)))
    again = again and not torch._C._are_functorch_transforms_active()
    results = []
    with torch.autocast("cpu", enabled=False):
        for part in _parts(query, key, plan):
            compute = partial(_attend_part, part, score_mod=score_mod, scale=scale)
            if again:
                results.append(checkpoint(compute, query, key, value, use_reentrant=False, preserve_rng_state=False))
            else:
                results.append(compute(query, key, value))
    if not results:
        return query.new_zeros(*query.shape[:3], value.shape[-1]), query.new_full(query.shape[:3], -torch.inf)
    outputs, sums = zip(*results, strict=True)
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def _parts(query: Tensor, key: Tensor, plan: Tensor | None) -> Iterator[_Part]:
    batch, heads, length, _ = query.shape

    def step(keys: int) -> int:
        return max(1, AT_A_TIME // max(1, batch * heads * keys * WORD)) * WORD

    if plan is None:
        for begin in range(0, length, step(key.shape[2])):
            yield _Part(begin, min(begin + step(key.shape[2]), length), None, None)
        return
    blocks = read(plan)
    for row in range(blocks.rows):
        keys = positions(blocks.visited(row), blocks.width)
        keys = keys[keys < key.shape[2]]
        count = min(blocks.height, length - row * blocks.height)
        for begin in range(0, count, step(len(keys))):
            end = min(begin + step(len(keys)), count)
            seen = blocks.seen(row, begin, end, key.shape[2])
            offset = row * blocks.height
            yield _Part(offset + begin, offset + end, torch.from_numpy(keys), None if seen.all() else torch.from_numpy(seen))


def _attend_part(
    part: _Part, query: Tensor, key: Tensor, value: Tensor, *, score_mod: ScoreMod | None, scale: float
) -> tuple[Tensor, Tensor]:
    batch, heads, _, channels = query.shape
    rows, groups = query[:, :, part.begin : part.end], key.shape[1]
    if part.keys is not None:
        key, value = key.index_select(2, part.keys), value.index_select(2, part.keys)
    if not key.shape[2]:
        nothing = rows[..., :0].sum(-1)  # zeros with a gradient
        return nothing.unsqueeze(-1).expand(*nothing.shape, value.shape[-1]), nothing - torch.inf
    # Heads of queries with the same keys are one dimension.
    grouped = rows.reshape(batch, groups, heads // groups, -1, channels)
    scores = (grouped @ key.unsqueeze(2).transpose(-1, -2) * scale).reshape(batch, heads, part.end - part.begin, -1)
    if score_mod is not None:
        scores = _changed(score_mod, scores, part).to(scores.dtype)
    if part.seen is not None:
        scores = torch.where(part.seen, scores, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    none = total == 0
    safe = torch.where(none, 1.0, total)
    mixed = _mixed(weights.reshape(batch, groups, heads // groups, *weights.shape[2:]), value.unsqueeze(2), part.seen is not None)
    lse = torch.where(none, -torch.inf, top + safe.log()).squeeze(-1)
    return mixed.reshape(*scores.shape[:3], -1) / safe, lse


def _changed(score_mod: ScoreMod, scores: Tensor, part: _Part) -> Tensor:
    """Apply `score_mod` to every logit (B, H, n, K), as a function of single numbers."""
    batch, heads = (torch.arange(size) for size in scores.shape[:2])
    keys = torch.arange(scores.shape[3]) if part.keys is None else part.keys
    return mapped(score_mod, ((0, *dims) for dims in OF_EACH))(scores, batch, heads, torch.arange(part.begin, part.end), keys)


def _mixed(weights: Tensor, value: Tensor, masked: bool) -> Tensor:
    """Multiply weights (..., n, K) and values (..., K, Ev).

    A weight of zero times an infinite value would be NaN. With a mask such values count only for the queries
    that give them a weight, where the result is NaN.
    """
    finite = value.isfinite()
    if not masked or bool(finite.all()):
        return weights @ value
    odd = ((weights != 0).to(weights.dtype) @ (~finite).to(weights.dtype)) != 0
    return torch.where(odd, torch.nan, weights @ torch.where(finite, value, 0.0))
