"""The examples of docs/integrations.md run, one after the other, and do what the page says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import balancer

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")


# Lightning recommends loader workers, and more batches between two logs; a small table needs neither.
@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
# Keras converts torch tensors with np.array(tensor), and torch's tensors do not support NumPy 2's copy
# argument. Lightning 2.6 uses a deprecated function of torch.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_every_example_gives_calibrated_probabilities(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)):
        exec(compile(block, f"docs/integrations.md, block {number}", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    for library in ("lightning", "hugging face", "keras", "boosted trees", "trees alone", "stream"):
        *_, mean, prior = next(line for line in reversed(lines) if line.startswith(library)).split()
        assert float(mean) == pytest.approx(float(prior), rel=0.35), library
    assert any(line.startswith("stream {0: ") for line in lines)


def test_every_name_exists() -> None:
    homes = [importlib.import_module(f"balancer.integrations.{name}") for name in ("lightning", "hugging_face")]
    for name in set(re.findall(r"`(Adaptive\w+|SamplerCore|compute_loss_func)", PAGE)):
        assert hasattr(balancer, name) or any(hasattr(home, name) for home in homes) or name == "AdaptiveSequence", name
    for name in ("seen", "kept", "repeated", "prior"):
        assert isinstance(getattr(balancer.AdaptiveStream, name), property)
