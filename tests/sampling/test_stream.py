"""Streams: items are drawn to the shares, counted and repeatable, behind any number of workers and ranks."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import balancer
from balancer.errors import InputError
from balancer.sampling.core import SamplerCore
from balancer.sampling.losses import AdaptiveLoss
from balancer.sampling.stream import AdaptiveStream
from balancer.sampling.stream_buffer import ClassBuffers, drawn_items, reads_per_draw
from balancer.sampling.weights import SamplingWeights

ROOT = Path(__file__).resolve().parents[2]


def _items(n: int = 5000, rare: float = 0.02, seed: int = 0) -> list[tuple[int, int]]:
    """Pairs (number of the item, class)."""
    return list(enumerate((np.random.default_rng(seed).random(n) < rare).astype(int).tolist()))


def _stream(source: Any = None, **options: Any) -> AdaptiveStream:
    given = {"classes": [0, 1], "epochs": 4, "num_samples": 2000, "policy": "constant:share=.3"} | options
    return AdaptiveStream(_items() if source is None else source, **given)


def _loaded(stream: AdaptiveStream, workers: int, batch_size: int = 50, **options: Any) -> list[tuple[int, int]]:
    loader = DataLoader(stream, batch_size=batch_size, num_workers=workers, **options)
    return [pair for x, y in loader for pair in zip(x.tolist(), y.tolist(), strict=True)]


def _share(items: Iterable[tuple[int, int]]) -> float:
    return float(np.mean([y for _, y in items]))


def test_items_are_drawn_to_the_shares_and_counted() -> None:
    items = _items(20_000, 0.01)
    stream = _stream(items)
    drawn = list(stream)
    assert len(drawn) == len(stream) == 2000
    assert _share(drawn) == pytest.approx(0.3, abs=0.04)
    assert set(drawn) <= set(items)
    times = Counter(drawn)
    for name in (0, 1):
        different = sum(1 for item in times if item[1] == name)
        total = sum(number for item, number in times.items() if item[1] == name)
        assert stream.kept[name] >= different  # the source may have been read more than once
        assert stream.kept[name] + stream.repeated[name] == total
    assert stream.repeated[0] == 0 and stream.repeated[1] > 0
    assert (stream.seen >= stream.kept).all()
    assert stream.seen.sum() == pytest.approx(2000 * 0.3 / 0.01 / 8, rel=0.3)
    rare = [number for item, number in times.items() if item[1]]
    assert np.mean(rare) < 12 and max(rare) < 60
    assert stream.prior[1] == pytest.approx(0.01, rel=0.3)


def test_nothing_is_repeated_where_it_must_not_be() -> None:
    stream = _stream(_items(20_000, 0.05), repeats=1, num_samples=1500)
    drawn = list(stream)
    assert max(Counter(drawn).values()) == 1 and not stream.repeated.any()
    assert _share(drawn) == pytest.approx(0.3, abs=0.05)
    assert stream.seen.sum() >= 0.9 * 1500 * 0.3 / 0.05


def test_the_shares_do_not_depend_on_the_order_or_the_estimate() -> None:
    clumped = [(number, int(number % 3000 >= 2900)) for number in range(30_000)]  # a hundred rare items in a row
    for prior in (None, [0.8, 0.2], [0.999, 0.001]):
        drawn = list(_stream(clumped, num_samples=3000, prior=prior))
        assert _share(drawn) == pytest.approx(0.3, abs=0.04)
        assert max(Counter(item for item in drawn if item[1]).values()) < 100


def test_a_class_that_does_not_come_gives_its_share_to_the_others() -> None:
    source = [(number, "ab"[number % 10 == 0]) for number in range(2000)]
    stream = AdaptiveStream(source, classes=["a", "b", "c"], epochs=2, num_samples=1000, policy="constant:share=.6")
    drawn = list(stream)
    assert len(drawn) == 1000
    assert 0 < sum(name == "b" for _, name in drawn) < 700
    assert any("'c'" in note for note in stream.notes)
    assert stream.seen.tolist()[2] == 0


def test_many_classes() -> None:
    rng = np.random.default_rng(0)
    prior = np.arange(1, 31) ** -1.5
    source = list(enumerate(rng.choice(30, 40_000, p=prior / prior.sum()).tolist()))
    stream = AdaptiveStream(source, classes=range(30), epochs=2, num_samples=6000, policy="constant:share=root")
    share = np.bincount([y for _, y in stream], minlength=30) / 6000
    np.testing.assert_allclose(share, stream.weights.share, atol=0.02)


def test_one_pass_over_the_source_is_an_epoch_without_num_samples() -> None:
    items = _items(4000, 0.1)
    stream = _stream(items, num_samples=None, epochs=2)
    with pytest.raises(TypeError, match="num_samples"):
        len(stream)
    first = list(stream)
    assert stream.seen.sum() == 4000 and stream.num_samples is None
    assert len(first) == pytest.approx(4000, rel=0.05)  # .3 / .1 / 8 is less than one read for a draw
    assert _share(first) == pytest.approx(0.3, abs=0.04)
    second = list(stream)
    assert stream.seen.sum() == 8000 and second != first
    assert len(_loaded(_stream(items, num_samples=None), 2)) == pytest.approx(4000, rel=0.1)


def test_an_epoch_is_a_function_of_the_seed_and_its_number() -> None:
    epochs = [[list(stream) for _ in range(3)] for stream in (_stream(seed=3), _stream(seed=3), _stream(seed=4))]
    assert epochs[0] == epochs[1] != epochs[2]
    assert epochs[0][0] != epochs[0][1]


def test_the_next_epoch_continues_in_the_source() -> None:
    read: list[int] = []

    class Source:
        def __iter__(self) -> Iterator[tuple[int, int]]:
            for item in _items(50_000, 0.2):
                read.append(item[0])
                yield item

    stream = _stream(Source(), prior=[0.8, 0.2])
    list(stream)
    first = len(read)
    list(stream)
    assert read == list(range(len(read))) and len(read) > first


@pytest.mark.parametrize(
    "options",
    [{}, {"persistent_workers": True}, pytest.param({"multiprocessing_context": "spawn"}, marks=pytest.mark.slow)],
    ids=["forked", "persistent", "spawned"],
)
def test_workers_read_different_items_and_continue(options: dict[str, Any]) -> None:
    items = _items(30_000, 0.2)
    stream = _stream(items, repeats=1, num_samples=600, prior=[0.8, 0.2])
    loader = DataLoader(stream, batch_size=50, num_workers=2, **options)
    drawn = []
    for epoch in range(2):
        now = [pair for x, y in loader for pair in zip(x.tolist(), y.tolist(), strict=True)]
        assert len(now) == 600 and _share(now) == pytest.approx(0.3, abs=0.07)
        drawn += now
        assert stream.kept.sum() == 600 * (epoch + 1)  # what the workers have counted
        stream.update([0, 1, 0, 1], [0.2, 0.8, 0.3, 0.7])
        assert stream.epoch == epoch + 1
    assert len(set(drawn)) == 1200  # no item twice, neither from two workers nor in the next epoch
    assert {number % 2 for number, _ in drawn} == {0, 1}
    # In the sharing of one process the same items come again.
    again = _stream(items, repeats=1, num_samples=600, prior=[0.8, 0.2])
    assert sorted(_loaded(again, 2)) == sorted(drawn[:600])


def test_workers_draw_by_the_weights_of_the_update() -> None:
    class Turn:
        name = "turn"

        def act(self, observation: Any) -> SamplingWeights:
            rare = 0.6 if observation.started else 0.2
            return SamplingWeights(np.array([1 - rare, rare]))

    stream = _stream(_items(20_000, 0.1), policy=Turn())
    loader = DataLoader(stream, batch_size=50, num_workers=2, persistent_workers=True)
    shares = []
    for _ in range(2):
        shares.append(np.mean([float(y.float().mean()) for _, y in loader]))
        stream.update([0, 1], [0.2, 0.8])
    assert shares == pytest.approx([0.2, 0.6], abs=0.05)


def test_a_source_may_divide_itself() -> None:
    asked: list[tuple[int, int]] = []

    def shard(number: int, shards: int) -> Iterator[tuple[int, int]]:
        asked.append((number, shards))
        return iter(_items(9000, 0.2)[number::shards])

    stream = _stream(shard, num_samples=300, rank=1, num_replicas=3)
    assert len(list(stream)) == len(stream) == 100
    assert asked == [(0, 1), (1, 3)]  # the first items for the prior, then the own share

    class Own(IterableDataset[tuple[int, int]]):
        def __iter__(self) -> Iterator[tuple[int, int]]:
            info = get_worker_info()
            first, step = (0, 1) if info is None else (info.id, info.num_workers)
            return iter(_items(9000, 0.2)[first::step])

    drawn = _loaded(_stream(Own(), sharded=True, repeats=1, num_samples=400), 2)
    assert len(set(drawn)) == 400 and {number % 2 for number, _ in drawn} == {0, 1}


def test_ranks_read_different_items_and_can_share_their_counts() -> None:
    items = _items(30_000, 0.2)
    ranks = [_stream(items, repeats=1, num_samples=601, rank=rank, num_replicas=2) for rank in range(2)]
    drawn = [list(stream) for stream in ranks]
    assert [len(part) for part in drawn] == [301, 301]
    assert not set(drawn[0]) & set(drawn[1])
    seen = ranks[0].seen + ranks[1].seen
    for stream in ranks:
        stream.update([0, 1], [0.2, 0.8], seen=seen)
    np.testing.assert_array_equal(ranks[0].class_weight, ranks[1].class_weight)
    with pytest.raises(InputError, match="seen"):
        ranks[0].update([0, 1], [0.2, 0.8], seen=[1])


def test_an_iterator_is_read_once_and_nothing_of_it_is_lost() -> None:
    stream = _stream(iter(_items(5000, 0.2)), epochs=1, num_samples=500, repeats=1)
    epochs = [list(stream) for _ in range(5)]
    assert len(set(itertools.chain(*epochs))) == sum(map(len, epochs))
    assert min(number for number, _ in epochs[0]) < 50  # those read for the prior are drawn too
    assert min(number for number, _ in epochs[1]) > 500
    with pytest.raises(InputError, match="no items left"):
        for _ in range(9):
            list(stream)
    assert stream.seen.sum() == 5000


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda: (item for item in _items()), "generator"), (lambda: iter(_items()), "list_iterator"), (lambda: map(tuple, _items()), "map")],
)
@pytest.mark.parametrize("num_samples", [None, 100])
def test_an_iterator_is_refused_for_several_epochs(make: Callable[[], Any], name: str, num_samples: int | None) -> None:
    source = make()
    with pytest.raises(InputError, match=rf"source is a {name}, which can be read only once, but there are 3 epochs; give an iterable"):
        _stream(source, epochs=3, num_samples=num_samples)
    assert len(list(source)) == 5000  # nothing of it was read
    assert len(list(_stream(make(), epochs=1, num_samples=num_samples))) > 50


def test_a_source_without_an_end_is_read_on_over_the_epochs() -> None:
    endless = ((number, int(number % 5 == 0)) for number in itertools.count())
    stream = _stream(lambda shard, shards: itertools.islice(endless, shard, None, shards), prior=[0.8, 0.2], repeats=1, epochs=3)
    epochs = [list(stream) for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [2000] * 3
    assert len(set(itertools.chain(*epochs))) == 6000
    assert min(number for number, _ in epochs[0]) < 50 and min(number for number, _ in epochs[1]) > 1000


@pytest.mark.parametrize("consumed", [0, 1, 777, 1999, 2000])
def test_a_resumed_stream_continues_with_the_next_item(consumed: int) -> None:
    def make() -> AdaptiveStream:
        return _stream(policy="rule", seed=2)

    valid = (np.repeat([0, 1], [90, 10]), np.linspace(0, 1, 100))
    whole = make()
    epochs = [list(whole)]
    whole.update(*valid)
    epochs += [list(whole), list(whole)]
    stream = make()
    list(stream)
    stream.update(*valid)
    walk = iter(stream)
    done = list(itertools.islice(walk, consumed))
    state = json.loads(json.dumps(stream.state_dict(), default=lambda value: value.tolist()))
    fresh = make()
    fresh.load_state_dict(state)
    assert len(fresh) == (2000 - consumed) % 2000 or 2000
    rest = list(fresh)
    if consumed == 2000:
        assert rest == epochs[2]
    else:
        assert done + rest == epochs[1]
        assert len(fresh) == 2000 and list(fresh) == epochs[2]
    np.testing.assert_array_equal(fresh.seen if consumed < 2000 else whole.seen, whole.seen)
    np.testing.assert_array_equal(fresh.weights.share, whole.weights.share)


def test_items_read_ahead_are_not_lost_where_the_loop_says_what_it_used() -> None:
    whole, stream = list(_stream(seed=1)), _stream(seed=1)
    list(itertools.islice(iter(stream), 300))
    fresh = _stream(seed=1)
    fresh.load_state_dict(stream.state_dict(consumed=250))
    fresh.set_epoch(0)  # as trainers do; it is the epoch in progress
    assert list(fresh) == whole[250:]
    with pytest.raises(InputError, match="consumed"):
        stream.state_dict(consumed=2001)


def test_behind_workers_a_resumed_epoch_begins_again() -> None:
    whole = _stream(seed=1)
    epochs = [_loaded(whole, 2) for _ in range(2)]
    stream = _stream(seed=1)
    assert _loaded(stream, 2) == epochs[0]
    loader = DataLoader(stream, batch_size=50, num_workers=2)
    for _ in zip(range(5), loader, strict=False):
        pass
    state = stream.state_dict(consumed=250)
    fresh = _stream(seed=1)
    fresh.load_state_dict(state)
    assert _loaded(fresh, 2) == epochs[1]
    done = _stream(seed=1)
    done.load_state_dict(whole.state_dict())
    assert done.epoch == 2


def test_a_loop_that_was_left_early_goes_on_with_the_next_epoch() -> None:
    stream = _stream()
    first = list(itertools.islice(iter(stream), 100))
    assert stream.epoch == 0
    second = list(stream)
    assert len(second) == 2000 and stream.epoch == 2 and second[:100] != first
    list(itertools.islice(iter(stream), 100))
    stream.update([0, 1], [0.1, 0.9])
    assert stream.epoch == 3
    stream.set_epoch(7)
    assert stream.epoch == 7


def test_states_of_other_streams_are_refused() -> None:
    stream = _stream()
    state = stream.state_dict()
    for other, match in (
        (_stream(num_samples=100), "num_samples"),
        (_stream(epochs=9), "epochs"),
        (_stream([(0, "a"), (1, "b")], classes=["a", "b"]), "training rows"),
        (_stream([(0, 0), (1, 1)], classes=[0, 1, 2]), "number of classes"),
    ):
        before = other.state_dict()
        with pytest.raises(InputError, match=match):
            other.load_state_dict(state)
        assert str(other.state_dict()) == str(before)
    with pytest.raises(InputError, match="no state of an AdaptiveStream"):
        stream.load_state_dict(SamplerCore([0, 1], epochs=1).state_dict())
    part = _stream(rank=0, num_replicas=2)
    list(itertools.islice(iter(part), 10))
    with pytest.raises(InputError, match="num_replicas"):
        stream.load_state_dict(part.state_dict())


def test_the_loss_is_compensated_and_its_probabilities_are_calibrated() -> None:
    """A logistic model trained by the stream's loss has the probabilities of one trained on all items."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2))
    y = (rng.random(20_000) < 1 / (1 + np.exp(-(2 * x[:, 0] - 5.0)))).astype(int)
    items = [(x[row].astype(np.float32), int(y[row])) for row in range(len(y))]
    stream = AdaptiveStream(items, classes=[0, 1], epochs=6, num_samples=8000, compensated=True)
    assert stream.weights.class_importance > 0
    model, loss = torch.nn.Linear(2, 1), AdaptiveLoss(stream)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(6):
        for features, target in DataLoader(stream, batch_size=200):
            optimizer.zero_grad()
            loss(model(features), target).backward()
            optimizer.step()
        with torch.no_grad():
            p = np.asarray(stream.probabilities(model(torch.as_tensor(x, dtype=torch.float32))))
        stream.update(y, p)
    natural = LogisticRegression(C=1e6).fit(x, y).predict_proba(x)
    assert float(p[:, 1].mean()) == pytest.approx(y.mean(), rel=0.15)
    assert np.corrcoef(np.log(p[:, 1]), np.log(natural[:, 1]))[0, 1] > 0.99
    np.testing.assert_allclose(stream.prior, np.bincount(y) / len(y), atol=0.005)
    with pytest.raises(InputError, match="no rows"):
        stream.loss(model(features), target, rows=[0])


