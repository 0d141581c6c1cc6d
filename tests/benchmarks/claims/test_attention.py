"""The benchmark of sparse attention: its parts in one file, its command line, and short runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.claims import attention


def test_parts_are_kept_when_another_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "attention.json"
    attention.merge(path, "kernels", {"cells": [1.23456789]})
    attention.merge(path, "quality", {"seeds": [0]}, "handbook")
    attention.merge(path, "quality", {"seeds": [1]}, "sparkov")
    attention.merge(path, "quality", {"seeds": [2]}, "handbook")
    content = json.loads(path.read_text())
    assert list(content["parts"]) == ["kernels", "quality"]
    assert content["parts"]["kernels"]["cells"] == [1.2346]
    assert {data: found["seeds"] for data, found in content["parts"]["quality"]["streams"].items()} == {"handbook": [2], "sparkov": [1]}
    assert {"machine", "versions", "date"} <= set(content)


def test_a_restriction_starts_the_script_again_and_has_a_part_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []
    monkeypatch.setattr("benchmarks.lib.instructions.os.execve", lambda _, command, environment: started.append((command, environment)))
    monkeypatch.setattr(attention, "measured", lambda part, _: {"part": part})
    monkeypatch.delenv("BALANCER_INSTRUCTIONS", raising=False)
    given = ["--instructions", "avx2", "--results", str(tmp_path)]
    attention.main(given)
    ((command, environment),) = started
    assert command[1:] == ["-m", "benchmarks.claims.attention", *given]
    assert environment["BALANCER_INSTRUCTIONS"] == environment["ATEN_CPU_CAPABILITY"] == "avx2"
    parts = json.loads((tmp_path / "attention.json").read_text())["parts"]
    assert {name: part["part"] for name, part in parts.items()} == {"kernels_avx2": "kernels"}
    with pytest.raises(SystemExit):
        attention.main([*given, "--only", "quality"])


@pytest.mark.slow
def test_a_quick_run_of_the_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    # No backend is measured, and nothing is written to the user's cache.
    monkeypatch.setenv("BALANCER_ATTENTION_BACKEND", "torch")
    attention.main(["--quick", "--only", "model", "--results", str(tmp_path)])
    torch.set_num_threads(before)
    part = json.loads((tmp_path / "attention.json").read_text())["parts"]["model"]
    assert {(cell["tokens"], cell["passes"]) for cell in part["cells"]} == {
        (n, p) for n in (64, 128) for p in ("forward", "forward_backward")
    }
    assert {cell["backend"] for cell in part["cells"]} == {"torch"}
    assert set(part["streaming"]["scores_per_second"]) == {"step", "dense, 32 again", "sparse, 32 again"}
    assert all(rate > 0 for rate in part["streaming"]["scores_per_second"].values())


def test_cuda_measures_kernels_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        attention.main(["--device", "cuda", "--only", "quality"])
    assert "--device cuda measures the kernels only" in capsys.readouterr().err


@pytest.mark.gpu
def test_quick_kernels_on_cuda(tmp_path: Path) -> None:
    attention.main(["--quick", "--device", "cuda", "--results", str(tmp_path)])
    part = json.loads((tmp_path / "attention_cuda.json").read_text())["parts"]["kernels"]
    assert all("dense" in cell["milliseconds"] for cell in part["cells"])
    assert all(value < 0.1 for error in part["errors"] for value in error["relative_error"]["sparse"].values())
