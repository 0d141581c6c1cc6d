"""balancer app, as it is typed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from balancer.cli import app, main
from benchmarks.lib.ports import free_port


def test_streamlit_is_started_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Replaced(BaseException):
        """Stands for the process that never returns."""

    def execv(_: str, command: list[str]) -> None:
        seen.extend(command)
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(Replaced):
        main(["app", "--runs", str(tmp_path), "--port", "8600", "--headless"])
    script = Path(seen[seen.index("run") + 1])
    assert script.name == "streamlit_app.py"
    assert script.is_file()
    assert (script.parent / ".streamlit" / "config.toml").is_file()
    assert seen[seen.index("--server.address") + 1] == "127.0.0.1"
    assert seen[-3:] == ["--", "--runs", str(tmp_path)]


def test_the_address_of_a_service_is_given_on_and_its_key_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def execv(_: str, command: list[str]) -> None:
        seen.extend(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setenv("BALANCER_SERVICE_KEY", "bk_secret")
    with pytest.raises(KeyboardInterrupt):
        app.main(["--runs", str(tmp_path), "--service", "https://balancer.example"])
    assert seen[-2:] == ["--service", "https://balancer.example"]
    assert "bk_secret" not in " ".join(seen)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--port", "0"], "--port 0"),
        (["--runs", __file__], "is a file"),
        (["--service", "balancer.example"], "--service is no address"),
        (["--service", "https://user:secret@balancer.example"], "--service is no address"),
    ],
)
def test_mistakes_end_in_one_line(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", *given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no exec")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_ends_the_app(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "balancer", "app", "--runs", str(tmp_path), "--port", str(port), "--headless"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    deadline = time.monotonic() + 120
    while not answers():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(number)
    process.wait(60)
    assert not answers()
