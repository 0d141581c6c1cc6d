"""balancer app, as it is typed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from balancer.cli import main


def test_streamlit_is_started_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run(command: list[str], **_: bool) -> subprocess.CompletedProcess[str]:
        seen.extend(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["app", "--runs", str(tmp_path), "--port", "8600", "--headless"]) == 0
    script = Path(seen[seen.index("run") + 1])
    assert script.name == "streamlit_app.py"
    assert script.is_file()
    assert (script.parent / ".streamlit" / "config.toml").is_file()
    assert seen[seen.index("--server.address") + 1] == "127.0.0.1"
    assert seen[-3:] == ["--", "--runs", str(tmp_path)]


@pytest.mark.parametrize(("given", "said"), [(["--port", "0"], "--port 0"), (["--runs", __file__], "is a file")])
def test_mistakes_end_in_one_line(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", *given]) == 2
    assert said in capsys.readouterr().err
