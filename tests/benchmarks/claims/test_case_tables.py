"""A table of the benchmark is a result, a message, or a fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.claims import case_tables
from benchmarks.claims.case_tables import CASES, RESULT, Case, shown, trained


def test_messages_are_told_from_faults(tmp_path: Path) -> None:
    table = tmp_path / "empty.csv"
    table.write_text("")
    found = trained(Case("empty.csv", says="no header"), table, tmp_path / "run")
    assert (found["outcome"], found["message"]) == ("message", "empty.csv is empty: it has no header and no rows")
    assert "message" in shown(found)
    for case in (Case("empty.csv"), Case("empty.csv", says="another")):
        assert trained(case, table, tmp_path / "run")["outcome"] == "fault"


def test_a_traceback_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: list[str]) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr(case_tables, "balancer", broken)
    found = trained(Case("a.csv", says="broken"), tmp_path / "a.csv", tmp_path / "run")
    assert found["outcome"] == "fault"
    assert "RuntimeError: broken" in found["message"]


def test_the_recorded_result_has_every_case_and_no_fault() -> None:
    recorded = json.loads(RESULT.read_text())
    assert [(row["table"], row["flags"]) for row in recorded["cases"]] == [(case.table, " ".join(case.flags)) for case in CASES]
    assert recorded["faults"] == recorded["untried"] == []
