"""One fit with 1, 2 and 4 processes: the same draws, weights and scores."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate
from balancer.data.split import Split
from balancer.errors import InputError
from balancer.options.train import TrainConfig
from balancer.training.distributed import Workers
from balancer.training.micro_batches import MicroBatches, cut_histories, cut_rows, default_count
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierTrainer
from tests.training.processes import FITS, FITS_OF, MODEL, fit, process

Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    frame = simulate(2_500, seed=3, fraud_rate=0.08)
    return load_dataset(frame, resolve_spec(frame, overrides={"gap": "1d"}))


@pytest.fixture(scope="module")
def found(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each process found, by number of processes; those of one number run at the same time."""
    folder, context = tmp_path_factory.mktemp("fits"), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.processes", "torch.distributed"])
    queues, started = {size: context.Queue() for size in FITS_OF}, []  # type: ignore[var-annotated]
    for size, queue in queues.items():
        (folder / str(size)).mkdir()
        for rank in range(size):
            started.append(context.Process(target=process, args=(dataset, folder / str(size), rank, size, queue)))
            started[-1].start()
    results: Found = {1: [{}]}
    for name, (form, ordered) in FITS.items():
        (folder / name).mkdir()
        results[1][0][name] = fit(dataset, folder / name, form, ordered)
    for size, queue in queues.items():
        of_rank = dict(queue.get(timeout=100) for _ in range(size))
        results[size] = [of_rank[rank] for rank in range(size)]
    results[1][0]["continued"] = fit(dataset, folder / "2" / "stopped", *FITS["rows in order"])
    for each in started:
        each.join(20)
        assert each.exitcode == 0
    return results


@pytest.mark.parametrize(("size", "name"), [(size, name) for size, names in FITS_OF.items() for name in names])
def test_results_do_not_depend_on_the_number_of_processes(found: Found, size: int, name: str) -> None:
    one = found[1][0][name]
    for several in (each[name] for each in found[size]):
        if FITS[name][1]:
            np.testing.assert_array_equal(several["weights"], one["weights"])
            np.testing.assert_array_equal(several["scores"], one["scores"])
            assert several["figures"] == one["figures"]
        else:
            np.testing.assert_allclose(several["scores"], one["scores"], rtol=0, atol=1e-6)
            for line, same in zip(several["figures"], one["figures"], strict=True):
                assert line["share"] == pytest.approx(same["share"], abs=1e-6)
                assert line["loss"] == pytest.approx(same["loss"], abs=1e-6)


def test_a_process_that_rounds_differently_continues_with_the_leader_s_state(found: Found) -> None:
    for each in found[2]:
        np.testing.assert_array_equal(each["changed"]["weights"], found[1][0]["rows in order"]["weights"])


def test_one_process_continues_a_fit_of_two(found: Found) -> None:
    one = found[1][0]
    np.testing.assert_array_equal(one["continued"]["weights"], one["rows in order"]["weights"])
    assert one["continued"]["figures"] == one["rows in order"]["figures"]


def test_an_error_of_one_process_is_that_of_all(found: Found) -> None:
    assert [each["texts"] for each in found[2]] == [["no such file", "worker 1: no such file"], ["no such file", "no such file"]]


@pytest.mark.parametrize("form", ["rows", "histories"])
def test_micro_batches_add_up_to_the_step(dataset: Dataset, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and the weights after some steps, with class weights, row weights and auxiliary tasks."""
    monkeypatch.setattr("balancer.models.embedding.UNSEEN_RATE", 0.0)
    options = replace(MODEL, dropout=0.0, field_dropout=0.0)
    model = replace(model_config(dataset, options, seed=0, tasks=("masked_fields",)), form=form)  # type: ignore[arg-type]
    rng, rows = np.random.default_rng(0), dataset.rows(Split.TRAIN)
    rows, tasks = rng.choice(rows, 200), {"masked_fields": rng.choice(rows, 45)}
    losses, scores = [], []
    for count in (1, 4):
        trainer = ClassifierTrainer(dataset, model, seed=0, total_steps=2, batch_size=100, micro_batches=MicroBatches(count))
        trainer.compensate(np.array([0.5, 2.0]), np.array([0.3, -0.2]), rows, np.full(200, 1.5))
        losses.append(trainer.fit(rows, tasks))
        scores.append(trainer.score(rows))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-4)


def test_every_row_of_a_step_is_in_one_micro_batch(dataset: Dataset) -> None:
    parts = cut_rows([10, 0, 5], 4)
    assert sorted(np.concatenate(parts).tolist()) == list(range(15))
    assert {len(part) for part in parts} <= {3, 4, 5}
    rows = np.random.default_rng(0).choice(len(dataset.store.label), 300)
    parts = cut_histories(dataset.store, rows, 6, 4)
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))
    segments = [set(dataset.store.segments(rows, 6).segment[part].tolist()) for part in parts]
    assert len(set.union(*segments)) == sum(map(len, segments)), "segments are whole"


def test_numbers_of_workers() -> None:
    assert [default_count(Workers(0, size, together=True)) for size in (1, 2, 3, 4, 8)] == [4, 4, 3, 4, 8]
    assert list(MicroBatches(6, workers=Workers(1, 3)).own) == [1, 4]
    with pytest.raises(
        InputError, match=r"2 workers can't share the 3 micro-batches .* divides 3, or give --micro-batches a multiple of 2"
    ):
        MicroBatches(3, workers=Workers(0, 2))
    with pytest.raises(InputError, match="--micro-batches is 4: give a multiple of the 3 processes of --workers"):
        TrainConfig(dataset=Path("x"), micro_batches=4, workers=3)
