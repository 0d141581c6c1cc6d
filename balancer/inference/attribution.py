"""Explain a network's score: earlier transactions with the most attention, global nodes, and hidden fields.

Attention shows which rows the model used, not what caused the score (Jain and Wallace 2019). Use it as a list
of rows to examine first.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from balancer.data.dataset import Dataset
from balancer.errors import UnsupportedError
from balancer.inference.batches import MAX_TOKENS, target_batches
from balancer.inference.detector import log_odds
from balancer.models import Classifier, SequenceBatch

SHOWN = 8
"""Most earlier transactions listed per row."""
LEAST = 0.01
"""Smallest attention with which a transaction is listed."""
AT_ONCE = 512
"""Windows in a batch."""


def explain(model: Classifier, dataset: Dataset, rows: np.ndarray, *, device: torch.device) -> dict[str, pl.Series]:
    """List the earlier transactions that the model attended to.

    Args:
        model: A trained classifier.
        dataset: The transactions.
        rows: (n,) store rows.
        device: Where the model is.

    Returns:
        Columns with a list per row; empty if the attention of the model has no weights. `attended`: ids of up
        to `SHOWN` earlier transactions of the same entity with at least `LEAST` of the attention (mean over
        heads and blocks), most attention first. `attended_mass`: the attention of each. `global_nodes`: ids
        of up to `SHOWN` global nodes, most attention first.
    """
    model.eval()
    at = np.full((len(rows), SHOWN), -1, dtype=np.int64)
    mass = np.zeros((len(rows), SHOWN), dtype=np.float32)
    nodes = np.full((len(rows), SHOWN), -1, dtype=np.int64)
    try:
        for part in target_batches(dataset.store, rows, model.config, size=AT_ONCE, device=device):
            for subset, given, is_global in model.attended(part.batch, part.targets):
                earlier = given.scatter(1, part.targets[1][subset, None], 0.0)
                begin = part.first[part.targets[0][subset].cpu().numpy()]
                index = part.index[subset]
                at[index], mass[index] = _best(earlier, earlier >= LEAST, begin)
                nodes[index], _ = _best(earlier, is_global, begin)
    except UnsupportedError:  # a custom attention without weights
        return {}
    return {
        "attended": _lists(dataset, at),
        "attended_mass": pl.Series(mass, dtype=pl.Array(pl.Float32, SHOWN)).arr.to_list().list.filter(pl.element() > 0),
        "global_nodes": _lists(dataset, nodes),
    }


def hidden_log_odds(model: Classifier, dataset: Dataset, row: int, *, device: torch.device) -> np.ndarray:
    """Compute the network's log-odds of fraud of one store row, as it is and with each field hidden.

    A field is hidden in all rows that the model reads, as field dropout hides it in training, so the model
    has learned to score without it.

    Args:
        model: A trained classifier.
        dataset: The transactions.
        row: A store row.
        device: Where the model is.

    Returns:
        (F + 1,) float64: with all fields, then with each field hidden.
    """
    (part,) = target_batches(dataset.store, np.array([row]), model.config, size=1, device=device)
    return hidden_in_batch(model, part.batch, part.targets[1])


def hidden_in_history(model: Classifier, rows: NDArray[np.float32], *, device: torch.device) -> np.ndarray:
    """Compute the log-odds of the last of the rows (m, F) of a history, as :func:`hidden_log_odds` does.

    Args:
        model: A trained classifier.
        rows: What the model reads for the last row: its window or its segment, the oldest row first.
        device: Where the model is.
    """
    batch = SequenceBatch.from_windows(rows[None], np.array([len(rows)]), device)
    return hidden_in_batch(model, batch, torch.tensor([len(rows) - 1], device=device))


def hidden_in_batch(model: Classifier, batch: SequenceBatch, position: Tensor) -> np.ndarray:
    """Compute the log-odds of one row of a batch of one history, as it is and with each field hidden.

    Args:
        model: A trained classifier.
        batch: The history, (1, n, F).
        position: (1,) place of the row in it.

    Returns:
        (F + 1,) float64: with all fields, then with each field hidden.
    """
    model.eval()
    device, numeric = batch.values.device, len(model.config.numeric_fields)
    fields, length = batch.values.shape[2], batch.values.shape[1]
    pieces = []
    at_once = max(1, MAX_TOKENS // length)
    for first in range(0, fields + 1, at_once):
        hidden = range(first, min(first + at_once, fields + 1))
        values = batch.values.repeat(len(hidden), 1, 1)
        unused = torch.zeros(len(hidden), 1, fields, dtype=torch.bool, device=device)
        for place, number in enumerate(hidden):
            if number:
                unused[place, 0, number - 1] = True  # a missing number may have a bin of its own, so NaN is not enough
                values[place, :, number - 1] = torch.nan if number - 1 < numeric else 0.0
        copies = SequenceBatch(values, batch.lengths.repeat(len(hidden)), batch.mask.repeat(len(hidden), 1), hidden=unused)
        every = (torch.arange(len(hidden), device=device), position.repeat(len(hidden)))
        with torch.inference_mode():
            scores = model.probabilities(copies, every if model.config.form == "histories" else None)
        pieces.append(log_odds(scores.cpu().numpy()))
    return np.concatenate(pieces)


def _best(mass: Tensor, wanted: Tensor, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Select the positions with the largest attention.

    Args:
        mass: (T, n) attention of T targets on each position of their history.
        wanted: (T, n) positions to select from.
        begin: (T,) store row of position 0.

    Returns:
        Store rows (T, SHOWN), -1 where there are fewer, and their attention (T, SHOWN).
    """
    best = mass.masked_fill(~wanted, -1.0).topk(min(SHOWN, mass.shape[1]), dim=1)
    missing = SHOWN - best.values.shape[1]
    value = np.pad(best.values.cpu().numpy(), ((0, 0), (0, missing)), constant_values=-1.0)
    place = np.pad(best.indices.cpu().numpy(), ((0, 0), (0, missing)))
    return np.where(value >= 0, begin[:, None] + place, -1), np.maximum(value, 0)


def _lists(dataset: Dataset, at: np.ndarray) -> pl.Series:
    """Convert store rows (n, SHOWN) to lists of ids, one list per row, without the entries -1."""
    known = at >= 0
    ids = dataset.ids.gather(at[known])
    row = np.repeat(np.arange(len(at)), known.sum(axis=1))
    frame = pl.DataFrame({"row": row, "id": ids}).group_by("row", maintain_order=True).agg("id")
    empty = pl.DataFrame({"row": np.arange(len(at))}).join(frame, on="row", how="left", maintain_order="left")
    return empty.select(pl.col("id").fill_null(pl.lit([], dtype=frame.schema["id"])))["id"]
