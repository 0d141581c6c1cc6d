"""A missing number is a value in the fields that say so: it differs from a hidden one everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balancer.errors import InputError
from balancer.models import Classifier, ModelConfig, SequenceBatch, load_classifier, save_classifier
from balancer.models.checks import check_embedding, example_config
from balancer.models.embedding import TransactionEmbedding
from balancer.models.export.onnx_export import traceable
from balancer.models.missing import MissingEncoder
from balancer.models.quantization import apply_precision, load_quantized_classifier, save_quantized, uniform_plan
from balancer.models.tabular import TabularEmbedding
from tests.models.test_classifier import EDGES, N, windows


def make(missing: tuple[str, ...] = ("b",), **changes: Any) -> Classifier:
    """A model whose vectors of missing numbers are as training leaves them: not zero."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {"history_length": N, "d_model": 32, "num_heads": 2, "attention_window": 3} | changes
    model = Classifier(ModelConfig(("a", "b"), ("c",), (5,), EDGES, missing=missing, **fields)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MissingEncoder):
                module.weight.normal_()
    return model


def holes(rows: int = 30, column: int = 1, seed: int = 0) -> SequenceBatch:
    values, lengths = windows(rows, seed)
    values[np.random.default_rng(seed).random(values.shape[:2]) < 0.4, column] = np.nan
    return SequenceBatch.from_windows(values, lengths)


def hidden(batch: SequenceBatch, column: int) -> SequenceBatch:
    fields = torch.zeros(len(batch.lengths), 1, batch.values.shape[2], dtype=torch.bool)
    fields[..., column] = True
    return replace(batch, hidden=fields)


VARIANTS = [
    {},
    {"attention": "window"},
    {"form": "histories"},
    {"form": "histories", "attention": "sparse"},
    {"numeric_encoding": "periodic", "cycles": (("a", 6.0),)},
    {"embedding": "tabular", "history_length": 1},
]


def rows_of(model: Classifier, batch: SequenceBatch) -> SequenceBatch:
    """The batch, or its last transactions for a model of single rows."""
    return batch if model.config.history_length > 1 else batch.last()


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_without_such_fields_weights_and_scores_are_as_before(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"history_length": N, "d_model": 32, "num_heads": 2, "attention_window": 3} | changes
    plain = Classifier(ModelConfig(("a", "b"), ("c",), (5,), EDGES, **fields)).eval()
    torch.manual_seed(0)
    fresh = Classifier(ModelConfig(("a", "b"), ("c",), (5,), EDGES, missing=("b",), **fields)).eval()
    added = set(fresh.state_dict()) - set(plain.state_dict())
    assert added == {"embedding.missing.weight", "embedding.missing.column"}
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in plain.state_dict().items())
    batch = rows_of(plain, holes())
    assert torch.equal(fresh.probabilities(batch), plain.probabilities(batch)), "a new vector is zero"


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_missing_number_differs_from_a_hidden_one(changes: dict[str, Any]) -> None:
    model = make(**changes)
    batch = rows_of(model, holes())
    every = replace(batch, values=batch.values.clone())
    every.values[..., 1] = torch.nan
    scores, unused = model.probabilities(every), model.probabilities(hidden(every, 1))
    assert scores.isfinite().all() and not torch.allclose(scores, unused)
    assert torch.equal(unused, model.probabilities(hidden(batch, 1))), "what a hidden field holds counts for nothing"
    other = replace(batch, values=batch.values.clone())
    other.values[..., 0] = torch.nan
    assert torch.equal(model.probabilities(other), model.probabilities(hidden(other, 0))), "elsewhere a missing number is a hidden one"


@pytest.mark.parametrize("embedding", [TransactionEmbedding, TabularEmbedding])
def test_the_rules_of_embeddings_hold(embedding: Any) -> None:
    config = example_config(missing=("gap",), **({"history_length": 1} if embedding is TabularEmbedding else {}))
    check_embedding(embedding, config)


