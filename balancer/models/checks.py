"""Checks for custom parts, to be called in tests. They raise AssertionError with the rule that is violated.

The parts of this package must pass the same checks, so a part that passes can replace any of them.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from balancer.devices import random_state_kept
from balancer.models.attention import Attention
from balancer.models.batch import SequenceBatch
from balancer.models.classifier import Classifier
from balancer.models.config import ModelConfig
from balancer.models.heads import Head
from balancer.models.parts import Factory

LENGTHS = (0, 1, 4, 5, 6, 17, 22, 23)
LENGTH = 23
TOLERANCE = 1e-5
NOT_ZERO_AT_PADDING = "the result is not zero at padding: end with batch.with_values"
DEPENDS_ON_PADDING = "values at padding change the result"


def example_config(**changes: object) -> ModelConfig:
    """Build a small configuration for the checks.

    It has two numeric fields, one categorical field, and histories of up to 23.
    """
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


@random_state_kept()
def check_attention(make: Factory[Attention], config: ModelConfig | None = None) -> None:
    """Check shape, causality, padding, rows of only padding, and `last_only` of an attention.

    Args:
        make: class or function that builds the attention from a configuration.
        config: configuration; by default that of :func:`example_config`.

    Raises:
        AssertionError: A rule is violated.
    """
    config = config or example_config()
    torch.manual_seed(0)
    attention = make(config).eval()
    batch = _batch(config.d_model)
    mixed = attention(batch)
    _require(mixed.values.shape == batch.values.shape, f"the result is {tuple(mixed.values.shape)} for {tuple(batch.values.shape)}")
    _require(bool(mixed.values.isfinite().all()), "the result is not finite")
    _require(not mixed.values[~mixed.mask].any(), NOT_ZERO_AT_PADDING)
    full = torch.full_like(batch.lengths, LENGTH)
    whole = SequenceBatch(torch.randn_like(batch.values), full, torch.ones_like(batch.mask))
    before = attention(whole).values
    for position in range(1, LENGTH):
        changed = whole.values.clone()
        changed[:, position:] += 5 * torch.randn(changed[:, position:].shape)
        after = attention(whole.with_values(changed)).values
        _require(
            torch.equal(after[:, :position], before[:, :position]),
            f"positions before {position} depend on positions from {position} on: attention must be causal",
        )
    dirty = SequenceBatch(batch.values.masked_fill(~batch.mask[..., None], 1e6), batch.lengths, batch.mask)
    _require(torch.equal(attention(dirty).values, mixed.values), DEPENDS_ON_PADDING)
    last, wanted = attention(batch, last_only=True), mixed.last()
    _require(last.values.shape == wanted.values.shape, f"last_only returns {tuple(last.values.shape)}, not {tuple(wanted.values.shape)}")
    _close(last.values, wanted.values, "last_only differs from the full computation at the last real position")
    _learns(attention, lambda: attention(batch).values)


@random_state_kept()
def check_embedding(make: Factory[nn.Module], config: ModelConfig | None = None) -> None:
    """Check shape, padding and missing numbers of an embedding.

    Args:
        make: class or function that builds the embedding from a configuration.
        config: configuration; by default that of :func:`example_config`.

    Raises:
        AssertionError: A rule is violated.
    """
    config = config or example_config()
    torch.manual_seed(0)
    embedding = make(config).eval()
    batch = _fields(config)
    embedded: SequenceBatch = embedding(batch)
    _require(
        embedded.values.ndim == 3 and embedded.values.shape[0] == len(LENGTHS) and embedded.values.shape[2] == config.d_model,
        f"the result is {tuple(embedded.values.shape)}, not ({len(LENGTHS)}, n, {config.d_model})",
    )
    _require(not embedded.values[~embedded.mask].any(), NOT_ZERO_AT_PADDING)
    dirty = SequenceBatch(batch.values.masked_fill(~batch.mask[..., None], 3.0), batch.lengths, batch.mask)
    _require(torch.equal(embedding(dirty).values, embedded.values), DEPENDS_ON_PADDING)
    missing = batch.values.clone()
    missing[..., : len(config.numeric_fields)] = torch.nan
    _require(
        bool(embedding(SequenceBatch(missing, batch.lengths, batch.mask)).values.isfinite().all()),
        "a missing number (NaN) makes the result NaN",
    )
    _learns(embedding, lambda: embedding(batch).values)


@random_state_kept()
def check_head(make: Factory[Head], config: ModelConfig | None = None) -> None:
    """Check shapes, probabilities, loss and offset of a head.

    Args:
        make: class or function that builds the head from a configuration.
        config: configuration; by default that of :func:`example_config`.

    Raises:
        AssertionError: A rule is violated.
    """
    config = config or example_config()
    torch.manual_seed(0)
    head = make(config).eval()
    batch = _batch(config.d_model)
    logits = head(batch if head.needs_sequence else batch.last())
    _require(len(logits) == len(LENGTHS), f"the logits are {tuple(logits.shape)}, not one row for each of the {len(LENGTHS)}")
    probabilities = head.probabilities(logits)
    wanted = (len(LENGTHS), len(config.classes))
    _require(probabilities.shape == wanted, f"the probabilities are {tuple(probabilities.shape)}, not {wanted}")
    _close(probabilities.sum(1), torch.ones(len(probabilities)), "the probabilities do not sum to 1")
    label = torch.arange(len(LENGTHS)) % len(config.classes)
    loss = head.loss(logits, label)
    _require(loss.ndim == 0 and bool(loss.isfinite()), "the loss is not a finite number")
    unlabelled = label.clone()
    unlabelled[1:] = -1
    _close(head.loss(logits, unlabelled), head.loss(logits[:1], label[:1]), "rows with label -1 change the loss")
    _close(torch.stack(list(head.losses(logits, label).values())).sum(), loss, "the losses do not sum to the loss")
    first = (torch.arange(len(LENGTHS)) == 0).float()
    _close(head.loss(logits, label, None, first), head.loss(logits[:1], label[:1]), "the loss does not count rows by row_weight")
    offset = torch.linspace(-1.0, 1.0, len(config.classes))
    wished = torch.softmax(probabilities.log() + offset, 1)
    _close(head.probabilities(head.adjusted(logits, offset)), wished, "adjusted does not add the offset to the logits of the classes")
    _learns(head, lambda: head.loss(head(batch if head.needs_sequence else batch.last()), label))


@random_state_kept()
def check_in_classifier(**parts: object) -> None:
    """Check that a classifier with these parts can be built and that twenty training steps lower its loss.

    Args:
        parts: `embedding=`, `attention=` or `head=`, as for `Classifier`.

    Raises:
        AssertionError: Training does not lower the loss.
    """
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
    _require(after < before, f"twenty training steps on eight rows did not lower the loss: it went from {before:.3f} to {after:.3f}")


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
    reached = [parameter for parameter in parameters if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)]
    _require(bool(reached), "no gradient reaches the parameters")
    _require(all(bool(parameter.grad.isfinite().all()) for parameter in reached if parameter.grad is not None), "a gradient is not finite")


def _close(one: Tensor, other: Tensor, message: str) -> None:
    _require(torch.allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE), message)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
