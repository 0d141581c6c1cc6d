"""Numbers as sines and cosines, cycles, and that the default encoding has not changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balancer.errors import InputError
from balancer.models import Classifier, ModelConfig, SequenceBatch, TransactionEmbedding, load_classifier, save_classifier
from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.periodic import CycleEncoder, PeriodicEncoder

RNG = np.random.default_rng(0)
EDGES = ([-2, 0, 2], [0, 1, 6, 24])


def make(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "history_length": 6,
        "d_model": 8,
        "num_heads": 2,
        "numeric_encoding": "periodic",
        "cycles": {"hour": 24},
        **changes,
    }
    return ModelConfig(("amount", "hour"), ("c",), (4,), EDGES, **fields)


def batch(rows: int = 5) -> SequenceBatch:
    values = np.concatenate([RNG.normal(size=(rows, 6, 2)), RNG.integers(0, 4, (rows, 6, 1))], -1).astype(np.float32)
    return SequenceBatch.from_windows(values, np.arange(rows) % 6 + 1)


def test_the_default_draws_what_it_drew() -> None:
    torch.manual_seed(0)
    embedding = TransactionEmbedding(
        ModelConfig(("a", "b"), ("c",), (4,), ([-2, 0, 2], [-2, 1, 2]), history_length=6, d_model=8, num_heads=2)
    )
    sums = {name: tensor.double().sum().item() for name, tensor in embedding.state_dict().items()}
    assert list(sums) == ["numeric.slope", "numeric.step", "categorical.0.weight", "position.weight"]
    assert list(sums.values()) == pytest.approx([-0.5507170968, -0.7950964272, -0.0303869126, 0.2598216655], abs=1e-6)


def test_a_configuration_without_the_keys_is_the_default() -> None:
    content = make(numeric_encoding="piecewise", cycles=()).to_dict()
    del content["numeric_encoding"], content["cycles"]
    assert ModelConfig.from_dict(content) == make(numeric_encoding="piecewise", cycles=())
    assert ModelConfig.from_dict(make().to_dict()) == make(cycles=(("hour", 24.0),))


@pytest.mark.parametrize("kind", [PeriodicEncoder, PiecewiseLinearEncoder])
def test_each_sums_to_the_whole(kind: Any) -> None:
    torch.manual_seed(0)
    encoder = kind(EDGES, 8)
    values, present = torch.randn(50, 2) * 5, torch.rand(50, 2) > 0.3
    torch.testing.assert_close(encoder.per_field(values, present).sum(1), encoder(values, present))


def test_missing_is_nothing_and_huge_is_the_largest() -> None:
    encoder = PeriodicEncoder(EDGES, 8)
    there = torch.ones(1, 2, dtype=torch.bool)
    assert not encoder(torch.full((1, 2), torch.nan), there).any()
    assert not encoder(torch.ones(1, 2), ~there).any()
    for huge in (1e30, torch.inf):
        torch.testing.assert_close(encoder(torch.tensor([[huge, -huge]]), there), encoder(torch.tensor([[2.0, 0.0]]), there))


def test_scale_does_not_matter() -> None:
    torch.manual_seed(0)
    euros = PeriodicEncoder([[0, 1, 5, 90]], 8)
    torch.manual_seed(0)
    cents = PeriodicEncoder([[0, 100, 500, 9000]], 8)
    values, there = torch.rand(20, 1) * 100, torch.ones(20, 1, dtype=torch.bool)
    torch.testing.assert_close(euros(values, there), cents(values * 100, there), atol=1e-4, rtol=1e-4)


def test_a_cycle_comes_round() -> None:
    encoder = CycleEncoder([1], [24.0], 8)
    there = torch.ones(1, 2, dtype=torch.bool)
    at = {hour: encoder(torch.tensor([[0.0, hour]]), there) for hour in (0.01, 1.0, 12.0, 23.99, 25.0, -23.0)}
    for same in (25.0, -23.0):
        torch.testing.assert_close(at[1.0], at[same], atol=1e-5, rtol=1e-4)
    assert (at[0.01] - at[23.99]).norm() < 0.1 * (at[0.01] - at[12.0]).norm()
    for odd in (torch.nan, torch.inf):
        assert not encoder(torch.full((1, 2), odd), there).any()


def test_everything_learns_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Classifier(make())
    given = batch(40)
    model.loss(model(given), torch.arange(40) % 2).backward()
    for name, parameter in model.embedding.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    model.eval()
    dirty = SequenceBatch(given.values.masked_fill(~given.mask[..., None], torch.nan), given.lengths, given.mask)
    assert torch.equal(model(given), model(dirty))


@pytest.mark.parametrize("form", ["rows", "histories"])
def test_round_trip(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    model = Classifier(make(form=form)).eval()
    save_classifier(model, tmp_path)
    again = load_classifier(tmp_path)
    assert again.config == model.config
    given = batch()
    assert torch.equal(again.probabilities(given), model.probabilities(given))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numeric_encoding": "fourier"}, "numeric_encoding must be"),
        ({"cycles": {"day": 7}}, "'day', which is not a numeric field"),
        ({"cycles": {"hour": 0}}, "period of 'hour'"),
        ({"cycles": (("hour", 24), ("hour", 24.0))}, "twice"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_foreign_cycles_are_named() -> None:
    with pytest.raises(InputError, match="'cycles'"):
        ModelConfig.from_dict({**make().to_dict(), "cycles": [["hour"]]})
