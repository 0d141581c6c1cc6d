"""What a run needs before its stages start: data set, configuration of the model, schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.leaks import leak_notes, suspected_leaks
from balancer.data.roles import inferred
from balancer.data.score_memory import STAGE1_LOGIT
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
    Replacement,
    fit_edges,
)
from balancer.models.attention.choice import check_variable
from balancer.models.parts import find_part
from balancer.names import counted
from balancer.options.fit import Budget, FitOptions
from balancer.options.flags import parameters
from balancer.options.model import HYBRID_HISTORY_LENGTH, ModelOptions
from balancer.options.policy import check_policy
from balancer.options.train import TrainConfig
from balancer.sampling.policies import load_policy
from balancer.sampling.seeding import integer_seed
from balancer.training.auxiliary_targets import make_task
from balancer.training.distributed import ALONE, Workers
from balancer.training.micro_batches import MicroBatches
from balancer.training.tree_fitting import ENOUGH_FRAUDS, LEAST_FRAUDS, enough_frauds, too_few
from balancer.training.warm_start import Base, describe_start, starter

MOST_PASSES = 1.25
"""A run draws at most this many rows per training row, so a small table gets fewer steps than the budget
says.

With more draws the classifier memorizes frauds that it sees repeatedly: balanced sampling in one pass is
nearly as good as natural sampling in three (docs/experiments.md).
"""

MIN_STEPS_PER_EPOCH = 10

Learner = Literal["hybrid", "network", "trees"]


@dataclass(frozen=True)
class Prepared:
    """What the stages of a run need, checked and made before its folder is written."""

    config: TrainConfig
    dataset: Dataset
    """The table. Where the detector has trees it has score fields, which the first stage fills."""
    model: ModelConfig
    """Configuration of the network. Of a new hybrid it lacks the score fields until :meth:`with_network`; the
    data set that belongs to it until then is `baseline_dataset`."""
    schedule: Budget
    device: str
    threads: int
    start: Callable[[], Classifier] | None = None
    """Makes the model that the classifier and its baselines start from; None means new weights."""
    new_head: bool = True
    """Whether the head of that model is untrained."""
    learner: Learner = "network"
    """What the detector consists of."""
    from_run: Callable[[ModelConfig], Callable[[], Replacement]] | None = None
    """For a run that starts from another one, how the model to start with is made for a configuration."""
    baseline: ModelConfig | None = None
    """Configuration of the baselines, where it is not that of the run's network."""
    workers: Workers = ALONE
    """The processes that train the run."""

    @property
    def micro_batches(self) -> MicroBatches:
        """How the steps of the trainings are divided."""
        return MicroBatches(self.config.micro_batches or 1, self.config.deterministic, self.workers)

    @property
    def baseline_model(self) -> ModelConfig:
        """Configuration of the networks of the baselines."""
        return self.baseline or self.model

    @property
    def baseline_dataset(self) -> Dataset:
        """The data set with the fields of `baseline_model`."""
        whole = self.baseline_model.numeric_fields == self.dataset.schema.numeric_fields
        return self.dataset if whole else self.dataset.without_score_fields()

    def with_network(self) -> Prepared:
        """What a hybrid's network needs: the score fields too, which must be filled, and the margin.

        The bin edges of the score fields are fitted here; those of the others stay.
        """
        if self.learner != "hybrid" or self.model.numeric_fields == self.dataset.schema.numeric_fields:
            return self
        dataset, rows = self.dataset, self.dataset.rows(Split.TRAIN)
        names = dataset.schema.score_fields
        scores = dataset.store.values[rows, : len(names)]
        label = dataset.store.label[rows].astype(np.int64)
        edges = fit_edges(scores, label, seed=integer_seed(self.config.seed, "score edges"))
        margin = STAGE1_LOGIT if self.config.margin == "trees" else ""
        fields = (*names, *self.model.numeric_fields)
        model = replace(self.model, numeric_fields=fields, edges=(*edges, *self.model.edges), margin=margin)
        if self.config.history_length is None and self.from_run is None and model.form == "rows":
            model = replace(model, history_length=min(HYBRID_HISTORY_LENGTH, model.history_length))
        # Some tasks predict every field.
        model = replace(model, tasks=tuple(make_task(task.name, dataset, model) for task in model.tasks))
        if self.from_run is not None:
            return replace(self, model=model, start=starter(self.from_run(model)))
        return replace(self, model=model, baseline=self.model)


