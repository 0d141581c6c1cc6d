"""`ModelConfig`: everything that is needed to build a classifier, as one frozen dataclass that is also its JSON.

Numbers that are learned on train but are no weights (the bin edges) belong to it, so weights plus this are the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.models.tasks import Task


@dataclass(frozen=True)
class ModelConfig:
    """What to build. Names in `embedding`, `attention` and `head` are keys of the registries in `balancer.models.classifier`."""

    numeric_fields: tuple[str, ...]
    """Names of the numeric fields, in the order of the batch's columns."""
    categorical_fields: tuple[str, ...]
    """Names of the categorical fields; their codes stand after the numeric columns."""
    cardinalities: tuple[int, ...]
    """Number of codes per categorical field, code 0 (unseen or null) included."""
    edges: Sequence[Sequence[float] | NDArray[np.float32]]
    """Bin edges per numeric field, strictly increasing, at least two; `fit_edges` makes them. Kept as tuples of floats."""
    classes: tuple[str, ...] = ("legitimate", "fraud")
    """Names of the classes, the negative one first."""
    history_length: int = 16
    """Most transactions of an entity that the model reads for a row, the row itself included."""
    d_model: int = 64
    """Channels between the parts."""
    num_heads: int = 4
    """Attention heads; divides d_model."""
    num_layers: int = 2
    """Blocks."""
    dropout: float = 0.1
    """Probability of zeroing a channel on the embedding and on each residual branch, in training."""
    field_dropout: float = 0.1
    """Probability of hiding a field over the whole window of a row, in training."""
    embedding: str = "transaction"
    """How fields become channels."""
    attention: str = "dense"
    """How positions look at earlier ones: dense, window, sparse, or a part of your own."""
    attention_window: int = 64
    """How many positions back, the position itself included, window and sparse attention look."""
    global_nodes: int = 8
    """Earlier positions of highest score that sparse attention sees beside its window."""
    score: str = "landmark_entropy"
    """What makes a position a global node: a key of `balancer.models.attention.SCORES`."""
    form: str = "rows"
    """`rows`: each row is scored from its own copy of the history before it, positions counted back from the row.
    `histories`: a whole history is read once and each of its positions can be scored; positions are relative (rotary).
    Streaming needs `histories`."""
    head: str = "binary"
    """What is decided: binary or multiclass."""
    adapter_rank: int = 0
    """Rank of the low-rank adapters beside the linears of the blocks; 0 is none."""
    tasks: tuple[Task, ...] = ()
    """Further tasks that are learned on the same trunk."""
    numeric_encoding: str = "piecewise"
    """How numbers become channels: `piecewise` (bins with steps) or `periodic` (sines of learned frequencies)."""
    cycles: Mapping[str, float] | Sequence[tuple[str, float]] = ()
    """Numeric fields that come round again, each with its period in the field's own unit, such as ("hour", 24.0); encoded as a circle beside their
    other encoding. Kept as pairs."""

    def __post_init__(self) -> None:
        for name in ("numeric_fields", "categorical_fields", "classes", "cardinalities"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "edges", tuple(tuple(float(edge) for edge in field) for field in self.edges))
        object.__setattr__(self, "tasks", tuple(task if isinstance(task, Task) else Task.from_dict(task) for task in self.tasks))
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
            raise InputError("cycles hold the same field and period twice; name each once")
        for name, period in self.cycles:
            if name not in self.numeric_fields:
                raise InputError(f"cycles name '{name}', which is no numeric field; known are {', '.join(self.numeric_fields) or 'none'}")
            if not 0 < period < math.inf:
                raise InputError(f"the period of '{name}' in cycles must be a number above 0, given {period}")

    def _check_fields(self) -> None:
        names = self.numeric_fields + self.categorical_fields
        if not names or len(set(names)) != len(names):
            raise InputError(f"a model needs at least one field and each name once, given {', '.join(names) or 'none'}")
        if len(self.edges) != len(self.numeric_fields):
            raise InputError(
                f"edges are given for {len(self.edges)} of {len(self.numeric_fields)} numeric fields; "
                "fit_edges on the same columns makes them"
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
            raise InputError(f"head 'binary' decides between two classes, {len(self.classes)} are given; use head 'multiclass'")

    def _check_sizes(self) -> None:
        for name in ("history_length", "d_model", "num_heads", "num_layers", "attention_window"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, given {getattr(self, name)}")
        for name in ("global_nodes", "adapter_rank"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, given {getattr(self, name)}")
        if len({task.name for task in self.tasks}) != len(self.tasks):
            raise InputError(f"each task is named once, given {', '.join(task.name for task in self.tasks)}")
        if self.form not in ("rows", "histories"):
            raise InputError(f"form must be rows or histories, given {self.form!r}")
        if self.form == "histories" and self.history_length < 2:
            raise InputError("form 'histories' needs a history_length of at least 2")
        if self.d_model % self.num_heads:
            raise InputError(f"num_heads must divide d_model, given {self.num_heads} and {self.d_model}")
        for name in ("dropout", "field_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is a probability below 1, given {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values; `from_dict` gives an equal one."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelConfig:
        """Build from what `to_dict` gave.

        Raises:
            InputError: A key is unknown or missing, or a value has the wrong type or range.
        """
        content = _renamed(content)
        known = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(content) - known), sorted(known - _ADDED - set(content))
        if unknown:
            raise InputError(f"unknown key '{unknown[0]}' in a model configuration; known are {', '.join(sorted(known))}")
        if missing:
            raise InputError(f"key '{missing[0]}' is missing in a model configuration")
        for name, value in content.items():
            if not _of_type(name, value):
                raise InputError(f"key '{name}' of a model configuration has a value of the wrong type: {str(value)[:60]!r}")
        return cls(**content)


_TEXTS = ("numeric_fields", "categorical_fields", "classes")
_PROBABILITIES = ("dropout", "field_dropout")
_NAMES = ("embedding", "attention", "head", "score", "form", "numeric_encoding")
_ADDED = {"global_nodes", "score", "form", "adapter_rank", "tasks", "numeric_encoding", "cycles"}
"""Keys that models of earlier versions lack; their defaults are what those models were."""
_RENAMED = {"history": "history_length", "window": "attention_window"}
_RENAMED_FORMS = {"window": "rows", "sequence": "histories"}


def _renamed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and forms of version 0.1 under their present names."""
    renamed = {_RENAMED.get(name, name): value for name, value in content.items()}
    form = renamed.get("form")
    return renamed if form is None else renamed | {"form": _RENAMED_FORMS.get(form, form)}


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down, and tasks as what they tell."""
    if isinstance(value, Task):
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
