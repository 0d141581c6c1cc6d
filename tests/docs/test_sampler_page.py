"""The example of docs/sampler.md runs and does what the page says; every name on the page exists."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

import balancer
from balancer.sampling import pooled_scores, row_sampler
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


def test_the_example_of_several_processes_runs_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    (whole,), (block,) = (re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) for language in ("python", "py"))
    names: dict[str, Any] = {"__name__": "page"}
    try:
        exec(compile(whole.split("sampler = ")[0] + block, "docs/sampler.md, several processes", "exec"), names)
    finally:
        torch.distributed.destroy_process_group()
    assert names["sampler"].best_epoch is not None and names["sampler"].metrics["average_precision"] > 0.3
    assert f"{pooled_scores.BINS:,} bins" in PAGE and pooled_scores.WIDTH / 2 < 0.0015


def test_names_and_numbers() -> None:
    shown = set(re.findall(r"`(?:sampler\.)?([a-z_]+)(?:\(.*?\))?`", PAGE)) & set(dir(balancer.AdaptiveSampler))
    assert {"class_weight", "logit_offset", "sample_weight", "loss", "probabilities", "state_dict", "notes"} <= shown
    for name in re.findall(r"`((?:Distributed)?Adaptive\w+|SamplerCore)`", PAGE):
        assert hasattr(balancer, name), name
    assert f"{BLOCK:,}" in PAGE
    assert row_sampler.is_chosen(0.5, 0.9) and not row_sampler.is_chosen(0.5, 0.1)  # less often than its prior
