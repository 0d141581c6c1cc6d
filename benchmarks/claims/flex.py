"""`flex_attention` of this package on a CPU, against dense attention and torch's function of that name.

Five masks: causal; causal with a window of 256; causal within 8 documents; causal with a prefix of 128 that
all see; a window of 64 with 16 global nodes. Batch 1, 4 heads of 64 channels, float32, one thread, blocks of
128. Contenders are `scaled_dot_product_attention` with `is_causal` (dense, half of the pairs) and with a
boolean mask, and torch's `flex_attention`, as it is and by `torch.compile`; the time of compiling is not part
of a time and is recorded beside. Torch's function has no backward on CPUs: it raises NotImplementedError, and
the result says "no backward". Times are processor seconds, measured in turns. Each claim is checked, and
recorded whether it holds or not:

- The output is within 3e-6 of a float64 truth and of torch's output; gradients are within 5e-6 of the truth,
  relative to the largest.
- Causal: at least as fast as dense attention, forward and with gradients, at every length. With AVX-512: 1.5
  times.
- Every mask and length: at least as fast as a boolean mask, forward and with gradients, and forward as fast
  as torch's compiled function.
- At 8,192 tokens, forward and with gradients: a window of 256 is at least 12 times faster than dense causal
  attention, 8 documents at least 6 times, global nodes at least 12 times. With AVX-512: 20, 10 and 20 times.
- Peak memory, causal, 8,192 tokens: at most that of dense attention, forward and with gradients.

    python -m benchmarks.claims.flex                                   # everything this processor has
    python -m benchmarks.claims.flex --instructions avx2               # kernels and torch without AVX-512
    python -m benchmarks.claims.flex --lengths 512 --masks causal      # some cells; others are kept

The result is benchmarks/results/flex.json, by instruction set.
"""

from __future__ import annotations

import os

# One thread, set before NumPy and torch are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from balancer.native_library import INSTRUCTIONS
from benchmarks.lib.attention import flex
from benchmarks.lib.checks import claim
from benchmarks.lib.commands import parser
from benchmarks.lib.instructions import restart
from benchmarks.lib.recording import RESULTS, processor, recorded, rounded, today, write
from benchmarks.lib.timing import PASSES, in_words

LENGTHS = (512, 2048, 8192)
DENSE, MASKED = "SDPA, is_causal", "SDPA, boolean mask"
CAUSAL = (1.0, 1.5)
"""At least how many times faster than dense causal attention a causal mask is, with AVX2 and with AVX-512."""
SPARSE = {"sliding 256": (12.0, 20.0), "8 documents": (6.0, 10.0), "global nodes": (12.0, 20.0)}
"""The same for other masks at 8,192 tokens."""
MEMORY = 1.0
"""At most how many times the memory of dense causal attention."""


def main(given: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="numbers of tokens")
    options.add_argument("--masks", nargs="+", choices=flex.MASKS, default=flex.MASKS)
    options.add_argument("--instructions", choices=INSTRUCTIONS, help="largest instruction set that kernels may use")
    options.add_argument("--budget", type=float, default=4.0, help="seconds for timing one cell; at least three rounds are made")
    options.add_argument("--memory", type=int, nargs="*", default=(8192,), help="numbers of tokens at which memory is measured")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    arguments = options.parse_args(given)
    if arguments.instructions:
        restart(arguments.instructions, "benchmarks.claims.flex", given)
    path = arguments.results / "flex.json"
    for length in arguments.lengths:
        for name in arguments.masks:
            merge(path, "cells", flex.cell(name, length, budget=arguments.budget))
    for length in arguments.memory:
        merge(path, "memory", flex.memory("causal", length))
    print("\n".join(lines(path)))


def merge(path: Path, part: str, found: dict[str, Any]) -> None:
    """Record a cell, in place of an earlier one, and keep what the file contains by now."""
    sets: dict[str, Any] = recorded(path).get("instructions", {})
    own: dict[str, Any] = sets.get(flex.instructions(), {})
    parts = {name: {order(each): each for each in own.get(name, [])} for name in ("cells", "memory")}
    parts[part][order(found)] = rounded(found, 4)
    lists = {name: [each[place] for place in sorted(each)] for name, each in parts.items()}
    checked = claims(lists["cells"], lists["memory"], wide=flex.instructions() == "avx512")
    own = {"date": today(), "setting": flex.summary(), **lists, "claims": checked}
    write({"instructions": sets | {flex.instructions(): own}}, path)