def prepare(
    config: TrainConfig,
    console: Console,
    *,
    device: str | None = None,
    threads: int | None = None,
    given: dict[str, Any] | None = None,
    need_label: bool = True,
    before_trees: bool = False,
    plain_values: bool = False,
) -> Prepared:
    """Check the options, read the data and fit the encodings, without writing a file.

    The caller sets the number of torch threads to `Prepared.threads`
    (:func:`balancer.devices.torch_threads`).

    Args:
        config: Configuration of the run.
        console: Where the size of the data is printed.
        device: Device of the run that is resumed; None chooses it by ``config.device``.
        threads: Threads of the run that is resumed; None takes ``config.threads``.
        given: Fields of ``config`` that were typed. In a run that starts from another one, the sizes that
            were not typed are taken from that run.
        need_label: Whether the table must have a label column; False for a table to pretrain on.
        before_trees: Whether a run is resumed that has the fields of such a version
            (`RunFolder.before_trees`).
        plain_values: Whether a run is resumed that compares values as such a version
            (`RunFolder.plain_values`).

    Raises:
        InputError: An option or the table can't be used.
    """
    device = device or choose_device(config.device)
    check_variable()
    threads = threads or config.threads
    if config.optimizer == "adamw8bit" and device != "cuda":
        raise UnsupportedError("--optimizer adamw8bit needs a CUDA device: use adamw, or --device cuda where there is one")
    if config.policy != "ppo":
        # An unknown policy is reported before the data are read.
        check_policy(config.policy, "--policy")
        load_policy(config.policy, num_classes=2)
    _check_parts(config)
    base = None if config.from_ is None else Base.open(config.from_)
    if base is not None and given is not None:
        config = replace(config, **base.sizes(given))
    learner = _learner(config, base, need_label)
    started = time.monotonic()
    roles = inferred(config.dataset, spec_file=config.spec, overrides=config.role_overrides(), need_label=need_label, earlier=plain_values)
    spec, leaks, left_out = roles.spec, [*roles.cautions, *leak_notes(suspected_leaks(roles))], roles.notes
    del roles  # it holds rows of the table
    with console.status(f"reading {config.dataset}"):
        how: dict[str, Any] = {"bad_rows": config.bad_rows, "need_label": need_label, "score_fields": learner != "network"}
        how |= {"earlier": plain_values, "left_out": left_out}
        dataset = load_dataset(config.dataset, spec, hash_buckets=config.hash_buckets, **how)
        dataset = dataset.without_context_past() if before_trees else dataset
        asked = config.learner != "auto" or (base is not None and bool(base.schema.score_fields))
        least = LEAST_FRAUDS if asked else ENOUGH_FRAUDS
        if learner != "network" and not enough_frauds(dataset, least):
            learner, dataset = _without_trees(config, dataset, least, asked=asked)
            how["score_fields"] = False
        elif learner != "network" and config.learner == "auto" and not enough_frauds(dataset, ENOUGH_FRAUDS):
            dataset.notes.append(
                f"{too_few(dataset, ENOUGH_FRAUDS)}: boosted trees are fitted all the same, because --from names a run with trees"
            )
        dataset.notes.extend(left_out_notes(dataset))
        dataset.notes.extend(flags_without_effect(given or {}, learner, has_entity=spec.entity is not None))
        keeps = base is not None and base.keeps_embedding(dataset.schema, config)
        if base is not None and keeps and not dataset.schema.encodes_like(base.schema):
            dataset = load_dataset(config.dataset, spec, codes=base.schema, **how)
            dataset = dataset.without_context_past() if before_trees else dataset
    dataset.cautions += leaks
    _print_data(dataset, console, time.monotonic() - started)
    model = model_config(
        # The edges of the score fields are fitted when the first stage has filled them.
        dataset if keeps else dataset.without_score_fields(),
        config,
        seed=config.seed,
        tasks=config.tasks or (),
        adapter_rank=config.new_adapter_rank(),
        kept=base.model.config if base is not None and keeps else None,
    )
    if base is not None and keeps:
        margin = base.margin(given or {})
        # A network alone has no margin, and `--learner network` refuses one.
        config = config if learner == "network" else replace(config, margin=margin)
        model = replace(model, margin=base.model.config.margin)
    _check_backend(model, device)
    schedule = schedule_for(config, len(dataset.rows(Split.TRAIN)))
    if base is None:
        Classifier(model)  # parts that do not fit together are reported before anything is written
        return Prepared(config, dataset, model, schedule, device, threads, learner=learner)
    if "adapter" not in (config.train_only or ()):
        model = replace(model, adapter_rank=base.model.config.adapter_rank)
    make = base.start(model, config, keeps)
    console.print(f"starts from {base.folder}: {describe_start(make)}", highlight=False, soft_wrap=True)
    return Prepared(
        config,
        dataset,
        model,
        schedule,
        device,
        threads,
        starter(make),
        base.needs_head(model),
        learner,
        lambda final: base.start(final, config, keeps),
    )


