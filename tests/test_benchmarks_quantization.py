"""benchmarks/quantization.py: what it claims, from figures as it stores them; and the README's tables of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import quantization
import quantization_models
import readme_tables

BERT = {"disk": 0.26, "cosine": 0.9985, "threads": {"1": {"of_torch": {"all INT8": 0.3}, "of_best": {"all INT8": 0.6}}}}
CELL = {
    "d_model": 256,
    "layers": 6,
    "history": 64,
    "batch": 1,
    "latency": {"all INT8": 0.4, "attention BF16, rest INT8": 0.5, "planned": 1.1},
    "bytes": {"all INT8": 0.26, "attention BF16, rest INT8": 0.36, "planned": 0.3},
}


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {row["claim"]: row["holds"] for row in quantization.claims(found)}


def test_claims_are_held_against_what_was_found() -> None:
    told = verdicts({"bert": BERT, "classifier": {"1": [CELL]}, "quality": {"handbook": {"skipped": "not here"}}})
    assert told["BERT's shape, all INT8: latency, of torch float32"] == "met"
    assert told["BERT's shape, all INT8: latency, of the best float32"] == "not met"
    assert told["classifier, planned: slowest latency, of float32"] == "not met"
    assert told["classifier: bytes, all INT8"] == "met"
    assert not any("handbook" in claim for claim in told)
    assert quantization.claims({}) == []


def test_a_loss_on_a_stream_is_told() -> None:
    plans = {"all INT8": {"drop": 0.004, "bytes": 0.26}, "planned": {"drop": -0.001, "bytes": 0.3}}
    assert verdicts({"quality": {"sparkov": {"plans": plans}}}) == {"sparkov: largest loss of average precision": "not met"}


def test_rank_correlation() -> None:
    assert quantization.spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert quantization.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)


def test_sentences_are_many_and_different() -> None:
    found = quantization_models.sentences()
    assert len(set(found)) == len(found) == quantization_models.SENTENCES


def test_the_readmes_tables_are_made_of_the_stored_figures() -> None:
    content = readme_tables.load("quantization")
    table = readme_tables.quantization_bert()
    for name, value in content["bert"]["threads"]["1"]["of_torch"].items():
        assert f"| {name} | {value:.2f} |" in table
    assert readme_tables.quantization_classifier().count("\n") == len(content["classifier"]["1"]) + 1
