"""Samplers on several ranks: one sequence for any number of ranks, resumed by any other, equal weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balancer.errors import InputError, UnsupportedError
from balancer.sampling.observation import ScoredRows
from balancer.sampling.pooled_scores import BINS, pooled_rows, score_counts
from balancer.sampling.ranks import OneRank
from balancer.sampling.scores import macro_metrics
from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler, DistributedAdaptiveBatchSampler
from tests.runs import test_stored
from tests.sampling.fake_ranks import FakeRank, on_ranks

LABELS = np.repeat([0, 1], [950, 50])
THREE = np.repeat([0, 1, 2], [900, 70, 30])
KINDS = pytest.mark.parametrize("kind", ["rows", "batches", "parts"])


def _make(kind: str, rank: int = 0, size: int = 1, labels: Any = LABELS, **options: Any) -> Any:
    chosen: dict[str, Any] = {"policy": "rule", "epochs": 4, "seed": 3, "rank": rank, "num_replicas": size} | options
    if kind == "rows":
        return AdaptiveSampler(labels, **({"num_samples": 94} | chosen))
    if kind == "batches":
        return AdaptiveBatchSampler(labels, **({"batch_size": 8, "num_batches": 22} | chosen))
    return DistributedAdaptiveBatchSampler(labels, **({"batch_size": 8, "num_batches": 22} | chosen))


def _interleaved(kind: str, parts: list[list[Any]]) -> list[Any]:
    """The sequence of all ranks from what each has taken."""
    steps = zip(*parts, strict=True)
    if kind != "parts":
        return [item for step in steps for item in step]
    return [[row for rows in zip(*step, strict=True) for row in rows] for step in steps]


@KINDS
def test_the_sequence_is_the_same_for_every_number_of_ranks(kind: str) -> None:
    whole = list(_make(kind))
    for size in (2, 4):
        ranks = [_make(kind, rank, size) for rank in range(size)]
        parts = [list(sampler) for sampler in ranks]
        found = _interleaved(kind, parts)
        assert found[: len(whole)] == whole
        assert {len(part) for part in parts} == {len(ranks[0])} and len(found) - len(whole) < size
        if kind == "parts":
            assert found == whole and all(len(rows) == 8 // size for part in parts for rows in part)


@KINDS
@pytest.mark.parametrize("sizes", [(2, 4, 1), (1, 3, 2), (4, 1, 4), (2, 5, 3)])
def test_other_numbers_of_ranks_continue_in_the_middle_of_an_epoch(kind: str, sizes: tuple[int, ...]) -> None:
    if kind == "parts":
        sizes = tuple({3: 8, 5: 2}.get(size, size) for size in sizes)  # they must divide the batch
    whole, found, state = list(_make(kind)), [], None
    for number, size in enumerate(sizes):
        ranks, parts, last = [_make(kind, rank, size) for rank in range(size)], [], number == len(sizes) - 1
        for sampler in ranks:
            if state is not None:
                sampler.load_state_dict(state)
            walk = iter(sampler)
            parts.append(list(walk) if last else [next(walk) for _ in range(3)])
        if state is not None:
            position = state["position"]
            if kind != "parts":  # each rank takes the positions that it always takes: those of its number
                first = [position + (rank - position) % size for rank in range(size)]
                parts = [parts[rank] for rank in np.argsort(first)]
        found += _interleaved(kind, parts)
        state = ranks[-1].state_dict()
        assert {json.dumps([each.state_dict()["position"], each.epoch]) for each in ranks} == {
            json.dumps([state["position"], ranks[0].epoch])
        }
    assert found[: len(whole)] == whole  # every position once
    assert len(found) - len(whole) < sizes[-1]
    assert (state["epoch"], state["position"]) == (1, 0)


def test_rows_trained_on_are_counted_after_a_resume_by_other_ranks() -> None:
    first = _make("rows", 1, 2)
    walk = iter(first)
    [next(walk) for _ in range(5)]
    state = first.state_dict()
    assert (state["handed"], state["position"]) == (5, 10)
    ranks = [_make("rows", rank, 4) for rank in range(4)]
    for sampler in ranks:
        sampler.load_state_dict(state)
        assert len(sampler) == 21  # of 94 rows 84 are left
    later = ranks[3].state_dict(consumed=5)  # 10 of 4 ranks count as 3; then two more
    assert later["position"] == 18
    fresh = _make("rows")
    fresh.load_state_dict(later)
    assert list(fresh) == list(_make("rows"))[18:]


def test_an_older_state_of_several_ranks_is_loaded_between_epochs_alone() -> None:
    sampler = _make("rows", 0, 2)
    next(iter(sampler))
    old = sampler.state_dict()
    del old["position"]  # as version 0.2 saves it
    with pytest.raises(InputError, match="older version, in the middle of an epoch of 2 ranks"):
        _make("rows").load_state_dict(old)
    for whole in (old | {"handed": 0, "epoch": 1}, old | {"num_replicas": 1}):
        fresh = _make("rows")
        fresh.load_state_dict(whole)
        assert len(fresh) == 94 - whole["handed"]


def _scores(labels: Any, seed: int) -> Any:
    rng, classes = np.random.default_rng(seed), labels.max() + 1
    logits = rng.normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += 1.5
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True)


def _trained(group: FakeRank | None, labels: Any, policy: str, *, compensated: bool | None = None) -> Any:
    """Shares, hardness, figures and items of three epochs, with parts of the rows that differ in size."""
    rank, size = (0, 1) if group is None else (group.rank, group.size)
    sampler = AdaptiveSampler(labels, policy=policy, epochs=4, num_samples=96, group=group, compensated=compensated)
    found, items = [], []
    for epoch in range(3):
        items.append(list(sampler))
        score, held = _scores(labels, epoch), np.arange(0, len(labels), 2)
        cuts = np.linspace(0, 1, size + 1) ** 2 if size > 2 else np.array([0, 0.3, 1] if size == 2 else [0, 1])
        own = [held[int(a * len(held)) : int(b * len(held))] for a, b in itertools.pairwise(cuts)][rank]
        pool = np.random.default_rng(epoch).permutation(len(labels))[:400][rank::size]
        sampler.update(labels[own], score[own], rows=pool, row_score=score[pool])
        weights = sampler.weights
        found.append([*weights.share, weights.hardness, weights.half_life, *sampler.metrics.values(), *sampler.class_weight])
        found.append(sampler.sample_weight(np.arange(len(labels))).tolist())
    return found, items, sampler


@pytest.mark.parametrize(("labels", "policy"), [(LABELS, "auto"), (LABELS, "ppo"), (THREE, "ppo"), (THREE, "constant:share=.3,hardness=1")])
def test_all_ranks_have_the_same_weights_to_the_bit(labels: Any, policy: str) -> None:
    compensated = True if policy == "ppo" else None
    alone, items, _ = on_ranks(1, lambda group: _trained(group, labels, policy, compensated=compensated))[0]
    for size in (2, 4):
        ranks = on_ranks(size, lambda group: _trained(group, labels, policy, compensated=compensated))
        for found, _, _ in ranks:
            assert found == alone
        for epoch in range(3):
            steps = zip(*(own[epoch] for _, own, _ in ranks), strict=True)
            assert [row for step in steps for row in step] == items[epoch]


@pytest.mark.parametrize("compensated", [None, True])
def test_counts_of_scores_give_nearly_the_weights_of_the_scores(compensated: bool | None) -> None:
    policy = "ppo" if compensated else "constant:share=.3,hardness=1"
    exact, _, _ = _trained(None, LABELS, policy, compensated=compensated)
    pooled, _, _ = on_ranks(2, lambda group: _trained(group, LABELS, policy, compensated=compensated))[0]
    for one, other in zip(exact, pooled, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=1e-3)


def test_two_classes_are_exchanged_as_counts() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(50_000) < 0.05).astype(np.int64)
    p = 1 / (1 + np.exp(4 - 3 * label - rng.normal(size=50_000)))
    score = np.stack([1 - p, p], axis=1)

    def pooled(group: Any) -> tuple[ScoredRows, int]:
        part = slice(group.rank, None, group.size)
        return pooled_rows(group, label[part], score[part]), sum(group.sent)

    (one, sent), (other, _) = on_ranks(2, pooled)
    assert sent == 2 * BINS * 8  # whatever the number of rows
    assert one.weight is not None and one.weight.sum() == 50_000
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("label", "score", "weight"))
    figures = macro_metrics(one.label, one.score[None], np.asarray(one.weight))
    exact = macro_metrics(label, score[None], np.ones(50_000))
    assert figures.average_precision[0] == pytest.approx(exact.average_precision[0], abs=5e-4)
    assert figures.f1[0] == pytest.approx(exact.f1[0], abs=1e-3)
    ends = score_counts(np.array([0, 1, 1]), np.array([0.0, 1.0, 0.5]))
    assert [ends[0, 0], ends[1, -1], ends[1, BINS // 2]] == [1, 1, 1]
    with pytest.raises(InputError, match="no scored rows"):
        pooled_rows(OneRank(), label[:0], score[:0])


def test_an_error_on_one_rank_is_raised_on_all_and_changes_nothing() -> None:
    def wrong(group: FakeRank, number: int) -> str:
        sampler = AdaptiveSampler(LABELS, policy="rule", epochs=4, group=group)
        before = sampler.state_dict()["controller"]
        first, y, p = group.rank == 0, LABELS[::10], _scores(LABELS, 0)[::10]
        given: list[dict[str, Any]] = [
            {"y_true": y, "y_score": np.full(len(y), np.nan) if not first else p},
            {"y_true": y, "y_score": p, "rows": [5000] if first else [1], "row_score": p[:1]},
            {"y_true": y, "y_score": p} | ({"rows": [1], "row_score": p[:1]} if first else {}),
            {"y_true": y[y == 1], "y_score": p[y == 1]},
            {"y_true": y, "y_score": p, "rows": [1]},
        ]
        with pytest.raises(InputError) as raised:
            sampler.update(**given[number])
        assert sampler.state_dict()["controller"] == before
        return str(raised.value)

    texts = [on_ranks(2, lambda group, number=number: wrong(group, number)) for number in range(5)]
    assert "y_score of row 0 is not finite" in texts[0][1] and texts[0][0] == f"on rank 1: {texts[0][1]}"
    assert "rows must be one vector" in texts[1][0] and texts[1][1] == f"on rank 0: {texts[1][0]}"
    assert texts[2] == ["1 of 2 ranks give rows and row_score; give them on all ranks (a part may be empty), or on none"] * 2
    assert all("no row of class 0" in text for text in texts[3])
    assert all("give rows and row_score together" in text for text in texts[4])


def test_who_exchanges_scores() -> None:
    y, p = LABELS[::10], _scores(LABELS, 0)[::10]
    for gather in ("auto", "none"):
        alone = AdaptiveSampler(LABELS, policy="rule", epochs=4, rank=0, num_replicas=2)
        alone.update(y, p, gather=gather)  # torch.distributed is not initialised: the scores as they are
        assert alone.weights.to_dict() == _updated(AdaptiveSampler(LABELS, policy="rule", epochs=4)).to_dict()
    with pytest.raises(UnsupportedError, match=r"gather='all' needs torch\.distributed"):
        alone.update(y, p, gather="all")
    with pytest.raises(InputError, match="gather must be auto, all or none"):
        alone.update(y, p, gather="some")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="init_process_group first"):
        AdaptiveSampler(LABELS, epochs=4, group=object())
    with pytest.raises(InputError, match="group has rank 0 of 1, but rank=1, num_replicas=2"):
        AdaptiveSampler(LABELS, epochs=4, group=OneRank(), rank=1, num_replicas=2)
    given = AdaptiveSampler(LABELS, epochs=4, group=OneRank())
    assert (given.rank, given.num_replicas, repr(OneRank())) == (0, 1, "OneRank()")


def _updated(sampler: AdaptiveSampler) -> Any:
    return sampler.update(LABELS[::10], _scores(LABELS, 0)[::10])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batches_over_all_ranks_hold_exact_quotas(size: int) -> None:
    options: dict[str, Any] = {"labels": THREE, "batch_size": 24, "policy": "constant:share=.3"}
    ranks = [_make("parts", rank, size, **options) for rank in range(size)]
    parts = [np.array(list(sampler)) for sampler in ranks]
    assert {part.shape for part in parts} == {(22, 24 // size)}
    batches = np.concatenate(parts, axis=1)
    held = np.stack([(THREE[batches] == c).sum(axis=1) for c in range(3)], axis=1)
    ideal = ranks[0].batch_share * 24
    assert (held >= np.floor(ideal + 1e-9)).all() and (held <= np.ceil(ideal - 1e-9)).all()
    assert np.abs(held.sum(axis=0) - 22 * ideal).max() < 1 + 1e-6
    one = _make("batches", **options)
    assert [sorted(batch) for batch in batches.tolist()] == [sorted(batch) for batch in one]
    np.testing.assert_array_equal(ranks[0].class_weight, one.class_weight)
    state = ranks[0].state_dict()
    with pytest.raises(InputError, match="saved state is that of Distributed"):
        one.load_state_dict(state)


def test_batches_that_can_not_be_divided_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size 8 must be a multiple of the 3 ranks"):
        _make("parts", 0, 3)
    with pytest.raises(InputError, match="give labels, or shards and num_shards"):
        DistributedAdaptiveBatchSampler(epochs=2, batch_size=8)


def test_a_stored_state_of_one_process_is_continued_by_two_ranks() -> None:
    stored = Path(__file__).parents[1] / "stored" / "0.1" / "torch_sampler.json"
    content = json.loads(stored.read_text())
    ranks = [AdaptiveSampler(test_stored.LABELS, **content["options"], rank=rank, num_replicas=2) for rank in range(2)]
    for sampler in ranks:
        sampler.load_state_dict(test_stored.as_arrays(content["state"]))
    start = content["state"]["handed"] % 2
    parts = [list(ranks[(start + turn) % 2]) for turn in range(2)]
    assert [row for step in zip(*parts, strict=True) for row in step][: len(content["next"])] == content["next"]
