"""TabularEmbedding: fields as tokens; the last one represents the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balancer.errors import InputError
from balancer.models import Classifier, ModelConfig, SequenceBatch, TabularEmbedding, load_classifier, save_classifier

RNG = np.random.default_rng(0)


def make(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {"history_length": 1, "d_model": 8, "num_heads": 2, "embedding": "tabular", **changes}
    return ModelConfig(("a", "b"), ("c",), (4,), ([-2, 0, 2], [-2, 1, 2]), **fields)


def batch(rows: int = 6) -> SequenceBatch:
    values = np.concatenate([RNG.normal(size=(rows, 1, 2)), RNG.integers(0, 4, (rows, 1, 1))], -1).astype(np.float32)
    return SequenceBatch.from_windows(values, np.minimum(np.arange(rows), 1))


def embedding(**changes: Any) -> TabularEmbedding:
    torch.manual_seed(0)
    return TabularEmbedding(make(**changes))


@pytest.mark.parametrize("encoding", ["piecewise", "periodic"])
def test_shape_lengths_and_padding(encoding: str) -> None:
    given = batch()
    out = embedding(numeric_encoding=encoding, cycles={"b": 7}).eval()(given)
    assert out.values.shape == (6, 4, 8)
    assert out.lengths.tolist() == [0, 4, 4, 4, 4, 4]
    assert not out.values[0].any()
    garbage = SequenceBatch(given.values.masked_fill(~given.mask[..., None], torch.nan), given.lengths, given.mask)
    assert torch.equal(out.values, embedding(numeric_encoding=encoding, cycles={"b": 7}).eval()(garbage).values)


def test_a_missing_number_leaves_its_token_and_no_other() -> None:
    part = embedding().eval()
    given = batch()
    values = given.values.clone()
    values[:, 0, 0], values[:, 0, 2] = torch.nan, 99
    out = part(SequenceBatch(values, given.lengths, given.mask)).values[1:]
    torch.testing.assert_close(out[:, 0], part.get_parameter("token.weight")[0].expand(5, 8))
    unseen = part.get_parameter("token.weight")[2] + part.get_parameter("categorical.0.weight")[0]
    torch.testing.assert_close(out[:, 2], unseen.expand(5, 8))
    torch.testing.assert_close(out[:, [1, 3]], part(given).values[1:, [1, 3]])


@pytest.mark.parametrize("attention", ["dense", "window", "sparse"])
def test_every_field_weighs_and_learns(attention: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(make(attention=attention))
    given = batch(60)
    model.loss(model(given), torch.arange(60) % 2).backward()
    for name, parameter in model.embedding.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    model.eval()
    scores = model(given)
    for field in range(3):
        changed = given.values.clone()
        changed[..., field] = 1 - changed[..., field] if field < 2 else (changed[..., field] + 1) % 4
        assert (model(SequenceBatch(changed, given.lengths, given.mask))[1:] != scores[1:]).any()
    save_classifier(model, tmp_path)
    assert torch.equal(load_classifier(tmp_path)(given), scores)


def test_an_encoder_that_only_sums_gives_the_same() -> None:
    part = embedding().eval()
    assert part.numeric is not None
    given, own = batch(), part.numeric
    expected = part(given).values

    class Sum(torch.nn.Module):
        def forward(self, values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
            summed: torch.Tensor = own(values, present)
            return summed

    part.numeric = Sum()  # as a quantized encoder does
    torch.testing.assert_close(part(given).values, expected)


def test_field_dropout_hides() -> None:
    part = embedding(field_dropout=0.999999, dropout=0)
    out = part(batch()).values[1:]
    torch.testing.assert_close(out[:, :2], part.get_parameter("token.weight")[:2].expand(5, 2, 8))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match="set history_length to 1"):
        Classifier(make(history_length=3))
    with pytest.raises(InputError, match="2 rows long"):
        embedding()(SequenceBatch.from_windows(np.ones((1, 2, 3), np.float32), np.array([2])))
    with pytest.raises(InputError, match="has 2 fields"):
        embedding()(SequenceBatch.from_windows(np.ones((1, 1, 2), np.float32), np.array([1])))
