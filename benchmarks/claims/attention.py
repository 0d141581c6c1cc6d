"""Sparse attention against dense: kernels, whole models, what it costs in average precision, and how window and global nodes trade it for speed.

Claims, each checked and written down whether it holds or not; 64 keys a window, 8 global nodes, batch 8, 4 heads of 32, one thread, choice of global nodes
included, against `torch.nn.functional.scaled_dot_product_attention` in turns with it. Forward, causal: by the backend torch (block windows) at least 2 times faster at 512
tokens and 5 times at 2,048; by the backend native (sliding windows) 5, 11 and 40 times at 512, 2,048 and 8,192; forward and backward, causal, by native 7 and 17
times at 512 and 2,048. Time grows at most as n ** 1.1 from 1,024 to 32,768 tokens. A whole model gets 3.2 times faster at some length, which is told. On histories of
256 and 1,024 transactions of two public streams average precision is at most .8 % below that of dense attention.

    python benchmarks/attention.py --only kernels model        # some parts; the others of the file are kept -> benchmarks/results/attention.json
    python benchmarks/attention.py --only quality --data handbook      # one stream; finished cells under --work are not made again
    python benchmarks/attention.py --device cuda               # kernels in bf16 -> benchmarks/results/attention_cuda.json
    python benchmarks/attention.py --only charts               # docs/images/attention_speed.svg and attention_sweep.svg; every run makes them too
"""

from __future__ import annotations

import os

# One thread, before NumPy, polars and torch are loaded; --threads raises it for trainings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import argparse
import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import attention_chart
import attention_cuda
import attention_model
import attention_timing
import attention_trials
from recording import RESULTS, ROOT, record

PARTS = ("kernels", "model", "quality", "sweep")
BY_STREAM = ("quality", "sweep")
STEPS = 200
"""Of a training: two to five minutes with one thread. With 64 models stay far from done, and take more than a third of the time."""


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=(*PARTS, "charts"), help="all that the device has")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the kernels only")
    parser.add_argument("--data", nargs="+", choices=attention_trials.STREAMS, default=list(attention_trials.STREAMS))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "attention", help="folder of finished trainings")
    parser.add_argument("--seeds", type=int, default=5, help="of quality; the sweep has one")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of a training")
    parser.add_argument("--warmup", type=float, default=0.4, help="share of them in which sparse attention is dense")
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="of the sweep")
    parser.add_argument("--threads", type=int, default=1, help="of a training; times are always of one")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds to time one combination in; three rounds at least")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--quick", action="store_true", help="short histories, few rounds and points: to try it, not to cite it")
    arguments = parser.parse_args(given)
    cuda = arguments.device == "cuda"
    chosen = arguments.only or (["kernels"] if cuda else list(PARTS))
    if cuda and chosen != ["kernels"]:
        parser.error("--device cuda measures the kernels only; leave --only out")
    path = arguments.results / ("attention_cuda.json" if cuda else "attention.json")
    for part in chosen:
        if part in BY_STREAM:
            for data in arguments.data:
                merge(path, part, measured_stream(part, data, arguments), data)
        elif part != "charts":
            merge(path, part, measured(part, arguments))
    if not cuda:
        attention_chart.draw(path, arguments.images)


def measured(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One part of timings."""
    quick, budget = arguments.quick, 0.0 if arguments.quick else arguments.budget
    if arguments.device == "cuda":
        lengths = (512, 1024) if quick else (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
        return attention_cuda.kernels(lengths, (32,) if quick else (16, 32, 64), budget=min(budget, 1.0))
    if part == "kernels":
        if quick:
            return attention_timing.kernels((64, 128), (256,), (128,), budget=budget)
        return attention_timing.kernels((256, 512, 1024, 2048, 4096, 8192), (16_384, 32_768), (2048, 8192), budget=budget)
    if quick:
        return attention_model.model((64, 128), (16,), (32,), budget=budget)
    return attention_model.model((512, 1024, 2048, 4096, 8192), (64, 128), (64, 512, 2048), budget=budget)


def measured_stream(part: str, data: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One part of trainings on one stream, from finished cells on."""
    effort = attention_trials.Effort(arguments.work, arguments.steps, arguments.warmup, arguments.threads)
    if part == "quality":
        return attention_trials.quality(data, (32,) if arguments.quick else (256, 1024), range(arguments.seeds), effort)
    windows, nodes = ((16, 32), (0, 2)) if arguments.quick else (arguments.windows, (0, 8, 32))
    speed = partial(attention_model.times_faster, history=attention_trials.SWEEP_HISTORY, budget=5 * arguments.budget)
    return attention_trials.sweep(data, windows, nodes, 0, effort, speed)


def merge(path: Path, part: str, found: dict[str, Any], data: str | None = None) -> None:
    """Put a part, or one stream of it, beside those measured before; read anew each time, since another process may have written."""
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    found = rounded({"date": datetime.now(UTC).date().isoformat()} | found)
    if data is None:
        parts[part] = found
    else:
        parts[part] = {"streams": parts.get(part, {}).get("streams", {}) | {data: found}}
    record({"parts": {name: parts[name] for name in PARTS if name in parts}}, path)


def rounded(value: Any) -> Any:
    """Five significant digits, all the way down."""
    if isinstance(value, dict):
        return {key: rounded(own) for key, own in value.items()}
    if isinstance(value, list):
        return [rounded(own) for own in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
