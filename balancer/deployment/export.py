"""Export a run, or a light student of it, to files for a machine without torch.

What is special: the whole detector is exported, network and boosted trees; the scores that it remembers of
earlier rows are computed by the graph of its first stage, in a second file. The light model is measured side
by side with the full model: bytes, milliseconds, and metrics on the test rows with its own threshold.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from balancer.data.dataset import Dataset
from balancer.data.schema import Schema
from balancer.data.split import Split
from balancer.deployment.distil import STEPS, distil
from balancer.deployment.quantize import onnx_scores, without_times
from balancer.deployment.targets import LITE_FILE, SUFFIXES, Target, check_max_drop, export_file, first_stage_file
from balancer.devices import random_state_kept, torch_threads
from balancer.errors import UnsupportedError
from balancer.files import write_bytes, write_json
from balancer.inference.decision import Decision, evaluate_rows
from balancer.inference.detector import Detector
from balancer.inference.tree_stages import TREES_FOLDER
from balancer.models import Classifier, SequenceBatch
from balancer.models.quantization import plan_precision, sensitivity, timed
from balancer.runs.progress import TrainingProgress
from balancer.runs.trained_run import TrainedRun, training_table
from balancer.training.precision_stage import calibration, validation_metric

BATCHES = (1, 256)
"""Batch sizes of the latency measurements."""


@random_state_kept()
def export_run(
    path: Path,
    *,
    target: Target,
    lite: bool,
    out: Path | None,
    max_drop: float,
    console: Console,
    dataset: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a run.

    Args:
        path: A complete run folder.
        target: `onnx` or `executorch`.
        lite: Whether to distil a light student and export that.
        out: File to write; by default `model.onnx`, `model.lite.onnx` or the same with `.pte`, in the run
            folder, which replaces an earlier export.
        max_drop: Largest allowed drop of average precision on validation rows through the INT8 layers of the
            light model.
        console: Where progress is printed.
        dataset: For a light model, where the table of the run is now; None looks for it where it was.
        overwrite: Whether an existing `out` may be replaced.

    Returns:
        A JSON-serializable dict: `file`, `target`, `bytes`; `first_stage`, the second file of a detector with
        boosted trees; for a light ONNX model also metrics, times and the largest difference from torch's
        scores.

    Raises:
        InputError: If `out` exists, the run is not complete, its table is missing or has changed, the target
            does not support a part of the model, or a package is missing. Nothing was written then.
    """
    check_max_drop(max_drop)
    file = export_file(path, target, lite=lite, out=out, overwrite=overwrite)
    run = TrainedRun.load(path)
    with torch_threads(run.threads):
        if lite:
            return _export_lite(run, file, target, max_drop, console, dataset)
        files = _write(dataclasses.replace(run.detector, model=run.model), run.schema, file, target)
    result = {"file": str(file), "target": target, "bytes": sum(written.stat().st_size for written in files)}
    return result if len(files) == 1 else result | {"first_stage": str(files[1])}


def _write(detector: Detector, schema: Schema, file: Path, target: Target) -> list[Path]:
    """Write a detector with a network; returns the files."""
    if target == "onnx":
        from balancer.deployment.onnx_detector import write_detector

        return write_detector(detector, field_names(schema.without_score_fields()), file)
    from balancer.models.export.executorch_export import export_executorch

    if detector.stages is not None:
        raise UnsupportedError(
            "boosted trees can't be exported to ExecuTorch, and without them the network's scores are others: "
            "use --target onnx, or export a light build (--lite), which needs no trees"
        )
    assert detector.model is not None
    export_executorch(detector.model, file)
    return [file]


def field_names(schema: Schema) -> tuple[str, ...]:
    """Names of all fields, in the order of the columns."""
    return schema.numeric_fields + schema.categorical_fields


def _export_lite(run: TrainedRun, file: Path, target: Target, max_drop: float, console: Console, table: Path | None) -> dict[str, Any]:
    started, seed, teacher = time.monotonic(), int(run.folder.content["seed"]), dataclasses.replace(run.detector, model=run.model)
    with console.status("reading the table"):
        dataset = training_table(run.folder, table)
    with TrainingProgress(console) as progress, progress.stage("light student", STEPS) as advance:
        student = distil(teacher, dataset, seed=seed, device=run.device, progress=advance)
    plan: dict[str, Any] | None = None
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"lite{SUFFIXES[target]}"
        _write(Detector(student, None), run.schema, whole, target)
        if target == "onnx":
            plan, measured = _quantize(run, student, dataset, whole, file, max_drop, seed, console)
        else:
            write_bytes(file, whole.read_bytes())
    result = {
        "file": str(file),
        "target": target,
        "bytes": file.stat().st_size,
        "config": student.config.to_dict(),
        "full": "network" if run.detector.stages is None else "network and boosted trees",
        "full_bytes": sum(tensor.nbytes for tensor in run.model.state_dict().values()) + _trees_bytes(run),
        "seconds": round(time.monotonic() - started, 1),
    } | measured
    write_json(file.with_name(LITE_FILE), result | ({"plan": plan} if plan else {}))
    return result


