"""Class probabilities of store rows under a trained classifier, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from balancer.data.dataset import Dataset
from balancer.inference.batches import sequence_parts
from balancer.models import Classifier, SequenceBatch, autocast

SCORE_BATCH = 1024


@torch.no_grad()
def score_rows(model: Classifier, dataset: Dataset, rows: np.ndarray, *, device: torch.device) -> np.ndarray:
    """Class probabilities (n, K) float32 of the store ``rows`` (n,) under ``model``, a batch at a time."""
    scores = np.empty((len(rows), len(model.config.classes)), dtype=np.float32)
    for which, encoded in _encoded(model, dataset, rows, device):
        with autocast(device):
            scores[which] = model.head.probabilities(model.head(encoded)).float().cpu().numpy()
    return scores


@torch.no_grad()
def score_task(model: Classifier, dataset: Dataset, name: str, rows: np.ndarray, *, device: torch.device) -> np.ndarray:
    """Class probabilities (n, F, M) float32 of a further task's targets at the store ``rows`` (n,); 0 where a target has fewer than M classes."""
    assert model.tasks is not None
    task = next(task for task in model.config.tasks if task.name == name)
    scores = np.empty((len(rows), len(task.sizes), max(task.sizes)), dtype=np.float32)
    for which, encoded in _encoded(model, dataset, rows, device):
        with autocast(device):
            scores[which] = model.tasks(name, encoded).exp().cpu().numpy()
    return scores


def _encoded(model: Classifier, dataset: Dataset, rows: np.ndarray, device: torch.device) -> Iterator[tuple[np.ndarray, SequenceBatch]]:
    """What the head sees of the store ``rows`` (n,), a batch at a time, with the indices of its rows."""
    model.eval()
    if model.config.form == "histories":
        for part in sequence_parts(dataset.store, rows, model.config.history_length, device):
            with autocast(device):
                encoded = model.encode(part.batch, part.targets)
            yield part.which, encoded
        return
    for first in range(0, len(rows), SCORE_BATCH):
        chosen = rows[first : first + SCORE_BATCH]
        values, lengths = dataset.store.windows(chosen, model.config.history_length)
        with autocast(device):
            encoded = model.encode(SequenceBatch.from_windows(values, lengths, device))
        yield np.arange(first, first + len(chosen)), encoded