def _learner(config: TrainConfig, base: Base | None, need_label: bool) -> Learner:
    """What the detector consists of, as far as the options say."""
    if not need_label:
        return "network"
    if config.learner != "auto":
        return config.learner
    return "network" if base is not None and not base.schema.score_fields else "hybrid"


def _without_trees(config: TrainConfig, dataset: Dataset, least: int, *, asked: bool) -> tuple[Learner, Dataset]:
    """The network alone, where a fold of the training rows has fewer than ``least`` frauds.

    Raises:
        InputError: Trees were ``asked`` for.
    """
    few = too_few(dataset, least)
    if asked:
        raise InputError(f"{config.dataset}: {few}, too few for boosted trees: use --learner network, or give more rows")
    dataset = dataset.without_score_fields()
    dataset.notes.append(f"{few}: the detector is the network alone, without boosted trees")
    return "network", replace(dataset, store=dataset.store.copied())


def left_out_notes(dataset: Dataset) -> list[str]:
    """Say which fields the table can't have, because no column has a role, a line each."""
    spec, found = dataset.schema.spec, []
    if spec.entity is None:
        memory = ", and no memory of earlier scores" if dataset.schema.score_fields else ""
        found.append(f"there is no entity column: there are no fields of the earlier rows of a card{memory} (--entity)")
    if not spec.context:
        found.append("there is no context column: there are no fields of the known labels and the activity of a merchant (--context)")
    return found


_OF_NETWORKS = ("Model", "Training", "Auxiliary tasks", "Starting from another run", "Sampling policy", "Several processes", "Cluster")
"""Headings of the flags that change nothing but the networks."""


def flags_without_effect(given: Mapping[str, Any], learner: Learner, *, has_entity: bool) -> list[str]:
    """Say in one note which flags that were typed change nothing; empty where each has an effect.

    Args:
        given: Fields of `TrainConfig` that were typed.
        learner: What the detector consists of.
        has_entity: Whether the table has an entity column.
    """
    found: list[tuple[str, list[str]]] = []
    typed = [each for each in parameters(TrainConfig) if each.name in given]
    if learner == "trees":
        found.append(
            ("the detector has no network", [each.shown for each in typed if each.heading in _OF_NETWORKS or each.name == "margin"])
        )
    if learner == "network":
        found.append(("the detector has no boosted trees", [each.shown for each in typed if each.name == "margin"]))
    if learner != "trees" and not has_entity:
        of_histories = ("history_length", "form", "attention_window", "global_nodes")
        found.append(("without an entity column a history is a single row", [each.shown for each in typed if each.name in of_histories]))
    return [f"{', '.join(flags)} {'has' if len(flags) == 1 else 'have'} no effect: {why}" for why, flags in found if flags]


