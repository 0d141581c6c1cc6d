"""`balancer doctor`: its report agrees with the machine."""

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
    monkeypatch.delenv("BALANCER_ATTENTION_BACKEND", raising=False)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["versions"]["torch"] == torch.__version__
    assert set(result["attention"]["backends"]) == set(BACKENDS)
    assert result["attention"]["backends"]["torch"] == "works"
    assert result["attention"]["backends"]["native"] == (native.absence() or "works")
    assert result["flex_attention"]["kernel in C++"].startswith("works, with ")
    assert set(result["quantization"]) == {"INT8 kernel in C++"}
    assert set(result["trees"]) == {"evaluator in C++"}
    assert set(result["streaming"]) == {"step in C++"}
    assert result["attention"]["auto"]["64"]["backend"] == "dense"
    assert result["attention"]["auto"]["512"]["milliseconds"]
    assert result["processor"]
    assert {choice["backend"] for choice in result["attention"]["auto"].values()} <= set(BACKENDS) - {"reference"}


def test_table_and_bad_flag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "absence", lambda: "it was not built")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "it was not built" in printed
    assert torch.__version__ in printed
    assert main(["doctor", "--imaginary"]) == 2
    assert "--imaginary" in capsys.readouterr().err


def test_a_backend_that_cannot_be_taken_is_told_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALANCER_ATTENTION_BACKEND", "imaginary")
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["attention"]["auto"]["512"]["backend"] is None
    assert "imaginary" in result["attention"]["auto"]["512"]["reason"]
    assert main(["doctor"]) == 0
    assert "imaginary" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "flags", "backend", "said"),
    [
        ("train", (), "imaginary", "names the unknown backend 'imaginary'"),
        ("pretrain", (), "imaginary", "names the unknown backend 'imaginary'"),
        ("compare", ("--treatments", "none"), "imaginary", "names the unknown backend 'imaginary'"),
        ("train", ("--attention", "sparse", "--history-length", "200"), "native", "which can't be used: it was not built"),
    ],
)
def test_the_variable_is_checked_before_anything_is_written(
    command: str,
    flags: tuple[str, ...],
    backend: str,
    said: str,
    tiny_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "absence", lambda: "it was not built")
    monkeypatch.setenv("BALANCER_ATTENTION_BACKEND", backend)
    assert main([command, "--dataset", str(tiny_table), "--out", str(tmp_path / "run"), "--device", "cpu", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: BALANCER_ATTENTION_BACKEND names")
    assert said in error
    assert not (tmp_path / "run").exists()


def test_a_backend_that_the_model_does_not_use_is_not_asked_of_this_machine(
    tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from balancer.options.train import TrainConfig
    from balancer.training.preparation import prepare

    monkeypatch.setattr(native, "absence", lambda: "it was not built")
    monkeypatch.setenv("BALANCER_ATTENTION_BACKEND", "native")
    config = TrainConfig(dataset=tiny_table, policy="auto", attention="dense", device="cpu", out=tmp_path / "run")
    assert prepare(config, Console()).model.attention == "dense"
