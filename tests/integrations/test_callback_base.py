"""Functions that the callbacks share: scores, pools, metrics, state on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balancer.errors import InputError
from balancer.integrations.callback_base import (
    check_pool,
    logits_to_scores,
    pool_rows,
    read_state,
    sampler_scores,
    sampling_metrics,
    save_state,
    two_columns,
)
from balancer.sampling.core import SamplerCore
from balancer.sampling.torch_sampler import AdaptiveSampler
from balancer.sampling.weights import SamplingWeights


def test_logits_become_the_probabilities_that_torch_computes() -> None:
    logits = np.random.default_rng(0).normal(scale=200, size=(50, 3))
    np.testing.assert_allclose(logits_to_scores(logits), torch.softmax(torch.as_tensor(logits), dim=1).numpy(), atol=1e-15)
    second = torch.sigmoid(torch.as_tensor(logits[:, 0])).numpy()
    for one in (logits[:, 0], logits[:, :1]):
        np.testing.assert_allclose(logits_to_scores(one), np.stack([1 - second, second], axis=1), atol=1e-15)
    np.testing.assert_allclose(two_columns(second[:, None]), two_columns(second))
    assert two_columns(logits) is logits
    with pytest.raises(InputError, match="logits must be"):
        logits_to_scores(np.zeros((2, 3, 4)))


@pytest.mark.parametrize("kind", [SamplerCore, AdaptiveSampler])
def test_scores_are_those_of_the_natural_stream_where_the_loss_is_the_samplers(kind: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 1))
    labels = np.repeat([0, 1], [90, 10])
    np.testing.assert_array_equal(sampler_scores(kind(labels, epochs=2), logits), logits_to_scores(logits))
    natural = sampler_scores(kind(labels, epochs=2, compensated=True), logits)
    np.testing.assert_allclose(natural, logits_to_scores(logits + np.log(10 / 90)))


def test_nan_is_reported_by_the_sampler_with_its_row() -> None:
    sampler = SamplerCore([0, 0, 0, 1], policy="rule", epochs=1)
    with pytest.raises(InputError, match="row 1 is not finite"):
        sampler.update([0, 1], logits_to_scores([[0.0, 1.0], [np.nan, 1.0]]))


def test_a_pool_is_a_whole_small_table_or_distinct_rows_of_a_large_one() -> None:
    np.testing.assert_array_equal(pool_rows(5, 5, 0, 0), np.arange(5))
    rows = pool_rows(1000, 100, 3, 2)
    assert len(np.unique(rows)) == 100 and (np.diff(rows) > 0).all() and rows.max() < 1000
    np.testing.assert_array_equal(rows, pool_rows(1000, 100, 3, 2))
    assert not np.array_equal(rows, pool_rows(1000, 100, 3, 3))
    assert check_pool(0) == 0
    for wrong in (-1, 0.5, True, None):
        with pytest.raises(InputError, match="pool"):
            check_pool(wrong)  # type: ignore[arg-type]


def test_metrics_are_named_by_class() -> None:
    metrics = sampling_metrics(["ok", "fraud"], SamplingWeights(np.array([0.8, 0.2]), 1.5), "sampling/")
    assert metrics == {"sampling/share_ok": 0.8, "sampling/share_fraud": 0.2, "sampling/hardness": 1.5}


@pytest.mark.parametrize("kind", [SamplerCore, AdaptiveSampler])
def test_state_is_the_same_after_saving_and_reading(kind: Any, tmp_path: Path) -> None:
    def make() -> Any:
        return kind([0] * 40 + [1] * 4, policy="rule", epochs=3)

    one, other = make(), make()
    one.update([0, 0, 1], [0.1, 0.6, 0.7], rows=[1, 5, 41], row_score=[0.2, 0.9, 0.4])
    save_state(tmp_path / "s", {"sampler": one.state_dict(), "updates": 1})
    state = read_state(tmp_path / "s")
    assert state["updates"] == 1
    other.load_state_dict(state["sampler"])
    assert other.weights.to_dict() == one.weights.to_dict()
    save_state(tmp_path / "t", {"sampler": other.state_dict(), "updates": 1})
    assert (tmp_path / "s").read_bytes() == (tmp_path / "t").read_bytes()


def test_corrupt_files_and_other_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        read_state(tmp_path / "none")
    save_state(tmp_path / "s", {"a": np.arange(100)})
    content = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="can't be read"):
        read_state(tmp_path / "s")
    from balancer.files import write_arrays

    write_arrays(tmp_path / "f", {"a": np.arange(3)}, {"other": 1})
    with pytest.raises(InputError, match="no state of an adaptive sampler"):
        read_state(tmp_path / "f")
