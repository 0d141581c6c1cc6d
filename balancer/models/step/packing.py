"""Copy the weights of a classifier into the arrays that the kernel reads.

The kernel computes 16 numbers at a time. Channels are therefore padded with zeros to a multiple of 16, and
the weights of a linear layer are arranged as panels of 16 outputs. Tables that torch's modules compute in
every call, such as that of the piecewise-linear encoder, are computed once. Layers that may be in low
precision are copied by `linear.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from balancer.models.adapter import AdaptedLinear
from balancer.models.attention import Attention, DenseAttention, SparseAttention, WindowAttention
from balancer.models.attention.rotary import LONGEST, SHORTEST
from balancer.models.attention.scores import ChannelEntropy, Gate, LandmarkEntropy, LearnedScore, RandomScore, Surprisal
from balancer.models.blocks import Block
from balancer.models.classifier import Classifier
from balancer.models.embedding import TransactionEmbedding
from balancer.models.heads import BinaryHead, MulticlassHead
from balancer.models.missing import MissingEncoder
from balancer.models.periodic import FREQUENCIES, HARMONICS, CycleEncoder, PeriodicEncoder
from balancer.models.step.linear import (
    EMBEDDINGS,
    LINEAR,
    TABLES,
    Floats,
    LinearWeights,
    Precision,
    embedding_rows,
    encoder_table,
    floats,
    has_low_table,
    linear_weights,
    wide,
    wrong_dtype,
)

ENCODINGS = {type(None): 0, **dict.fromkeys(TABLES, 1), PeriodicEncoder: 2}
SCORES: dict[type, int] = {LandmarkEntropy: 1, ChannelEntropy: 2, Surprisal: 3, LearnedScore: 4, RandomScore: 5}
ATTENTIONS = (DenseAttention, SparseAttention, WindowAttention)
LAYERS = ("query", "key_value", "score", "out", "ff1", "ff2", "head")
"""Linear layers of a block, then that of the model, in the order of the kernel."""


@dataclass(frozen=True, eq=False)
class Packed:
    """What the kernel needs of a classifier. Names and shapes are those of the struct in kernels/step.cpp."""

    sizes: dict[str, int]
    arrays: dict[str, NDArray[Any]]
    numbers: dict[str, float] = field(default_factory=dict)


def refuses(model: Classifier, device: torch.device | str = "cpu") -> str | None:
    """Return the reason why the kernel can't compute this model, or None if it can.

    Args:
        model: A classifier.
        device: Where it computes.
    """
    if torch.device(device).type != "cpu":
        return f"it computes on a CPU, not on {torch.device(device).type}"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "hooks observe the modules of this model"
    wrong = _unknown_part(model)
    if wrong is not None:
        return wrong
    if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
        return "the weights are not on a CPU"
    return wrong_dtype(model)


def _unknown_part(model: Classifier) -> str | None:
    """Name the first module that the kernel does not know, with its type."""
    embedding, head = model.embedding, model.head
    if type(embedding) is not TransactionEmbedding:
        return f"it does not know the embedding {type(embedding).__name__}"
    if type(head) not in (BinaryHead, MulticlassHead):
        return f"it does not know the head {type(head).__name__}"
    blocks = list(model.blocks)
    for block in blocks:
        if type(block) is not Block or type(block.attention) not in ATTENTIONS:
            return f"it does not know the attention {type(getattr(block, 'attention', block)).__name__}"
    expected: list[tuple[object, tuple[type, ...]]] = [
        (embedding.numeric, tuple(ENCODINGS)),
        (embedding.cycles, (CycleEncoder, type(None))),
        (embedding.missing, (MissingEncoder, type(None))),
        (embedding.position, (*EMBEDDINGS, type(None))),
        *((table, EMBEDDINGS) for table in embedding.categorical),
        (model.norm, (nn.LayerNorm,)),
        (head.project, LINEAR),
    ]
    linear = (*LINEAR, AdaptedLinear)
    for block in _blocks(model):
        attention = block.attention
        assert isinstance(attention, DenseAttention)
        expected += [(block.attention_norm, (nn.LayerNorm,)), (block.ff_norm, (nn.LayerNorm,))]
        expected += [(layer, linear) for layer in (attention.query, attention.key_value, attention.out, block.ff1, block.ff2)]
    for module, types in expected:
        if type(module) not in types:
            return f"it does not know the layer {type(module).__name__}"
    if any(isinstance(module, nn.Embedding) and module.max_norm is not None for module in model.modules()):
        return "it does not know tables with a max_norm"
    return _unknown_attention(model)


def _unknown_attention(model: Classifier) -> str | None:
    attentions = [block.attention for block in _blocks(model)]
    for attention in attentions:
        if not isinstance(attention, SparseAttention):
            continue
        core = attention.core
        if not core.layout.causal or core.layout.mode != "sliding" or core.layout.chunk != core.layout.window:
            return "it takes sliding windows, with chunks of their size"
        if core.score is not None and type(core.score) not in SCORES:
            return f"it does not know the score {type(core.score).__name__}"
        if type(core.gate) not in (Gate, type(None)):
            return f"it does not know the gate {type(core.gate).__name__}"
        mapped = _score_layer(core.score)
        if mapped is not None and type(mapped) not in (*LINEAR, AdaptedLinear):
            return f"it does not know the layer {type(mapped).__name__}"
    if len({_kind(attention, model.config.history_length) for attention in attentions}) > 1:
        return "it takes blocks with equal attentions"
    return None


def _kind(attention: Attention, history_length: int) -> tuple[object, ...]:
    """Return what must be equal in all blocks.

    These are heads, rotation, window, number of nodes, type of score, gate, and number of landmarks.
    """
    assert isinstance(attention, DenseAttention)
    common = (attention.num_heads, attention.rotary)
    if not isinstance(attention, SparseAttention) or not attention.core.num_global:
        window = attention.core.layout.window if isinstance(attention, SparseAttention) else history_length
        # Nothing leaves a longer window.
        return *common, min(window, history_length), 0, type(None), False, 0
    core = attention.core
    score = core.score
    mapped = _score_layer(score)
    landmarks = 0 if mapped is None else mapped.out_features
    return *common, core.layout.window, core.num_global, type(score), core.gate is not None, landmarks


@torch.no_grad()
def pack(model: Classifier) -> Packed:
    """Copy the weights of a classifier that `refuses` accepts."""
    config, blocks = model.config, list(_blocks(model))
    heads, rotary, window, nodes, score, gated, landmarks = _kind(blocks[0].attention, config.history_length)
    assert isinstance(heads, int) and isinstance(window, int) and isinstance(nodes, int) and isinstance(landmarks, int)
    assert isinstance(score, type)
    channels = config.d_model
    if nodes and window >= config.history_length:  # no token ever leaves the window
        nodes, score, gated, landmarks, window = 0, type(None), False, 0, config.history_length
    pairs = channels // heads // 4 if rotary else 0
    sizes = {
        "channels": channels,
        "heads": heads,
        "layers": len(blocks),
        "hidden": blocks[0].ff1.out_features,
        "classes": len(config.classes),
        "window": window,
        "nodes": nodes,
        "history": config.history_length,
        "histories": int(config.form == "histories"),
        "score": SCORES.get(score, 0),
        "landmarks": landmarks,
        "gated": int(bool(gated)),
        "pairs": pairs,
        "binary": int(isinstance(model.head, BinaryHead)),
        "margin": config.numeric_fields.index(config.margin) if config.margin else -1,
    }
    octave = np.linspace(0, 1, pairs) if pairs > 1 else np.zeros(pairs)
    eps = np.array([(block.attention_norm.eps, block.ff_norm.eps) for block in blocks], np.float32)
    arrays: dict[str, NDArray[Any]] = {
        "speed": 2 * math.pi / (SHORTEST * (LONGEST / SHORTEST) ** octave),
        "eps": eps,
        "norms": _stack(blocks, lambda block: np.stack([*_norm(block.attention_norm), *_norm(block.ff_norm)])),
        "lastNorm": np.stack(_norm(model.norm)),
        "ones": wide(np.ones(channels, np.float32)),
    }
    for name, layer in (("out", "out"), ("up", "ff1"), ("down", "ff2")):
        arrays |= _side_by_side(name, [[linear_weights(_layer(block, layer))] for block in blocks])
    arrays |= _side_by_side("mixing", [_mixing(block, landmarks) for block in blocks])
    head = linear_weights(model.head.project)  # type: ignore[arg-type]
    arrays |= {name: array[0] for name, array in _side_by_side("head", [[head]]).items()}
    kinds = [precision for block in blocks for precision in _precisions(block, landmarks)]
    arrays["kinds"] = np.array([*kinds, head.precision], np.int64)
    if nodes:
        arrays |= {"scoring": _stack(blocks, lambda block: _scoring(block, channels)), "gate": _stack(blocks, _gate)}
    embedding_sizes, embedding = _embedding(model)
    numbers = {"lastEps": model.norm.eps, "scale": (channels // heads) ** -0.5}
    return Packed(sizes | embedding_sizes, arrays | embedding, numbers)


def _blocks(model: Classifier) -> Iterable[Block]:
    for block in model.blocks:
        assert isinstance(block, Block)
        yield block


def _embedding(model: Classifier) -> tuple[dict[str, int], dict[str, NDArray[Any]]]:
    config, embedding = model.config, model.embedding
    assert isinstance(embedding, TransactionEmbedding)
    numeric, cycles, tables = embedding.numeric, embedding.cycles, list(embedding.categorical)
    sizes = {
        "fields": embedding.num_fields,
        "numeric": embedding.num_numeric,
        "categories": len(tables),
        "encoding": ENCODINGS[type(numeric)],
        "lowTable": int(has_low_table(numeric)),
        **dict.fromkeys(("levels", "bins", "frequencies", "cycles", "harmonics", "missing"), 0),
    }
    arrays: dict[str, NDArray[Any]] = {}
    if isinstance(numeric, (*TABLES, PeriodicEncoder)):
        places = numeric.places
        sizes |= {"levels": places.levels, "bins": places.bins}
        arrays |= {"search": floats(places.search), "lower": floats(places.lower), "width": floats(places.width)}
    if isinstance(numeric, TABLES):
        sums_and_slopes = wide(encoder_table(numeric)).reshape(2, places.fields * places.bins, -1)
        arrays["table"] = np.ascontiguousarray(sums_and_slopes.transpose(1, 0, 2))
    elif isinstance(numeric, PeriodicEncoder):
        sizes["frequencies"] = FREQUENCIES
        arrays |= {
            "places": floats(numeric.bins),
            "frequency": floats(numeric.frequency * (2 * math.pi * math.sqrt(3))),
            "waves": wide(floats(numeric.weight)),
            "wavesBias": wide(floats(numeric.bias)),
        }
    if isinstance(cycles, CycleEncoder):
        sizes |= {"cycles": len(cycles.period), "harmonics": HARMONICS}
        arrays |= {
            "cycleColumn": cycles.column.numpy().astype(np.int64),
            "period": floats(cycles.period),
            "harmonic": floats(2 * math.pi * torch.arange(1, HARMONICS + 1)),
            "cycleWaves": wide(floats(cycles.weight)),
        }
    if isinstance(embedding.missing, MissingEncoder):
        sizes["missing"] = len(embedding.missing.weight)
        arrays |= {
            "missingColumn": embedding.missing.column.numpy().astype(np.int64),
            "missingRows": wide(floats(embedding.missing.weight)),
        }
    if tables:
        rows = [embedding_rows(table) for table in tables]
        counts = np.array([len(each) for each in rows], np.int64)
        arrays |= {"sizes": counts, "offsets": counts.cumsum() - counts, "codes": wide(np.concatenate(rows))}
    if embedding.position is not None:
        arrays["position"] = wide(embedding_rows(embedding.position))
    assert config.form == "rows" or embedding.position is None
    return sizes, arrays


def _score_layer(score: object) -> Any:
    """Return the linear layer of a score, or None."""
    if isinstance(score, LandmarkEntropy):
        return score.landmarks
    return score.project if isinstance(score, LearnedScore) else None


def _layer(block: Block, name: str) -> nn.Module:
    """Return the linear layer of a name in `LAYERS`."""
    if name == "score":
        assert isinstance(block.attention, SparseAttention)
        found: nn.Module = _score_layer(block.attention.core.score)
        return found
    return (block if name in ("ff1", "ff2") else block.attention).get_submodule(name)


def _precisions(block: Block, landmarks: int) -> list[Precision]:
    """Precisions of the layers of a block in `LAYERS`; a score without a layer has full precision."""
    names = [name if landmarks or name != "score" else "" for name in LAYERS[:-1]]
    return [linear_weights(_layer(block, name)).precision if name else Precision.FULL for name in names]


def _mixing(block: Block, landmarks: int) -> list[LinearWeights]:
    """Linear maps of the normed token: query, key, value, and the score's own."""
    both = linear_weights(_layer(block, "key_value"))
    half = len(both.weight) // 2
    layers = [linear_weights(_layer(block, "query")), both.outputs(slice(half)), both.outputs(slice(half, None))]
    return [*layers, linear_weights(_layer(block, "score"))] if landmarks else layers


