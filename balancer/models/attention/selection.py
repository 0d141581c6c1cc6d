"""The k tokens of highest score as global nodes: causally, one running choice per chunk of queries.

The top k of a prefix is the merge of the top k of its parts, so chunks are sorted once and their lists merged in log2(chunks) passes over
all of them together: O(n log chunk + k (n / chunk) log(n / chunk)), and no loop over positions. A choice is not differentiable; what trains
the score is the gate on the chosen keys, and distillation (`sparse.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def select_globals(score: Tensor, num_global: int, *, causal: bool, chunk: int, padding: Tensor | None = None) -> Tensor:
    """Positions of the global nodes, best first; of equal scores the earlier token wins.

    Args:
        score: (B, n) of each token; NaN and -inf are never chosen.
        num_global: k, how many; may exceed n.
        causal: whether chunk j chooses among the tokens t < j * chunk only.
        chunk: queries that share a choice; without effect where not causal.
        padding: (B, n) bool, True where a token is padding: never chosen.

    Returns:
        (B, chunks, k) int64, -1 where there are fewer candidates than k; one chunk where not causal.
    """
    score = score.detach().float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if padding is not None:
        score = score.masked_fill(padding, -torch.inf)
    length = score.shape[1]
    if not causal:
        chunk = max(1, length)
    chunks = max(1, -(-length // chunk))
    fill = chunks * chunk - length
    position = F.pad(torch.arange(length, device=score.device), (0, fill)).view(chunks, chunk).expand(len(score), -1, -1)
    best, at = _top(F.pad(score, (0, fill), value=-torch.inf).view(-1, chunks, chunk), position, num_global)
    if causal:
        # Lists of the chunks before: moved by one chunk, then merged with the list 1, 2, 4, ... chunks earlier.
        best, at = (F.pad(x, (0, 0, 1, 0), value=value)[:, :-1] for x, value in ((best, -torch.inf), (at, -1)))
        step = 1
        while step < chunks:
            merged = _top(torch.cat([best[:, :-step], best[:, step:]], -1), torch.cat([at[:, :-step], at[:, step:]], -1), num_global)
            best, at = (torch.cat([x[:, :step], new], 1) for x, new in zip((best, at), merged, strict=True))
            step *= 2
    return at.masked_fill(best == -torch.inf, -1)


def _top(score: Tensor, position: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of the last axis with their positions; equals keep their order, too few are filled by -inf and -1."""
    score, order = score.sort(dim=-1, descending=True, stable=True)
    position = position.gather(-1, order)
    missing = max(0, count - score.shape[-1])
    return F.pad(score[..., :count], (0, missing), value=-torch.inf), F.pad(position[..., :count], (0, missing), value=-1)
