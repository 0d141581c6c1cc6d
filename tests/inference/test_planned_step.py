"""The native step of models in low precision: INT8 layers to the last bit, whole models as torch's step."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from balancer.cli import main
from balancer.inference.scoring import score_rows
from balancer.inference.streaming import RowStream, score_streaming
from balancer.models import Classifier
from balancer.models.attention import SparseAttention
from balancer.models.attention.scores import LandmarkEntropy
from balancer.models.quantization.layers import Layer, Precision, find_layers
from balancer.models.quantization.modules import Int8Linear, LowLinear, int8_linear
from balancer.models.quantization.swapping import convert_layer, with_module
from balancer.models.step import INSTRUCTION_SETS, NativeStep, absence, instruction_set, refuses
from balancer.runs.trained_run import TrainedRun, training_table
from balancer.serving.models.loaded_model import LoadedModel
from tests.inference.test_native_step import PARTS, classifier, history, stepped, stream

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(absence() is not None, reason=f"the native step is not here: {absence()}")

Choice = Callable[[int, Layer], Precision]
PRECISIONS: dict[str, Choice] = {
    "int8": lambda number, layer: "int8",
    "fp32": lambda number, layer: "fp32",
    "bf16": lambda number, layer: "bf16",
    "mixed": lambda number, layer: ("int8", "bf16", "fp32")[number % 3],  # type: ignore[return-value]
    "mixed otherwise": lambda number, layer: ("int8", "int8", "fp32", "bf16", "int8")[number % 5],  # type: ignore[return-value]
    "tables in int8": lambda number, layer: "fp32" if layer.kind == "linear" else "int8",
    "tables in bf16": lambda number, layer: "fp32" if layer.kind == "linear" else "bf16",
}
MODELS = ("window", "sparse", "dense", "two kinds", "score learned", "rows", "rows, sparse", "rows, longer than a piece")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planned(model: Classifier, choose: Choice) -> Classifier:
    """A copy whose layers have the chosen precisions, whatever instructions there are."""
    found: nn.Module = copy.deepcopy(model).eval().requires_grad_(False)
    for number, layer in enumerate(find_layers(found)):
        for name, module in convert_layer(found, layer, choose(number, layer)).items():
            found = with_module(found, name, module)
    assert isinstance(found, Classifier)
    return found


def odd_rows(inputs: int) -> NDArray[np.float32]:
    """Rows of every size, with ties, zeros, NaN and infinity."""
    rows = np.random.default_rng(0).normal(size=(37, inputs)).astype(np.float32)
    rows[3] = 0
    rows[4, 1] = np.nan
    rows[5, 0] = np.inf
    rows[6] *= np.float32(1e-40)
    rows[7] *= np.float32(1e30)
    rows[8] *= np.float32(1e-37)
    rows[9] = np.round(rows[9] * 20) / 2
    rows[9, 0] = 127
    rows[10] = 1
    return rows


def layers_of(model: Classifier) -> dict[str, nn.Module]:
    """The linear layers of the second block and the head, by the names of the native step."""
    block = model.blocks[1]
    attention = block.attention
    assert isinstance(attention, SparseAttention)
    score = attention.core.score
    assert isinstance(score, LandmarkEntropy)
    layers = {"query": attention.query, "key_value": attention.key_value, "score": score.landmarks, "out": attention.out}
    return {**layers, "ff1": block.get_submodule("ff1"), "ff2": block.get_submodule("ff2"), "head": model.head.get_submodule("project")}


def computed(step: NativeStep, name: str, x: NDArray[np.float32], outputs: int) -> NDArray[np.float32]:
    """Outputs (R, N) of a layer of the second block, without padding."""
    found = step.multiply(name, x, block=1)
    if name != "key_value":
        return found[:, :outputs]
    half = found.shape[1] // 2
    return np.concatenate([found[:, : outputs // 2], found[:, half : half + outputs // 2]], axis=1)


@pytest.mark.parametrize(("d_model", "heads"), [(16, 2), (20, 5), (64, 4), (128, 4), (256, 8), (600, 4)])
def test_int8_layers_give_the_bits_of_the_operator(d_model: int, heads: int) -> None:
    """In every instruction set; the second map of 600 channels has more inputs than a sum in float takes."""
    model = planned(classifier(d_model=d_model, num_heads=heads, attention="sparse", history_length=64), PRECISIONS["int8"])
    layers = layers_of(model)
    for name in ("ff2", "out"):  # the largest sums that there are
        layers[name].stored[0] = 127  # type: ignore[index]
        layers[name].stored[1] = -127  # type: ignore[index]
    layers["ff1"].stored_bias = None
    steps = [NativeStep(model, instruction_set=number) for number in range(len(INSTRUCTION_SETS))]
    for name, layer in layers.items():
        assert isinstance(layer, Int8Linear)
        x = odd_rows(layer.in_features)
        expected = int8_linear(torch.tensor(x), layer.stored, layer.scale, layer.stored_bias).numpy()
        for step in steps:
            found = computed(step, name, x, layer.out_features)
            np.testing.assert_array_equal(found, expected)
            assert (np.signbit(found) == np.signbit(expected))[np.isfinite(expected)].all()


def test_bfloat16_layers_agree_within_their_rounding() -> None:
    model = planned(classifier(d_model=64, attention="sparse", history_length=64), PRECISIONS["bf16"])
    step = NativeStep(model)
    for name, layer in layers_of(model).items():
        assert isinstance(layer, LowLinear)
        x = odd_rows(layer.in_features)[11:]
        expected = layer(torch.tensor(x)).numpy()
        found = computed(step, name, x, layer.out_features)
        # The sum before it is rounded differs in its last bits, more for terms that cancel.
        np.testing.assert_allclose(found, expected, rtol=2**-7, atol=1e-5)
        assert (found == expected).mean() > 0.95
        np.testing.assert_array_equal(torch.tensor(found).bfloat16().float().numpy(), found)


PAIRS = [*((name, "int8") for name in MODELS), *((name, other) for name in ("sparse", "rows") for other in PRECISIONS if other != "int8")]


@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_planned_models_are_computed_as_by_torch(name: str, precision: str) -> None:
    """A last bit may decide how a number is rounded: rarely, and with the effect of one rounding."""
    rounds = precision not in ("fp32", "tables in int8")
    model = planned(classifier(**PARTS[name]), PRECISIONS[precision])
    assert refuses(model) is None
    assert RowStream(model, CPU).uses == "native"
    values = history(model, 75)
    expected, _ = stepped(stream(model, "torch"), values)
    found, _ = stepped(stream(model, "native"), values)
    apart = np.abs(found - expected).max(axis=1)
    assert apart.max() <= (0.01 if rounds else 1e-6)
    assert np.median(apart) <= (5e-4 if "bf16" in precision else 1e-6)


@pytest.mark.parametrize("precision", ["int8", "bf16", "mixed", "mixed otherwise", "tables in bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_every_instruction_set_and_call_gives_the_same_bits(name: str, precision: str) -> None:
    model = planned(classifier(**PARTS[name]), PRECISIONS[precision])
    values = history(model, 50)
    results, states = [], []
    for number in range(len(INSTRUCTION_SETS)):
        step = NativeStep(model, instruction_set=number)
        state = step.start()
        results.append(np.concatenate([step.advance(row[None], [state]) for row in values]))
        states.append(state.to_bytes())
    for result, packed in zip(results[1:], states[1:], strict=True):
        np.testing.assert_array_equal(result, results[0])
        assert packed == states[0]
    native = stream(model, "native")
    counts = [0, 3, 49, 17, 31]
    several = [native.read(values[native.first_needed(count - 1) if count else 0 : count], count) for count in counts]
    together, _ = native.advance_many(values[counts], several)
    np.testing.assert_array_equal(together, results[0][counts])


def test_weights_that_are_no_numbers_give_scores_that_are_none() -> None:
    model = classifier(attention="window")
    with torch.no_grad():
        model.blocks[0].ff_norm.weight[0] = math.nan  # type: ignore[index]
    found, _ = stepped(stream(planned(model, PRECISIONS["int8"]), "native"), history(model, 3))
    assert np.isnan(found).all()


def test_other_dtypes_are_named() -> None:
    model = planned(classifier(attention="window"), lambda number, layer: "fp16" if number == 3 else "int8")
    assert "layers in float16, as " in str(refuses(model))
    assert RowStream(model, CPU).uses == "torch"
    double = planned(classifier(attention="window").double(), PRECISIONS["int8"])
    assert "gives float64" in str(refuses(double))


def test_instructions_can_be_restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "portable")
    assert instruction_set() == 0
    assert NativeStep(classifier(attention="window"))._struct.isa == 0
    monkeypatch.delenv("BALANCER_INSTRUCTIONS")
    assert NativeStep(classifier(attention="window"))._struct.isa == instruction_set()


def test_a_quantized_run_is_scored_by_the_native_step(
    tiny_run: Path, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row at a time and in batches, by the command and in the service."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    assert main(["quantize", str(run), "--max-drop", "0.5", "--prefer", "size"]) == 0
    loaded = TrainedRun.load(run, precision="quantized")
    assert loaded.model is not None
    assert any(isinstance(module, Int8Linear) for module in loaded.model.modules())
    assert RowStream(loaded.model, loaded.device).uses == "native"
    service = LoadedModel.load(run, "run", "quantized")
    assert service.stream is not None
    assert service.stream.uses == "native"
    monkeypatch.setenv("BALANCER_STREAM_STEP", "native")  # no other is taken
    dataset = training_table(loaded.folder)
    rows = np.arange(len(dataset.store))
    network = [score(loaded.model, dataset, rows, device=loaded.device) for score in (score_rows, score_streaming)]
    blended = []
    for name, flags in (("batch", ()), ("stream", ("--streaming",))):
        out = tmp_path / f"{name}.parquet"
        command = ["score", str(run), "--input", str(tiny_table), "--output", str(out), "--precision", "quantized", *flags]
        assert main(command) == 0
        blended.append(pl.read_parquet(out)["score"].to_numpy())
    for one, other in (network, blended):
        apart = np.abs(one - other)
        assert apart.max() < 2e-3
        assert np.quantile(apart, 0.9) < 1e-6
