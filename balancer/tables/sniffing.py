"""Where the header of a CSV file is, and which character separates its fields.

What is special: a separator is chosen by all lines of the head of the file, not by the header alone: most
lines must have as many fields as the header. Text in quotes is not counted.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from balancer.errors import InputError
from balancer.tables.decoding import zero_byte

HEAD_BYTES = 1 << 18
_LONGEST_HEADER = 1 << 24
_CANDIDATES = ((",", ";", "\t", "|"), ("^", "~", "\x01", "\x1f", "\x1e", ":"), (" ",))
"""Separators, the usual ones first; those of a later group count only where no earlier one fits."""
_MOST_LINES = 2_000
_MOST_BEFORE = 20
"""Most lines before the header."""
_FITS = 0.9
"""Smallest share of the lines that must have as many fields as the header."""
_DIRECTIVE = re.compile(r'"?sep=(.|\\t)"?', re.IGNORECASE)
_NUMBER = re.compile(r"[-+(]?\s*[$€£]?\s*\d[\d.,' \u00a0]*(?:[eE][-+]?\d+)?\s*[%€)]?")
_MOMENT = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[T ]\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(?::\d{2}.*)?")
_QUOTED = re.compile(r'"[^"]*"')
SEPARATOR_NAMES = {"\t": "tab", " ": "space"}


@dataclass(frozen=True)
class Head:
    """The beginning of a CSV file."""

    separator: str
    start: int
    """Bytes before the header."""
    names: tuple[str, ...]
    """The fields of the header as they are written."""
    left_out: tuple[str, ...] = ()
    """Lines before the header that are neither blank nor a comment nor a directive."""
    comments: int = 0
    """Comment lines before the header."""
    row_names: bool = False
    """Whether rows have a quoted name before their first field, which the header lacks, as R writes them."""


def separator_name(separator: str) -> str:
    """How messages name a separator, as `--separator` accepts it."""
    return SEPARATOR_NAMES.get(separator, repr(separator))


def read_head(path: Path, text: Path, separator: str | None) -> Head:
    """Find the header and the separator of a file.

    Args:
        path: The file, for messages.
        text: The same in UTF-8.
        separator: The separator that was given.

    Raises:
        InputError: If the file has no header, or if the separator that was given is not that of the file.
    """
    with text.open("rb") as file:
        raw = file.read(HEAD_BYTES)
        while raw and b"\n" not in raw.strip() and len(raw) < _LONGEST_HEADER and (more := file.read(HEAD_BYTES)):
            raw += more
        whole = len(raw) < HEAD_BYTES
    if not whole and b"\n" in raw:
        raw = raw[: raw.rindex(b"\n") + 1]
    if b"\x00" in raw:
        raise zero_byte(path, raw)
    # A text line may hold other line ends of Unicode; only \n ends a line here.
    lines = re.findall(r"[^\n]*\n|[^\n]+$", raw.decode("utf-8", errors="replace"))
    first, comments, directed = _first(lines)
    if first == len(lines):
        raise InputError(f"{path} is empty: it has no header and no rows")
    body = lines[first:]
    shown = [line for line in body[:_MOST_LINES] if line.strip() and (not line.startswith("#") or line is body[0])]
    if (found := _with_row_names(shown)) is not None and separator in (None, found[0]):
        start = len("".join(lines[:first]).encode("utf-8", errors="replace"))
        return Head(found[0], start, found[1], (), comments, row_names=True)
    counted = _records(shown)
    sniffed = directed or _separator(counted)
    chosen = separator or sniffed
    if separator is not None and separator != sniffed and _fields(counted, separator) == 1 and _fields(counted, sniffed) > 1:
        raise InputError(
            f"the lines of {path} hold no --separator {separator_name(separator)}: they are separated by {separator_name(sniffed)}"
        )
    skipped = _preamble(body, chosen)
    start = len("".join(lines[: first + skipped]).encode("utf-8", errors="replace"))
    names = _names(path, body[skipped:], chosen)
    left_out = tuple(line.strip() for line in body[:skipped] if line.strip() and not line.startswith("#"))
    comments += sum(line.startswith("#") for line in body[:skipped])
    return Head(chosen, start, names, left_out, comments)


def _with_row_names(lines: list[str]) -> tuple[str, tuple[str, ...]] | None:
    """The separator and the header of a file in which each row has a quoted name that the header lacks.

    Only names in quotes, all different, are taken for such: a number with a decimal comma that is separated
    by commas makes a row longer too.
    """
    header = lines[0].strip() if len(lines) > 2 else ""
    shape = re.fullmatch(r'"[^"]*"(?:([ ,;\t|])"[^"]*")*', header)
    if shape is None:
        return None
    rows = [line for line in lines[1:_MOST_BEFORE] if line.startswith('"')]
    if len(rows) < len(lines[1:_MOST_BEFORE]):
        return None
    for separator in [shape[1]] if shape[1] else [" ", ",", ";", "\t"]:
        names = next(csv.reader([header], delimiter=separator))
        cells = list(csv.reader(rows, delimiter=separator))
        if all(len(row) == len(names) + 1 for row in cells) and len({row[0] for row in cells}) == len(cells):
            return separator, tuple(names)
    return None


def _first(lines: list[str]) -> tuple[int, int, str | None]:
    """The first line that may be the header, the comments before it, and the separator of a directive."""
    comments, directed = 0, None
    for number, line in enumerate(lines):
        text = line.strip().removeprefix("\ufeff")
        found = _DIRECTIVE.fullmatch(text)
        if found:
            directed = "\t" if found[1] == "\\t" else found[1]
        elif text.startswith("#"):
            if _is_header(text, lines[number + 1 : number + 50]):
                return number, comments, directed
            comments += 1
        elif text:
            return number, comments, directed
    return len(lines), comments, directed


def _is_header(text: str, rest: list[str]) -> bool:
    """Whether a line that begins with # is the header: the rows follow at once, with as many fields."""
    if not rest or not rest[0].strip() or rest[0].startswith("#"):
        return False
    following = _records([line for line in rest if line.strip()])
    separator = _separator([text, *following])
    number = text.count(separator)
    values = any(_NUMBER.fullmatch(cell.strip()) for cell in rest[0].split(separator))
    return number >= 1 and values and all(line.count(separator) == number for line in following[:5])


