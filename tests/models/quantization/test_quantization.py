"""Layers in low precision against float32, sensitivity against brute force, plans against their budgets, and
errors that must be reported."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models import Classifier, ModelConfig, SequenceBatch, fit_edges, save_classifier
from balancer.models.quantization import (
    PrecisionPlan,
    SensitivityReport,
    apply_precision,
    applying,
    divergence,
    find_layers,
    load_quantized,
    load_quantized_classifier,
    modules,
    native,
    plan_precision,
    save_quantized,
    sensitivity,
    uniform_plan,
)
from balancer.models.quantization.modules import Int8Linear, RowwiseLinear, TableEncoder, int8_linear, quantize_rows

FIELDS, CODES, HISTORY = 6, 9, 8


def classifier(seed: int = 0, *, classes: int = 2, d_model: int = 32, layers: int = 2, **given: Any) -> Classifier:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(800, FIELDS)).astype(np.float32)
    edges = fit_edges(values, (values[:, 0] + values[:, 1] > 1).astype(np.int64), seed=0)
    names = tuple(f"n{i}" for i in range(FIELDS))
    config = ModelConfig(
        names, ("c",), (CODES,), edges, classes=tuple(map(str, range(classes))), head="binary" if classes == 2 else "multiclass",
        history_length=HISTORY, d_model=d_model, num_layers=layers, **given,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Classifier(config).eval()
    with torch.no_grad():  # as training leaves it: logits that differ from row to row
        for parameter in model.head.parameters():
            parameter.mul_(8.0)
    return model


def batch(rows: int, seed: int = 1, *, full: bool = False) -> SequenceBatch:
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(rows, HISTORY, FIELDS)) * np.exp(rng.normal(size=(rows, 1, 1)))
    values = np.concatenate([numbers, rng.integers(0, CODES, (rows, HISTORY, 1))], 2).astype(np.float32)
    lengths = np.full(rows, HISTORY) if full else rng.integers(1, HISTORY + 1, rows)
    return SequenceBatch.from_windows(values, lengths)


def part(whole: SequenceBatch, rows: slice) -> SequenceBatch:
    return SequenceBatch(whole.values[rows], whole.lengths[rows], whole.mask[rows])


@pytest.fixture
def any_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer gets its planned precision, as in a model that was quantized on another processor.

    Without the instructions for a precision torch computes the same, more slowly.
    """
    monkeypatch.setattr(applying, "cpu_supports", lambda *_: True)


@given(st.integers(1, 70), st.integers(1, 130), st.integers(1, 130), st.integers(0, 9), st.booleans())
@settings(max_examples=40)
def test_the_kernel_is_torchs_operator_to_the_last_bit(m: int, k: int, n: int, seed: int, biased: bool) -> None:
    if native.absence() is not None:
        pytest.skip(str(native.absence()))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator) * torch.randn(m, 1, generator=generator).exp()
    x[0] = 0.0
    if m > 2:
        x[1, 0], x[2, -1] = torch.nan, torch.inf
    weight, scale = quantize_rows(torch.randn(n, k, generator=generator))
    bias = torch.randn(n, generator=generator) if biased else None
    expected = int8_linear(x, weight, scale, bias)
    assert torch.equal(
        Int8Linear(weight, scale, bias)(x).view(torch.int32)[x.isfinite().all(1)], expected.view(torch.int32)[x.isfinite().all(1)]
    )
    assert expected[~x.isfinite().all(1)].isnan().all()
    assert Int8Linear(weight, scale, bias)(x)[~x.isfinite().all(1)].isnan().all()


def test_the_operator_is_one_that_torch_can_trace() -> None:
    weight, scale = quantize_rows(torch.randn(5, 12))
    torch.library.opcheck(int8_linear, (torch.randn(3, 12), weight, scale, torch.randn(5)), raise_exception=True)
    layer = Int8Linear(weight, scale, None)
    x = torch.randn(4, 12)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


def test_int8_is_within_its_rounding_of_float32() -> None:
    linear = nn.Linear(96, 40)
    x = torch.randn(64, 96)
    rounded = Int8Linear(*quantize_rows(linear.weight), linear.bias)
    error = (rounded(x) - linear(x)).norm() / linear(x).norm()
    assert error < 0.015


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
def test_the_encoders_table_in_every_precision(precision: str) -> None:
    encoder = classifier().embedding.numeric
    values = torch.randn(50, FIELDS) * 3
    values[3, 2], values[4, 0] = torch.nan, 1e12
    present = torch.rand(50, FIELDS) > 0.1
    with torch.inference_mode():
        expected = encoder(values, present)
        found = TableEncoder.of(encoder, precision)(values, present)
    tolerance = {"int8": 0.02, "bf16": 0.01, "fp32": 1e-6}[precision]
    assert (found - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("grouped", [False, True], ids=["as here", "grouped"])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 1), (32, 4), (32, 32), (32, 128), (128, 32), (256, 64)])
