"""The last stage of a network: plan the precision of its layers, round them, and store the result.

The plan has the fewest bytes within a budget of average precision on validation rows. It does not depend on
times, so that one seed gives the same plan on every machine; INT8 products are exact, so it also gives the
same scores. On CPUs layers get INT8 or stay in float32; bfloat16 would be rounded in different ways there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.errors import InputError, UnwritableFileError
from balancer.inference.decision import fraud_score
from balancer.inference.detector import Detector
from balancer.inference.scoring import score_rows
from balancer.models import Classifier, SequenceBatch
from balancer.models.quantization import (
    apply_precision,
    load_quantized_classifier,
    plan_precision,
    save_quantized,
    sensitivity,
    timed,
)
from balancer.models.quantization.storage import PLAN_FILE, WEIGHTS_FILE
from balancer.options.train import MAX_DROP
from balancer.runs.results import Scores
from balancer.sampling.seeding import generator
from balancer.training.fitting import thinned

CALIBRATION_BATCHES, CALIBRATION_ROWS = 8, 64
"""Number and size of the batches for measuring sensitivity; batches of long histories are smaller."""
POSITIONS = 65_536
"""Most transactions of a calibration batch."""
METRIC_NEGATIVES = 20_000
"""Most negative validation rows for the metric; all positive rows are used."""
BATCHES = (1, 32, 256)
"""Batch sizes of the latency measurements."""


@dataclass(frozen=True)
class PlannedNetwork:
    """A network with rounded layers, as it was stored."""

    model: Classifier
    about: dict[str, Any]
    """For the report: ``layers`` (number by precision), ``bytes`` of the ``full`` and the ``planned``
    network, and ``metric_drop``, the average precision on validation rows that rounding costs."""
    ms: dict[str, dict[str, float]]
    """Milliseconds of the ``full`` and the ``planned`` network by batch size."""


def plan_network(dataset: Dataset, model: Classifier, folder: Path, *, seed: int, device: torch.device) -> PlannedNetwork | str:
    """Plan the precision of a trained network, and store the rounded network in the folder of its run.

    Args:
        dataset: The table, with filled score fields if the detector has trees.
        model: The network in full precision.
        folder: Folder of the run.
        seed: Seed of the run.
        device: Where the network computes.

    Returns:
        The rounded network as it is loaded again; or why it can't be rounded, as a sentence.
    """
    full = model.deployable().to(device).eval()
    try:
        return _planned(dataset, full, folder, seed=seed, device=device)
    except UnwritableFileError:
        raise
    except InputError as error:
        reason = str(error)
    except Exception as error:
        part = _foreign_part(full)
        if part is None:
            raise
        reason = f"a network with {part} can't be rounded ({type(error).__name__}: {' '.join(str(error).split())})"
    for name in (WEIGHTS_FILE, PLAN_FILE):
        (folder / name).unlink(missing_ok=True)
    return reason


def _planned(dataset: Dataset, full: Classifier, folder: Path, *, seed: int, device: torch.device) -> PlannedNetwork:
    """See `plan_network`; an error is raised where the network can't be rounded."""
    report = sensitivity(full, calibration(dataset, full, seed=seed, device=device), seed=seed, latency=False)
    plan = plan_precision(
        report,
        max_metric_drop=MAX_DROP,
        metric=validation_metric(dataset, device, seed),
        model=full,
        precisions=("int8", "fp32") if device.type == "cpu" else ("int8", "bf16", "fp32"),
    )
    rounded, applied = apply_precision(full, plan, backend="torch")
    report = dataclasses.replace(report, seconds=0.0)  # so that equal runs have equal files
    save_quantized(rounded, applied, folder, plan=plan, about={"sensitivity": report.to_dict()})
    planned = load_quantized_classifier(folder, device)
    got = [row.got for row in applied.rows]
    size = {"full": sum(tensor.nbytes for tensor in full.state_dict().values()), "planned": (folder / WEIGHTS_FILE).stat().st_size}
    about = {
        "layers": {precision: got.count(precision) for precision in dict.fromkeys(got)},
        "bytes": size,
        "metric_drop": plan.expected["metric_drop"],
    }
    return PlannedNetwork(planned, about, latencies({"full": full, "planned": planned}, dataset, full.config.history_length, device))


