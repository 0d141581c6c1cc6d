"""The backends by name, and what each one takes.

A backend is a function `run(query, key, value, gate, index, padding, layout) -> (B, n, H, d)`:

    query, key, value   (B, n, H, d), one floating dtype and device, strides as they come
    gate                (B, n) float32 or None: added to the logit of a key where it is used as a global node; differentiable
    index               (B, chunks, k) int64, k may be 0: positions of the global nodes from `select_globals`, -1 for none, no position twice
    padding             (B, n) bool or None, True where a token is padding, anywhere: never seen as a key, zeros as a query
    layout              windows and chunks (`Layout`)

Logits are scaled by d ** -.5. A query sees the union of its window and its chunk's global nodes, each key once; a query that sees nothing gives
zeros, with zero gradients. Gradients reach query, key, value and gate. NaN stays within its sequence. `refuses(query, layout)` says in words why
the backend can't do this here (no compiler was there, no CUDA, another dtype), or None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from balancer.models.attention import masked, native, reference, triton_backend, windows
from balancer.models.attention.layout import Layout


@dataclass(frozen=True)
class Backend:
    """One way to compute; see the module's docstring."""

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
"""By name; `auto` chooses among those that don't refuse, never `reference`."""
