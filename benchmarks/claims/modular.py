"""Modular architecture: a trunk moved to another stream, several tasks on one trunk, a trunk that was pretrained without labels, and the light build.

Claims:
- transfer: a model trained on sparkov reaches, with a new embedding and a new head on handbook, at least 97 % of the full training's average precision in at
  most 30 % of its training time. Beside it a model trained from nothing in the same number of steps.
- tasks: on handbook a model that also learns the type of fraud, the next amount and the time to it is at least as good at fraud as one that learns fraud
  alone, at equal steps.
- pretraining: on sparkov with 5 % of the training labels a pretrained trunk is better than one from nothing by more than the interval over five seeds.
- light: the exported light build is at most 1 MB, at most 10 % of the full model's latency at batch 1, and within .02 of its average precision on handbook.

Every cell is kept as soon as it is there; a run that was stopped goes on. Times are processor seconds of one thread, so other work on the machine does not move
them. Average precision is of all frauds and 60,000 legitimate rows of test, weighted.

    python benchmarks/modular.py                          # all -> benchmarks/results/modular.json
    python benchmarks/modular.py --only transfer tasks    # some; the others' figures in the result file are kept
    python benchmarks/modular.py --device cuda            # -> benchmarks/results/modular_cuda.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import RESULTS, ROOT, SHARED, record
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.split import PART_TEST, PART_TRAIN
from balancer.inference.scoring import score_rows
from balancer.models import Classifier, ModelConfig
from balancer.options.train import Budget, TrainConfig
from balancer.sampling.policies import load_policy
from balancer.sampling.seeding import generator
from balancer.training.auxiliary_sampling import TaskSampling, describe_tasks
from balancer.training.fitting import Scheme, fit_classifier, thinned
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierStudent

NEGATIVES = 60_000
FULL, SHORT = Budget(10, 160), Budget(4, 96)
TASKS_BUDGET = Budget(8, 100)
AUXILIARY = ("next_amount", "next_time")
PRETRAINING = Budget(10, 400)
LABELLED = 0.05
FEW = {"middle": Budget(6, 54), "long": Budget(8, 100)}
SEEDS = {"transfer": 3, "tasks": 3, "pretraining": 5, "light": 1}
Cells = dict[str, Any]
Save = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
"""Gives the cell of that name, and makes it where it is missing."""


@cache
def stream(name: str, label: str | None = None) -> Dataset:
    """A public stream, with another label column where one is named."""
    table = SHARED / name / "transactions.parquet"
    overrides = {} if label is None else {"label": label, "negative": "0"}
    spec = resolve_spec(table, spec_file=ROOT / "benchmarks" / "datasets" / f"{name}.toml", overrides=overrides)
    return load_dataset(table, spec)


def fitted(
    dataset: Dataset, config: TrainConfig, model: ModelConfig, schedule: Budget, start: Callable[[], Classifier] | None, device: str
) -> tuple[ClassifierStudent, float]:
    """A classifier under the shipped adaptive policy, and the processor seconds of its training."""
    policy = load_policy("auto", num_classes=len(dataset.schema.classes))
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        student, _ = fit_classifier(
            dataset,
            model,
            Scheme("run", policy),
            schedule,
            config,
            device=device,
            checkpoint=Path(folder) / "checkpoint.safetensors",
            after_epoch=lambda epoch, _: print(f"    epoch {epoch}/{schedule.epochs}", file=sys.stderr, flush=True),
            start=start,
        )
        return student, time.process_time() - started


def judged(model: Classifier, dataset: Dataset, device: str) -> dict[str, Any]:
    """Average precision of fraud, and with several types the macro F1 of the type among frauds."""
    rows, weight = thinned(dataset.rows(PART_TEST), dataset.store.label, NEGATIVES, generator(0, "modular test"))
    label, score = dataset.store.label[rows], score_rows(model, dataset, rows, device=torch.device(device))
    found = {"average_precision": float(average_precision_score(label > 0, 1.0 - score[:, 0], sample_weight=weight))}
    if score.shape[1] > 2:
        fraud = label > 0
        found["type_macro_f1"] = float(f1_score(label[fraud], 1 + score[fraud, 1:].argmax(1), average="macro"))
    return found


def keep(cells: Cells, key: str, make: Callable[[], dict[str, Any]], path: Path) -> dict[str, Any]:
    """The cell of that name, made and written where it is missing."""
    if key not in cells:
        print(key, file=sys.stderr, flush=True)
        cells[key] = make()
        path.write_text(json.dumps(cells, indent=2) + "\n")
    found: dict[str, Any] = cells[key]
    return found


def transfer(save: Save, device: str, seeds: int) -> dict[str, Any]:
    """Sparkov's trunk on handbook under a new embedding and head: all of it trained on, or the trunk left as it is."""
    trunk: list[Classifier] = []

    def base() -> Classifier:
        if not trunk:
            dataset = stream("sparkov")
            config = TrainConfig(Path("sparkov"))
            trunk.append(fitted(dataset, config, model_config(dataset, config), FULL, None, device)[0].model)
        return trunk[0]

    def arm(name: str, seed: int) -> dict[str, Any]:
        dataset = stream("handbook")
        config = TrainConfig(Path("handbook"), seed=seed)
        if name != "full":
            # A short training wants larger steps and less noise; found on seed 0, and better for all three.
            frozen = name == "transfer_frozen"
            config = replace(config, learning_rate=6e-3 if frozen else 4e-3, dropout=0.05 if frozen else 0.1, field_dropout=0.05)
            if frozen:
                config = replace(config, from_=Path("sparkov"), train_only=("embedding", "head"))
        model = model_config(dataset, config)
        start = None
        if name.startswith("transfer"):
            names = ("numeric_fields", "categorical_fields", "cardinalities", "edges", "classes", "dropout", "field_dropout")
            changes = {name: getattr(model, name) for name in names}
            source = base()
            start = lambda: source.replace(embedding="transaction", head=model.head, **changes).model  # noqa: E731
        student, seconds = fitted(dataset, config, model, FULL if name == "full" else SHORT, start, device)
        trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
        return judged(student.model, dataset, device) | {"seconds": seconds, "trained_parameters": trained}

    arms = ("full", "scratch", "transfer_frozen", "transfer")
    found = {
        name: [save(f"transfer.{name}.{seed}", lambda name=name, seed=seed: arm(name, seed)) for seed in range(seeds)] for name in arms
    }  # type: ignore[misc]
    full = found["full"]
    summary: dict[str, Any] = {
        "steps": {"full": FULL.epochs * FULL.steps_per_epoch, "others": SHORT.epochs * SHORT.steps_per_epoch},
        "seeds": seeds,
    }
    for name in arms:
        summary[name] = {
            "average_precision": statistics.mean(cell["average_precision"] for cell in found[name]),
            "share_of_full": statistics.mean(
                a["average_precision"] / b["average_precision"] for a, b in zip(found[name], full, strict=True)
            ),
            "share_of_time": statistics.mean(a["seconds"] / b["seconds"] for a, b in zip(found[name], full, strict=True)),
            "trained_parameters": found[name][0]["trained_parameters"],
        }
    return summary | {"wanted": {"share_of_full": 0.97, "share_of_time": 0.30}}