def _foreign_part(model: torch.nn.Module) -> str | None:
    """Name the first module that is neither of this package nor of torch; None if there is none."""
    kinds = (type(module) for module in model.modules())
    return next((kind.__qualname__ for kind in kinds if kind.__module__.split(".")[0] not in ("balancer", "torch")), None)


def planned_scores(dataset: Dataset, model: Classifier, full: Scores, device: torch.device) -> Scores:
    """Scores of the rows that have scores of the full network, with the bits of `balancer score`."""

    def scored(split: Split) -> np.ndarray:
        return score_rows(model, dataset, dataset.rows(split), device=device, alike=True)

    return Scores(scored(Split.THRESHOLD), scored(Split.TEST), full.figures, None if full.reward is None else scored(Split.REWARD))


def calibration(dataset: Dataset, model: Classifier, *, seed: int, device: torch.device) -> list[SequenceBatch]:
    """Draw batches of training rows for measuring sensitivity, half of them frauds if there are enough.

    Rounding has the largest effect on the scores of frauds.
    """
    rows, history = dataset.rows(Split.TRAIN), model.config.history_length
    size = max(1, min(CALIBRATION_ROWS, POSITIONS // history))
    rng = generator(seed, "calibration")
    fraud = dataset.store.label[rows] > 0
    half = CALIBRATION_BATCHES * size // 2
    chosen = np.concatenate([rng.choice(rows[kind], min(half, int(kind.sum())), replace=False) for kind in (fraud, ~fraud)])
    chosen = rng.permutation(chosen)
    batches = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    return [SequenceBatch.from_windows(*dataset.store.windows(batch, history), device) for batch in batches]


def validation_metric(
    dataset: Dataset, device: torch.device, seed: int, detector: Detector | None = None
) -> Callable[[torch.nn.Module], float]:
    """Return a function that computes the average precision on validation rows of a classifier.

    Args:
        dataset: The table, with filled score fields if the detector has trees.
        device: Where the classifier is.
        seed: Seed by which negative rows are drawn.
        detector: The average precision is that of this detector with the classifier as its network; None:
            that of the classifier alone.
    """
    made = detector or Detector(None, None)
    rows = np.concatenate([dataset.rows(Split.REWARD), dataset.rows(Split.THRESHOLD)])
    rows, weight = thinned(rows, dataset.store.label, METRIC_NEGATIVES, generator(seed, "quantization metric"))
    label = dataset.store.label[rows] > 0

    def metric(model: torch.nn.Module) -> float:
        assert isinstance(model, Classifier)
        score = fraud_score(dataclasses.replace(made, model=model).scores(dataset, rows, device=device))
        return float(average_precision_score(label, score, sample_weight=weight))

    return metric


def latencies(models: dict[str, torch.nn.Module], dataset: Dataset, history: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Measure the least milliseconds of each model by batch size, in turns.

    Args:
        models: Classifiers by name.
        dataset: The table; test rows are scored.
        history: Transactions that a classifier reads for a row.
        device: Where the classifiers are.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    rows = dataset.rows(Split.TEST)
    for size in BATCHES:
        chosen = np.resize(rows, min(size, max(1, 4 * POSITIONS // history)))
        if len(chosen) < size:
            continue  # such large batches of long histories are scored in parts
        batch = SequenceBatch.from_windows(*dataset.store.windows(chosen, history), device)
        with torch.inference_mode():
            calls = {name: functools.partial(model, batch) for name, model in models.items()}
            for name, ms in timed(calls, take=min).items():
                found[name][str(size)] = ms
    return found
