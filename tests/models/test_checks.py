"""The checks for parts: they find each violated rule, and correct parts pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancer.models import ATTENTIONS, EMBEDDINGS, HEADS, Attention, BinaryHead, ModelConfig, SequenceBatch, TransactionEmbedding
from balancer.models.checks import check_attention, check_embedding, check_head, check_in_classifier, example_config


class Mean(Attention):
    """Correct: each position gets the mean of the positions before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.out = nn.Linear(config.d_model, config.d_model)

    def mixed(self, batch: SequenceBatch) -> Tensor:
        return self.out(batch.values.cumsum(1) / torch.arange(1, batch.values.shape[1] + 1)[:, None])  # type: ignore[no-any-return]

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        whole = batch.with_values(self.mixed(batch))
        return whole.last() if last_only else whole


class Future(Mean):
    def mixed(self, batch: SequenceBatch) -> Tensor:
        return self.out(batch.values.cumsum(1).flip(1))  # type: ignore[no-any-return]


class DirtyPadding(Mean):
    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        whole = SequenceBatch(self.mixed(batch), batch.lengths, batch.mask)
        return whole.last() if last_only else whole


class NeverLast(Mean):
    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        return batch.with_values(self.mixed(batch))


class Frozen(Mean):
    def mixed(self, batch: SequenceBatch) -> Tensor:
        return super().mixed(batch.with_values(batch.values)).detach().requires_grad_()


class Loud(BinaryHead):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model)

    def probabilities(self, logits: Tensor) -> Tensor:
        return 2 * super().probabilities(logits)


class Labelled(Loud):
    def probabilities(self, logits: Tensor) -> Tensor:
        return BinaryHead.probabilities(self, logits)

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
        return super().loss(logits, label.clamp(min=0), class_weight)


class NoMissing(TransactionEmbedding):
    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        given = super().forward(batch)
        return SequenceBatch(given.values + batch.values[..., :1], given.lengths, given.mask)


@pytest.mark.parametrize(
    ("check", "part", "message"),
    [
        (check_attention, Future, "must be causal"),
        (check_attention, DirtyPadding, "not zero at padding"),
        (check_attention, NeverLast, "last_only returns"),
        (check_attention, Frozen, "no gradient reaches"),
        (check_head, Loud, "do not sum to 1"),
        (check_head, Labelled, "rows with label -1 change"),
        (check_embedding, NoMissing, "padding|NaN"),
    ],
)
def test_the_violated_rule_is_named(check: Callable[[Any], None], part: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(part)


def test_what_is_right_passes() -> None:
    check_attention(Mean)
    check_in_classifier(attention=Mean)


@pytest.mark.parametrize("name", ["transaction"])
def test_shipped_embeddings_pass(name: str) -> None:
    check_embedding(EMBEDDINGS[name])
    check_embedding(EMBEDDINGS[name], example_config(form="histories"))
    check_embedding(EMBEDDINGS[name], example_config(numeric_encoding="periodic"))


def test_shipped_heads_pass() -> None:
    check_head(HEADS["binary"])
    check_head(HEADS["multiclass"], example_config(classes=("a", "b", "c"), head="multiclass"))


@pytest.mark.parametrize("name", sorted(ATTENTIONS))
def test_shipped_attentions_learn_in_a_classifier(name: str) -> None:
    check_in_classifier(attention=ATTENTIONS[name])
