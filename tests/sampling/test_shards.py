"""Samplers whose ranks hold the labels of their own shards alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError, UnsupportedError
from balancer.sampling import core
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.shard_quotas import shard_quotas
from balancer.sampling.shards import shard_shares, unevenness
from balancer.sampling.torch_sampler import AdaptiveSampler, DistributedAdaptiveBatchSampler
from balancer.sampling.weights import SamplingWeights
from tests.sampling.fake_ranks import FakeRank, on_ranks

S = 4
POLICY = "constant:share=.2,hardness=1,class_importance=.5,hardness_importance=.5"


def _table(classes: int = 2) -> list[Any]:
    """Labels of each shard; the rarer classes are uneven, and the last shard lacks the rarest."""
    rng = np.random.default_rng(0)
    names = np.array(["ok", "fraud", "theft"])
    parts = []
    for shard, rows in enumerate((900, 1100, 1000, 800)):
        rare = (0.01 + 0.01 * shard, 0.0 if shard == 3 else 0.01)[: classes - 1]
        parts.append(names[rng.choice(classes, rows, p=[1 - sum(rare), *rare])])
    return parts


TWO, THREE = _table(), _table(3)
STARTS = np.cumsum([0, *map(len, TWO)])


def _make(kind: str, group: FakeRank, table: list[Any] = TWO, **options: Any) -> Any:
    shards = {number: table[number] for number in range(group.rank, S, group.size)}
    chosen: dict[str, Any] = {"policy": POLICY, "epochs": 4, "seed": 3, "shards": shards, "num_shards": S, "group": group} | options
    if kind == "rows":
        return AdaptiveSampler(**({"num_samples": 398} | chosen))
    return DistributedAdaptiveBatchSampler(**({"batch_size": 40, "num_batches": 11} | chosen))


def _joined(kind: str, parts: list[list[Any]]) -> list[Any]:
    steps = zip(*parts, strict=True)
    if kind == "rows":
        return [row for step in steps for row in step]
    return [[row for rows in zip(*step, strict=True) for row in rows] for step in steps]


def _update(sampler: Any, group: FakeRank, epoch: int, table: list[Any]) -> None:
    """Scores of a part of each shard of this rank, the same for any number of ranks."""
    label, score, rows, row_score = [], [], [], []
    for number in range(group.rank, S, group.size):
        rng = np.random.default_rng([epoch, number])
        own, classes = table[number], sampler.classes_
        odds = np.exp(rng.normal(size=(len(own), len(classes))) + 2.0 * (own[:, None] == np.array(classes)))
        p = odds / odds.sum(axis=1, keepdims=True)
        held, pool = rng.permutation(len(own))[:300], rng.permutation(len(own))[:200]
        label.append(own[held]), score.append(p[held]), rows.append(STARTS[number] + pool), row_score.append(p[pool])
    sampler.update(np.concatenate(label), np.concatenate(score), rows=np.concatenate(rows), row_score=np.concatenate(row_score))


def _trained(kind: str, group: FakeRank, table: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Items, weights and row weights of three epochs."""
    sampler, items, found, counted = _make(kind, group, table), [], [], []
    logits = np.random.default_rng(0).normal(size=(20, len(sampler.classes_)))
    for epoch in range(3):
        items.append(list(sampler))
        counted.append({row: weight for row in np.ravel(items[-1]).tolist() for weight in [float(sampler.sample_weight([row])[0])]})
        _update(sampler, group, epoch, table)
        weights = sampler.weights
        found.append([*weights.share, weights.hardness, *sampler.metrics.values(), *sampler.class_weight, *sampler.prior])
        found.append(sampler.probabilities(logits).tolist())
    return items, found, counted


