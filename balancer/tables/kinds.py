"""What the name of a file says that it holds; found without polars, so that a wrong name is found at once."""

from __future__ import annotations

from pathlib import Path

from balancer.errors import InputError

STORE_FILE = "store.json"
"""The file that makes a folder a store of `balancer prepare` (`balancer.data.sharded`) and no table."""
WORK, PLAN_FILE = "work", "plan.json"
"""Folder of a preparation, in the folder of the store, and the file in it with the plan of the store."""
PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".psv", ".tab")
JSON = (".jsonl", ".ndjson")
PLAIN = (".txt", ".dat", ".data", "")
"""Endings that text files of any kind have; in a folder they count only where there is nothing else."""
_WORKBOOK, _ARCHIVE = ("a spreadsheet", "save the table as CSV"), ("an archive", "unpack it, and give the table that is in it")
_PACKED, _DATABASE = (
    ("compressed in a way that is not read", "unpack it, or compress it with gzip"),
    ("a database", "export the table as CSV"),
)
_STORED = ("a format that is not read", "write the table as Parquet or CSV")
_OTHERS = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb", ".ods"), _WORKBOOK),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".bz2", ".xz", ".lz4", ".br", ".z"), _PACKED),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".mdb", ".accdb", ".duckdb"), _DATABASE),
    **dict.fromkeys(
        (".pkl", ".pickle", ".feather", ".arrow", ".ipc", ".avro", ".orc", ".h5", ".hdf5", ".rds", ".rdata", ".sav", ".dta", ".sas7bdat"),
        _STORED,
    ),
}
"""What files of other endings are, and what to do with them."""


def is_store(source: object) -> bool:
    """Whether a table is a folder that `balancer prepare` finished."""
    return isinstance(source, str | Path) and (Path(source) / STORE_FILE).is_file()


def is_begun_store(source: Path) -> bool:
    """Whether a folder is a store that `balancer prepare` has not finished."""
    return not is_store(source) and (source / WORK / PLAN_FILE).is_file()


def kind(path: Path) -> str | None:
    """What a file's name says that it holds: `parquet`, `csv`, `json`, `plain`, or None for anything else."""
    ending = path.suffix.lower()
    if ending in (".gz", ".zst"):
        inner = Path(path.stem).suffix.lower()
        if inner in _OTHERS:
            return None
        return next((name for name, endings in _KINDS.items() if inner in endings and name != "parquet"), "plain")
    return next((name for name, endings in _KINDS.items() if ending in endings), None)


_KINDS = {"parquet": PARQUET, "csv": CSV, "json": (*JSON, ".json"), "plain": PLAIN}


def known_kind(path: Path) -> str:
    """As `kind`.

    Raises:
        InputError: If the file is of an unknown kind.
    """
    found = kind(path)
    if found is None:
        ending = path.suffix.lower()
        ending = Path(path.stem).suffix.lower() + ending if ending in (".gz", ".zst") else ending
        what, remedy = _OTHERS.get(next((f".{part}" for part in ending.split(".") if f".{part}" in _OTHERS), ""), ("", ""))
        if what:
            raise InputError(f"{path} is {what} ({ending}), not a table: {remedy}")
        raise InputError(
            f"{path} is of an unknown kind ({ending!r}): give a .parquet or .csv file, JSON lines, a folder of such files, or a Delta table"
        )
    return found
