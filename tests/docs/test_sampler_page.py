"""The example of docs/sampler.md runs and does what the page says; every name on the page exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import balancer
from balancer.sampling import row_sampler
from balancer.sampling.core import BLOCK

PAGE = (Path(__file__).parents[2] / "docs" / "sampler.md").read_text(encoding="utf-8")


def test_the_example_gives_calibrated_probabilities(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block, "docs/sampler.md", "exec"), names)
    mean, prior = map(float, capsys.readouterr().out.split())
    assert mean == pytest.approx(prior, rel=0.25)
    drawn = names["y"][list(names["sampler"])].float().mean()
    assert float(drawn) > 3 * prior


def test_names_and_numbers() -> None:
    shown = set(re.findall(r"`(?:sampler\.)?([a-z_]+)(?:\(.*?\))?`", PAGE)) & set(dir(balancer.AdaptiveSampler))
    assert {"class_weight", "logit_offset", "sample_weight", "loss", "probabilities", "state_dict", "notes"} <= shown
    for name in re.findall(r"`(Adaptive\w+|SamplerCore)`", PAGE):
        assert hasattr(balancer, name), name
    assert f"{BLOCK:,}" in PAGE
    assert row_sampler.is_chosen(0.5, 0.9) and not row_sampler.is_chosen(0.5, 0.1)  # less often than its prior