@pytest.mark.parametrize("kind", ["rows", "parts"])
@pytest.mark.parametrize("table", [TWO, THREE], ids=["two", "three"])
def test_every_number_of_ranks_draws_and_weighs_alike(kind: str, table: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "BLOCK", 96)  # several blocks an epoch
    (alone, weights, counted), *_ = on_ranks(1, lambda group: _trained(kind, group, table))
    assert len(alone[0]) == (400 if kind == "rows" else 11)  # a multiple of the shards
    every = np.concatenate(table)
    for rows in alone:
        drawn = every[np.ravel(rows)]
        assert (drawn == "fraud").mean() == pytest.approx(0.2 if table is TWO else 0.1, abs=0.08)
        shards = np.searchsorted(STARTS, np.ravel(rows), side="right") - 1
        assert np.bincount(shards, minlength=S).tolist() == [len(shards) // S] * S
    for size in (2, 4):
        ranks = on_ranks(size, lambda group: _trained(kind, group, table))
        for epoch in range(3):
            assert _joined(kind, [items[epoch] for items, _, _ in ranks]) == alone[epoch]
            assert {row: weight for _, _, own in ranks for row, weight in own[epoch].items()} == counted[epoch]
        assert all(found == weights for _, found, _ in ranks)


@pytest.mark.parametrize("kind", ["rows", "parts"])
def test_other_numbers_of_ranks_continue_in_the_middle_of_an_epoch(kind: str) -> None:
    def part(group: FakeRank, state: Any, count: int | None) -> tuple[list[Any], Any]:
        sampler = _make(kind, group)
        if state is None:
            list(sampler)
            _update(sampler, group, 0, TWO)
        else:
            sampler.load_state_dict(state)
        walk = iter(sampler)
        items = list(walk) if count is None else [next(walk) for _ in range(count)]
        return items, sampler.state_dict(gather=True)

    whole = on_ranks(1, lambda group: part(group, None, None))[0][0]
    found: list[Any] = []
    state: Any = None
    for size, count in ((2, 3), (4, 2), (1, None)):
        ranks = on_ranks(size, lambda group, state=state, count=count: part(group, state, count))
        parts = [items for items, _ in ranks]
        if kind == "rows" and state is not None:  # a rank takes the positions of its shards
            parts = [parts[rank] for rank in np.argsort([(rank - state["position"]) % size for rank in range(size)])]
        found += _joined(kind, parts)
        state = ranks[-1][1]
    assert found == whole

    def alone(group: FakeRank) -> Any:
        sampler = _make(kind, group)
        _update(sampler, group, 0, TWO)
        return sampler.state_dict()

    state = on_ranks(2, alone)[0]

    def own(group: FakeRank) -> None:
        sampler = _make(kind, group)
        if group.rank % 2:
            with pytest.raises(InputError, match=f"holds the scores of shards 0, 2, this rank needs shard {group.rank}; save it on all"):
                sampler.load_state_dict(state)
        else:
            sampler.load_state_dict(state)
            assert sampler.epoch == 0

    on_ranks(4, own)


def test_rows_count_as_if_they_were_drawn_from_one_table() -> None:
    """The mean number of draws of a row times its weight is that of one table, in every shard."""
    policy = SamplingWeights(np.array([0.4, 0.6]))  # fraud, ok: an unevenness that can be seen

    def drawn(group: FakeRank) -> Any:
        sampler = _make("rows", group, policy=policy, epochs=1, num_samples=400_000)
        rows = np.array(list(sampler))
        return np.bincount(rows, minlength=STARTS[-1]), sampler.sample_weight(np.arange(STARTS[-1]))

    (draws, weight), *_ = on_ranks(1, drawn)
    label = np.concatenate(TWO)
    mass = draws * weight
    for name, share in (("fraud", 0.4), ("ok", 0.6)):
        expected = 400_000 * share / (label == name).sum()
        for shard in range(S):
            own = (np.arange(len(label)) >= STARTS[shard]) & (np.arange(len(label)) < STARTS[shard + 1]) & (label == name)
            assert mass[own].mean() == pytest.approx(expected, rel=0.03)
            if name == "fraud":
                assert (weight[own] == 1).all() and draws[own].mean() == pytest.approx(expected, rel=0.03)
    assert np.unique(weight[label == "ok"].round(9)).size == S


@given(
    counts=st.lists(st.tuples(st.integers(1, 500), st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=6),
    rare=st.floats(0.02, 0.98),
    size=st.integers(1, 9),
)
def test_quotas_are_divided_exactly(counts: list[tuple[int, int, int]], rare: float, size: int) -> None:
    rows = np.array(counts)
    rows[0, 1:] += 1  # each class has a row
    share = np.array([1 - rare, rare * 0.7, rare * 0.3])
    shares = shard_shares(share, rows)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert (shares >= 0).all() and (shares[:, 1:][rows[:, 1:] == 0] == 0).all()
    if (len(rows) * share[1:] * rows[:, 1:] / rows[:, 1:].sum(axis=0)).sum(axis=1).max() <= 1:
        np.testing.assert_allclose(shares.mean(axis=0), share)
        np.testing.assert_allclose(unevenness(share, rows)[:, 1:], 1.0)
    total = size * len(rows)
    batch = np.random.default_rng(0).multinomial(total, share, 5)
    divided = shard_quotas(batch, rows, np.random.default_rng(1))
    assert (divided >= 0).all() and (divided.sum(axis=2) == size).all()
    assert (divided[:, rows == 0] == 0).all()
    assert (divided.sum(axis=1)[:, 1:] <= batch[:, 1:]).all()
    able = (rows > 0).all()
    if able and (batch[:, 1:].sum(axis=1) <= total).all():  # every shard can take any class
        np.testing.assert_array_equal(divided.sum(axis=1), batch)


def test_a_shard_without_a_rare_class_draws_the_others() -> None:
    label = np.zeros(50, dtype=np.int64)
    with pytest.raises(InputError, match="one class only"):
        RowSampler(label, 2)
    rows = RowSampler(label, 2, is_part=True, prior=np.array([0.9, 0.1]))
    assert rows.draw(20, SamplingWeights(np.array([0.8, 0.2])), np.random.default_rng(0)).max() < 50


def test_batches_take_equally_many_rows_of_each_shard() -> None:
    def batches(group: FakeRank) -> Any:
        sampler = _make("parts", group, THREE, policy="constant:share=.3")
        return list(sampler), sampler.batch_share, sampler.classes_

    ranks = on_ranks(2, batches)
    rows = np.concatenate([np.array(items) for items, _, _ in ranks], axis=1)
    share, classes = ranks[0][1], ranks[0][2]
    label = np.concatenate(THREE)[rows]
    held = np.stack([(label == name).sum(axis=1) for name in classes], axis=1)
    assert (held >= np.floor(40 * share + 1e-9)).all() and (held <= np.ceil(40 * share - 1e-9)).all()
    shards = np.searchsorted(STARTS, rows, side="right") - 1
    assert all(np.bincount(each, minlength=S).tolist() == [10] * S for each in shards)


def test_shards_are_tensors_of_text_or_numbers_with_unlabelled_rows() -> None:
    numbers = [torch.tensor([0] * 20 + [1] * (1 + n) + [-1] * n) for n in range(2)]

    def drawn(group: FakeRank) -> Any:
        own = {group.rank: numbers[group.rank]} if group.size == 2 else dict(enumerate(numbers))
        sampler = AdaptiveSampler(shards=own, num_shards=2, group=group, epochs=2, unlabelled=-1, policy="constant", num_samples=200)
        assert (sampler.classes_, sampler.counts.tolist(), sampler._core.num_rows) == ([0, 1], [40, 3], 44)
        assert "num_samples=200" in repr(sampler) and "num_shards=2" in repr(sampler._core)
        return list(sampler)

    one, other = on_ranks(2, drawn)
    assert max(one) < 21 <= min(other) and max(other) < 43
    names = {0: [b"a", b"a", b"b"], 1: [b"a", None, b"a"]}
    assert AdaptiveSampler(shards=names, num_shards=2, epochs=2).classes_ == [b"a", b"b"]  # one process, without a group


def test_wrong_shards_are_refused_on_all_ranks() -> None:
    def message(group: FakeRank, shards: Any, num_shards: int = S) -> str:
        with pytest.raises(InputError) as raised:
            AdaptiveSampler(shards=shards(group), num_shards=num_shards, group=group, epochs=2)
        return str(raised.value)

    def held(group: FakeRank) -> Any:
        return {number: TWO[number] for number in range(group.rank, S, group.size)}

    for size, shards, num_shards, text in (
        (3, held, S, "num_shards is 4, which 3 ranks can't share evenly; use ranks 1, 2, 4"),
        (2, lambda group: {0: TWO[0], 1: TWO[1]}, S, "of 4, not shards 0, 1; give shards="),
        (2, lambda group: TWO[0], S, "not ndarray"),
        (2, lambda group: held(group) | ({2: np.array(["fraud"])} if group.rank == 0 else {}), S, "shard 2 has no row of class 'ok'"),
        (2, lambda group: held(group) | ({2: np.array([1.5])} if group.rank == 0 else {}), S, "labels of shard 2 must be integers"),
        (2, lambda group: held(group) | ({2: np.array([1, 0])} if group.rank == 0 else {}), S, "mix of numbers and text"),
        (2, lambda group: {group.rank: np.array(["ok"])}, 2, "one class only"),
    ):
        assert all(text in found for found in on_ranks(size, lambda group, a=shards, b=num_shards: message(group, a, b)))
    for options, text in (
        ({"shards": {0: TWO[0]}}, "give labels, or shards and num_shards"),
        ({"labels": TWO[0], "shards": {0: TWO[0]}, "num_shards": 1}, "give labels, or shards"),
        ({"shards": {0: TWO[0]}, "num_shards": 1, "times": np.arange(900)}, "times can't be used with shards"),
        ({"shards": {0: TWO[0]}, "num_shards": 2, "rank": 0, "num_replicas": 2}, "init_process_group"),
    ):
        with pytest.raises(InputError, match=text):
            AdaptiveSampler(epochs=2, **options)
    with pytest.raises(InputError, match="batch_size 6 must be a multiple of the 4 shards"):
        DistributedAdaptiveBatchSampler(shards=dict(enumerate(TWO)), num_shards=4, batch_size=6, epochs=2)


def test_what_needs_all_rows_is_refused() -> None:
    def refused(group: FakeRank) -> None:
        sampler = _make("rows", group)
        with pytest.raises(UnsupportedError, match="weights of all rows"):
            sampler.effective_weights()
        with pytest.raises(UnsupportedError, match="update_together"):
            sampler._core.update([], [])
        with pytest.raises(InputError, match="gather='none' needs all rows"):
            sampler.update([], [], gather="none")
        foreign = int(STARTS[1 - group.rank])
        with pytest.raises(InputError, match=f"row {foreign} belongs to shard {1 - group.rank}, and this rank holds shards {group.rank}, "):
            sampler.sample_weight([foreign])

    on_ranks(2, refused)
