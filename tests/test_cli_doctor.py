"""`balancer doctor`: what it says is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from balancer.cli import main
from balancer.models.attention import native
from balancer.models.attention.backends import BACKENDS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["versions"]["torch"] == torch.__version__
    assert set(told["attention"]["backends"]) == set(BACKENDS)
    assert told["attention"]["backends"]["torch"] == "works"
    assert told["attention"]["backends"]["native"] == (native.absence() or "works")
    assert told["attention"]["auto"]["64"]["backend"] == "dense"
    assert {own["backend"] for own in told["attention"]["auto"].values()} <= set(BACKENDS) - {"reference"}


def test_table_and_bad_flag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "absence", lambda: "it was not built")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "it was not built" in printed
    assert torch.__version__ in printed
    with pytest.raises(SystemExit):
        main(["doctor", "--imaginary"])
