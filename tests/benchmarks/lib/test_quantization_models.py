"""Models for the benchmark of quantization."""

from __future__ import annotations

from benchmarks.lib import quantization_models


def test_sentences_are_many_and_different() -> None:
    found = quantization_models.sentences()
    assert len(set(found)) == len(found) == quantization_models.SENTENCES
