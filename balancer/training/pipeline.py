"""`balancer train`: policy, classifier, baselines, boosted trees, report, each stage finished once and for good.

What is special: everything before the run folder exists is checking, so bad input leaves nothing behind; everything after is a stage that writes
its result atomically under ``work/``, so a kill at any moment costs at most an epoch, and the resumed run ends in the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.split import PART_TEST, PART_THRESHOLD, PART_TRAIN
from balancer.envs.task_targets import make_task
from balancer.errors import InputError
from balancer.evaluation.lightgbm_baseline import MAX_ROUNDS, fit_lightgbm
from balancer.files import read_arrays
from balancer.models import (
    ATTENTIONS,
    EMBEDDINGS,
    HEADS,
    Attention,
    Classifier,
    Head,
    ModelConfig,
    fit_edges,
    load_classifier,
    save_classifier,
    save_delta,
)
from balancer.models.parts import find_part
from balancer.sampling.policies import AutoPolicy, BundlePolicy, Policy, load_policy
from balancer.sampling.seeding import integer_seed
from balancer.training.config import Budget, TrainConfig
from balancer.training.costs import print_costs
from balancer.training.explanation import explain
from balancer.training.fitting import BASELINES, Pools, Scheme, baseline_scheme, fit_classifier
from balancer.training.incremental import Base, describe_start, starter
from balancer.training.policy_stage import learn_policy
from balancer.training.progress import PROGRESS_FILE, TrainingProgress, describe
from balancer.training.results import Scores, write_results
from balancer.training.run_folder import RunFolder
from balancer.training.task_sampling import describe_tasks

MOST_PASSES = 1.25
"""Draws of a run per training row; a smaller table gets fewer steps than the budget's. Measured: beyond this the classifier memorises repeated frauds, and
balanced sampling in one pass comes close to natural sampling in three (docs/experiments.md)."""
MIN_STEPS_PER_EPOCH = 10


@dataclass(frozen=True)
class Prepared:
    """What every stage needs, made before the run folder is."""

    config: TrainConfig
    dataset: Dataset
    model: ModelConfig
    schedule: Budget
    device: str
    threads: int
    start: Callable[[], Classifier] | None = None
    """Makes the model that the classifier and its baselines start from, where it is not a new one."""


def train_run(config: TrainConfig, given: dict[str, Any], console: Console) -> Path:
    """Train as ``config`` says, or resume; return the run folder.

    Parameters
    ----------
    given
        The fields of ``config`` that were typed; on ``resume`` they are compared with the run's own.
    console
        Where progress and the report go.

    Raises
    ------
    InputError
        On anything a person can mend; nothing was written then, or what was written can be resumed.
    """
    if config.resume:
        assert config.out is not None
        folder = RunFolder.open(config.out)
        folder.refuse_other_flags(given)
        if folder.complete:
            console.print(f"{folder.path} is complete already")
            return folder.path
        prepared = prepare(folder.config(), console, device=folder.content["device"], threads=folder.content["threads"])
        if prepared.dataset.fingerprint != folder.content["fingerprint"]:
            raise InputError(f"--dataset {prepared.config.dataset} has changed since the run in {folder.path} was started: start a new run")
    else:
        path = config.out or RunFolder.default_path(config.dataset)
        RunFolder.refuse_existing(path)
        prepared = prepare(config, console, given=given)
        folder = RunFolder.create(
            path,
            prepared.config,
            fingerprint=prepared.dataset.fingerprint,
            device=prepared.device,
            threads=prepared.threads,
            data=describe_data(prepared.dataset),
        )
    console.print(f"run folder {folder.path}", highlight=False, soft_wrap=True)
    with folder.locked():
        _run_stages(prepared, folder, console)
    return folder.path


def prepare(
    config: TrainConfig,
    console: Console,
    *,
    device: str | None = None,
    threads: int | None = None,
    given: dict[str, Any] | None = None,
    need_label: bool = True,
) -> Prepared:
    """Check flags and policy, read the data, fit the encodings: all that can go wrong without writing a file.

    ``given`` are the fields of ``config`` that were typed; what was not is taken from the run to start from, where there is one. ``need_label`` is False
    for a table to pretrain on.
    """
    device = device or _choose_device(config.device)
    threads = threads or config.threads
    torch.set_num_threads(threads)
    if config.optimizer == "adamw8bit" and device != "cuda":
        raise InputError("--optimizer adamw8bit needs a CUDA device: use adamw, or --device cuda where there is one")
    if config.policy != "ppo":
        load_policy(config.policy, num_classes=2)  # a policy that is not there is said before the data are read
    _check_parts(config)
    base = None if config.from_ is None else Base.open(config.from_)
    if base is not None and given is not None:
        config = base.shapes(config, given)
    spec = resolve_spec(config.dataset, spec_file=config.spec, overrides=config.role_overrides(), need_label=need_label)
    started = time.monotonic()
    with console.status(f"reading {config.dataset}"):
        dataset = load_dataset(config.dataset, spec, bad_rows=config.bad_rows, hash_buckets=config.hash_buckets, need_label=need_label)
        keeps = base is not None and base.keeps_embedding(dataset.schema, config)
        if base is not None and keeps and dataset.schema.vocabularies != base.schema.vocabularies:
            codes = {"hash_buckets": base.schema.hash_buckets, "vocabularies": base.schema.vocabularies}
            dataset = load_dataset(config.dataset, spec, bad_rows=config.bad_rows, **codes)  # type: ignore[arg-type]
    _print_data(dataset, console, time.monotonic() - started)
    model = model_config(dataset, config, base.model.config if base is not None and keeps else None)
    schedule = schedule_for(config, len(dataset.rows(PART_TRAIN)))
    if base is None:
        Classifier(model)  # parts that don't fit are said before anything is written
        return Prepared(config, dataset, model, schedule, device, threads)
    if "adapter" not in (config.train_only or ()):
        model = replace(model, adapter_rank=base.model.config.adapter_rank)
    make = base.start(model, config, keeps)
    console.print(f"starts from {base.folder}: {describe_start(make)}", highlight=False, soft_wrap=True)
    return Prepared(config, dataset, model, schedule, device, threads, starter(make))


def _check_parts(config: TrainConfig) -> None:
    """Say that a part is not there before the data are read."""
    try:
        if config.embedding != "auto":
            find_part(EMBEDDINGS, "embedding", config.embedding, torch.nn.Module)
        if config.attention != "auto":
            find_part(ATTENTIONS, "attention", config.attention, Attention)  # type: ignore[type-abstract]
        if config.head != "auto":
            find_part(HEADS, "head", config.head, Head)  # type: ignore[type-abstract]
    except InputError as error:
        raise InputError(f"--{str(error).removeprefix('unknown ').split(' ')[0]}: {error}") from error


def model_config(dataset: Dataset, config: TrainConfig, kept: ModelConfig | None = None) -> ModelConfig:
    """The classifier that ``config`` asks for on ``dataset``, its bin edges fitted on the training rows, or those of the model whose embedding is ``kept``.

    Where no training row has a label edges are quantiles of all of them.
    """
    store, train, classes = dataset.store, dataset.rows(PART_TRAIN), dataset.schema.classes
    label = store.label[train].astype(np.int64)
    if not len(train):
        train = np.flatnonzero(dataset.part == PART_TRAIN)
        label = np.zeros(len(train), dtype=np.int64)
    if kept is not None:
        edges: Any = kept.edges
    else:
        edges = fit_edges(store.values[train, : store.num_numeric], label, seed=integer_seed(config.seed, "edges"))
    model = ModelConfig(
        numeric_fields=dataset.schema.numeric_fields,
        categorical_fields=dataset.schema.categorical_fields,
        cardinalities=dataset.schema.cardinalities,
        edges=edges,
        classes=classes,
        d_model=config.d_model,
        num_layers=config.layers,
        dropout=config.dropout,
        field_dropout=config.field_dropout,
        embedding="transaction" if config.embedding == "auto" else config.embedding,
        head=("binary" if len(classes) == 2 else "multiclass") if config.head == "auto" else config.head,
        adapter_rank=config.adapter_rank if config.train_only is not None and "adapter" in config.train_only else 0,
        **config.parts(config.history if dataset.schema.spec.entity is not None else 1),
    )
    return replace(model, tasks=tuple(make_task(name, dataset, model) for name in config.tasks or ()))


def schedule_for(config: TrainConfig, train_rows: int) -> Budget:
    """The budget, with fewer steps on a small table; ``--steps-per-epoch`` is taken as it is."""
    schedule = config.schedule()
    if config.steps_per_epoch is not None:
        return schedule
    limit = round(MOST_PASSES * train_rows / (schedule.epochs * config.batch_size))
    return Budget(schedule.epochs, max(MIN_STEPS_PER_EPOCH, min(schedule.steps_per_epoch, limit)))


def _run_stages(prepared: Prepared, folder: RunFolder, console: Console) -> None:
    config, dataset = prepared.config, prepared.dataset
    print_costs(prepared.dataset, prepared.model, config, prepared.device, console)
    folder.work.mkdir(exist_ok=True)
    seconds: dict[str, float] = {}
    with TrainingProgress(console, folder.work / PROGRESS_FILE) as progress:
        started = time.monotonic()
        policy = _policy(prepared, folder, progress)
        seconds["policy"] = time.monotonic() - started
        counts = Pools.of(dataset).train_counts
        scores: dict[str, Scores] = {}
        for scheme in (Scheme("run", policy), *(baseline_scheme(name, counts) for name in BASELINES)):
            started = time.monotonic()
            scores[scheme.name] = _classifier_stage(prepared, folder, scheme, progress)
            seconds[scheme.name] = time.monotonic() - started
        started = time.monotonic()
        scores["lightgbm"] = _lightgbm_stage(prepared, folder, progress)
        seconds["lightgbm"] = time.monotonic() - started
    with console.status("which earlier transactions weighed on each test row"):
        started = time.monotonic()
        model, device = load_classifier(folder.path, prepared.device), torch.device(prepared.device)
        tasks = describe_tasks(model, dataset, config.seed, device)
        explanation = explain(model, dataset, dataset.rows(PART_TEST), device=device)
        seconds["explanation"] = time.monotonic() - started
    write_results(
        folder,
        dataset,
        scores,
        policy=_describe_policy(config, policy),
        tasks=tasks,
        schedule=prepared.schedule,
        config=config,
        seconds=seconds,
        explanation=explanation,
    )
    folder.finish()


def _policy(prepared: Prepared, folder: RunFolder, progress: TrainingProgress) -> Policy:
    config, classes = prepared.config, len(prepared.dataset.schema.classes)
    if config.policy == "ppo":
        learn_policy(prepared.dataset, config, folder=folder.path / "policy", device=prepared.device, progress=progress)
        return load_policy(folder.path / "policy", num_classes=classes)
    return load_policy(config.policy, num_classes=classes)


def _describe_policy(config: TrainConfig, policy: Policy) -> dict[str, Any]:
    """For the report: which policy, and of a learned one what its training says."""
    summary = policy.summary if isinstance(policy, BundlePolicy | AutoPolicy) else {}
    return {"asked": config.policy, "name": policy.name} | {
        key: summary[key] for key in ("env_steps", "beats_constant", "evaluation") if key in summary
    }


def _classifier_stage(prepared: Prepared, folder: RunFolder, scheme: Scheme, progress: TrainingProgress) -> Scores:
    """Fit, score the threshold half and the test rows, keep the scores; the run's own model goes into the run folder."""
    result = folder.work / f"{scheme.name}.scores.safetensors"
    if result.exists():
        return Scores.load(result)
    checkpoint = folder.work / f"{scheme.name}.checkpoint.safetensors"
    done = read_arrays(checkpoint, what="it is a checkpoint")[1]["figures"] if checkpoint.exists() else []
    title = "classifier" if scheme.name == "run" else f"baseline {scheme.name}"
    with progress.stage(title, prepared.schedule.epochs, len(done)) as advance:
        student, figures = fit_classifier(
            prepared.dataset,
            prepared.model,
            scheme,
            prepared.schedule,
            prepared.config,
            device=prepared.device,
            checkpoint=checkpoint,
            after_epoch=lambda epoch, line: advance(epoch, describe(line)),
            start=prepared.start,
        )
    if scheme.name == "run":
        parts, base = prepared.config.train_only, prepared.config.from_
        if parts is not None and base is not None:
            save_delta(student.model, folder.path, base=base, parts=parts)
        else:
            save_classifier(student.model, folder.path)
    dataset = prepared.dataset
    scores = Scores(student.score(dataset.rows(PART_THRESHOLD)), student.score(dataset.rows(PART_TEST)), figures)
    scores.save(result)
    checkpoint.unlink()
    return scores


