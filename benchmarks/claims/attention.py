"""Sparse attention against dense attention: speed, average precision, window and global nodes.

Sparse attention has 64 keys in a window and 8 global nodes. Kernels are timed in turns with
`torch.nn.functional.scaled_dot_product_attention`: batch 8, 4 heads of 32 channels, one thread, processor
seconds; the choice of the global nodes is part of the time. Each claim is checked, and the result is recorded
whether the claim holds or not:

- Forward, causal: the backend torch (block windows) is at least 2 times faster at 512 tokens and 5 times at
  2,048; the backend native (sliding windows) 5, 12 and 40 times at 512, 2,048 and 8,192 with AVX-512, and 4,
  10 and 35 times with AVX2.
- Forward and backward, causal: the backend native is 7, 17 and 50 times faster at 512, 2,048 and 8,192 tokens
  with AVX-512.
- The time grows at most as n ** 1.1 from 1,024 to 32,768 tokens.
- A whole model is 3.2 times faster at some length; the result says from which length on.
- On histories of 256 and 1,024 transactions of two public streams the average precision is at most .8 % below
  that of dense attention.

    python -m benchmarks.claims.attention --only kernels model            # some parts; others are kept
    python -m benchmarks.claims.attention --only quality --data handbook  # one stream; others are kept
    python -m benchmarks.claims.attention --instructions avx2             # kernels, as without AVX-512
    python -m benchmarks.claims.attention --device cuda                   # -> results/attention_cuda.json

`--instructions` restricts our kernels by BALANCER_INSTRUCTIONS, and torch by ATEN_CPU_CAPABILITY,
ONEDNN_MAX_CPU_ISA and MKL_ENABLE_INSTRUCTIONS, so that dense attention has the same instructions. Only causal
kernels are measured then, and recorded as a part of their own.

The result is benchmarks/results/attention.json. `python -m benchmarks.report` draws its charts.
"""

from __future__ import annotations

import os

# One thread, set before NumPy, polars and torch are loaded; --threads raises it for trainings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

from balancer.native_library import VARIABLE
from benchmarks.lib.attention import cuda, kernels, models, trials
from benchmarks.lib.commands import parser
from benchmarks.lib.instructions import restart
from benchmarks.lib.recording import RESULTS, ROOT, record, recorded, rounded, today
from benchmarks.lib.streams import PUBLIC

PARTS = ("kernels", "model", "quality", "sweep")
RECORDED = ("kernels", "kernels_avx2", "kernels_portable", *PARTS[1:])
"""Parts of the result, in order; those of `--instructions` end with its name."""
BY_STREAM = ("quality", "sweep")
STEPS = 200
"""Optimizer steps of a training; it takes two to five minutes with one thread. With 64 steps models are far
from trained, and the training still takes more than a third of the time.
"""
CUDA_LENGTHS, CUDA_WIDTHS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768), (16, 32, 64)


def main(given: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure (default: all that the device has)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda measures the kernels only")
    options.add_argument("--instructions", choices=("avx2", "portable"), help="restrict kernels and torch to a smaller instruction set")
    options.add_argument("--data", nargs="+", choices=PUBLIC, default=list(PUBLIC), help="streams for quality and sweep")
    options.add_argument("--work", type=Path, default=ROOT / "runs" / "attention", help="folder of finished trainings")
    options.add_argument("--seeds", type=int, default=5, help="number of seeds for quality; the sweep has one seed")
    options.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of a training")
    options.add_argument("--warmup", type=float, default=0.4, help="share of the steps in which sparse attention is dense")
    options.add_argument("--windows", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="attention windows of the sweep")
    options.add_argument("--threads", type=int, default=1, help="CPU threads of a training; timings always use one")
    options.add_argument("--budget", type=float, default=4.0, help="seconds for timing one combination; at least three rounds are made")
    options.add_argument("--lengths", type=int, nargs="+", default=CUDA_LENGTHS, help="numbers of tokens on CUDA")
    options.add_argument("--widths", type=int, nargs="+", default=CUDA_WIDTHS, help="channels of a head on CUDA")
    options.add_argument("--limit", type=float, default=math.inf, help="seconds after which no further combination is started on CUDA")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    options.add_argument(
        "--quick", action="store_true", help="short histories and few rounds, to try the script out; do not cite the result"
    )
    arguments = options.parse_args(given)
    on_cuda = arguments.device == "cuda"
    chosen = arguments.only or (["kernels"] if on_cuda else list(PARTS))
    if on_cuda and chosen != ["kernels"]:
        options.error("--device cuda measures the kernels only; leave --only out")
    if arguments.instructions:
        if on_cuda or arguments.only not in (None, ["kernels"]):
            options.error("--instructions measures the kernels on the CPU only; leave --only and --device out")
        restart(arguments.instructions, "benchmarks.claims.attention", given)
        chosen = ["kernels"]
    path = arguments.results / ("attention_cuda.json" if on_cuda else "attention.json")
    for part in chosen:
        if part not in BY_STREAM:
            suffix = f"_{arguments.instructions}" if arguments.instructions else ""
            found = measured(part, arguments)
            os.environ.pop(VARIABLE, None)  # the file holds results with all instructions too
            merge(path, part + suffix, found)
            continue
        for data in arguments.data:
            found = measured_stream(part, data, arguments)
            if "skipped" in found:
                print(found["skipped"])
            else:
                merge(path, part, found, data)


def measured(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one part that consists of timings."""
    quick, budget = arguments.quick, 0.0 if arguments.quick else arguments.budget
    if arguments.device == "cuda":
        lengths, widths = ((512, 1024), (32,)) if quick else (arguments.lengths, arguments.widths)
        return cuda.kernels(lengths, widths, budget=min(budget, 1.0), limit=arguments.limit)
    if part == "kernels" and arguments.instructions:
        return kernels.kernels((64,) if quick else (512, 2048, 8192), (), (), budget=budget, directions=(True,))
    if part == "kernels":
        if quick:
            return kernels.kernels((64, 128), (256,), (128,), budget=budget)
        return kernels.kernels((256, 512, 1024, 2048, 4096, 8192), (16_384, 32_768), (2048, 8192), budget=budget)
    if quick:
        return models.model((64, 128), (16,), (32,), budget=budget)
    return models.model((512, 1024, 2048, 4096, 8192), (64, 128), (64, 512, 2048), budget=budget)


def measured_stream(part: str, data: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one part that consists of trainings on one stream; finished cells are read."""
    effort = trials.Effort(arguments.work, arguments.steps, arguments.warmup, arguments.threads)
    if part == "quality":
        return trials.quality(data, (32,) if arguments.quick else (256, 1024), range(arguments.seeds), effort)
    windows, nodes = ((16, 32), (0, 2)) if arguments.quick else (arguments.windows, (0, 8, 32))
    speed = partial(models.times_faster, history_length=trials.SWEEP_HISTORY, budget=5 * arguments.budget)
    return trials.sweep(data, windows, nodes, 0, effort, speed)


def merge(path: Path, part: str, found: dict[str, Any], data: str | None = None) -> None:
    """Record a part, or one stream of it, and keep what the file contains by now."""
    parts = recorded(path).get("parts", {})
    found = rounded({"date": today()} | found, 5)
    if data is None:
        parts[part] = found
    else:
        parts[part] = {"streams": parts.get(part, {}).get("streams", {}) | {data: found}}
    record({"parts": {name: parts[name] for name in RECORDED if name in parts}}, path)


if __name__ == "__main__":
    main()
