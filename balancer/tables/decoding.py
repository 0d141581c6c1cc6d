"""The text of a file as UTF-8: decompressed, decoded, with `\\n` between lines.

What is special: a file that is UTF-8 already is used as it is, after one pass that proves it. Otherwise a
temporary copy is written, a part at a time. UTF-8 is tried first, because other text is almost never valid
UTF-8; what it is otherwise is said in a note.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from balancer.errors import CorruptFileError, InputError
from balancer.tables.magic import GZIP, ZSTD, held
from balancer.tables.temporary import TemporaryCopy, written

COMPRESSED = (".gz", ".zst")
_CHUNK_BYTES = 1 << 22
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Text:
    """A text file as UTF-8."""

    path: Path
    """The file itself, or a temporary copy."""
    encoding: str
    """The encoding of the original."""
    copy: TemporaryCopy | None
    """Keeps the temporary copy."""


def as_utf8(path: Path, encoding: str | None) -> Text:
    """Decompress and decode a text file.

    Args:
        path: The file; compressed if its name ends in `.gz` or `.zst`.
        encoding: Its encoding; None finds it.

    Raises:
        InputError: If the file is empty, is no text, or is not in `encoding`.
        CorruptFileError: If it is damaged, or of another format than its name says.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: it has no header and no rows")
    copy = _decompressed(path)
    plain = path if copy is None else copy.path
    with plain.open("rb") as file:
        head = file.read(1 << 16)
    if not head:
        raise InputError(f"{path} is empty: it has no header and no rows")
    _check_format(path, head)
    found = _named(path, head, plain, encoding) if encoding is not None else _found(path, head, plain)
    old_mac = b"\r" in head and b"\n" not in head.replace(b"\x00", b"")
    if found == "utf-8" and not old_mac:
        return Text(plain, found, copy)
    decoded = TemporaryCopy(".csv")
    try:
        _decode(plain, found, decoded.path, old_mac)
    except UnicodeError as error:
        if encoding is not None:
            raise InputError(f"{path} is not in the --encoding {encoding}: give another --encoding, or leave it out to find it") from error
        raise CorruptFileError(
            f"{path} is no text in UTF-8, UTF-16 or Latin-1: name its --encoding, or give a CSV or Parquet file"
        ) from error
    return Text(decoded.path, found, decoded)


def _decompressed(path: Path) -> TemporaryCopy | None:
    kind = path.suffix.lower()
    if kind not in COMPRESSED:
        return None
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith(GZIP if kind == ".gz" else ZSTD):
        raise CorruptFileError(f"{path} is not compressed although its name ends in {kind}: rename it without {kind}, or write it again")
    copy = TemporaryCopy(".csv")
    damaged = f"{path} can't be decompressed, it is damaged or truncated: write it again"
    if kind == ".gz":
        with gzip.open(path, "rb") as source, written(), copy.path.open("wb") as target:
            while chunk := _part(source, damaged):
                target.write(chunk)
        return copy
    try:
        # The standard library of Python 3.11 can't read zstd; polars can, for UTF-8.
        pl.scan_lines(path).sink_csv(copy.path, include_header=False, quote_style="never")
    except (pl.exceptions.PolarsError, OSError) as error:
        if "utf" in str(error).lower():
            raise InputError(f"{path} is not UTF-8, which .zst files must be: compress it with gzip instead") from error
        raise CorruptFileError(damaged) from error
    return copy


