"""The Lightning callback, by real trainings of a small network on an imbalanced set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader, TensorDataset

from balancer.errors import InputError
from balancer.integrations.lightning import AdaptiveSamplingCallback
from balancer.sampling.torch_sampler import AdaptiveSampler

EPOCHS, PRIOR = 4, 0.06

pytestmark = [
    # Lightning counts the processors and recommends loader workers; two batches of a toy need none.
    pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers"),
    # It recommends a longer training than a toy's between two logs.
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # Lightning 2.6 still asks torch for the old form of its tree registration.
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
            self.seen.append([])  # resumed amid an epoch
        self.seen[-1] += y.tolist()
        logits = self(x)
        if logits.shape[1] == 1:
            return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y.float())
        return torch.nn.functional.cross_entropy(logits, y)

    def validation_step(self, batch: Any, index: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.02)


class _Says(_Net):
    """Hands its scores over itself."""

    def validation_step(self, batch: Any, index: int) -> dict[str, torch.Tensor]:
        x, y = batch
        return {"y_true": y, "y_score": torch.softmax(self(x), dim=1)}


class _Told:
    """Stands in for a sampler's ``update`` and keeps what it was told."""

    def __init__(self, sampler: AdaptiveSampler) -> None:
        self.told: list[tuple[int, int]] = []
        self.shares = [sampler.weights.share]
        self._update = sampler.update

    def __call__(self, y_true: Any, y_score: Any, *, rows: Any = None, row_score: Any = None) -> Any:
        weights = self._update(y_true, y_score, rows=rows, row_score=row_score)
        self.told.append((len(y_true), 0 if rows is None else len(rows)))
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
    told = _Told(sampler)
    sampler.update = told  # type: ignore[method-assign, assignment]
    callback = AdaptiveSamplingCallback(sampler, **options.pop("callback", {}))
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
    return trainer, module, told, callback


def test_the_sampler_moves_after_each_epoch_and_its_draws_follow(tmp_path: Path) -> None:
    trainer, net, told, callback = _fit(tmp_path, enable_checkpointing=False)
    assert callback.updates == EPOCHS  # the sanity check tells nothing
    assert told.told == [(300, 600)] * EPOCHS
    moved = [abs(float(now[1] - before[1])) for before, now in zip(told.shares, told.shares[1:], strict=False)]
    assert min(moved) > 1e-3
    assert len(net.seen) == EPOCHS
    for drawn, share in zip(net.seen, told.shares, strict=False):
        assert np.mean(drawn) == pytest.approx(share[1], abs=0.08)  # 600 draws: four standard deviations
    assert trainer.callback_metrics["sampling/share_1"] == pytest.approx(told.shares[-1][1], abs=1e-6)
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
        for net, options in ((_Net, {"score": score}), (_Net, {}), (_Says, {}), (_Says, {"pool": 0}))
    ]
    for way in ways[1:]:  # the rule asks validation alone, so that the pool changes nothing
        np.testing.assert_allclose(way.shares, ways[0].shares, rtol=1e-6)
    assert [way.told[0][1] for way in ways] == [600, 600, 600, 0]


def test_several_validations_an_epoch_are_one_update(tmp_path: Path) -> None:
    _, _, told, callback = _fit(tmp_path, enable_checkpointing=False, val_check_interval=2, epochs=3)
    assert callback.updates == 3
    assert len(told.told) == 3
    _, _, told, callback = _fit(tmp_path, enable_checkpointing=False, val_check_interval=4, epochs=2)  # six batches: none at the end
    assert callback.updates == 2


def test_hardness_has_scores_to_act_on(tmp_path: Path) -> None:
    _, _, told, _ = _fit(tmp_path, policy="constant:share=.2,hardness=2", epochs=1, enable_checkpointing=False, callback={"pool": 200})
    assert told.told == [(300, 200)]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_training_draws_as_if_never_stopped(tmp_path: Path, epochs: int) -> None:
    _, straight, whole, _ = _fit(tmp_path / "a", enable_checkpointing=False)
    trainer, _, _, _ = _fit(tmp_path / "b", epochs=epochs)
    checkpoint = trainer.checkpoint_callback.best_model_path
    assert checkpoint
    _, resumed, told, callback = _fit(tmp_path / "b", ckpt=checkpoint)
    assert callback.updates == EPOCHS
    assert resumed.seen == straight.seen[epochs:]
    np.testing.assert_array_equal(told.shares[1:], whole.shares[epochs + 1 :])


# Lightning looks for a resumable loader; here the place in the epoch is kept by the sampler, through the callback.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("steps", [4, 9])  # amid the first and the second epoch of six batches
def test_a_training_resumed_amid_an_epoch_goes_on_with_the_next_row(tmp_path: Path, steps: int) -> None:
    _, straight, whole, _ = _fit(tmp_path / "a", enable_checkpointing=False)
    more = [[ModelCheckpoint(tmp_path / "b", filename="amid", every_n_train_steps=steps)] for _ in range(2)]
    _fit(tmp_path / "b", more=more[0], max_steps=steps + 1)
    _, resumed, told, _ = _fit(tmp_path / "b", ckpt=str(tmp_path / "b" / "amid.ckpt"), more=more[1])
    assert [label for epoch in resumed.seen for label in epoch] == [label for epoch in straight.seen for label in epoch][100 * steps :]
    np.testing.assert_array_equal(told.shares[-1], whole.shares[-1])


def test_it_says_what_it_needs(tmp_path: Path) -> None:
    sampler = AdaptiveSampler([0, 0, 1], policy="rule", epochs=2)
    with pytest.raises(InputError, match="pool"):
        AdaptiveSamplingCallback(sampler, pool=-1)
    with pytest.raises(InputError, match="score function"):
        _fit(tmp_path, epochs=1, enable_checkpointing=False, net=_Three, callback={"pool": 0})


class _Three(_Net):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [*batch, 0]

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return super().training_step(batch[:2], index)