def test_loss_weights_hold_for_an_epoch_and_follow_the_prior_at_the_next() -> None:
    stream = _stream(_items(20_000, 0.1), prior=[0.5, 0.5], policy="constant:share=.6,class_importance=1")
    before = stream.class_weight
    np.testing.assert_allclose(before, [0.5 / 0.4, 0.5 / 0.6])  # class weights are prior / share
    list(stream)
    np.testing.assert_array_equal(stream.class_weight, before)
    assert stream.prior[1] == pytest.approx(0.1, abs=0.03)
    stream.update([0, 1, 1], [0.2, 0.7, 0.8])
    np.testing.assert_allclose(stream.class_weight, stream.prior / stream.weights.share, rtol=1e-6)
    np.testing.assert_allclose(np.exp(stream.logit_offset), stream.prior, rtol=1e-6)


def test_the_policy_sees_the_estimated_prior_and_the_use_of_the_loss() -> None:
    stream = AdaptiveStream(_items(20_000, 0.04), classes=[0, 1], epochs=4, num_samples=5000)
    assert stream.weights.share[1] == pytest.approx(0.5)  # nothing compensates: equal shares
    AdaptiveLoss(stream)
    assert stream.weights.class_importance > 0  # before the first item the policy answers anew
    list(stream)
    stream.update([0, 1], [0.2, 0.8])
    labels = np.arange(100_000) < 100_000 * stream.prior[1]
    table = SamplerCore(labels.astype(int), epochs=4, num_samples=5000, compensated=True)
    np.testing.assert_allclose(stream.weights.share, table.weights.share, rtol=0.01)
    assert "AdaptiveStream(policy=" in repr(stream) and "seen={" in repr(stream)