def _part(source: gzip.GzipFile | BinaryIO, damaged: str) -> bytes:
    try:
        return source.read(_CHUNK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptFileError(damaged) from error


def _check_format(path: Path, head: bytes) -> None:
    found = held(head)
    if found is not None:
        what, remedy = found
        raise CorruptFileError(f"{path} is {what}, not the text that its name says: {remedy}")


def _found(path: Path, head: bytes, plain: Path) -> str:
    for mark, name in _MARKS:
        if head.startswith(mark):
            if name == "utf-8":
                _check_utf8_all(path, plain)
            return name
    zeros = head.count(0)
    if zeros:
        if zeros >= 0.3 * len(head):
            name = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
            if min(head[::2].count(0), head[1::2].count(0)) <= 0.05 * len(head):
                return name
        raise zero_byte(path, head)
    wrong = _not_utf8(plain)
    if wrong is None:
        return "utf-8"
    line, byte, good, bad, controls = wrong
    if good > 10 * bad:
        raise CorruptFileError(
            f"{path}: line {line} holds the byte 0x{byte:02x}, which is not UTF-8, although the other lines are: "
            "correct the line, or name the --encoding"
        )
    if controls:
        raise CorruptFileError(f"{path} is no text in UTF-8, UTF-16 or Latin-1: name its --encoding, or give a CSV or Parquet file")
    return _single_byte(plain)


def zero_byte(path: Path, head: bytes) -> CorruptFileError:
    """The error of a text file whose first bytes hold a zero byte (NUL)."""
    line = head.count(b"\n", 0, head.index(0)) + 1
    if any(0 < byte < 9 or 13 < byte < 26 for byte in head):
        return CorruptFileError(f"{path} is no text file, it holds binary data: give a CSV, JSON or Parquet file, or name its --encoding")
    return CorruptFileError(
        f"{path}: line {line} holds a zero byte (NUL), which no text has: remove such bytes, or write the file again, or name its --encoding"
    )


def _check_utf8_all(path: Path, plain: Path) -> None:
    wrong = _not_utf8(plain)
    if wrong is not None:
        raise CorruptFileError(f"{path}: line {wrong[0]} holds the byte 0x{wrong[1]:02x}, which is not UTF-8: correct the line")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _not_utf8(path: Path) -> tuple[int, int, int, int, int] | None:
    """None where a file is UTF-8; or the line and value of the first wrong byte, and counts over the file.

    The counts are of characters of several bytes, wrong bytes, and control characters that no text has.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    for chunk in _chunks(path):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            return _count_wrong(path, position - pending + error.start)
        position += len(chunk)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return _count_wrong(path, position - len(decoder.getstate()[0]))
    return None


def _count_wrong(path: Path, first: int) -> tuple[int, int, int, int, int]:
    line, byte, position = 1, 0, 0
    good = bad = controls = 0
    for chunk in _chunks(path):
        if position <= first < position + len(chunk):
            line += chunk.count(b"\n", 0, first - position)
            byte = chunk[first - position]
        elif position < first:
            line += chunk.count(b"\n")
        position += len(chunk)
        text = chunk.decode("utf-8", errors="surrogateescape")
        escaped = sum(1 for character in text if "\udc80" <= character <= "\udcff") if not chunk.isascii() else 0
        bad += escaped
        good += sum(1 for character in text if character > "\x7f") - escaped if not chunk.isascii() else 0
        controls += sum(chunk.count(control) for control in (*range(1, 9), *range(14, 26), *range(28, 32)))
    return line, byte, good, bad, controls


def _single_byte(path: Path) -> str:
    """Latin-1, or Windows-1252 where the file has bytes that Latin-1 does not print."""
    extra = bytes(range(0x80, 0xA0))
    return "cp1252" if any(len(chunk.translate(None, extra)) != len(chunk) for chunk in _chunks(path)) else "latin-1"


def _named(path: Path, head: bytes, plain: Path, encoding: str) -> str:
    """The encoding that the user gives, checked against what can be seen."""
    name = codecs.lookup(encoding).name
    if name in ("utf-8", "utf-8-sig", "ascii"):
        wrong = _not_utf8(plain)
        if wrong is not None:
            raise InputError(
                f"{path} is not in the --encoding {encoding}: line {wrong[0]} holds the byte 0x{wrong[1]:02x}; "
                "give another --encoding, or leave it out to find it"
            )
        return "utf-8"
    if name.startswith(("utf-16", "utf-32")) != (b"\x00" in head):
        raise InputError(f"{path} is not in the --encoding {encoding}: give another --encoding, or leave it out to find it")
    return {"iso8859-1": "latin-1"}.get(name, name)


def _decode(plain: Path, encoding: str, target: Path, old_mac: bool) -> None:
    # "(*chunks, b'')" would hold the whole file, so the end is decoded after the loop.
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        with written(), target.open("wb") as file:
            for chunk in _chunks(plain):
                text = decoder.decode(chunk)
                file.write((text.replace("\r", "\n") if old_mac else text).removeprefix("\ufeff").encode())
            file.write(decoder.decode(b"", final=True).encode())
    except (UnicodeError, InputError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"--encoding {encoding} is no encoding of text: give a name such as utf-8, latin-1 or utf-16") from error