def _lightgbm_stage(prepared: Prepared, folder: RunFolder, progress: TrainingProgress) -> Scores:
    result = folder.work / "lightgbm.scores.safetensors"
    if result.exists():
        return Scores.load(result)
    with progress.stage("LightGBM, same features", MAX_ROUNDS) as advance:
        fitted = fit_lightgbm(
            prepared.dataset,
            seed=integer_seed(prepared.config.seed, "lightgbm"),
            threads=prepared.threads,
            progress=lambda trees, _: advance(min(trees, MAX_ROUNDS - 1)),  # it may stop early; the last step is the end
        )
        advance(MAX_ROUNDS, f"kept {fitted.trees} trees")
    scores = Scores(fitted.threshold_score, fitted.test_score, [])
    scores.save(result)
    return scores


def _choose_device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; use --device auto or cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Rows and classes per part, for run.json and the report."""
    names = {0: "train", 1: "gap", 2: "reward", 3: "threshold", 4: "test"}
    parts = {}
    for code, name in names.items():
        label = dataset.store.label[dataset.part == code]
        counts = {title: int((label == index).sum()) for index, title in enumerate(dataset.schema.classes)}
        parts[name] = {"rows": len(label), "unlabelled": int((label < 0).sum()), "classes": counts}
    return {"rows": len(dataset.store.label), "parts": parts, "dropped": dict(dataset.dropped), "notes": list(dataset.notes)}


def _print_data(dataset: Dataset, console: Console, seconds: float) -> None:
    spec = dataset.schema.spec
    parts = describe_data(dataset)["parts"]
    console.print(
        f"{len(dataset.store.label):,} rows read in {seconds:.1f} s: "
        f"entity {spec.entity or 'none'}, time {spec.time}, label {spec.label} ({', '.join(dataset.schema.classes)}), "
        f"{len(dataset.schema.numeric_fields)} numeric and {len(dataset.schema.categorical_fields)} categorical fields",
        highlight=False,
        soft_wrap=True,
    )
    for name in ("train", "reward", "threshold", "test"):
        counts = list(parts[name]["classes"].values())
        positives = sum(counts[1:])
        rate = 100 * positives / max(1, sum(counts))
        console.print(f"  {name:<10}{parts[name]['rows']:>10,} rows  {positives:>7,} positive ({rate:.2f} %)", highlight=False)
    for note in dataset.notes:
        console.print(f"  note: {note}", style="dim", highlight=False, soft_wrap=True)
    for reason, count in dataset.dropped.items():
        console.print(f"  dropped {count:,} rows: {reason}", style="yellow", highlight=False, soft_wrap=True)
