"""The native step: torch's step in every form, attention and part; the same bits in every instruction set,
for any rows beside a row, from a pass over a history and from bytes; what it does not know is torch's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import balancer.inference.streaming as streaming
from balancer.errors import InputError, UnsupportedError
from balancer.inference.streaming import RowState, RowStream
from balancer.models import Classifier, ModelConfig
from balancer.models.attention.layout import Layout
from balancer.models.step import INSTRUCTION_SETS, NativeStep, absence, native, refuses
from balancer.serving.scoring.state import pack, unpack

CPU = torch.device("cpu")
TOLERANCE = 1e-6
needs_kernel = pytest.mark.skipif(absence() is not None, reason=f"the native step is not here: {absence()}")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(streaming.STEP_VARIABLE, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def classifier(
    seed: int = 0, *, numeric: int = 5, categorical: int = 2, num_classes: int = 2, margin: bool = True, **changes: Any
) -> Classifier:
    """A model whose weights, norms and biases are all random."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    settings = {"history_length": 20, "d_model": 32, "num_heads": 4, "attention_window": 6, "global_nodes": 3, "form": "histories"}
    model = Classifier(
        ModelConfig(
            tuple(f"n{place}" for place in range(numeric)),
            tuple(f"c{place}" for place in range(categorical)),
            tuple(3 + place for place in range(categorical)),
            [np.unique(rng.normal(size=rng.integers(2, 9)).astype(np.float32)) for _ in range(numeric)],
            classes=tuple(f"k{place}" for place in range(num_classes)),
            head="binary" if num_classes == 2 else "multiclass",
            margin="n1" if margin and numeric > 1 else "",
            cycles=(("n0", 2.5), ("n0", 24.0)) if numeric else (),
            missing=("n0", "n2") if numeric > 2 else (),
            **(settings | changes),
        )
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return model


def history(model: Classifier, count: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows with missing, infinite and very large numbers, and unknown codes."""
    rng, config = np.random.default_rng(seed), model.config
    numbers = rng.normal(size=(count, len(config.numeric_fields))) * 1.5
    codes = rng.integers(-2, 8, (count, len(config.categorical_fields)))
    values = np.concatenate([numbers, codes], axis=1).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    odd = rng.random(numbers.shape) < 0.02
    odd[:, 1:2] = False  # a margin of a million leaves nothing to compare
    values[:, : numbers.shape[1]][odd] = rng.choice([math.inf, -math.inf, 1e30, -1e30], odd.sum())
    return values


def stream(model: Classifier, kind: str) -> RowStream:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(streaming.STEP_VARIABLE, kind)
        return RowStream(model, CPU)


def stepped(stream: RowStream, values: NDArray[np.float32]) -> tuple[NDArray[np.float32], RowState]:
    state, every = stream.start(), []
    for row in values:
        probability, state = stream.advance(row, state)
        every.append(probability)
    return np.array(every), state


PARTS = {
    "window": {"attention": "window", "history_length": 21},
    "sparse": {"attention": "sparse", "history_length": 64},
    "sparse of many nodes": {"attention": "sparse", "history_length": 90, "attention_window": 18, "global_nodes": 17},
    "dense": {"attention": "dense"},
    "shortest history": {"attention": "sparse", "history_length": 2, "attention_window": 1, "global_nodes": 1},
    "one token of window": {"attention": "sparse", "history_length": 30, "attention_window": 1},
    "window beyond the history": {"attention": "sparse", "attention_window": 64},
    "periodic, three kinds": {"attention": "sparse", "history_length": 64, "numeric_encoding": "periodic", "num_classes": 4},
    "two kinds": {"attention": "window", "num_classes": 3, "d_model": 20, "num_heads": 5, "num_layers": 3},
    "heads of 24": {"attention": "sparse", "history_length": 64, "d_model": 48, "num_heads": 2, "num_layers": 1},
    "heads of 2": {"attention": "sparse", "history_length": 64, "d_model": 6, "num_heads": 3},
    "six heads": {"attention": "sparse", "history_length": 64, "d_model": 96, "num_heads": 6},
    "twenty classes": {"attention": "window", "num_classes": 20, "margin": False},
    "numbers only": {"attention": "sparse", "categorical": 0},
    "codes only": {"attention": "sparse", "numeric": 0, "margin": False},
    **{
        f"score {name}": {"attention": "sparse", "history_length": 64, "score": name}
        for name in ("channel_entropy", "surprisal", "learned", "random")
    },
    "rows": {"form": "rows", "attention": "dense", "history_length": 8},
    "rows, one of them": {"form": "rows", "attention": "dense", "history_length": 1},
    "rows, longer than a piece": {"form": "rows", "attention": "dense", "history_length": 70, "num_classes": 3},
    "rows, window": {"form": "rows", "attention": "window", "history_length": 20},
    "rows, sparse": {"form": "rows", "attention": "sparse", "history_length": 50, "numeric_encoding": "periodic"},
    "rows, sparse as dense": {"form": "rows", "attention": "sparse", "history_length": 6},
}


@needs_kernel
@pytest.mark.parametrize("name", PARTS)
def test_it_is_the_step_of_torch(name: str) -> None:
    """Three histories, several windows and segments long."""
    for seed in range(3):
        model = classifier(seed, **PARTS[name])
        values = history(model, 130, seed)
        expected, _ = stepped(stream(model, "torch"), values)
        found, _ = stepped(stream(model, "native"), values)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
        assert np.unique(expected[:, 0]).size > 100


@needs_kernel
@pytest.mark.parametrize("name", PARTS)
def test_every_instruction_set_gives_the_same_bits(name: str) -> None:
    model = classifier(**PARTS[name])
    values = history(model, 70)
    results, states = [], []
    for number in range(len(INSTRUCTION_SETS)):
        step = NativeStep(model, instruction_set=number)
        state = step.start()
        results.append(np.concatenate([step.advance(row[None], [state]) for row in values]))
        states.append(state.to_bytes())
    for result, state in zip(results[1:], states[1:], strict=True):
        np.testing.assert_array_equal(result, results[0])
        assert state == states[0]


@needs_kernel
@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    form=st.sampled_from(["rows", "histories"]),
    attention=st.sampled_from(["dense", "window", "sparse"]),
    history_length=st.integers(2, 45),
    window=st.integers(1, 40),
    nodes=st.integers(0, 20),
    heads=st.sampled_from([(8, 1), (12, 3), (16, 2), (40, 5), (64, 4)]),
    layers=st.integers(1, 3),
    num_classes=st.integers(2, 4),
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=40),
)
def test_a_row_does_not_depend_on_its_call(
    seed: int,
    form: str,
    attention: str,
    history_length: int,
    window: int,
    nodes: int,
    heads: tuple[int, int],
    layers: int,
    num_classes: int,
    lengths: list[int],
) -> None:
    """Histories of any length in one call: as each by itself, after one pass, or from bytes."""
    model = classifier(
        seed,
        form=form,
        attention=attention,
        history_length=history_length,
        attention_window=window,
        global_nodes=nodes,
        d_model=heads[0],
        num_heads=heads[1],
        num_layers=layers,
        num_classes=num_classes,
    )
    native_stream = stream(model, "native")
    values = history(model, max(lengths) + 3, seed)
    chain, packed, whole = [], [], []
    state = native_stream.start()
    for row in values:
        packed.append(pack(state))
        whole.append(every_byte(state))
        probability, state = native_stream.advance(row, state)
        chain.append(probability)
    states = [native_stream.read(values[native_stream.first_needed(count - 1) if count else 0 : count], count) for count in lengths]
    assert [every_byte(each) for each in states] == [whole[count] for count in lengths]
    restored = [unpack(packed[count], count, native_stream, values[native_stream.next_begins(count) : count]) for count in lengths]
    assert [every_byte(each) for each in restored] == [whole[count] for count in lengths]
    assert all(len(short) <= len(each) for short, each in zip(packed, whole, strict=True))
    for more in range(3):
        rows = values[[count + more for count in lengths]]
        expected = [chain[count + more] for count in lengths]
        for group in (states, restored):
            found, group[:] = native_stream.advance_many(rows, group)  # type: ignore[arg-type]
            np.testing.assert_array_equal(found, expected)
    expected, _ = stepped(stream(model, "torch"), values)
    # A score that rounds to the other side selects another node: rarely, and in torch's own passes too.
    assert np.quantile(np.abs(np.array(chain) - expected).max(axis=1), 0.9) <= 2 * TOLERANCE


@needs_kernel
def test_threads_share_a_step() -> None:
    """Each thread has states of its own; the models in a process may have different sizes."""
    models = [classifier(**PARTS[name]) for name in ("sparse", "rows", "six heads", "twenty classes")]
    streams = [stream(model, "native") for model in models]
    values = [history(model, 100, seed) for seed, model in enumerate(models)]
    expected = [stepped(*pair)[0] for pair in zip(streams, values, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, wanted in zip(
                pool.map(lambda pair: stepped(*pair)[0], zip(streams * 3, values * 3, strict=True)), expected * 3, strict=True
            ):
                np.testing.assert_array_equal(found, wanted)


@needs_kernel
def test_a_state_is_kept_by_step_and_used_by_advance() -> None:
    model = classifier(attention="sparse")
    native_stream, values = stream(model, "native"), history(model, 40)
    _, state = stepped(native_stream, values[:39])
    first, after = native_stream.step(values[39], state)
    again, _ = native_stream.step(values[39], state)
    in_place, _ = native_stream.advance(values[39], state)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, in_place)
    assert after.position == 40
    for use in (native_stream.step, native_stream.advance):
        with pytest.raises(InputError, match="used by advance"):
            use(values[39], state)
    with pytest.raises(InputError, match="same state twice"):
        native_stream.advance_many(values[:2], [after, after])
    with pytest.raises(InputError, match="2 rows and states 1 states"):
        native_stream.advance_many(values[:2], [after])
    with pytest.raises(InputError, match=r"fields must be \(rows, 7\)"):
        native_stream.advance(values[0][:-1], after)
    with pytest.raises(InputError, match="another model"):
        stream(model, "native").advance(values[0], after)


def every_byte(state: RowState | None) -> bytes:
    """The bytes of a state with both segments."""
    assert state is not None
    assert state.native is not None
    return state.native.to_bytes()


@needs_kernel
def test_its_state_is_small_and_grows_with_the_history() -> None:
    """The default long history; a state that is read again has the bytes of its numbers only."""
    model = classifier(attention="sparse", history_length=2048, d_model=64, attention_window=64, global_nodes=8)
    native_stream, values = stream(model, "native"), history(model, 200)
    sizes = {count: len(pack(native_stream.read(values[:count], count))) for count in (1, 16, 64, 65, 200)}
    assert sizes[1] < 1_300
    assert sizes[16] < 17_000
    assert sizes[200] == sizes[65] < 76_000
    long = native_stream.read(history(model, 1500), 1500)
    assert len(pack(long)) < 76_000 < len(every_byte(long))
    rows = classifier(form="rows", attention="dense", history_length=8, d_model=64)
    state = stream(rows, "native").read(history(rows, 7), 200)
    assert len(pack(state)) < 7 * 64 * 4 + 100


@needs_kernel
@pytest.mark.parametrize("name", ["sparse", "dense", "rows"])
def test_bytes_of_another_kind_are_not_taken(name: str) -> None:
    model = classifier(**PARTS[name])
    values = history(model, 33)
    ways = {kind: stream(model, kind) for kind in ("native", "torch")}
    packed = {kind: pack(stepped(way, values)[1]) for kind, way in ways.items()}
    for kind, way in ways.items():
        other = packed["native" if kind == "torch" else "torch"]
        assert unpack(other, 33, way) is None
        assert unpack(packed[kind][:-1], 33, way) is None
        assert unpack(packed[kind] + b"\0", 33, way) is None
        assert unpack(b"", 33, way) is None
        kept = unpack(packed[kind], 33, way, values[way.next_begins(33) :])
        assert kept is not None
        assert pack(kept) == packed[kind]
    assert unpack(packed["native"], 34, ways["native"]) is None
    wider = classifier(**(PARTS[name] | {"num_layers": 3}))
    assert unpack(packed["native"], 33, stream(wider, "native")) is None
    with pytest.raises(InputError, match="made with torch's step"):
        ways["native"].advance(values[0], ways["torch"].start())
    with pytest.raises(InputError, match="made by the native step"):
        ways["torch"].advance(values[0], ways["native"].start())


@needs_kernel
def test_missing_and_infinite_margins() -> None:
    model = classifier(attention="window")
    values = history(model, 4)
    values[:, 1] = [np.nan, np.inf, -np.inf, 60.0]
    expected, _ = stepped(stream(model, "torch"), values)
    found, _ = stepped(stream(model, "native"), values)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert found[1, 1] == found[2, 0] == 1


@needs_kernel
def test_weights_that_are_not_a_number_give_scores_that_are_none() -> None:
    for form in ("rows", "histories"):
        model = classifier(form=form, attention="window")
        with torch.no_grad():
            model.blocks[0].ff1.weight[0, 0] = math.nan
        found, _ = stepped(stream(model, "native"), history(model, 3))
        assert np.isnan(found).all()


@needs_kernel
def test_adapters_are_merged() -> None:
    model = classifier(attention="sparse", adapter_rank=2)
    values = history(model, 50)
    found, _ = stepped(stream(model, "native"), values)
    np.testing.assert_allclose(found, stepped(stream(model, "torch"), values)[0], atol=TOLERANCE)
    plain, _ = stepped(stream(model.deployable(), "native"), values)
    np.testing.assert_array_equal(found, plain)


@needs_kernel
def test_later_weights_need_a_new_stream() -> None:
    model = classifier(attention="window")
    values = history(model, 3)
    old = stream(model, "native")
    before, _ = stepped(old, values)
    with torch.no_grad():
        model.norm.bias.add_(1.0)
    np.testing.assert_array_equal(stepped(old, values)[0], before)
    assert (stepped(stream(model, "native"), values)[0] != before).any()


def _hooked(model: Classifier) -> None:
    model.norm.register_forward_hook(lambda *_: None)


class _OwnNorm(nn.LayerNorm):
    pass


class _OwnLinear(nn.Linear):
    pass


def _with_attention(**changes: Any) -> Any:
    def change(model: Classifier) -> None:
        for name, value in changes.items():
            setattr(model.blocks[1].attention.core, name, value)

    return change


REFUSED: dict[str, tuple[Any, str]] = {
    "hooks": (_hooked, "hooks"),
    "a norm": (lambda model: setattr(model, "norm", _OwnNorm(32)), "layer _OwnNorm"),
    "a linear layer": (lambda model: setattr(model.blocks[1], "ff2", _OwnLinear(64, 32)), "layer _OwnLinear"),
    "a head": (lambda model: setattr(model, "head", type("OwnHead", (type(model.head),), {})(32)), "head OwnHead"),
    "an embedding": (lambda model: setattr(model, "embedding", nn.Identity()), "embedding Identity"),
    "an attention": (lambda model: setattr(model.blocks[0], "attention", nn.Identity()), "attention Identity"),
    "a table": (lambda model: setattr(model.embedding.categorical[0], "max_norm", 1.0), "max_norm"),
    "a gate": (_with_attention(gate=nn.Identity()), "gate Identity"),
    "a score": (_with_attention(score=nn.Identity()), "score Identity"),
    "blocks": (_with_attention(layout=Layout(6, 3)), "chunks of their size"),
    "unequal blocks": (_with_attention(layout=Layout(5, 5)), "equal attentions"),
    "float64": (lambda model: model.double(), "float32"),
}


@needs_kernel
@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_know_is_left_to_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, words = REFUSED[name]
    model = classifier(attention="sparse")
    assert RowStream(model, CPU).uses == "native"
    change(model)
    assert words in str(refuses(model))
    with pytest.raises(UnsupportedError, match=words):
        NativeStep(model)
    monkeypatch.setattr(streaming, "_has_state", lambda *_: True)  # some of these parts can't compute anything
    assert (found := RowStream(model, CPU)).uses == "torch"
    assert words in str(found.reason)
    monkeypatch.setenv(streaming.STEP_VARIABLE, "native")
    with pytest.raises(UnsupportedError, match=f"{words}.*set it to auto"):
        RowStream(model, CPU)


@needs_kernel
def test_other_embeddings_and_devices_are_left_to_torch() -> None:
    for embedding, fields in (("tabular", {}), ("token", {"numeric": 0, "categorical": 1})):
        model = classifier(form="rows", attention="window", embedding=embedding, margin=False, history_length=1, **fields)
        assert "embedding" in str(refuses(model))
        kept, values = RowStream(model, CPU), history(model, 5)
        assert kept.uses == "torch"
        many, states = kept.advance_many(values[:2], [kept.start(), kept.start()])
        assert many.shape == (2, 2)
        assert [state.position for state in states] == [1, 1]
        np.testing.assert_array_equal(many[1], kept.step(values[1], kept.start())[0])
    assert refuses(classifier(), "cuda") == "it computes on a CPU, not on cuda"


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(attention="window")
    monkeypatch.setenv(streaming.STEP_VARIABLE, "torch")
    chosen = RowStream(model, CPU)
    assert (chosen.uses, chosen.reason) == ("torch", "BALANCER_STREAM_STEP is torch")
    monkeypatch.setenv(streaming.STEP_VARIABLE, "fast")
    with pytest.raises(InputError, match="must be native, torch or auto, given 'fast'"):
        RowStream(model, CPU)
    monkeypatch.setenv(streaming.STEP_VARIABLE, "auto")
    monkeypatch.setattr(streaming, "absence", lambda: "it was not built: install a C++ compiler")
    assert "install a C++ compiler" in str(RowStream(model, CPU).reason)
    monkeypatch.setenv(streaming.STEP_VARIABLE, "native")
    with pytest.raises(UnsupportedError, match="it was not built"):
        RowStream(model, CPU)


def test_a_library_of_another_version_is_told() -> None:
    class Other:
        def __getattr__(self, name: str) -> object:
            function = type("Function", (), {"__call__": lambda self, *_: 7})()
            setattr(self, name, function)
            return function

    assert "another version" in str(native._declare(Other(), "_native_step.so"))  # type: ignore[arg-type]
