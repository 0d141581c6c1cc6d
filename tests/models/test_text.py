"""TokenEmbedding and tokenizers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from balancer.errors import InputError
from balancer.models import (
    Classifier,
    ModelConfig,
    SequenceBatch,
    TokenEmbedding,
    Tokenizer,
    load_classifier,
    load_tokenizer,
    save_classifier,
    train_tokenizer,
)

pytest.importorskip("tokenizers")
TEXTS = ["acute pain in the chest", "pain of the knee", "chronic chest pain", "fracture of the knee"] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def make(size: int, **changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {"history_length": 12, "d_model": 8, "num_heads": 2, "embedding": "token", **changes}
    return ModelConfig((), ("token",), (size,), (), **fields)


def test_batches_are_left_aligned_and_keep_the_end(tokenizer: Tokenizer) -> None:
    values, lengths = tokenizer.batch(["chest pain", "", "acute pain in the knee"], 3)
    assert values.dtype == np.float32
    assert values.shape == (3, 3, 1)
    assert lengths.tolist() == [2, 0, 3]
    assert values[0, 2, 0] == 0
    assert not values[1].any()
    whole, full = tokenizer.batch(["acute pain in the knee"], 50)
    assert np.array_equal(values[2, :, 0], whole[0, full[0] - 3 : full[0], 0])
    assert whole[0, : full[0]].min() >= 1
    assert tokenizer.batch([], 3)[0].shape == (0, 3, 1)


def test_any_text_has_codes(tokenizer: Tokenizer) -> None:
    values, lengths = tokenizer.batch(["Überfluß 痛み \x00"], 60)
    assert values[0, : lengths[0]].min() >= 1
    assert values.max() < tokenizer.size <= 300
    assert tokenizer.inner.decode([int(code) - 1 for code in values[0, : lengths[0], 0]]).strip() == "Überfluß 痛み \x00"


def test_a_file_gives_the_same_codes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.size == tokenizer.size
    assert np.array_equal(again.batch(TEXTS, 9)[0], tokenizer.batch(TEXTS, 9)[0])


def test_a_tokenizer_of_others_is_read(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers, processors

    inner = Inner(models.WordLevel({"[UNK]": 0, "[CLS]": 7, "pain": 3, "knee": 5}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 7)])
    inner.enable_padding(length=20)
    inner.enable_truncation(1)
    inner.save(str(tmp_path / "tokenizer.json"))
    foreign = load_tokenizer(tmp_path / "tokenizer.json")
    values, lengths = foreign.batch(["knee pain here"], 4)
    assert values[0, :, 0].tolist() == [6, 4, 1, 0]
    assert lengths.tolist() == [3]
    assert foreign.size == 9


@pytest.mark.parametrize("content", [None, "", "{}", '{"a": 1', '{"format": "balancer"}', "[1]", b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"tokenizer\.json (is not|can't be read as) a tokenizer"):
        load_tokenizer(file)


def test_what_does_not_fit_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="at least 257"):
        train_tokenizer(TEXTS, 256)
    with pytest.raises(InputError, match="length must be"):
        tokenizer.batch(TEXTS, 0)
    with pytest.raises(InputError, match="one categorical field"):
        TokenEmbedding(ModelConfig(("a",), ("token",), (9,), ([0, 1],)))
    with pytest.raises(InputError, match="at most 16777216"):
        TokenEmbedding(make(2**24 + 1))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"balancer\[text\]"):
        train_tokenizer(TEXTS, 300)


@pytest.mark.parametrize("form", ["rows", "histories"])
@pytest.mark.parametrize("attention", ["window", "sparse"])
def test_learns_and_comes_back(tokenizer: Tokenizer, tmp_path: Path, form: str, attention: str) -> None:
    torch.manual_seed(0)
    model = Classifier(make(tokenizer.size, form=form, attention=attention))
    values, lengths = tokenizer.batch(TEXTS, 12)
    given = SequenceBatch.from_windows(values, lengths)
    model.loss(model(given), torch.arange(20) % 2).backward()
    for name, parameter in model.embedding.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    model.eval()
    scores = model(given)
    dirty = SequenceBatch(given.values.masked_fill(~given.mask[..., None], 7), given.lengths, given.mask)
    assert torch.equal(model(dirty), scores)
    odd = given.values.clone()
    odd[0, 0] = 1e6
    zero = given.values.clone()
    zero[0, 0] = 0
    assert torch.equal(model(SequenceBatch(odd, given.lengths, given.mask)), model(SequenceBatch(zero, given.lengths, given.mask)))
    save_classifier(model, tmp_path)
    assert torch.equal(load_classifier(tmp_path)(given), scores)


def test_field_dropout_hides_tokens_one_by_one() -> None:
    torch.manual_seed(0)
    embedding = TokenEmbedding(make(50, field_dropout=0.5, dropout=0.0, form="histories"))
    out = embedding(SequenceBatch.from_windows(np.full((100, 12, 1), 3, np.float32), np.full(100, 12))).values
    hidden = (out == embedding.get_parameter("categorical.0.weight")[0]).all(-1).sum(1)
    assert 4 < hidden.float().mean() < 8
    assert ((hidden > 0) & (hidden < 12)).all()
