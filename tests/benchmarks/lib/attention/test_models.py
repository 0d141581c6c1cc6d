"""Whole models with sparse attention: from which length on the claim holds."""

from __future__ import annotations

from benchmarks.lib.attention import models


def test_a_whole_model_passes_where_it_stays_above() -> None:
    figures = {512: 3.3, 1024: 3.1, 2048: 3.2, 4096: 4.0}
    cells = [{"width": 64, "passes": "forward", "tokens": tokens, "times_faster": {"sparse": figure}} for tokens, figure in figures.items()]
    (found,) = models.passed(cells)
    assert (found["holds"], found["from_tokens"], found["figure"]) == ("met", 2048, 4.0)
    (found,) = models.passed(cells[1:2])
    assert (found["holds"], found["from_tokens"]) == ("not met", None)
