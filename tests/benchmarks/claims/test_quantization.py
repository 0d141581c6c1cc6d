"""The claims of the benchmark of quantization, checked on figures as it records them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.claims import quantization

BERT = {"disk": 0.26, "cosine": 0.9985, "threads": {"1": {"of_torch": {"all INT8": 0.3}, "of_best": {"all INT8": 0.6}}}}
CELL = {
    "d_model": 256,
    "layers": 6,
    "history_length": 64,
    "batch": 1,
    "latency": {"all INT8": 0.4, "attention BF16, rest INT8": 0.5, "planned": 1.1},
    "bytes": {"all INT8": 0.26, "attention BF16, rest INT8": 0.36, "planned": 0.3},
}


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {row["claim"]: row["holds"] for row in quantization.claims(found)}


def test_claims_are_held_against_what_was_found() -> None:
    found = verdicts({"bert": BERT, "classifier": {"1": [CELL]}, "quality": {"handbook": {"skipped": "not here"}}})
    assert found["BERT's shape, all INT8: latency, of torch float32"] == "met"
    assert found["BERT's shape, all INT8: latency, of the best float32"] == "not met"
    assert found["classifier, planned: slowest latency, of float32"] == "not met"
    assert found["classifier: bytes, all INT8"] == "met"
    assert not any("handbook" in claim for claim in found)
    assert quantization.claims({}) == []


def test_a_loss_on_a_stream_is_found() -> None:
    plans = {"all INT8": {"drop": 0.004, "bytes": 0.26}, "planned": {"drop": -0.001, "bytes": 0.3}}
    assert verdicts({"quality": {"sparkov": {"plans": plans}}}) == {"sparkov: largest loss of average precision": "not met"}


def test_rank_correlation() -> None:
    assert quantization.spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert quantization.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
