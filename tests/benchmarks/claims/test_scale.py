"""The claims of the benchmark past one machine, and the cost model, on figures as it records them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.claims import scale
from benchmarks.report.tables import scale as tables


def _used(seconds: float, peak: float = 1.0) -> dict[str, float]:
    return {"seconds": seconds, "cpu_seconds": seconds, "peak_gibibytes": peak}


@pytest.fixture
def found() -> dict[str, Any]:
    by_rows = {
        str(rows): {
            "simulate": _used(1.0),
            "prepare": _used(rows / 1e5),
            "score": _used((rows / 1e5) ** 1.1, 3.0),
            "store_gibibytes": rows / 1e7,
        }
        for rows in (1_000_000, 5_000_000, 50_000_000)
    }
    step = {"seconds": 0.1, "batch": 500, "parameters": 1_000_000}
    gains: dict[str, Any] = {name: {"gain": gain} for name, gain in (("compare", 1.8), ("prepare", 1.5), ("network", 1.45))}
    return {
        "equality": {"train": True, "compare": True, "score": False},
        "linear": {"rows": by_rows},
        "sampler": {"rows": 10**8, "make_seconds": 2.0, "first_index_seconds": 0.1, "gibibytes": 0.5},
        "speedup": gains,
        "training": {"network": gains["network"], "step": step},
    }


def test_claims_are_held_against_what_was_found(found: dict[str, Any]) -> None:
    holds = {row["claim"]: row for row in scale.claims(found)}
    assert holds["score on two nodes, killed and continued: equal to the bit"]["holds"] == "not met"
    assert holds["train on two nodes, killed and continued: equal to the bit"]["holds"] == "met"
    assert holds["torchrun: equal weights"]["holds"] == "not measured"
    assert holds["50 million rows prepared and scored: GiB of a process"]["figure"] == 3.0
    assert holds["exponent of the time to prepare"]["figure"] == pytest.approx(1.0)
    assert holds["exponent of the time to score"]["figure"] == pytest.approx(1.1)
    assert [holds[f"gain of two processes: {name}"]["holds"] for name in ("compare", "prepare")] == ["met", "not met"]


def test_the_cost_model_says_what_is_not_measured(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "load", lambda _: found)
    text = tables.scale_costs()
    assert "| prepare | 10 s a million rows in one process | 0.17 h | one process a machine |" in text
    assert "| store | 0.1 GiB a million rows | 100 GiB | shared storage |" in text
    assert "5.4 bytes a row | 5 GiB a process, 0.3 with shards" in text
    assert "| training steps | 200 µs a row on one core | 0.047 h |" in text
    monkeypatch.setattr(tables, "load", lambda _: {})
    assert tables.scale_costs().count("not measured") == 2