def test_labels_of_many_kinds() -> None:
    pairs = _items(400, 0.2)
    forms: list[tuple[Any, Any]] = [
        ([(n, torch.tensor(y)) for n, y in pairs], None),
        ([(n, np.int8(y)) for n, y in pairs], 1),
        ([{"id": n, "y": bool(y)} for n, y in pairs], "y"),
        ([(y, n) for n, y in pairs], 0),
        ([n for n, _ in pairs], lambda n: pairs[n][1]),
        ([(n, float(y)) for n, y in pairs], None),
    ]
    drawn = [list(_stream(source, label=label, num_samples=100)) for source, label in forms]
    numbers = [[item["id"] if isinstance(item, dict) else item for item in part] for part in drawn]
    assert [n for n, _ in numbers[0]] == [n for n, _ in numbers[1]] == numbers[2] == [n for _, n in numbers[3]] == numbers[4]
    holes = [(n, None if n % 4 == 0 else float("nan") if n % 4 == 1 else -1 if n % 4 == 2 else y) for n, y in pairs]
    stream = _stream(holes, unlabelled=-1, num_samples=200)
    assert all(n % 4 == 3 for n, _ in stream)
    assert stream.skipped >= stream.seen.sum() * 2


def test_a_data_set_with_indices_is_read_in_its_order() -> None:
    pairs = _items(400, 0.2)

    class Indexed:
        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, row: int) -> tuple[int, int]:
            return pairs[row]

    for options in ({}, {"rank": 1, "num_replicas": 2}):
        assert list(_stream(Indexed(), **options)) == list(_stream(pairs, **options))


