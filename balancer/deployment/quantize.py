"""Make a run smaller and faster: measure its layers, plan their precisions within a budget of average precision, write the result beside the full model.

Special: the plan is made on training and validation rows and judged on the test rows once, as everything else of a run; a layer that is slower in low
precision on this machine stays as it is; and what was reached is told beside what was there before, losses too.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from sklearn.metrics import average_precision_score

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.devices import torch_threads
from balancer.errors import InputError
from balancer.inference.decision import evaluate_rows, fraud_score
from balancer.inference.scoring import score_rows
from balancer.models import Classifier, SequenceBatch
from balancer.models.quantization import (
    Applied,
    PrecisionPlan,
    SensitivityReport,
    apply_precision,
    load_quantized_classifier,
    plan_precision,
    save_quantized,
    sensitivity,
    timed,
)
from balancer.runs.trained_run import TrainedRun, training_table
from balancer.sampling.seeding import generator
from balancer.training.fitting import thinned

Prefer = Literal["speed", "size"]
Backend = Literal["auto", "torch", "bitsandbytes", "onnxruntime"]
BATCHES = (1, 32, 256)
"""Batch sizes at which latency is told."""
CALIBRATION_BATCHES, CALIBRATION_ROWS = 8, 64
"""Batches of training rows that sensitivity is measured on; a long history makes them smaller."""
POSITIONS = 65_536
"""Transactions of a calibration batch at most."""
METRIC_NEGATIVES = 20_000
"""Negative validation rows that the metric is taken on; all positive ones are."""
FULL_FILE, ONNX_FILE = "model.onnx", "model.int8.onnx"


def quantize_run(path: Path, *, max_drop: float, backend: Backend, console: Console, prefer: Prefer = "speed") -> dict[str, Any]:
    """Quantize the run in ``path``; JSON-able: ``before`` and ``after`` (bytes, ms by batch size, figures), ``plan``, ``applied``, ``seconds``.

    Args:
        path: a complete run folder; its table must be where it was.
        max_drop: what average precision on validation may lose.
        backend: ``torch`` (what ``auto`` is), ``bitsandbytes`` (measured only, its layers are not stored), or ``onnxruntime`` (ONNX files).
        console: where progress is told.
        prefer: ``speed`` leaves layers alone that are slower in low precision here, ``size`` does not ask for time.

    Raises:
        InputError: no complete run, its table gone or changed, a budget that can't be met; nothing was written then.
    """
    if not 0 <= max_drop < 1:
        raise InputError(f"--max-drop is {max_drop}: give a share of average precision from 0 to below 1, as 0.003")
    started = time.monotonic()
    run = TrainedRun.load(path)
    with torch_threads(run.threads):
        run = dataclasses.replace(run, model=run.model.deployable())
    with console.status("reading the table"):
        dataset = training_table(run.folder)
    folder = run.folder
    with folder.locked(), torch_threads(run.threads):
        batches = calibration(dataset, run.model, seed=int(folder.content["seed"]), device=run.device)
        with console.status("measuring what each layer minds"):
            report = sensitivity(run.model, batches, seed=int(folder.content["seed"]))
        with console.status("planning, and verifying on validation rows"):
            metric = validation_metric(dataset, run.device, int(folder.content["seed"]))
            judged = (
                report if prefer == "speed" else dataclasses.replace(report, rows=[dataclasses.replace(row, ms={}) for row in report.rows])
            )
            plan = plan_precision(judged, max_metric_drop=max_drop, metric=metric, model=run.model)
        before = measured(run, run.model, dataset, sum(tensor.nbytes for tensor in run.model.state_dict().values()))
        if backend == "onnxruntime":
            after, applied = _onnx(run, dataset, batches, plan, path)
        else:
            after, applied = _torch(run, dataset, plan, report, path, backend, before)
    told = {"backend": applied.get("backend", backend), "max_drop": max_drop, "before": before, "after": after, "plan": plan.to_dict()}
    return told | {"applied": applied, "sensitivity": report.to_dict(), "seconds": round(time.monotonic() - started, 1)}


def calibration(dataset: Dataset, model: Classifier, *, seed: int, device: torch.device) -> list[SequenceBatch]:
    """Batches of training rows, frauds among them as often as rows of the other class: where scores differ, rounding tells."""
    rows, history = dataset.rows(Split.TRAIN), model.config.history_length
    size = max(1, min(CALIBRATION_ROWS, POSITIONS // history))
    rng = generator(seed, "calibration")
    fraud = dataset.store.label[rows] > 0
    half = CALIBRATION_BATCHES * size // 2
    chosen = np.concatenate([rng.choice(rows[kind], min(half, int(kind.sum())), replace=False) for kind in (fraud, ~fraud)])
    chosen = rng.permutation(chosen)
    batches = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    return [SequenceBatch.from_windows(*dataset.store.windows(own, history), device) for own in batches]


def validation_metric(dataset: Dataset, device: torch.device, seed: int) -> Callable[[torch.nn.Module], float]:
    """Average precision of a classifier on validation rows."""
    rows = np.concatenate([dataset.rows(Split.REWARD), dataset.rows(Split.THRESHOLD)])
    rows, weight = thinned(rows, dataset.store.label, METRIC_NEGATIVES, generator(seed, "quantization metric"))
    label = dataset.store.label[rows] > 0

    def metric(model: torch.nn.Module) -> float:
        assert isinstance(model, Classifier)
        score = fraud_score(score_rows(model, dataset, rows, device=device))
        return float(average_precision_score(label, score, sample_weight=weight))

    return metric


def measured(run: TrainedRun, model: torch.nn.Module, dataset: Dataset, size: int) -> dict[str, Any]:
    """``bytes``, ``ms`` by batch size and the test figures of a model under the run's own calibration and threshold."""
    assert isinstance(model, Classifier)
    rows = dataset.rows(Split.TEST)
    test = evaluate_rows(dataset, rows, score_rows(model, dataset, rows, device=run.device), run.decision)
    return {"bytes": size, "ms": latencies({"model": model}, dataset, run)["model"], "test": test}


