"""What every part must keep, as functions to call in a test of one's own: they raise AssertionError saying what does not hold.

Special: the parts that are shipped are held to the same functions, so a part that passes here takes the place of any of them.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from balancer.models.attention import Attention
from balancer.models.batch import SequenceBatch
from balancer.models.classifier import Classifier
from balancer.models.config import ModelConfig
from balancer.models.heads import Head
from balancer.models.parts import Factory

LENGTHS = (0, 1, 4, 5, 6, 17, 22, 23)
LENGTH = 23
TOLERANCE = 1e-5


def example_config(**changes: object) -> ModelConfig:
    """A small configuration to check parts with: two numbers, one category, histories of up to 23."""
    config = ModelConfig(
        ("amount", "gap"),
        ("channel",),
        (5,),
        ([0.0, 1.0, 2.0], [-1.0, 0.0, 1.0]),
        history_length=LENGTH,
        d_model=16,
        num_heads=2,
        attention_window=5,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def check_attention(make: Factory[Attention], config: ModelConfig | None = None) -> None:
    """Shape, causality, padding, rows of padding only, and `last_only`, of an attention that `make` makes from a configuration."""
    config = config or example_config()
    torch.manual_seed(0)
    attention = make(config).eval()
    batch = _batch(config.d_model)
    mixed = attention(batch)
    _require(mixed.values.shape == batch.values.shape, f"it gives {tuple(mixed.values.shape)} for {tuple(batch.values.shape)}")
    _require(bool(mixed.values.isfinite().all()), "it gives values that are not finite")
    _require(not mixed.values[~mixed.mask].any(), "it gives something where there is padding: end with batch.with_values")
    full = torch.full_like(batch.lengths, LENGTH)
    whole = SequenceBatch(torch.randn_like(batch.values), full, torch.ones_like(batch.mask))
    before = attention(whole).values
    for position in range(1, LENGTH):
        moved = whole.values.clone()
        moved[:, position:] += 5 * torch.randn(moved[:, position:].shape)
        after = attention(whole.with_values(moved)).values
        _require(
            torch.equal(after[:, :position], before[:, :position]),
            f"positions before {position} depend on what comes at {position} or later",
        )
    dirty = SequenceBatch(batch.values.masked_fill(~batch.mask[..., None], 1e6), batch.lengths, batch.mask)
    _require(torch.equal(attention(dirty).values, mixed.values), "what stands in the padding changes its result")
    last, wanted = attention(batch, last_only=True), mixed.last()
    _require(last.values.shape == wanted.values.shape, f"last_only gives {tuple(last.values.shape)}, not {tuple(wanted.values.shape)}")
    _close(last.values, wanted.values, "last_only differs from the whole computation at the last real position")
    _learns(attention, lambda: attention(batch).values)


def check_embedding(make: Factory[nn.Module], config: ModelConfig | None = None) -> None:
    """Shape, padding and numbers that are missing, of an embedding that `make` makes from a configuration."""
    config = config or example_config()
    torch.manual_seed(0)
    embedding = make(config).eval()
    batch = _fields(config)
    given: SequenceBatch = embedding(batch)
    _require(
        given.values.ndim == 3 and given.values.shape[0] == len(LENGTHS) and given.values.shape[2] == config.d_model,
        f"it gives {tuple(given.values.shape)}, not ({len(LENGTHS)}, n, {config.d_model})",
    )
    _require(not given.values[~given.mask].any(), "it gives something where there is padding: end with batch.with_values")
    dirty = SequenceBatch(batch.values.masked_fill(~batch.mask[..., None], 3.0), batch.lengths, batch.mask)
    _require(torch.equal(embedding(dirty).values, given.values), "what stands in the padding changes its result")
    missing = batch.values.clone()
    missing[..., : len(config.numeric_fields)] = torch.nan
    _require(
        bool(embedding(SequenceBatch(missing, batch.lengths, batch.mask)).values.isfinite().all()),
        "a missing number (NaN) makes its result NaN",
    )
    _learns(embedding, lambda: embedding(batch).values)


def check_head(make: Factory[Head], config: ModelConfig | None = None) -> None:
    """Shapes, probabilities and loss of a head that `make` makes from a configuration."""
    config = config or example_config()
    torch.manual_seed(0)
    head = make(config).eval()
    batch = _batch(config.d_model)
    logits = head(batch if head.needs_sequence else batch.last())
    _require(len(logits) == len(LENGTHS), f"it gives {tuple(logits.shape)}, not one row for each of the {len(LENGTHS)}")
    share = head.probabilities(logits)
    wanted = (len(LENGTHS), len(config.classes))
    _require(share.shape == wanted, f"its probabilities are {tuple(share.shape)}, not {wanted}")
    _close(share.sum(1), torch.ones(len(share)), "its probabilities do not sum to 1")
    label = torch.arange(len(LENGTHS)) % len(config.classes)
    loss = head.loss(logits, label)
    _require(loss.ndim == 0 and bool(loss.isfinite()), "its loss is no finite number")
    unlabelled = label.clone()
    unlabelled[1:] = -1
    _close(head.loss(logits, unlabelled), head.loss(logits[:1], label[:1]), "rows of label -1 count in its loss")
    _close(torch.stack(list(head.losses(logits, label).values())).sum(), loss, "its losses do not add up to its loss")
    _learns(head, lambda: head.loss(head(batch if head.needs_sequence else batch.last()), label))


def check_in_classifier(**parts: object) -> None:
    """That a classifier with these parts (``embedding=``, ``attention=``, ``head=``) can be built, trained for a step, and scores finite numbers."""
    torch.manual_seed(0)
    config = example_config()
    model = Classifier(config, **parts)  # type: ignore[arg-type]
    batch = _fields(config)
    label = torch.arange(len(LENGTHS)) % 2
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    before = float(model.loss(model(batch), label).detach())
    for _ in range(20):
        optimizer.zero_grad()
        model.loss(model(batch), label).backward()
        optimizer.step()
    after = float(model.eval().loss(model(batch), label).detach())
    _require(after < before, f"twenty steps on eight rows did not lower the loss: {before:.3f} to {after:.3f}")


def _batch(channels: int) -> SequenceBatch:
    lengths = torch.tensor(LENGTHS)
    mask = torch.arange(LENGTH) < lengths[:, None]
    values = torch.randn(len(LENGTHS), LENGTH, channels, generator=torch.Generator().manual_seed(0))
    return SequenceBatch(values, lengths, mask).with_values(values)


def _fields(config: ModelConfig) -> SequenceBatch:
    batch = _batch(len(config.numeric_fields) + len(config.categorical_fields))
    numeric = len(config.numeric_fields)
    codes = (batch.values[..., numeric:].abs() * 2).floor()
    values = torch.cat([batch.values[..., :numeric], codes], -1)[:, : config.history_length]
    lengths = batch.lengths.clamp(max=config.history_length)
    return SequenceBatch(values, lengths, batch.mask[:, : config.history_length])


def _learns(part: nn.Module, result: object) -> None:
    assert callable(result)
    parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
    if not parameters:
        return
    part.zero_grad()
    out = result()
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    moved = [parameter for parameter in parameters if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)]
    _require(bool(moved), "no gradient reaches its parameters")
    _require(all(bool(parameter.grad.isfinite().all()) for parameter in moved if parameter.grad is not None), "a gradient is not finite")


def _close(one: Tensor, other: Tensor, what: str) -> None:
    _require(torch.allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE), what)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
