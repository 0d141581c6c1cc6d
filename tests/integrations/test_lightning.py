"""The Lightning callback: a small network is trained on imbalanced data."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from balancer.errors import InputError
from balancer.integrations.lightning import AdaptiveCallback
from balancer.sampling.torch_sampler import AdaptiveSampler

EPOCHS, PRIOR = 4, 0.06

pytestmark = [
    # Lightning recommends loader workers; a loader of two batches needs none.
    pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers"),
    # It recommends more batches between two logs than these trainings have.
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # Lightning 2.6 uses a deprecated function of torch.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # A resumed training writes into the folder of the first.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def _table(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < PRIOR).astype(np.int64)
    x = rng.normal(size=(n, 4)) + 1.5 * label[:, None]
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(label)


class _Net(pl.LightningModule):
    def __init__(self, columns: int = 1) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, columns))
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        if not self.seen:
            self.seen.append([])  # resumed in the middle of an epoch
        self.seen[-1] += y.tolist()
        logits = self(x)
        if logits.shape[1] == 1:
            return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y.float())
        return torch.nn.functional.cross_entropy(logits, y)

    def validation_step(self, batch: Any, index: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.02)


class _ReturnsScores(_Net):
    """Returns labels and scores from ``validation_step``."""

    def validation_step(self, batch: Any, index: int) -> dict[str, torch.Tensor]:
        x, y = batch
        return {"y_true": y, "y_score": torch.softmax(self(x), dim=1)}


class _Recorder:
    """Replaces a sampler's ``update``, and records the numbers of rows and the weights."""

    def __init__(self, sampler: AdaptiveSampler) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.shares = [sampler.weights.share]
        self._update = sampler.update

    def __call__(self, y_true: Any, y_score: Any, *, rows: Any = None, row_score: Any = None) -> Any:
        weights = self._update(y_true, y_score, rows=rows, row_score=row_score)
        self.sizes.append((len(y_true), 0 if rows is None else len(rows)))
        self.shares.append(weights.share)
        return weights


