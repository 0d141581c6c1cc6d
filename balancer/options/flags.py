"""A frozen dataclass is a command's flags, their help and its saved configuration, so the three always agree.

Each field is a flag. Its type says how the text is parsed, its default is the flag's default, and its help is
an annotation::

    @dataclass(frozen=True, kw_only=True)
    class RunOptions(Options):
        HEADING: ClassVar[str] = "Run"

        seed: Annotated[int, "Random seed; the same seed reproduces the run exactly."] = 0

Commands are composed: the dataclass of a command inherits from the groups of options that it needs, and its
help lists them under their headings. To change a default, a command declares the field again::

    dropout: float = 0.1

To fix a value, so that it is not a flag, it declares the field with ``init=False``::

    head: str = field(default="auto", init=False)

:func:`parse` returns only the flags that were typed, so that ``--resume`` can tell a flag that was left out
from one that has its default.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import inspect
import re
import shutil
import types
import typing
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from balancer.data.spec import nearest
from balancer.errors import InputError

Config = TypeVar("Config")

HELP_WIDTH = 100
"""Help is no wider than this many columns, however wide the terminal is."""


class DeprecatedFlag(DeprecationWarning):
    """A flag or a value that version 0.1 had under another name. The command line shows this warning."""


@dataclass(frozen=True)
class Flag:
    """Help of a field, and what its type and default do not say. A text in its place is the help only."""

    help: str
    """One sentence or two; the default is appended when the help is shown."""
    metavar: str = ""
    """Placeholder of the value in the help, if the one that follows from the type is unclear."""
    default: str = ""
    """In words, what is used where the flag is left out and the default is None."""
    positional: bool = False
    """Whether the value is given without a flag."""
    unless: str = ""
    """A field that makes this required one optional when it is given."""
    aliases: tuple[str, ...] = ()
    """Flags of version 0.1 that meant the same."""
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Values of version 0.1 and what they are called now."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all option groups; each checks its fields in ``__post_init__`` and calls the next one."""

    HEADING: ClassVar[str] = ""
    """Heading of the group in the help. Below it stands the summary line of the group's docstring."""
    COMMON: ClassVar[tuple[str, ...]] = ()
    """Fields whose flags ``--help`` shows besides the required ones; empty: all. ``--help-all`` shows all."""

    def __post_init__(self) -> None:
        """Check the fields; the base class has none."""


@dataclass(frozen=True)
class Parameter:
    """A field of a command's dataclass as a flag."""

    name: str
    kind: Any
    """Type of the value, without None."""
    default: Any
    """``dataclasses.MISSING`` if the flag is required."""
    flag: Flag
    heading: str

    @property
    def shown(self) -> str:
        """The flag as it is typed, or the placeholder of a positional argument."""
        return self.metavar if self.flag.positional else flag_of(self.name)

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is dataclasses.MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values, if the type is a ``Literal``."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is typing.Literal else ()

    @property
    def is_list(self) -> bool:
        """Whether several values are given, separated by commas."""
        return typing.get_origin(self.kind) is tuple

    @property
    def metavar(self) -> str:
        """Placeholder of the value."""
        if self.flag.metavar:
            return self.flag.metavar
        if self.choices:
            return "{" + ",".join(self.choices) + "}"
        if self.is_list:
            return "A,B,…"
        names = {int: "N", float: "X", Path: "PATH"}
        return names.get(self.kind) or self.name.rstrip("_").upper().replace("_", "-")

    @property
    def help(self) -> str:
        """Help with the default, or what is used in its place."""
        default = self.default
        if self.required and self.flag.unless:
            return f"{self.flag.help} (not needed with {flag_of(self.flag.unless)})"
        if self.required or default is None or default is False or default in ((), ""):
            note = self.flag.default
        else:
            note = ",".join(default) if isinstance(default, tuple) else str(default)
        return f"{self.flag.help} (default: {note})" if note else self.flag.help

    def convert(self, text: str) -> Any:
        """The value of the flag from its text.

        Raises:
            argparse.ArgumentTypeError: The text is not of the flag's type.
        """
        if text in self.flag.renamed:
            new = self.flag.renamed[text]
            _warn(f"{self.shown} {text} is now {self.shown} {new}")
            text = new
        if self.choices and text not in self.choices:
            raise argparse.ArgumentTypeError(f"unknown value '{text}'; {nearest(text, self.choices)}")
        if self.is_list:
            return _split(text)
        if self.kind in (int, float):
            try:
                return self.kind(text)
            except ValueError:
                wanted = "a whole number" if self.kind is int else "a number"
                raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}") from None
        return Path(text) if self.kind is Path else text


