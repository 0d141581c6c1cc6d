"""Parts by name, by import and as objects, and their replacement; every combination; adapters and deltas."""

from __future__ import annotations

import itertools
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from balancer.errors import InputError
from balancer.models import (
    ATTENTIONS,
    EMBEDDINGS,
    HEADS,
    Attention,
    BinaryHead,
    Classifier,
    DenseAttention,
    ModelConfig,
    SequenceBatch,
    TransactionEmbedding,
    load_classifier,
    part_of,
    save_classifier,
    save_delta,
)
from balancer.models.checks import example_config

OWN = """
import torch
from balancer.models import Attention

class RunningMean(Attention):
    def __init__(self, config):
        super().__init__()
        self.out = torch.nn.Linear(config.d_model, config.d_model)

    def forward(self, batch, *, last_only=False):
        mixed = batch.with_values(self.out(batch.values.cumsum(1)))
        return mixed.last() if last_only else mixed

def not_a_class(config):
    return None
"""


def rows(config: ModelConfig, count: int = 24) -> tuple[SequenceBatch, torch.Tensor]:
    """Windows that any embedding takes, and labels."""
    rng = np.random.default_rng(0)
    numeric, codes = len(config.numeric_fields), config.cardinalities
    values = rng.normal(size=(count, config.history_length, numeric + len(codes))).astype(np.float32)
    for column, size in enumerate(codes, start=numeric):
        values[..., column] = rng.integers(0, size, values.shape[:2])
    label = torch.from_numpy(rng.integers(0, len(config.classes), count))
    return SequenceBatch.from_windows(values, rng.integers(1, config.history_length + 1, count)), label


def made_for(embedding: str, attention: str, head: str) -> ModelConfig:
    """A configuration that the parts can be built for."""
    classes = ("no", "a", "b") if head == "multiclass" else ("no", "yes")
    common = {"embedding": embedding, "attention": attention, "head": head, "classes": classes}
    if embedding == "token":
        return ModelConfig(("x",)[:0], ("token",), (9,), (), history_length=7, d_model=16, num_heads=2, attention_window=3, **common)  # type: ignore[arg-type]
    return example_config(history_length=1 if embedding == "tabular" else 7, attention_window=3, **common)