def _quantize(
    run: TrainedRun, student: Classifier, dataset: Dataset, whole: Path, file: Path, max_drop: float, seed: int, console: Console
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plan the precisions, write the INT8 file, and measure the full and the light model side by side."""
    from balancer.models.export.onnx_backend import OnnxClassifier, quantize_onnx

    base = dataset.without_score_fields()
    batches = calibration(base, student, seed=seed, device=torch.device("cpu"))
    student = student.cpu()
    with console.status("planning the precision of the light model"):
        report = sensitivity(student, batches, seed=seed)
        # Plan by size only: every layer of such a small model is fast.
        report = without_times(report)
        metric = validation_metric(base, torch.device("cpu"), seed)
        plan = plan_precision(report, max_metric_drop=max_drop, metric=metric, model=student)
        keep = [name for name, precision in plan.precision.items() if precision != "int8"]
        int8 = quantize_onnx(whole, file, batches, keep)
    light, plain = OnnxClassifier(file), OnnxClassifier(whole)
    with console.status("evaluating the full and the light model on the test rows"):
        held, test = dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)
        decision = Decision.fit(onnx_scores(light, base, held), dataset.store.label[held])
        scores = onnx_scores(light, base, test)
        metrics = {
            "full": evaluate_rows(dataset, test, run.scores(dataset, test), run.decision),
            "lite": evaluate_rows(dataset, test, scores, decision),
        }
        sample = test[:: max(1, len(test) // 5_000)]
        values, lengths = base.store.windows(sample, student.config.history_length)
        with torch.inference_mode():
            in_torch = student.probabilities(SequenceBatch.from_windows(values, lengths)).numpy()
        difference = {
            "float": np.abs(onnx_scores(plain, base, sample) - in_torch).max(),
            "int8": np.abs(onnx_scores(light, base, sample) - in_torch).max(),
        }
    reported = ("average_precision", "f1", "fpr")
    ms, notes = _latencies(run, dataset, {"lite": light, "lite_float": plain})
    return plan.to_dict(), {
        "test": {name: {key: values[key] for key in reported} for name, values in metrics.items()},
        "ms": ms,
        "notes": notes,
        "int8_layers": int8,
        "largest_difference_to_torch": {name: float(value) for name, value in difference.items()},
        "decision": {"threshold": decision.threshold, "calibration": decision.calibration.to_dict()},
    }


def _latencies(run: TrainedRun, dataset: Dataset, light: dict[str, Any]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Measure the least milliseconds by batch size, alternating between the models.

    The full detector is measured in torch and, if it can be exported, in ONNX Runtime; the light models in
    ONNX Runtime. Trees of both stages are a part of the full detector.

    Returns:
        The milliseconds by model and batch size, and notes on what could not be measured.
    """
    notes, full_onnx = [], None
    try:
        full_onnx = _in_onnx(run)
    except UnsupportedError as error:
        notes.append(f"the full model is measured in torch only: {error}")
    found: dict[str, dict[str, float]] = {}
    rows, history, base = dataset.rows(Split.TEST), run.model.config.history_length, dataset.without_score_fields()
    full = dataclasses.replace(run.detector, model=run.model.deployable())
    for size in BATCHES:
        chosen = np.resize(rows, size)
        calls: dict[str, Callable[[], Any]] = {
            name: functools.partial(model.probabilities, *base.store.windows(chosen, model.history_length)) for name, model in light.items()
        }
        whole = dataset.store.windows(chosen, history)
        if full_onnx is not None:
            calls["full_onnx"] = functools.partial(full_onnx, base.store.values[chosen], *whole)
        batch = SequenceBatch.from_windows(*whole, run.device)
        calls["full"] = functools.partial(_score_last, full, batch, dataset.store.values[chosen], base.store.values[chosen])
        with torch.inference_mode():
            for name, ms in timed(calls, take=min).items():
                found.setdefault(name, {})[str(size)] = ms
    return found, notes


def _in_onnx(run: TrainedRun) -> Callable[..., Any]:
    """Export the full detector; returns a function that scores rows in ONNX Runtime.

    Its arguments are fields without score fields (B, F), windows (B, n, C) and lengths (B,).

    Raises:
        UnsupportedError: It can't be exported.
    """
    from balancer.deployment.onnx_detector import FirstStage
    from balancer.models.export.onnx_backend import OnnxClassifier

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "full.onnx"
        _write(run.detector, run.schema, file, "onnx")
        scorer, first = OnnxClassifier(file), None if run.detector.stages is None else FirstStage(first_stage_file(file))

    def score(fields: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        if first is not None:
            first.logit(fields)
        return scorer.probabilities(values, lengths)

    return score


def _score_last(detector: Detector, batch: SequenceBatch, values: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Compute the probabilities of the last transaction of each history, and first its own score by the first
    stage, as for a new row.

    Args:
        detector: Network and trees.
        batch: The histories.
        values: (B, C) all fields of the last transactions.
        fields: (B, F) those without score fields.
    """
    model = detector.model
    assert model is not None
    if detector.stages is not None:
        detector.stages.first_logit(fields, np.full(len(fields), np.inf), np.zeros(len(fields), dtype=np.int8))
    at = (torch.arange(len(batch.lengths), device=batch.lengths.device), batch.lengths - 1)
    found = model.probabilities(batch) if model.config.form == "rows" else model.probabilities(batch, at)
    return detector.combine(found.float().cpu().numpy(), values)


def _trees_bytes(run: TrainedRun) -> int:
    """Bytes of the trees of a run, in the files that hold them."""
    if run.detector.stages is None:
        return 0
    return sum(file.stat().st_size for file in (run.folder.path / TREES_FOLDER).glob("*.txt"))
