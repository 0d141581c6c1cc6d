"""Quantize a run: measure its layers, plan their precisions, and write the smaller model to the run folder.

What is special: boosted trees are not rounded, so bytes and times are those of the network, and all metrics
those of the whole detector with this network in it. The plan is made on training and validation rows within a
budget of average precision, and is evaluated on the test rows once. A layer that is slower in low precision
on this machine keeps its precision. The results before and after are reported side by side, also when they
are worse.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from rich.console import Console

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.deployment.targets import check_max_drop
from balancer.devices import random_state_kept, torch_threads
from balancer.files import write_bytes
from balancer.inference.decision import evaluate_rows
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
from balancer.models.quantization.storage import WEIGHTS_FILE
from balancer.models.storage import CONFIG_FILE
from balancer.runs.trained_run import TrainedRun, training_table
from balancer.training.precision_stage import BATCHES, calibration, latencies, validation_metric

if TYPE_CHECKING:
    from balancer.models.export.onnx_backend import OnnxClassifier

Prefer = Literal["speed", "size"]
Backend = Literal["auto", "torch", "bitsandbytes", "onnxruntime"]
SCORE_BATCH = 1024
"""Rows of a batch in ONNX Runtime."""
FULL_FILE, ONNX_FILE = "model.onnx", "model.int8.onnx"


@random_state_kept()
def quantize_run(
    path: Path, *, max_drop: float, backend: Backend, console: Console, prefer: Prefer = "speed", dataset: Path | None = None
) -> dict[str, Any]:
    """Quantize a run.

    Args:
        path: A complete run folder.
        max_drop: Largest allowed drop of average precision on validation rows.
        backend: `torch` (the same as `auto`), `bitsandbytes` (only measured, not saved), or `onnxruntime`
            (ONNX files).
        console: Where progress is printed.
        prefer: `speed` keeps the precision of layers that are slower in low precision on this machine; `size`
            ignores times.
        dataset: Where the table of the run is now; None looks for it where it was.

    Returns:
        A JSON-serializable dict: `before` and `after` (bytes, ms by batch size, test metrics), `of` (what
        these figures are measured on), `plan`, `applied`, `sensitivity`, `seconds`.

    Raises:
        InputError: If the run is not complete, its table is missing or has changed, or the budget can't be
            met. Nothing was written then.
    """
    check_max_drop(max_drop)
    started = time.monotonic()
    run = TrainedRun.load(path)
    with torch_threads(run.threads):
        run = dataclasses.replace(run, detector=dataclasses.replace(run.detector, model=run.model.deployable()))
    with console.status("reading the table"):
        table = training_table(run.folder, dataset)
    folder = run.folder
    with folder.locked(), torch_threads(run.threads):
        batches = calibration(table, run.model, seed=int(folder.content["seed"]), device=run.device)
        with console.status("measuring how sensitive each layer is to quantization"):
            report = sensitivity(run.model, batches, seed=int(folder.content["seed"]))
        with console.status("planning the precision of each layer, and checking it on validation rows"):
            metric = validation_metric(table, run.device, int(folder.content["seed"]), run.detector)
            considered = report if prefer == "speed" else without_times(report)
            plan = plan_precision(considered, max_metric_drop=max_drop, metric=metric, model=run.model)
        before = measured(run, run.model, table, sum(tensor.nbytes for tensor in run.model.state_dict().values()))
        if backend == "onnxruntime":
            before["ms"] = latencies({"full": run.model}, table, run.model.config.history_length, run.device)["full"]
            after, applied = _onnx(run, table, batches, plan, path)
        else:
            after, applied = _torch(run, table, plan, report, path, backend, before)
    return {
        "backend": applied.get("backend", backend),
        "max_drop": max_drop,
        "of": measured_on(run),
        "before": before,
        "after": after,
        "plan": plan.to_dict(),
        "applied": applied,
        "sensitivity": report.to_dict(),
        "seconds": round(time.monotonic() - started, 1),
    }


def without_times(report: SensitivityReport) -> SensitivityReport:
    """Remove the times from a report, so that a plan does not consider them."""
    return dataclasses.replace(report, rows=[dataclasses.replace(row, ms={}) for row in report.rows])


def measured_on(run: TrainedRun) -> dict[str, str]:
    """Name what `bytes`, `ms` and the `test` metrics of a quantized run are those of."""
    return {"bytes": "network", "ms": "network", "test": "network" if run.detector.stages is None else "network and boosted trees"}


def measured(run: TrainedRun, model: torch.nn.Module, dataset: Dataset, size: int) -> dict[str, Any]:
    """Measure the detector with another network, with the calibration and threshold of the run.

    Returns:
        `bytes` (the given `size`) of the network, and under `test` the test metrics of the detector.
    """
    assert isinstance(model, Classifier)
    rows = dataset.rows(Split.TEST)
    scores = dataclasses.replace(run.detector, model=model).scores(dataset, rows, device=run.device, alike=True)
    test = evaluate_rows(dataset, rows, scores, run.decision)
    return {"bytes": size, "test": test}


def _torch(
    run: TrainedRun, dataset: Dataset, plan: PrecisionPlan, report: SensitivityReport, path: Path, backend: Backend, before: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Apply the plan, save the model, load it again, and measure the loaded model.

    The run gets the files after all measurements, so that it can be scored, and has its old plan, until then.
    """
    quantized, applied = apply_precision(run.model, plan, backend="auto" if backend == "onnxruntime" else backend)
    if applied.backend == "bitsandbytes":
        after = measured(run, quantized, dataset, _bytes(applied, before["bytes"]))
        _measure_times(run, dataset, quantized, before, after)
        return after, applied.to_dict()
    about: dict[str, Any] = {"sensitivity": report.to_dict(), "of": measured_on(run)}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps mapped files
        tried = Path(folder)
        save_quantized(quantized, applied, tried, plan=plan, about=about)
        write_bytes(tried / CONFIG_FILE, (path / CONFIG_FILE).read_bytes())
        loaded = load_quantized_classifier(tried, run.device)
        size = (tried / WEIGHTS_FILE).stat().st_size
    after = measured(run, loaded, dataset, size)
    _measure_times(run, dataset, loaded, before, after)
    save_quantized(quantized, applied, path, plan=plan, about=about | {"before": before, "after": after})
    run.folder.record_plan()
    return after, applied.to_dict()