def latencies(models: dict[str, torch.nn.Module], dataset: Dataset, run: TrainedRun) -> dict[str, dict[str, float]]:
    """Median milliseconds of each model by batch size, in turns, on test rows with full padding."""
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    rows, history = dataset.rows(Split.TEST), run.model.config.history_length
    for size in BATCHES:
        chosen = np.resize(rows, min(size, max(1, 4 * POSITIONS // history)))
        if len(chosen) < size:
            continue  # such a batch of such histories would be scored in parts
        batch = SequenceBatch.from_windows(*dataset.store.windows(chosen, history), run.device)
        with torch.inference_mode():
            calls = {name: functools.partial(model, batch) for name, model in models.items()}
            for name, ms in timed(calls).items():
                found[name][str(size)] = ms
    return found


def _torch(
    run: TrainedRun, dataset: Dataset, plan: PrecisionPlan, report: SensitivityReport, path: Path, backend: Backend, before: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Apply, write, load again, and measure what was loaded."""
    quantized, applied = apply_precision(run.model, plan, backend="auto" if backend == "onnxruntime" else backend)
    if applied.backend == "bitsandbytes":
        after = measured(run, quantized, dataset, _bytes(applied, before["bytes"]))
        return after, applied.to_dict()
    save_quantized(quantized, applied, path, plan=plan, about={"sensitivity": report.to_dict()})
    loaded = load_quantized_classifier(path, run.device)
    after = measured(run, loaded, dataset, (path / "model.quantized.safetensors").stat().st_size)
    both = latencies({"full": copy.deepcopy(run.model), "quantized": loaded}, dataset, run)
    before["ms"], after["ms"] = both["full"], both["quantized"]  # side by side
    save_quantized(quantized, applied, path, plan=plan, about={"sensitivity": report.to_dict(), "before": before, "after": after})
    return after, applied.to_dict()


def _bytes(applied: Applied, full: int) -> int:
    return full - applied.bytes_before + applied.bytes_after


def _onnx(
    run: TrainedRun, dataset: Dataset, batches: list[SequenceBatch], plan: PrecisionPlan, path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export, quantize with the plan's high-precision layers left out, measure by ONNX Runtime."""
    from balancer.models.export.onnx_backend import OnnxClassifier, export_onnx, quantize_onnx

    export_onnx(run.model, path / FULL_FILE)
    keep = [name for name, precision in plan.precision.items() if precision != "int8"]
    got = quantize_onnx(path / FULL_FILE, path / ONNX_FILE, batches, keep)
    model, history = OnnxClassifier(path / ONNX_FILE, threads=int(run.folder.content["threads"])), run.model.config.history_length
    rows, parts = dataset.rows(Split.TEST), []
    for first in range(0, len(rows), 1024):
        parts.append(model.probabilities(*dataset.store.windows(rows[first : first + 1024], history)))
    test = evaluate_rows(dataset, rows, np.concatenate(parts), run.decision)
    ms = {}
    for size in BATCHES:
        values, lengths = dataset.store.windows(np.resize(rows, size), history)
        ms[str(size)] = timed({"onnx": functools.partial(model.probabilities, values, lengths)})["onnx"]
    told = [{"layer": name, "wanted": wanted, "got": "int8" if name in got else "fp32"} for name, wanted in plan.precision.items()]
    for row in told:
        row["reason"] = "" if row["got"] == row["wanted"] else "ONNX Runtime quantizes to INT8 or leaves float32"
    return {"bytes": (path / ONNX_FILE).stat().st_size, "ms": ms, "test": test}, {"backend": "onnxruntime", "rows": told}
