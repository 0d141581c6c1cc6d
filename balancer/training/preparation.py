"""All that a run needs before its folder is made: device, roles, dataset, model configuration, schedule."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.split import Split
from balancer.devices import choose_device
from balancer.errors import InputError, UnsupportedError
from balancer.models import (
    ATTENTIONS,
    EMBEDDINGS,
    HEADS,
    Attention,
    Classifier,
    Head,
    ModelConfig,
    fit_edges,
)
from balancer.models.parts import find_part
from balancer.options.train import Budget, TrainConfig
from balancer.sampling.policies import load_policy
from balancer.sampling.seeding import integer_seed
from balancer.training.auxiliary_targets import make_task
from balancer.training.warm_start import Base, describe_start, starter

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

    The caller sets the number of torch threads (:func:`balancer.devices.torch_threads`): `Prepared.threads` says which.

    ``given`` are the fields of ``config`` that were typed; what was not is taken from the run to start from, where there is one. ``need_label`` is False
    for a table to pretrain on.
    """
    device = device or choose_device(config.device)
    threads = threads or config.threads
    if config.optimizer == "adamw8bit" and device != "cuda":
        raise UnsupportedError("--optimizer adamw8bit needs a CUDA device: use adamw, or --device cuda where there is one")
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
    schedule = schedule_for(config, len(dataset.rows(Split.TRAIN)))
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
    store, train, classes = dataset.store, dataset.rows(Split.TRAIN), dataset.schema.classes
    label = store.label[train].astype(np.int64)
    if not len(train):
        train = np.flatnonzero(dataset.split == Split.TRAIN)
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
        **config.parts(config.history_length if dataset.schema.spec.entity is not None else 1),
    )
    return replace(model, tasks=tuple(make_task(name, dataset, model) for name in config.tasks or ()))


def schedule_for(config: TrainConfig, train_rows: int) -> Budget:
    """The budget, with fewer steps on a small table; ``--steps-per-epoch`` is taken as it is."""
    schedule = config.schedule()
    if config.steps_per_epoch is not None:
        return schedule
    limit = round(MOST_PASSES * train_rows / (schedule.epochs * config.batch_size))
    return Budget(schedule.epochs, max(MIN_STEPS_PER_EPOCH, min(schedule.steps_per_epoch, limit)))


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Rows and classes per split, for run.json and the report."""
    parts = {}
    for split in Split:
        label = dataset.store.label[dataset.split == split]
        counts = {title: int((label == index).sum()) for index, title in enumerate(dataset.schema.classes)}
        parts[split.name.lower()] = {"rows": len(label), "unlabelled": int((label < 0).sum()), "classes": counts}
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
