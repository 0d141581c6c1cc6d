"""Part ``attention`` of ``benchmarks/gpu.sh``: sparse attention against flash attention and FlexAttention.

Causal passes in bfloat16 come first, at 2,048 to 65,536 tokens; then float32 and bidirectional passes at two
lengths, and the errors against float64, as far as the time allows.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.lib.attention import cuda
from benchmarks.lib.attention.cuda import Combination, Run
from benchmarks.lib.attention.kernels import Setting
from benchmarks.lib.gpu_part import Part, main
from benchmarks.lib.timing import PASSES

LENGTHS, FLEX_LENGTHS, OTHER_LENGTHS = (2048, 8192, 65_536, 32_768, 16_384, 4096), (2048, 8192, 65_536), (2048, 8192)
"""Tokens in the order in which they are measured; those with FlexAttention; and those of the other kinds."""
TINY = Setting(batch=1, heads=2, width=16, window=32, num_global=4)
LAST_CELL = 20.0
"""Seconds before the end at which the last cell is started."""


def combinations() -> list[Combination]:
    """What is measured, in this order."""
    first = [Combination(n, True, passes, flex=n in FLEX_LENGTHS) for n in LENGTHS for passes in PASSES]
    exact = [Combination(n, True, passes, dtype="float32", flex=False) for n in OTHER_LENGTHS for passes in PASSES]
    both_ways = [Combination(n, False, passes, flex=False) for n in OTHER_LENGTHS for passes in PASSES]
    return first + exact + both_ways


def tiny_combinations() -> list[Combination]:
    """What a dry run computes: both directions, dtypes and kinds of passes."""
    width = TINY.width
    return [
        Combination(256, causal, passes, width, dtype) for causal, dtype in ((True, "bfloat16"), (False, "float32")) for passes in PASSES
    ]


def measure(part: Part) -> None:
    """Measure every combination, and keep each cell as soon as it is there."""

    def keep(found: dict[str, Any]) -> None:
        part.keep(headline(found["cells"]), kernels=found)

    chosen, setting = (tiny_combinations(), TINY) if part.dry else (combinations(), Setting())
    budget, limit = (0.0, part.seconds_left) if part.dry else (1.0, part.seconds_left - LAST_CELL)
    found = cuda.measure(chosen, Run(setting, part.device, budget, limit, keep))
    for each in found["failed"]:
        name = each["contender"]
        about = f"{name}, {each['tokens']} tokens, {each['dtype']}, {'causal' if each['causal'] else 'bidirectional'}"
        on_cuda_only = name.startswith(("triton", cuda.FLEX)) or name.endswith("as a graph")
        part.fail(f"{about}, {each.get('passes', 'both passes')}", each["reason"], needs_cuda=on_cuda_only)


def headline(cells: list[dict[str, Any]]) -> str:
    """The fastest contender with global nodes in the longest causal forward pass in bfloat16."""
    done = [cell for cell in cells if (cell["causal"], cell["passes"], cell["dtype"]) == (True, "forward", "bfloat16")]
    for cell in sorted(done, key=lambda cell: -int(cell["tokens"])):
        faster = {name: figure for name, figure in cell.get("times_faster", {}).items() if name != cuda.FLEX}
        if faster:
            best = max(faster, key=lambda name: faster[name])
            return f"{len(cells)} cells; {best} {faster[best]:.3g} times flash attention at {cell['tokens']:,} tokens, causal, forward"
    return f"{len(cells)} cells, none with dense and sparse attention"


if __name__ == "__main__":
    sys.exit(main("attention", measure, __doc__))
