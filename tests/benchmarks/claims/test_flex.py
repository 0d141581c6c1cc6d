"""The benchmark of flex_attention: cells in one file, claims, its words, and a short run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as flex_module

from balancer.models.attention import flex_native
from balancer.native_library import VARIABLE
from benchmarks.claims import flex as script
from benchmarks.lib.attention import flex

pytestmark = pytest.mark.skipif(flex_native.absence() is not None, reason=f"the kernel is not here: {flex_native.absence()}")


def cell(mask: str, tokens: int, faster: float) -> dict[str, Any]:
    others = [name for name in flex.CONTENDERS if name != flex.OURS]
    passes = {
        "milliseconds": dict.fromkeys(flex.CONTENDERS, 1.0),
        "times_faster_than": dict.fromkeys(others, faster),
    }
    return {
        "mask": mask,
        "tokens": tokens,
        "forward": passes,
        "forward_backward": passes,
        "errors": {"output": 1e-6, "output against torch": 4e-6, "gradients": 1e-6},
    }


def test_claims_say_whether_they_hold() -> None:
    memory = [{"tokens": 8192, "mask": "causal", **{passes: {flex.OURS: 2.0, script.DENSE: 1.0} for passes in script.PASSES}}]
    found = script.claims([cell("causal", 512, 1.2), cell("sliding 256", 8192, 15.0)], memory, wide=False)
    holds = {each["claim"]: each["holds"] for each in found}
    assert holds["largest error of output: at most 3e-06"] == "met"
    assert holds["largest error of output against torch: at most 3e-06"] == "not met"
    assert holds[f"causal, 512 tokens, forward: at least 1 times faster than {script.DENSE}"] == "met"
    assert holds[f"causal, 2,048 tokens, forward: at least 1 times faster than {script.DENSE}"] == "not measured"
    assert holds[f"sliding 256, 8,192 tokens, forward: at least 12 times faster than {script.DENSE}"] == "met"
    assert sum(each["holds"] == "not met" for each in found) == 3  # of torch, and memory in both kinds of passes
    wide = script.claims([cell("causal", 512, 1.2)], [], wide=True)
    assert {each["claim"]: each["holds"] for each in wide}[
        f"causal, 512 tokens, forward: at least 1.5 times faster than {script.DENSE}"
    ] == "not met"
    assert script.claims([], [], wide=True)[0]["holds"] == "not measured"


def test_the_docstring_states_the_limits() -> None:
    text = " ".join(script.__doc__.split())  # type: ignore[union-attr]
    narrow, wide = ([f"{limits[index]:g}" for limits in script.SPARSE.values()] for index in (0, 1))
    assert f"at least {narrow[0]} times faster than dense causal attention, 8 documents at least {narrow[1]} times" in text
    assert f"With AVX-512: {wide[0]}, {wide[1]} and {wide[2]} times" in text
    assert f"With AVX-512: {script.CAUSAL[1]:g} times" in text


def test_the_page_has_the_tables_of_the_result() -> None:
    root = Path(__file__).resolve().parents[3]
    page = (root / "docs" / "flex_attention.md").read_text(encoding="utf-8")
    result = json.loads((root / "benchmarks" / "results" / "flex.json").read_text(encoding="utf-8"))
    assert {"avx2", "avx512"} <= set(result["instructions"])
    for own in result["instructions"].values():
        assert script.table(own) in page, "python -c 'from benchmarks.claims.flex import table' writes it"


def test_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(flex, "compiled", lambda: flex.of_torch)  # compiling takes long
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    before = torch.get_num_threads()
    for mask in ("8 documents", "causal"):
        script.main(["--lengths", "64", "--masks", mask, "--memory", "--budget", "0", "--results", str(tmp_path)])
    torch.set_num_threads(before)
    content = json.loads((tmp_path / "flex.json").read_text())
    assert {"machine", "versions", "date"} <= set(content)
    (found,) = content["instructions"].values()
    assert list(content["instructions"]) == [flex.instructions()]
    assert [each["mask"] for each in found["cells"]] == ["causal", "8 documents"]
    first = found["cells"][0]
    assert first["errors"]["output"] < 3e-6 and first["errors"]["gradients"] < 5e-6
    assert first["forward_backward"]["times_faster_than"]["torch flex, eager"] == "no backward"
    assert set(first["forward"]["milliseconds"]) == set(flex.CONTENDERS)
    printed = capsys.readouterr().out
    assert "holds: largest error of output: at most 3e-06" in printed
    assert "not measured: causal, 8,192 tokens" in printed


def test_masks_are_what_their_names_say() -> None:
    problem = flex.Problem("sliding 256", 300, flex.Setting())
    seen = problem.dense_mask()[0, 0]
    assert seen.sum(1).tolist() == [min(row + 1, 256) for row in range(300)]
    documents = flex.Problem("8 documents", 64, flex.Setting()).dense_mask()[0, 0]
    assert documents.sum(1).tolist() == [*range(1, 9)] * 8
    assert flex.Problem("prefix 128", 200, flex.Setting()).dense_mask()[0, 0, 0].sum() == 128
    assert flex.Problem("global nodes", 200, flex.Setting()).dense_mask()[0, 0, 199].sum() == 64 + 16


def test_instructions_start_the_process_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def execve(_path: str, command: list[str], environment: dict[str, str]) -> None:
        started.append((command, environment))
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(SystemExit):
        script.main(["--instructions", "avx2", "--lengths", "512"])
    ((command, environment),) = started
    assert command[1:] == ["-m", "benchmarks.claims.flex", "--instructions", "avx2", "--lengths", "512"]
    assert environment[VARIABLE] == "avx2" and environment["ATEN_CPU_CAPABILITY"] == "avx2"