def tasks(save: Save, device: str, seeds: int) -> dict[str, Any]:
    """Fraud alone against fraud, its type, the next amount and the time to it."""

    def arm(name: str, seed: int) -> dict[str, Any]:
        dataset = stream("handbook", "TX_FRAUD" if name == "fraud" else None)
        config = TrainConfig(Path("handbook"), seed=seed)
        if name.startswith("all"):
            config = replace(config, tasks=AUXILIARY, task_weights="uncertainty" if name == "all_uncertainty" else config.task_weights)
        model = model_config(dataset, config)
        student, seconds = fitted(dataset, config, model, TASKS_BUDGET, None, device)
        return judged(student.model, dataset, device) | {
            "seconds": seconds,
            "tasks": describe_tasks(student.model, dataset, seed, torch.device(device)),
        }

    arms = ("fraud", "fraud_type", "all", "all_uncertainty")
    found = {name: [save(f"tasks.{name}.{seed}", lambda name=name, seed=seed: arm(name, seed)) for seed in range(seeds)] for name in arms}  # type: ignore[misc]
    summary: dict[str, Any] = {"steps": TASKS_BUDGET.epochs * TASKS_BUDGET.steps_per_epoch, "seeds": seeds}
    for name in arms:
        summary[name] = {"average_precision": statistics.mean(cell["average_precision"] for cell in found[name])}
        if name != "fraud":
            summary[name]["type_macro_f1"] = statistics.mean(cell["type_macro_f1"] for cell in found[name])
            summary[name]["against_fraud"] = difference(found[name], found["fraud"])
    for task in AUXILIARY:
        figures = [cell["tasks"][task] for cell in found["all"]]
        summary["all"][task] = {key: statistics.mean(own[key] for own in figures) for key in ("macro_f1", "macro_f1_commonest", "accuracy")}
    return summary


