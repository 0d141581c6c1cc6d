"""Names of version 0.1 that version 0.2 renamed: the table, and what makes the old names work with a warning.

They keep working for one release. Only names that a user could have typed are listed: public names,
arguments, and modules that the README or the documentation of version 0.1 named.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MODULES = {
    "balancer.configuration": "balancer.options.flags",
    "balancer.data.simulator": "balancer.data.simulation.stream",
    "balancer.envs.task_targets": "balancer.training.auxiliary_targets",
    "balancer.integrations.steering": "balancer.integrations.callback_base",
    "balancer.models.quantization.executorch_export": "balancer.models.export.executorch_export",
    "balancer.models.quantization.onnx_backend": "balancer.models.export.onnx_backend",
    "balancer.models.quantization.onnx_export": "balancer.models.export.onnx_export",
    "balancer.models.quantization.onnx_quantize": "balancer.models.export.onnx_quantize",
    "balancer.sampling.embedded": "balancer.sampling.core",
    "balancer.serving.client": "balancer.integrations.remote",
    "balancer.serving.database": "balancer.serving.storage.database",
    "balancer.serving.memory": "balancer.serving.scoring.state",
    "balancer.serving.registry": "balancer.serving.models.registry",
    "balancer.training.streaming": "balancer.inference.streaming",
}
"""Modules: old name to new name."""

NAMES = {
    "balancer.EmbeddedSampler": "balancer.SamplerCore",
    "balancer.RowSampler": "balancer.sampling.RowSampler",
    "balancer.SamplingController": "balancer.sampling.SamplingController",
    "balancer.integrations.lightning.AdaptiveSamplingCallback": "balancer.integrations.lightning.AdaptiveCallback",
    "balancer.models.Task": "balancer.models.AuxiliaryTask",
    "balancer.sampling.EmbeddedSampler": "balancer.SamplerCore",
    "balancer.sampling.core.EmbeddedSampler": "balancer.SamplerCore",
    "balancer.serving.scoring.Scorer": "balancer.serving.scoring.scorer.Scorer",
    "balancer.serving.scoring.read_row": "balancer.serving.scoring.parsing.parse_transaction",
}
"""Attributes of modules: old name to new name.

A module that is named here calls :func:`deprecated_attribute` in its ``__getattr__``.
"""

UNSET = "deprecated"
"""Default of a renamed argument of a scikit-learn estimator, whose signature must have all parameters."""


def warn_renamed(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn that ``old`` was renamed to ``new``.

    ``stacklevel`` is that of ``warnings.warn``, counted from the caller.
    """
    warnings.warn(f"{old} is deprecated and will be removed in version 0.3: use {new}", DeprecationWarning, stacklevel=stacklevel + 1)


def deprecated_attribute(module: str, name: str) -> Any:
    """The object that ``name`` meant in version 0.1, for the ``__getattr__`` of ``module``; warns.

    Raises:
        AttributeError: ``module`` had no such name.
    """
    old = f"{module}.{name}"
    if old not in NAMES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warn_renamed(old, NAMES[old], stacklevel=3)
    home, _, new = NAMES[old].rpartition(".")
    return getattr(importlib.import_module(home), new)


def renamed_argument(function: Callable[..., Any], old: str, new: str, value: Any, given: Any, *, stacklevel: int = 2) -> Any:
    """The value of an argument that was renamed from ``old`` to ``new``.

    Args:
        function: Function or class that has both arguments.
        old: Name in version 0.1.
        new: Present name.
        value: Value given under the present name.
        given: Value given under the old name, :data:`UNSET` if none was.
        stacklevel: As in ``warnings.warn``, counted from the caller.

    Returns:
        ``given`` with a warning, or ``value`` where nothing was given under the old name.

    Raises:
        TypeError: A value was given under each name, and the one under the present name is not the default.
    """
    if isinstance(given, str) and given == UNSET:
        return value
    if value != inspect.signature(function).parameters[new].default:
        _refuse_both(function.__name__, old, new, {new: value})
    warn_renamed(f"the argument {old}", new, stacklevel=stacklevel + 1)
    return given


