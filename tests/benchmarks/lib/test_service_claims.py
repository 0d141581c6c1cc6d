"""The claims about the service, from results that hold and results that don't, and their tables."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from benchmarks.lib.service_claims import LEFT, NOTHING, claims
from benchmarks.lib.service_speed import latencies
from benchmarks.report.tables import service as tables

SPEED = {"transactions_per_second": 4000.0, "ms_p50": 5.0, "ms_p99": 9.0, "rows_of_a_batch": 20.0, "wal_bytes_a_transaction": 9_000.0}
CASE = {"workers_killed": 0, "healthz_ms_most": 20.0, "healthz_failures": 0, "memory_growth_mb": 30.0, "statuses": {"200": 5, "503": 2}}


@pytest.fixture
def found() -> dict[str, Any]:
    times = latencies({64: [0.0010] * 99 + [0.0040], 2047: [0.0011] * 99 + [0.0041]}, [0.0005] * 100)
    cells = [
        {"database": name, "workers": 2, "clients": 32, "rows": rows, "cpu_seconds_per_1000": {"service": 0.4, "client": 0.1}, **SPEED}
        for name in ("sqlite", "postgresql")
        for rows in (1, 100)
    ]
    events = ("workers_killed", "database_restarts", "model_swaps", "labels", "labels_removed", "cards_erased", "amounts_corrected")
    return copy.deepcopy(
        {
            "latency": {"databases": {"sqlite": times, "postgresql": copy.deepcopy(times)}},
            "throughput": {"cells": cells},
            "storage": {
                "state_bytes_by_history": {"64": 60_000, "2047": 80_000},
                "ready_seconds": 3.0,
                "first_answer_seconds": 3.1,
                "processes_with_torch": 1,
            },
            "step": [{"form": "rows", "attention": "dense", "native_of_torch": 0.03}],
            "trouble": {
                "minutes": 1.0,
                "accepted": 100,
                **dict.fromkeys(events, 2),
                **dict.fromkeys(NOTHING, 0),
                "scores_compared_with_a_replay": 102,
                "scores_missing_in_it": 0,
                "scores_equal_to_it": 102,
                "largest_difference_from_it": 0.0,
                "state_bytes_a_card": 70_000.0,
            },
            "abuse": {"one": CASE, "two": CASE | {"counts_left": 0}, "three": {"skipped": "PostgreSQL is not installed"}},
        }
    )


def broken(found: dict[str, Any]) -> list[str]:
    return [claim["claim"] for claim in claims(found) if not claim["holds"]]


def test_all_claims_hold(found: dict[str, Any]) -> None:
    assert len(claims(found)) > 25
    assert broken(found) == []


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("latency", "databases", "sqlite", "by_history", "2047", "ms_p50"), 2.1, "SQLite, a history of 2,047: median"),
        (("latency", "databases", "postgresql", "ratio_p99"), 1.4, "ratio to the shortest"),
        (("throughput", "cells", 0, "transactions_per_second"), 900.0, "SQLite, 32 clients: single"),
        (("throughput", "cells", 3, "wal_bytes_a_transaction"), 16_000.0, "log a transaction"),
        (("storage", "processes_with_torch"), 2, "torch"),
        (("storage", "state_bytes_by_history", "64"), 200_000, "stored state"),
        (("step", 0, "native_of_torch"), 0.06, "native step"),
        *((("trouble", name), 1, text) for name, text in NOTHING.items()),
        (("trouble", "scores_equal_to_it"), 101, "replay"),
        (("trouble", "scores_missing_in_it"), 1, "replay"),
        (("abuse", "one", "workers_killed"), 1, "workers killed"),
        (("abuse", "two", "healthz_ms_most"), 100.5, "/healthz (two)"),
        (("abuse", "two", "memory_growth_mb"), 300.0, "memory of the worker (two)"),
        (("abuse", "one", "statuses", "500"), 1, "status 500"),
        *((("abuse", "two", name), 1, "left or lost") for name in LEFT),
    ],
)
def test_a_claim_that_does_not_hold_is_named(found: dict[str, Any], path: tuple[str | int, ...], value: Any, text: str) -> None:
    place: Any = found
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (claim,) = broken(found)
    assert text in claim


def test_parts_that_were_left_out_claim_nothing(found: dict[str, Any]) -> None:
    assert claims({}) == []
    assert claims({"trouble": {"skipped": "PostgreSQL is not installed"}}) == []
    assert {claim["claim"] for claim in claims({"step": found["step"]})} <= {claim["claim"] for claim in claims(found)}


def test_percentiles_are_shown_with_and_without_the_disk() -> None:
    found = latencies({64: [0.002, 0.002], 2047: [0.003, 0.003]}, [0.001, 0.001])
    assert found["disk"] == {"ms_p50": 1.0, "ms_p99": 1.0}
    assert found["by_history"]["2047"] == {"ms_p50": 3.0, "ms_p99": 3.0, "less_disk_ms_p50": 2.0, "less_disk_ms_p99": 2.0}
    assert found["ratio_p50"] == found["ratio_p99"] == 1.5


def test_the_tables_show_every_measurement_and_claim(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "load", lambda _: {"results": found})
    latency, throughput, claimed = tables.service().split("\n\n")
    assert latency.count("\n") == 1 + 4
    assert throughput.count("\n") == 1 + 4
    assert claimed.count("| yes |") == len(claims(found))
    monkeypatch.setattr(tables, "load", lambda _: {"results": {"step": found["step"]}})
    assert tables.service().count("\n\n") == 0
