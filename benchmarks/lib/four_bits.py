"""What 4 bits would save and cost in embeddings: 32 numbers of an entry share a scale in float16."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from balancer.data.split import Split
from balancer.models import SequenceBatch
from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.quantization import divergence, find_layers
from balancer.models.quantization.modules import quantize_rows
from benchmarks.lib.bert_timing import TOKENS, cosine
from benchmarks.lib.quantization_models import bert, bert_ids, minilm, trained

GROUP = 32
"""Numbers that share a scale."""
SCHEMES = ("int8, a scale per entry", "int4, a scale per 32")


def rounded(rows: Tensor, scheme: str) -> tuple[Tensor, int]:
    """Round entries (R, d), and return them as float32 and the bytes that they take."""
    if scheme == SCHEMES[0]:
        whole, scale = quantize_rows(rows)
        return whole.float() * scale[:, None], whole.numel() + 4 * len(scale)
    width = rows.shape[1]
    groups = nn.functional.pad(rows, (0, -width % GROUP)).view(len(rows), -1, GROUP)
    scale = (groups.abs().amax(2, keepdim=True) / 7).half().float().clamp(min=1e-7)
    values = (groups / scale).round().clamp(-7, 7) * scale
    return values.flatten(1)[:, :width], groups.numel() // 2 + 2 * scale.numel()


def measure_four_bits(seed: int, steps: int) -> dict[str, Any]:
    """Bytes, and the difference that rounding only the embeddings makes to the output.

    The models are BERT's shape with random weights, the real MiniLM if it is installed, and the embedding and
    the encoder's table of a trained classifier.
    """
    result: dict[str, Any] = {}
    model, ids = bert(), bert_ids(8, TOKENS, seed=1)
    result["BERT's shape, cosine"] = _compared(model, lambda other: cosine(model(ids), other(ids)))
    found = minilm()
    if found is not None:
        real, sentences = found
        result["MiniLM, cosine"] = _compared(real, lambda other: sum(cosine(real(one), other(one)) for one in sentences) / len(sentences))
    detector, dataset = trained("sample", steps=steps, seed=seed)
    rows = dataset.rows(Split.THRESHOLD)[:512]
    batch = SequenceBatch.from_windows(*dataset.store.windows(rows, detector.config.history_length))
    result["classifier, divergence"] = _compared(detector, lambda other: float(divergence(detector(batch), other(batch))))
    return result


def _compared(model: nn.Module, measure: Any) -> dict[str, Any]:
    """Round the embeddings and tables of copies of ``model`` by each scheme."""
    found: dict[str, Any] = {}
    for scheme in SCHEMES:
        copied, size, full, total = copy.deepcopy(model), 0, 0, 0
        for layer in find_layers(copied):
            total += layer.bytes("int8")
            if layer.kind == "linear":
                continue
            values, taken = rounded(layer.rows.detach(), scheme)
            size, full = size + taken, full + layer.bytes("fp32")
            total += taken - layer.bytes("int8")
            _put(layer.module, values)
        with torch.inference_mode():
            found[scheme] = {
                "figure": measure(copied),
                "embedding_bytes": size,
                "of_float32": size / full,
                "whole_model_with_the_rest_in_int8": total,
            }
    return found


def _put(module: nn.Module, rows: Tensor) -> None:
    """Give an embedding, or an encoder, these rows as its weight or table."""
    with torch.no_grad():
        if isinstance(module, PiecewiseLinearEncoder):
            module.table = lambda: rows  # type: ignore[method-assign]
        else:
            module.get_parameter("weight").copy_(rows)
