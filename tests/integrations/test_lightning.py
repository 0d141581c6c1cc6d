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
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader, TensorDataset

from balancer.errors import InputError
from balancer.integrations.lightning import AdaptiveCallback, AdaptiveModuleMixin
from balancer.sampling.stream import AdaptiveStream
from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler

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

    def __call__(self, y_true: Any, y_score: Any, *, rows: Any = None, row_score: Any = None, gather: str = "auto") -> Any:
        weights = self._update(y_true, y_score, rows=rows, row_score=row_score, gather=gather)
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
    assert sizes == other_sizes == [[151, 300]] * 2  # each gives its part; Lightning pads the 301 validation rows to two equal ones
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
    given = DistributedSamplerWrapper(sampler, num_replicas=2, rank=0) if wrapped else sampler
    loader = DataLoader(TensorDataset(torch.zeros(4)), sampler=given)
    trainer: Any = SimpleNamespace(world_size=ranks, train_dataloader=loader, enable_validation=True)
    with pytest.raises(InputError, match=match) if match else nullcontext():
        AdaptiveCallback(sampler).on_train_start(trainer, _Net())


class _Compensated(AdaptiveModuleMixin, pl.LightningModule):
    def __init__(self, columns: int = 1) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


def _trainer(folder: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{"enable_checkpointing": False, "max_epochs": EPOCHS} | options,
        callbacks=list(callbacks),
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )


@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("kind", ["rows", "batches", "stream"])
def test_a_module_learns_with_the_samplers_loss(tmp_path: Path, kind: str, columns: int) -> None:
    pl.seed_everything(3, verbose=False)
    (x, y), valid = _table(2000, 0), _table(1000, 1)
    options: Any = {"epochs": EPOCHS, "compensated": True}
    data, sampler = TensorDataset(x, y), None
    if kind == "rows":
        sampler = AdaptiveSampler(y, **options)
        loader: Any = DataLoader(data, 100, sampler=sampler)
    elif kind == "batches":
        sampler = AdaptiveBatchSampler(y, batch_size=100, **options)
        loader = DataLoader(data, batch_sampler=sampler)
    else:
        sampler = AdaptiveStream(data, classes=[0, 1], num_samples=2000, **options)
        loader = DataLoader(sampler, 100)
    net = _Compensated(columns)
    trainer = _trainer(tmp_path, AdaptiveCallback(sampler))
    trainer.fit(net, loader, DataLoader(TensorDataset(*valid), 128))
    assert sampler._core.updates == EPOCHS and net.adaptive_sampler is sampler
    with torch.no_grad():
        logits = net(valid[0])
    p = np.asarray(sampler.probabilities(logits))
    natural = -np.log(p[np.arange(1000), valid[1]]).mean()
    assert trainer.callback_metrics["val_loss"] == pytest.approx(natural, rel=1e-4)
    assert trainer.callback_metrics["train_loss"] > 0
    assert p[:, 1].mean() == pytest.approx(PRIOR, abs=0.03)
    average_precision = average_precision_score(valid[1], p[:, 1])
    assert trainer.callback_metrics["sampling/average_precision"] == pytest.approx(average_precision, abs=1e-6)


def test_a_step_of_ones_own_uses_the_samplers_loss(tmp_path: Path) -> None:
    losses: list[tuple[float, float]] = []

    class Own(_Compensated):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y, rows = batch
            logits = self(x)
            loss = self.adaptive_loss(logits, y, rows, label_smoothing=0.1)
            losses.append((loss.item(), sampler.loss(logits, y, rows, label_smoothing=0.1).item()))
            return loss

    x, y = _table(600, 0)
    sampler = AdaptiveSampler(y, epochs=2, compensated=True)
    loader = DataLoader(TensorDataset(x, y, torch.arange(600)), 100, sampler=sampler)
    _trainer(tmp_path, AdaptiveCallback(sampler, pool=0), max_epochs=2).fit(Own(), loader, DataLoader(TensorDataset(x, y), 200))
    assert len(losses) == 12 and all(one == other for one, other in losses)
    with pytest.raises(InputError, match="has no sampler"):
        _Compensated().training_step((x, y), 0)
    with pytest.raises(InputError, match="override training_step"):
        _Compensated().training_step((x, y, 0), 0)