def _records(lines: list[str]) -> list[str]:
    """The lines without what is in quotes; lines inside quotes are one."""
    return [line for line in _QUOTED.sub("q", "".join(lines)).split("\n") if line.strip()]


def _fields(lines: list[str], separator: str) -> int:
    return max((line.count(separator) for line in lines[:20]), default=0) + 1


def _separator(lines: list[str]) -> str:
    """The character that separates the fields, chosen by lines without quotes."""
    best: tuple[float, int, int] | None = None
    for group in _CANDIDATES:
        chosen = None
        for separator in group:
            found = _fit(lines, separator)
            if found is not None and (best is None or found > best):
                best, chosen = found, separator
        if chosen is not None and best is not None and (best[0] >= _FITS or group is _CANDIDATES[0]):
            return chosen
        best = None
    return ","


def _fit(lines: list[str], separator: str) -> tuple[float, int, int] | None:
    """How well a separator fits: the share of lines with as many fields as the header, and ranks of ties."""
    numbers = [line.count(separator) for line in lines]
    # Lines before the header have no separator at all.
    begin = next((number for number, count in enumerate(numbers) if count), len(numbers))
    if begin == len(numbers) or begin > _MOST_BEFORE:
        return None
    header, rest = numbers[begin], list(zip(numbers[begin + 1 :], lines[begin + 1 :], strict=True))
    same = sum(count == header or (count > header and line.rstrip().endswith(separator)) for count, line in rest)
    share = same / len(rest) if rest else 1.0
    return None if begin and (share < _FITS or len(rest) < 2) else (round(share, 1), -begin, header)


def _preamble(body: list[str], separator: str) -> int:
    """Lines without the separator before a header that has it."""
    counted = [_QUOTED.sub("q", line).count(separator) for line in body[: _MOST_BEFORE + 10]]
    if not counted or counted[0]:
        return 0
    begin = next((number for number, count in enumerate(counted) if count), None)
    rest = [count for count, line in zip(counted, body, strict=False) if line.strip()][1:]
    return begin if begin is not None and begin <= _MOST_BEFORE and sum(count > 0 for count in rest) >= 2 else 0


def _names(path: Path, body: list[str], separator: str) -> tuple[str, ...]:
    body = [body[0].removeprefix("\ufeff"), *body[1:]]
    try:
        record = next(csv.reader(body, delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise InputError(f"the header of {path} can't be read ({_short(body[0])}): write the names of the columns in one line") from error
    names = [name.strip() for name in record]
    if names:
        names[0] = names[0].lstrip("# ") if names[0].startswith("#") else names[0]
    while len(names) > 1 and not names[-1]:
        names.pop()
    found = _values_in(names, body, separator)
    if found:
        raise InputError(
            f"{path} has no header: its first line holds values ({', '.join(found[:3])}); add a line with the names of the columns before it"
        )
    return tuple(names)


def _values_in(names: list[str], body: list[str], separator: str) -> list[str]:
    """The names of a header that are values of a row; none where the line is a header.

    Numbers are names too where they count the columns, or are years. A name that its own column holds (a
    column `fraud` with the value "fraud") is no proof, but several are.
    """
    given = [name for name in names if name]
    numbers = [name for name in given if _NUMBER.fullmatch(name) or _MOMENT.fullmatch(name)]
    whole = [int(name) for name in numbers if name.isascii() and name.isdigit()]
    counting = len(whole) == len(numbers) and whole == list(range(whole[0] if whole else 0, (whole[0] if whole else 0) + len(whole)))
    if counting and (len(whole) == len(given) or len(whole) > 2):
        return []
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(body[1:_MOST_LINES], delimiter=separator, skipinitialspace=True)]
    except csv.Error:
        rows = []
    rows = [row for row in rows if row[: len(names)] != names]  # files below each other repeat their header
    inside = [name for place, name in enumerate(names) if name and any(len(row) > place and row[place] == name for row in rows)]
    fraction = [name for name in numbers if not (name.isascii() and name.isdigit())]
    if fraction or len(numbers) >= 0.5 * len(given) or (numbers and (len(set(numbers)) < len(numbers) or set(numbers) & set(inside))):
        return numbers
    return inside if len(inside) >= 2 and len(inside) >= 0.5 * len(given) else []


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
