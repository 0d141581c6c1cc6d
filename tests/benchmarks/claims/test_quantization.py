"""The claims of the benchmark of quantization, checked on figures as it records them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.claims import quantization
from benchmarks.lib import four_bits

ONE = {
    "of_torch": {"all INT8": 0.29, "torchao INT8": 0.5, "ONNX Runtime INT8, dynamic": 0.28},
    "of_best": {"all INT8": 0.6},
    "instructions": "avx512vnni",
}
BERT = {"disk": 0.26, "cosine": 0.9985, "same_alone": 1.0, "threads": {"1": ONE}}
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
    found = verdicts({"bert": BERT, "classifier": {"1": [CELL]}, "quality": {"handbook": {"skipped": "not here"}}})
    assert found["BERT's shape, all INT8: latency, of torch float32"] == "met"
    assert found["BERT's shape, all INT8: latency, of the best float32"] == "not met"
    assert found["classifier, planned: slowest latency, of float32"] == "not met"
    assert found["classifier: bytes, all INT8"] == "met"
    assert found["BERT's shape, all INT8: latency, of torchao INT8"] == "met"
    assert found["BERT's shape, all INT8: latency, of ONNX Runtime INT8, dynamic"] == "not met"
    assert found["BERT's shape, all INT8: latency, of OpenVINO INT8, static"] == "not measured"
    assert found["classifier, d 256, 512 transactions, all INT8: slowest latency, of float32"] == "not measured"
    assert not any("handbook" in claim for claim in found)
    assert quantization.claims({}) == []


def test_a_restricted_run_has_limits_and_claims_of_its_own() -> None:
    restricted = BERT | {"same_alone": 0.95, "threads": {"1": {"of_torch": {"all INT8": 0.44}, "of_best": {}, "instructions": "avx2"}}}
    found = verdicts({"bert_avx2": restricted})
    assert found["BERT's shape, all INT8, avx2: latency, of torch float32"] == "met"
    assert found["BERT's shape, all INT8, avx2: share of rows that are the same alone and in a batch"] == "not met"
    assert not any("torchao" in claim for claim in found)


def test_four_bits_take_half_a_byte_and_a_scale_per_group() -> None:
    rows = torch.randn(5, 40)
    values, taken = four_bits.rounded(rows, four_bits.SCHEMES[1])
    assert taken == 5 * (2 * 16 + 2 * 2)
    assert (values - rows).abs().max() < rows.abs().max() / 7
    assert four_bits.rounded(rows, four_bits.SCHEMES[0])[1] == 5 * (40 + 4)


def test_a_loss_on_a_stream_is_found() -> None:
    plans = {"all INT8": {"drop": 0.004, "bytes": 0.26}, "planned": {"drop": -0.001, "bytes": 0.3}}
    assert verdicts({"quality": {"sparkov": {"plans": plans}}}) == {"sparkov: largest loss of average precision": "not met"}


def test_rank_correlation() -> None:
    assert quantization.spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert quantization.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
