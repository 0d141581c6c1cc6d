"""The torch samplers in a training loop: DataLoader, exact resume, ranks, exact quotas, errors."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import json
import pickle
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, TensorDataset

from balancer.errors import InputError
from balancer.sampling import core
from balancer.sampling.core import SamplerCore
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler
from balancer.sampling.weights import SamplingWeights

LABELS = ["ok"] * 950 + ["fraud"] * 50


def test_feeds_a_data_loader_and_helps() -> None:
    rng = np.random.default_rng(0)
    label = np.array([0] * 1950 + [1] * 50)
    x = torch.as_tensor(rng.normal(size=(2000, 4)) + label[:, None], dtype=torch.float32)
    sampler = AdaptiveSampler(label, policy="constant:share=.4,hardness=1", epochs=3, num_samples=512)
    loader = DataLoader(TensorDataset(x, torch.as_tensor(label)), batch_size=64, sampler=sampler)
    shares = []
    for _ in range(3):
        seen = torch.cat([y for _, y in loader])
        assert len(seen) == 512
        shares.append(float((seen == 1).float().mean()))
        score = torch.sigmoid(x.sum(1) - 4).numpy()
        sampler.update(label[::2], score[::2], rows=np.arange(2000), row_score=score)
    assert np.mean(shares) == pytest.approx(0.4, abs=0.05)
    drawn = np.array(list(sampler))
    negatives = drawn[label[drawn] == 0]
    assert score[negatives].mean() > 1.5 * score[label == 0].mean()  # hard ones come more often


def test_classes_keep_their_names() -> None:
    sampler = AdaptiveSampler(LABELS, policy="constant:share=.3", epochs=2, num_samples=10)
    assert sampler.classes_ == ["fraud", "ok"]
    np.testing.assert_allclose(sampler.weights.share, [0.3, 0.7])
    by_column = sampler.update(["ok", "fraud"], [[0.1, 0.9], [0.8, 0.2]])
    other = AdaptiveSampler(LABELS, policy="constant:share=.3", epochs=2, num_samples=10)
    assert other.update(["ok", "fraud"], [0.1, 0.8]).to_dict() == by_column.to_dict()  # of the rarer class


def test_epochs_differ_and_repeat() -> None:
    a, b = (AdaptiveSampler(LABELS, policy="constant", epochs=3, seed=5) for _ in range(2))
    first, second = list(a), list(a)
    assert first != second
    b.set_epoch(1)
    assert list(b) == second


@pytest.mark.parametrize(
    ("y_true", "y_score", "message"),
    [
        (["ok", "fraud"], [0.1, float("nan")], "not finite"),
        (["ok", "fraud"], [0.1], "one label"),
        (["ok", "theft"], [0.1, 0.2], "theft"),
        (["ok", "fraud"], [[0.1, 0.2, 0.7]] * 2, "one column"),
        ([], [], "no scored rows"),
    ],
)
def test_refusal_changes_nothing(y_true: list[str], y_score: list[float], message: str) -> None:
    sampler = AdaptiveSampler(LABELS, policy="rule", epochs=3, num_samples=20)
    before = sampler.state_dict()
    with pytest.raises(InputError, match=message):
        sampler.update(np.array(y_true, dtype="U5"), y_score)
    assert sampler.state_dict()["controller"] == before["controller"]


def _plain(state: Any) -> str:
    return json.dumps(state, default=lambda array: array.tolist(), sort_keys=True)


def _make(kind: str, **options: Any) -> Any:
    if kind == "rows":
        return AdaptiveSampler(LABELS, **({"policy": "constant:share=.2,hardness=2", "epochs": 4, "num_samples": 96} | options))
    return AdaptiveBatchSampler(
        LABELS, batch_size=8, **({"policy": "constant:share=.2,hardness=2", "epochs": 4, "num_batches": 12} | options)
    )


def _tell(sampler: Any, seed: int = 0) -> SamplingWeights:
    rng = np.random.default_rng(seed)
    weights: SamplingWeights = sampler.update(["ok", "fraud", "ok"], rng.random(3), rows=np.arange(900), row_score=rng.random(900))
    return weights


KINDS = pytest.mark.parametrize("kind", ["rows", "batches"])


@KINDS
def test_state_resumes_between_epochs(kind: str) -> None:
    one, two = _make(kind, seed=3), _make(kind)
    list(one)
    _tell(one)
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    two.load_state_dict(torch.load(buffer, weights_only=True))
    assert (two.epoch, two.seed) == (1, 3)
    for _ in range(2):
        assert list(one) == list(two)
        assert _tell(one, 1).to_dict() == _tell(two, 1).to_dict()


@KINDS
@pytest.mark.parametrize("after", [1, 5, 11, 12])
def test_state_resumes_within_an_epoch(kind: str, after: int) -> None:
    one, two = _make(kind, seed=3), _make(kind)
    list(one)
    _tell(one)
    whole = list(copy.deepcopy(one))
    walk = iter(one)
    head = [next(walk) for _ in range(after)]
    state = one.state_dict()
    two.load_state_dict(state)
    assert _plain(two.state_dict()) == _plain(state)
    two.set_epoch(two.epoch)  # as trainers do before each epoch
    tail = list(two)
    if after == len(one):  # over already: the next epoch
        assert head == whole
        assert tail == list(one) != whole
    else:
        assert head + tail == whole
        assert list(walk) == tail
    _tell(one, 1), _tell(two, 1)
    assert list(one) == list(two)


@KINDS
@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_after_what_a_data_loader_trained_on(kind: str, workers: int) -> None:
    data = TensorDataset(torch.arange(1000))

    def loader(sampler: Any) -> DataLoader[Any]:
        chosen = {"batch_sampler": sampler} if kind == "batches" else {"sampler": sampler, "batch_size": 8}
        return DataLoader(data, num_workers=workers, multiprocessing_context="fork" if workers else None, **chosen)

    one, two = _make(kind), _make(kind)
    whole = [batch.tolist() for (batch,) in loader(_make(kind))]
    walk = iter(loader(one))
    head = [next(walk)[0].tolist() for _ in range(9)]
    if workers:  # the loader has asked for the rest already
        assert one.epoch == 1
    state = one.state_dict()
    assert (state["epoch"], state["handed"]) == (0, 9 if kind == "batches" else 72)
    assert _plain(state) == _plain(one.state_dict(consumed=9 if kind == "batches" else 72))
    two.load_state_dict(state)
    rest = loader(two)
    assert len(rest) == 3  # what is left
    assert head + [batch.tolist() for (batch,) in rest] == whole
    assert len(rest) == 12
    assert [b.tolist() for (b,) in loader(two)] != whole
    full = one.state_dict(consumed=len(one))
    assert (full["epoch"], full["handed"]) == (1, 0)
    list(walk)  # lets the workers end


def _loader(sampler: Any, workers: int = 0, size: int = 8, rows: int = 1000, **options: Any) -> DataLoader[Any]:
    context = "fork" if workers else None
    data = TensorDataset(torch.arange(rows))
    return DataLoader(data, batch_size=size, sampler=sampler, num_workers=workers, multiprocessing_context=context, **options)


@pytest.mark.parametrize(("workers", "left_by"), [(0, "break"), (0, "walk"), (2, "break"), (2, "walk"), (2, "persistent")])
def test_the_loader_is_counted_however_the_loop_is_left(workers: int, left_by: str) -> None:
    sampler, other = _make("rows"), _make("rows")
    whole = [batch.tolist() for (batch,) in _loader(_make("rows"))]
    loader, head = _loader(sampler, workers, persistent_workers=left_by == "persistent"), []
    walk = iter(loader)
    for (batch,) in walk:
        head.append(batch.tolist())
        if len(head) == 5:
            break
    if left_by == "break":
        del walk  # the iterator is gone when the state is saved, as after a plain loop
    states = [sampler.state_dict(), copy.deepcopy(sampler).state_dict(), pickle.loads(pickle.dumps(sampler)).state_dict()]
    assert {(state["epoch"], state["handed"]) for state in states} == {(0, 40)}
    other.load_state_dict(states[0])
    assert head + [batch.tolist() for (batch,) in _loader(other, workers)] == whole
    again = other.state_dict()  # at the end of a resumed epoch
    assert (again["epoch"], again["handed"]) == (1, 0)
    if left_by == "walk":
        list(walk)
        assert sampler.state_dict()["epoch"] == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_can_be_left_again(workers: int) -> None:
    whole, found, state = [batch.tolist() for (batch,) in _loader(_make("rows"))], [], None
    for batches in (2, 3, 99):
        sampler = _make("rows")
        if state is not None:
            sampler.load_state_dict(state)
        loader = _loader(sampler, workers)
        assert len(loader) == 12 - len(found)
        for _, (batch,) in zip(range(batches), loader, strict=False):
            found.append(batch.tolist())
        state = sampler.state_dict()
    assert found == whole
    assert (state["epoch"], state["handed"]) == (1, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_last_batch_that_the_loader_drops_ends_the_epoch(workers: int) -> None:
    sampler = _make("rows")
    assert len(list(_loader(sampler, workers, size=10, drop_last=True))) == 9  # of 96 rows
    state = sampler.state_dict()
    assert (state["epoch"], state["handed"]) == (1, 0)
    walk = iter(_loader(sampler, workers, size=10, drop_last=True))
    next(walk)
    assert sampler.state_dict()["handed"] == 10


class _Pairs(BatchSampler):
    """A batch sampler that a user wrote."""

    def __iter__(self) -> Any:
        rows = iter(self.sampler)
        return iter(lambda: list(itertools.islice(rows, 2)), [])


@pytest.mark.parametrize("kind", ["batches", "order"])
def test_a_loader_that_can_not_be_counted_asks_for_the_number(kind: str) -> None:
    sampler, data = _make("rows"), TensorDataset(torch.arange(1000))
    fork = {"num_workers": 2, "multiprocessing_context": "fork"}
    if kind == "batches":
        loader: DataLoader[Any] = DataLoader(data, batch_sampler=_Pairs(sampler, 2, False), **fork)
    else:
        loader = _loader(sampler, 2, in_order=False)
    walk = iter(loader)
    next(walk)
    with pytest.warns(UserWarning, match="give state_dict the number of rows trained on, consumed="):
        sampler.state_dict()
    assert sampler.state_dict(consumed=8)["handed"] == 8
    list(walk)


@KINDS
@pytest.mark.parametrize("workers", [0, 1])
def test_labels_of_another_length_than_the_data_are_refused_at_once(kind: str, workers: int) -> None:
    sampler, chosen = _make(kind), {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    for rows in (999, 1001):
        data = TensorDataset(torch.arange(rows))
        loader = DataLoader(data, batch_sampler=sampler, **chosen) if kind == "batches" else _loader(sampler, workers, rows=rows)
        with pytest.raises(InputError, match=f"labels has 1000 rows and the data set of the loader {rows}; make the sampler"):
            next(iter(loader))
    assert sampler.state_dict()["handed"] == 0
    assert (
        len(list(DataLoader(_NoLength(), batch_sampler=sampler) if kind == "batches" else DataLoader(_NoLength(), 8, sampler=sampler)))
        == 12
    )
    assert len(list(sampler)) == len(sampler)  # a loop of one's own


class _NoLength(Dataset[int]):
    """A data set whose length is not known."""

    def __getitem__(self, index: int) -> int:
        return index


def test_a_sampler_does_not_keep_the_loader_alive() -> None:
    sampler = _make("rows")
    data = TensorDataset(torch.arange(1000))
    kept = weakref.ref(data)
    for _ in DataLoader(data, batch_size=8, sampler=sampler):
        break
    del data
    gc.collect()
    assert kept() is None
    assert sampler.state_dict()["handed"] == 8


@KINDS
def test_leaving_early_and_updating_end_the_epoch(kind: str) -> None:
    sampler, other = _make(kind), _make(kind)
    next(iter(sampler))
    assert sampler.epoch == 0
    other.set_epoch(1)
    assert list(sampler) == list(other)  # a second iteration is the next epoch
    assert sampler.epoch == 2
    next(iter(sampler))
    _tell(sampler)
    assert (sampler.epoch, sampler.state_dict()["handed"]) == (3, 0)
    first, second = iter(sampler), iter(sampler)
    next(second)
    list(first)  # an iterator left behind counts no more
    assert (sampler.epoch, sampler.state_dict()["handed"]) == (3, 1)
    sampler.set_epoch(0)
    assert list(sampler) == list(_again(kind, sampler))


def _again(kind: str, sampler: Any) -> Any:
    other = _make(kind)
    other.load_state_dict(sampler.state_dict())
    other.set_epoch(0)
    return other


@KINDS
@pytest.mark.parametrize("block", [core.BLOCK, 7, 24])
def test_ranks_take_turns_in_one_epoch(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "BLOCK", block)
    alone, ranks = _make(kind), [_make(kind, rank=r, num_replicas=4) for r in range(4)]
    for _ in range(2):
        whole, parts = list(alone), [list(rank) for rank in ranks]
        assert [len(part) for part in parts] == [len(rank) for rank in ranks] == [len(whole) // 4] * 4
        assert [item for step in zip(*parts, strict=True) for item in step] == whole
        for each in (alone, *ranks):
            _tell(each)
    uneven = [_make(kind, rank=r, num_replicas=5) for r in range(5)]
    _tell(alone), [_tell(rank) for rank in uneven]
    alone.set_epoch(2), [rank.set_epoch(2) for rank in uneven]
    whole, parts = list(alone), [list(rank) for rank in uneven]
    assert {len(part) for part in parts} == {-(-len(whole) // 5)}
    assert [item for step in zip(*parts, strict=True) for item in step][: len(whole)] == whole
    walk = iter(ranks[2])
    [next(walk) for _ in range(2)]
    fresh = _make(kind, rank=1, num_replicas=4)
    fresh.load_state_dict(ranks[2].state_dict())  # the state of any rank serves all
    assert list(fresh) == list(ranks[1])[2:]


@KINDS
def test_a_rank_fills_its_own_items_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "BLOCK", 16)
    filled: list[int] = []
    fill = RowSampler._filled
    monkeypatch.setattr(RowSampler, "_filled", lambda self, classes, *rest: (filled.append(len(classes)), fill(self, classes, *rest))[1])
    rank = _make(kind, rank=1, num_replicas=3)
    list(rank)
    # Positions 1, 4, ... of 96 rows in blocks of 16; of 12 batches of 8 rows the batches 1, 4, 7 and 10.
    assert filled == ([5, 6, 5, 5, 6, 5] if kind == "rows" else [8, 8, 8, 8])


def test_a_generator_seeds_the_draws() -> None:
    def drawn(seed: int, generator_seed: int | None) -> list[int]:
        return list(_make("rows", seed=seed, generator=None if generator_seed is None else torch.Generator().manual_seed(generator_seed)))

    assert drawn(0, 7) == drawn(0, 7)
    assert len({tuple(drawn(*pair)) for pair in ((0, None), (0, 7), (0, 8), (1, 7))}) == 4
    generator = torch.Generator().manual_seed(2**63)
    before = generator.get_state()
    list(_make("rows", generator=generator))
    assert torch.equal(generator.get_state(), before)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    batch_size=st.integers(1, 20),
    num_batches=st.integers(1, 12),
    share=st.floats(0.05, 0.95),
    ranks=st.integers(1, 3),
)
def test_batches_hold_exact_quotas(counts: list[int], batch_size: int, num_batches: int, share: float, ranks: int) -> None:
    labels = np.repeat(np.arange(len(counts)) - 1, counts)
    assume(batch_size * num_batches >= len(counts))
    samplers = [
        AdaptiveBatchSampler(
            labels, batch_size=batch_size, num_batches=num_batches, policy=f"constant:share={share}", epochs=2, rank=r, num_replicas=ranks
        )
        for r in range(ranks)
    ]
    batches = np.array([batch for step in zip(*samplers, strict=True) for batch in step])
    ideal = samplers[0].batch_share * batch_size
    held = np.stack([(labels[batches] == c).sum(axis=1) for c in samplers[0].classes_], axis=1)
    assert (held.sum(axis=1) == batch_size).all()
    assert (held >= np.floor(ideal + 1e-6)).all() and (held <= np.ceil(ideal - 1e-6)).all()
    epoch = held[:num_batches]  # the ranks may take a few batches more
    assert np.abs(epoch.sum(axis=0) - ideal * num_batches).max() < 1 + 1e-6
    if batch_size >= len(counts):
        assert (held >= 1).all()


def test_batches_default_to_one_pass_and_are_shuffled() -> None:
    sampler = AdaptiveBatchSampler(LABELS, batch_size=64, policy="constant:share=.25", epochs=2)
    batches = list(sampler)
    assert (len(batches), sampler.num_batches, len(sampler)) == (16, 16, 16)
    first = [LABELS[batch[0]] for batch in [*batches, *sampler, *sampler, *sampler]]
    assert 4 < first.count("fraud") < 30


def test_an_unlabelled_row_is_never_drawn() -> None:
    labels = np.array([0] * 80 + [1] * 10 + [-9] * 10)
    rows = AdaptiveSampler(labels, policy="constant", epochs=2, unlabelled=-9)
    batches = AdaptiveBatchSampler(labels, batch_size=9, policy="constant", epochs=2, unlabelled=-9)
    assert (len(rows), len(batches), rows.num_samples) == (90, 10, 90)
    for _ in range(10):
        assert max(rows) < 90
        assert max(map(max, batches)) < 90


@KINDS
def test_a_state_of_another_run_changes_nothing(kind: str) -> None:
    sampler = _make(kind)
    next(walk := iter(sampler))
    before = _plain(sampler.state_dict())
    good = _make(kind).state_dict()
    other = _make("batches" if kind == "rows" else "rows").state_dict()
    for state, message in (
        (other, "saved state is that of Adaptive"),
        ({}, "no torch sampler"),
        (good | {"handed": 10_000}, "corrupt"),
        (good | {"handed": None}, "handed of the saved state"),
        (good | {"labels": "0"}, "other training rows"),
        (good | {"epochs": 9}, "epochs 9"),
        (good | {"controller": {}}, "corrupt"),
    ):
        with pytest.raises(InputError, match=message):
            sampler.load_state_dict(state)
        assert _plain(sampler.state_dict()) == before
    for consumed, message in ((-1, "consumed must be"), (1000, "an epoch has")):
        with pytest.raises(InputError, match=message):
            sampler.state_dict(consumed)
    with pytest.raises(InputError, match="epoch must be"):
        sampler.set_epoch(-1)
    with pytest.raises(InputError, match="not finite"):
        sampler.update(["ok", "fraud"], [0.1, np.nan])
    assert _plain(sampler.state_dict()) == before
    next(walk)
    assert sampler.state_dict()["handed"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "num_replicas": 2}, "rank 2 must be less"),
        ({"rank": 0}, "rank and num_replicas together"),
        ({"rank": 0, "num_replicas": 0}, "num_replicas must be"),
        ({"num_samples": 1}, "num_samples, the rows of an epoch"),
        ({"epochs": 0}, "epochs must be"),
    ],
)
def test_refuses_to_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _make("rows", **options)


def test_refuses_batches_of_nothing() -> None:
    with pytest.raises(InputError, match="batch_size must be"):
        AdaptiveBatchSampler(LABELS, batch_size=0, epochs=2)
    with pytest.raises(InputError, match="num_batches must be"):
        _make("batches", num_batches=0)
    with pytest.raises(InputError, match="rows of an epoch"):
        AdaptiveBatchSampler(LABELS, batch_size=1, num_batches=1, epochs=2)


@KINDS
def test_the_default_policy_is_auto(kind: str) -> None:
    sampler = AdaptiveSampler(LABELS, epochs=4) if kind == "rows" else AdaptiveBatchSampler(LABELS, batch_size=8, epochs=4)
    assert sampler.policy_name == "auto"
    assert sampler.weights.share.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("labels", "message"), [(["a"] * 4, "one class only"), ([0.5, 1.0], "integers or strings"), ([[0, 1]], "non-empty vector")]
)
def test_refuses_labels(labels: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaptiveSampler(np.array(labels), epochs=2)


def test_needs_numpy_and_torch_alone() -> None:
    heavy = "polars sklearn stable_baselines3 gymnasium lightgbm rich safetensors"
    code = (
        "import sys; from balancer import AdaptiveSampler; s = AdaptiveSampler([0]*9+[1], policy='constant', epochs=2); list(s); s.update([0, 1], [.1, .9]);"
        f"assert not set('{heavy}'.split()) & set(sys.modules), set('{heavy}'.split()) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_batches_that_are_too_small_for_all_classes_are_noted() -> None:
    labels = np.repeat(np.arange(5), [500, 200, 100, 50, 50])
    small = AdaptiveBatchSampler(labels, batch_size=4, epochs=2)
    assert [note for note in small.notes if "batch_size=4 can't hold all 5 classes" in note and "at least 5" in note]
    assert max(len(np.unique(labels[batch])) for batch in small) < 5  # as the note says
    for sampler in (AdaptiveBatchSampler(labels, batch_size=5, epochs=2), AdaptiveSampler(labels, epochs=2)):
        assert sampler.notes == []
    four = AdaptiveBatchSampler(labels, batch_size=4, epochs=2, policy=SamplingWeights(np.array([0.4, 0.3, 0.2, 0.1, 0.0])))
    assert four.notes == []  # the fifth class has no share


def test_the_mass_of_each_row_follows_how_the_sampler_draws() -> None:
    labels = np.repeat([0, 1], [990, 10])
    policy = "constant:share=.02,hardness=0,class_importance=.5"
    rows, batches = AdaptiveSampler(labels, epochs=2, policy=policy), AdaptiveBatchSampler(labels, batch_size=10, epochs=2, policy=policy)
    core = SamplerCore(labels, epochs=2, policy=policy)
    np.testing.assert_allclose(rows.effective_weights(), core.effective_weights())
    np.testing.assert_allclose(rows.init_score(3), core.init_score(3))
    for sampler in (rows, batches):
        mass = sampler.effective_weights()
        assert mass.shape == (1000,) and mass.mean() == pytest.approx(1.0) and sampler.compensated
        np.testing.assert_allclose(np.bincount(labels, mass) / 1000, np.exp(sampler.logit_offset), rtol=1e-6)
        np.testing.assert_allclose(sampler.init_score(), np.log(mass[-1] * 10 / (mass[0] * 990)))
    assert batches.effective_weights()[-1] > rows.effective_weights()[-1]  # a batch holds at least one row of the class


@pytest.mark.parametrize("replicas", [3, 7])
def test_ranks_draw_up_to_one_row_more_each_where_the_length_does_not_divide(replicas: int) -> None:
    labels = np.repeat([0, 1], [90, 10])
    parts = [list(AdaptiveSampler(labels, epochs=1, num_samples=100, rank=rank, num_replicas=replicas)) for rank in range(replicas)]
    assert {len(part) for part in parts} == {-(-100 // replicas)}
    assert 0 < sum(map(len, parts)) - 100 <= replicas - 1
