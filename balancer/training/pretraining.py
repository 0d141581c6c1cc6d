"""``balancer pretrain``: train a model without labels, as a start for training with few labels.

Two tasks are learned on the training rows of the split: the bin or code of each field of the entity's next
transaction, and of hidden fields of the current one. Labels, validation rows and test rows are not used, so
the model may be the start of a run on the same table.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.devices import random_state_kept
from balancer.errors import InputError
from balancer.files import read_arrays, read_json, write_arrays, write_json
from balancer.inference.scoring import score_task
from balancer.models import AuxiliaryTask, ModelConfig, save_classifier
from balancer.options.pretrain import TASKS, PretrainConfig
from balancer.options.run import folder_to_resume
from balancer.runs.progress import PROGRESS_FILE, TrainingProgress
from balancer.runs.results import SCHEMA_FILE
from balancer.runs.run_folder import PRETRAINED, RunFolder
from balancer.sampling.seeding import generator
from balancer.training.auxiliary_sampling import AuxiliarySampling
from balancer.training.auxiliary_targets import task_targets
from balancer.training.opening import opened_run
from balancer.training.preparation import Prepared
from balancer.training.trainer import ClassifierTrainer

PRETRAINING_FILE = "pretraining.json"
EVALUATED_ROWS = 2_000
"""Reward rows on which the loss is measured after each epoch."""


@random_state_kept()
def pretrain_run(config: PretrainConfig, given: dict[str, Any], console: Console) -> tuple[Path, dict[str, Any]]:
    """Pretrain, or resume a pretraining.

    Args:
        config: Configuration of a new run; to resume, ``resume`` and ``out`` are used and the rest comes from
            the run folder.
        given: Fields of ``config`` that were typed; to resume, they must agree with the run.
        console: Where progress is printed.

    Returns:
        The run folder, and the content of its ``pretraining.json``.

    Raises:
        InputError: The options or the table can't be used. Either no file was written, or the run can be
            resumed.
    """
    saved, run = None, config.as_train()
    if config.resume:
        saved = RunFolder.open(folder_to_resume(config.out))
        typed = {name: getattr(run, name) for name in given if name != "budget"}
        if "budget" in given:
            typed |= {"epochs": run.epochs, "steps_per_epoch": run.steps_per_epoch}
        saved.refuse_other_flags(typed)
        if saved.config().tasks != TASKS:
            raise InputError(f"--resume: {config.out} was not started by balancer pretrain; continue it with balancer train")
        if saved.pretrained:
            console.print(f"{saved.path} is complete already", highlight=False, soft_wrap=True)
            return saved.path, read_json(saved.path / PRETRAINING_FILE, what="it holds the losses of the pretraining")
    with opened_run(run, console, saved=saved, need_label=False) as (prepared, folder):
        return folder.path, _learn(prepared, folder, console)


def _learn(prepared: Prepared, folder: RunFolder, console: Console) -> dict[str, Any]:
    config, dataset, started = prepared.config, prepared.dataset, time.monotonic()
    assert config.epochs is not None
    assert config.steps_per_epoch is not None
    # The task masked_fields hides fields itself and predicts them; others must not be hidden.
    model = replace(prepared.model, field_dropout=0.0)
    folder.work.mkdir(exist_ok=True)
    checkpoint = folder.work / "pretraining.checkpoint.safetensors"
    trainer = ClassifierTrainer(
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
    sampling = AuxiliarySampling(
        dataset, model, epochs=config.epochs, steps=config.steps_per_epoch, batch_size=config.batch_size, seed=config.seed, share=1.0
    )
    figures: list[dict[str, Any]] = []
    if checkpoint.exists():
        arrays, meta = read_arrays(checkpoint, what="it is the checkpoint of the pretraining")
        trainer.load_state_dict(arrays)
        figures = meta["figures"]
    evaluation = _Evaluation(dataset, model, config.seed)
    no_rows = np.zeros(0, dtype=np.int64)
    with (
        TrainingProgress(console, folder.work / PROGRESS_FILE) as progress,
        progress.stage("pretraining", config.epochs, len(figures)) as advance,
    ):
        for epoch in range(len(figures), config.epochs):
            loss = trainer.fit(no_rows, sampling.draw(epoch))
            fields = evaluation.losses(trainer)
            line = {"epoch": epoch + 1, "loss": loss, "next": float(np.mean(list(fields.values()))), "fields": fields}
            figures.append(line)
            write_arrays(checkpoint, trainer.state_dict(), {"figures": figures})
            advance(epoch + 1, f"loss {loss:.3f}  next transaction {line['next']:.3f} of {evaluation.prior_mean:.3f} nats")
    save_classifier(trainer.model, folder.path)
    write_json(folder.path / SCHEMA_FILE, dataset.schema.to_dict())
    summary = {
        "epochs": figures,
        "prior": evaluation.prior,
        "rows": len(evaluation.rows),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(folder.path / PRETRAINING_FILE, summary)
    folder.finish(PRETRAINED)
    return summary


class _Evaluation:
    """Loss of the task ``next_fields`` on reward rows, in nats per field, and the loss of predicting training
    frequencies.

    Args:
        dataset: A data set that has been split.
        config: Configuration of the model, with the task.
        seed: Seed of the choice of rows.
    """

    def __init__(self, dataset: Dataset, config: ModelConfig, seed: int) -> None:
        self.dataset = dataset
        self.task: AuxiliaryTask = next(task for task in config.tasks if task.name == "next_fields")
        held = np.flatnonzero(dataset.split == Split.REWARD)
        train = np.flatnonzero(dataset.split == Split.TRAIN)
        rng = generator(seed, "pretraining figures")
        self.rows = rng.choice(held, min(EVALUATED_ROWS, len(held)), replace=False)
        self.target = task_targets(dataset, config, self.task, self.rows)
        seen = task_targets(dataset, config, self.task, rng.choice(train, min(50 * EVALUATED_ROWS, len(train)), replace=False))
        self.prior: dict[str, float] = {}
        for column, (name, size) in enumerate(zip(self.task.fields, self.task.sizes, strict=True)):
            trained = seen[seen[:, column] >= 0, column]
            target = self.target[self.target[:, column] >= 0, column]
            share = (np.bincount(trained, minlength=size) + 1) / (len(trained) + size)
            self.prior[name] = float(-np.log(share[target]).mean()) if len(target) else 0.0
        self.prior_mean = float(np.mean(list(self.prior.values())))

    def losses(self, trainer: ClassifierTrainer) -> dict[str, float]:
        """Mean negative log-likelihood of each field."""
        scores = score_task(trainer.model, self.dataset, self.task.name, self.rows, device=torch.device(trainer.device))
        found = {}
        for column, name in enumerate(self.task.fields):
            known = self.target[:, column] >= 0
            probability = scores[known, column, self.target[known, column]]
            found[name] = float(-np.log(np.maximum(probability, 1e-12)).mean()) if len(probability) else 0.0
        return found