def flag_of(name: str) -> str:
    """The flag of a field: ``--bad-rows`` for ``bad_rows``, ``--from`` for ``from_`` (a keyword)."""
    return "--" + name.rstrip("_").replace("_", "-")


@functools.cache
def parameters(cls: type) -> tuple[Parameter, ...]:
    """The flags of a dataclass, group by group in the order of its base classes, its own fields last."""
    kinds: dict[str, Any] = {}
    flags: dict[str, Flag] = {}
    groups: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, annotation in inspect.get_annotations(base, eval_str=True).items():
            kind: Any = annotation
            if hasattr(annotation, "__metadata__"):  # Annotated[kind, help]
                kind, text = typing.get_args(annotation)[:2]
                flags[name] = text if isinstance(text, Flag) else Flag(text)
            kinds[name] = _without_none(kind)
            groups.setdefault(name, getattr(base, "HEADING", ""))
    found = [
        Parameter(field.name, kinds[field.name], field.default, flags.get(field.name, Flag("")), groups[field.name])
        for field in dataclasses.fields(cls)
        if field.init
    ]
    # dataclasses lists the fields of the last base class first.
    place: dict[str, int] = {}
    for base in cls.__mro__[1:]:
        place.setdefault(getattr(base, "HEADING", ""), len(place))
    return tuple(sorted(found, key=lambda each: (not each.flag.positional, place.get(each.heading, len(place)))))


