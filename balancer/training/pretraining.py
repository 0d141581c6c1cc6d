"""`balancer pretrain`: a trunk that knows how transactions follow one another before it sees a single label.

Special: labels are never looked at in training; two tasks, causal both, are learned on the training part of the split alone: which bin or code each field of
the next transaction of the same entity has, and which a hidden field of this one has. So what is learned may go into a run on the same table without telling
it anything of validation or test.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.devices import torch_threads
from balancer.errors import InputError
from balancer.files import read_arrays, write_arrays, write_json
from balancer.inference.scoring import score_task
from balancer.models import ModelConfig, Task, save_classifier
from balancer.options.train import Budget, TrainConfig
from balancer.runs.progress import PROGRESS_FILE, TrainingProgress
from balancer.runs.results import SCHEMA_FILE
from balancer.runs.run_folder import PRETRAINED, RunFolder
from balancer.sampling.seeding import generator
from balancer.training.auxiliary_sampling import TaskSampling
from balancer.training.auxiliary_targets import task_targets
from balancer.training.preparation import Prepared, describe_data, prepare
from balancer.training.trainer import ClassifierStudent

BUDGETS: dict[str, Budget] = {
    "quick": Budget(epochs=8, steps_per_epoch=100),
    "standard": Budget(epochs=12, steps_per_epoch=300),
    "thorough": Budget(epochs=20, steps_per_epoch=800),
}
PRETRAINING_FILE = "pretraining.json"
JUDGED = 2_000
"""Later rows that the loss is told of after each epoch."""
_TASKS = ("next_fields", "masked_fields")


@dataclass(frozen=True)
class PretrainConfig:
    """Teach a trunk, without labels, what follows what: masked fields and the next transaction; balancer train --from continues with labels."""

    dataset: Path
    """Table of transactions: a Parquet or CSV file, or a folder of Parquet files. The training part of its split is learned from."""
    out: Path | None = None
    """Run folder to write (default: runs/NAME-DATE-TIME)."""
    spec: Path | None = None
    """TOML file with the roles of the columns and the split; flags below override it."""
    entity: str | None = None
    """Column whose rows form one history: card, account, customer."""
    time: str | None = None
    """Column of the time: a datetime, or a number of seconds."""
    label: str | None = None
    """Column of the class, where there is one: some fields are made of known labels (--context); `none` leaves it out."""
    negative: str | None = None
    """The legitimate class among the label's values."""
    unlabelled: str | None = None
    """The label's value that means: not known."""
    amount: str | None = None
    """Column of the amount; negative ones are refunds."""
    id: str | None = None
    """Column that names each transaction."""
    numeric: tuple[str, ...] | None = None
    """Further numeric columns to use."""
    categorical: tuple[str, ...] | None = None
    """Categorical columns to use."""
    context: tuple[str, ...] | None = None
    """Keys whose past, delayed labels are a feature: terminal, merchant."""
    label_delay: str | None = None
    """How long it takes until a label is known, as 7d, 12h or seconds (default: 7d, or the spec's)."""
    gap: str | None = None
    """Time left out between training and validation rows (default: the label delay)."""
    hash_buckets: int = 0
    """Further codes per categorical column that its rare and unseen values share by their hash."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with rows that can't be used, as an amount that is no number: stop, or drop and count them."""
    budget: Literal["quick", "standard", "thorough"] = "quick"
    """How long: 800, 3,600 or 16,000 steps."""
    epochs: int | None = None
    """Epochs, instead of the budget's."""
    steps_per_epoch: int | None = None
    """Mini-batches an epoch, instead of the budget's."""
    history_length: int = field(default=16, metadata={"aliases": ("--history",)})
    """Transactions of an entity that the model sees, the last one included."""
    attention: str = "auto"
    """Attention: dense, window, sparse, or module:Class of your own; auto is dense, and sparse for histories of 256 and more."""
    form: Literal["auto", "rows", "histories"] = field(default="auto", metadata={"renamed": {"window": "rows", "sequence": "histories"}})
    """Windows, or whole histories; auto is sequence for histories of 256 and more."""
    attention_window: int = field(default=64, metadata={"aliases": ("--window",)})
    """Transactions back, its own included, that windowed and sparse attention see."""
    global_nodes: int = 8
    """Earlier transactions beyond the window that sparse attention keeps in sight."""
    d_model: int = 64
    """Width of the model."""
    layers: int = 2
    """Blocks of the model."""
    dropout: float = 0.1
    """Dropout inside the blocks."""
    batch_size: int = 256
    """Rows of a mini-batch for each of the two tasks."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where it is."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """One seed, one result."""
    resume: bool = False
    """Continue the run in --out to the result it would have had."""
    json: bool = False
    """Print the figures as JSON instead of a table."""

    def as_train(self) -> TrainConfig:
        """The same as a configuration of a run, which is what the run folder keeps."""
        own = {name: value for name, value in vars(self).items() if name != "budget"}
        schedule = BUDGETS[self.budget]
        steps = {"epochs": self.epochs or schedule.epochs, "steps_per_epoch": self.steps_per_epoch or schedule.steps_per_epoch}
        return TrainConfig(**(own | steps | {"policy": "start", "field_dropout": 0.0, "tasks": _TASKS, "task_weights": "1"}))


def pretrain_run(config: PretrainConfig, given: dict[str, Any], console: Console) -> tuple[Path, dict[str, Any]]:
    """Pretrain, or resume; the run folder and what ``pretraining.json`` holds.

    Raises
    ------
    InputError
        On anything a person can mend; nothing was written then, or what was written can be resumed.
    """
    wanted = config.as_train()
    if config.resume:
        assert config.out is not None
        folder = RunFolder.open(config.out)
        saved = folder.config()
        typed = {name: getattr(wanted, name) for name in given if name != "budget"}
        folder.refuse_other_flags(
            typed | ({"epochs": wanted.epochs, "steps_per_epoch": wanted.steps_per_epoch} if "budget" in given else {})
        )
        if saved.tasks != _TASKS:
            raise InputError(f"--resume: {config.out} was not begun by balancer pretrain; continue it with balancer train")
        threads = int(folder.content["threads"])
    else:
        path, threads = config.out or RunFolder.default_path(config.dataset), config.threads
        RunFolder.refuse_existing(path)
    with torch_threads(threads):
        if config.resume:
            prepared = prepare(saved, console, device=folder.content["device"], threads=threads, need_label=False)
            if prepared.dataset.fingerprint != folder.content["fingerprint"]:
                raise InputError(f"--dataset {saved.dataset} has changed since the run in {folder.path} was started: start a new run")
        else:
            prepared = prepare(wanted, console, need_label=False)
            folder = RunFolder.create(
                path,
                wanted,
                fingerprint=prepared.dataset.fingerprint,
                device=prepared.device,
                threads=prepared.threads,
                data=describe_data(prepared.dataset),
            )
        console.print(f"run folder {folder.path}", highlight=False, soft_wrap=True)
        with folder.locked():
            told = _learn(prepared, folder, console)
    return folder.path, told


def _learn(prepared: Prepared, folder: RunFolder, console: Console) -> dict[str, Any]:
    config, dataset, started = prepared.config, prepared.dataset, time.monotonic()
    assert config.epochs is not None
    assert config.steps_per_epoch is not None
    # Fields are hidden by a task, not by chance: what is hidden is what is asked for.
    model = replace(prepared.model, field_dropout=0.0)
    folder.work.mkdir(exist_ok=True)
    checkpoint = folder.work / "pretraining.checkpoint.safetensors"
    student = ClassifierStudent(
        dataset,
        model,
        seed=config.seed,
        total_steps=config.epochs * config.steps_per_epoch,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        device=prepared.device,
        task_weights=config.fixed_task_weights(),
    )
    sampling = TaskSampling(
        dataset, model, epochs=config.epochs, steps=config.steps_per_epoch, batch_size=config.batch_size, seed=config.seed, share=1.0
    )
    figures: list[dict[str, Any]] = []
    if checkpoint.exists():
        arrays, meta = read_arrays(checkpoint, what="it is the checkpoint of the pretraining")
        student.load_state(arrays)
        figures = meta["figures"]
    judge = _Judge(dataset, model, config.seed)
    none = np.zeros(0, dtype=np.int64)
    with (
        TrainingProgress(console, folder.work / PROGRESS_FILE) as progress,
        progress.stage("pretraining", config.epochs, len(figures)) as advance,
    ):
        for epoch in range(len(figures), config.epochs):
            loss = student.fit(none, sampling.draw(epoch))
            fields = judge.losses(student)
            line = {"epoch": epoch + 1, "loss": loss, "next": float(np.mean(list(fields.values()))), "fields": fields}
            figures.append(line)
            write_arrays(checkpoint, student.state(), {"figures": figures})
            advance(epoch + 1, f"loss {loss:.3f}  next transaction {line['next']:.3f} of {judge.prior_mean:.3f} nats")
    save_classifier(student.model, folder.path)
    write_json(folder.path / SCHEMA_FILE, dataset.schema.to_dict())
    told = {"epochs": figures, "prior": judge.prior, "rows": len(judge.rows), "seconds": round(time.monotonic() - started, 1)}
    write_json(folder.path / PRETRAINING_FILE, told)
    folder.finish(PRETRAINED)
    return told


class _Judge:
    """How well the fields of the next transaction are foreseen on later rows, in nats a field; and what their frequencies in train alone foresee."""

    def __init__(self, dataset: Dataset, config: ModelConfig, seed: int) -> None:
        self.dataset = dataset
        self.task: Task = next(task for task in config.tasks if task.name == "next_fields")
        held = np.flatnonzero(dataset.split == Split.REWARD)
        train = np.flatnonzero(dataset.split == Split.TRAIN)
        rng = generator(seed, "pretraining figures")
        self.rows = rng.choice(held, min(JUDGED, len(held)), replace=False)
        self.target = task_targets(dataset, config, self.task, self.rows)
        seen = task_targets(dataset, config, self.task, rng.choice(train, min(50 * JUDGED, len(train)), replace=False))
        self.prior: dict[str, float] = {}
        for column, (name, size) in enumerate(zip(self.task.fields, self.task.sizes, strict=True)):
            known, own = seen[seen[:, column] >= 0, column], self.target[self.target[:, column] >= 0, column]
            share = (np.bincount(known, minlength=size) + 1) / (len(known) + size)
            self.prior[name] = float(-np.log(share[own]).mean()) if len(own) else 0.0
        self.prior_mean = float(np.mean(list(self.prior.values())))

    def losses(self, student: ClassifierStudent) -> dict[str, float]:
        """Mean -log p by field."""
        scores = score_task(student.model, self.dataset, self.task.name, self.rows, device=torch.device(student.device))
        found = {}
        for column, name in enumerate(self.task.fields):
            there = self.target[:, column] >= 0
            own = scores[there, column, self.target[there, column]]
            found[name] = float(-np.log(np.maximum(own, 1e-12)).mean()) if len(own) else 0.0
        return found
