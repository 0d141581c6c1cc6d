"""Fits of several processes for the tests; the module is imported by each process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.errors import InputError
from balancer.options.fit import Budget, FitOptions
from balancer.options.model import ModelOptions
from balancer.sampling.policies import load_policy
from balancer.training.distributed import ALONE, Workers, initialized_workers
from balancer.training.fitting import _Fit, fit_classifier
from balancer.training.micro_batches import MicroBatches
from balancer.training.preparation import model_config
from balancer.training.treatment import policy_treatment

MODEL = ModelOptions(history_length=6, d_model=8, layers=1, dropout=0.1, field_dropout=0.1)
SCHEDULE = Budget(2, 3)
COUNT = 4
"""Micro-batches."""
FITS: dict[str, tuple[str, bool]] = {"rows": ("rows", False), "rows in order": ("rows", True), "histories in order": ("histories", True)}
"""Form of the model, and whether gradients are added in order."""
FITS_OF = {2: ("rows", "rows in order"), 4: ("rows in order", "histories in order")}
"""What is fitted, by number of processes."""
Result = dict[str, Any]


def fit(
    dataset: Dataset, folder: Path, form: str, ordered: bool, workers: Workers = ALONE, *, changed: int | None = None, stop: bool = False
) -> Result:
    """A short fit: digest of its state, figures by epoch, and scores of the reward rows.

    Args:
        dataset: The data.
        folder: Where the checkpoint is written.
        form: Form of the model.
        ordered: Whether gradients are added in order.
        workers: The processes.
        changed: Rank of a process whose weights are changed after the first epoch.
        stop: Whether the fit ends with an error after the first epoch.
    """

    def after_epoch(epoch: int, _: dict[str, Any]) -> None:
        if stop:
            raise InputError(f"stopped after epoch {epoch}")

    policy = load_policy("constant:share=third,hardness=1,hardness_importance=.5", num_classes=2)
    model = replace(model_config(dataset, MODEL, seed=0, tasks=("masked_fields", "next_category")), form=form)  # type: ignore[arg-type]
    options, epochs = FitOptions(batch_size=90), SCHEDULE
    with pytest.MonkeyPatch.context() as patch:
        if workers.rank == changed:
            patch.setattr(_Fit, "train_epoch", _with_change(_Fit.train_epoch))
        trainer, figures = fit_classifier(
            dataset,
            model,
            policy_treatment("run", policy),
            epochs,
            options,
            seed=1,
            device="cpu",
            checkpoint=folder / "checkpoint.safetensors",
            after_epoch=after_epoch,
            task_weights={"masked_fields": 0.1, "next_category": 0.1},
            micro_batches=MicroBatches(COUNT, ordered, workers),
        )
    weights = np.concatenate([parameter.detach().numpy().ravel() for parameter in trainer.model.parameters()])
    return {"weights": weights, "figures": figures, "scores": trainer.score(dataset.rows(Split.REWARD))}


def _with_change(train_epoch: Callable[[_Fit, int], None]) -> Callable[[_Fit, int], None]:
    def changed(self: _Fit, epoch: int) -> None:
        train_epoch(self, epoch)
        if epoch == 0:
            next(self.trainer.model.parameters()).data.add_(1e-3)

    return changed


def process(dataset: Dataset, folder: Path, rank: int, size: int, results: Any) -> None:
    """One of ``size`` processes: all fits, and for two processes what else they do together."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    workers = initialized_workers()
    found: Result = {}
    for name in FITS_OF[size]:
        own = folder / name
        own.mkdir(exist_ok=True)
        found[name] = fit(dataset, own, *FITS[name], workers)
    if size == 2:
        found["changed"] = fit(dataset, folder, "rows", True, workers, changed=1)
        found["texts"] = _texts(workers)
        (folder / "stopped").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="stopped after epoch 1"):
            fit(dataset, folder / "stopped", "rows", True, workers, stop=True)
    results.put((rank, found))
    dist.destroy_process_group()


def _texts(workers: Workers) -> list[str]:
    """The errors that this process gets when the leader, and when the other process fails."""

    def failing(rank: int) -> Callable[[], None]:
        def work() -> None:
            if workers.rank == rank:
                raise InputError("no such file")

        return work

    texts = []
    for call in (lambda: workers.lead(failing(0)), lambda: workers.each(failing(1))):
        with pytest.raises(InputError) as failed:
            call()
        texts.append(str(failed.value))
    return texts