def parse(cls: type, program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of a command.

    Args:
        cls: Dataclass of the command; its docstring is the description in the help.
        program: Name of the command as it is typed, for the help.
        arguments: What was typed after it.

    Returns:
        The values that were given, by field name.

    Raises:
        InputError: A flag or value is unknown, or a required one is missing.
        SystemExit: The help was asked for; it was printed.
    """
    hint = f"({program} --help)"
    parser = command_parser(cls, program, everything="--help-all" in arguments)
    try:
        namespace, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error.argument_name}: {error.message} {hint}") from None
    given = vars(namespace)
    known = parameters(cls)
    typed = {word.partition("=")[0] for word in arguments}
    for each in known:
        used = [name for name in (each.shown, *each.flag.aliases) if name in typed]
        if len(used) > 1:
            raise InputError(f"{' and '.join(used)} mean the same: give {each.shown} only {hint}")
    for each in known:
        if each.flag.positional:
            values = given.pop(each.name)
            if values:
                given[each.name] = values[0]
                rest = [*map(str, values[1:]), *rest]
    if rest:
        word = rest[0].partition("=")[0]
        if word.startswith("-"):
            raise InputError(f"unknown flag {did_you_mean(word, [each.shown for each in known])} {hint}")
        raise InputError(f"unexpected argument '{word}' {hint}")
    for each in known:
        if each.required and each.name not in given and not given.get(each.flag.unless):
            unless = f", unless {flag_of(each.flag.unless)} is given" if each.flag.unless else ""
            raise InputError(f"{each.shown} is missing: it is required{unless} {hint}")
    return given


def read_flags(cls: type[Config], program: str, arguments: Sequence[str]) -> Config:
    """The configuration of a command from its arguments; see :func:`parse`."""
    return cls(**parse(cls, program, arguments))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The word, followed by the most similar known one if there is one.

    >>> did_you_mean("--epoch", ["--epochs", "--seed"])
    '--epoch: did you mean --epochs?'
    >>> did_you_mean("--imaginary", ["--epochs"])
    '--imaginary'
    >>> did_you_mean("--hist", ["--id", "--history-length"])
    '--hist: did you mean --history-length?'
    """
    names = list(known)
    prefixed = [name for name in names if len(word) > 4 and name.startswith(word)]
    close = prefixed or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"{word}: did you mean {close[0]}?" if close else word


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON-able values."""
    plain = {}
    cls: type = type(config)
    for each in parameters(cls):
        value = getattr(config, each.name)
        plain[each.name] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return plain


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Build a configuration from what :func:`to_dict` gave, in this version or in 0.1.

    Raises:
        TypeError: A key is unknown, or a required one is missing.
    """
    known = {each.name: each for each in parameters(cls)}
    converted = {}
    for name, value in present_names(cls, values).items():
        if name in known and value is not None:
            if known[name].kind is Path:
                value = Path(value)
            elif known[name].is_list:
                value = tuple(value)
        converted[name] = value
    return cls(**converted)


def present_names(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the keys and values of a configuration that version 0.1 saved.

    Args:
        cls: The dataclass; the flags of its fields name the old flags and values.
        values: Saved values by field name.

    Returns:
        The values by the present names of the fields. Where a value is given under both names, the present
        name counts.
    """
    result = dict(values)
    for each in parameters(cls):
        for alias in each.flag.aliases:
            old = alias.removeprefix("--").replace("-", "_")
            if old in result:
                result.setdefault(each.name, result.pop(old))
        value = result.get(each.name)
        if isinstance(value, str):
            # Version 0.1 saved the lists of a comparison's flags as text.
            result[each.name] = list(_split(value)) if each.is_list else each.flag.renamed.get(value, value)
    return result


def command_parser(cls: type, program: str, *, everything: bool = True) -> argparse.ArgumentParser:
    """The parser of a command, also for its page and its shell completion.

    Args:
        cls: Dataclass of the command.
        program: Name of the command as it is typed.
        everything: Whether the help shows all flags; otherwise the required ones and :attr:`Options.COMMON`.
    """
    known = parameters(cls)
    common = getattr(cls, "COMMON", ())
    shown = {each.name for each in known if everything or not common or each.required or each.name in common}
    words = [each.metavar if each.flag.positional else f"{each.shown} {each.metavar}" for each in known if each.required]
    parser = argparse.ArgumentParser(
        prog=program,
        usage=" ".join([program, *words, "[flags]"]),
        description=_documented(cls),
        epilog=f"{len(known) - len(shown)} more flags: {program} --help-all" if len(shown) < len(known) else None,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for each in known:
        if each.heading not in groups:
            some = any(other.heading == each.heading and other.name in shown for other in known)
            groups[each.heading] = parser.add_argument_group(
                each.heading or "Flags", _sentence(cls, each.heading) if some else argparse.SUPPRESS
            )
        _add(groups[each.heading], each, hidden=each.name not in shown)
    parser.add_argument("-h", "--help", "--help-all", action="help", help=argparse.SUPPRESS)
    return parser


def _add(group: argparse._ArgumentGroup, each: Parameter, *, hidden: bool) -> None:
    options: dict[str, Any] = {"help": argparse.SUPPRESS if hidden else each.help.replace("%", "%%"), "default": argparse.SUPPRESS}
    if each.flag.positional:
        # Any number is accepted here: `parse` reports a missing one, and one too many, in words of its own.
        group.add_argument(each.name, nargs="*", type=each.convert, metavar=each.metavar, help=options["help"], default=[])
        return
    options["dest"] = each.name
    if each.kind is bool:
        options["action"] = "store_true"
    else:
        options |= {"type": each.convert, "metavar": each.metavar}
    group.add_argument(each.shown, **options)
    for alias in each.flag.aliases:
        group.add_argument(alias, **options | {"action": _renamed(each), "help": argparse.SUPPRESS})


def _renamed(each: Parameter) -> type[argparse.Action]:
    """Action of a flag of version 0.1: it warns and sets the present field."""

    class Renamed(argparse.Action):
        def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
            _warn(f"{option_string} is now {each.shown}")
            setattr(namespace, self.dest, values)

    return Renamed


def _warn(text: str) -> None:
    warnings.warn(f"{text}; the old name will be removed in version 0.3", DeprecatedFlag, stacklevel=4)


def _sentence(cls: type, heading: str) -> str | None:
    """The summary line of a group's docstring, None for the fields of the command itself."""
    group = next((base for base in cls.__mro__[1:] if heading and vars(base).get("HEADING") == heading), None)
    return None if group is None else _documented(group).split("\n\n")[0]


def _documented(cls: type) -> str:
    """The docstring of a class as a terminal shows it, without the marks of code."""
    return inspect.cleandoc(cls.__doc__ or "").replace("``", "")


class _HelpFormatter(argparse.HelpFormatter):
    """Names on the left, help on the right, at the terminal's width or :data:`HELP_WIDTH`."""

    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, HELP_WIDTH)
        super().__init__(prog, max_help_position=26, width=columns - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(_HelpFormatter, self)._fill_text(part, width, indent) for part in text.split("\n\n"))

    def _split_lines(self, text: str, width: int) -> list[str]:
        # A short default stays on one line.
        kept = re.sub(r"\(default: \S{1,20}\)$", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
        return [line.replace("\N{NO-BREAK SPACE}", " ") for line in super()._split_lines(kept, width)]

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar) if action.nargs == "*" else super()._format_args(action, default_metavar)


def _without_none(kind: Any) -> Any:
    """``X`` for ``X | None``."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(part for part in typing.get_args(kind) if part is not types.NoneType)
    return kind


def _split(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