def _check_backend(model: ModelConfig, device: str) -> None:
    """Check the backend that the environment names, if the model will use it, before anything is written."""
    if model.attention == "sparse" and (model.history_length > model.attention_window or model.form == "histories"):
        check_variable(torch.zeros(1, model.history_length, model.num_heads, model.d_model // model.num_heads, device=device))


def _check_parts(options: ModelOptions) -> None:
    """Check before the data are read that the parts of the model can be found."""
    kinds: tuple[tuple[str, str, Any, Any], ...] = (
        ("embedding", options.embedding, EMBEDDINGS, torch.nn.Module),
        ("attention", options.attention, ATTENTIONS, Attention),
        ("head", options.head, HEADS, Head),
    )
    for kind, name, registry, base in kinds:
        if name != "auto":
            try:
                find_part(registry, kind, name, base)
            except InputError as error:
                raise InputError(f"--{kind}: {error}") from error


def model_config(
    dataset: Dataset,
    options: ModelOptions,
    *,
    seed: int,
    tasks: Sequence[str] = (),
    adapter_rank: int = 0,
    kept: ModelConfig | None = None,
) -> ModelConfig:
    """The configuration of the classifier for a data set.

    Args:
        dataset: Its fields, classes and training rows are used. Where no training row has a label, bin edges
            are quantiles.
        options: Architecture and size.
        seed: Seed of the search for bin edges.
        tasks: Names of auxiliary tasks (:data:`balancer.names.AUXILIARY_TASKS`).
        adapter_rank: Rank of the low-rank adapters, 0 for none.
        kept: Configuration of the model whose embedding is kept; its bin edges are used instead of new ones.

    Raises:
        InputError: The options do not fit together, or the data set lacks what a task needs.
    """
    store, train, classes = dataset.store, dataset.rows(Split.TRAIN), dataset.schema.classes
    label = store.label[train].astype(np.int64)
    if not len(train):
        train = np.flatnonzero(dataset.split == Split.TRAIN)
        label = np.zeros(len(train), dtype=np.int64)
    if kept is not None:
        edges: Any = kept.edges
    else:
        edges = fit_edges(store.values[train, : store.num_numeric], label, seed=integer_seed(seed, "edges"))
    model = ModelConfig(
        numeric_fields=dataset.schema.numeric_fields,
        categorical_fields=dataset.schema.categorical_fields,
        cardinalities=dataset.schema.cardinalities,
        edges=edges,
        classes=classes,
        d_model=options.d_model,
        num_layers=options.layers,
        dropout=options.dropout,
        field_dropout=options.field_dropout,
        embedding="transaction" if options.embedding == "auto" else options.embedding,
        head=("binary" if len(classes) == 2 else "multiclass") if options.head == "auto" else options.head,
        adapter_rank=adapter_rank,
        missing=dataset.schema.missing,
        **options.parts(has_entity=dataset.schema.spec.entity is not None),
    )
    return replace(model, tasks=tuple(make_task(name, dataset, model) for name in tasks))


def schedule_for(options: FitOptions, train_rows: int) -> Budget:
    """Epochs and steps of a training on ``train_rows`` rows.

    A small table gets fewer steps than the budget says (:data:`MOST_PASSES`), unless ``steps_per_epoch`` is
    given.
    """
    schedule = options.schedule()
    if options.steps_per_epoch is not None:
        return schedule
    limit = round(MOST_PASSES * train_rows / (schedule.epochs * options.batch_size))
    return Budget(schedule.epochs, max(MIN_STEPS_PER_EPOCH, min(schedule.steps_per_epoch, limit)))


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Rows and classes per split, for run.json and the report."""
    parts = {}
    for split in Split:
        label = dataset.store.label[dataset.split == split]
        counts = {title: int((label == index).sum()) for index, title in enumerate(dataset.schema.classes)}
        parts[split.name.lower()] = {"rows": len(label), "unlabelled": int((label < 0).sum()), "classes": counts}
    return (
        {"rows": len(dataset.store.label), "parts": parts, "dropped": dict(dataset.dropped), "notes": list(dataset.notes)}
        | ({"warnings": list(dataset.cautions)} if dataset.cautions else {})
        | {"order": _order(dataset)}
    )


def _order(dataset: Dataset) -> str:
    """How the parts follow each other: by `time`, by the `rows` of a table without a time, or at `random`."""
    spec = dataset.schema.spec
    return "random" if spec.split.by == "random" else "time" if spec.time is not None else "rows"


def _print_data(dataset: Dataset, console: Console, seconds: float) -> None:
    spec = dataset.schema.spec
    parts = describe_data(dataset)["parts"]
    console.print(
        f"{counted(len(dataset.store.label), 'row')} read in {seconds:.1f} s: "
        f"entity {spec.entity or 'none'}, time {spec.time or 'none'}, label {spec.label or spec.label_date} ({', '.join(dataset.schema.classes)}), "
        f"{len(dataset.schema.numeric_fields)} numeric and {counted(len(dataset.schema.categorical_fields), 'categorical field')}",
        highlight=False,
        soft_wrap=True,
    )
    for name in ("train", "reward", "threshold", "test"):
        counts = list(parts[name]["classes"].values())
        positives = sum(counts[1:])
        rate = 100 * positives / max(1, sum(counts))
        console.print(f"  {name:<10}{parts[name]['rows']:>10,} rows  {positives:>7,} positive ({rate:.2f} %)", highlight=False)
    for note in dataset.notes:
        console.print(f"  note: {note}", style="dim", highlight=False, soft_wrap=not console.is_terminal)
    for caution in dataset.cautions:
        console.print(f"  warning: {caution}", style="yellow", highlight=False, soft_wrap=not console.is_terminal)
    for reason, count in dataset.dropped.items():
        console.print(f"  dropped {counted(count, 'row')}: {reason}", style="yellow", highlight=False, soft_wrap=not console.is_terminal)
