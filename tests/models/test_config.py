"""ModelConfig: its JSON, and its errors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.models import Classifier, ModelConfig

EDGES = (np.array([0, 0.1, 2], np.float32), np.array([-1, 1e37], np.float32))


def make(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {"numeric_fields": ("a", "b"), "categorical_fields": ("c",), "cardinalities": (4,), "edges": EDGES}
    return ModelConfig(**{**fields, **changes})


def test_json_round_trip_is_exact() -> None:
    config = make(attention_window=7, dropout=0.15)
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert np.array_equal(np.asarray(again.edges[0], np.float32), EDGES[0])
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads must divide"),
        ({"history_length": 0}, "history"),
        ({"dropout": 1.0}, "dropout"),
        ({"field_dropout": -0.1}, "field_dropout"),
        ({"edges": EDGES[:1]}, "edges are given for 1 of 2"),
        ({"edges": (EDGES[0], [1.0])}, "field 'b'"),
        ({"edges": ([0.0, 0.0, 1.0], EDGES[1])}, "field 'a'"),
        ({"edges": (EDGES[0], [0.0, float("nan")])}, "field 'b'"),
        ({"cardinalities": ()}, "cardinalities"),
        ({"cardinalities": (0,)}, "cardinalities"),
        ({"numeric_fields": ("a", "a")}, "field names must be unique"),
        ({"classes": ("one",)}, "at least two"),
        ({"classes": ("no", "x", "y")}, "use head 'multiclass'"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("depth", 3, "unknown key 'depth'"),
        ("d_model", "64", "'d_model'"),
        ("history_length", True, "'history_length'"),
        ("edges", [["x"]], "'edges'"),
    ],
)
def test_foreign_json_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig.from_dict({**make().to_dict(), key: value})


def test_missing_key_is_named() -> None:
    content = make().to_dict()
    del content["head"]
    with pytest.raises(InputError, match="'head' is missing"):
        ModelConfig.from_dict(content)


@pytest.mark.parametrize("kind", ["embedding", "attention", "head"])
def test_unknown_part_is_named_with_the_known_ones(kind: str) -> None:
    with pytest.raises(InputError, match=f"unknown {kind} 'magic'; known: "):
        Classifier(make(**{kind: "magic"}))
