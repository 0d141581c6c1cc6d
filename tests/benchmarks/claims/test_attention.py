"""The benchmark of sparse attention: what it computes from times and trainings; times themselves are not tested."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from balancer.errors import InputError
from balancer.models.attention import sparse_attention

ROOT = Path(__file__).resolve().parents[2]
DENSE_PRECISION, SPARSE_PRECISION = [0.80, 0.81, 0.79], [0.795, 0.811, 0.788]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def timing(load: Any) -> ModuleType:
    return load("attention_timing")


@pytest.fixture
def trials(load: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a stream that is there and needn't be read."""
    module = load("attention_trials")
    monkeypatch.setattr(module, "absent", lambda _data: None)
    monkeypatch.setattr(module, "dataset", lambda data: data)
    return module


class Trainer:
    """In the place of `train_trial`: figures without training, and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, dataset: Any, **given: Any) -> dict[str, Any]:
        self.asked.append({"dataset": dataset} | given)
        sparse = given["attention"] == "sparse"
        return {
            "average_precision": (SPARSE_PRECISION if sparse else DENSE_PRECISION)[given["seed"]] - given["num_global"] / 1000,
            "seconds_train": 2.0,
            "seconds_score": given["window"] / 64 if sparse else 4.0,
            "rows_scored": 100,
            "backend": "auto" if sparse else None,
        }


def test_calls_take_turns_and_the_first_round_does_not_count(timing: ModuleType) -> None:
    order: list[str] = []
    times = timing.interleaved({name: lambda name=name: order.append(name) for name in ("a", "b")}, 0.0, least=2)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_rounds_fill_the_budget(timing: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_seconds", lambda _call: 0.5)
    assert len(timing.interleaved({"a": lambda: None, "b": lambda: None}, 7.0)["a"]) == 7
    assert len(timing.interleaved({"a": lambda: None}, 1e9, most=9)["a"]) == 9


def test_times_faster_is_the_median_of_the_rounds_own_ratios(timing: ModuleType) -> None:
    # The machine is slowed tenfold in one round: a ratio within the round doesn't see it.
    found = timing.compared({"dense": [4.0, 40.0, 8.0], "x": [1.0, 10.0, 4.0]})
    assert found["times_faster"] == {"x": 4.0}
    assert found["milliseconds"] == {"dense": 8000.0, "x": 4000.0}
    assert "times_faster" not in timing.compared({"x": [1.0]})


def power_law(exponent: float) -> list[dict[str, Any]]:
    return [
        {"tokens": n, "causal": True, "passes": "forward", "milliseconds": {"torch block": 3.0 * (n if n >= 1024 else 1e6) ** exponent}}
        for n in (512, 1024, 2048, 4096)
    ]


@pytest.mark.parametrize(("exponent", "holds"), [(1.0, "met"), (1.5, "not met")])
def test_growth_is_the_exponent_from_1024_tokens_on(timing: ModuleType, exponent: float, holds: str) -> None:
    (found,) = timing.growth(power_law(exponent))
    assert found["exponent"] == pytest.approx(exponent)
    assert found["tokens"] == [1024, 4096]
    claims = {claim["claim"]: claim["holds"] for claim in timing.claims([], [found])}
    assert claims["torch block, causal, forward: time grows at most as tokens ** 1.1"] == holds
    assert claims["native sliding, causal, forward: time grows at most as tokens ** 1.1"] == "not measured"


def test_claims_on_speed(timing: ModuleType) -> None:
    cell = {"tokens": 512, "causal": True, "passes": "forward", "times_faster": {"torch block": 2.0, "native sliding": 4.9}}
    other_way = cell | {"causal": False, "times_faster": {"torch block": 0.1, "native sliding": 99.0}}
    found = {claim["claim"]: claim["holds"] for claim in timing.claims([other_way, cell], [])}
    assert found["torch block, causal, forward, 512 tokens: at least 2 times faster than dense"] == "met"
    assert found["native sliding, causal, forward, 512 tokens: at least 5 times faster than dense"] == "not met"
    assert found["native sliding, causal, forward + backward, 512 tokens: at least 7 times faster than dense"] == "not measured"


def test_kernels_time_what_can_work_and_say_why_the_rest_does_not(timing: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def attend(*tensors: torch.Tensor, backend: str, **given: Any) -> torch.Tensor:
        if backend == "native":
            raise InputError("no compiler is there")
        asked.append(given["causal"])
        return sparse_attention(*tensors, backend="reference", **given)

    monkeypatch.setattr(timing, "sparse_attention", attend)
    before = torch.get_num_threads()
    found = timing.kernels((64,), (128,), (), budget=0.0)
    torch.set_num_threads(before)
    assert found["refused"] == {"native block": "no compiler is there", "native sliding": "no compiler is there"}
    assert {tuple(cell["milliseconds"]) for cell in found["cells"] if cell["tokens"] == 64} == {("dense", "torch block", "torch sliding")}
    assert all("times_faster" not in cell for cell in found["cells"] if cell["tokens"] == 128)
    assert len(found["cells"]) == 8
    assert {True, False} == set(asked)


def test_contenders_attend_to_the_same_inputs(timing: ModuleType) -> None:
    setting = timing.Setting(batch=2, window=16, num_global=2)
    first, second = setting.inputs(40), setting.inputs(40)
    assert all(torch.equal(a, b) for a, b in zip([*first[0], *first[1:]], [*second[0], *second[1:]], strict=True))
    assert not torch.equal(first[0][0], first[0][1])
    # A window of the whole length is dense attention.
    (query, key, value), _, score = first
    whole = sparse_attention(query, key, value, score, window=40, num_global=2, backend="reference")
    assert torch.allclose(whole, timing.dense(query, key, value, causal=True), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a resident set is read from /proc")
def test_memory_of_a_child_process(timing: ModuleType) -> None:
    found = timing.memory(["dense"], timing.Setting(), 4096, "forward_backward")["mib"]["dense"]
    # Output and three gradients of 8 * 4096 * 128 numbers are 64 MiB; a matrix of all pairs would be 2 GiB for each head.
    assert found is None or 50 < found < 500


def test_quality_is_paired_by_seed_and_goes_on_from_finished_cells(trials: ModuleType, tmp_path: Path) -> None:
    train, effort = Trainer(), trials.Effort(tmp_path / "work", steps=5)
    first = trials.quality("handbook", (256,), range(2), effort, train)
    assert len(train.asked) == 4
    found = trials.quality("handbook", (256,), range(3), effort, train)
    assert len(train.asked) == 6
    assert first["histories"]["256"]["average_precision"]["dense"] == found["histories"]["256"]["average_precision"]["dense"][:2]
    own = found["histories"]["256"]
    truth = stats.ttest_rel(np.array(SPARSE_PRECISION), np.array(DENSE_PRECISION)).confidence_interval()
    assert (own["difference"]["low"], own["difference"]["high"]) == pytest.approx((truth.low, truth.high))
    assert own["relative"]["difference"] == pytest.approx(own["difference"]["difference"] / own["mean"]["dense"])
    assert own["claim"]["holds"] == "met, within noise"
    assert own["backend"] == "auto"


def test_another_effort_is_another_cell(trials: ModuleType, tmp_path: Path) -> None:
    cell = trials.Cell("handbook", "sparse", 256, 64, 8, 0)
    names = [cell.name(trials.Effort(tmp_path, steps, warmup)) for steps, warmup in ((5, 0.4), (6, 0.4), (5, 0.3))]
    assert len(set(names)) == 3
    # Dense attention has no window, so its cell serves every one.
    other = trials.Cell("handbook", "dense", 256, 128, 2, 0)
    assert other.name(trials.Effort(tmp_path, 5)) == trials.Cell("handbook", "dense", 256, 64, 8, 0).name(trials.Effort(tmp_path, 5))


def test_one_seed_has_no_interval(trials: ModuleType, tmp_path: Path) -> None:
    own = trials.quality("handbook", (256,), range(1), trials.Effort(tmp_path, steps=5), Trainer())["histories"]["256"]
    assert own["relative"]["low"] is None
    assert own["claim"]["holds"] == "met"


def test_sweep_shares_cells_with_quality(trials: ModuleType, tmp_path: Path) -> None:
    train, effort = Trainer(), trials.Effort(tmp_path, steps=5)
    trials.quality("sparkov", (trials.SWEEP_HISTORY,), range(1), effort, train)
    found = trials.sweep("sparkov", (32, 64), (0, 8), 0, effort, lambda shapes: [256 / window for window, _ in shapes], train)
    assert len(train.asked) == 2 + 3  # dense, and w 64 with 8 nodes, were there
    by_shape = {(point["window"], point["global_nodes"]): point for point in found["points"]}
    assert {shape: point["times_faster"] for shape, point in by_shape.items()} == {(32, 0): 8.0, (32, 8): 8.0, (64, 0): 4.0, (64, 8): 4.0}
    assert by_shape[32, 0]["average_precision"] == pytest.approx(0.795)


def test_a_stream_that_is_not_there_is_left_out_with_words(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load("attention_trials")
    monkeypatch.setitem(module.DATASETS, "handbook", (tmp_path / "transactions.parquet", None, "quick"))
    effort = module.Effort(tmp_path, steps=5)
    for found in (module.quality("handbook", (256,), range(1), effort), module.sweep("handbook", (16,), (0,), 0, effort, list)):
        assert "is not there" in found["skipped"]


def test_the_trainer_takes_what_is_asked(trials: ModuleType, tmp_path: Path) -> None:
    train = Trainer()
    trials.quality("handbook", (256,), range(1), trials.Effort(tmp_path, steps=5), train)
    for asked in train.asked:
        inspect.signature(trials.train_trial).bind(**asked)


def test_parts_are_kept_when_another_is_measured_anew(load: Any, tmp_path: Path) -> None:
    module, path = load("attention"), tmp_path / "attention.json"
    module.merge(path, "kernels", {"cells": [1.23456789]})
    module.merge(path, "quality", {"seeds": [0]}, "handbook")
    module.merge(path, "quality", {"seeds": [1]}, "sparkov")
    module.merge(path, "quality", {"seeds": [2]}, "handbook")
    content = json.loads(path.read_text())
    assert list(content["parts"]) == ["kernels", "quality"]
    assert content["parts"]["kernels"]["cells"] == [1.2346]
    assert {data: own["seeds"] for data, own in content["parts"]["quality"]["streams"].items()} == {"handbook": [2], "sparkov": [1]}
    assert {"machine", "versions", "date"} <= set(content)


def test_a_whole_model_passes_where_it_stays_above(load: Any) -> None:
    figures = {512: 3.3, 1024: 3.1, 2048: 3.2, 4096: 4.0}
    cells = [{"width": 64, "passes": "forward", "tokens": tokens, "times_faster": {"sparse": figure}} for tokens, figure in figures.items()]
    (found,) = load("attention_model").passed(cells)
    assert (found["holds"], found["from_tokens"], found["figure"]) == ("met", 2048, 4.0)
    (found,) = load("attention_model").passed(cells[1:2])
    assert (found["holds"], found["from_tokens"]) == ("not met", None)


@pytest.mark.slow
def test_a_quick_run_of_the_models(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("BALANCER_ATTENTION_BACKEND", "torch")  # nothing is to be measured and kept in the user's cache
    load("attention").main(["--quick", "--only", "model", "--results", str(tmp_path), "--images", str(tmp_path / "images")])
    torch.set_num_threads(before)
    part = json.loads((tmp_path / "attention.json").read_text())["parts"]["model"]
    assert {(cell["tokens"], cell["passes"]) for cell in part["cells"]} == {
        (n, p) for n in (64, 128) for p in ("forward", "forward_backward")
    }
    assert {cell["backend"] for cell in part["cells"]} == {"torch"}
    assert set(part["streaming"]["scores_per_second"]) == {"step", "dense, 32 again", "sparse, 32 again"}
    assert all(rate > 0 for rate in part["streaming"]["scores_per_second"].values())


def test_cuda_measures_kernels_only(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("attention").main(["--device", "cuda", "--only", "quality"])
    assert "--device cuda measures the kernels only" in capsys.readouterr().err


def test_error_against_float64(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("attention_cuda")
    monkeypatch.setattr(module, "CHECK_LENGTH", 96)
    setting = module.Setting(window=32, num_global=4, width=16)
    found = module.error("torch sliding", setting, True, device="cpu", dtype=torch.float32)["relative_error"]
    assert set(found["sparse"]) == {"output", "query", "key", "value"}
    assert all(value < 1e-5 for kind in found.values() for value in kind.values())
    coarse = module.error("torch sliding", setting, True, device="cpu", dtype=torch.bfloat16)["relative_error"]
    assert 1e-4 < coarse["sparse"]["output"] < 0.1


def test_claims_on_cuda_are_of_the_best_that_has_global_nodes(load: Any) -> None:
    module = load("attention_cuda")
    cell = {"tokens": 2048, "width": 32, "causal": True, "passes": "forward"}
    cells = [
        cell | {"times_faster": {"torch block": 2.0, "triton sliding": 3.3, module.FLEX: 9.0}},
        cell | {"width": 64, "times_faster": {}},
    ]
    found = {claim["claim"]: claim for claim in module.claims(cells)}
    own = found["CUDA, causal, forward, 2,048 tokens: at least 3.2 times faster than flash attention"]
    assert (own["figure"], own["holds"]) == (3.3, "met")
    assert {claim["holds"] for claim in found.values() if claim is not own} == {"not measured"}


@pytest.mark.gpu
def test_quick_kernels_on_cuda(load: Any, tmp_path: Path) -> None:
    load("attention").main(["--quick", "--device", "cuda", "--results", str(tmp_path)])
    part = json.loads((tmp_path / "attention_cuda.json").read_text())["parts"]["kernels"]
    assert all("dense" in cell["milliseconds"] for cell in part["cells"])
    assert all(value < 0.1 for own in part["errors"] for value in own["relative_error"]["sparse"].values())
