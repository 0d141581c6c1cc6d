"""TransactionEmbedding: positions from the target, unseen categories, hidden fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from balancer.errors import InputError
from balancer.models import ModelConfig, SequenceBatch, TransactionEmbedding

RNG = np.random.default_rng(0)


def make(**changes: Any) -> TransactionEmbedding:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"history_length": 6, "d_model": 8, "num_heads": 2, **changes}
    return TransactionEmbedding(ModelConfig(("a", "b"), ("c",), (4,), ([-2, 0, 2], [-2, 1, 2]), **fields))


def windows(rows: int, length: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.concatenate([RNG.normal(size=(rows, length, 2)), RNG.integers(0, 4, (rows, length, 1))], -1).astype(np.float32)


def test_a_short_history_aligns_with_a_long_one() -> None:
    embedding = make().eval()
    long = windows(3, 6)
    short = np.concatenate([long[:, 4:], np.full((3, 4, 3), 9, np.float32)], 1)
    full = embedding(SequenceBatch.from_windows(long, np.full(3, 6)))
    part = embedding(SequenceBatch.from_windows(short, np.full(3, 2)))
    assert torch.equal(part.values[:, :2], full.values[:, 4:])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 7.5])
def test_padding_changes_nothing_and_gives_zeros(garbage: float) -> None:
    embedding = make().eval()
    values = windows(4, 6)
    lengths = np.array([0, 1, 3, 6])
    clean = embedding(SequenceBatch.from_windows(values, lengths))
    values[~clean.mask.numpy()] = garbage
    dirty = embedding(SequenceBatch.from_windows(values, lengths))
    assert torch.equal(clean.values, dirty.values)
    assert not dirty.values[~dirty.mask].any()


@pytest.mark.parametrize("code", [4, -1, 1e9, np.nan])
def test_unknown_codes_count_as_unseen(code: float) -> None:
    embedding = make().eval()
    values = windows(1, 2)
    values[0, 1, 2] = code
    odd = embedding(SequenceBatch.from_windows(values, np.array([2]))).values
    values[0, 1, 2] = 0
    assert torch.equal(odd, embedding(SequenceBatch.from_windows(values, np.array([2]))).values)


def test_code_zero_is_trained() -> None:
    embedding = make(field_dropout=0)
    values = windows(400, 6)
    values[..., 2] = 1
    embedding(SequenceBatch.from_windows(values, np.full(400, 6))).values.sum().backward()
    table = embedding.categorical[0]
    assert isinstance(table, torch.nn.Embedding)
    assert table.weight.grad is not None
    assert table.weight.grad[0].any()


def test_field_dropout_hides_a_field_over_the_whole_window() -> None:
    embedding = make(field_dropout=0.5, dropout=0)
    values = np.repeat(windows(300, 1), 6, axis=1)  # six equal transactions: rows differ along the window only by position
    out = embedding(SequenceBatch.from_windows(values, np.full(300, 6))).values
    content = out - embedding.position.weight.flip(0)
    category = embedding.get_parameter("categorical.0.weight")  # a category may also be dropped alone, so look at what is left without it
    numbers = torch.stack([content - vector for vector in category.unbind()])  # (4, B, n, d)
    steady = (numbers - numbers[:, :, :1]).abs().amax((0, 2, 3)) < 1e-6
    assert steady.float().mean() > 0.9  # but for the rare single categories, every position lacks the same fields
    distinct = {tuple(row) for row in (content[:, 0] * 1e3).round().int().tolist()}
    assert len(distinct) > 100


def test_hidden_everywhere_leaves_position_and_unseen_category() -> None:
    embedding = make(field_dropout=0.999999, dropout=0)
    out = embedding(SequenceBatch.from_windows(windows(5, 6), np.full(5, 6))).values
    assert isinstance(embedding.categorical[0], torch.nn.Embedding)
    expected = embedding.position.weight.flip(0) + embedding.categorical[0].weight[0]
    torch.testing.assert_close(out, expected.expand_as(out))


def test_what_does_not_fit_is_named() -> None:
    embedding = make()
    with pytest.raises(InputError, match="history is 6"):
        embedding(SequenceBatch.from_windows(windows(1, 7), np.array([7])))
    with pytest.raises(InputError, match="has 2 fields, the model was built for 3"):
        embedding(SequenceBatch.from_windows(windows(1, 6)[..., :2], np.array([6])))


def test_numeric_or_categorical_fields_alone() -> None:
    for config in (ModelConfig(("a",), (), (), ([0, 1],), history_length=3), ModelConfig((), ("c",), (4,), (), history_length=3)):
        out = TransactionEmbedding(config)(SequenceBatch.from_windows(np.ones((2, 3, 1), np.float32), np.array([1, 3])))
        assert out.values.shape == (2, 3, 64)
