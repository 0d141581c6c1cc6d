"""What a file holds by its first bytes, where that is not what its name says."""

from __future__ import annotations

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
PARQUET = b"PAR1"
_FORMATS = (
    (PARQUET, "a Parquet file", "rename it to end in .parquet"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save the table as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the table as CSV"),
    (GZIP, "compressed with gzip", "rename it to end in .gz"),
    (ZSTD, "compressed with zstd", "rename it to end in .zst"),
    (b"BZh", "compressed with bzip2", "decompress it, or compress it with gzip"),
    (b"\xfd7zXZ", "compressed with xz", "decompress it, or compress it with gzip"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"%PDF", "a PDF document", "save the table as CSV"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"\x89HDF", "an HDF5 file", "write it as Parquet"),
    (b"\x80\x04\x95", "a pickle of Python", "write the table as Parquet"),
    (b"\x80\x05\x95", "a pickle of Python", "write the table as Parquet"),
)
_TAR = (257, b"ustar")


def held(head: bytes) -> tuple[str, str] | None:
    """What a file is and what to do, as the ends of a sentence; None where it may be text.

    Args:
        head: The first bytes of the file, 262 or more where it has as many.
    """
    if head[_TAR[0] :].startswith(_TAR[1]):
        return "a tar archive", "unpack it, and give the table that is in it"
    for start, what, remedy in _FORMATS:
        if head.startswith(start):
            return what, remedy
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page", "download the table itself"
    return None


def held_instead_of_parquet(head: bytes) -> tuple[str, str] | None:
    """As `held`, for a file whose name says Parquet; text counts as something else."""
    found = held(head)
    if found is not None:
        return None if head.startswith(PARQUET) else found
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text or b"\x00" in head:
        return None
    try:
        head[:-4].decode()
    except UnicodeDecodeError:
        return None
    return ("JSON", "rename it to end in .jsonl") if text[:1] in b"{[" else ("text", "rename it to end in .csv")
