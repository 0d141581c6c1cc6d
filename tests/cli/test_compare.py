"""balancer compare, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balancer.cli import main
from balancer.comparison.population import PopulationTrainer

SHORT = [
    *("--gap", "1d", "--folds", "1", "--seeds", "2", "--epochs", "2", "--steps-per-epoch", "4", "--search-trials", "4"),
    *("--treatments", "none,one_to_one,constant,constant:share=.2,hardness=1", "--device", "cpu"),
]


def test_table_sentence_and_files(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "r.json"), "--chart", str(tmp_path / "c.svg")]
    assert main(["compare", "--dataset", str(tiny_table), "--out", str(tmp_path / "c"), *SHORT, *files]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "r.json").read_text())
    assert " ".join(content["sentence"].split()[:8]) in " ".join(printed.split())
    assert "constant:share=…" in printed
    assert "95 % interval" in printed
    assert {r["treatment"] for r in content["results"]} == {"none", "one_to_one", "constant", "constant:share=.2,hardness=1"}
    assert "<svg" in (tmp_path / "c.svg").read_text()


def test_ctrl_c_then_resume_with_nothing_but_the_folder(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "c")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PopulationTrainer, "train", stop)
        assert main(["compare", "--dataset", str(tiny_table), "--out", out, *SHORT]) == 130
    assert f"continue with: balancer compare --resume --out {out}" in capsys.readouterr().err
    assert main(["compare", "--resume", "--out", out, "--json", str(tmp_path / "r.json")]) == 0
    assert len(json.loads((tmp_path / "r.json").read_text())["results"]) == 8
    assert main(["compare", "--resume", "--out", out, "--gap", "2d"]) == 2
    assert "--gap 2d differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--folds", "0"], "--folds is 0"),
        (["--treatments", "nobody"], "unknown treatment 'nobody'"),
        (["--treatments", "none", "--label", "no_such"], "no column 'no_such'"),
        (["--chart", "c.bmp"], "must end in .svg or .html"),
        (["--resume"], "--resume needs --out"),
    ],
)
def test_mistakes_end_in_one_line(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    out = tmp_path / "c"
    named = [] if given == ["--resume"] else ["--out", str(out)]
    assert main(["compare", "--dataset", str(tiny_table), *named, *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
