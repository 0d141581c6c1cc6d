"""`Classifier`: embedding, blocks, head, chosen by name from three plain dictionaries.

To put in a part of your own, add it to the dictionary and name it in the configuration (models/README.md shows one in ten lines).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.attention import Attention, DenseAttention, SparseAttention, WindowAttention
from balancer.models.batch import SequenceBatch, Targets
from balancer.models.blocks import Block
from balancer.models.config import ModelConfig
from balancer.models.embedding import TransactionEmbedding
from balancer.models.heads import BinaryHead, Head, MulticlassHead

Part = TypeVar("Part")

EMBEDDINGS: dict[str, Callable[[ModelConfig], nn.Module]] = {"transaction": TransactionEmbedding}
"""By name: a module from a batch of fields (B, n, C) to a batch of channels (B, n, d_model)."""

ATTENTIONS: dict[str, Callable[[ModelConfig], Attention]] = {
    "dense": lambda config: DenseAttention(config.d_model, config.num_heads, rotary=config.form == "sequence"),
    "window": lambda config: WindowAttention(config.d_model, config.num_heads, config.window, rotary=config.form == "sequence"),
    "sparse": lambda config: SparseAttention(
        config.d_model, config.num_heads, config.window, config.global_nodes, rotary=config.form == "sequence", score=config.score
    ),
}
"""By name: an `Attention` over d_model channels; made once per block."""

HEADS: dict[str, Callable[[ModelConfig], Head]] = {
    "binary": lambda config: BinaryHead(config.d_model),
    "multiclass": lambda config: MulticlassHead(config.d_model, len(config.classes)),
}
"""By name: a `Head` over d_model channels."""


def autocast(device: torch.device | str) -> AbstractContextManager[object]:
    """bfloat16 autocast on CUDA; on a CPU nothing, since small models gain nothing by it there."""
    kind = torch.device(device).type
    return torch.autocast("cuda", dtype=torch.bfloat16) if kind == "cuda" else nullcontext()


class Classifier(nn.Module):
    """Judges the last transaction of each window, or chosen ones of whole histories, by the ones before it.

    Example:
        >>> import numpy as np, torch
        >>> from balancer.models import Classifier, ModelConfig, SequenceBatch, fit_edges
        >>> rng = np.random.default_rng(0)
        >>> windows = rng.normal(size=(64, 8, 1)).astype(np.float32)        # 64 histories of 8 transactions, one numeric field
        >>> label = (windows[:, -1, 0] > windows[:, -2, 0] + 1).astype(np.int64)
        >>> config = ModelConfig(("amount",), (), (), fit_edges(windows[:, -1], label, seed=0), history=8)
        >>> model = Classifier(config)
        >>> batch = SequenceBatch.from_windows(windows, np.full(64, 8))
        >>> model.loss(model(batch), torch.from_numpy(label)).backward()
        >>> model.eval().probabilities(batch).shape
        torch.Size([64, 2])

    Args:
        config: what to build. Weights are drawn from torch's global generator: seed it first where they must repeat.

    Raises:
        InputError: `config` names a part that is not registered.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        attention = _registered(ATTENTIONS, "attention", config.attention)
        self.embedding = _registered(EMBEDDINGS, "embedding", config.embedding)(config)
        self.blocks = nn.ModuleList(Block(attention(config), config.d_model, config.dropout) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = _registered(HEADS, "head", config.head)(config)

    def encode(self, batch: SequenceBatch, targets: Targets | None = None) -> SequenceBatch:
        """What the head sees of a batch of fields: (B, 1, d_model) at the last positions, (T, 1, d_model) at the `targets`, or (B, n, d_model) for a head
        that needs the sequence.

        Raises:
            InputError: Targets are given and the model is of the form `window`, or its head needs the sequence.
        """
        if targets is not None:
            self._check_targets()
        batch = self.embedding(batch)
        for position, block in enumerate(self.blocks, start=1):
            last = position == len(self.blocks)
            last_only = last and targets is None and not self.head.needs_sequence
            batch = block(batch, last_only=last_only, targets=targets if last else None)
        return batch.with_values(self.norm(batch.values))

    def forward(self, batch: SequenceBatch, targets: Targets | None = None) -> Tensor:
        """Logits of a batch of fields (B, n, C): (B,) from a binary head, (B, K) from a multi-class one; T rows for T `targets`, each judged by
        what came before it (form `sequence`).
        """
        logits: Tensor = self.head(self.encode(batch, targets))
        return logits

    def init_state(self, batch_size: int) -> list[Any]:
        """The state of `batch_size` histories before their first transaction, for `step`; its size does not grow with what is read.

        Raises:
            InputError: The form is `window`, or the attention or the head needs the whole past.
        """
        self._check_targets()
        return [block.attention.init_state(batch_size) for block in self._each_block()]

    @torch.no_grad()
    def step(self, fields: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """Read the next transaction (B, C) of each history: its logits, as `forward` would give, and the state after it. Call `eval()` first."""
        one = torch.ones(len(fields), dtype=torch.int64, device=fields.device)
        x = self.embedding(SequenceBatch(fields[:, None], one, one[:, None].bool())).values[:, 0]
        after = []
        for block, own in zip(self._each_block(), state, strict=True):
            x, own = block.step(x, own)
            after.append(own)
        logits: Tensor = self.head(SequenceBatch(self.norm(x)[:, None], one, one[:, None].bool()))
        return logits, after

    @torch.no_grad()
    def attended(self, batch: SequenceBatch, targets: Targets, *, at_once: int = 512) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Which positions weighed on each target, `at_once` targets at a time: which targets, their attention (t, n) float32, mean over heads and blocks,
        and (t, n) bool, where a global node was used.

        Raises:
            InputError: The attention can't tell.
        """
        batch = self.embedding(batch)
        length, inputs = batch.values.shape[1], []
        for block in self._each_block():
            inputs.append(block.normed(batch))
            batch = block(batch)
        for begin in range(0, len(targets[0]), at_once):
            own = slice(begin, begin + at_once)
            mass = torch.zeros(len(targets[0][own]), length + 1, device=batch.values.device)
            is_global = torch.zeros_like(mass, dtype=torch.bool)
            for block, given in zip(self._each_block(), inputs, strict=True):
                seen = block.attention.attended(given, targets[0][own], targets[1][own])
                # Empty slots go to a column past the end; no position stands in two slots, but that column does.
                place = seen.position.where(seen.position >= 0, length)
                mass.scatter_add_(1, place, seen.mass / len(self.blocks))
                is_global.scatter_(1, place.where(seen.is_global, length), True)
            yield own, mass[:, :length], is_global[:, :length]

    def _each_block(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _check_targets(self) -> None:
        if self.config.form != "sequence":
            raise InputError("form 'window' judges the last position of a window only; build the model with form='sequence'")
        if self.head.needs_sequence:
            raise InputError(f"head '{self.config.head}' needs the whole sequence and can't judge single positions of it")

    def probabilities(self, batch: SequenceBatch, targets: Targets | None = None) -> Tensor:
        """Class probabilities (B, K) or (T, K) float32 of a batch of fields; the fraud score is 1 minus column 0. Call `eval()` first."""
        return self.head.probabilities(self(batch, targets))

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
        """Mean loss of logits for labels (B,) int64, -1 = unlabelled and left out; `class_weight` (K,) weighs rows by their class."""
        return self.head.loss(logits, label, class_weight)


def _registered(registry: dict[str, Callable[[ModelConfig], Part]], kind: str, name: str) -> Callable[[ModelConfig], Part]:
    if name not in registry:
        raise InputError(f"unknown {kind} '{name}'; known are {', '.join(sorted(registry))}")
    return registry[name]
