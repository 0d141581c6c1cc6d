"""Why a transaction was scored as it was, as far as attention tells: the earlier transactions that weighed most, and the global nodes.

Attention is where a model looked, not a proof of cause (Jain and Wallace 2019); read it as a list of what to look at first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from torch import Tensor

from balancer.data.dataset import Dataset
from balancer.errors import UnsupportedError
from balancer.evaluation.calibration import pooled_score
from balancer.inference.batches import sequence_parts
from balancer.models import Classifier, SequenceBatch, Targets

SHOWN = 8
"""Earlier transactions named per row."""
LEAST = 0.01
"""Attention below which a transaction is not worth naming."""
AT_ONCE = 512
"""Windows in a batch."""


def explain(model: Classifier, dataset: Dataset, rows: np.ndarray, *, device: torch.device) -> dict[str, pl.Series]:
    """Columns for the store ``rows`` (n,), each a list per row.

    ``attended``: ids of up to `SHOWN` earlier transactions of the same entity that got at least `LEAST` of the attention (mean over heads and blocks),
    the most first; ``attended_mass``: how much each got; ``global_nodes``: ids of those seen as global nodes, of the `SHOWN` that weighed most.
    None at all where the model's attention can't tell.
    """
    model.eval()
    at = np.full((len(rows), SHOWN), -1, dtype=np.int64)
    mass = np.zeros((len(rows), SHOWN), dtype=np.float32)
    nodes = np.full((len(rows), SHOWN), -1, dtype=np.int64)
    try:
        for which, batch, targets, first in _batches(model, dataset, rows, device):
            for own, given, is_global in model.attended(batch, targets):
                earlier = given.scatter(1, targets[1][own, None], 0.0)
                begin = first[targets[0][own].cpu().numpy()]
                at[which[own]], mass[which[own]] = _best(earlier, earlier >= LEAST, begin)
                nodes[which[own]], _ = _best(earlier, is_global, begin)
    except UnsupportedError:  # a part of the user's own that has no weights to show
        return {}
    return {
        "attended": _lists(dataset, at),
        "attended_mass": pl.Series(mass, dtype=pl.Array(pl.Float32, SHOWN)).arr.to_list().list.filter(pl.element() > 0),
        "global_nodes": _lists(dataset, nodes),
    }


def field_contributions(model: Classifier, dataset: Dataset, row: int, *, device: torch.device) -> pl.DataFrame:
    """What each field did to the score of one store row: columns ``field``, ``value`` (text, of the row itself) and ``contribution``, largest first.

    ``contribution`` is the change in log-odds of fraud when the field is shown instead of hidden, over the whole history that the model sees.
    Hidden is what field dropout does in training, so the model has learned to answer without it. Contributions of fields that tell the same
    need not add up.
    """
    model.eval()
    schema, store = dataset.schema, dataset.store
    ((_, batch, (_, position), _),) = _batches(model, dataset, np.array([row]), device)
    fields = batch.values.shape[2]
    values = batch.values.repeat(fields + 1, 1, 1)
    for field in range(fields):
        values[1 + field, :, field] = torch.nan if field < store.num_numeric else 0.0
    hidden = SequenceBatch(values, batch.lengths.repeat(fields + 1), batch.mask.repeat(fields + 1, 1))
    every = (torch.arange(fields + 1, device=device), position.repeat(fields + 1))
    with torch.inference_mode():
        scores = model.probabilities(hidden, every if model.config.form == "histories" else None)
    fraud = pooled_score(scores.double().cpu().numpy()).clip(1e-12, 1 - 1e-12)
    log_odds = np.log(fraud) - np.log1p(-fraud)
    own = store.values[row]
    texts = [f"{value:.6g}" for value in own[: store.num_numeric]]
    for name, code in zip(schema.categorical_fields, own[store.num_numeric :], strict=True):
        known = schema.vocabularies[name]
        other = "rare or not seen in training" if code > len(known) else "missing" if schema.hash_buckets else "not seen in training"
        texts.append(known[int(code) - 1] if 1 <= code <= len(known) else other)
    frame = pl.DataFrame(
        {"field": [*schema.numeric_fields, *schema.categorical_fields], "value": texts, "contribution": log_odds[0] - log_odds[1:]}
    )
    return frame.sort(pl.col("contribution").abs(), descending=True, maintain_order=True)


def _batches(
    model: Classifier, dataset: Dataset, rows: np.ndarray, device: torch.device
) -> Iterator[tuple[np.ndarray, SequenceBatch, Targets, np.ndarray]]:
    """Indices into ``rows``, their histories, where they stand in them, and the store row at which each history begins."""
    history = model.config.history_length
    if model.config.form == "histories":
        for part in sequence_parts(dataset.store, rows, history, device):
            yield part.which, part.batch, part.targets, part.first
        return
    for begin in range(0, len(rows), AT_ONCE):
        chosen = rows[begin : begin + AT_ONCE]
        values, lengths = dataset.store.windows(chosen, history)
        targets = (torch.arange(len(chosen), device=device), torch.as_tensor(lengths - 1, device=device))
        which = np.arange(begin, begin + len(chosen))
        yield which, SequenceBatch.from_windows(values, lengths, device), targets, chosen - lengths + 1


def _best(mass: Tensor, wanted: Tensor, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Store rows (T, SHOWN), -1 for none, and mass of the wanted positions that weighed most; ``begin`` (T,) is the store row of position 0."""
    best = mass.masked_fill(~wanted, -1.0).topk(min(SHOWN, mass.shape[1]), dim=1)
    missing = SHOWN - best.values.shape[1]
    value = np.pad(best.values.cpu().numpy(), ((0, 0), (0, missing)), constant_values=-1.0)
    place = np.pad(best.indices.cpu().numpy(), ((0, 0), (0, missing)))
    return np.where(value >= 0, begin[:, None] + place, -1), np.maximum(value, 0)


def _lists(dataset: Dataset, at: np.ndarray) -> pl.Series:
    """Ids of the store rows (n, SHOWN), -1 left out, as a list per row."""
    known = at >= 0
    ids = dataset.ids.gather(at[known])
    row = np.repeat(np.arange(len(at)), known.sum(axis=1))
    frame = pl.DataFrame({"row": row, "id": ids}).group_by("row", maintain_order=True).agg("id")
    empty = pl.DataFrame({"row": np.arange(len(at))}).join(frame, on="row", how="left", maintain_order="left")
    return empty.select(pl.col("id").fill_null(pl.lit([], dtype=frame.schema["id"])))["id"]
