"""The modular architecture: transfer to another stream, several tasks, pretraining, the light build.

Claims:

- transfer: a model trained on sparkov reaches, with a new embedding and a new head on handbook, at least 97 %
  of the average precision of the full training in at most 30 % of its training time. A model trained from
  scratch in the same number of steps is measured as well.
- tasks: on handbook a model that also learns the type of fraud, the next amount and the time to it is at
  least as good at detecting fraud as one that learns fraud alone, with equal steps.
- pretraining: on sparkov with 5 % of the training labels a pretrained trunk is better than one from scratch;
  the 95 % interval of the difference over five seeds lies above 0.
- light: the exported light build has at most 1 MB, at most 10 % of the full model's latency at batch 1, and
  an average precision within .02 of the full model's on handbook.

Every cell is stored as soon as it is finished, so a stopped run continues. Times are processor seconds of one
thread, which other work on the machine does not change. Average precision is measured on all frauds and
60,000 legitimate rows of the test rows, weighted.

    python -m benchmarks.claims.modular                        # all -> benchmarks/results/modular.json
    python -m benchmarks.claims.modular --only transfer tasks  # some; the others are kept
    python -m benchmarks.claims.modular --device cuda          # -> benchmarks/results/modular_cuda.json
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, f1_score

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.inference.scoring import score_rows
from balancer.models import Classifier, ModelConfig
from balancer.options.fit import Budget, FitOptions, TaskOptions
from balancer.options.model import ModelOptions
from balancer.sampling.policies import load_policy
from balancer.sampling.seeding import generator
from balancer.training.auxiliary_evaluation import describe_tasks
from balancer.training.auxiliary_sampling import AuxiliarySampling
from balancer.training.fitting import thinned
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierTrainer
from balancer.training.treatment import Treatment
from benchmarks.lib.commands import BALANCER, parser
from benchmarks.lib.recording import RESULTS, ROOT, record, recorded
from benchmarks.lib.statistics import mean_interval
from benchmarks.lib.streams import STREAMS, missing
from benchmarks.lib.training import load_stream, train_classifier

NEGATIVES = 60_000
"""Legitimate test rows that are scored."""
FULL, SHORT = Budget(10, 160), Budget(4, 96)
TASKS_BUDGET = Budget(8, 100)
AUXILIARY = ("next_amount", "next_time")
PRETRAINING = Budget(10, 400)
LABELLED = 0.05
"""Share of the training labels that are known."""
FEW = {"middle": Budget(6, 54), "long": Budget(8, 100)}
"""Budgets with few labels."""
SEEDS = {"transfer": 3, "tasks": 3, "pretraining": 5, "light": 1}
Cells = dict[str, Any]
Save = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
"""Returns the cell of a name; measures and stores it if it is missing."""


stream = cache(load_stream)


def fitted(
    dataset: Dataset,
    fit: FitOptions,
    model: ModelConfig,
    budget: Budget,
    *,
    seed: int,
    device: str,
    start: Callable[[], Classifier] | None = None,
    train_only: Collection[str] | None = None,
    task_weights: Mapping[str, float] | None = None,
) -> tuple[ClassifierTrainer, float]:
    """Train a classifier under the policy ``auto``; return it and its processor seconds."""

    def progress(epoch: int, _: dict[str, Any]) -> None:
        print(f"    epoch {epoch}/{budget.epochs}", file=sys.stderr, flush=True)

    treatment = Treatment("run", load_policy("auto", num_classes=len(dataset.schema.classes)))
    started = time.process_time()
    student, _ = train_classifier(
        dataset,
        model,
        treatment,
        budget,
        fit,
        seed=seed,
        device=device,
        start=start,
        after_epoch=progress,
        train_only=train_only,
        task_weights=task_weights,
    )
    return student, time.process_time() - started


def evaluated(model: Classifier, dataset: Dataset, device: str) -> dict[str, Any]:
    """Average precision of fraud; with several types of fraud, the macro F1 of the type among frauds too."""
    rows, weight = thinned(dataset.rows(Split.TEST), dataset.store.label, NEGATIVES, generator(0, "modular test"))
    label, score = dataset.store.label[rows], score_rows(model, dataset, rows, device=torch.device(device))
    found = {"average_precision": float(average_precision_score(label > 0, 1.0 - score[:, 0], sample_weight=weight))}
    if score.shape[1] > 2:
        fraud = label > 0
        found["type_macro_f1"] = float(f1_score(label[fraud], 1 + score[fraud, 1:].argmax(1), average="macro"))
    return found


def keep(cells: Cells, path: Path, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The cell of that name; if it is missing it is measured, and ``cells`` is written to ``path``."""
    if key not in cells:
        print(key, file=sys.stderr, flush=True)
        cells[key] = measure()
        path.write_text(json.dumps(cells, indent=2) + "\n")
    found: dict[str, Any] = cells[key]
    return found


def mean_of(cells: list[dict[str, Any]], key: str) -> float:
    """Mean of one figure over the seeds."""
    return float(statistics.mean(cell[key] for cell in cells))


