"""CONTRIBUTING.md: its example runs, and the files, links and make targets that it names exist; the templates
are valid forms."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import balancer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FIELDS = {"textarea", "input", "dropdown", "checkboxes", "markdown"}


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "CONTRIBUTING.md, python block", "exec"), {})
    assert "AdaptiveSampler(policy='half', epoch=0 of 5, share={'fine': 0.5, 'fraud': 0.5}" in capsys.readouterr().out


def test_files_links_and_targets_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / link).exists(), link
    paths = re.findall(r"`((?:balancer|benchmarks|docs|tests|\.ci)/[^`\s]+)`", PAGE)
    for path in paths:
        assert "NAME" in path or (ROOT / path).exists(), path
    assert len(paths) > 15
    for target in set(re.findall(r"make (check|test|screenshots)\b", PAGE)):
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)


def test_the_changelog_has_this_version_first() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == balancer.__version__
    assert versions[-1] == "0.1.0"


@pytest.mark.parametrize("name", ["bug_report", "feature_request"])
def test_issue_templates_are_forms(name: str) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the templates")
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    assert {field["type"] for field in form["body"]} <= FIELDS
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)
    assert all(field["attributes"]["label"] for field in form["body"])
