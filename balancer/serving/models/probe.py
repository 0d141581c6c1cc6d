"""Try a model before it goes into service: it must give finite probabilities for rows of all kinds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from balancer.devices import torch_threads
from balancer.evaluation.operating_points import NO_ALARM
from balancer.inference.decision import decide
from balancer.serving.models.loaded_model import LoadedModel

LARGE = 1e6
"""Size of the large values of numeric fields."""
STEPS = 3
"""Rows of each history that is tried."""


def what_is_wrong(model: LoadedModel) -> str | None:
    """Say why a model can't score; None if it can.

    All weights must be finite. Short histories of typical rows, rows without any value, and rows with extreme
    values must get class probabilities and scores from 0 to 1.
    """
    if not (np.isfinite(model.decision.threshold) and 0 <= model.decision.threshold <= NO_ALARM):
        return "its threshold is not a number from 0 to 1"
    if model.detector.model is not None and (name := _not_finite(model.detector.model)) is not None:
        return f"weights in {name} are not finite numbers"
    with torch_threads(1), np.errstate(all="ignore"):
        for kind, values in _rows(model):
            state = None if model.stream is None else model.stream.start()
            for _ in range(STEPS):
                scores, state = model.step(values, state)
                score, _, _ = decide(scores, model.decision)
                for numbers in (scores, score):
                    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers <= 1).all()):
                        return f"it gives {kind} a score that is not a number from 0 to 1"
    return None


def _not_finite(network: torch.nn.Module) -> str | None:
    """The name of a tensor of weights with a value that is not finite; None if there is none."""
    # Buffers may hold infinite edges; but what a quantized layer keeps is a weight or a scale.
    tensors = [*network.named_parameters(), *((name, each) for name, each in network.named_buffers() if name.endswith(("weight", "scale")))]
    return next((name for name, each in tensors if each.is_floating_point() and not torch.isfinite(each).all()), None)


def _rows(model: LoadedModel) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Rows (C,) of all fields, with the kind of each in words."""
    base, own = model.base, set(model.base.own_fields.values())
    names = base.numeric_fields
    typical = np.array([base.fill.get(name, 0.0) for name in names], np.float32)
    # Only columns of the table can have missing values and values of any size.
    column = np.array([name in own for name in names], dtype=bool)
    known = {place: next(iter(base.vocabularies[name]), None) for name, place in base.categorical_columns.items()}
    unknown: dict[str, str | None] = dict.fromkeys(known, "a value that no row has")
    for name in base.spec.context:
        known.setdefault(name, None)
        unknown.setdefault(name, "a value that no row has")
    score_fields = np.zeros(len(model.schema.score_fields), np.float32)
    for kind, numeric, texts in (
        ("typical rows", typical, known),
        ("rows without any value", np.where(column, np.float32(np.nan), 0).astype(np.float32), dict.fromkeys(known, None)),
        ("rows with large values", np.where(column, np.float32(LARGE), 1e3).astype(np.float32), unknown),
        ("rows with large negative values", np.where(column, np.float32(-LARGE), 0).astype(np.float32), unknown),
    ):
        for score in (-12.0, 0.0, 12.0) if len(score_fields) else (0.0,):
            yield kind, np.concatenate((score_fields + np.float32(score), model.base_input(numeric[None], [texts])[0]))
