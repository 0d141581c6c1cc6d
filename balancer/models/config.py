"""`ModelConfig`: everything needed to build a classifier, as one frozen dataclass that is stored as JSON.

It includes the bin edges, which are fitted on the training rows but are not weights. Weights and
configuration together are the complete model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.deprecation import renamed_fields
from balancer.errors import InputError
from balancer.models.tasks import AuxiliaryTask

_RENAMED = {"history": "history_length", "window": "attention_window"}
_RENAMED_FORMS = {"window": "rows", "sequence": "histories"}


@renamed_fields(_RENAMED, {"form": _RENAMED_FORMS})
@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a classifier.

    `embedding`, `attention` and `head` are names in the registries of `balancer.models.classifier`.
    """

    numeric_fields: tuple[str, ...]
    """Names of the numeric fields, in the order of the batch's columns."""
    categorical_fields: tuple[str, ...]
    """Names of the categorical fields; in the batch their codes follow the numeric columns."""
    cardinalities: tuple[int, ...]
    """Number of codes of each categorical field, including code 0 (unseen or null)."""
    edges: Sequence[Sequence[float] | NDArray[np.float32]]
    """Bin edges of each numeric field, strictly increasing, at least two, as `fit_edges` computes them.

    Stored as tuples of floats.
    """
    classes: tuple[str, ...] = ("legitimate", "fraud")
    """Names of the classes, the negative class first."""
    history_length: int = 16
    """Maximum number of transactions of an entity that the model reads for a row, including the row itself.
    """
    d_model: int = 64
    """Number of channels that the parts exchange."""
    num_heads: int = 4
    """Number of attention heads; must divide d_model."""
    num_layers: int = 2
    """Number of blocks."""
    dropout: float = 0.1
    """Probability of zeroing a channel of the embedding and of each residual branch during training."""
    field_dropout: float = 0.1
    """Probability of hiding a field in the whole window of a row during training."""
    embedding: str = "transaction"
    """Embedding: transaction, tabular, token, or a custom part."""
    attention: str = "dense"
    """Attention: dense, window, sparse, or a custom part."""
    attention_window: int = 64
    """Number of positions that window and sparse attention see, including the position itself."""
    global_nodes: int = 8
    """Number of earlier positions with high scores that sparse attention sees outside its window."""
    score: str = "landmark_entropy"
    """Score by which global nodes are selected: a key of `balancer.models.attention.SCORES`."""
    form: str = "rows"
    """`rows` or `histories`.

    With `rows`, each row is scored from a separate copy of the history before it, and positions are counted
    back from the row. With `histories`, a whole history is read once, any of its positions can be scored, and
    positions are relative (rotary). Streaming requires `histories`.
    """
    head: str = "binary"
    """Head: binary, multiclass, or a custom part."""
    adapter_rank: int = 0
    """Rank of the low-rank adapters of the blocks' linear layers; 0 for none."""
    tasks: tuple[AuxiliaryTask, ...] = ()
    """Auxiliary tasks learned on the shared trunk."""
    numeric_encoding: str = "piecewise"
    """Encoding of numbers: `piecewise` (bins with steps) or `periodic` (sines of learned frequencies)."""
    cycles: Mapping[str, float] | Sequence[tuple[str, float]] = ()
    """Numeric fields that are periodic, each with its period in the field's unit, for example ("hour", 24.0).

    Their position in the cycle is encoded by sine and cosine, in addition to `numeric_encoding`. Stored as
    pairs.
    """
    margin: str = ""
    """Numeric field that holds the log-odds of fraud of another model, for example of boosted trees.

    It is added to the fraud logit, so the model learns what that model does not know. Empty for none.
    """
    missing: tuple[str, ...] = ()
    """Numeric fields in which a missing value (NaN) has a learned bin of its own.

    In other fields a missing value contributes nothing, as a hidden field does.
    """

    def __post_init__(self) -> None:
        for name in ("numeric_fields", "categorical_fields", "classes", "cardinalities", "missing"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "edges", tuple(tuple(float(edge) for edge in field) for field in self.edges))
        object.__setattr__(
            self, "tasks", tuple(task if isinstance(task, AuxiliaryTask) else AuxiliaryTask.from_dict(task) for task in self.tasks)
        )
        cycles = self.cycles.items() if isinstance(self.cycles, Mapping) else self.cycles
        object.__setattr__(self, "cycles", tuple((name, float(period)) for name, period in cycles))
        self._check_fields()
        self._check_numbers()
        self._check_sizes()

    def _check_numbers(self) -> None:
        if self.numeric_encoding not in ("piecewise", "periodic"):
            raise InputError(f"numeric_encoding must be piecewise or periodic, given {self.numeric_encoding!r}")
        assert isinstance(self.cycles, tuple)
        if len(set(self.cycles)) != len(self.cycles):
            raise InputError("cycles contains the same field and period twice; list each once")
        for name, period in self.cycles:
            if name not in self.numeric_fields:
                known = ", ".join(self.numeric_fields) or "none"
                raise InputError(f"cycles contains '{name}', which is not a numeric field; the numeric fields are {known}")
            if not 0 < period < math.inf:
                raise InputError(f"the period of '{name}' in cycles must be a finite number above 0, given {period}")

    def _check_fields(self) -> None:
        names = self.numeric_fields + self.categorical_fields
        if not names or len(set(names)) != len(names):
            raise InputError(f"a model needs at least one field, and field names must be unique; given {', '.join(names) or 'none'}")
        if self.margin and self.margin not in self.numeric_fields:
            known = ", ".join(self.numeric_fields) or "none"
            raise InputError(f"margin is '{self.margin}', which is not a numeric field; the numeric fields are {known}")
        unknown = next((name for name in self.missing if name not in self.numeric_fields), None)
        if unknown is not None or len(set(self.missing)) != len(self.missing):
            known = ", ".join(self.numeric_fields) or "none"
            raise InputError(
                f"missing must name numeric fields, each once; given {', '.join(self.missing)}, the numeric fields are {known}"
            )
        if len(self.edges) != len(self.numeric_fields):
            raise InputError(
                f"edges are given for {len(self.edges)} of {len(self.numeric_fields)} numeric fields; "
                "compute them by fit_edges on the same columns"
            )
        for name, edges in zip(self.numeric_fields, self.edges, strict=True):
            increasing = all(earlier < later for earlier, later in pairwise(edges))
            if len(edges) < 2 or not increasing or not all(math.isfinite(edge) for edge in edges):
                raise InputError(f"edges of field '{name}' must be at least two finite numbers in strictly increasing order")
        if len(self.cardinalities) != len(self.categorical_fields) or any(size < 1 for size in self.cardinalities):
            raise InputError("cardinalities must give the number of codes, at least 1, for each categorical field")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise InputError(f"classes must name at least two different classes, given {', '.join(self.classes) or 'none'}")
        if self.head == "binary" and len(self.classes) != 2:
            raise InputError(f"head 'binary' needs exactly two classes, given {len(self.classes)}; use head 'multiclass'")

    def _check_sizes(self) -> None:
        for name in ("history_length", "d_model", "num_heads", "num_layers", "attention_window"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, given {getattr(self, name)}")
        for name in ("global_nodes", "adapter_rank"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, given {getattr(self, name)}")
        if len({task.name for task in self.tasks}) != len(self.tasks):
            raise InputError(f"names of tasks must be unique, given {', '.join(task.name for task in self.tasks)}")
        if self.form not in ("rows", "histories"):
            raise InputError(f"form must be rows or histories, given {self.form!r}")
        if self.form == "histories" and self.history_length < 2:
            raise InputError("form 'histories' needs a history_length of at least 2")
        if self.d_model % self.num_heads:
            raise InputError(f"num_heads must divide d_model, given {self.num_heads} and {self.d_model}")
        for name in ("dropout", "field_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be a probability from 0 to below 1, given {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON-compatible values; the inverse of :meth:`from_dict`."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelConfig:
        """Build a configuration from the result of :meth:`to_dict`.

        Raises:
            InputError: A key is unknown or missing, or a value has the wrong type or is out of range.
        """
        content = _renamed(content)
        known = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(content) - known), sorted(known - _ADDED - set(content))
        if unknown:
            raise InputError(f"unknown key '{unknown[0]}' in a model configuration; known keys are {', '.join(sorted(known))}")
        if missing:
            raise InputError(f"key '{missing[0]}' is missing from a model configuration")
        for name, value in content.items():
            if not _of_type(name, value):
                raise InputError(f"key '{name}' of a model configuration has a value of the wrong type: {str(value)[:60]!r}")
        return cls(**content)


_TEXTS = ("numeric_fields", "categorical_fields", "classes", "missing")
_PROBABILITIES = ("dropout", "field_dropout")
_NAMES = ("embedding", "attention", "head", "score", "form", "numeric_encoding", "margin")
_ADDED = {"global_nodes", "score", "form", "adapter_rank", "tasks", "numeric_encoding", "cycles", "margin", "missing"}
"""Keys that models of earlier versions lack; the defaults describe those models."""


def _renamed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the key and form names of version 0.1 by the current ones."""
    renamed = {_RENAMED.get(name, name): value for name, value in content.items()}
    form = renamed.get("form")
    return renamed if form is None else renamed | {"form": _RENAMED_FORMS.get(form, form)}


def _plain(value: Any) -> Any:
    """Convert nested tuples to lists and tasks to dictionaries."""
    if isinstance(value, AuxiliaryTask):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _of_type(name: str, value: Any) -> bool:
    if name in _TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if name == "cardinalities":
        return isinstance(value, list) and all(_whole(item) for item in value)
    if name == "edges":
        return isinstance(value, list) and all(isinstance(field, list) and all(_number(edge) for edge in field) for field in value)
    if name in _NAMES:
        return isinstance(value, str)
    if name == "tasks":
        return isinstance(value, list) and all(isinstance(item, dict) for item in value)
    if name == "cycles":
        return isinstance(value, list) and all(
            isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and _number(item[1]) for item in value
        )
    return _number(value) if name in _PROBABILITIES else _whole(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
