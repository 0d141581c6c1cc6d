"""The Hugging Face trainer, by real trainings of a small network on an imbalanced set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from balancer.errors import InputError
from balancer.integrations.hugging_face import STATE_FILE, AdaptiveTrainer, compute_loss_func
from balancer.sampling.torch_sampler import AdaptiveSampler

EPOCHS, PRIOR = 4, 0.06

pytestmark = [
    # Trainer pins memory by default; without an accelerator torch warns in each loader.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
]


class _Table(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.label = (rng.random(n) < PRIOR).astype(np.int64)
        self.x = (rng.normal(size=(n, 4)) + 1.5 * self.label[:, None]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"x": torch.as_tensor(self.x[row]), "labels": torch.as_tensor(self.label[row])}


class _Net(torch.nn.Module):
    def __init__(self, columns: int = 2) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, columns))
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        if self.training:
            self.seen += labels.tolist()
        if logits.shape[1] == 1:
            return {"loss": torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float()), "logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


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


def _trainer(folder: Path, *, policy: str = "rule", columns: int = 2, own: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    train = _Table(600, 0)
    arguments = TrainingArguments(
        **{"eval_strategy": "epoch", "save_strategy": "no", "num_train_epochs": EPOCHS} | options,
        output_dir=str(folder),
        per_device_train_batch_size=100,
        per_device_eval_batch_size=128,
        learning_rate=0.02,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_steps=1,
    )
    sampler = AdaptiveSampler(train.label, policy=policy, epochs=EPOCHS, seed=5)
    recorder = _Recorder(sampler)
    sampler.update = recorder  # type: ignore[method-assign, assignment]
    extra = {"eval_dataset": _Table(300, 1), "sampler": sampler} | (own or {})
    return AdaptiveTrainer(_Net(columns), arguments, train_dataset=train, **extra), recorder


def test_the_weights_change_after_each_epoch_and_the_draws_follow_them(tmp_path: Path) -> None:
    trainer, recorder = _trainer(tmp_path)
    trainer.train()
    assert recorder.sizes == [(300, 600)] * EPOCHS
    moved = [abs(float(now[1] - before[1])) for before, now in zip(recorder.shares, recorder.shares[1:], strict=False)]
    assert min(moved[:-1]) > 1e-3  # in the last two epochs the network predicts the same
    drawn = np.array(trainer.model.seen).reshape(EPOCHS, 600)
    for labels, share in zip(drawn, recorder.shares, strict=False):
        assert labels.mean() == pytest.approx(share[1], abs=0.08)  # 600 draws: four standard deviations
    assert not np.array_equal(drawn[0], drawn[1])
    logged = [line["eval_sampling_share_1"] for line in trainer.state.log_history if "eval_sampling_share_1" in line]
    np.testing.assert_allclose(logged, [share[1] for share in recorder.shares[1:]])
    test = _Table(2000, 2)
    logits = trainer.predict(test).predictions
    assert len(recorder.sizes) == EPOCHS  # predictions outside training do not count
    assert average_precision_score(test.label, logits[:, 1] - logits[:, 0]) > PRIOR + 0.4


def test_one_logit_metrics_and_a_dict_of_evaluations(tmp_path: Path) -> None:
    def accuracy(predictions: Any) -> dict[str, float]:
        return {"accuracy": float(((predictions.predictions[:, 0] > 0) == predictions.label_ids).mean())}

    own = {
        "compute_metrics": accuracy,
        "eval_dataset": {"near": _Table(300, 1), "far": _Table(200, 4)},
        "metric_key_prefix": "eval_far",
        "pool": 50,
    }
    trainer, recorder = _trainer(tmp_path, columns=1, num_train_epochs=2, own=own)
    trainer.train()
    assert recorder.sizes == [(200, 50)] * 2
    assert any("eval_near_accuracy" in line for line in trainer.state.log_history)


def test_evaluations_within_an_epoch_are_one_update(tmp_path: Path) -> None:
    trainer, recorder = _trainer(tmp_path, eval_strategy="steps", eval_steps=2, num_train_epochs=3)  # six steps an epoch
    trainer.train()
    assert len(recorder.sizes) == 3
    trainer, recorder = _trainer(tmp_path, eval_strategy="steps", eval_steps=4, num_train_epochs=2)  # at 4, 8 and 12
    trainer.train()
    assert len(recorder.sizes) == 2


@pytest.mark.parametrize("steps", [12, 15])  # at the end of an epoch, and in the middle of one
def test_a_resumed_training_draws_the_same_rows_as_an_uninterrupted_one(tmp_path: Path, steps: int) -> None:
    straight, whole = _trainer(tmp_path / "a")
    straight.train()
    saving = {"save_strategy": "steps", "save_steps": steps}
    stopped, _ = _trainer(tmp_path / "b", max_steps=steps, **saving)
    stopped.train()
    folder = tmp_path / "b" / f"checkpoint-{steps}"
    assert (folder / STATE_FILE).is_file()
    resumed, recorder = _trainer(tmp_path / "b", **saving)
    resumed.train(resume_from_checkpoint=str(folder) if steps == 12 else True)
    assert resumed.model.seen == straight.model.seen[steps * 100 :]
    np.testing.assert_array_equal(recorder.shares[-1], whole.shares[-1])
    (folder / STATE_FILE).unlink()
    broken, _ = _trainer(tmp_path / "b")
    with pytest.raises(InputError, match="adaptive sampler"):
        broken.train(resume_from_checkpoint=str(folder))


class _Logits(torch.nn.Module):
    """A model that leaves the loss to the trainer."""

    def __init__(self, columns: int = 2) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, columns)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.net(x)}


def _compensated(folder: Path, model: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    train = _Table(600, 0)
    arguments = TrainingArguments(
        **{"eval_strategy": "epoch", "save_strategy": "no", "num_train_epochs": 2, "per_device_train_batch_size": 100} | options,
        output_dir=str(folder),
        learning_rate=0.02,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        label_names=["labels"],
    )
    sampler = AdaptiveSampler(train.label, epochs=EPOCHS, seed=5, compensated=True)
    return AdaptiveTrainer(model or _Logits(), arguments, train_dataset=train, eval_dataset=_Table(300, 1), sampler=sampler)


def test_accumulated_gradients_of_the_samplers_loss_are_those_of_a_large_batch(tmp_path: Path) -> None:
    trained = [
        _compensated(tmp_path, optim="sgd", per_device_train_batch_size=size, gradient_accumulation_steps=120 // size)
        for size in (120, 60, 40)
    ]
    for trainer in trained:
        trainer.train()
    weights = [trainer.model.net.weight.detach().numpy() for trainer in trained]
    for other in weights[1:]:
        np.testing.assert_allclose(other, weights[0], rtol=1e-4, atol=1e-6)
    logged = [[line["loss"] for line in trainer.state.log_history if "loss" in line] for trainer in trained]
    np.testing.assert_allclose(logged[1], logged[0], rtol=1e-3)


def test_one_step_is_that_of_the_samplers_loss(tmp_path: Path) -> None:
    trainer = _compensated(tmp_path, optim="sgd", max_steps=1)
    model, sampler, table = _Logits(), trainer.adaptive_sampler, trainer.train_dataset
    model.load_state_dict(trainer.model.state_dict())
    rows = list(AdaptiveSampler(table.label, epochs=EPOCHS, seed=5, compensated=True))[:100]
    loss = sampler.loss(model(torch.as_tensor(table.x[rows]))["logits"], table.label[rows], reduction="sum") / 100
    loss.backward()
    trainer.train()
    moved = model.net.weight - 0.02 * model.net.weight.grad
    np.testing.assert_allclose(trainer.model.net.weight.detach(), moved.detach(), rtol=1e-4, atol=1e-6)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-3)


@pytest.mark.parametrize("columns", [1, 2])
def test_the_evaluation_measures_the_natural_probabilities(tmp_path: Path, columns: int) -> None:
    trainer = _compensated(tmp_path, _Logits(columns))
    trainer.train()
    valid, sampler = trainer.eval_dataset, trainer.adaptive_sampler
    with torch.no_grad():
        logits = trainer.model.net(torch.as_tensor(valid.x))
    p = np.asarray(sampler.probabilities(logits))
    wanted = -np.log(p[np.arange(300), valid.label]).mean()
    assert [line for line in trainer.state.log_history if "eval_loss" in line][-1]["eval_loss"] == pytest.approx(wanted, rel=1e-3)
    assert p[:, 1].mean() == pytest.approx(valid.label.mean(), abs=0.04)
    for output in ({"logits": logits}, (logits, 0), logits):  # what a model may return
        loss = compute_loss_func(sampler)(output, torch.as_tensor(valid.label))
        assert loss.item() == pytest.approx(sampler.loss(logits, valid.label).item())


def test_a_model_of_transformers_learns_with_the_samplers_loss(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2)
    rng = np.random.default_rng(0)
    label = (rng.random(400) < 0.1).astype(np.int64)
    ids = np.where(label[:, None] == 1, rng.integers(5, 12, (400, 6)), rng.integers(8, 20, (400, 6)))
    rows = [{"input_ids": row, "labels": int(y)} for row, y in zip(ids.tolist(), label, strict=True)]
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="sampling_average_precision",
        num_train_epochs=4,
        learning_rate=0.005,
        per_device_train_batch_size=20,
        gradient_accumulation_steps=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    sampler = AdaptiveSampler(label[:300], epochs=4, compensated=True)
    trainer = AdaptiveTrainer(model, arguments, train_dataset=rows[:300], eval_dataset=rows[300:], sampler=sampler)
    trainer.train()
    figures = [line["eval_sampling_average_precision"] for line in trainer.state.log_history if "eval_sampling_average_precision" in line]
    assert len(figures) == 4
    assert trainer.state.best_metric == max(figures)
    assert figures.index(max(figures)) == sampler.best_epoch
    p = sampler.probabilities(trainer.predict(rows[300:]).predictions)
    assert average_precision_score(label[300:], p[:, 1]) == pytest.approx(max(figures))  # the best model has been restored
    assert max(figures) > 0.4


def test_one_hot_labels_count_once_a_row() -> None:
    sampler = AdaptiveSampler([0] * 90 + [1] * 10, epochs=2, compensated=True)
    logits, code = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0, 0, 0, 1, 0])
    loss = compute_loss_func(sampler, label_smoothing=0.1)
    plain, one_hot = loss((logits,), code, 16), loss((logits,), torch.eye(2)[code], 32)  # two batches of eight rows
    assert float(plain) == pytest.approx(float(one_hot))
    assert float(plain) == pytest.approx(float(sampler.loss(logits, code, reduction="sum", label_smoothing=0.1)) / 16)
    with pytest.raises(InputError, match="no logits"):
        loss({"scores": logits}, code)
    with pytest.raises(InputError, match="no labels"):
        loss({"logits": logits}, None)


def test_a_loss_of_ones_own_is_kept(tmp_path: Path) -> None:
    class Own(AdaptiveTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs)

    table = _Table(60, 0)
    options: Any = {"train_dataset": table, "eval_dataset": table}
    arguments = TrainingArguments(output_dir=str(tmp_path), eval_strategy="epoch", use_cpu=True, report_to="none")

    def own(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        raise NotImplementedError

    def trainer(kind: Any, compensated: bool | None, **more: Any) -> Any:
        sampler = AdaptiveSampler(table.label, epochs=2, compensated=compensated)
        return kind(_Logits(), arguments, sampler=sampler, **options, **more)

    assert trainer(AdaptiveTrainer, True).compute_loss_func is not None
    assert trainer(AdaptiveTrainer, None).compute_loss_func is None
    assert trainer(Own, True).compute_loss_func is None
    assert trainer(AdaptiveTrainer, True, compute_loss_func=own).compute_loss_func is own


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_training_stops_when_the_sampler_has_finished(tmp_path: Path, strategy: str) -> None:
    more = {"eval_steps": 4} if strategy == "steps" else {}  # six steps an epoch
    for stops, epochs in ((False, 6), (True, 4)):
        trainer, _ = _trainer(
            tmp_path, policy="start", num_train_epochs=6, eval_strategy=strategy, **more, own={"stop_when_finished": stops, "pool": 0}
        )
        core = trainer.adaptive_sampler._core
        core._stopping.patience, figures = 2, iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.9])
        trainer.adaptive_sampler.update = lambda *_, core=core, figures=figures, **__: core._stopping.update(next(figures))
        trainer.train()
        assert trainer.state.epoch == epochs


def test_errors_for_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="eval_strategy"):
        _trainer(tmp_path, eval_strategy="no")
    with pytest.raises(InputError, match="metric_key_prefix"):
        _trainer(tmp_path, own={"eval_dataset": {"near": _Table(30, 1)}})
    with pytest.raises(InputError, match="AdaptiveSampler"):
        _trainer(tmp_path, own={"sampler": "auto"})
    with pytest.raises(InputError, match="num_replicas=1"):
        _trainer(tmp_path, own={"sampler": AdaptiveSampler([0, 0, 1, 1], epochs=2, policy="rule", rank=0, num_replicas=2)})
    with pytest.raises(InputError, match="batch_eval_metrics"):
        _trainer(tmp_path, batch_eval_metrics=True, own={"compute_metrics": lambda predictions, compute_result: {}})


def test_the_name_of_version_0_1_warns(tmp_path: Path) -> None:
    own = {"eval_dataset": {"near": _Table(30, 1), "far": _Table(30, 4)}}
    with pytest.warns(DeprecationWarning, match="use metric_key_prefix") as caught:
        trainer, _ = _trainer(tmp_path, own=own | {"steer_by": "eval_far"})
    assert caught[0].filename == __file__
    assert "metric_key_prefix='eval_far'" in repr(trainer)
    with pytest.raises(TypeError, match="its old name steer_by: give metric_key_prefix only"):
        _trainer(tmp_path, own=own | {"steer_by": "eval_far", "metric_key_prefix": "eval_near"})