def _fit(
    folder: Path,
    *,
    policy: str = "rule",
    epochs: int = EPOCHS,
    net: type[_Net] = _Net,
    columns: int = 1,
    ckpt: str | None = None,
    more: Any = (),
    **options: Any,
) -> Any:
    pl.seed_everything(3, verbose=False)
    x, y = _table(600, 0)
    sampler = AdaptiveSampler(y.numpy(), policy=policy, epochs=EPOCHS, seed=5)
    recorder = _Recorder(sampler)
    sampler.update = recorder  # type: ignore[method-assign, assignment]
    callback = AdaptiveCallback(sampler, **options.pop("callback", {}))
    module = net(columns)
    trainer = pl.Trainer(
        **{"num_sanity_val_steps": 1} | options,
        max_epochs=epochs,
        callbacks=[callback, *more],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    valid = TensorDataset(*_table(300, 1))
    trainer.fit(module, DataLoader(TensorDataset(x, y), 100, sampler=sampler), DataLoader(valid, 128), ckpt_path=ckpt)
    return trainer, module, recorder, callback


def test_the_weights_change_after_each_epoch_and_the_draws_follow_them(tmp_path: Path) -> None:
    trainer, net, recorder, callback = _fit(tmp_path, enable_checkpointing=False)
    assert callback.updates == EPOCHS  # the sanity check does not count
    assert recorder.sizes == [(300, 600)] * EPOCHS
    moved = [abs(float(now[1] - before[1])) for before, now in zip(recorder.shares, recorder.shares[1:], strict=False)]
    assert min(moved) > 1e-3
    assert len(net.seen) == EPOCHS
    for drawn, share in zip(net.seen, recorder.shares, strict=False):
        assert np.mean(drawn) == pytest.approx(share[1], abs=0.08)  # 600 draws: four standard deviations
    assert trainer.callback_metrics["sampling/share_1"] == pytest.approx(recorder.shares[-1][1], abs=1e-6)
    assert trainer.callback_metrics["sampling/hardness"] == 0.0
    x, y = _table(2000, 2)
    with torch.no_grad():
        assert average_precision_score(y, net(x)[:, 0]) > PRIOR + 0.4


def test_it_takes_scores_from_validation_step_and_from_a_function(tmp_path: Path) -> None:
    def score(module: Any, batch: Any) -> Any:
        assert not module.training
        return batch[1], torch.softmax(module(batch[0]), dim=1)

    ways = [
        _fit(tmp_path, net=net, columns=2, epochs=2, enable_checkpointing=False, callback=options)[2]
        for net, options in ((_Net, {"score": score}), (_Net, {}), (_ReturnsScores, {}), (_ReturnsScores, {"pool": 0}))
    ]
    for way in ways[1:]:  # the rule uses validation scores only, so the pool has no effect
        np.testing.assert_allclose(way.shares, ways[0].shares, rtol=1e-6)
    assert [way.sizes[0][1] for way in ways] == [600, 600, 600, 0]


def test_several_validations_an_epoch_are_one_update(tmp_path: Path) -> None:
    _, _, recorder, callback = _fit(tmp_path, enable_checkpointing=False, val_check_interval=2, epochs=3)
    assert callback.updates == 3
    assert len(recorder.sizes) == 3
    _, _, recorder, callback = _fit(tmp_path, enable_checkpointing=False, val_check_interval=4, epochs=2)  # six batches: none at the end
    assert callback.updates == 2


def test_the_pool_has_as_many_rows_as_asked_for(tmp_path: Path) -> None:
    _, _, recorder, _ = _fit(tmp_path, policy="constant:share=.2,hardness=2", epochs=1, enable_checkpointing=False, callback={"pool": 200})
    assert recorder.sizes == [(300, 200)]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_training_draws_the_same_rows_as_an_uninterrupted_one(tmp_path: Path, epochs: int) -> None:
    _, straight, whole, _ = _fit(tmp_path / "a", enable_checkpointing=False)
    trainer, _, _, _ = _fit(tmp_path / "b", epochs=epochs)
    checkpoint = trainer.checkpoint_callback.best_model_path
    assert checkpoint
    _, resumed, recorder, callback = _fit(tmp_path / "b", ckpt=checkpoint)
    assert callback.updates == EPOCHS
    assert resumed.seen == straight.seen[epochs:]
    np.testing.assert_array_equal(recorder.shares[1:], whole.shares[epochs + 1 :])


# Lightning expects a resumable loader; here the sampler keeps the position in the epoch.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("steps", [4, 9])  # in the first and the second epoch of six batches
def test_a_training_resumed_in_an_epoch_continues_with_the_next_row(tmp_path: Path, steps: int) -> None:
    _, straight, whole, _ = _fit(tmp_path / "a", enable_checkpointing=False)
    more = [[ModelCheckpoint(tmp_path / "b", filename="amid", every_n_train_steps=steps)] for _ in range(2)]
    _fit(tmp_path / "b", more=more[0], max_steps=steps + 1)
    _, resumed, recorder, _ = _fit(tmp_path / "b", ckpt=str(tmp_path / "b" / "amid.ckpt"), more=more[1])
    assert [label for epoch in resumed.seen for label in epoch] == [label for epoch in straight.seen for label in epoch][100 * steps :]
    np.testing.assert_array_equal(recorder.shares[-1], whole.shares[-1])


_TWO_PROCESSES = """
import json, logging, sys, warnings
import lightning.pytorch as pl, torch
from pathlib import Path
from torch.utils.data import DataLoader, TensorDataset
import tests.integrations.test_lightning as t
from balancer.integrations.lightning import AdaptiveCallback
from balancer.sampling.torch_sampler import AdaptiveSampler

class Net(t._Net):
    def on_train_end(self):
        rows = [sum(self.seen, []), [w.tolist() for w in recorder.shares], recorder.sizes]
        Path(sys.argv[1], f"{self.global_rank}.json").write_text(json.dumps(rows))

if __name__ == "__main__":
    pl.seed_everything(3)
    x, y = t._table(600, 0)
    sampler = AdaptiveSampler(y.numpy(), policy="rule", epochs=2, seed=5)
    recorder = sampler.update = t._Recorder(sampler)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, callbacks=[AdaptiveCallback(sampler)])
    valid = DataLoader(TensorDataset(*t._table(301, 1)), 128)
    trainer.fit(Net(), DataLoader(TensorDataset(x, y), 50, sampler=sampler), valid)
"""


@pytest.mark.slow
def test_two_processes_make_the_same_update(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TWO_PROCESSES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    (seen, shares, sizes), (other_seen, other_shares, other_sizes) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert shares == other_shares
    assert sizes == other_sizes == [[302, 600]] * 2  # Lightning pads the 301 validation rows to two equal parts
    assert len(seen) == len(other_seen) == 600  # half of each epoch
    assert np.mean(seen[300:] + other_seen[300:]) == pytest.approx(shares[1][1], abs=0.08)


@pytest.mark.parametrize(
    ("ranks", "own", "wrapped", "match"),
    [
        (2, 1, True, None),
        (2, 2, False, None),
        (1, 1, False, None),
        (2, 1, False, "on the same rows"),
        (2, 2, True, "use_distributed_sampler=False"),
    ],
)
def test_rows_are_divided_among_ranks_once(ranks: int, own: int, wrapped: bool, match: str | None) -> None:
    sampler = AdaptiveSampler([0, 0, 0, 1], policy="rule", epochs=2, rank=0, num_replicas=own)
    given = DistributedSampler([0, 0, 0, 1], num_replicas=2, rank=0) if wrapped else sampler
    trainer: Any = SimpleNamespace(world_size=ranks, train_dataloader=SimpleNamespace(sampler=given))
    with pytest.raises(InputError, match=match) if match else nullcontext():
        AdaptiveCallback(sampler).on_train_start(trainer, _Net())


def test_errors_for_wrong_arguments(tmp_path: Path) -> None:
    sampler = AdaptiveSampler([0, 0, 1], policy="rule", epochs=2)
    with pytest.raises(InputError, match="pool"):
        AdaptiveCallback(sampler, pool=-1)
    with pytest.raises(InputError, match="score function"):
        _fit(tmp_path, epochs=1, enable_checkpointing=False, net=_Three, callback={"pool": 0})


class _Three(_Net):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [*batch, 0]

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return super().training_step(batch[:2], index)
