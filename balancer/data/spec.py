"""The spec: the role of each column of a table, as a frozen dataclass and as text (`spec.toml`).

What is special: every error message names the key or flag, and suggests the nearest known one. Roles that
were not named are inferred in `balancer.data.roles`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from balancer.errors import InputError, reason_of
from balancer.names import listed
from balancer.tables.joined import JOINED
from balancer.tables.options import ReadOptions

DAY = 86_400.0
COLUMN_ROLES = ("entity", "time", "label", "label_date", "amount", "id")
LIST_ROLES = ("numeric", "categorical", "context")
VALUE_KEYS = ("negative", "unlabelled", "label_delay", "time_format", "time_unit")
SPLIT_KEYS = ("train", "validation", "test", "gap", "by", "seed")
SPEC_KEYS = (*COLUMN_ROLES, *LIST_ROLES, *VALUE_KEYS, "split", "read")
TIME_UNITS = ("s", "ms", "us", "ns", "min", "h", "d")

_ADDED: dict[str, Any] = {"label_date": None, "time_format": None, "time_unit": None, "read": {}}
"""Keys of a spec that version 0.1 did not have, with their defaults."""
_UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": DAY, "day": DAY, "days": DAY, "w": 7 * DAY}


def nearest(name: str, known: Iterable[str]) -> str:
    """Build the end of an error message: the nearest known name, and a shortened list of known names."""
    names = list(known)
    lower = {item.lower(): item for item in names}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    hint = f"did you mean {lower[close[0]]!r}? " if close else ""
    return f"{hint}known: {listed(names)}"


def parse_duration(value: object, key: str) -> float:
    """Convert a duration to seconds.

    Args:
        value: A number of seconds, or a text such as `"7d"`, `"12h"`, `"30min"`.
        key: The name of the value in error messages.

    Raises:
        InputError: If the value is no duration, is negative, or is too large.

    >>> parse_duration("7d", "label_delay")
    604800.0
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", str(value).lower())
        if match is None or (match[2] and match[2] not in _UNITS):
            raise InputError(f'{key} is {value!r}: give a number of seconds, or a number and a unit such as "7d", "12h" or "30min"')
        seconds = float(match[1]) * _UNITS[match[2] or "s"]
    if not 0 <= seconds < 1e10:
        raise InputError(f"{key} is {value!r}: give a finite number of seconds, 0 or more")
    return seconds


