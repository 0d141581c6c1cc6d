"""`Classifier`: embedding, blocks, head, chosen by name from three plain dictionaries.

To put in a part of your own, add it to the dictionary and name it in the configuration (models/README.md shows one in ten lines).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.attention import Attention, DenseAttention, WindowAttention
from balancer.models.batch import SequenceBatch
from balancer.models.blocks import Block
from balancer.models.config import ModelConfig
from balancer.models.embedding import TransactionEmbedding
from balancer.models.heads import BinaryHead, Head, MulticlassHead

Part = TypeVar("Part")

EMBEDDINGS: dict[str, Callable[[ModelConfig], nn.Module]] = {"transaction": TransactionEmbedding}
"""By name: a module from a batch of fields (B, n, C) to a batch of channels (B, n, d_model)."""

ATTENTIONS: dict[str, Callable[[ModelConfig], Attention]] = {
    "dense": lambda config: DenseAttention(config.d_model, config.num_heads),
    "window": lambda config: WindowAttention(config.d_model, config.num_heads, config.window),
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
    """Judges the last transaction of each window by the ones before it.

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

    def encode(self, batch: SequenceBatch) -> SequenceBatch:
        """What the head sees of a batch of fields: (B, 1, d_model) at the target, or (B, n, d_model) for a head that needs the sequence."""
        batch = self.embedding(batch)
        for position, block in enumerate(self.blocks, start=1):
            batch = block(batch, last_only=position == len(self.blocks) and not self.head.needs_sequence)
        return batch.with_values(self.norm(batch.values))

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a batch of fields (B, n, C): (B,) from a binary head, (B, K) from a multi-class one."""
        logits: Tensor = self.head(self.encode(batch))
        return logits

    def probabilities(self, batch: SequenceBatch) -> Tensor:
        """Class probabilities (B, K) float32 of a batch of fields; the fraud score is 1 minus column 0. Call `eval()` first."""
        return self.head.probabilities(self(batch))

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
        """Mean loss of logits for labels (B,) int64, -1 = unlabelled and left out; `class_weight` (K,) weighs rows by their class."""
        return self.head.loss(logits, label, class_weight)


def _registered(registry: dict[str, Callable[[ModelConfig], Part]], kind: str, name: str) -> Callable[[ModelConfig], Part]:
    if name not in registry:
        raise InputError(f"unknown {kind} '{name}'; known are {', '.join(sorted(registry))}")
    return registry[name]
