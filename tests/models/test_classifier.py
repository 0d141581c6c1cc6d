"""Classifier: the rules of the parts hold for the whole model, and it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from balancer.errors import InputError
from balancer.models import HEADS, BinaryHead, Classifier, ModelConfig, SequenceBatch, autocast, fit_edges

N = 8
EDGES = (np.linspace(-3, 3, 13).tolist(), np.linspace(-2, 2, 5).tolist())


def make(**changes: Any) -> Classifier:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"history_length": N, "d_model": 32, "num_heads": 2, "attention_window": 3, **changes}
    return Classifier(ModelConfig(("a", "b"), ("c",), (5,), EDGES, **fields))


def windows(rows: int, seed: int = 0) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(size=(rows, N, 2)), rng.integers(0, 5, (rows, N, 1))], -1).astype(np.float32)
    return values, rng.integers(1, N + 1, rows)


@pytest.mark.parametrize("attention", ["dense", "window"])
@pytest.mark.parametrize("head", ["binary", "multiclass"])
def test_padding_changes_nothing(attention: str, head: str) -> None:
    classes = ("no", "yes") if head == "binary" else ("no", "x", "y")
    model = make(attention=attention, head=head, classes=classes).eval()
    values, lengths = windows(12)
    lengths[:2] = 0
    clean = model.probabilities(SequenceBatch.from_windows(values, lengths))
    values[np.arange(N) >= lengths[:, None]] = np.nan
    dirty = model.probabilities(SequenceBatch.from_windows(values, lengths))
    assert clean.shape == (12, len(classes))
    assert torch.equal(clean, dirty)
    assert torch.equal(clean[0], clean[1])


def test_a_row_scores_the_same_with_more_padding() -> None:
    model = make().eval()
    values, lengths = windows(6)
    lengths[:] = 3
    short = model(SequenceBatch.from_windows(values[:, :3], lengths))
    torch.testing.assert_close(model(SequenceBatch.from_windows(values, lengths)), short, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", ["dense", "window"])
def test_each_position_of_the_sequence_is_what_a_cut_window_gives(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Causality of the whole model: all positions at once equal each history cut there, except for positions
    counted from the target."""

    class AllPositions(BinaryHead):
        needs_sequence = True

    monkeypatch.setitem(HEADS, "all", lambda config: AllPositions(config.d_model))
    model = make(attention=attention, head="all").eval()
    with torch.no_grad():
        position = model.get_parameter("embedding.position.weight")
        position[:] = position[0]
    values, _ = windows(4)
    everything = model.encode(SequenceBatch.from_windows(values, np.full(4, N)))
    assert everything.values.shape == (4, N, 32)
    for length in range(1, N + 1):
        cut = model.encode(SequenceBatch.from_windows(values, np.full(4, length))).last()
        torch.testing.assert_close(cut.values[:, 0], everything.values[:, length - 1], atol=2e-6, rtol=1e-5)


def test_last_block_at_the_target_alone_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make().eval()
    values, lengths = windows(20)
    fast = model(SequenceBatch.from_windows(values, lengths))
    monkeypatch.setattr(BinaryHead, "needs_sequence", True)
    torch.testing.assert_close(model(SequenceBatch.from_windows(values, lengths)), fast, atol=2e-6, rtol=1e-5)


def test_huge_and_missing_numbers_stay_finite() -> None:
    model = make()
    values, lengths = windows(8)
    values[0, :, 0], values[1, :, 0], values[2, 0, 1] = 1e12, np.nan, -1e30
    loss = model.loss(model(SequenceBatch.from_windows(values, lengths)), torch.zeros(8, dtype=torch.int64))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def planted(rows: int, seed: int) -> tuple[SequenceBatch, torch.Tensor]:
    """Fraud when the target's amount exceeds the one before it and that one's category is 2: neither
    transaction tells alone."""
    values, _ = windows(rows, seed)
    label = ((values[:, -1, 0] > values[:, -2, 0]) & (values[:, -2, 2] >= 3)).astype(np.int64)
    kind = label * (1 + (values[:, -1, 1] > 0))
    return SequenceBatch.from_windows(values, np.full(rows, N)), torch.from_numpy(kind)