def parse_moment(text: str, key: str) -> float:
    """Convert an ISO date or datetime (UTC where no zone is given) to seconds since 1970-01-01.

    Raises:
        InputError: If the text is no date; the message names `key` of [split].
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"[split] {key} is {text!r}: give a share such as 0.6 or an ISO date such as 2024-05-31") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True)
class SplitSpec:
    """The borders of the split, as shares of the rows or as dates."""

    train: float | str = 0.6
    """Share of the labelled rows, or the date at which training ends (exclusive)."""
    validation: float | str = 0.2
    """Share, or date at which validation ends and the test begins. Without its `gap`, validation is halved by
    time."""
    test: float | str = 0.2
    """Share, or date at which the test ends (exclusive). With dates, "" is the end of the table."""
    gap: float | None = None
    """Seconds at the start of validation that serve as history only. None: the label delay."""
    by: Literal["time", "random"] = "time"
    """`time`: training ends before validation begins. `random`: whole entities (rows, where the table has no
    entity) are drawn."""
    seed: int = 0
    """Another number draws other entities; by time it has no effect."""

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"[split] seed is {self.seed!r}: give a whole number, 0 or more")
        if self.by not in ("time", "random"):
            raise InputError(f"[split] by is {self.by!r}: give time or random")
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        shares = {key: value for key, value in parts.items() if not isinstance(value, str)}
        if len(shares) == 3:
            if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
                raise InputError(f"[split] train, validation and test are {list(shares.values())}: give positive shares that sum to 1")
        elif shares and (set(shares) != {"test"} or self.test != SplitSpec.test):
            raise InputError("[split] mixes shares and dates: give train, validation and test all as shares or all as dates")
        else:
            ends = [parse_moment(str(value), key) for key, value in parts.items() if isinstance(value, str) and (value or key != "test")]
            if ends != sorted(set(ends)):
                raise InputError(
                    "[split] train, validation and test are not in time order: give the date at which each of them ends (exclusive)"
                )

    @property
    def by_dates(self) -> bool:
        """Whether the borders are dates rather than shares."""
        return isinstance(self.train, str)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> SplitSpec:
        """Check and convert a `[split]` table.

        Raises:
            InputError: If a key is unknown or its value cannot be used; the message names the key.
        """
        values: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in SPLIT_KEYS:
                raise InputError(f"unknown key {key!r} in [split]: {nearest(key, SPLIT_KEYS)}")
            if key in ("by", "seed"):
                values[key] = value
            elif key == "gap":
                values[key] = None if value is None else parse_duration(value, "[split] gap")
            elif isinstance(value, date):
                values[key] = value.isoformat()
            elif isinstance(value, str):
                values[key] = float(value) if re.fullmatch(r"0?\.\d+", value) else value
            elif isinstance(value, int | float) and not isinstance(value, bool):
                values[key] = float(value)
            else:
                raise InputError(f"[split] {key} is {value!r}: give a share such as 0.6 or an ISO date such as 2024-05-31")
        return cls(**values)


@dataclass(frozen=True)
class Spec:
    """The role of every column that is used. A column without a role is left out."""

    time: str | None
    """Column of the time: datetime, date, number, or text in one format; `date+time` joins two columns.

    None: the table has no time, and its rows are in order.
    """
    entity: str | None = None
    """Column of the card, customer or account whose history a row belongs to. None: rows have no history.

    Several columns that together name it are joined: `card1+addr1`.
    """
    label: str | None = None
    """Column of the class. None is allowed for scoring and for pretraining without labels."""
    negative: str | None = None
    """The label value, as text, of the legitimate class. None: the one with a usual name (0, false, legit,
    ...)."""
    unlabelled: str | None = None
    """The label value, as text, that means "unknown". Null always does."""
    label_date: str | None = None
    """Column of the date on which a fraud was reported. Without `label` it is the label: a row with a date is
    fraud, one without is legitimate, or unlabelled while it is younger than the label delay."""
    time_format: str | None = None
    """Format of times that are text, for example `%d/%m/%Y %H:%M`. None: what reads the whole column."""
    time_unit: str | None = None
    """Unit of a time that is a number (`TIME_UNITS`). None: seconds, or what the numbers can only be."""
    amount: str | None = None
    """Column of the amount. Negative amounts are refunds."""
    id: str | None = None
    """Column that identifies a row in the output. Its values must be distinct."""
    numeric: tuple[str, ...] = ()
    """Further numeric columns, used as they are."""
    categorical: tuple[str, ...] = ()
    """Columns with few distinct values."""
    context: tuple[str, ...] = ()
    """Columns (terminal, merchant) whose earlier, delayed labels become a feature."""
    label_delay: float = 7 * DAY
    """Seconds after which the label of a row is known."""
    split: SplitSpec = field(default_factory=SplitSpec)
    """The split."""
    read: ReadOptions = field(default_factory=ReadOptions)
    """How a text file is read."""

    def columns(self) -> list[str]:
        """List every column that is used, each once, in a fixed order; joined ones by their joined name."""
        single = [self.entity, self.time, self.label, self.label_date, self.amount, self.id]
        return list(dict.fromkeys([c for c in single if c is not None] + [*self.numeric, *self.categorical, *self.context]))

    def role(self, column: str) -> str:
        """Return the first role of a column that is used."""
        return next(role for role in (*COLUMN_ROLES, *LIST_ROLES) if column == (held := getattr(self, role)) or column in (held or ()))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON-serializable dict with the keys of a spec file."""
        out: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("split", "read")}
        for key in LIST_ROLES:
            out[key] = list(out[key])
        out["split"] = {item.name: getattr(self.split, item.name) for item in fields(self.split)}
        out["read"] = self.read.to_dict()
        # A spec without them reads as one of an earlier version does, and has its fingerprint.
        for key, default in _ADDED.items():
            if out[key] == default:
                del out[key]
        for key, default in (("by", "time"), ("seed", 0)):
            if out["split"][key] == default:
                del out["split"][key]
        return out

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Spec:
        """Check a dict with the keys of a spec file and convert it.

        Raises:
            InputError: If a key is unknown, a value has the wrong type, no time column is named, or a column
                has two roles that exclude each other.
        """
        values = normalise(raw)
        if "time" not in values:
            raise InputError(
                "no time column is named: name it with --time (or `time` in the spec file); --time none is for a table without"
            )
        values["split"] = SplitSpec.from_dict(values.get("split", {}))
        values["read"] = ReadOptions.from_dict(values.get("read", {}))
        spec = cls(**values)
        taken: dict[str, str] = {}
        for role in COLUMN_ROLES:
            column = getattr(spec, role)
            if column is not None and taken.setdefault(column, role) != role:
                raise InputError(f"column {column!r} has two roles, {taken[column]} and {role}: name another column with --{role}")
        for role in LIST_ROLES:
            for column in getattr(spec, role):
                if column == spec.label:
                    raise InputError(f"column {column!r} is the label and cannot be {role} too: remove it from --{role}")
        return spec