def test_rows_do_not_depend_on_one_another() -> None:
    encoder = make().embedding.missing
    values, present = torch.randn(300, 2), torch.rand(300, 2) < 0.8
    values[torch.rand(300) < 0.5, 1] = torch.nan
    with torch.no_grad():
        whole = encoder(values, present)
        for row in range(0, 300, 37):
            assert torch.equal(encoder(values[row : row + 1], present[row : row + 1])[0], whole[row])
    torch.testing.assert_close(encoder(values, present), whole)


def test_the_vector_is_learned() -> None:
    torch.manual_seed(0)
    model = Classifier(ModelConfig(("a", "b"), ("c",), (5,), EDGES, missing=("b",), history_length=N, d_model=16, num_heads=2))
    batch = holes(256)
    last = batch.last().values[:, 0, 1]
    label = last.isnan().to(torch.int64)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(model(batch), label).backward()
        optimizer.step()
    score = model.eval().probabilities(batch)[:, 1]
    assert score[label == 1].min() > score[label == 0].max()


def test_streaming_is_the_whole_history() -> None:
    model = make(form="histories", attention="window")
    batch = holes(4)
    state = model.init_state(4)
    full = SequenceBatch.from_windows(batch.values, torch.full((4,), N))
    for position in range(N):
        logits, state = model.step(batch.values[:, position], state)
        expected = model(full, (torch.arange(4), torch.full((4,), position)))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_stored_and_loaded(tmp_path: Path) -> None:
    model = make()
    save_classifier(model, tmp_path)
    loaded = load_classifier(tmp_path)
    assert loaded.config.missing == ("b",)
    assert torch.equal(loaded.probabilities(holes()), model.probabilities(holes()))
    content = model.config.to_dict()
    del content["missing"]  # as versions wrote it that had no such fields
    assert ModelConfig.from_dict(content).missing == ()


def test_quantized_models_keep_it(tmp_path: Path) -> None:
    model = make()
    save_classifier(model, tmp_path)
    plan = uniform_plan(model, "int8")
    quantized, applied = apply_precision(model, plan)
    save_quantized(quantized, applied, tmp_path, plan=plan)
    loaded = load_quantized_classifier(tmp_path)
    batch = holes(50)
    assert torch.equal(loaded.embedding.missing.weight, model.embedding.missing.weight)
    assert torch.equal(loaded.probabilities(batch), quantized.probabilities(batch))  # type: ignore[operator]
    torch.testing.assert_close(loaded.probabilities(batch), model.probabilities(batch), atol=0.05, rtol=0)


@pytest.mark.parametrize("attention", ["dense", "window"])
def test_the_exported_graph_agrees(attention: str) -> None:
    model = make(attention=attention)
    batch = holes(40)
    exported = traceable(model, "ONNX")
    torch.testing.assert_close(exported(batch.values, batch.lengths), model.probabilities(batch), atol=1e-5, rtol=1e-4)


def test_onnx_runtime_agrees(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the ONNX backend needs balancer[export]")
    pytest.importorskip("onnxruntime", reason="the ONNX backend needs balancer[export]")
    from balancer.models.export.onnx_backend import OnnxClassifier, export_onnx, quantize_onnx

    model, batch = make(), holes(40)
    export_onnx(model, tmp_path / "model.onnx")
    quantize_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx", [holes(64, seed=3)], [])
    for name, tolerance in (("model.onnx", 1e-4), ("int8.onnx", 0.05)):
        found = OnnxClassifier(tmp_path / name).probabilities(batch.values.numpy(), batch.lengths.numpy())
        assert np.abs(found - model.probabilities(batch).detach().numpy()).max() < tolerance


def test_wrong_names_are_refused() -> None:
    for names in (("c",), ("b", "b"), ("nothing",)):
        with pytest.raises(InputError, match="missing must name numeric fields"):
            make(names)
    with pytest.raises(InputError, match="missing can't change while the embedding is kept"):
        make().replace(missing=("a",))