class _Other:
    """A loader of another library."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Any:
        return iter(self._loader)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.filterwarnings("ignore:You are using `.*overfit_batches")
def test_the_loader_must_draw_by_the_sampler(tmp_path: Path) -> None:
    (x, y), epochs = _table(200, 0), 1
    data, valid = TensorDataset(x, y), DataLoader(TensorDataset(x, y), 100)
    sampler, batches = AdaptiveSampler(y, epochs=2), AdaptiveBatchSampler(y, batch_size=50, epochs=2)
    stream = AdaptiveStream(data, classes=[0, 1], epochs=2, num_samples=100)

    def fit(drawn: Any, loader: Any) -> None:
        _trainer(tmp_path, AdaptiveCallback(drawn, pool=0), max_epochs=epochs).fit(_Net(), loader, valid)

    for drawn, loader, how in (
        (sampler, DataLoader(data, 50, shuffle=True), "DataLoader\\(dataset, sampler=sampler"),
        (sampler, DataLoader(data, 50, sampler=AdaptiveSampler(y, epochs=2)), "the same object"),
        (batches, DataLoader(data, 50), "batch_sampler=sampler"),
        (stream, DataLoader(data, 50), "DataLoader\\(stream"),
        (sampler, [DataLoader(data, 50), DataLoader(data, 50)], "does not draw"),
    ):
        with pytest.raises(InputError, match=how):
            fit(drawn, loader)
    for drawn, loader in ((sampler, DataLoader(data, 50, sampler=sampler)), (batches, DataLoader(data, batch_sampler=batches))):
        fit(drawn, loader)
    with pytest.warns(UserWarning, match="can't see whether it draws"):
        fit(sampler, _Other(DataLoader(data, 50, sampler=sampler)))
    trainer = _trainer(tmp_path, AdaptiveCallback(sampler, pool=0), max_epochs=1, overfit_batches=1)
    with pytest.warns(UserWarning, match="with overfit_batches Lightning"):
        trainer.fit(_Net(), DataLoader(data, 50, sampler=sampler), valid)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_missing_validation_is_reported(tmp_path: Path) -> None:
    class Unvalidated(_Net):
        validation_step = pl.LightningModule.validation_step

    x, y = _table(200, 0)
    for net, valid, options in ((_Net(), None, {}), (Unvalidated(), None, {}), (_Net(), True, {"limit_val_batches": 0})):
        sampler = AdaptiveSampler(y, epochs=2)
        loaders = [DataLoader(TensorDataset(x, y), 50, sampler=sampler), *([DataLoader(TensorDataset(x, y))] if valid else [])]
        with pytest.warns(UserWarning, match="never updates the sampler"):
            _trainer(tmp_path, AdaptiveCallback(sampler), max_epochs=1, **options).fit(net, *loaders)


def _with_figures(folder: Path, figures: list[float], *, ckpt: str | None = None, more: Any = (), **options: Any) -> Any:
    """Train with given average precisions; return module, weights after each epoch, and trainer."""
    pl.seed_everything(3, verbose=False)
    x, y = _table(200, 0)
    sampler = AdaptiveSampler(y, policy="start", epochs=8, patience=2)
    core, given = sampler._core, iter(figures)

    def update(*_: Any, **__: Any) -> None:
        core._stopping.update(next(given))

    sampler.update = update  # type: ignore[method-assign, assignment]
    kept: list[torch.Tensor] = []

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            kept.append(module.net.weight.detach().clone())

    net = _Compensated()
    limits = {name: options.pop(name) for name in ("max_epochs", "enable_checkpointing") if name in options}
    trainer = _trainer(folder, AdaptiveCallback(sampler, pool=0, **options), Keep(), *more, **{"max_epochs": 6} | limits)
    trainer.fit(net, DataLoader(TensorDataset(x, y), 50, sampler=sampler), DataLoader(TensorDataset(x, y), 100), ckpt_path=ckpt)
    return net, kept, trainer


def test_training_stops_when_the_sampler_has_finished_and_ends_with_the_best_weights(tmp_path: Path) -> None:
    figures = [0.1, 0.5, 0.4, 0.3, 0.2, 0.9]
    for options, epochs, end in (
        ({}, 6, 5),
        ({"stop_when_finished": True}, 4, 3),
        ({"restore_best": True}, 6, 5),
        ({"stop_when_finished": True, "restore_best": True}, 4, 1),
    ):
        net, kept, _ = _with_figures(tmp_path, figures, **options)
        assert len(kept) == epochs
        torch.testing.assert_close(net.net.weight.detach(), kept[end], rtol=0, atol=0)


def test_the_best_weights_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    last = [ModelCheckpoint(tmp_path, filename="last") for _ in range(2)]
    options: Any = {"restore_best": True, "enable_checkpointing": True}
    _, kept, _ = _with_figures(tmp_path, [0.9, 0.1], max_epochs=2, more=last[:1], **options)
    net, _, _ = _with_figures(tmp_path, [0.2, 0.3], max_epochs=4, more=last[1:], ckpt=str(tmp_path / "last.ckpt"), **options)
    torch.testing.assert_close(net.net.weight.detach(), kept[0], rtol=0, atol=0)


def test_a_checkpoint_can_monitor_the_average_precision(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="sampling/average_precision", mode="max")
    trainer, *_ = _fit(tmp_path, more=[keep])
    assert keep.best_model_score == pytest.approx(max(keep.best_model_score, trainer.callback_metrics["sampling/average_precision"]))
    assert Path(keep.best_model_path).is_file()


def test_weights_that_are_divided_among_ranks_cannot_be_restored() -> None:
    class FSDPStrategy:
        pass

    callback = AdaptiveCallback(AdaptiveSampler([0, 0, 1], epochs=2), restore_best=True)
    with pytest.raises(InputError, match="ModelCheckpoint"):
        callback.setup(SimpleNamespace(strategy=FSDPStrategy()), _Net(), "fit")  # type: ignore[arg-type]


# Lightning expects a resumable loader; here the stream keeps the position in the epoch.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
def test_a_stream_resumes_in_an_epoch_with_the_next_item(tmp_path: Path) -> None:
    def fit(folder: str, ckpt: str | None = None, **options: Any) -> _Net:
        pl.seed_everything(3, verbose=False)
        stream = AdaptiveStream(TensorDataset(*_table(1000, 0)), classes=[0, 1], epochs=EPOCHS, num_samples=600, policy="rule", seed=5)
        net, more = _Net(), [ModelCheckpoint(tmp_path / folder, filename="amid", every_n_train_steps=9)]
        trainer = _trainer(tmp_path, AdaptiveCallback(stream), *more, enable_checkpointing=True, **options)
        trainer.fit(net, DataLoader(stream, 100), DataLoader(TensorDataset(*_table(300, 1)), 128), ckpt_path=ckpt)
        return net

    straight, _ = fit("a"), fit("b", max_steps=10)
    resumed = fit("b", str(tmp_path / "b" / "amid.ckpt"))
    assert [label for epoch in resumed.seen for label in epoch] == [label for epoch in straight.seen for label in epoch][900:]
    with pytest.raises(InputError, match="ranks"):
        stream = AdaptiveStream(TensorDataset(*_table(100, 0)), classes=[0, 1], epochs=2, rank=0, num_replicas=2)
        trainer: Any = SimpleNamespace(world_size=1, train_dataloader=DataLoader(stream), enable_validation=True)
        AdaptiveCallback(stream).on_train_start(trainer, _Net())


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