def order(cell: dict[str, Any]) -> tuple[int, int]:
    """Order of cells: by length, then by mask."""
    return cell["tokens"], flex.MASKS.index(cell["mask"])


def claims(cells: list[dict[str, Any]], memory: list[dict[str, Any]], *, wide: bool) -> list[dict[str, Any]]:
    """Check the claims that the docstring of this script states.

    Args:
        cells: of `benchmarks.lib.attention.flex.cell`.
        memory: of `benchmarks.lib.attention.flex.memory`.
        wide: whether the kernel uses AVX-512.
    """
    wrong = [each["errors"] for each in cells if "errors" in each]
    found = [
        claim(f"largest error of {name}: at most {limit:g}", max((each[name] for each in wrong), default=None), limit, above=False)
        for name, limit in (("output", 3e-6), ("output against torch", 3e-6), ("gradients", 5e-6))
    ]

    def least(text: str, limit: float, chosen: Iterable[dict[str, Any]], passes: str, other: str) -> None:
        ratios = [each[passes]["times_faster_than"][other] for each in chosen]
        words = f"{text}, {in_words(passes)}: at least {limit:g} times faster than {other}"
        found.append(claim(words, min(ratios, default=None), limit))

    for length in LENGTHS:
        for passes in PASSES:
            causal = [each for each in cells if order(each) == (length, 0)]
            least(f"causal, {length:,} tokens", CAUSAL[wide], causal, passes, DENSE)
    least("every mask and length", 1.0, cells, "forward", "torch flex, compiled")
    for passes in PASSES:
        least("every mask and length", 1.0, cells, passes, MASKED)
    for name, limits in SPARSE.items():
        for passes in PASSES:
            least(
                f"{name}, 8,192 tokens",
                limits[wide],
                [each for each in cells if each["mask"] == name and each["tokens"] == 8192],
                passes,
                DENSE,
            )
    for passes in PASSES:
        ratio = [each[passes][flex.OURS] / each[passes][DENSE] for each in memory if each["tokens"] == 8192]
        text = f"causal, 8,192 tokens, {in_words(passes)}: peak memory at most {MEMORY:g} times that of {DENSE}"
        found.append(claim(text, ratio[0] if ratio else None, MEMORY, above=False))
    return found


def lines(path: Path) -> list[str]:
    """Return the result in words: a line for every cell, kind of passes and claim."""
    own = recorded(path)["instructions"][flex.instructions()]
    found = [f"{processor()}, {flex.instructions()}"]
    for each in own["cells"]:
        for passes in PASSES:
            faster = each[passes]["times_faster_than"].items()
            words = ", ".join(f"{name} {value if isinstance(value, str) else f'{value:.2f}'}" for name, value in faster)
            own_time = each[passes]["milliseconds"][flex.OURS]
            found.append(f"{each['mask']}, {each['tokens']:,} tokens, {in_words(passes)}: {own_time:.2f} ms; times faster than {words}")
    verdicts = {"met": "holds", "not met": "missed", "not measured": "not measured"}
    return found + [
        f"{verdicts[each['holds']]}: {each['claim']}" + (f" ({each['figure']:.3g})" if "figure" in each else "") for each in own["claims"]
    ]


def table(own: dict[str, Any]) -> str:
    """Return the table of docs/flex_attention.md for the result of one instruction set."""
    rows = ["| mask | tokens | forward, ms | dense | mask | flex | both, ms | dense | mask |", "|---|---|---|---|---|---|---|---|---|"]
    for each in own["cells"]:
        cells = [each["mask"], f"{each['tokens']:,}"]
        for passes, others in (("forward", (DENSE, MASKED, "torch flex, compiled")), ("forward_backward", (DENSE, MASKED))):
            own_time = each[passes]["milliseconds"][flex.OURS]
            cells.append(f"{own_time:,.0f}" if own_time >= 100 else f"{own_time:.3g}")
            cells += [f"{each[passes]['times_faster_than'][other]:.1f}" for other in others]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