def test_float32_rows_do_not_depend_on_their_number(inputs: int, outputs: int, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if grouped:  # as processors do it that have other kernels for few rows
        monkeypatch.setattr(modules, "_ONE_KERNEL", False)
    linear = nn.Linear(inputs, outputs)
    layer, x = RowwiseLinear(linear.weight.detach(), linear.bias.detach()), torch.randn(200, inputs)
    with torch.inference_mode():
        together = layer(x)
        torch.testing.assert_close(together, linear(x), atol=1e-5, rtol=1e-5)
        for first, count in ((0, 1), (3, 1), (1, 5), (0, 16), (7, 16), (0, 32), (5, 33), (0, 48), (0, 128), (0, 160)):
            assert torch.equal(layer(x[first : first + count]), together[first : first + count])
        assert layer(x[:0]).shape == (0, outputs)


@pytest.mark.usefixtures("any_precision")
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
def test_a_row_is_judged_the_same_alone_and_in_any_batch(precision: str, classes: int) -> None:
    model, _ = apply_precision(classifier(classes=classes), uniform_plan(classifier(classes=classes), precision))  # type: ignore[arg-type]
    whole = batch(67)
    with torch.inference_mode():
        together = model(whole)
        for first, count in ((0, 1), (5, 1), (66, 1), (3, 2), (10, 5), (0, 16), (20, 33)):
            assert torch.equal(model(part(whole, slice(first, first + count))), together[first : first + count])
        # Its neighbours may hold anything.
        wild = SequenceBatch(whole.values.clone(), whole.lengths, whole.mask)
        wild.values[1:, :, 0], wild.values[2, :, 1] = 1e6, torch.nan
        assert torch.equal(model(wild)[0], together[0])


@given(st.lists(st.integers(0, 66), min_size=1, max_size=40), st.sampled_from(["int8", "bf16", "fp32", "mixed"]))
def test_scores_of_any_rows_in_any_order_are_those_of_the_whole(chosen: list[int], precision: str) -> None:
    model, whole, together = _judged(precision)
    rows = torch.tensor(chosen)
    with torch.inference_mode():
        found = model(SequenceBatch(whole.values[rows], whole.lengths[rows], whole.mask[rows]))
    assert torch.equal(found, together[rows])


@functools.cache
def _judged(precision: str) -> tuple[nn.Module, SequenceBatch, Tensor]:
    full, whole = classifier(), batch(67)
    plan = uniform_plan(full, "int8", keep=("attention", "head"), keep_as="fp32") if precision == "mixed" else uniform_plan(full, precision)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:  # Hypothesis takes no fixture of a single test
        patch.setattr(applying, "cpu_supports", lambda *_: True)
        model, _ = apply_precision(full, plan)
    with torch.inference_mode():
        return model, whole, model(whole)


@pytest.mark.usefixtures("any_precision")
def test_large_amounts_stay_finite() -> None:
    model, _ = apply_precision(classifier(), uniform_plan(classifier()))
    whole = batch(4)
    whole.values[:, :, 0] = 1e6
    with torch.inference_mode():
        assert model(whole).isfinite().all()


def test_nan_in_a_linear_is_nan_out_of_its_row_alone() -> None:
    for layer in (Int8Linear(*quantize_rows(torch.randn(3, 8)), None), RowwiseLinear(torch.randn(3, 8), None)):
        x = torch.randn(5, 8)
        x[2, 3] = torch.nan
        out = layer(x)
        assert out[2].isnan().all()
        assert out[[0, 1, 3, 4]].isfinite().all()


def trained_like(seed: int) -> Classifier:
    """A classifier after some steps on a task it can learn, so that its layers differ in sensitivity."""
    model = classifier(seed, layers=3)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for step in range(60):
        data = batch(128, step)
        label = (data.last().values[:, 0, 0] + data.last().values[:, 0, 1] > 0.5).long()
        optimizer.zero_grad()
        model.loss(model(data), label).backward()
        optimizer.step()
    return model.eval()


def spearman(first: list[float], second: list[float]) -> float:
    return float(np.corrcoef(np.argsort(np.argsort(first)), np.argsort(np.argsort(second)))[0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_the_fisher_score_ranks_as_brute_force_does(bits: int) -> None:
    model, batches = trained_like(0), [batch(256, seed) for seed in (100, 101)]
    truth = sensitivity(model, batches, score="exact", bits=bits, latency=False)
    expected = [row.score["int8"] for row in truth.rows]
    fisher = [row.score["int8"] for row in sensitivity(model, batches, bits=bits, latency=False).rows]
    plain = [row.score["int8"] for row in sensitivity(model, batches, score="gradient", bits=bits, latency=False).rows]
    assert spearman(fisher, expected) > 0.75
    assert spearman(plain, expected) > 0.3
    assert all(row.score["bf16"] < row.score["int8"] for row in truth.rows if bits == 4)


def test_the_model_is_left_as_it_was() -> None:
    model = classifier().train()
    before = copy.deepcopy(model.state_dict())
    modules = [type(module) for module in model.modules()]
    generator = torch.get_rng_state()
    for score in ("output_fisher", "gradient", "exact"):
        sensitivity(model, [batch(8)], score=score)  # type: ignore[arg-type]
    apply_precision(model, uniform_plan(model))
    assert model.training
    assert [type(module) for module in model.modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_labels_of_ones_own_and_any_torch_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 16), nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 3))
    data = [(torch.randint(0, 20, (32, 3)), torch.randint(0, 3, (32,))) for _ in range(2)]
    report = sensitivity(model, data, loss=lambda own, given: nn.functional.cross_entropy(own(given[0]), given[1]), latency=False)
    assert [row.kind for row in report.rows] == ["embedding", "linear", "linear"]
    assert all(row.score["int8"] > row.score["bf16"] >= 0 for row in report.rows)
    assert SensitivityReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_divergence_of_each_kind_of_output() -> None:
    p, q = torch.tensor([0.3, -1.0]), torch.tensor([0.1, -0.5])
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(bernoulli(logits=p.double()), bernoulli(logits=q.double())).mean()
    assert torch.allclose(divergence(p, q), expected)
    p, q = torch.randn(4, 3), torch.randn(4, 3)
    categorical = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(categorical(logits=p.double()), categorical(logits=q.double())).mean()
    assert torch.allclose(divergence(p, q), expected)


@pytest.fixture(scope="module")
def report() -> SensitivityReport:
    return sensitivity(classifier(), [batch(32)], latency=True)


def test_a_budget_of_bytes_is_kept_with_the_least_divergence(report: SensitivityReport) -> None:
    full = sum(row.bytes["fp32"] for row in report.rows)
    small = sum(row.bytes["int8"] for row in report.rows)
    before = -1.0
    for budget in (full, (full + small) // 2, small + (full - small) // 10, small):
        plan = plan_precision(report, max_bytes=budget)
        assert plan.expected["bytes"] <= budget
        assert plan.expected["divergence"] >= before
        before = plan.expected["divergence"]
    assert set(plan.precision.values()) == {"int8"}
    with pytest.raises(InputError, match="can't be met: the least that these precisions reach"):
        plan_precision(report, max_bytes=small - 1)


def test_the_knapsack_is_exact() -> None:
    rng = np.random.default_rng(0)
    model = nn.Sequential(*(nn.Linear(int(a), int(b)) for a, b in rng.integers(3, 30, (5, 2))))
    rows = sensitivity_rows(model, rng)
    base = sensitivity_report(model, rows)
    budget = int(sum(row.bytes["fp32"] for row in rows) * 0.55)
    plan = plan_precision(base, max_bytes=budget)
    import itertools

    best = min(
        sum(row.score[p] for row, p in zip(rows, chosen, strict=True))
        for chosen in itertools.product(("int8", "bf16", "fp32"), repeat=5)
        if sum(row.bytes[p] for row, p in zip(rows, chosen, strict=True)) <= budget
    )
    assert plan.expected["divergence"] == pytest.approx(best)


def sensitivity_rows(model: nn.Module, rng: np.random.Generator) -> list[Any]:
    from balancer.models.quantization import SensitivityRow

    return [
        SensitivityRow(
            layer.name,
            layer.kind,
            layer.parameters,
            {"int8": float(rng.random()), "bf16": 0.01 * float(rng.random()), "fp32": 0.0},
            {p: layer.bytes(p) for p in ("int8", "bf16", "fp32")},
            {},
        )
        for layer in find_layers(model)
    ]


def sensitivity_report(model: nn.Module, rows: list[Any]) -> SensitivityReport:
    from balancer.models.quantization.layers import fingerprint

    return SensitivityReport(rows, "exact", 8, 1, 0.0, fingerprint(find_layers(model)))


def test_no_layer_is_made_slower_where_time_counts(report: SensitivityReport) -> None:
    plan = plan_precision(report, max_latency_ratio=1.0)
    for row in report.rows:
        if row.ms:
            assert row.ms.get(plan.precision[row.name], row.ms["fp32"]) <= row.ms["fp32"]
    with pytest.raises(InputError, match="can't be met"):
        plan_precision(report, max_latency_ratio=0.001)


@pytest.mark.usefixtures("any_precision")
def test_a_metric_budget_is_verified_on_the_whole_model(report: SensitivityReport) -> None:
    model, data = classifier(), batch(200, 5)
    with torch.inference_mode():
        reference = model(data)

    def closeness(other: nn.Module) -> float:
        with torch.inference_mode():
            return -float((other(data) - reference).abs().mean())

    untimed = SensitivityReport(
        [type(row)(row.name, row.kind, row.parameters, row.score, row.bytes, {}) for row in report.rows],
        "exact",
        8,
        1,
        0.0,
        report.fingerprint,
    )
    loose = plan_precision(untimed, max_metric_drop=1.0, metric=closeness, model=model)
    assert set(loose.precision.values()) == {"int8"}
    drop = loose.expected["metric_drop"]
    assert drop > 0
    tight = plan_precision(untimed, max_metric_drop=drop / 5, metric=closeness, model=model)
    assert tight.expected["metric_drop"] <= drop / 5
    assert loose.expected["bytes"] < tight.expected["bytes"]
    with pytest.raises(InputError, match="the shortfall is"):
        plan_precision(untimed, max_metric_drop=-1.0, metric=closeness, model=model)


def test_what_each_layer_got_is_told_and_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    plan = uniform_plan(model, "int8", keep=("attention",))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    _, applied = apply_precision(model, plan)
    assert {(row.wanted, row.got) for row in applied.rows} == {("int8", "int8"), ("bf16", "fp32")}
    assert all(row.reason == "" if row.got == "int8" else "no bfloat16" in row.reason for row in applied.rows)
    with pytest.raises(InputError, match="no bfloat16"):
        apply_precision(model, plan, strict=True)
    monkeypatch.undo()
    _, applied = apply_precision(model, plan)
    assert json.loads(json.dumps(applied.to_dict()))["rows"][0]["layer"] == "embedding.numeric"


class Tied(nn.Module):
    """Input and output embedding with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.middle = nn.Linear(16, 16)
        self.out = nn.Linear(16, 30, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.out(self.middle(self.embed(index)))  # type: ignore[no-any-return]


@pytest.mark.usefixtures("any_precision")
def test_a_tied_weight_is_quantized_and_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    layers = find_layers(model)
    assert [(layer.name, layer.tied) for layer in layers] == [("embed", ("out",)), ("middle", ())]
    data = torch.randint(0, 30, (40,))
    report = sensitivity(model, [data])
    plan = uniform_plan(model)
    quantized, applied = apply_precision(model, plan)
    assert quantized.embed.stored.data_ptr() == quantized.out.stored.data_ptr()
    assert applied.bytes_after == sum(row.bytes["int8"] for row in report.rows)
    save_quantized(quantized, applied, tmp_path, plan=plan)
    loaded, _ = load_quantized(Tied, tmp_path)
    assert torch.equal(loaded(data), quantized(data))
    assert loaded.embed.stored.data_ptr() == loaded.out.stored.data_ptr()
    assert (tmp_path / "model.quantized.safetensors").stat().st_size < applied.bytes_after + 2000


@pytest.mark.parametrize("inside", [nn.MultiheadAttention(8, 2), nn.TransformerEncoderLayer(8, 2)])
def test_modules_that_read_weights_past_the_layers_are_refused_by_name(inside: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(8, 8), inside)
    with pytest.raises(InputError, match=type(inside).__name__):
        sensitivity(model, [torch.randn(2, 3, 8)])


def test_bad_input() -> None:
    model = classifier()
    with pytest.raises(InputError, match="nothing to quantize"):
        sensitivity(nn.ReLU(), [torch.randn(2)])
    with pytest.raises(InputError, match="no calibration batch"):
        sensitivity(model, [])
    with pytest.raises(InputError, match="unknown score"):
        sensitivity(model, [batch(2)], score="magic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finite"):
        sensitivity(nn.Linear(2, 1), [torch.tensor([[1.0, torch.nan]])])
    with pytest.raises(InputError, match="another model"):
        apply_precision(classifier(d_model=16), uniform_plan(model))
    with pytest.raises(InputError, match="another model"):
        apply_precision(nn.Linear(3, 3), uniform_plan(model))
    with pytest.raises(InputError, match="unknown backend"):
        apply_precision(model, uniform_plan(model), backend="magic")  # type: ignore[arg-type]
    report = sensitivity(model, [batch(2)], bits=4, latency=False)
    with pytest.raises(InputError, match="4 bits"):
        plan_precision(report, max_bytes=10)
    report = sensitivity(model, [batch(2)], latency=False)
    with pytest.raises(InputError, match="no budget"):
        plan_precision(report)
    with pytest.raises(InputError, match="no milliseconds"):
        plan_precision(report, max_latency_ratio=1.0)
    with pytest.raises(InputError, match="needs metric and model"):
        plan_precision(report, max_metric_drop=0.1)
    with pytest.raises(InputError, match="not a precision plan"):
        PrecisionPlan.from_dict({"precision": {"a": "int3"}})


@pytest.mark.usefixtures("any_precision")
@pytest.mark.parametrize("form", ["rows", "histories"])
def test_saved_loaded_and_never_as_large_as_the_full_model(tmp_path: Path, form: str) -> None:
    model = classifier(d_model=64, form=form)
    save_classifier(model, tmp_path)
    plan = uniform_plan(model)
    quantized, applied = apply_precision(model, plan)
    save_quantized(quantized, applied, tmp_path, plan=plan)
    loaded = load_quantized_classifier(tmp_path)
    data = batch(9)
    targets = (torch.arange(9), data.lengths - 1) if form == "histories" else None
    with torch.inference_mode():
        assert torch.equal(loaded(data, targets), quantized(data, targets))
        assert divergence(model(data, targets), loaded(data, targets)) < 1e-3
    size = (tmp_path / "model.quantized.safetensors").stat().st_size
    assert size < 0.3 * (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.usefixtures("any_precision")
def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = classifier()
    plan = uniform_plan(model)
    quantized, applied = apply_precision(model, plan)
    save_classifier(model, tmp_path)
    save_quantized(quantized, applied, tmp_path, plan=plan)
    weights, plan_file = tmp_path / "model.quantized.safetensors", tmp_path / "precision.json"
    whole, content = weights.read_bytes(), plan_file.read_text()
    weights.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="damaged"):
        load_quantized_classifier(tmp_path)
    weights.write_bytes(whole)
    plan_file.write_text(json.dumps(json.loads(content) | {"got": dict.fromkeys(json.loads(content)["got"], "bf16")}))
    with pytest.raises(InputError, match="does not fit"):
        load_quantized_classifier(tmp_path)
    plan_file.write_text(json.dumps({"format": 1}))
    with pytest.raises(InputError, match="quantize"):
        load_quantized_classifier(tmp_path)
    plan_file.write_text(content)
    save_classifier(classifier(d_model=16), tmp_path)
    with pytest.raises(InputError, match="another model"):
        load_quantized_classifier(tmp_path)
    weights.unlink()
    save_classifier(model, tmp_path)
    with pytest.raises(InputError, match="missing"):
        load_quantized_classifier(tmp_path)


@pytest.mark.usefixtures("any_precision")
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux tells it")
def test_loading_takes_no_more_memory_than_the_file(tmp_path: Path) -> None:
    wide, deep = 4096, 6
    big = nn.Sequential(*(nn.Linear(wide, wide, bias=False) for _ in range(deep)))
    plan = uniform_plan(big)
    quantized, applied = apply_precision(big, plan)
    save_quantized(quantized, applied, tmp_path, plan=plan)
    size = (tmp_path / "model.quantized.safetensors").stat().st_size
    code = f"""
import resource, pathlib
from torch import nn
from balancer.models.quantization import load_quantized
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model, _ = load_quantized(lambda: nn.Sequential(*(nn.Linear({wide}, {wide}, bias=False) for _ in range({deep}))), pathlib.Path({str(tmp_path)!r}))
total = sum(int(buffer.sum()) for buffer in model.buffers())
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 1.4 * size  # the full model would take four times the file