def steps_of(budget: Budget) -> int:
    """Optimizer steps of a training."""
    return budget.epochs * budget.steps_per_epoch


def transfer(save: Save, device: str, seeds: int) -> dict[str, Any]:
    """Move sparkov's trunk to handbook with a new embedding and head; train all of it or freeze the trunk."""
    trunk: list[Classifier] = []

    def base() -> Classifier:
        if not trunk:
            dataset = stream("sparkov")
            model = model_config(dataset, ModelOptions(), seed=0)
            trunk.append(fitted(dataset, FitOptions(), model, FULL, seed=0, device=device)[0].model)
        return trunk[0]

    def training(name: str, seed: int) -> dict[str, Any]:
        dataset = stream("handbook")
        options, fit = ModelOptions(), FitOptions()
        frozen = name == "transfer_frozen"
        if name != "full":
            # A short training needs larger steps and less noise; chosen on seed 0, better for all three.
            fit = FitOptions(learning_rate=6e-3 if frozen else 4e-3)
            options = ModelOptions(dropout=0.05 if frozen else 0.1, field_dropout=0.05)
        model = model_config(dataset, options, seed=seed)
        start = None
        if name.startswith("transfer"):
            names = ("numeric_fields", "categorical_fields", "cardinalities", "edges", "classes", "dropout", "field_dropout")
            changes = {name: getattr(model, name) for name in names}
            start = partial(moved, base(), embedding="transaction", head=model.head, **changes)
        budget, train_only = FULL if name == "full" else SHORT, ("embedding", "head") if frozen else None
        student, seconds = fitted(dataset, fit, model, budget, seed=seed, device=device, start=start, train_only=train_only)
        trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
        return evaluated(student.model, dataset, device) | {"seconds": seconds, "trained_parameters": trained}

    names = ("full", "scratch", "transfer_frozen", "transfer")
    found = {name: [save(f"transfer.{name}.{seed}", partial(training, name, seed)) for seed in range(seeds)] for name in names}
    summary: dict[str, Any] = {"steps": {"full": steps_of(FULL), "others": steps_of(SHORT)}, "seeds": seeds}
    for name, cells in found.items():

        def share(key: str, cells: list[dict[str, Any]] = cells) -> float:
            """Mean over the seeds of the ratio to the figure of the full training."""
            return float(statistics.mean(cell[key] / full[key] for cell, full in zip(cells, found["full"], strict=True)))

        summary[name] = {
            "average_precision": mean_of(cells, "average_precision"),
            "share_of_full": share("average_precision"),
            "share_of_time": share("seconds"),
            "trained_parameters": cells[0]["trained_parameters"],
        }
    return summary | {"wanted": {"share_of_full": 0.97, "share_of_time": 0.30}}


def moved(source: Classifier, **changes: Any) -> Classifier:
    """A copy of ``source`` with some parts replaced, to start a training from."""
    return source.replace(**changes).model


def tasks(save: Save, device: str, seeds: int) -> dict[str, Any]:
    """Learn fraud alone, or fraud, its type, the next amount and the time to it."""

    def training(name: str, seed: int) -> dict[str, Any]:
        dataset = stream("handbook", "TX_FRAUD" if name == "fraud" else None)
        options = TaskOptions()
        if name.startswith("all"):
            options = TaskOptions(tasks=AUXILIARY, task_weights="uncertainty" if name == "all_uncertainty" else options.task_weights)
        model = model_config(dataset, ModelOptions(), seed=seed, tasks=options.tasks or ())
        student, seconds = fitted(
            dataset, FitOptions(), model, TASKS_BUDGET, seed=seed, device=device, task_weights=options.fixed_task_weights()
        )
        return evaluated(student.model, dataset, device) | {
            "seconds": seconds,
            "tasks": describe_tasks(student.model, dataset, seed, torch.device(device)),
        }

    names = ("fraud", "fraud_type", "all", "all_uncertainty")
    found = {name: [save(f"tasks.{name}.{seed}", partial(training, name, seed)) for seed in range(seeds)] for name in names}
    summary: dict[str, Any] = {"steps": steps_of(TASKS_BUDGET), "seeds": seeds}
    for name, cells in found.items():
        summary[name] = {"average_precision": mean_of(cells, "average_precision")}
        if name != "fraud":
            summary[name]["type_macro_f1"] = mean_of(cells, "type_macro_f1")
            summary[name]["against_fraud"] = difference(cells, found["fraud"])
    for task in AUXILIARY:
        figures = [cell["tasks"][task] for cell in found["all"]]
        summary["all"][task] = {key: mean_of(figures, key) for key in ("macro_f1", "macro_f1_commonest", "accuracy")}
    return summary


