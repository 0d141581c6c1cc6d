"""What the name of a file says that it holds; found without polars, so that a wrong name is found at once."""

from __future__ import annotations

from pathlib import Path

from balancer.errors import InputError

PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".psv", ".tab")
JSON = (".jsonl", ".ndjson")
PLAIN = (".txt", ".dat", ".data", "")
"""Endings that text files of any kind have; in a folder they count only where there is nothing else."""
_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods")


def kind(path: Path) -> str | None:
    """What a file's name says that it holds: `parquet`, `csv`, `json`, `plain`, or None for anything else."""
    ending = path.suffix.lower()
    if ending in (".gz", ".zst"):
        inner = Path(path.stem).suffix.lower()
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
        remedy = "give a .parquet or .csv file, JSON lines, a folder of such files, or a Delta table"
        raise InputError(
            f"{path} is of an unknown kind ({path.suffix!r}): {'save the table as CSV' if path.suffix.lower() in _SPREADSHEETS else remedy}"
        )
    return found
