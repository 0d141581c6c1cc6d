"""Tables of quantization, from the recorded figures."""

from __future__ import annotations

from benchmarks.report import tables
from benchmarks.report.tables import quantization


def test_the_readmes_tables_are_made_of_the_stored_figures() -> None:
    content = tables.load("quantization")
    table = quantization.quantization_bert()
    for name, value in content["bert"]["threads"]["1"]["of_torch"].items():
        assert f"| {name} | {value:.2f} |" in table
    assert quantization.quantization_classifier().count("\n") == len(content["classifier"]["1"]) + 1