def renamed_fields(names: Mapping[str, str], values: Mapping[str, Mapping[str, str]] | None = None) -> Callable[[type[T]], type[T]]:
    """Let a dataclass accept keyword arguments of version 0.1, and show its fields under their old names too.

    It is a decorator above ``@dataclass``.

    Args:
        names: Old name of an argument to its present name.
        values: Present name of an argument to its old values and their present names.

    >>> from dataclasses import dataclass
    >>> @renamed_fields({"window": "attention_window"})
    ... @dataclass
    ... class Config:
    ...     attention_window: int = 64
    >>> with warnings.catch_warnings(action="ignore"):
    ...     Config(window=8)
    Config(attention_window=8)
    """

    def decorate(cls: type[T]) -> type[T]:
        original: Callable[..., None] = cls.__init__

        @functools.wraps(original)
        def init(self: T, *args: Any, **kwargs: Any) -> None:
            for old in names.keys() & kwargs.keys():
                _refuse_both(cls.__name__, old, names[old], kwargs)
                warn_renamed(f"the argument {old} of {cls.__name__}", names[old])
                kwargs[names[old]] = kwargs.pop(old)
            for name, renamed in (values or {}).items():
                value = kwargs.get(name)
                if isinstance(value, str) and value in renamed:
                    warn_renamed(f"{name}={value!r} of {cls.__name__}", f"{name}={renamed[value]!r}")
                    kwargs[name] = renamed[value]
            original(self, *args, **kwargs)

        cls.__init__ = init  # type: ignore[method-assign, assignment]
        for old, new in names.items():
            setattr(cls, old, _renamed_property(f"{cls.__name__}.{old}", new))
        return cls

    return decorate


def renamed_keyword(old: str, new: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function accept a keyword argument under the name of version 0.1.

    >>> @renamed_keyword("history", "past")
    ... def load(*, past: int) -> int:
    ...     return past
    >>> with warnings.catch_warnings(action="ignore"):
    ...     load(history=3)
    3
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            if old in kwargs:
                _refuse_both(function.__qualname__, old, new, kwargs)
                warn_renamed(f"the argument {old} of {function.__qualname__}", new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapped

    return decorate


def _refuse_both(function: str, old: str, new: str, given: Mapping[str, Any]) -> None:
    if new in given:
        raise TypeError(f"{function} got {new} and its old name {old}: give {new} only")


def _renamed_property(old: str, new: str) -> property:
    def value(self: Any) -> Any:
        warn_renamed(old, new)
        return getattr(self, new)

    return property(value)


class _RenamedModule(Loader):
    """Fills a module under its old name with the attributes of the new one, when they are accessed."""

    def create_module(self, spec: ModuleSpec) -> None:
        """None: an empty module is made."""

    def exec_module(self, module: ModuleType) -> None:
        """Warn, and answer from the new module."""
        new = MODULES[module.__name__]
        warn_renamed(f"the module {module.__name__}", new)
        replacement = importlib.import_module(new)
        module.__getattr__ = lambda name: getattr(replacement, name)  # type: ignore[method-assign]
        module.__dir__ = lambda: dir(replacement)  # type: ignore[method-assign]
        module.__all__ = getattr(replacement, "__all__", [name for name in vars(replacement) if not name.startswith("_")])  # type: ignore[attr-defined]
        module.__doc__ = replacement.__doc__


class _RenamedModules(MetaPathFinder):
    """Finds the modules of :data:`MODULES` under their old names; Python asks it last."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A specification for an old name, None for any other."""
        return ModuleSpec(fullname, _RenamedModule()) if fullname in MODULES else None


def install() -> None:
    """Let ``import`` find the modules under their old names; a second call changes nothing."""
    if not any(type(finder).__name__ == _RenamedModules.__name__ for finder in sys.meta_path):
        sys.meta_path.append(_RenamedModules())
