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


# A library of ours is no Python module, and Alembic's environment runs where Alembic calls it only.
LEFT_OUT = ("__main__", "._native_", ".migrations.env")


@pytest.mark.parametrize("name", [name for name in MODULES if not any(part in name for part in LEFT_OUT)])
def test_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
