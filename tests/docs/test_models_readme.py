"""The code in balancer/models/README.md runs, and a custom part can be trained, stored and loaded."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from balancer.models import ATTENTIONS, Attention, Classifier, ModelConfig, SequenceBatch, load_classifier, save_classifier

README = Path(__file__).parents[2] / "models" / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_use_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("example.py").write_text(BLOCKS[0], encoding="utf-8")
    names = runpy.run_path("example.py")
    assert names["fraud_score"].shape == (512,)
    assert Path("my_model/model.safetensors").exists()


def test_a_part_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balancer.models.classifier.ATTENTIONS", ATTENTIONS)
    known = dict(ATTENTIONS)
    Path(tmp_path / "part.py").write_text(BLOCKS[1], encoding="utf-8")
    try:
        part = runpy.run_path(str(tmp_path / "part.py"))["RunningMean"]
        assert issubclass(part, Attention)
        torch.manual_seed(0)
        model = Classifier(ModelConfig(("a",), (), (), ([-1, 0, 1],), history_length=4, d_model=8, num_heads=2, attention="running_mean"))
        batch = SequenceBatch.from_windows(np.random.default_rng(0).normal(size=(6, 4, 1)).astype(np.float32), np.arange(6) % 5)
        model.loss(model(batch), torch.arange(6) % 2).backward()
        save_classifier(model, tmp_path)
        assert torch.equal(load_classifier(tmp_path).probabilities(batch), model.eval().probabilities(batch))
        attention = part(model.config)
        given = SequenceBatch.from_windows(torch.randn(6, 4, 8), np.arange(6) % 5)
        torch.testing.assert_close(attention(given, last_only=True).values, attention(given).last().values)
    finally:
        ATTENTIONS.clear()
        ATTENTIONS.update(known)


def test_the_part_is_as_short_as_promised() -> None:
    body = BLOCKS[1].split("class ", 1)[1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10


def test_sparse_attention_alone(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(BLOCKS[2], encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "example.py"))
    assert names["mixed"].shape == (2, 300, 4, 16)
    assert names["layer"](names["x"], is_causal=True, src_mask=torch.nn.Transformer.generate_square_subsequent_mask(100)).isfinite().all()
