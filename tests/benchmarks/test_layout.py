"""Rules for the scripts in `benchmarks`: they run as modules, say what they claim, and need nothing of the
tests.
"""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = sorted(file.stem for file in (ROOT / "benchmarks" / "claims").glob("[!_]*.py"))


@pytest.fixture
def environment() -> Iterator[None]:
    """Scripts set the number of threads for their process; afterwards the environment is as it was."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", CLAIMS)
def test_each_claim_has_help_a_command_and_a_result(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module(f"benchmarks.claims.{name}")
    assert f"python -m benchmarks.claims.{name}" in script.__doc__
    assert (ROOT / "benchmarks" / "results" / f"{name}.json").is_file()
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 0
    assert script.__doc__.splitlines()[0] in capsys.readouterr().out


def imported(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names


def test_nothing_outside_the_tests_imports_from_them() -> None:
    files = [file for folder in ("balancer", "benchmarks", "docs", "examples") for file in (ROOT / folder).rglob("*.py")]
    assert files
    assert [file for file in files if "tests" in imported(file)] == []


def test_the_package_does_not_import_its_benchmarks() -> None:
    assert [file for file in (ROOT / "balancer").rglob("*.py") if "benchmarks" in imported(file)] == []


def test_every_script_lies_in_a_package_and_changes_no_path() -> None:
    for file in (ROOT / "benchmarks").rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), file
        assert "sys.path" not in file.read_text(encoding="utf-8"), file
