"""Class probabilities of store rows from a trained classifier, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from balancer.data.dataset import Dataset
from balancer.inference.alike import alike_batches
from balancer.inference.batches import WHOLE, target_batches
from balancer.models import Classifier, SequenceBatch, autocast

SCORE_BATCH = 1024
"""Windows in a batch."""


@torch.no_grad()
def score_rows(
    model: Classifier, dataset: Dataset, rows: np.ndarray, *, device: torch.device, part: tuple[int, int] = WHOLE, alike: bool = False
) -> np.ndarray:
    """Compute class probabilities (n, K) float32 of the store `rows` (n,).

    With ``part`` (r, W), only every W-th batch from the r-th on is computed, and the other rows are 0. With
    ``alike`` all batches have one shape, so that the scores of a row do not depend on the other rows.
    """
    scores = np.zeros((len(rows), len(model.config.classes)), dtype=np.float32)
    for index, encoded in _encoded(model, dataset, rows, device, part, alike):
        with autocast(device):
            scores[index] = model.head.probabilities(model.logits(encoded)).float().cpu().numpy()[: len(index)]
    return scores


@torch.no_grad()
def score_task(
    model: Classifier, dataset: Dataset, name: str, rows: np.ndarray, *, device: torch.device, part: tuple[int, int] = WHOLE
) -> np.ndarray:
    """Compute class probabilities (n, F, M) float32 of the F targets of an auxiliary task.

    M is the largest number of classes of a target; the surplus classes of other targets have probability 0.
    ``part`` is as of :func:`score_rows`.
    """
    assert model.tasks is not None
    task = next(task for task in model.config.tasks if task.name == name)
    scores = np.zeros((len(rows), len(task.sizes), max(task.sizes)), dtype=np.float32)
    for index, encoded in _encoded(model, dataset, rows, device, part):
        with autocast(device):
            scores[index] = model.tasks(name, encoded).exp().cpu().numpy()
    return scores


def _encoded(
    model: Classifier, dataset: Dataset, rows: np.ndarray, device: torch.device, part: tuple[int, int], alike: bool = False
) -> Iterator[tuple[np.ndarray, SequenceBatch]]:
    """Encode the store `rows` (n,) for the head, a batch at a time, with the indices of its rows."""
    model.eval()
    if alike:
        batches = alike_batches(dataset.store, rows, model.config, size=SCORE_BATCH, device=device)
    else:
        batches = target_batches(dataset.store, rows, model.config, size=SCORE_BATCH, device=device, part=part)
    for found in batches:
        with autocast(device):
            encoded = model.encode(found.batch, found.targets if model.config.form == "histories" else None)
        yield found.index, encoded
