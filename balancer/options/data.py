"""Options that name a table and the roles of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from balancer.options.checks import check_whole
from balancer.options.flags import Flag, Options
from balancer.tables.options import ReadOptions

ROLES = (
    *("entity", "time", "time_format", "time_unit", "label", "label_date", "negative", "unlabelled", "amount", "id"),
    *("numeric", "categorical", "context", "label_delay", "gap"),
)
"""Fields of :class:`TableOptions` that are keys of a spec (:class:`balancer.data.spec.Spec`)."""
TABLE_KINDS = "Parquet, CSV or other text, JSON lines, text also as .gz or .zst, a folder of such files, or a Delta table"
"""What a table can be, for the help."""
READING = ("encoding", "separator", "decimal", "thousands", "null_values")
"""Fields of :class:`ReadingOptions`, keys of the table `[read]` of a spec."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(Options):
    """How text files (CSV) are read.

    What is not given is found in the file, and a note says what was found.
    """

    HEADING: ClassVar[str] = "Reading text files"

    encoding: Annotated[str | None, Flag("Character encoding, such as utf-8, latin-1 or utf-16.", metavar="NAME")] = None
    separator: Annotated[str | None, Flag("Character between fields, or tab.", metavar="CHAR")] = None
    decimal: Annotated[str | None, Flag("Decimal mark of numbers: . or a comma.", metavar="CHAR")] = None
    thousands: Annotated[str | None, Flag("Mark between groups of three digits: , . ' or space.", metavar="CHAR")] = None
    null_values: Annotated[tuple[str, ...] | None, "Texts that mean missing, besides the usual ones such as NA, N/A, nan, null and -."] = (
        None
    )

    def read_options(self) -> ReadOptions:
        """What was given.

        Raises:
            InputError: A value can't be used; the message names the flag.
        """
        return ReadOptions(**{name: getattr(self, name) for name in READING})


@dataclass(frozen=True, kw_only=True)
class TableOptions(ReadingOptions):
    """The table and the roles of its columns.

    A role that is not given is taken from the spec file, or found by the column's name and type.
    """

    HEADING: ClassVar[str] = "Data"

    dataset: Annotated[Path, Flag(f"Table of transactions: {TABLE_KINDS}.", metavar="PATH", unless="resume")]
    spec: Annotated[Path | None, Flag("TOML file with the roles of the columns and the time split; flags override it.", metavar="FILE")] = (
        None
    )
    entity: Annotated[
        str | None,
        Flag(
            "Column that names the card, account or customer; its rows form one history. Several columns are joined: card1+addr1.",
            metavar="COLUMN",
        ),
    ] = None
    time: Annotated[
        str | None,
        Flag(
            "Column with the time: a datetime, text, or a number. date+time joins two columns; none takes the rows in their order.",
            metavar="COLUMN",
        ),
    ] = None
    time_format: Annotated[
        str | None, Flag("Format of times that are text, such as %d/%m/%Y %H:%M.", metavar="FORMAT", default="what reads the whole column")
    ] = None
    time_unit: Annotated[
        Literal["s", "ms", "us", "ns", "min", "h", "d"] | None,
        Flag("Unit of times that are numbers.", default="s, or what the numbers can only be"),
    ] = None
    label: Annotated[
        str | None, Flag("Column with the class: 0 or 1, yes or no, or class names; null means unlabelled.", metavar="COLUMN")
    ] = None
    label_date: Annotated[
        str | None,
        Flag("Column with the date on which a fraud was reported; without --label, rows with a date are the frauds.", metavar="COLUMN"),
    ] = None
    negative: Annotated[str | None, Flag("Value of the label column that means legitimate.", metavar="VALUE")] = None
    unlabelled: Annotated[str | None, Flag("Value of the label column that means unlabelled.", metavar="VALUE")] = None
    amount: Annotated[str | None, Flag("Column with the amount; negative amounts are refunds.", metavar="COLUMN")] = None
    id: Annotated[str | None, Flag("Column with the transaction ID.", metavar="COLUMN")] = None
    numeric: Annotated[tuple[str, ...] | None, "Further numeric columns to use as features."] = None
    categorical: Annotated[tuple[str, ...] | None, "Categorical columns to use as features."] = None
    context: Annotated[
        tuple[str, ...] | None,
        "Columns such as terminal or merchant whose earlier, already known labels become features.",
    ] = None
    label_delay: Annotated[
        str | None,
        Flag("Time until the label of a transaction is known: 7d, 12h, or seconds.", metavar="TIME", default="7d, or the spec file's"),
    ] = None
    gap: Annotated[
        str | None,
        Flag("Time left out between the training and the validation rows.", metavar="TIME", default="the label delay"),
    ] = None
    split: Annotated[
        Literal["time", "random"] | None,
        Flag("Training before validation before test, or entities (rows, without an entity) at random.", default="time"),
    ] = None
    bad_rows: Annotated[
        Literal["error", "drop"],
        "What to do with rows that can't be used, such as an amount that is not a number: stop, or drop and count them.",
    ] = "error"

    def role_overrides(self) -> dict[str, Any]:
        """The roles that were given, by key of a spec."""
        given = {name: getattr(self, name) for name in ROLES if getattr(self, name) is not None}
        reading = self.read_options().to_dict()
        return given | ({"by": self.split} if self.split else {}) | ({"read": reading} if reading else {})


@dataclass(frozen=True, kw_only=True)
class DataOptions(TableOptions):
    """The table and the roles of its columns.

    A role that is not given is taken from the spec file, or found by the column's name and type.
    """

    HEADING: ClassVar[str] = "Data"

    hash_buckets: Annotated[
        int,
        "Codes per categorical column that rare values (fewer than 5 training rows) and unseen values share by hashing; "
        "with 0 all unseen values have one code.",
    ] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "hash_buckets", least=0, most=1_000_000)
