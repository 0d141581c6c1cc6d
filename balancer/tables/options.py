"""How a text file is read: what is not given is found in the file."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from balancer.errors import InputError

NORMAL, PLAIN = "normal", "plain"
"""Forms of values: the normal form, and the plain conversion to text of runs of earlier versions."""


@dataclass(frozen=True)
class ReadOptions:
    """Options for CSV files and other text; None means that the file is examined."""

    encoding: str | None = None
    """Name of the character encoding, for example `latin-1`."""
    separator: str | None = None
    """The character between fields; `tab` for a tabulator."""
    decimal: str | None = None
    """The decimal mark of numbers, `.` or `,`."""
    thousands: str | None = None
    """The mark between groups of three digits: `,`, `.`, `'` or `space`."""
    null_values: tuple[str, ...] | None = None
    """Texts that mean "missing", besides the usual ones."""

    def __post_init__(self) -> None:
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise InputError(f"--encoding {self.encoding!r} is unknown: give a name such as utf-8, latin-1 or utf-16") from None
        if self.separator == "tab":
            object.__setattr__(self, "separator", "\t")
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n' or not self.separator.isascii()):
            raise InputError(f"--separator {self.separator!r}: give one ASCII character, or tab")
        if self.decimal not in (None, ".", ","):
            raise InputError(f"--decimal {self.decimal!r}: give . or ,")
        if self.thousands == "space":
            object.__setattr__(self, "thousands", " ")
        if self.thousands not in (None, ",", ".", "'", " "):
            raise InputError(f"--thousands {self.thousands!r}: give one of , . ' space")
        if self.decimal is not None and self.decimal == self.thousands:
            raise InputError(f"--decimal and --thousands are both {self.decimal!r}: give two different marks")
        if self.null_values is not None:
            object.__setattr__(self, "null_values", tuple(self.null_values))

    def to_dict(self) -> dict[str, Any]:
        """What was given, by key, as JSON can hold it."""
        given = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) is not None}
        return given | ({"null_values": list(self.null_values)} if self.null_values is not None else {})

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ReadOptions:
        """Check and convert the `[read]` table of a spec file.

        Raises:
            InputError: If a key is unknown or its value cannot be used.
        """
        known = [item.name for item in fields(cls)]
        for key, value in raw.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise InputError(f"unknown key {key!r} in [read]: {hint}known: {', '.join(known)}")
            texts = value if key == "null_values" and isinstance(value, list | tuple) else [value]
            if value is not None and not all(isinstance(text, str) for text in texts):
                raise InputError(f"[read] {key} is {value!r}: give text")
        values = dict(raw)
        if isinstance(values.get("null_values"), str):
            values["null_values"] = tuple(text.strip() for text in values["null_values"].split(","))
        return cls(**values)
