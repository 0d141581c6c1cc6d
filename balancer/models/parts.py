"""Parts by name: shipped ones, ones that another package registers, and a class of the user's own as `module:Class`.

Special: a name in a saved model can make Python import a module, never run anything else. What is found must be a class of modules, and it is called
with the configuration alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.models.config import ModelConfig

Part = TypeVar("Part", bound=nn.Module)
Factory = Callable[[ModelConfig], Part]

ENTRY_POINTS = "balancer.parts"
"""Group of entry points: `attention.NAME = "package.module:Class"` makes NAME an attention wherever that package is installed."""
PARTS = ("embedding", "attention", "head", "adapter", "tasks")
"""What of a classifier can be trained alone; the rest is the trunk."""


def find_part(registry: Mapping[str, Factory[Part]], kind: str, name: str, base: type[Part]) -> Factory[Part]:
    """What makes the part `name` from a `ModelConfig`.

    Args:
        registry: the shipped parts and what was added to them, by name.
        kind: embedding, attention or head.
        name: a key of `registry`, NAME of an entry point `kind.NAME`, or `module:Class` of a module in the current folder or on Python's path.
        base: what the part must be a kind of.

    Raises:
        InputError: There is no such part (the nearest name is told), or it is no part of that kind.
    """
    if name in registry:
        return registry[name]
    if ":" in name:
        return _checked(_imported(kind, name), kind, name, base)
    registered = {
        entry.name.removeprefix(f"{kind}."): entry for entry in entry_points(group=ENTRY_POINTS) if entry.name.startswith(f"{kind}.")
    }
    if name not in registered:
        raise InputError(f"unknown {kind} '{name}'; {nearest(name, [*sorted(registry), *sorted(registered)])}; or module:Class of your own")
    try:
        found = registered[name].load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{kind} '{name}' of the entry point {registered[name].value} can't be imported: {error}") from error
    return _checked(found, kind, name, base)


def name_of(registry: Mapping[str, Factory[Any]], part: object) -> str:
    """The name under which :func:`find_part` finds the class of `part`, or `part` where it is a class or a function."""
    for name, factory in registry.items():
        if factory is part or factory is type(part):
            return name
    kind = type(part) if isinstance(part, nn.Module) else part
    return f"{getattr(kind, '__module__', '')}:{getattr(kind, '__qualname__', type(kind).__qualname__)}"


def part_of(tensor: str) -> str:
    """Which part a tensor of a classifier belongs to, by its name in `state_dict()`: one of `PARTS`, or trunk."""
    names = tensor.split(".")
    if names[-1] in ("adapter_down", "adapter_up"):
        return "adapter"
    if names[0] in ("embedding", "head", "tasks"):
        return names[0]
    return "attention" if names[0] == "blocks" and len(names) > 2 and names[2] == "attention" else "trunk"


def check_parts(names: Iterable[str], flag: str) -> frozenset[str]:
    """The names as a set.

    Raises:
        InputError: One is unknown, or there is none.
    """
    found = frozenset(names)
    for name in sorted(found - set(PARTS)):
        raise InputError(f"{flag}: unknown part '{name}'; {nearest(name, PARTS)}")
    if not found:
        raise InputError(f"{flag} names no part: give one or more of {', '.join(PARTS)}")
    return found


def _imported(kind: str, name: str) -> object:
    module, _, attribute = name.partition(":")
    # The console script's path does not hold the current folder, where a file of the user's own stands.
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module)
        for step in attribute.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{kind} '{name}' can't be imported ({error}): run where {module}.py is, or put its folder into PYTHONPATH; "
            "a class made inside a function is registered by name instead"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    return found


def _checked(found: object, kind: str, name: str, base: type[Part]) -> Factory[Part]:
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{kind} '{name}' is no class derived from {base.__name__}: docs/parts.md shows one")
    return found  # called with the configuration, as the contract says
