"""SequenceBatch: left-aligned, zero in the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from balancer.models import SequenceBatch


def test_mask_marks_the_first_positions() -> None:
    batch = SequenceBatch.from_windows(np.ones((3, 4, 2), np.float32), np.array([0, 1, 4]))
    assert batch.mask.int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch.lengths.dtype == torch.int64


def test_with_values_zeroes_padding_and_last_finds_the_target() -> None:
    values = np.arange(24, dtype=np.float32).reshape(3, 4, 2) + 1
    batch = SequenceBatch.from_windows(values, np.array([0, 2, 4]))
    zeroed = batch.with_values(batch.values)
    assert torch.equal(zeroed.values, torch.from_numpy(values) * batch.mask[..., None])
    last = batch.last()
    assert last.values[:, 0].tolist() == [[0, 0], values[1, 1].tolist(), values[2, 3].tolist()]
    assert last.lengths.tolist() == [0, 1, 1]
    assert torch.equal(last.last().values, last.values)


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [((2, 3), [1, 1]), ((2, 3, 1), [1]), ((2, 3, 1), [1, 4]), ((2, 3, 1), [-1, 1])],
    ids=["2d", "rows", "long", "negative"],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="given"):
        SequenceBatch.from_windows(np.zeros(shape, np.float32), np.array(lengths))


def test_to_keeps_everything() -> None:
    batch = SequenceBatch.from_windows(np.ones((2, 3, 1), np.float32), np.array([1, 3]))
    moved = batch.to("meta")
    assert all(tensor.is_meta for tensor in (moved.values, moved.lengths, moved.mask))
