"""`balancer export`: a run as one file for a machine without torch; with --lite as a small student of it, in INT8 where a plan allows.

Special: the light build is told beside the full model in the same run, in turns: bytes, milliseconds, figures on the test rows under a threshold of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.deployment.distil import STEPS, distil
from balancer.deployment.quantize import calibration, validation_metric
from balancer.devices import torch_threads
from balancer.errors import InputError, UnsupportedError
from balancer.files import write_bytes, write_json
from balancer.inference.decision import Decision, evaluate_rows
from balancer.models import Classifier, SequenceBatch
from balancer.models.quantization import plan_precision, sensitivity, timed
from balancer.runs.progress import TrainingProgress
from balancer.runs.trained_run import TrainedRun, training_table

Target = Literal["onnx", "executorch"]
SUFFIXES = {"onnx": ".onnx", "executorch": ".pte"}
BATCHES = (1, 256)
LITE_FILE = "lite.json"
AT_ONCE = 1024


def export_run(path: Path, *, target: Target, lite: bool, out: Path | None, max_drop: float, console: Console) -> dict[str, Any]:
    """Export the run in ``path``; JSON-able: ``file``, ``bytes``, and of a light build ``full``, ``lite``, ``plan`` and how far scores lie apart.

    Args:
        path: a complete run folder; for a light build its table must be where it was.
        target: ``onnx`` or ``executorch``.
        lite: distil a light student first.
        out: file to write (default: ``model.onnx``, ``model.lite.onnx`` or the same with ``.pte``, in the run folder).
        max_drop: what the light build may lose of average precision on validation by its INT8 layers.
        console: where progress is told.

    Raises:
        InputError: no complete run, a part that the target can't carry, the table gone or changed, a package missing; nothing was written then.
    """
    if not 0 <= max_drop < 1:
        raise InputError(f"--max-drop is {max_drop}: give a share of average precision from 0 to below 1, as 0.003")
    suffix = SUFFIXES[target]
    file = out or path / f"model{'.lite' if lite else ''}{suffix}"
    if file.suffix != suffix:
        raise InputError(f"--out {file} must end in {suffix} for --target {target}")
    if not file.parent.is_dir():
        raise InputError(f"--out {file}: the folder {file.parent} does not exist; make it first")
    run = TrainedRun.load(path)
    with torch_threads(run.threads):
        if lite:
            return _export_lite(run, file, target, max_drop, console)
        _write(run.model, file, target)
    return {"file": str(file), "target": target, "bytes": file.stat().st_size}


def _write(model: Classifier, file: Path, target: Target) -> None:
    if target == "onnx":
        from balancer.models.export.onnx_backend import export_onnx

        export_onnx(model, file)
    else:
        from balancer.models.export.executorch_export import export_executorch

        export_executorch(model, file)


def _export_lite(run: TrainedRun, file: Path, target: Target, max_drop: float, console: Console) -> dict[str, Any]:
    started, seed = time.monotonic(), int(run.folder.content["seed"])
    with console.status("reading the table"):
        dataset = training_table(run.folder)
    with TrainingProgress(console) as progress, progress.stage("light student", STEPS) as advance:
        student = distil(run.model, dataset, seed=seed, device=run.device, progress=advance)
    plan: dict[str, Any] | None = None
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"lite{SUFFIXES[target]}"
        _write(student, whole, target)
        if target == "onnx":
            plan, told = _quantize(run, student, dataset, whole, file, max_drop, seed, console)
        else:
            write_bytes(file, whole.read_bytes())
    result = {
        "file": str(file),
        "target": target,
        "bytes": file.stat().st_size,
        "config": student.config.to_dict(),
        "full_bytes": sum(tensor.nbytes for tensor in run.model.state_dict().values()),
        "seconds": round(time.monotonic() - started, 1),
    } | told
    write_json(file.with_name(LITE_FILE), result | ({"plan": plan} if plan else {}))
    return result


def _quantize(
    run: TrainedRun, student: Classifier, dataset: Dataset, whole: Path, file: Path, max_drop: float, seed: int, console: Console
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plan, write the INT8 file, and tell full and light side by side."""
    from balancer.models.export.onnx_backend import OnnxClassifier, quantize_onnx

    batches = calibration(dataset, student, seed=seed, device=torch.device("cpu"))
    student = student.cpu()
    with console.status("planning the precision of the light build"):
        report = sensitivity(student, batches, seed=seed)
        # By size: of a model this small no layer takes long.
        report = dataclasses.replace(report, rows=[dataclasses.replace(row, ms={}) for row in report.rows])
        metric = validation_metric(dataset, torch.device("cpu"), seed)
        plan = plan_precision(report, max_metric_drop=max_drop, metric=metric, model=student)
        keep = [name for name, precision in plan.precision.items() if precision != "int8"]
        int8 = quantize_onnx(whole, file, batches, keep)
    light, plain = OnnxClassifier(file), OnnxClassifier(whole)
    with console.status("figures of the full model and the light build on the test rows"):
        held, test = dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)
        decision = Decision.fit(_scores(light, dataset, held), dataset.store.label[held])
        scores = _scores(light, dataset, test)
        figures = {"full": evaluate_rows(dataset, test, run.scores(dataset, test), run.decision), "lite": evaluate_rows(dataset, test, scores, decision)}
        some = test[:: max(1, len(test) // 5_000)]
        values, lengths = dataset.store.windows(some, student.config.history_length)
        with torch.inference_mode():
            torchs = student.probabilities(SequenceBatch.from_windows(values, lengths)).numpy()
        apart = {
            "float": np.abs(_scores(plain, dataset, some) - torchs).max(),
            "int8": np.abs(_scores(light, dataset, some) - torchs).max(),
        }
    wanted = ("average_precision", "f1", "fpr")
    ms, notes = _latencies(run, dataset, {"lite": light, "lite_float": plain})
    return plan.to_dict(), {
        "test": {name: {key: own[key] for key in wanted} for name, own in figures.items()},
        "ms": ms,
        "notes": notes,
        "int8_layers": int8,
        "largest_difference_to_torch": {name: float(value) for name, value in apart.items()},
        "decision": {"threshold": decision.threshold, "calibration": decision.calibration.to_dict()},
    }


def _scores(model: Any, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    parts = [
        model.probabilities(*dataset.store.windows(rows[at : at + AT_ONCE], model.history_length)) for at in range(0, len(rows), AT_ONCE)
    ]
    return np.concatenate(parts)


def _latencies(run: TrainedRun, dataset: Dataset, light: dict[str, Any]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Median milliseconds by batch size, measured in turns, and notes on what could not be measured.

    The full model is measured in torch and, where it can be exported, in ONNX Runtime; so are the light builds.
    """
    from balancer.models.export.onnx_backend import OnnxClassifier, export_onnx

    models, notes = dict(light), []
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_onnx(run.model, Path(folder) / "full.onnx")
            models["full_onnx"] = OnnxClassifier(Path(folder) / "full.onnx")
        except UnsupportedError as error:
            notes.append(f"the full model is measured in torch only: {error}")
    found: dict[str, dict[str, float]] = {}
    rows, history = dataset.rows(Split.TEST), run.model.config.history_length
    full = run.model.deployable()
    for size in BATCHES:
        chosen = np.resize(rows, size)
        calls: dict[str, Callable[[], Any]] = {
            name: functools.partial(model.probabilities, *dataset.store.windows(chosen, model.history_length))
            for name, model in models.items()
        }
        batch = SequenceBatch.from_windows(*dataset.store.windows(chosen, history), run.device)
        calls["full"] = (
            functools.partial(full.probabilities, batch) if full.config.form == "rows" else functools.partial(_last, full, batch)
        )
        with torch.inference_mode():
            for name, ms in timed(calls).items():
                found.setdefault(name, {})[str(size)] = ms
    return found, notes


def _last(model: Classifier, batch: SequenceBatch) -> torch.Tensor:
    """A whole history judged at its last transaction."""
    return model.probabilities(batch, (torch.arange(len(batch.lengths), device=batch.lengths.device), batch.lengths - 1))