def train(model: Classifier, steps: int, *, pooled: bool, seed: int = 0) -> list[float]:
    batch, label = planted(3_000, seed=1)
    label = label.clamp(max=1) if pooled else label
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    losses = []
    for step in range(steps):
        torch.manual_seed(seed + step)
        rows = torch.randint(0, 3_000, (256,))
        loss = model.loss(model(SequenceBatch(batch.values[rows], batch.lengths[rows], batch.mask[rows])), label[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("head", ["binary", "multiclass"])
def test_learns_a_planted_sequence_pattern(head: str) -> None:
    classes = ("no", "yes") if head == "binary" else ("no", "x", "y")
    model = make(head=head, classes=classes, dropout=0.0, field_dropout=0.02)
    train(model, 150, pooled=head == "binary")
    batch, label = planted(2_000, seed=2)
    with torch.no_grad():
        p = model.eval().probabilities(batch)
    fraud = (label > 0).numpy()
    assert roc_auc_score(fraud, 1 - p[:, 0].numpy()) > 0.95
    if head == "multiclass":
        assert average_precision_score(label.numpy() == 2, p[:, 2].numpy()) > 0.75


def test_one_seed_gives_one_model() -> None:
    first, second = (make() for _ in range(2))
    assert train(first, 5, pooled=True) == train(second, 5, pooled=True)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = make()
    assert train(other, 5, pooled=True, seed=99) != train(make(), 5, pooled=True)


def test_deterministic_algorithms_suffice() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        train(make(attention="window"), 1, pooled=True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_fitted_edges_go_straight_in() -> None:
    values, lengths = windows(300)
    label = (values[:, -1, 0] > 1).astype(np.int64)
    config = ModelConfig(("a", "b"), ("c",), (5,), fit_edges(values[:, -1, :2], label, seed=0), history_length=N)
    assert Classifier(config)(SequenceBatch.from_windows(values, lengths)).shape == (300,)


def test_autocast_leaves_a_cpu_alone() -> None:
    with autocast("cpu"):
        assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["dense", "window"])
def test_cuda_in_bfloat16_agrees_with_a_cpu(attention: str) -> None:
    model = make(attention=attention, dropout=0.0, field_dropout=0.0).eval()
    values, lengths = windows(64)
    lengths[0] = 0
    batch, label = SequenceBatch.from_windows(values, lengths), torch.arange(64) % 2
    expected = model.probabilities(batch)
    model.loss(model(batch), label).backward()
    gradient = model.get_parameter("embedding.numeric.slope").grad
    assert gradient is not None
    expected_gradient = gradient.clone()
    model.zero_grad()
    model.cuda()
    batch = SequenceBatch.from_windows(values, lengths, "cuda")
    torch.testing.assert_close(model.probabilities(batch).cpu(), expected, atol=1e-4, rtol=1e-4)
    with autocast("cuda"):
        torch.testing.assert_close(model.probabilities(batch).cpu(), expected, atol=2e-2, rtol=2e-2)
        loss = model.loss(model(batch), label.cuda())
    loss.backward()
    assert loss.dtype == torch.float32
    gradient = model.get_parameter("embedding.numeric.slope").grad
    assert gradient is not None
    torch.testing.assert_close(gradient.cpu(), expected_gradient, atol=5e-3, rtol=5e-2)


SEQUENCE = ModelConfig(
    ("a",),
    ("b",),
    (5,),
    ([-2.0, -1.0, 0.0, 1.0, 2.0],),
    history_length=60,
    d_model=16,
    num_heads=2,
    num_layers=3,
    attention_window=7,
    global_nodes=3,
    form="histories",
)


def histories(rows: int = 3, length: int = 60) -> SequenceBatch:
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(size=(rows, length)), rng.integers(0, 5, (rows, length))], -1).astype(np.float32)
    return SequenceBatch.from_windows(values, np.full(rows, length))


@pytest.mark.parametrize("attention", ["dense", "window", "sparse"])
def test_every_position_is_judged_as_if_it_were_the_last(attention: str) -> None:
    torch.manual_seed(0)
    model = Classifier(replace(SEQUENCE, attention=attention)).eval()
    batch = histories()
    row, position = torch.meshgrid(torch.arange(3), torch.arange(60), indexing="ij")
    logits = model(batch, (row.flatten(), position.flatten())).view(3, 60)
    for length in (1, 2, 7, 8, 15, 31, 60):
        cut = SequenceBatch.from_windows(batch.values[:, :length], np.full(3, length))
        torch.testing.assert_close(model(cut), logits[:, length - 1], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", ["window", "sparse"])
def test_steps_give_what_one_pass_gives(attention: str) -> None:
    torch.manual_seed(0)
    model = Classifier(replace(SEQUENCE, attention=attention)).eval()
    batch = histories()
    row, position = torch.meshgrid(torch.arange(3), torch.arange(60), indexing="ij")
    logits = model(batch, (row.flatten(), position.flatten())).view(3, 60)
    state = model.init_state(3)
    for at in range(60):
        stepped, state = model.step(batch.values[:, at], state)
        torch.testing.assert_close(stepped, logits[:, at], atol=1e-5, rtol=1e-5)


def test_what_cannot_judge_every_position_says_so() -> None:
    batch = histories()
    at = (torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="form='histories'"):
        Classifier(replace(SEQUENCE, form="rows"))(batch, at)
    with pytest.raises(InputError, match="form='histories'"):
        Classifier(replace(SEQUENCE, form="rows", attention="window")).init_state(1)
    with pytest.raises(InputError, match="sparse"):
        Classifier(SEQUENCE).init_state(1)


def test_models_of_earlier_versions_are_read() -> None:
    content = SEQUENCE.to_dict()
    for name in ("form", "global_nodes", "score"):
        del content[name]
    assert ModelConfig.from_dict(content) == replace(SEQUENCE, form="rows", global_nodes=8)