def _side_by_side(name: str, layers: list[list[LinearWeights]]) -> dict[str, Floats]:
    """Arrange the linear layers of each block, which have the same inputs, one after another."""
    return {
        name: np.stack([np.concatenate([layer.panels() for layer in each]) for each in layers]),
        f"{name}Bias": np.stack([np.concatenate([wide(layer.bias) for layer in each]) for each in layers]),
        f"{name}Scale": np.stack([np.concatenate([wide(layer.scale) for layer in each]) for each in layers]),
    }


def _scoring(block: Block, channels: int) -> Floats:
    """Numbers (2, D) of a score over channels; zeros for the others."""
    assert isinstance(block.attention, SparseAttention)
    score = block.attention.core.score
    found = np.zeros((2, channels), np.float32)
    if isinstance(score, Surprisal):
        found[0], found[1] = floats(score.mean), floats(score.variance)
    elif isinstance(score, RandomScore):
        found[0] = floats(score.weight)
    return wide(found)


def _gate(block: Block) -> Floats:
    assert isinstance(block.attention, SparseAttention)
    gate = block.attention.core.gate
    return np.array([0.0, 0.0] if gate is None else [float(gate.slope), float(gate.offset)], np.float32)


def _stack(blocks: list[Block], of: Callable[[Block], Floats]) -> Floats:
    return np.stack([of(block) for block in blocks])


def _norm(layer: nn.LayerNorm) -> tuple[Floats, Floats]:
    size = layer.normalized_shape[0]
    weight = np.ones(size, np.float32) if layer.weight is None else floats(layer.weight)
    return wide(weight), wide(np.zeros(size, np.float32) if layer.bias is None else floats(layer.bias))
