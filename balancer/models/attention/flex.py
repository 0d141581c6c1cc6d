"""`flex_attention` for CPUs, with a backward: attention with a block mask of torch.

It has the arguments of `torch.nn.attention.flex_attention.flex_attention`, which has no gradients on CPUs.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from balancer.errors import InputError, UnsupportedError
from balancer.models.attention import flex_blocks, flex_native
from balancer.models.attention.flex_blocks import ScoreMod
from balancer.models.attention.flex_plan import ATTRIBUTE, plan_of, prepare_block_mask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, FlexKernelOptions

__all__ = ["flex_attention", "prepare_block_mask"]


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: FlexKernelOptions | None = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Any:
    """Compute attention in which a block mask says which keys a query sees, with gradients on CPUs.

    Tensors on other devices are handed to torch's function of the same name. On CPUs a C++ kernel computes in
    float32, and results have the dtype of `query`; a `score_mod` and float64 are computed by torch
    operations. Time and memory grow with the blocks that the mask visits. A block that the mask does not list
    is not visited, whatever its `mask_mod` says there, as in torch's compiled function.

    The mask is read once: make a new one if a tensor that its `mask_mod` captures has changed. Under
    `torch.compile`, make it before the compiled function is called; see `prepare_block_mask` for masks that
    change in every step.

    Args:
        query: (B, H, n, E).
        key: (B, Hk, m, E). With one batch entry it serves all of `query`.
        value: (B, Hk, m, Ev).
        score_mod: function of a logit, batch, head, query and key that returns the changed logit. Tensors
            that it captures get gradients.
        block_mask: of `torch.nn.attention.flex_attention.create_block_mask`, for one batch entry and head or
            for all. None if every query sees every key.
        scale: factor of the logits, by default 1 / sqrt(E).
        enable_gqa: whether Hk may be a divisor of H; each head of keys then serves H / Hk heads of queries.
        return_lse: whether to return the logarithm of the softmax's denominator too.
        kernel_options: options of torch's kernels; without effect on CPUs.
        return_aux: `AuxRequest(lse=True)` in place of `return_lse`.

    Returns:
        The output (B, H, n, Ev), zeros for a query that sees no key. With `return_lse` a tuple of the output
        and the logarithms (B, H, n), -inf for a query that sees no key; with `return_aux` a tuple of the
        output and an `AuxOutput`.

    Raises:
        InputError: shapes, dtypes or the mask do not fit.
        UnsupportedError: second derivatives and derivatives in forward mode without a `score_mod`, and
            `AuxRequest(max_scores=True)`.

    >>> import torch
    >>> from torch.nn.attention.flex_attention import create_block_mask
    >>> window = lambda batch, head, q, k: (q >= k) & (q - k < 64)
    >>> mask = create_block_mask(window, None, None, 256, 256, device="cpu")
    >>> query = torch.randn(1, 2, 256, 16)
    >>> flex_attention(query, query, query, block_mask=mask).shape
    torch.Size([1, 2, 256, 16])
    """
    if query.device.type != "cpu":
        from torch.nn.attention.flex_attention import flex_attention as of_torch

        options: dict[str, Any] = {} if return_aux is None else {"return_aux": return_aux}
        return of_torch(query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse, kernel_options, **options)
    _check(query, key, value, enable_gqa)
    if return_lse and return_aux is not None:
        raise InputError("return_lse and return_aux are two ways to ask for the same: give one of them")
    if return_aux is not None and return_aux.max_scores:
        raise UnsupportedError("max_scores of return_aux is not supported on CPUs: ask for lse")
    plan = None if block_mask is None else _plan(block_mask, query, key)
    if key.shape[0] == 1 != query.shape[0]:
        key, value = (x.expand(query.shape[0], *x.shape[1:]) for x in (key, value))
    out, lse = _attend(query, key, value, score_mod, plan, 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale))
    out = out.to(query.dtype)
    if return_aux is not None:
        from torch.nn.attention.flex_attention import AuxOutput

        return out, AuxOutput(lse=lse if return_aux.lse else None)
    return (out, lse) if return_lse else out


def _attend(
    query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod | None, plan: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the output and `lse` in the working precision."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    query, key, value = (x.to(dtype) for x in (query, key, value))
    if score_mod is None and dtype == torch.float32:
        reason = flex_native.absence()
        if reason is None:
            return flex_native.run(query, key, value, plan, scale)
        _warn_once(reason)
    if torch.compiler.is_compiling():
        from balancer.models.attention.flex_compiled import attend

        out, lse = attend(query, key, value, score_mod, plan, scale)
        return out, lse
    return flex_blocks.attend(query, key, value, score_mod, plan, scale)


def _plan(block_mask: BlockMask, query: Tensor, key: Tensor) -> Tensor:
    """Return the plan of a mask for these tensors."""
    if not hasattr(block_mask, "kv_indices"):
        raise InputError(f"block_mask must be a BlockMask of torch.nn.attention.flex_attention, given {type(block_mask).__name__}")
    if block_mask.kv_indices.device.type != "cpu":
        raise InputError(f"block_mask must be on the device of query, the CPU, given {block_mask.kv_indices.device}: use block_mask.to")
    lengths = (query.shape[2], key.shape[2])
    if tuple(block_mask.seq_lengths) != lengths:
        made_for = " and ".join(str(length) for length in block_mask.seq_lengths)
        raise InputError(f"block_mask is for {made_for} queries and keys, given {lengths[0]} and {lengths[1]}: make it for these lengths")
    shape = tuple(block_mask.kv_indices.shape[:-2])
    batch, heads = (1, 1, *shape)[-2:]
    if batch not in (1, query.shape[0]) or heads not in (1, query.shape[1]):
        raise InputError(
            f"block_mask is for {batch} batch entries and {heads} heads, given {query.shape[0]} and {query.shape[1]}: make it for 1 or all"
        )
    if not torch.compiler.is_compiling():
        return plan_of(block_mask, (query.shape[0], query.shape[1]))
    kept = getattr(block_mask, ATTRIBUTE, None)
    if kept is not None and not kept.spread:
        prepared: Tensor = kept.plan
        return prepared
    from balancer.models.attention.flex_compiled import constant_plan, is_spread

    sizes = (int(query.shape[0]), int(query.shape[1])) if is_spread(block_mask) else (1, 1)
    plan: Tensor = constant_plan(block_mask, *sizes)
    return plan


def _check(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    """Raise an InputError if the tensors do not fit together."""
    shapes = f"given {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dim() != 4:
            raise InputError(f"{name} must have four dimensions (batch, heads, length, channels), given {tuple(x.shape)}")
        if not x.dtype.is_floating_point:
            raise InputError(f"{name} must have a floating-point dtype, given {x.dtype}")
        if x.device.type != "cpu":
            raise InputError(f"{name} must be on the device of query, the CPU, given {x.device}")
    if query.shape[3] != key.shape[3] or not query.shape[3]:
        raise InputError(f"query and key must have the same number of channels, at least 1; {shapes}")
    if key.shape[:3] != value.shape[:3]:
        raise InputError(f"key and value must have the same batch, heads and length; {shapes}")
    if key.shape[0] not in (1, query.shape[0]):
        raise InputError(f"key and value must have one batch entry or those of query; {shapes}")
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise InputError(f"key and value must have the heads of query unless enable_gqa=True; {shapes}")
    if not key.shape[1] or query.shape[1] % key.shape[1]:
        raise InputError(f"the heads of key must divide the heads of query; {shapes}")


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"flex_attention is computed by torch operations, because its kernel can't be used: {reason}", stacklevel=4)
