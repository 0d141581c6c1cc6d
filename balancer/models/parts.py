"""Find parts by name: parts of this package, entry points of others, and `module:Class`.

A name in a saved model can make Python import a module, but nothing else runs. The imported object must be a
subclass of the part's base class, and it is called with the configuration only.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.models.config import ModelConfig
from balancer.names import PARTS as PARTS

Part = TypeVar("Part", bound=nn.Module)
Factory = Callable[[ModelConfig], Part]

ENTRY_POINTS = "balancer.parts"
"""Group of entry points.

`attention.NAME = "package.module:Class"` makes NAME an attention wherever that package is installed.
"""


def find_part(registry: Mapping[str, Factory[Part]], kind: str, name: str, base: type[Part]) -> Factory[Part]:
    """Find the class or function that builds the part `name` from a `ModelConfig`.

    Args:
        registry: known parts by name.
        kind: embedding, attention or head.
        name: a key of `registry`, NAME of an entry point `kind.NAME`, or `module:Class` of a module in the
            current folder or on Python's path.
        base: required base class.

    Raises:
        InputError: There is no such part, or it is not a subclass of `base`. The message suggests the nearest
            name.
    """
    if name in registry:
        return registry[name]
    if ":" in name:
        return _checked(_imported(kind, name), kind, name, base)
    registered = {
        entry.name.removeprefix(f"{kind}."): entry for entry in entry_points(group=ENTRY_POINTS) if entry.name.startswith(f"{kind}.")
    }
    if name not in registered:
        raise InputError(f"unknown {kind} '{name}'; {nearest(name, [*sorted(registry), *sorted(registered)])}; or give module:Class")
    try:
        found = registered[name].load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{kind} '{name}' of the entry point {registered[name].value} can't be imported: {error}") from error
    return _checked(found, kind, name, base)


def name_of(registry: Mapping[str, Factory[Any]], part: object) -> str:
    """Return the name under which :func:`find_part` finds the class of `part`.

    Args:
        registry: known parts by name.
        part: a module, class or function.
    """
    for name, factory in registry.items():
        if factory is part or factory is type(part):
            return name
    kind = type(part) if isinstance(part, nn.Module) else part
    return f"{getattr(kind, '__module__', '')}:{getattr(kind, '__qualname__', type(kind).__qualname__)}"


def part_of(tensor: str) -> str:
    """Name the part to which a tensor of a classifier belongs: one of `PARTS`, or trunk.

    Args:
        tensor: its key in `state_dict()`.
    """
    names = tensor.split(".")
    if names[-1] in ("adapter_down", "adapter_up"):
        return "adapter"
    if names[0] in ("embedding", "head", "tasks"):
        return names[0]
    return "attention" if names[0] == "blocks" and len(names) > 2 and names[2] == "attention" else "trunk"


def _imported(kind: str, name: str) -> object:
    module, _, attribute = name.partition(":")
    # The path of a console script does not include the current folder, where the user's module may be.
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
            f"{kind} '{name}' can't be imported ({error}): run in the folder of {module}.py, or add that folder to PYTHONPATH; "
            "register a class that is defined inside a function by name instead"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    return found


def _checked(found: object, kind: str, name: str, base: type[Part]) -> Factory[Part]:
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{kind} '{name}' is not a subclass of {base.__name__}: see docs/parts.md for an example")
    return found  # it is called with the configuration only
