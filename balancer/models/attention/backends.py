"""Backends of sparse attention by name.

A backend is a function `run(query, key, value, gate, index, padding, layout) -> (B, n, H, d)` with these
arguments:

    query, key, value   (B, n, H, d), same floating dtype and device, any strides
    gate                (B, n) float32 or None: added to the logit of a key where it is a global node;
    differentiable
    index               (B, chunks, k) int64, k >= 0: positions of the global nodes from `select_globals`, -1
    for an
                        empty slot, no position twice in a chunk
    padding             (B, n) bool or None, True where a token is padding, at any position: such a token is
    never
                        attended to, and its output is zero
    layout              windows and chunks (`Layout`)

Logits are scaled by d ** -.5. A query attends to the union of its window and the global nodes of its chunk,
each key once; a query that attends to nothing gives zeros, with zero gradients. Query, key, value and gate
receive gradients. NaN in one sequence does not affect the others. `refuses(query, layout)` returns the reason
why the backend can't be used here (not compiled, no CUDA, another dtype), or None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from balancer.models.attention import masked, native, reference, triton_backend, windows
from balancer.models.attention.layout import Layout


@dataclass(frozen=True)
class Backend:
    """A way to compute sparse attention; see the docstring of this module."""

    name: str
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Layout], Tensor]
    refuses: Callable[[Tensor, Layout], str | None]


BACKENDS: dict[str, Backend] = {
    "reference": Backend("reference", reference.run, lambda _query, _layout: None),
    "dense": Backend("dense", masked.run, masked.refuses),
    "native": Backend("native", native.run, native.refuses),
    "torch": Backend("torch", windows.run, windows.refuses),
    "triton": Backend("triton", triton_backend.run, triton_backend.refuses),
}
"""Backends by name. `auto` chooses among those that can be used, but never `reference`."""
