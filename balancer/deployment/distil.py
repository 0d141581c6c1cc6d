"""Distil a small student from a trained detector: one block of single-head window attention.

What is special: the student learns the probabilities of the whole detector, network and boosted trees, and
reads neither trees nor their scores. So frauds, and rows that the teacher
scores high, can be drawn much more often than they occur without biasing the probabilities.
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
from balancer.inference.detector import Detector
from balancer.models import Classifier, ModelConfig, SequenceBatch
from balancer.sampling.seeding import generator, integer_seed
from balancer.training.fitting import thinned

STEPS = 2_000
"""Optimizer steps."""
BATCH = 256
LEARNING_RATE = 3e-3
NEGATIVES = 100_000
"""Most legitimate rows that the teacher scores."""
LABEL_SHARE = 0.2
"""Share of the label in the target; the rest is the probability of the teacher."""
WIDTH, HISTORY, BINS = 32, 8, 8
"""Most channels, transactions, and bins per field of the student. Its cost depends on the last two, its
scores hardly."""
_SHARES = (0.5, 0.25, 0.25)
"""Shares of a batch: uniformly drawn rows, frauds, rows drawn by the score of the teacher."""


def light_config(full: ModelConfig, score_fields: int = 0) -> ModelConfig:
    """Build the configuration of the student.

    Args:
        full: Configuration of the detector's network.
        score_fields: Number of its first fields, the scores of trees, that the student does not read.

    Raises:
        UnsupportedError: If the student can't have the embedding of the full model.
    """
    if full.embedding != "transaction" or full.cycles or full.numeric_encoding != "piecewise":
        raise UnsupportedError(
            f"embedding '{full.embedding}' can't be used in a light model: train with the embedding transaction, numeric_encoding piecewise and no cycles"
        )
    history_length = min(full.history_length, HISTORY)
    head = "binary" if len(full.classes) == 2 else "multiclass"
    edges = tuple(tuple(field[at] for at in _spread(len(field))) for field in full.edges[score_fields:])
    return dataclasses.replace(
        full,
        d_model=min(full.d_model, WIDTH),
        num_layers=1,
        num_heads=1,
        attention="window",
        form="rows",
        numeric_fields=full.numeric_fields[score_fields:],
        margin="",
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
    """Choose at most BINS + 1 of `edges` indices, evenly spaced, including the first and the last."""
    return sorted({round(index) for index in np.linspace(0, edges - 1, min(edges, BINS + 1))})


def distil(
    teacher: Detector,
    dataset: Dataset,
    *,
    seed: int,
    device: torch.device,
    steps: int = STEPS,
    progress: Callable[[int, str], None] | None = None,
) -> Classifier:
    """Train a light student on the training rows.

    Args:
        teacher: The detector, with a network, whose configuration the student's is derived from.
        dataset: The labelled table of the run, with filled score fields.
        seed: Random seed of rows, weights and batches.
        device: Where both models are.
        steps: Optimizer steps.
        progress: Called with (step, detail) every 50 steps.

    Returns:
        A classifier of the fields without score fields.

    Raises:
        UnsupportedError: If the student can't have the embedding of the full model.
    """
    assert teacher.model is not None
    config = light_config(teacher.model.config, len(dataset.schema.score_fields))
    base, label = dataset.without_score_fields(), dataset.store.label
    rows, _ = thinned(dataset.rows(Split.TRAIN), label, NEGATIVES, generator(seed, "distilling"))
    teacher_scores = teacher.scores(dataset, rows, device=device).astype(np.float32)
    known = np.eye(len(config.classes), dtype=np.float32)[label[rows].astype(np.int64)]
    target = torch.from_numpy((1 - LABEL_SHARE) * teacher_scores + LABEL_SHARE * known).to(device)
    fraud = fraud_score(teacher_scores)
    # The square root, because otherwise only a few certain frauds would be drawn.
    chance = np.sqrt(np.maximum(fraud, 1e-6))
    positives = np.flatnonzero(label[rows] > 0)
    torch.manual_seed(integer_seed(seed, "light weights"))
    student = Classifier(config).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE, weight_decay=0.01, fused=True)
    rng = generator(seed, "light draws")
    every, by_score = np.arange(len(rows)), np.cumsum(chance / chance.sum())
    sizes = [round(share * BATCH) for share in _SHARES]
    for step in range(steps):
        drawn = np.concatenate(
            [
                rng.choice(every, sizes[0]),
                rng.choice(positives, sizes[1]),
                np.minimum(np.searchsorted(by_score, rng.random(sizes[2])), len(rows) - 1),
            ]
        )
        batch = SequenceBatch.from_windows(*base.store.windows(rows[drawn], config.history_length), device)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / (0.05 * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        loss = _divergence(student, student(batch), target[torch.from_numpy(drawn).to(device)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if progress is not None and (step + 1) % 50 == 0:
            progress(step + 1, f"loss {float(loss.detach()):.4f}")
    return student.eval()


def _divergence(student: Classifier, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy between the target probabilities (B, K) and those of the student."""
    if logits.ndim == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, target[:, 1])
    return -(target * student.head.probabilities(logits).clamp(min=1e-12).log()).sum(1).mean()
