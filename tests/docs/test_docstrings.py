"""The examples in docstrings run, each module imported by its installed name."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import balancer
import balancer.envs
import balancer.models

PACKAGES = (balancer, balancer.models, balancer.envs)
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {module.name for package in PACKAGES for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
)


# A library of ours is no Python module, and Alembic's environment runs where Alembic calls it only.
LEFT_OUT = ("__main__", "._native_", ".migrations.env")


@pytest.mark.parametrize("name", [name for name in MODULES if not any(part in name for part in LEFT_OUT)])
def test_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def documented() -> list[tuple[str, object]]:
    """The names of the page with the reference of the Python API."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    found = []
    for name in re.findall(r"^::: ([\w.]+)$", page, flags=re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        if name != "balancer.errors":
            found.append((name, getattr(importlib.import_module(module), attribute)))
    return found


@pytest.mark.parametrize(("name", "value"), documented(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_the_reference_shows_has_an_example_and_describes_every_argument(name: str, value: object) -> None:
    text = inspect.getdoc(value) or ""
    assert ">>>" in text or name.endswith(("RemoteSampler", "StudentTask")), f"{name} has no example"
    function = value.__init__ if inspect.isclass(value) else value
    described = text + (inspect.getdoc(function) or "")
    given = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]  # type: ignore[arg-type]
    for each in given:
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and not is_dataclass(value):  # fields have their own docstrings
            assert re.search(rf"(^|\n)\s*`*{each.name}`*\s*(:|\n)|`{each.name}`|, {each.name}\n", described), (
                f"{name} does not describe {each.name}"
            )
    if inspect.isclass(value):
        # Other libraries add methods to torch's classes.
        own = [each for each in inspect.getmembers(value, inspect.isfunction) if each[1].__module__.startswith("balancer")]
        methods = [each for each, _ in own if not each.startswith("_")]
        assert [each for each in methods if not inspect.getdoc(getattr(value, each))] == []