def test_errors_for_wrong_arguments() -> None:
    items = _items(50, 0.5)
    for options, match in (
        ({"classes": [0]}, "two or more"),
        ({"classes": [0, 1, 1]}, "two or more"),
        ({"classes": [0, None]}, "means no label"),
        ({"classes": [0, 1], "unlabelled": 1}, "means no label"),
        ({"classes": [0, "a"]}, "one kind"),
        ({"buffer": 0}, "buffer"),
        ({"repeats": 0.5}, "repeats"),
        ({"num_samples": 1}, "num_samples"),
        ({"prior": [1.0, 0.0]}, "prior"),
        ({"prior": [0.5, 0.2, 0.3]}, "prior"),
        ({"label": 5}, "has no 5"),
        ({"rank": 2, "num_replicas": 2}, "rank 2"),
        ({"policy": "unknown"}, "unknown"),
    ):
        with pytest.raises(InputError, match=match):
            _stream(items, **options)
    for source, match in (
        ([], "no labelled items"),
        ([(0, None)], "no labelled items"),
        ([(0, 7)], "class 7"),
        ([3, 4], "no pair"),
        (5, "source must be"),
        ([(0, [1, 2])], "not among classes"),
        ([(0, np.array([1, 2]))], "one value"),
    ):
        with pytest.raises(InputError, match=match):
            _stream(source)
    with pytest.raises(ZeroDivisionError):  # an error of the user's own function is not hidden
        _stream(items, label=lambda item: 1 // 0)
    with pytest.raises(InputError, match="no labelled items"):
        list(_stream(lambda shard, shards: [(0, None)], prior=[0.5, 0.5]))
    with pytest.raises(InputError, match="share 2 of 3"):
        list(_stream([(0, 0), (1, 1)], rank=2, num_replicas=3))


def test_what_is_read_for_each_draw_bounds_the_repeats() -> None:
    assert reads_per_draw(np.array([0.5, 0.5]), np.array([0.5, 0.5]), 8) == 1
    assert reads_per_draw(np.array([0.5, 0.5]), np.array([0.99, 0.01]), 5) == pytest.approx(10)
    assert reads_per_draw(np.array([0.5, 0.5]), np.array([1 - 1e-9, 1e-9]), 8) == 100

    class Nothing:
        def seen(self, code: int) -> None: ...
        def kept(self, code: int) -> None: ...
        def repeated(self, code: int) -> None: ...

    buffers, rng = ClassBuffers(2, 3, Nothing(), repeats=8.0), np.random.default_rng(0)
    for number in range(5):
        buffers.put(0, number, 0.0)
    assert [buffers.take(0, 0.0) for _ in range(3)] == [2, 3, 4]  # the oldest were rejected
    assert buffers.take(0, 0.0) in (2, 3, 4) and not buffers.holds(1)
    with pytest.raises(InputError, match="with a share came"):
        list(
            drawn_items(
                zip(itertools.repeat(0), itertools.count(), strict=False),
                ClassBuffers(2, 3, Nothing(), repeats=8.0),
                np.array([0.0, 1.0]),
                np.array([0.5, 0.5]),
                reads=lambda: 1.0,
                most=5,
                rng=rng,
            )
        )


def test_it_is_a_public_name_and_a_data_set_of_torch() -> None:
    assert balancer.AdaptiveStream is balancer.sampling.AdaptiveStream is AdaptiveStream
    assert issubclass(AdaptiveStream, IterableDataset)


def test_it_needs_numpy_alone() -> None:
    code = """
import sys
sys.modules["torch"] = None
from balancer import AdaptiveStream
stream = AdaptiveStream([(n, n % 20 == 0) for n in range(2000)], classes=[False, True], epochs=2, num_samples=500, policy="constant:share=.3")
drawn = list(stream)
stream.update([False, True], [0.1, 0.8])
again = AdaptiveStream([(n, n % 20 == 0) for n in range(2000)], classes=[False, True], epochs=2, num_samples=500, policy="constant:share=.3")
again.load_state_dict(stream.state_dict())
assert list(again) == list(stream)
print(len(drawn), round(sum(y for _, y in drawn) / 500, 1), stream.probabilities([0.0]).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["500", "0.3", "(1,", "2)"]
