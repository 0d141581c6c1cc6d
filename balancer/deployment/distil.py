"""A light student of a trained classifier: same fields, one block of single-head window attention, taught what the full model thinks.

Special: the teacher's probabilities are what is learned, so rows may be drawn as suits the student (frauds, and what the teacher nearly took for fraud, far
more often than they come) without any probability being bent by it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.errors import UnsupportedError
from balancer.inference.decision import fraud_score
from balancer.inference.scoring import score_rows
from balancer.models import Classifier, ModelConfig, SequenceBatch
from balancer.sampling.seeding import generator, integer_seed
from balancer.training.fitting import thinned

STEPS = 2_000
BATCH = 256
LEARNING_RATE = 3e-3
NEGATIVES = 100_000
"""Legitimate rows that the teacher scores, at most."""
LABEL_SHARE = 0.2
"""Of the known label in what is learned, beside the teacher's probabilities."""
WIDTH, HISTORY, BINS = 32, 8, 8
"""Channels, transactions and bins a field of the student, at most: what it costs goes with the last two, and its scores hardly do."""
_KINDS = (0.5, 0.25, 0.25)
"""Shares of a batch: any rows, frauds, rows by the teacher's score."""


def light_config(full: ModelConfig) -> ModelConfig:
    """The student's configuration.

    Raises:
        UnsupportedError: The full model's embedding is not one that a light build can have.
    """
    if full.embedding != "transaction" or full.cycles or full.numeric_encoding != "piecewise":
        raise UnsupportedError(
            f"embedding '{full.embedding}' can't be carried by a light build; it takes embedding transaction with numeric_encoding piecewise and no cycles"
        )
    history_length = min(full.history_length, HISTORY)
    head = "binary" if len(full.classes) == 2 else "multiclass"
    edges = tuple(tuple(field[at] for at in _spread(len(field))) for field in full.edges)
    return dataclasses.replace(
        full,
        d_model=min(full.d_model, WIDTH),
        num_layers=1,
        num_heads=1,
        attention="window",
        form="rows",
        history_length=history_length,
        edges=edges,
        attention_window=min(full.attention_window, history_length),
        head=head,
        dropout=0.0,
        field_dropout=0.0,
        adapter_rank=0,
        tasks=(),
    )


def _spread(edges: int) -> list[int]:
    """Indices of at most BINS + 1 of that many edges, evenly spread, the first and the last among them."""
    return sorted({round(index) for index in np.linspace(0, edges - 1, min(edges, BINS + 1))})


def distil(
    teacher: Classifier,
    dataset: Dataset,
    *,
    seed: int,
    device: torch.device,
    steps: int = STEPS,
    progress: Callable[[int, str], None] | None = None,
) -> Classifier:
    """A light student of ``teacher``, taught on the training rows of ``dataset``; ``progress(step, detail)`` is called now and then."""
    config = light_config(teacher.config)
    label = dataset.store.label
    rows, _ = thinned(dataset.rows(Split.TRAIN), label, NEGATIVES, generator(seed, "distilling"))
    thought = score_rows(teacher, dataset, rows, device=device)
    known = np.eye(len(config.classes), dtype=np.float32)[label[rows].astype(np.int64)]
    wanted = torch.from_numpy((1 - LABEL_SHARE) * thought + LABEL_SHARE * known).to(device)
    fraud = fraud_score(thought)
    # By the square root, or a handful of sure frauds would be all that is drawn.
    chance = np.sqrt(np.maximum(fraud, 1e-6))
    positives = np.flatnonzero(label[rows] > 0)
    torch.manual_seed(integer_seed(seed, "light weights"))
    student = Classifier(config).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE, weight_decay=0.01, fused=True)
    rng = generator(seed, "light draws")
    every, by_score = np.arange(len(rows)), np.cumsum(chance / chance.sum())
    sizes = [round(share * BATCH) for share in _KINDS]
    for step in range(steps):
        drawn = np.concatenate(
            [
                rng.choice(every, sizes[0]),
                rng.choice(positives, sizes[1]),
                np.minimum(np.searchsorted(by_score, rng.random(sizes[2])), len(rows) - 1),
            ]
        )
        batch = SequenceBatch.from_windows(*dataset.store.windows(rows[drawn], config.history_length), device)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / (0.05 * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        loss = _divergence(student, student(batch), wanted[torch.from_numpy(drawn).to(device)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if progress is not None and (step + 1) % 50 == 0:
            progress(step + 1, f"loss {float(loss.detach()):.4f}")
    return student.eval()


def _divergence(student: Classifier, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the student's probabilities under the wanted ones (B, K)."""
    if logits.ndim == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted[:, 1])
    return -(wanted * student.head.probabilities(logits).clamp(min=1e-12).log()).sum(1).mean()
