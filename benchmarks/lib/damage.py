"""Small well-formed tables, and the ways in which files of tables get damaged.

Everything is drawn from a generator of NumPy, so that a seed gives the same files again.
"""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROWS = 240
KINDS = ("csv", "tsv", "semicolon.csv", "csv.gz", "jsonl", "parquet", "folder of parquet", "folder of csv")
"""Kinds of files. `semicolon.csv` is Latin-1 with decimal commas and day-first dates."""
NULL_WORDS = ("NA", "N/A", "nan", "NaN", "null", "None", "\\N", "-", "--", "?", "", " ", "#N/A", "missing", "NULL")
NUMBERS = ("1e308", "1e400", "-1e400", "inf", "-Infinity", "NaN", "0", "-0", "1,234.5", "1.234,5", "$12", "12 €", "1e", "0x1F", "12_000")
MORE_NUMBERS = ("99999999999999999999", "1.7976931348623157e308", "-5", "+5", "5-", "(5)", "٣", "½", "1/2", "12%", "1 234", "1'234", "٫5")
DATES = ("31/12/2024 10:00", "12/31/2024", "2024-13-01", "20240131", "1706700000", "1706700000000", "yesterday", "2024-01-31T10:00:00Z")
MORE_DATES = ("2024-01-31 10:00:00+05:30", "31.01.2024", "Jan 31 2024", "0000-00-00", "9999-12-31", "1900-01-00", "24:61:00", "-1", "1e18")
TEXTS = (
    "a,b",
    'say "hi"',
    "line\nbreak",
    "tab\tbed",
    "é",
    "e\u0301",
    "\u200b",
    "\x00",
    "名前",
    "x" * 5000,
    "=1+1",
    "#",
    ";",
    "'",
    "\ufeff",
    "null",
)
NAMES = (
    "",
    " ",
    "amount",
    "time",
    "hour",
    "weekday",
    "amount_log",
    "score",
    "decision",
    "class",
    "a b",
    "é",
    "card_id",
    "KEY",
    "x" * 300,
    "1",
    "a+b",
)

Frame = pl.DataFrame
Generator = np.random.Generator


def table(rng: Generator) -> Frame:
    """A table of card payments over 400 days, with about 15 % fraud."""
    time = np.sort(rng.uniform(1.6e9, 1.6e9 + 400 * 86_400, ROWS)).astype(np.int64)
    fraud = rng.random(ROWS) < 0.15
    amount = np.round(np.exp(rng.normal(3 + fraud, 1)), 2)
    columns = {
        "tx_id": pl.Series(np.arange(ROWS) + 1000),
        "card_id": pl.Series([f"c{number}" for number in rng.integers(0, 30, ROWS)]),
        "time": pl.Series(time * 1_000_000).cast(pl.Datetime("us")),
        "amount": pl.Series(amount),
        "mcc": pl.Series(rng.choice([5411, 5812, 6011, 7995], ROWS)),
        "country": pl.Series(rng.choice(["FR", "DE", "CÔTE"], ROWS)),
        "balance": pl.Series(np.where(rng.random(ROWS) < 0.1, np.nan, rng.normal(0, 100, ROWS).round(1))).fill_nan(None),
        "online": pl.Series(rng.random(ROWS) < 0.5),
        "is_fraud": pl.Series(fraud.astype(np.int64)),
    }
    return pl.DataFrame(columns)


def as_text(frame: Frame, pattern: str = "%Y-%m-%d %H:%M:%S") -> Frame:
    """The table with every column as text."""
    times = [pl.col(name).dt.strftime(pattern) for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime)]
    return frame.with_columns(times).select(pl.all().cast(pl.String, strict=False))


# Changes of a table before it is written.


