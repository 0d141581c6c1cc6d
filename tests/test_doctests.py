"""The examples in docstrings run, each module imported by its installed name."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import balancer
import balancer.envs
import balancer.models

PACKAGES = (balancer, balancer.models, balancer.envs)
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {module.name for package in PACKAGES for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
)


@pytest.mark.parametrize(
    "name", [name for name in MODULES if not name.endswith("__main__") and "._native_" not in name]
)  # a library of ours is no Python module
def test_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