def pretraining(save: Save, device: str, seeds: int) -> dict[str, Any]:
    """Train with few labels, from scratch and from a trunk that was pretrained without labels."""
    whole = stream("sparkov")
    learned: list[Classifier] = []

    def few(seed: int) -> Dataset:
        """Sparkov with 5 % of its training labels; the others are unknown."""
        label = whole.store.label.copy()
        train = np.flatnonzero(whole.split == Split.TRAIN)
        hidden = generator(seed, "few labels").random(len(train)) >= LABELLED
        label[train[hidden]] = -1
        return replace(whole, store=replace(whole.store, label=label))

    def trunk() -> Classifier:
        if not learned:
            dataset = few(0)
            options = TaskOptions(tasks=("next_fields", "masked_fields"), task_weights="1")
            # Without labels the bin edges are quantiles; a later training keeps them with the embedding.
            model = model_config(dataset, ModelOptions(dropout=0.1, field_dropout=0.0), seed=0, tasks=options.tasks or ())
            student = ClassifierTrainer(
                dataset,
                model,
                seed=0,
                total_steps=steps_of(PRETRAINING),
                task_weights=options.fixed_task_weights(),
                device=device,
            )
            sampling = AuxiliarySampling(
                dataset, model, epochs=PRETRAINING.epochs, steps=PRETRAINING.steps_per_epoch, batch_size=256, seed=0, share=1.0
            )
            for epoch in range(PRETRAINING.epochs):
                loss = student.fit(np.zeros(0, dtype=np.int64), sampling.draw(epoch))
                print(f"    pretraining {epoch + 1}/{PRETRAINING.epochs} loss {loss:.3f}", file=sys.stderr, flush=True)
            learned.append(student.model)
        return learned[0]

    def training(name: str, seed: int, budget: Budget) -> dict[str, Any]:
        dataset = few(seed)
        start: Callable[[], Classifier] | None = None
        if name == "scratch":
            model = model_config(dataset, ModelOptions(), seed=seed)
        else:
            model = model_config(dataset, ModelOptions(), seed=seed, kept=trunk().config)
            start = partial(moved, trunk(), head=model.head, tasks=(), dropout=model.dropout, field_dropout=model.field_dropout)
        student, seconds = fitted(dataset, FitOptions(), model, budget, seed=seed, device=device, start=start)
        return evaluated(student.model, dataset, device) | {"seconds": seconds}

    summary: dict[str, Any] = {"labels": LABELLED, "seeds": seeds, "pretraining_steps": steps_of(PRETRAINING)}
    for length, budget in FEW.items():
        found = {
            name: [save(f"pretraining.{length}.{name}.{seed}", partial(training, name, seed, budget)) for seed in range(seeds)]
            for name in ("scratch", "pretrained")
        }
        against = difference(found["pretrained"], found["scratch"])
        means = {name: mean_of(cells, "average_precision") for name, cells in found.items()}
        summary[length] = {"steps": steps_of(budget), "difference": against} | means
    return summary


def light(save: Save, device: str, seeds: int) -> dict[str, Any]:
    """Export a run on handbook by `balancer export --target onnx --lite`; one seed, on a CPU.

    Its latencies need a machine that does nothing else. The run is kept in runs/ and is not trained again.
    """
    del device, seeds

    def export() -> dict[str, Any]:
        run, handbook = ROOT / "runs" / ".modular_light", STREAMS["handbook"]
        if not (run / "report.json").exists():
            flags = ["--dataset", str(handbook.table), "--spec", str(handbook.spec), "--policy", "auto", "--budget", "quick"]
            subprocess.run([*BALANCER, "train", *flags, "--out", str(run)], check=True, stdout=sys.stderr)
        command = [*BALANCER, "export", str(run), "--target", "onnx", "--lite", "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return save("light", export)


def difference(cells: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, float]:
    """Mean paired difference of average precision over the seeds with its 95 % interval by Student's t."""
    each = [cell["average_precision"] - other["average_precision"] for cell, other in zip(cells, others, strict=True)]
    mean, *ends = mean_interval(each)
    low, high = (math.nan if end is None else end for end in ends)
    return {"mean": mean, "low": low, "high": high, "ahead": sum(value > 0 for value in each)}


SECTIONS: dict[str, Callable[[Save, str, int], dict[str, Any]]] = {
    "transfer": transfer,
    "tasks": tasks,
    "pretraining": pretraining,
    "light": light,
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="claims to check")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    options.add_argument("--seeds", type=int, help="number of seeds (default: 3, for pretraining 5, for light 1)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    reasons = [reason for name in ("handbook", "sparkov") if (reason := missing(name)) is not None]
    if reasons:
        print("\n".join(reasons), file=sys.stderr)
        return
    for section in arguments.only:
        # One file for each section, so that sections can run in several processes at the same time.
        work = RESULTS / f".modular_{section}_{arguments.device}.json"
        cells: Cells = recorded(work)
        summary = SECTIONS[section](partial(keep, cells, work), arguments.device, arguments.seeds or SEEDS[section])
        path = RESULTS / ("modular.json" if arguments.device == "cpu" else "modular_cuda.json")
        before = recorded(path)
        kept = {name: before[name] for name in SECTIONS if name in before}
        record(kept | {section: summary, "cells": before.get("cells", {}) | cells}, path)
        work.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