def _cells(words: tuple[str, ...], column: str | None = None) -> Callable[[Frame, Generator], Frame]:
    """Write words into some cells of a column, which becomes text."""

    def change(frame: Frame, rng: Generator) -> Frame:
        if not frame.width or not frame.height:
            return frame
        name = column if column in frame.columns else str(rng.choice(frame.columns))
        values = as_text(frame.select(name))[name].to_list()
        some = rng.integers(0, len(values), int(rng.choice([1, 1, 2, 10, max(1, len(values) // 2)])))
        word = str(rng.choice(words))
        for place in some:
            values[place] = word if rng.random() < 0.7 else str(rng.choice(words))
        return frame.with_columns(pl.Series(name, values, dtype=pl.String))

    return change


def _column(make: Callable[[pl.Series, Generator], pl.Series]) -> Callable[[Frame, Generator], Frame]:
    """Replace a column."""

    def change(frame: Frame, rng: Generator) -> Frame:
        if not frame.width:
            return frame
        name = str(rng.choice(frame.columns))
        return frame.with_columns(make(frame[name], rng).alias(name))

    return change


def _typed(values: pl.Series, rng: Generator) -> pl.Series:
    types = (
        pl.String,
        pl.Int32,
        pl.Float32,
        pl.Float64,
        pl.Boolean,
        pl.Categorical,
        pl.Int8,
        pl.UInt64,
        pl.Date,
        pl.Decimal(20, 2),
        pl.Binary,
        pl.Null,
    )
    dtype = types[int(rng.integers(len(types)))]
    try:
        return values.cast(dtype, strict=False)
    except pl.exceptions.PolarsError:
        return values


def _nested(values: pl.Series, rng: Generator) -> pl.Series:
    frame = values.to_frame("v")
    return frame.select(pl.concat_list("v", "v") if rng.random() < 0.5 else pl.struct("v")).to_series()


def _renamed(frame: Frame, rng: Generator) -> Frame:
    if not frame.width:
        return frame
    old, new = str(rng.choice(frame.columns)), str(rng.choice(NAMES))
    return frame if new in frame.columns else frame.rename({old: new})


def _added(frame: Frame, rng: Generator) -> Frame:
    name = str(rng.choice(NAMES))
    return frame if name in frame.columns else frame.with_columns(pl.Series(name, rng.normal(size=frame.height)))


def _labels(frame: Frame, rng: Generator) -> Frame:
    if "is_fraud" not in frame.columns:
        return frame
    size = frame.height
    choices: list[list[Any]] = [
        [0] * size,
        [1] * size,
        [0.5] * size,
        rng.choice([0, 1, 2], size).tolist(),
        rng.choice(["yes", "no"], size).tolist(),
        rng.choice(["a", "b", "c"], size).tolist(),
        rng.choice([-1, 1], size).tolist(),
        [None] * size,
        rng.choice(np.array([None, 0, 1], dtype=object), size).tolist(),
        list(range(size)),
        rng.normal(size=size).tolist(),
    ]
    return frame.with_columns(pl.Series("is_fraud", choices[int(rng.integers(len(choices)))]))


def _times(frame: Frame, rng: Generator) -> Frame:
    if frame.schema.get("time") != pl.Datetime("us"):
        return frame
    patterns = (
        "%d/%m/%Y",
        "%m/%d/%Y %H:%M",
        "%Y%m%d",
        "%d.%m.%Y %H:%M:%S",
        "%H:%M:%S",
        "%b %d %Y",
        "%Y-%m-%dT%H:%M:%SZ",
        "%s",
        "%Y-%m-%d",
        "%d-%m-%y",
    )
    values = frame["time"]
    choice = int(rng.integers(len(patterns) + 6))
    if choice < len(patterns):
        return frame.with_columns(values.dt.strftime(patterns[choice]).alias("time"))
    numbers = values.dt.epoch("s").cast(pl.Float64)
    made = [numbers, numbers * 1000, -numbers, numbers * 0, numbers / 86_400, numbers * 1e12][choice - len(patterns)]
    return frame.with_columns(made.alias("time"))


def _fewer_rows(frame: Frame, rng: Generator) -> Frame:
    return frame.head(int(rng.choice([0, 1, 2, 5, 30])))


CHANGES: dict[str, Callable[[Frame, Generator], Frame]] = {
    "null words": _cells(NULL_WORDS),
    "odd numbers": _cells((*NUMBERS, *MORE_NUMBERS)),
    "odd amounts": _cells((*NUMBERS, *MORE_NUMBERS), "amount"),
    "odd dates": _cells((*DATES, *MORE_DATES), "time"),
    "odd text": _cells(TEXTS),
    "odd labels": _cells(("2", "maybe", "TRUE", "yes", "0.5", ""), "is_fraud"),
    "another type": _column(_typed),
    "nested": _column(_nested),
    "all null": _column(lambda values, _: pl.Series([None] * len(values), dtype=values.dtype)),
    "constant": _column(lambda values, _: values.head(1).new_from_index(0, len(values)) if len(values) else values),
    "renamed": _renamed,
    "column added": _added,
    "column dropped": lambda frame, rng: frame.drop(str(rng.choice(frame.columns))) if frame.width else frame,
    "labels": _labels,
    "times": _times,
    "fewer rows": _fewer_rows,
    "shuffled": lambda frame, rng: frame.sample(fraction=1, shuffle=True, seed=int(rng.integers(1 << 30))),
    "rows twice": lambda frame, rng: pl.concat([frame, frame.head(int(rng.integers(0, 60)))]),
    "none": lambda frame, _: frame,
}


# Changes of the bytes of a file.


def _flipped(content: bytes, rng: Generator) -> bytes:
    data = bytearray(content)
    for place in rng.integers(0, len(data), int(rng.choice([1, 3, 30]))):
        data[place] = int(rng.integers(256))
    return bytes(data)


def _line(change: Callable[[bytes, Generator], bytes]) -> Callable[[bytes, Generator], bytes]:
    """Change one line."""

    def apply(content: bytes, rng: Generator) -> bytes:
        lines = content.split(b"\n")
        place = int(rng.integers(len(lines)))
        lines[place] = change(lines[place], rng)
        return b"\n".join(lines)

    return apply


def _reencoded(content: bytes, rng: Generator) -> bytes:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    return text.encode(str(rng.choice(["utf-16", "utf-8-sig", "latin-1", "cp1252", "utf-16-le", "cp037"])), errors="replace")


BYTES: dict[str, Callable[[bytes, Generator], bytes]] = {
    "bytes flipped": _flipped,
    "truncated": lambda content, rng: content[: int(rng.integers(len(content)))],
    "start lost": lambda content, rng: content[int(rng.integers(len(content))) :],
    "empty": lambda content, rng: b"",
    "blank": lambda content, rng: b"\n" * int(rng.integers(1, 9)),
    "noise inserted": lambda content, rng: content[:100] + rng.bytes(40) + content[100:],
    "noise": lambda content, rng: rng.bytes(2000),
    "null bytes": lambda content, rng: content + b"\0" * 100,
    "twice": lambda content, rng: content + content,
    "line cut": _line(lambda line, rng: line[: int(rng.integers(len(line) + 1))]),
    "field added": _line(lambda line, rng: line + b",1" * int(rng.integers(1, 4))),
    "quote opened": _line(lambda line, rng: b'"' + line),
    "line blank": _line(lambda line, rng: line + b"\n" * int(rng.integers(1, 4))),
    "comment": lambda content, rng: b"# exported on Monday\n" + content,
    "footer": lambda content, rng: content.rstrip() + b"\nTotal,240\n",
    "header lost": lambda content, rng: content.partition(b"\n")[2],
    "line ends": lambda content, rng: content.replace(b"\n", [b"\r\n", b"\r", b"\n\n"][int(rng.integers(3))]),
    "another encoding": _reencoded,
    "another separator": lambda content, rng: content.replace(b",", [b"|", b"\t", b" ", b", ", b"^"][int(rng.integers(5))]),
}


def write(frame: Frame, kind: str, folder: Path, rng: Generator) -> Path:
    """Write a table as a file or a folder of the kind.

    Args:
        frame: The table. What the kind can't hold becomes text.
        kind: One of `KINDS`.
        folder: Where to write.
        rng: Draws how a folder is divided.

    Returns:
        The file or folder.
    """
    if kind.startswith("folder"):
        place = folder / "days"
        place.mkdir()
        ending = kind.rpartition(" ")[2]
        size = max(1, frame.height // 4)
        for number, part in enumerate(frame.iter_slices(size)):
            changed = part
            if rng.random() < 0.15:
                name = ("another type", "renamed", "column added", "column dropped", "fewer rows", "nested")[int(rng.integers(6))]
                with contextlib.suppress(pl.exceptions.PolarsError):
                    changed = CHANGES[name](part, rng)
            (place / f"2024-01-{number + 1:02}.{ending}").write_bytes(_content(changed, ending))
        return place
    path = folder / f"table.{kind.removeprefix('semicolon.')}"
    path.write_bytes(_content(frame, kind))
    return path


def _content(frame: Frame, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "parquet":
        frame.write_parquet(buffer)
    elif kind == "jsonl":
        flat = [name for name, dtype in frame.schema.items() if dtype in (pl.Binary, pl.Object)]
        frame.drop(flat).write_ndjson(buffer)
    else:
        flat = [name for name, dtype in frame.schema.items() if dtype.is_nested() or dtype in (pl.Binary, pl.Object)]
        text = as_text(frame.drop(flat), "%d/%m/%Y %H:%M" if kind == "semicolon.csv" else "%Y-%m-%d %H:%M:%S")
        if kind == "semicolon.csv":
            numbers = [name for name, dtype in frame.drop(flat).schema.items() if dtype.is_float()]
            text = text.with_columns(pl.col(name).str.replace(".", ",", literal=True) for name in numbers)
        text.write_csv(buffer, separator={"tsv": "\t", "semicolon.csv": ";"}.get(kind, ","))
    content = buffer.getvalue()
    if kind == "semicolon.csv":
        content = content.decode().encode("latin-1", errors="replace")
    return gzip.compress(content, mtime=0) if kind == "csv.gz" else content


def damaged(seed: int, number: int, folder: Path) -> tuple[Path, list[str]]:
    """Write one damaged table.

    Args:
        seed: Seed of all tables.
        number: Which of them.
        folder: An empty folder to write to.

    Returns:
        The file or folder, and what was done to it.
    """
    rng = np.random.default_rng([seed, number])
    kind = str(rng.choice(KINDS))
    frame, done = table(rng), [kind]
    for _ in range(int(rng.choice([0, 1, 1, 2, 3]))):
        name = str(rng.choice(list(CHANGES)))
        with contextlib.suppress(pl.exceptions.PolarsError):  # what a nested column can't have
            frame = CHANGES[name](frame, rng)
            done.append(name)
    path = write(frame, kind, folder, rng)
    if rng.random() < 0.5:
        name = str(rng.choice(list(BYTES)))
        files = [path] if path.is_file() else sorted(path.iterdir())
        if files:
            file = files[int(rng.integers(len(files)))]
            content = file.read_bytes()
            inside = kind == "csv.gz" and rng.random() < 0.5
            content = gzip.decompress(content) if inside else content
            content = BYTES[name](content, rng) if content else content
            file.write_bytes(gzip.compress(content, mtime=0) if inside else content)
            done.append(name)
    return path, done