def pretraining(save: Save, device: str, seeds: int) -> dict[str, Any]:
    """Few labels, with and without a trunk that knows what follows what."""
    whole = stream("sparkov")
    learned: list[Classifier] = []

    def few(seed: int) -> Dataset:
        """5 % of the training labels, the rest unknown."""
        label = whole.store.label.copy()
        train = np.flatnonzero(whole.part == PART_TRAIN)
        hidden = generator(seed, "few labels").random(len(train)) >= LABELLED
        label[train[hidden]] = -1
        return replace(whole, store=replace(whole.store, label=label))

    def trunk() -> Classifier:
        if not learned:
            dataset = few(0)
            config = TrainConfig(Path("sparkov"), tasks=("next_fields", "masked_fields"), task_weights="1", field_dropout=0.0, dropout=0.1)
            # Edges without labels: quantiles. A fit to come keeps them, or takes its own with a new embedding.
            model = model_config(dataset, config)
            student = ClassifierStudent(
                dataset,
                model,
                seed=0,
                total_steps=PRETRAINING.epochs * PRETRAINING.steps_per_epoch,
                task_weights=config.fixed_task_weights(),
                device=device,
            )
            sampling = TaskSampling(
                dataset, model, epochs=PRETRAINING.epochs, steps=PRETRAINING.steps_per_epoch, batch_size=256, seed=0, share=1.0
            )
            for epoch in range(PRETRAINING.epochs):
                loss = student.fit(np.zeros(0, dtype=np.int64), sampling.draw(epoch))
                print(f"    pretraining {epoch + 1}/{PRETRAINING.epochs} loss {loss:.3f}", file=sys.stderr, flush=True)
            learned.append(student.model)
        return learned[0]

    def arm(name: str, seed: int, schedule: Budget) -> dict[str, Any]:
        dataset, config = few(seed), TrainConfig(Path("sparkov"), seed=seed)
        if name == "scratch":
            model, start = model_config(dataset, config), None
        else:
            source = trunk()
            model = model_config(dataset, config, source.config)
            start = lambda: source.replace(head=model.head, tasks=(), dropout=model.dropout, field_dropout=model.field_dropout).model  # noqa: E731
        student, seconds = fitted(dataset, config, model, schedule, start, device)
        return judged(student.model, dataset, device) | {"seconds": seconds}

    summary: dict[str, Any] = {"labels": LABELLED, "seeds": seeds, "pretraining_steps": PRETRAINING.epochs * PRETRAINING.steps_per_epoch}
    for length, schedule in FEW.items():
        found = {
            name: [
                save(f"pretraining.{length}.{name}.{seed}", lambda name=name, seed=seed, schedule=schedule: arm(name, seed, schedule))  # type: ignore[misc]
                for seed in range(seeds)
            ]
            for name in ("scratch", "pretrained")
        }
        summary[length] = {
            "steps": schedule.epochs * schedule.steps_per_epoch,
            "difference": difference(found["pretrained"], found["scratch"]),
        } | {name: statistics.mean(cell["average_precision"] for cell in own) for name, own in found.items()}
    return summary


def light(save: Save, device: str, seeds: int) -> dict[str, Any]:
    """`balancer export --target onnx --lite` of a run on handbook; one seed, and on a CPU, which is where a light build goes.

    Its milliseconds want a machine that does nothing else; the run is kept in runs/ and not trained again.
    """
    del device, seeds

    def made() -> dict[str, Any]:
        run = ROOT / "runs" / ".modular_light"
        if not (run / "report.json").exists():
            table, spec = SHARED / "handbook" / "transactions.parquet", ROOT / "benchmarks" / "datasets" / "handbook.toml"
            flags = ["--dataset", str(table), "--spec", str(spec), "--policy", "auto", "--budget", "quick", "--out", str(run)]
            subprocess.run([sys.executable, "-m", "balancer", "train", *flags], check=True, stdout=sys.stderr)
        command = [sys.executable, "-m", "balancer", "export", str(run), "--target", "onnx", "--lite", "--json"]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        found: dict[str, Any] = json.loads(told.stdout)
        return found

    return save("light", made)


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean paired difference of average precision over the seeds, with its 95 % interval (Student)."""
    each = [a["average_precision"] - b["average_precision"] for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.mean(each)
    half = float(stats.t.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return {"mean": mean, "low": mean - half, "high": mean + half, "ahead": sum(value > 0 for value in each)}


SECTIONS = {"transfer": transfer, "tasks": tasks, "pretraining": pretraining, "light": light}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some of them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, help="instead of 3, of pretraining 5")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for section in arguments.only:
        # A file each, so that sections can run side by side.
        work = RESULTS / f".modular_{section}_{arguments.device}.json"
        cells: Cells = json.loads(work.read_text()) if work.exists() else {}

        def save(key: str, make: Callable[[], dict[str, Any]], cells: Cells = cells, work: Path = work) -> dict[str, Any]:
            return keep(cells, key, make, work)

        summary = SECTIONS[section](save, arguments.device, arguments.seeds or SEEDS[section])
        path = RESULTS / ("modular.json" if arguments.device == "cpu" else "modular_cuda.json")
        before = json.loads(path.read_text()) if path.exists() else {}
        kept = {name: before[name] for name in SECTIONS if name in before}
        record(kept | {section: summary, "cells": before.get("cells", {}) | cells}, path)
        work.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
