"""What each process of test_distributed.py does; its argument is a folder for the results."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset, TensorDataset
from transformers import TrainingArguments

from balancer import AdaptiveSampler, DistributedAdaptiveBatchSampler, InputError
from balancer.integrations.hugging_face import AdaptiveTrainer
from balancer.integrations.lightning import AdaptiveCallback, AdaptiveModuleMixin

OPTIONS: dict[str, Any] = {"policy": "constant:share=.3,hardness=1", "epochs": 2, "seed": 5}


def table(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, labels and numbers of n rows."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.1).astype(np.int64)
    x = rng.normal(size=(n, 4)) + 1.5 * label[:, None]
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(label), torch.arange(n)


TRAIN, VALID = table(240, 0), table(101, 1)


def with_accelerate() -> dict[str, Any]:
    """Accelerate divides the batches of a sampler that draws for all ranks; the ranks exchange scores."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    sampler = AdaptiveSampler(TRAIN[1], rank=0, num_replicas=1, **OPTIONS)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = DataLoader(TensorDataset(*TRAIN), batch_size=20, sampler=sampler)
    valid = DataLoader(TensorDataset(*VALID), batch_size=20)
    model, optimizer, loader, valid = accelerator.prepare(model, optimizer, loader, valid)
    seen: list[list[int]] = []
    for _ in range(2):
        for x, y, rows in loader:
            seen.append(rows.tolist())
            loss = sampler.loss(model(x), y, rows)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        with torch.no_grad():
            parts = [(y, torch.sigmoid(model(x)[:, 0])) for x, y, _ in valid]
            pool = torch.arange(240)[accelerator.process_index :: 2]
            score = torch.sigmoid(model(TRAIN[0][pool])[:, 0])
        label, p = (torch.cat(each) for each in zip(*parts, strict=True))
        sampler.update(label, p, rows=pool, row_score=score, gather="all")
    return {"seen": seen, "weights": [*sampler.weights.share.tolist(), *sampler.metrics.values()]}


class Net(AdaptiveModuleMixin, pl.LightningModule):
    """A linear model that keeps the numbers of the rows it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 1)
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y, rows = batch
        self.seen.append(rows.tolist())
        return self.adaptive_loss(self(x), y, rows)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return super().validation_step(batch[:2], batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def with_lightning(kind: str, folder: Path) -> dict[str, Any]:
    """Lightning trains on what each rank's sampler draws."""
    rank, torch_rows = dist.get_rank(), TensorDataset(*TRAIN)
    if kind == "shards":
        sampler: Any = AdaptiveSampler(shards={rank: TRAIN[1][rank * 120 : (rank + 1) * 120]}, num_shards=2, **OPTIONS)
        loader = DataLoader(torch_rows, 20, sampler=sampler)
    else:
        sampler = DistributedAdaptiveBatchSampler(TRAIN[1], batch_size=40, **OPTIONS)
        loader = DataLoader(torch_rows, batch_sampler=sampler)
    pl.seed_everything(3, verbose=False)

    def score(module: Any, batch: Any) -> Any:
        return batch[1], torch.sigmoid(module(batch[0])[:, 0])

    callback, net = AdaptiveCallback(sampler, pool=100, score=score), Net()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    valid = DataLoader(Subset(TensorDataset(*VALID), range(rank, 101, 2)), 20)  # each rank has its part
    trainer.fit(net, loader, valid)
    state = callback.state_dict()
    other = {"sampler": state["sampler"] | {"num_replicas": 4}, "consumed": 3}
    with pytest.raises(InputError, match="in the middle of an epoch of 4 ranks"):
        callback.load_state_dict(state | other)
    callback.load_state_dict(state)
    return {"seen": net.seen, "weights": [*sampler.weights.share.tolist(), *sampler.metrics.values()], "updates": callback.updates}


class Scorer(torch.nn.Module):
    """A model for Trainer, which keeps the labels it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 2)
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen.append(rows.tolist())
        return {"logits": self.net(x)}


def with_trainer(folder: Path) -> dict[str, Any]:
    """Trainer divides the batches of a sampler that draws for all ranks."""
    torch.manual_seed(0)

    def rows(part: Any) -> list[dict[str, Any]]:
        return [{"x": x, "labels": int(y), "rows": int(row)} for x, y, row in zip(*part, strict=True)]

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=20,
        eval_strategy="epoch",
        save_strategy="no",
        label_names=["labels"],
        use_cpu=True,
        ddp_backend="gloo",
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    sampler = AdaptiveSampler(TRAIN[1], rank=0, num_replicas=1, compensated=True, **OPTIONS)
    trainer: Any = AdaptiveTrainer(Scorer(), arguments, train_dataset=rows(TRAIN), eval_dataset=rows(VALID), sampler=sampler)
    trainer.train()
    sharded = AdaptiveSampler(shards={dist.get_rank(): TRAIN[1]}, num_shards=2, **OPTIONS)
    with pytest.raises(InputError, match="draws from shards"):
        AdaptiveTrainer(Scorer(), arguments, train_dataset=rows(TRAIN), eval_dataset=rows(VALID), sampler=sharded)
    return {"seen": trainer.model.seen, "weights": [*sampler.weights.share.tolist(), *sampler.metrics.values()]}


def main() -> None:
    """Write what this rank found."""
    folder = Path(sys.argv[1])
    found = {"trainer": with_trainer(folder), "accelerate": with_accelerate()}
    found |= {kind: with_lightning(kind, folder) for kind in ("shards", "parts")}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
