"""Bin edges against scikit-learn's tree, and the looked-up encoding against the written-out one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from balancer.models import PiecewiseLinearEncoder, encoding, fit_edges

EDGES = [
    np.array([0, 1, 2.5, 2.75, 9], np.float32),
    np.array([-3, 4], np.float32),
    np.array([0, np.nextafter(np.float32(0), np.float32(1)), 1], np.float32),
]


def written_out(x: NDArray[np.float64], edges: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Piecewise-linear values and steps (R, bins) of one field, as their definition says."""
    low, high = edges[:-1].astype(np.float64), edges[1:].astype(np.float64)
    linear = np.clip((x[:, None] - low) / (high - low), 0, 1)
    step = (x[:, None] > low).astype(np.float64)
    step[:, 0] = 1
    missing = np.isnan(x)
    return np.where(missing[:, None], 0, linear), np.where(missing[:, None], 0, step)


def reference(encoder: PiecewiseLinearEncoder, values: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    total = np.zeros((len(values), encoder.slope.shape[-1]))
    for field, edges in enumerate(EDGES):
        linear, step = written_out(values[:, field], edges)
        bins = len(edges) - 1
        slope, jump = (weight[field, :bins].detach().double().numpy() for weight in (encoder.slope, encoder.step))
        total += (linear @ slope + step @ jump) * present[:, field, None]
    return total


def inputs() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    values = rng.uniform(-4, 10, (200, 3)).astype(np.float32).astype(np.float64)
    values[:, 2] = rng.choice([-1, 0, 0.5, 1, 2], 200)
    values[:5, 0] = [0, 1, 2.5, 2.75, 9]  # exactly on an edge
    values[5:8, 0] = [1e12, -1e12, np.nan]
    values[8:10, 1] = [np.inf, -np.inf]
    return values, rng.random((200, 3)) < 0.8


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_equals_the_written_out_encoding(grad: bool) -> None:
    torch.manual_seed(0)
    encoder = PiecewiseLinearEncoder(EDGES, 8)
    values, present = inputs()
    with torch.set_grad_enabled(grad):
        out = encoder(torch.from_numpy(values).float(), torch.from_numpy(present))
    np.testing.assert_allclose(out.detach().numpy(), reference(encoder, values, present), atol=2e-6)


def test_gradient_is_that_of_the_linear_map() -> None:
    torch.manual_seed(0)
    encoder = PiecewiseLinearEncoder(EDGES, 4)
    values, present = inputs()
    upstream = torch.randn(200, 4)
    encoder(torch.from_numpy(values).float(), torch.from_numpy(present)).backward(upstream)
    for field, edges in enumerate(EDGES):
        linear, step = written_out(values[:, field], edges)
        here = present[:, field, None] * upstream.double().numpy()
        for weight, code in ((encoder.slope, linear), (encoder.step, step)):
            assert weight.grad is not None
            np.testing.assert_allclose(weight.grad[field, : len(edges) - 1].numpy(), code.T @ here, atol=5e-5)
            assert not weight.grad[field, len(edges) - 1 :].any()


def test_gradcheck_in_float64() -> None:
    torch.manual_seed(0)
    encoder = PiecewiseLinearEncoder(EDGES[:2], 3).double()
    values = torch.empty(12, 2, dtype=torch.float64).uniform_(-4, 10)
    present = torch.rand(12, 2) < 0.8

    def encode(slope: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(encoder, {"slope": slope, "step": step}, (values, present))
        return out

    assert torch.autograd.gradcheck(encode, (encoder.slope, encoder.step))


def test_missing_contributes_nothing_and_is_no_small_value() -> None:
    encoder = PiecewiseLinearEncoder(EDGES[:1], 4)
    out = encoder(torch.tensor([[torch.nan], [-5.0]]), torch.ones(2, 1, dtype=torch.bool))
    assert not out[0].any()
    assert out[1].all()


def test_beyond_the_train_range_is_clamped() -> None:
    encoder = PiecewiseLinearEncoder(EDGES[:1], 4)
    out = encoder(torch.tensor([[9.0], [1e12], [torch.inf], [0.0], [-1e12]]), torch.ones(5, 1, dtype=torch.bool))
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    assert torch.equal(out[3], out[4])


def test_edges_are_the_trees_thresholds() -> None:
    rng = np.random.default_rng(1)
    value = (rng.integers(0, 400, 20_000) / 7).astype(np.float32)
    label = (rng.random(20_000) < np.where(value > 50, 0.4, 0.02) + 0.1 * (np.abs(value - 20) < 1)).astype(np.int64)
    tree = (
        DecisionTreeClassifier(criterion="entropy", max_leaf_nodes=24, min_samples_leaf=10, random_state=0).fit(value[:, None], label).tree_
    )
    expected = np.sort(tree.threshold[tree.children_left >= 0])
    (edges,) = fit_edges(value[:, None], label, seed=0)
    assert edges.dtype == np.float32
    assert (edges[0], edges[-1]) == (value.min(), value.max())
    inner = edges[1:-1]
    assert np.array_equal(np.digitize(value, inner, right=True), np.digitize(value.astype(np.float64), expected, right=True))


def test_many_values_and_many_rows_still_find_a_rare_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "ROW_LIMIT", 20_000)
    rng = np.random.default_rng(2)
    value = rng.gamma(2, 30, 100_000).astype(np.float32)
    label = ((value > 270) | (rng.random(100_000) < 0.001)).astype(np.int16)  # the tail is 120 rows of 100,000
    label[:1_000] = -1
    (edges,) = fit_edges(value[:, None], label, seed=0)
    assert np.abs(edges - 270).min() < 0.5  # legitimate rows are thinned to a fifth: they are .1 apart here
    assert np.array_equal(edges, fit_edges(value[:, None], label, seed=0)[0])


@pytest.mark.parametrize(
    "column",
    [np.zeros(500), np.full(500, np.nan), np.full(500, 1e12), np.r_[np.zeros(499), np.inf], np.arange(500) % 2, np.full(500, -3e38)],
    ids=["zeros", "missing", "huge", "infinite", "two values", "lowest"],
)
def test_poor_fields_stay_usable(column: NDArray[Any]) -> None:
    label = np.random.default_rng(0).integers(0, 2, 500)
    (edges,) = fit_edges(column.astype(np.float32)[:, None], label, seed=0)
    assert len(edges) >= 2
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()
    out = PiecewiseLinearEncoder([edges], 4)(torch.from_numpy(column.astype(np.float32)[:, None]), torch.ones(500, 1, dtype=torch.bool))
    assert out.isfinite().all()


def test_a_field_without_a_split_gets_quantiles() -> None:
    value = np.linspace(0, 1, 1_000).astype(np.float32)
    (edges,) = fit_edges(value[:, None], np.zeros(1_000, np.int64), seed=0)
    np.testing.assert_allclose(edges, np.linspace(0, 1, 9), atol=1e-6)


def test_adjacent_floats_are_kept_apart() -> None:
    low = np.float32(1)
    high = np.nextafter(low, np.float32(2))
    value = np.repeat(np.array([low, high], np.float32), 50)
    (edges,) = fit_edges(value[:, None], np.repeat([0, 1], 50), seed=0)
    assert (np.diff(edges) > 0).all()
    assert ((edges[1:-1] >= low) & (edges[1:-1] < high)).any()


@pytest.mark.parametrize(("values", "label"), [(np.zeros(3), np.zeros(3)), (np.zeros((3, 1)), np.zeros(2))], ids=["1d", "rows"])
def test_shapes_that_do_not_fit(values: Any, label: Any) -> None:
    with pytest.raises(ValueError, match="given"):
        fit_edges(values, label.astype(int), seed=0)
