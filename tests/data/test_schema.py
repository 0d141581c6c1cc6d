"""The schema as JSON, vocabularies and codes."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from balancer.data.schema import Schema, distinct, encode, learn_vocabulary
from balancer.data.spec import Spec
from balancer.errors import InputError

SCHEMA = Schema(Spec(time="t", categorical=("kind",)), ("0", "1"), ("hour",), ("kind",), {"kind": ["b", "a"]}, {})


def test_json_round_trip() -> None:
    assert Schema.from_dict(json.loads(json.dumps(SCHEMA.to_dict()))) == SCHEMA
    assert SCHEMA.cardinalities == (3,)


@pytest.mark.parametrize("key", list(SCHEMA.to_dict()))
def test_missing_key_is_named(key: str) -> None:
    raw = SCHEMA.to_dict()
    del raw[key]
    with pytest.raises(InputError, match=f"no '{key}'"):
        Schema.from_dict(raw)


def test_vocabulary_is_of_training_rows_by_frequency() -> None:
    values = pl.Series("kind", ["a", "b", "b", None, "c", "z", "z", "z"])
    train = np.arange(8) < 5
    assert learn_vocabulary(values, train) == ["b", "a", "c"]


def test_codes() -> None:
    values = pl.Series("kind", [3, 1, None, 7])
    assert distinct(values) == ["1", "3", "7"]
    assert encode(values, ["3", "1"]).tolist() == [0, 1, -1, -1]
    assert encode(values.cast(pl.String), []).tolist() == [-1, -1, -1, -1]
