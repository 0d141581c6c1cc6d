"""A command's flags are a frozen dataclass: field = flag, default = default, the string under the field = help.

The same dataclass is the saved configuration of a run, so the three can't drift apart. Only flags that were typed are in the result of
:func:`parse`, which is what lets ``--resume`` tell "left out" from "given and different".
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def field_docs(cls: type) -> dict[str, str]:
    """The string literal under each annotated field, by field name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs: dict[str, str] = {}
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            docs[field.target.id] = " ".join(text.value.value.split())
    return docs


def flag_of(name: str) -> str:
    """The flag of a field: ``bad_rows`` is ``--bad-rows``, and ``from_``, which Python won't have as ``from``, is ``--from``."""
    return "--" + name.rstrip("_").replace("_", "-")


def add_fields(parser: argparse.ArgumentParser, cls: type) -> None:
    """Give ``parser`` one argument per field of the dataclass ``cls``; metadata ``positional`` makes it positional."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING
        help_text = docs.get(field.name, "").replace("%", "%%")
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        kind = _without_none(hints[field.name])
        if kind is bool:
            options["action"] = "store_true"
        elif typing.get_origin(kind) is typing.Literal:
            options["choices"] = typing.get_args(kind)
        elif typing.get_origin(kind) is tuple:
            options.update(type=_names, metavar="A,B,…")
        else:
            options.update(type=kind, metavar=field.metadata.get("metavar", field.name.rstrip("_").upper().replace("_", "-")))
        if not required and field.default not in (None, False, ()):
            help_text += f" (default: {field.default})"
        if field.metadata.get("positional"):
            parser.add_argument(field.name, help=help_text, **options)
        else:
            parser.add_argument(flag_of(field.name), help=help_text, required=required, dest=field.name, **options)
            for alias in field.metadata.get("aliases", ()):  # names of the version before
                parser.add_argument(alias, dest=field.name, **(options | {"help": argparse.SUPPRESS}))


def parse(cls: type, program: str, description: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse ``arguments`` by the fields of ``cls``: the values that were typed, by field name. Exits with 2 on a wrong flag."""
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    add_fields(parser, cls)
    return vars(parser.parse_args(arguments))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON-able values."""
    plain = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        plain[field.name] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return plain


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """The inverse of :func:`to_dict`; unknown keys raise TypeError."""
    hints = typing.get_type_hints(cls)
    converted = {}
    for name, value in values.items():
        kind = _without_none(hints[name]) if name in hints else None
        if value is not None and kind is Path:
            value = Path(value)
        elif value is not None and typing.get_origin(kind) is tuple:
            value = tuple(value)
        converted[name] = value
    return cls(**converted)


def _without_none(kind: Any) -> Any:
    """``X`` for ``X | None``."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        rest = [part for part in typing.get_args(kind) if part is not type(None)]
        return rest[0]
    return kind


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