def normalise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys and types of a spec given as a dict, and convert its values.

    Lists become tuples without duplicates, durations become seconds, and `split` stays a dict. The text
    `"none"` (or an empty text) says that no column has the role. An absent key is different: that role is
    inferred.

    Raises:
        InputError: If a key is unknown or a value has the wrong type.
    """
    out: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in SPEC_KEYS:
            raise InputError(f"unknown role {key!r}: {nearest(key, SPEC_KEYS)}")
        if key == "split":
            if not isinstance(value, Mapping):
                raise InputError("split must be a table: [split] with train, validation, test, gap, by, seed")
            out[key] = dict(value)
        elif key == "read":
            if not isinstance(value, Mapping):
                raise InputError("read must be a table: [read] with encoding, separator, decimal, thousands, null_values")
            out[key] = dict(value)
        elif key == "time_unit" and value is not None and value not in TIME_UNITS:
            raise InputError(f"time_unit is {value!r}: give one of {', '.join(TIME_UNITS)}")
        elif key == "label_delay":
            out[key] = parse_duration(value, key)
        elif key in LIST_ROLES:
            items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
            if isinstance(items, list | tuple):
                items = [_joined(item) if key == "context" else item for item in items]
            if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
                raise InputError(f"{key} is {value!r}: give a list of column names")
            out[key] = tuple(dict.fromkeys(item for item in items if item not in ("", "none")))
        elif key in ("negative", "unlabelled"):
            out[key] = None if value is None else label_text(value)
        elif value is None or (isinstance(value, str) and value in ("", "none")):
            out[key] = None
        elif isinstance(_joined(value) if key in ("entity", "time") else value, str):
            out[key] = _joined(value)
        else:
            raise InputError(f"{key} is {value!r}: give the name of one column")
    return out


def _joined(value: Any) -> Any:
    """The joined name of a list of columns; any other value as it is."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return JOINED.join(value)
    return value


def label_text(value: object) -> str:
    """Convert a label value to text: 1, 1.0 and "1" give the same text, as do true and "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def read_spec_file(path: str | Path) -> dict[str, Any]:
    """Read and normalise a spec file (TOML).

    Raises:
        InputError: If the file cannot be read or a key is wrong; the message names the file and the key.
    """
    file = Path(path)
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"spec file {file} does not exist: check --spec") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"spec file {file} can't be read as TOML ({reason_of(error)}): correct it, or check --spec") from error
    try:
        values = normalise(raw)
        SplitSpec.from_dict(values.get("split", {}))
        ReadOptions.from_dict(values.get("read", {}))
    except InputError as error:
        raise InputError(f"spec file {file}: {error}") from error
    return values