def _measure_times(run: TrainedRun, dataset: Dataset, quantized: torch.nn.Module, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Add `ms` by batch size of the full and of the quantized network, measured in turns."""
    networks = {"full": copy.deepcopy(run.model), "quantized": quantized}
    both = latencies(networks, dataset, run.model.config.history_length, run.device)
    before["ms"], after["ms"] = both["full"], both["quantized"]


def _bytes(applied: Applied, full: int) -> int:
    return full - applied.bytes_before + applied.bytes_after


def _onnx(
    run: TrainedRun, dataset: Dataset, batches: list[SequenceBatch], plan: PrecisionPlan, path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export the detector, quantize the layers planned in INT8, and measure the file in ONNX Runtime."""
    from balancer.deployment.onnx_detector import add_trees, write_first_stage
    from balancer.deployment.targets import first_stage_file
    from balancer.models.export.onnx_backend import OnnxClassifier, export_onnx, quantize_onnx

    stages, threads, history = run.detector.stages, int(run.folder.content["threads"]), run.model.config.history_length
    keep = [name for name, precision in plan.precision.items() if precision != "int8"]
    with tempfile.TemporaryDirectory() as folder:
        full, int8 = Path(folder) / FULL_FILE, Path(folder) / ONNX_FILE
        export_onnx(run.model, full, logits=stages is not None)
        int8_layers = quantize_onnx(full, int8, batches, keep)
        network, size = OnnxClassifier(int8, threads=threads), int8.stat().st_size
        for written in (full, int8):
            if stages is None:
                write_bytes(path / written.name, written.read_bytes())
            else:
                add_trees(written, path / written.name, run.detector)
    if stages is not None:
        schema = run.schema.without_score_fields()
        write_first_stage(stages, schema.numeric_fields + schema.categorical_fields, first_stage_file(path / FULL_FILE))
    rows = dataset.rows(Split.TEST)
    scores = onnx_scores(OnnxClassifier(path / ONNX_FILE, threads=threads), dataset, rows)
    test = evaluate_rows(dataset, rows, scores, run.decision)
    ms = {}
    for rows_at_once in BATCHES:
        values, lengths = dataset.store.windows(np.resize(rows, rows_at_once), history)
        ms[str(rows_at_once)] = timed({"onnx": functools.partial(network.probabilities, values, lengths)}, take=min)["onnx"]
    layers = [
        {"layer": name, "wanted": planned, "got": "int8" if name in int8_layers else "fp32"} for name, planned in plan.precision.items()
    ]
    for layer in layers:
        layer["reason"] = "" if layer["got"] == layer["wanted"] else "ONNX Runtime has INT8 and float32 only"
    return {"bytes": size, "ms": ms, "test": test}, {"backend": "onnxruntime", "rows": layers}


def onnx_scores(model: OnnxClassifier, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Compute class probabilities (n, K) of the store `rows` (n,) in ONNX Runtime."""
    batches = [rows[first : first + SCORE_BATCH] for first in range(0, len(rows), SCORE_BATCH)]
    return np.concatenate([model.probabilities(*dataset.store.windows(batch, model.history_length)) for batch in batches])