@pytest.mark.parametrize(("embedding", "attention", "head"), list(itertools.product(sorted(EMBEDDINGS), sorted(ATTENTIONS), sorted(HEADS))))
def test_every_combination_is_built_trained_saved_loaded_and_scored(embedding: str, attention: str, head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = made_for(embedding, attention, head)
    model = Classifier(config)
    batch, label = rows(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.loss(model(batch), label)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    save_classifier(model.eval(), tmp_path)
    scores = model.probabilities(batch)
    assert torch.equal(load_classifier(tmp_path).probabilities(batch), scores)
    assert scores.shape == (24, len(config.classes))
    torch.testing.assert_close(scores.sum(1), torch.ones(24))


def test_replace_keeps_all_other_weights_and_tells() -> None:
    torch.manual_seed(0)
    model = Classifier(example_config())
    other = model.replace(attention="window")
    assert other.model.config.attention == "window"
    before, after = model.state_dict(), other.model.state_dict()
    assert set(other.kept) | set(other.new) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in other.kept)
    assert {part_of(name) for name in other.new} == {"attention"} == {part_of(name) for name in other.dropped}
    assert not torch.equal(before["blocks.0.attention.query.weight"], after["blocks.0.attention.query.weight"])
    assert "new: " in other.describe()
    assert "of the attention" in other.describe()


def test_replace_may_keep_shared_projections() -> None:
    model = Classifier(example_config())
    other = model.replace(attention="sparse", keep_matching=True)
    assert torch.equal(other.model.state_dict()["blocks.0.attention.query.weight"], model.state_dict()["blocks.0.attention.query.weight"])
    assert other.new
    assert not other.dropped


def test_replace_leaves_the_model_as_it_was_and_takes_objects() -> None:
    model = Classifier(example_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = DenseAttention(16, 4)
    other = model.replace(attention=own, head=lambda config: BinaryHead(config.d_model)).model
    first, second = (block.attention for block in other.blocks)  # type: ignore[union-attr]
    assert torch.equal(first.query.weight, own.query.weight)
    assert first is not second
    with torch.no_grad():
        own.query.weight.zero_()
        other.norm.weight.zero_()
    assert first.query.weight.any()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_new_head_for_other_classes_and_a_new_embedding_for_other_fields() -> None:
    model = Classifier(example_config())
    other = model.replace(head="multiclass", classes=("no", "a", "b")).model
    assert other.config.classes == ("no", "a", "b")
    fields = {"numeric_fields": ("other",), "categorical_fields": (), "cardinalities": (), "edges": ([0.0, 3.0],)}
    moved = model.replace(embedding="transaction", **fields).model
    assert torch.equal(moved.blocks[0].ff1.weight, model.blocks[0].ff1.weight)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="numeric_fields can't change while the embedding is kept; give embedding="):
        model.replace(**fields)
    with pytest.raises(InputError, match=r"head does not fit .* it would be \(3, 16\); give head= as well"):
        Classifier(example_config(head="multiclass", classes=("a", "b"))).replace(classes=("no", "a", "b"))
    with pytest.raises(InputError, match="build a new model"):
        model.replace(num_layers=3)


class Wide(TransactionEmbedding):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__(example_config(d_model=24))


class Narrow(Attention):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.out = nn.Linear(config.d_model, 8)

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        mixed = batch.with_values(self.out(batch.values))
        return mixed.last() if last_only else mixed


class Picky(Narrow):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.out = nn.Linear(99, config.d_model)


class ManyClasses(BinaryHead):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.softmax(logits[:, None].expand(-1, 5), -1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"embedding": Wide}, r"embedding '.*:Wide' gives \(2, 2, 24\), but attention 'dense' takes \(2, 2, 16\)"),
        ({"attention": Narrow}, r"attention '.*:Narrow' gives \(2, 2, 8\) for the \(2, 2, 16\) of embedding 'transaction'"),
        ({"attention": Picky}, r"embedding 'transaction' gives \(2, 2, 16\), which attention '.*:Picky' can't take: .*99"),
        (
            {"head": ManyClasses},
            r"head '.*:ManyClasses' gives \(2,\) for the \(2, 1, 16\) of attention 'dense', and probabilities \(2, 5\)",
        ),
        ({"attention": 3}, "attention is a int: give a Attention"),
        ({"head": nn.Linear(3, 3)}, "head is a Linear: give a Head"),
    ],
)
def test_parts_that_do_not_fit_are_named_with_their_shapes(parts: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Classifier(example_config(), **parts)  # type: ignore[arg-type]


def test_a_class_in_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_part_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    model = Classifier(example_config(attention="own_part_of_a_test:RunningMean"))
    assert sys.path == path
    save_classifier(model.eval(), "saved")
    batch, _ = rows(model.config)
    assert torch.equal(load_classifier("saved").probabilities(batch), model.probabilities(batch))
    for name, message in {
        "own_part_of_a_test:Nothing": "can't be imported .*Nothing",
        "no_such_module_anywhere:A": "run in the folder of no_such_module_anywhere.py",
        "own_part_of_a_test:not_a_class": "is not a subclass of Attention",
        "os:system": "is not a subclass of Attention",
        "torch.nn:Linear": "is not a subclass of Attention",
    }.items():
        with pytest.raises(InputError, match=message):
            Classifier(example_config(attention=name))


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown attention 'spars'; did you mean 'sparse'"):
        Classifier(example_config(attention="spars"))


def test_another_package_registers_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("attention.narrow", f"{__name__}:Narrow", "balancer.parts")
    good = EntryPoint("attention.plain", "balancer.models.attention:Attention", "balancer.parts")
    broken = EntryPoint("attention.gone", "no_such_module_anywhere:A", "balancer.parts")
    monkeypatch.setattr("balancer.models.parts.entry_points", lambda group: [entry, good, broken] if group == "balancer.parts" else [])
    with pytest.raises(InputError, match="attention 'narrow' gives"):  # found, and checked as any other
        Classifier(example_config(attention="narrow"))
    with pytest.raises(InputError, match="'gone' of the entry point no_such_module_anywhere:A can't be imported"):
        Classifier(example_config(attention="gone"))


def test_adapters_change_nothing_until_they_learn_and_can_be_folded() -> None:
    torch.manual_seed(0)
    model = Classifier(example_config()).eval()
    batch, label = rows(model.config)
    adapted = model.replace(adapter_rank=3).model
    assert {part_of(name) for name in adapted.state_dict()} - {part_of(name) for name in model.state_dict()} == {"adapter"}
    assert torch.equal(adapted.probabilities(batch), model.probabilities(batch))
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(part_of(name) == "adapter")
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        adapted.loss(adapted(batch), label).backward()
        optimizer.step()
    learned = adapted.probabilities(batch)
    assert (learned - model.probabilities(batch)).abs().max() > 1e-3
    plain = adapted.deployable()
    assert plain.config.adapter_rank == 0
    assert set(plain.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(plain.probabilities(batch), learned, atol=1e-6, rtol=1e-5)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Path, Classifier]:
    """A base, and beside it a delta of another head and adapters."""
    torch.manual_seed(0)
    base = Classifier(example_config()).eval()
    save_classifier(base, tmp_path / "base")
    model = base.replace(head="binary", adapter_rank=2).model.eval()
    save_delta(model, tmp_path / "delta", base=tmp_path / "base", parts=("head", "adapter"))
    return tmp_path / "base", tmp_path / "delta", model


def test_a_delta_holds_its_parts_only_and_loads_whole(stored: tuple[Path, Path, Classifier]) -> None:
    base, delta, model = stored
    batch, _ = rows(model.config)
    assert torch.equal(load_classifier(delta).probabilities(batch), model.probabilities(batch))
    assert (delta / "model.safetensors").stat().st_size < 0.3 * (base / "model.safetensors").stat().st_size
    assert json.loads((delta / "model.json").read_text())["base"]["path"] == "../base"
    other = model.replace(head="binary").model.eval()
    save_delta(other, delta.parent / "second", base=delta, parts=("head",))
    assert torch.equal(load_classifier(delta.parent / "second").probabilities(batch), other.probabilities(batch))


def test_both_folders_can_be_moved_together(stored: tuple[Path, Path, Classifier]) -> None:
    _, delta, model = stored
    batch, _ = rows(model.config)
    (delta.parent / "moved").mkdir()
    for name in ("base", "delta"):
        (delta.parent / name).rename(delta.parent / "moved" / name)
    assert torch.equal(load_classifier(delta.parent / "moved" / "delta").probabilities(batch), model.probabilities(batch))


def test_a_delta_for_another_base_is_refused(stored: tuple[Path, Path, Classifier]) -> None:
    base, delta, model = stored
    with pytest.raises(InputError, match=r"norm.weight differs from that of the base .*: name its part \(trunk\)"):
        changed = model.replace(head="binary").model
        with torch.no_grad():
            changed.norm.weight.add_(1)
        save_delta(changed, delta.parent / "bad", base=base, parts=("head", "adapter"))
    save_classifier(Classifier(example_config()), base)
    with pytest.raises(InputError, match=r"is not the model that .*delta is based on"):
        load_classifier(delta)
    base.rename(base.with_name("gone"))
    with pytest.raises(InputError, match="put that folder back"):
        load_classifier(delta)


def test_a_delta_based_on_itself_ends(stored: tuple[Path, Path, Classifier]) -> None:
    _, delta, _ = stored
    content = json.loads((delta / "model.json").read_text())
    content["base"]["path"] = "."
    (delta / "model.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="based on"):
        load_classifier(delta)
