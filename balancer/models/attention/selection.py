"""Select the k tokens with the highest scores as global nodes.

In the causal case they are selected once for each chunk of queries. The top k of a prefix is the merge of the
top k of its parts, so chunks are sorted once, and their lists are merged in log2(chunks) vectorized passes:
O(n log chunk + k (n / chunk) log(n / chunk)), without a loop over positions. On CPUs the native library keeps
the k best tokens while it reads the scores once. The selection is not differentiable; the score is trained
through the gate on the selected keys and by distillation (`sparse.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.models.attention import native


@torch.no_grad()
def select_globals(score: Tensor, num_global: int, *, causal: bool, chunk: int, padding: Tensor | None = None) -> Tensor:
    """Select the positions of the global nodes, best first; among equal scores the earlier token comes first.

    Args:
        score: (B, n) score of each token; NaN and -inf are never selected.
        num_global: k, the number of global nodes; may exceed n.
        causal: whether chunk j selects only among the tokens t < j * chunk.
        chunk: number of queries that share a selection; ignored if not causal.
        padding: (B, n) bool, True where a token is padding; such tokens are never selected.

    Returns:
        (B, chunks, k) int64, -1 where there are fewer than k candidates; one chunk if not causal.
    """
    score = score.detach().float()
    if score.device.type == "cpu" and num_global <= native.MOST_SELECTED and native.absence() is None:
        found: Tensor = native.select(score, padding, num_global, chunk, causal)
        return found
    score = score.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if padding is not None:
        score = score.masked_fill(padding, -torch.inf)
    length = score.shape[1]
    if not causal:
        chunk = max(1, length)
    chunks = max(1, -(-length // chunk))
    fill = chunks * chunk - length
    position = F.pad(torch.arange(length, device=score.device), (0, fill)).view(chunks, chunk).expand(score.shape[0], -1, -1)
    best, at = _top(F.pad(score, (0, fill), value=-torch.inf).view(-1, chunks, chunk), position, num_global)
    if causal:
        # Lists of the earlier chunks: shifted by one chunk, then merged with the list 1, 2, 4, ... chunks
        # earlier.
        best, at = (F.pad(x, (0, 0, 1, 0), value=value)[:, :-1] for x, value in ((best, -torch.inf), (at, -1)))
        step = 1
        while step < chunks:
            merged = _top(torch.cat([best[:, :-step], best[:, step:]], -1), torch.cat([at[:, :-step], at[:, step:]], -1), num_global)
            best, at = (torch.cat([x[:, :step], new], 1) for x, new in zip((best, at), merged, strict=True))
            step *= 2
    return at.masked_fill(best == -torch.inf, -1)


def _top(score: Tensor, position: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest scores of the last axis and their positions, padded with -inf and -1.

    Equal scores keep their order.
    """
    score, order = score.sort(dim=-1, descending=True, stable=True)
    position = position.gather(-1, order)
    missing = max(0, count - score.shape[-1])
    return F.pad(score[..., :count], (0, missing), value=-torch.inf), F.pad(position[..., :count], (0, missing), value=-1)
