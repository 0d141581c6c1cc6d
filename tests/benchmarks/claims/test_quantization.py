"""benchmarks/quantization.py: what it claims, from figures as it stores them; and the README's tables of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Only for as long as a test takes: the folder `datasets` there would pass for the package of that name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def script(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("quantization")


BERT = {"disk": 0.26, "cosine": 0.9985, "threads": {"1": {"of_torch": {"all INT8": 0.3}, "of_best": {"all INT8": 0.6}}}}
CELL = {
    "d_model": 256,
    "layers": 6,
    "history_length": 64,
    "batch": 1,
    "latency": {"all INT8": 0.4, "attention BF16, rest INT8": 0.5, "planned": 1.1},
    "bytes": {"all INT8": 0.26, "attention BF16, rest INT8": 0.36, "planned": 0.3},
}


def verdicts(script: ModuleType, found: dict[str, Any]) -> dict[str, str]:
    return {row["claim"]: row["holds"] for row in script.claims(found)}


def test_claims_are_held_against_what_was_found(script: ModuleType) -> None:
    told = verdicts(script, {"bert": BERT, "classifier": {"1": [CELL]}, "quality": {"handbook": {"skipped": "not here"}}})
    assert told["BERT's shape, all INT8: latency, of torch float32"] == "met"
    assert told["BERT's shape, all INT8: latency, of the best float32"] == "not met"
    assert told["classifier, planned: slowest latency, of float32"] == "not met"
    assert told["classifier: bytes, all INT8"] == "met"
    assert not any("handbook" in claim for claim in told)
    assert script.claims({}) == []


def test_a_loss_on_a_stream_is_told(script: ModuleType) -> None:
    plans = {"all INT8": {"drop": 0.004, "bytes": 0.26}, "planned": {"drop": -0.001, "bytes": 0.3}}
    assert verdicts(script, {"quality": {"sparkov": {"plans": plans}}}) == {"sparkov: largest loss of average precision": "not met"}


def test_rank_correlation(script: ModuleType) -> None:
    assert script.spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert script.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)


def test_sentences_are_many_and_different(load: Callable[[str], ModuleType]) -> None:
    models = load("quantization_models")
    found = models.sentences()
    assert len(set(found)) == len(found) == models.SENTENCES


def test_the_readmes_tables_are_made_of_the_stored_figures(load: Callable[[str], ModuleType]) -> None:
    tables = load("readme_tables")
    content = tables.load("quantization")
    table = tables.quantization_bert()
    for name, value in content["bert"]["threads"]["1"]["of_torch"].items():
        assert f"| {name} | {value:.2f} |" in table
    assert tables.quantization_classifier().count("\n") == len(content["classifier"]["1"]) + 1
