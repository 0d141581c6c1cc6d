"""`train --from`, `--train-only`, `--tasks` and `pretrain`: frozen weights stay bit-identical, stored files
are small, and resumed runs give the same result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from balancer.cli import main
from balancer.data.dataset import load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate, write_simulation
from balancer.data.split import Split
from balancer.models import load_classifier, part_of
from balancer.options.model import ModelOptions
from balancer.options.train import TrainConfig
from balancer.training.auxiliary_targets import make_task, task_targets
from balancer.training.micro_batches import StepRows
from balancer.training.preparation import model_config, prepare
from balancer.training.trainer import ClassifierTrainer
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("few_trees")
SHORT = ("--epochs", "2", "--steps-per-epoch", "6", "--policy", "rule", "--threads", "1")


@pytest.fixture(scope="module")
def later_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other transactions with the columns of the tiny table."""
    path = tmp_path_factory.mktemp("later") / "later.parquet"
    write_simulation(simulate(6_000, seed=4, fraud_rate=0.03), path)
    return path


def train(*arguments: str | Path) -> int:
    return main(["train", *map(str, arguments), *SHORT])


@pytest.mark.parametrize(
    ("only", "flags"),
    [
        ("head", ()),
        ("adapter,head", ("--adapter-rank", "2")),
        ("embedding", ()),
        ("attention", ("--attention", "window")),
        ("attention", ()),
    ],
)
def test_all_but_the_named_parts_stay_to_the_last_bit(
    only: str, flags: tuple[str, ...], tiny_run: Path, later_table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train("--dataset", later_table, "--from", tiny_run, "--train-only", only, *flags, "--out", out) == 0
    before, after = load_classifier(tiny_run).state_dict(), load_classifier(out).state_dict()
    parts = set(only.split(","))
    changed = {part_of(name) for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert changed == parts
    small, whole = ((folder / "model.safetensors").stat().st_size for folder in (out, tiny_run))
    assert small < whole
    assert json.loads((out / "model.json").read_text())["parts"] == sorted(parts)
    # It is a run like any other.
    scores = tmp_path / "scores.parquet"
    assert main(["score", str(out), "--input", str(later_table), "--output", str(scores)]) == 0
    assert pl.read_parquet(scores)["score"].is_finite().all()


def test_only_what_is_trained_has_optimizer_memory(tiny_run: Path, tiny_table: Path) -> None:
    spec = resolve_spec(tiny_table)
    dataset = load_dataset(tiny_table, spec, score_fields=True)
    base = load_classifier(tiny_run)
    student = ClassifierTrainer(dataset, base.config, seed=0, total_steps=2, start=lambda: base, train_only={"head"})
    student.fit(dataset.rows(Split.TRAIN)[:256])
    assert len(student.optimizer.state_dict()["state"]) == 2  # weight and bias


def test_scores_of_the_run_and_of_score_are_the_same(tiny_run: Path, later_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train("--dataset", later_table, "--from", tiny_run, "--train-only", "head", "--out", out) == 0
    code = main(["evaluate", str(out), "--dataset", str(later_table), "--json"])
    assert code == 0
    # The vocabularies are the base's: a category has the code it had there.
    assert (
        json.loads((out / "schema.json").read_text())["vocabularies"] == json.loads((tiny_run / "schema.json").read_text())["vocabularies"]
    )


def test_evaluate_gives_the_reports_figures(tiny_run: Path, later_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert train("--dataset", later_table, "--from", tiny_run, "--train-only", "head", "--out", out) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--dataset", str(later_table), "--json"]) == 0
    result, report = json.loads(capsys.readouterr().out), json.loads((out / "report.json").read_text())
    assert result["part"] == "test"
    assert result["test"]["average_precision"] == report["test"]["average_precision"]


def test_quantizing_a_run_with_adapters_folds_them(tiny_run: Path, later_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train("--dataset", later_table, "--from", tiny_run, "--train-only", "adapter,head", "--out", out) == 0
    assert main(["quantize", str(out), "--max-drop", "0.5", "--prefer", "size"]) == 0
    scores = tmp_path / "scores.parquet"
    assert main(["score", str(out), "--input", str(later_table), "--output", str(scores), "--precision", "quantized"]) == 0


def test_a_new_stream_takes_a_new_embedding_and_head(tiny_run: Path, tmp_path: Path) -> None:
    frame = simulate(6_000, seed=4, fraud_rate=0.05, labels="types").drop("channel", strict=False)
    table, out = tmp_path / "other.parquet", tmp_path / "run"
    write_simulation(frame, table)
    assert train("--dataset", table, "--from", tiny_run, "--train-only", "embedding,head", "--out", out) == 0
    before, after = load_classifier(tiny_run).state_dict(), load_classifier(out).state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items() if part_of(name) in ("trunk", "attention"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train-only", "head"), "--train-only needs --from"),
        (("--from", "RUN", "--train-only", "atention"), "--train-only: unknown part 'atention'; did you mean 'attention'?"),
        (("--from", "RUN", "--train-only", ","), "--train-only names no part"),
        (("--from", "RUN", "--d-model", "48"), "--d-model 48 differs from the model in"),
        (("--from", "RUN", "--train-only", "head", "--attention", "window"), "add attention to --train-only"),
        (("--from", "RUN", "--train-only", "head", "--categorical", "channel"), "add embedding to --train-only"),
        (("--from", "nowhere"), "nowhere is not a run folder"),
        (("--tasks", "next_amonut"), "--tasks: unknown task 'next_amonut'; did you mean 'next_amount'?"),
        (("--tasks", "next_amount", "--task-weights", "heavy"), "--task-weights is 'heavy'"),
        (("--attention", "spars"), "--attention: unknown attention 'spars'; did you mean 'sparse'?"),
        (("--adapter-rank", "0"), "--adapter-rank is 0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    flags: tuple[str, ...], message: str, tiny_run: Path, later_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    own = [str(tiny_run) if flag == "RUN" else flag for flag in flags]
    assert train("--dataset", later_table, "--out", out, *own) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_part_of_ones_own_by_module_and_class(later_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "parts.md").read_text()
    block = next(part for part in page.split("```python\n")[1:] if "class MyAttention" in part).split("```")[0]
    (tmp_path / "mymodule.py").write_text(block)
    assert len(block.splitlines()) <= 36
    monkeypatch.chdir(tmp_path)
    assert train("--dataset", later_table, "--attention", "mymodule:MyAttention", "--out", "run", *TINY[-8:-2]) == 0
    assert main(["score", "run", "--input", str(later_table), "--output", "scores.parquet"]) == 0


def test_targets_look_at_the_next_row_of_the_same_entity_and_part(tiny_table: Path) -> None:
    dataset = load_dataset(tiny_table, resolve_spec(tiny_table))
    config = model_config(dataset, ModelOptions(history_length=4), seed=0)
    store, every = dataset.store, np.arange(len(dataset.store))
    task = make_task("next_category", dataset, config)
    found = task_targets(dataset, config, task, every)[:, 0]
    for row in range(len(store) - 1):
        follows = store.entity[row] == store.entity[row + 1] and dataset.split[row] == dataset.split[row + 1]
        assert found[row] == (store.values[row + 1, store.num_numeric] if follows else -1)
    assert found[-1] == -1
    amount = make_task("next_amount", dataset, config)
    bucket = task_targets(dataset, config, amount, every)[:, 0]
    train_rows = bucket[(dataset.split == Split.TRAIN) & (bucket >= 0)]
    assert np.bincount(train_rows).min() > 0.1 * len(train_rows)  # eight buckets by quantile
    own = task_targets(dataset, config, make_task("masked_fields", dataset, config), every)
    for column, edges in enumerate(config.edges):
        assert own[:, column].min() >= 0
        assert own[:, column].max() <= len(edges) - 2


@pytest.mark.parametrize("form", ["rows", "histories"])
def test_further_tasks_are_learned_and_stored(form: str, tiny_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tasks = "next_category,next_amount,next_time,next_fields,masked_fields"
    assert (
        train(
            "--dataset",
            tiny_table,
            "--out",
            out,
            "--tasks",
            tasks,
            "--task-weights",
            "uncertainty",
            "--form",
            form,
            "--history-length",
            "6",
            "--d-model",
            "16",
            "--layers",
            "1",
        )
        == 0
    )
    model = load_classifier(out)
    assert [task.name for task in model.config.tasks] == tasks.split(",")
    assert model.tasks is not None
    assert model.tasks.log_variance.abs().min() > 0
    figures = json.loads((out / "report.json").read_text())["run"]["tasks"]
    assert set(figures) == {"next_category", "next_amount", "next_time"}
    assert all(0 <= own["macro_f1"] <= 1 for own in figures.values())


def test_a_run_with_tasks_resumes_to_the_same_bits(tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--dataset", tiny_table, "--tasks", "next_category,masked_fields", *TINY[4:])
    assert train(*flags, "--out", tmp_path / "whole") == 0
    import balancer.training.fitting as fitting

    real, calls = fitting.write_arrays, []

    def interrupted(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "write_arrays", interrupted)
    assert train(*flags, "--out", tmp_path / "cut") == 130
    assert main(["train", "--resume", "--out", str(tmp_path / "cut")]) == 0
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_unlabelled_rows_teach(tiny_table: Path) -> None:
    from balancer.training.auxiliary_sampling import AuxiliarySampling

    dataset = load_dataset(tiny_table, resolve_spec(tiny_table))
    dataset.store.label[dataset.split == Split.TRAIN] = -1
    config = model_config(dataset, ModelOptions(history_length=4), seed=0, tasks=("next_category", "masked_fields"))
    drawn = AuxiliarySampling(dataset, config, epochs=2, steps=5, batch_size=64, seed=0).draw(0)
    assert {name: len(rows) for name, rows in drawn.items()} == {"next_category": 80, "masked_fields": 80}
    assert all((dataset.split[rows] == Split.TRAIN).all() for rows in drawn.values())


PRETRAIN = ("--epochs", "3", "--steps-per-epoch", "8", "--history-length", "6", "--d-model", "16", "--layers", "1", "--threads", "1")


def test_pretraining_without_labels_then_training(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare.parquet"
    pl.read_parquet(tiny_table).drop("is_fraud").write_parquet(bare)
    before = tmp_path / "before"
    assert main(["pretrain", "--dataset", str(bare), "--out", str(before), *PRETRAIN, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["epochs"][-1]["loss"] < result["epochs"][0]["loss"]
    assert set(result["prior"]) == set(result["epochs"][0]["fields"])
    assert main(["score", str(before), "--input", str(bare), "--output", str(tmp_path / "x.csv")]) == 2
    assert "pretrained only" in capsys.readouterr().err
    assert train("--dataset", tiny_table, "--from", before, "--out", tmp_path / "after") == 0
    assert "new: 2 of the head" in capsys.readouterr().out
    assert load_classifier(tmp_path / "after").config.tasks == ()


def test_pretraining_resumes_to_the_same_bits(
    tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("pretrain", "--dataset", str(tiny_table), *PRETRAIN)
    assert main([*flags, "--out", str(tmp_path / "whole")]) == 0
    import balancer.training.pretraining as pretraining

    real = pretraining.write_arrays

    def interrupted(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "write_arrays", interrupted)
    assert main([*flags, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.undo()
    assert main(["pretrain", "--dataset", str(tiny_table), "--resume", "--out", str(tmp_path / "cut")]) == 0
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    # The data set is the run's; what is complete is not trained again.
    written = (tmp_path / "cut" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["pretrain", "--resume", "--out", str(tmp_path / "cut")]) == 0
    assert "is complete already" in capsys.readouterr().out
    assert (tmp_path / "cut" / "model.safetensors").stat().st_mtime_ns == written


def test_hidden_fields_are_hidden_and_nothing_else(tiny_table: Path) -> None:
    dataset = load_dataset(tiny_table, resolve_spec(tiny_table))
    config = model_config(dataset, ModelOptions(history_length=4), seed=0, tasks=("masked_fields",))
    student = ClassifierTrainer(dataset, config, seed=0, total_steps=2, task_weights={})
    rows = dataset.rows(Split.TEST)[:32]
    batch = student._batch(rows)
    before = batch.values.clone()
    targets = student._targets("masked_fields", rows)
    hidden = StepRows.of([rows[:0], rows], {"masked_fields": targets}, np.ones(len(rows))).hidden
    assert hidden is not None
    assert 0.4 < hidden.mean() < 0.6
    last = batch.lengths - 1
    student._hide(batch, (torch.arange(len(rows)), last), hidden)
    own = batch.values[torch.arange(len(rows)), last].numpy()
    numeric = dataset.store.num_numeric
    assert np.isnan(own[:, :numeric][hidden[:, :numeric]]).all()
    assert (own[:, numeric:][hidden[:, numeric:]] == 0).all()
    shown = ~torch.from_numpy(hidden)
    assert torch.equal(torch.from_numpy(own)[shown], before[torch.arange(len(rows)), last][shown])
    batch.values[torch.arange(len(rows)), last] = before[torch.arange(len(rows)), last]
    assert torch.equal(batch.values, before)


def test_only_a_new_head_starts_at_the_prior(tiny_run: Path, later_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that was trained before keeps its bias; another starts with the bias that fits each training."""
    given: list[float | None] = []
    init = ClassifierTrainer.__init__

    def noting(self: ClassifierTrainer, *positional: Any, prior: np.ndarray | None = None, **named: Any) -> None:
        init(self, *positional, prior=prior, **named)
        if "start" in named:  # not the trainer that measures the time of a step
            given.append(None if prior is None else float(prior[1]))

    monkeypatch.setattr(ClassifierTrainer, "__init__", noting)
    assert train("--dataset", later_table, "--from", tiny_run, "--out", tmp_path / "kept") == 0
    assert given == [None] * 4
    before = tmp_path / "before"
    short = ("--epochs", "1", "--steps-per-epoch", "2", "--d-model", "16", "--layers", "1", "--history-length", "6", "--threads", "1")
    assert main(["pretrain", "--dataset", str(later_table), "--out", str(before), *short]) == 0
    given.clear()
    assert train("--dataset", later_table, "--from", before, "--out", tmp_path / "new") == 0
    prior = float((pl.read_parquet(later_table)["is_fraud"] == 1).mean())  # type: ignore[arg-type]
    rule, none, even, weighted = given
    assert rule == pytest.approx(np.sqrt(prior) / (np.sqrt(prior) + np.sqrt(1 - prior)), rel=0.3)
    assert none == pytest.approx(prior, rel=0.3)
    assert even == pytest.approx(0.5)
    assert weighted == pytest.approx(0.5)


def test_a_network_alone_may_be_named(network_run: Path, tiny_table: Path) -> None:
    config = TrainConfig(dataset=tiny_table, from_=network_run, learner="network", policy="auto", threads=1)
    prepared = prepare(config, Console(quiet=True), given={})
    assert prepared.learner == "network" and prepared.start is not None and prepared.model.margin == ""
