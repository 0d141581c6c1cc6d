"""Row by row gives the scores of the table, in every form; states can be computed in one pass; rows do not
depend on other rows of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from balancer.data.dataset import Dataset, load_dataset
from balancer.errors import InputError
from balancer.inference.scoring import score_rows
from balancer.inference.streaming import RowStream, score_streaming
from balancer.models import Classifier, ModelConfig
from balancer.serving.scoring.state import pack, unpack
from tests.data.test_features import SPEC, make_table

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(make_table(300, 1, 40.0), SPEC)


def classifier(dataset: Dataset, form: str, attention: str, history_length: int) -> Classifier:
    torch.manual_seed(0)
    schema = dataset.schema
    return Classifier(
        ModelConfig(
            schema.numeric_fields,
            schema.categorical_fields,
            schema.cardinalities,
            [[-1.0, 0.0, 1.0, 5.0]] * len(schema.numeric_fields),
            history_length=history_length,
            d_model=16,
            num_heads=2,
            attention=attention,
            attention_window=4,
            global_nodes=3,
            form=form,
        )
    ).eval()


CASES = [("rows", "dense", 6), ("histories", "sparse", 20), ("histories", "dense", 20), ("histories", "window", 21)]


@pytest.mark.parametrize(("form", "attention", "history_length"), CASES)
def test_row_by_row_is_the_table(dataset: Dataset, form: str, attention: str, history_length: int) -> None:
    model, rows = classifier(dataset, form, attention, history_length), np.arange(len(dataset.store))
    whole = score_rows(model, dataset, rows, device=CPU)
    single = score_streaming(model, dataset, rows, device=CPU)
    np.testing.assert_allclose(single, whole, atol=1e-5)
    np.testing.assert_array_equal(score_streaming(model, dataset, rows[50:90], device=CPU), single[50:90])
    assert RowStream(model, CPU).has_state == (form == "histories" and attention != "dense")


@pytest.mark.parametrize(("form", "attention", "history_length"), CASES)
def test_a_state_is_read_in_one_pass_and_survives_as_bytes(dataset: Dataset, form: str, attention: str, history_length: int) -> None:
    stream, values = RowStream(classifier(dataset, form, attention, history_length), CPU), dataset.store.values
    state = stream.start()
    for row in range(62):
        if row in (1, 9, 10, 11, 20, 21, 40, 60):
            first = stream.first_needed(row - 1)
            read, _ = stream.step(values[row], stream.read(values[first:row], row))
            stepped, _ = stream.step(values[row], state)
            np.testing.assert_allclose(read, stepped, atol=1e-5)
            packed = pack(state)
            kept = unpack(packed, row, stream, values[stream.next_begins(row) : row])
            assert kept is not None
            np.testing.assert_array_equal(stream.step(values[row], kept)[0], stepped)
            assert pack(kept) == packed
            assert unpack(packed[:-1], row, stream) is None
        _, state = stream.step(values[row], state)
    assert len(pack(state)) < 60_000


def test_what_was_attended_sums_to_one(dataset: Dataset) -> None:
    stream = RowStream(classifier(dataset, "histories", "sparse", 20), CPU)
    weight = stream.attended(dataset.store.values[:15])
    assert weight.shape == (15,)
    assert weight.sum() == pytest.approx(1, abs=1e-5)


def test_attention_without_a_state_says_so(dataset: Dataset) -> None:
    model = classifier(dataset, "histories", "dense", 20)
    with pytest.raises(InputError, match="no state of constant size"):
        model.read(torch.zeros(3, len(model.config.numeric_fields) + len(model.config.categorical_fields)))
