"""Every kind of layer in every precision: batches without rows, dtypes, conversions, reading of weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models import SequenceBatch
from balancer.models.quantization import apply_precision, modules, uniform_plan
from balancer.models.quantization.modules import Int8Linear, LowLinear, RowwiseLinear, quantize_rows
from tests.models.quantization.kinds import BACKENDS, DTYPES, KINDS, PRECISIONS, ROUNDING, distance, quantized
from tests.models.quantization.test_quantization import batch, classifier

pytestmark = pytest.mark.usefixtures("every_precision")


def of(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_have_shape_and_dtype_of_the_full_layer_and_its_values(kind: str, precision: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = KINDS[kind].make().to(dtype).eval()
    other = quantized(model, precision)
    assert distance(other, model, of(KINDS[kind].data(7), dtype)) < ROUNDING[precision]
    for shape in KINDS[kind].empty:
        nothing = of(KINDS[kind].data(1), dtype).new_zeros(shape)
        with torch.no_grad():
            found, expected = other(nothing), model(nothing)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_another_backend_has_shape_dtype_and_values_too(backend: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype).eval()
    other = quantized(model, "int8", backend)
    for shape in ((5, 16), (2, 3, 16), (16,)):
        assert distance(other, model, torch.randn(shape).to(dtype)) < 0.05
    for shape in ((0, 16), (2, 0, 16)):
        assert other(torch.zeros(shape, dtype=dtype)).shape == (*shape[:-1], 4)
    weight: Any = other[0]
    assert (weight.weight.double() - model[0].weight.double()).abs().max() < 0.01
    assert weight.bias.dtype == dtype
    assert distance(copy.deepcopy(other).double(), copy.deepcopy(model).double(), torch.randn(4, 16).double()) < 0.05
    with pytest.raises(InputError, match="bitsandbytes can't be exported"):
        torch.export.export(other, (torch.randn(4, 16).to(dtype),))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("inputs", "outputs"), [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_layers_without_channels(inputs: int, outputs: int, precision: Any) -> None:
    model = nn.Sequential(nn.Linear(inputs, outputs)).eval()
    other = quantized(model, precision)
    for shape in ((3, inputs), (0, inputs), (2, 0, inputs)):
        torch.testing.assert_close(other(torch.ones(shape)), model(torch.ones(shape)), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("given", [{}, {"form": "histories"}, {"attention": "sparse"}, {"numeric_encoding": "periodic"}], ids=str)
def test_a_classifier_takes_a_batch_without_rows(given: dict[str, Any], precision: Any) -> None:
    model, whole = classifier(**given), batch(3)
    other = quantized(model, precision)
    empty = SequenceBatch(whole.values[:0], whole.lengths[:0], whole.mask[:0])
    targets = (torch.arange(0), empty.lengths) if given.get("form") else None
    with torch.inference_mode():
        assert other(empty, targets).shape == model(empty, targets).shape


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
def test_a_classifier_in_every_dtype_before_and_after(precision: Any, dtype: torch.dtype) -> None:
    model, whole = classifier(), batch(9)
    data = SequenceBatch(whole.values.to(dtype), whole.lengths, whole.mask)
    after = quantized(model, precision).to(dtype)
    model = model.to(dtype)
    before = quantized(model, precision)
    with torch.inference_mode():
        expected = model(data)
        for found in (before(data), after(data)):
            assert found.dtype == expected.dtype == dtype
            assert (found.double() - expected.double()).abs().max() < 0.04 * expected.double().abs().max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_after_quantization_keep_the_stored_tensors(kind: str, precision: Any) -> None:
    torch.manual_seed(0)
    model = KINDS[kind].make().eval()
    other, x = quantized(model, precision), KINDS[kind].data(6)
    with torch.no_grad():
        expected = other(x)
        for dtype in DTYPES[1:]:
            converted = copy.deepcopy(other).to(dtype)
            assert distance(converted, copy.deepcopy(model).to(dtype), of(x, dtype)) < 0.02
            assert torch.equal(converted.float()(x), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_autocast_decides_on_the_dtype_as_in_the_full_model(precision: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        model = KINDS["linear"].make().to(dtype).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert distance(quantized(model, precision), model, torch.randn(4, 8).to(dtype)) < 0.03


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_that_the_full_layer_refuses_are_refused(precision: Any) -> None:
    model = quantized(nn.Sequential(nn.Linear(8, 3)), precision)
    with pytest.raises(InputError, match="floating-point"):
        model(torch.ones(2, 8, dtype=torch.int64))
    for shape in ((2, 7), (2, 9), ()):
        with pytest.raises(InputError, match=r"shape \(\.\.\., 8\)"):
            model(torch.ones(shape))
    with pytest.raises(IndexError):
        quantized(nn.Sequential(nn.Embedding(4, 3)), precision)(torch.tensor([4]))


class Reading(nn.Module):
    """A model that reads the weights of its layers without calling these."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.project = nn.Linear(8, 8)

    def forward(self, index: Tensor) -> Tensor:
        """Embed, project and score by the embedding."""
        rows = F.linear(F.embedding(index, self.embed.weight), self.project.weight, self.project.bias)
        return rows @ self.embed.weight.t() + self.project.out_features + self.embed.num_embeddings


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_that_is_read_is_that_of_the_layer(precision: Any, dtype: torch.dtype) -> None:
    model = Reading().to(dtype).eval()
    assert distance(quantized(model, precision), model, torch.arange(9)) < ROUNDING[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_state_dict_replaces_what_was_packed(kind: str, precision: Any) -> None:
    first, second = (quantized(KINDS[kind].make(), precision) for _ in range(2))
    x = KINDS[kind].data(5)
    with torch.no_grad():
        for assign in (False, True):
            changed = copy.deepcopy(first)
            assert not torch.equal(changed(x), second(x))
            changed.load_state_dict(second.state_dict(), assign=assign)
            assert torch.equal(changed(x), second(x))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_of_inputs(precision: Any) -> None:
    torch.manual_seed(0)
    model = KINDS["linear"].make().eval()
    x = torch.randn(4, 8, requires_grad=True)
    gradients = [torch.autograd.grad(each(x).sum(), x)[0] for each in (model, quantized(model, precision))]
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()


def test_values_that_a_precision_can_not_represent_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight[1, 2] = 1e5
    with pytest.raises(InputError, match=r"0 has a weight of 1e\+05, but fp16 ends at 6\.55e\+04"):
        apply_precision(model, uniform_plan(model, "fp16"))
    model = model.double()
    with torch.no_grad():
        model[0].weight[1, 2] = 1e39
    with pytest.raises(InputError, match="int8 ends at"):
        apply_precision(model, uniform_plan(model, "int8"))


@pytest.mark.parametrize("grouped", [False, True], ids=["as here", "grouped"])
@pytest.mark.parametrize("layer", ["int8", "bf16", "fp32"])
def test_rows_do_not_depend_on_their_place_with_any_number_of_channels(layer: str, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if grouped:
        monkeypatch.setattr(modules, "_ONE_KERNEL", False)
    torch.manual_seed(0)
    for inputs in (1, 3, 5, 9, 16, 17, 18, 31, 50):
        for outputs in (1, 2, 5, 9, 15, 17):
            weight = torch.randn(outputs, inputs)
            made = {"int8": lambda: Int8Linear(*quantize_rows(weight), None), "bf16": lambda: LowLinear(weight.bfloat16(), None)}  # noqa: B023
            linear = made.get(layer, lambda: RowwiseLinear(weight, None))()  # noqa: B023
            x = torch.randn(96, inputs)
            together = linear(x)
            for first, count in ((0, 1), (3, 1), (14, 2), (7, 40), (30, 33)):
                assert torch.equal(linear(x[first : first + count]), together[first : first + count]), (inputs, outputs, first, count)


def test_dtypes_that_can_not_be_quantized_are_refused_by_name() -> None:
    for layer in (nn.Linear(4, 3, dtype=torch.complex64), nn.Linear(4, 3).to(torch.float8_e4m3fn)):
        model = nn.Sequential(nn.ReLU(), layer)
        with pytest.raises(InputError, match=r"the weight of 1 is torch\..*convert the model to one of float64"):
            uniform_plan(model)
