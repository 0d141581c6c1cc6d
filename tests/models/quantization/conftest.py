"""Fixtures of the tests of quantization."""

from __future__ import annotations

import pytest

from balancer.models.quantization import applying


@pytest.fixture
def every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer gets its planned precision, whatever the processor supports; torch computes the same."""
    monkeypatch.setattr(applying, "cpu_supports", lambda *_: True)
