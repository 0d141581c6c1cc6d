"""A margin is added to the fraud logit and to nothing else, wherever a model computes logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balancer.errors import InputError
from balancer.models import Classifier, ModelConfig, SequenceBatch, load_classifier, save_classifier
from balancer.models.export.onnx_export import traceable
from balancer.models.heads import BinaryHead, MulticlassHead
from tests.models.test_classifier import EDGES, N, windows

CLASSES = {"binary": ("no", "yes"), "multiclass": ("no", "x", "y", "z")}
AT = 1
"""Column of the margin."""


def make(margin: str = "b", head: str = "binary", **changes: Any) -> Classifier:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"history_length": N, "d_model": 32, "num_heads": 2, "attention_window": 3} | changes
    config = ModelConfig(("a", "b"), ("c",), (5,), EDGES, margin=margin, head=head, classes=CLASSES[head], **fields)
    return Classifier(config).eval()


def fraud_log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Log-odds of fraud from binary logits or log-probabilities, in float64."""
    logits = logits.double()
    return logits if logits.ndim == 1 else logits[:, 1:].logsumexp(1) - logits[:, 0]


@pytest.mark.parametrize("form", ["rows", "histories"])
@pytest.mark.parametrize("head", sorted(CLASSES))
def test_it_is_added_to_the_log_odds_and_the_kinds_keep_their_shares(head: str, form: str) -> None:
    on, off = make(head=head, form=form), make("", head, form=form)
    assert all(torch.equal(one, two) for one, two in zip(on.state_dict().values(), off.state_dict().values(), strict=True))
    values, lengths = windows(40)
    values[:, :, AT] *= 3
    batch = SequenceBatch.from_windows(values, lengths)
    given = torch.from_numpy(values[np.arange(40), lengths - 1, AT])
    added, plain = on(batch), off(batch)
    if head == "binary":
        assert torch.equal(added, plain + given)
    torch.testing.assert_close(fraud_log_odds(added), fraud_log_odds(plain) + given, atol=2e-5, rtol=1e-5)
    if head == "multiclass":
        shares = [logits[:, 1:].softmax(1) for logits in (added, plain)]
        torch.testing.assert_close(*shares, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(on.probabilities(batch).sum(1), torch.ones(40))


@pytest.mark.parametrize("head", sorted(CLASSES))
def test_zero_adds_nothing_to_the_last_bit(head: str) -> None:
    logits = torch.randn(7) if head == "binary" else torch.randn(7, 4).log_softmax(1)
    made = BinaryHead(8) if head == "binary" else MulticlassHead(8, 4)
    assert torch.equal(made.add_margin(logits, torch.zeros(7)), logits)
    far = made.add_margin(logits, torch.tensor([60.0, -60.0, 12.0, -12.0, 0.5, 1e4, -1e4]))
    p = made.probabilities(far)
    assert p.isfinite().all() and (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(7))
    assert p[0, 0] < 1e-20 and p[1, 1:].sum() < 1e-20


def test_a_missing_margin_counts_0_and_an_empty_row_has_none() -> None:
    on, off = make(), make("")
    values, lengths = windows(6)
    lengths[:] = [3, 4, 5, 0, 0, 1]
    values[:3, :, AT] = np.nan
    batch = SequenceBatch.from_windows(values, lengths)
    assert torch.equal(on(batch)[:5], off(batch)[:5])
    assert on(batch).isfinite().all() and on(batch)[5] != off(batch)[5]


def test_only_the_margin_of_the_scored_row_is_added() -> None:
    on, off = make(), make("")
    values, lengths = windows(10)
    lengths[:] = N
    changed = values.copy()
    changed[:, :-1, AT] += 1.0
    one, two = (SequenceBatch.from_windows(each, lengths) for each in (values, changed))
    torch.testing.assert_close(on(two) - on(one), off(two) - off(one), atol=2e-6, rtol=1e-4)
    assert (off(two) != off(one)).any()


def test_neither_dropout_nor_field_dropout_touches_it() -> None:
    model = make(dropout=0.5, field_dropout=0.9).train()
    values, lengths = windows(10)
    encoded = model.encode(SequenceBatch.from_windows(values, lengths))
    assert encoded.margin is not None
    np.testing.assert_array_equal(encoded.margin.numpy(), values[np.arange(10), lengths - 1, AT])
    assert make("").encode(SequenceBatch.from_windows(values, lengths)).margin is None


@pytest.mark.parametrize("head", sorted(CLASSES))
@pytest.mark.parametrize("attention", ["window", "sparse"])
def test_targets_steps_and_a_state_that_was_read_agree(head: str, attention: str) -> None:
    model = make(head=head, form="histories", attention=attention, global_nodes=2)
    values, _ = windows(2)
    values[:, :, AT] *= 3
    values[0, 3, AT] = np.nan
    fields, batch = torch.from_numpy(values), SequenceBatch.from_windows(values, np.full(2, N))
    rows, positions = torch.arange(2).repeat_interleave(N), torch.arange(N).repeat(2)
    with torch.no_grad():
        whole = model(batch, (rows, positions)).unflatten(0, (2, N))
        cut = torch.stack([model(SequenceBatch.from_windows(values[:, : at + 1], np.full(2, at + 1))) for at in range(N)], 1)
    torch.testing.assert_close(cut, whole, atol=2e-5, rtol=1e-4)
    state = model.init_state(2)
    for at in range(N):
        logits, state = model.step(fields[:, at], state)
        torch.testing.assert_close(logits, whole[:, at], atol=2e-5, rtol=1e-4)
        if at:
            after, _ = model.step(fields[:1, at], model.read(fields[0, :at]))
            torch.testing.assert_close(after[0], whole[0, at], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("head", sorted(CLASSES))
def test_a_new_head_starts_at_its_margin(head: str) -> None:
    model = make(head=head)
    prior = torch.tensor([0.9, 0.1]) if head == "binary" else torch.tensor([0.9, 0.06, 0.03, 0.01])
    assert isinstance(model.head, BinaryHead | MulticlassHead)
    before = model.head.project.weight.clone()
    model.head.start_on_margin(prior)
    weight = model.head.project.weight
    assert torch.equal(weight[0], before[0] * 0.1) and torch.equal(weight[1:], before[1:])
    values, lengths = windows(30)
    values[:, :, AT] *= 4
    given = torch.from_numpy(values[np.arange(30), lengths - 1, AT])
    logits = model(SequenceBatch.from_windows(values, lengths))
    assert (fraud_log_odds(logits) - given).abs().max() < 0.3
    if head == "multiclass":
        bias = model.head.project.bias[1:].softmax(0)
        torch.testing.assert_close(bias, torch.tensor([0.6, 0.3, 0.1]))


def test_an_unknown_field_is_refused_by_name() -> None:
    for name in ("c", "absent"):
        with pytest.raises(InputError, match=f"'{name}'.*numeric fields are a, b"):
            make(name)
    with pytest.raises(InputError, match="margin"):
        ModelConfig.from_dict(make().config.to_dict() | {"margin": 3})


def test_it_is_stored_and_kept_by_copies_and_a_model_of_before_has_none(tmp_path: Path) -> None:
    model = make()
    save_classifier(model, tmp_path)
    values, lengths = windows(5)
    batch = SequenceBatch.from_windows(values, lengths)
    for other in (load_classifier(tmp_path), model.deployable(), model.replace(head="binary").model):
        assert other.config.margin == "b"
    assert torch.equal(load_classifier(tmp_path)(batch), model(batch))
    content = {key: value for key, value in model.config.to_dict().items() if key != "margin"}
    assert ModelConfig.from_dict(content) == replace(model.config, margin="")


def given_to_exports() -> tuple[np.ndarray, np.ndarray]:
    """Windows with a missing margin, and an empty one."""
    values, lengths = windows(20)
    values[:, :, AT] *= 3
    values[0, :, AT] = np.nan
    lengths[1] = 0
    values[np.arange(N) >= lengths[:, None]] = 0
    return values, lengths


@pytest.mark.parametrize("head", sorted(CLASSES))
def test_the_form_that_is_exported_gives_the_scores_of_the_model(head: str) -> None:
    model, (values, lengths) = make(head=head), given_to_exports()
    with torch.no_grad():
        expected = model.probabilities(SequenceBatch.from_windows(values, lengths))
        found = traceable(model, "ONNX")(torch.from_numpy(values), torch.from_numpy(lengths))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert (found[2:, 1:].sum(1) / found[2:, 0]).log().abs().max() > 3


def test_an_onnx_file_gives_the_scores_of_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the ONNX backend needs balancer[export]")
    pytest.importorskip("onnxruntime", reason="the ONNX backend needs balancer[export]")
    from balancer.models.export.onnx_backend import OnnxClassifier, export_onnx

    model, file, (values, lengths) = make(head="multiclass", num_layers=1), tmp_path / "model.onnx", given_to_exports()
    export_onnx(model, file)
    with torch.no_grad():
        expected = model.probabilities(SequenceBatch.from_windows(values, lengths))
    np.testing.assert_allclose(OnnxClassifier(file).probabilities(values, lengths), expected.numpy(), atol=1e-5)
