"""Check the rows of a CSV file on its bytes, and find what is no row: blank lines, comments, a footer.

What is special: polars silently fills a row that has too few fields, so the fields of every row are counted
first, a part of the file at a time and without a loop over rows. Separators and line ends in quotes (after an
odd number of quotes) are not counted. Only where something must be left out is a copy of the file written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from balancer.errors import CorruptFileError
from balancer.tables.sniffing import Head
from balancer.tables.temporary import TemporaryCopy, written

_CHUNK_BYTES = 1 << 24
_LONGEST_ROW = 1 << 26
"""Most bytes of one row; a longer one has a quote that is never closed."""
_WHITE = b" \t\r\x0b\x0c\x1a"
"""White space, and the character with which old systems end a file."""
_MOST_ODD = 20
"""Rows with another number of fields after which the check ends."""
_MOST_FOOTERS = 5
_MOST_FOUND = 1_000
"""Lines of a part of the file that are examined one by one."""
_TOTALS = r"(?:grand |sub ?-?)?totals?|totaux|total g[ée]n[ée]ral|sum|summe|gesamt(?:summe)?|somme|totale|suma|insgesamt"
_TOTAL = re.compile(rf"(?:{_TOTALS})\W*", re.IGNORECASE)
_WORDS = (
    rf"{_TOTALS}|sums|"
    r"(?:number of |row ?|record ?)?(?:rows?|records?|lines?|count)|end of (?:file|report|data)|eof|trailer|trl|-- ?end.*|ende|fin"
)
_FOOTER = re.compile(
    rf"\W*(?:{_WORDS})\b.*|\W*\d[\d., ]* *(?:rows?|records?|lines?|lignes?|zeilen|datens[äa]tze|filas|righe|registros)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_NEWLINE, _RETURN, _QUOTE, _HASH, _SPACE = b'\n\r"# '
Positions = NDArray[np.int64]
_NOTHING: Positions = np.zeros(0, dtype=np.int64)


@dataclass
class Shape:
    """What a pass over the rows of a file found."""

    rows: int = 0
    cuts: list[Positions] = field(default_factory=list)
    """(n, 2) bytes to leave out, from and to, in order."""
    comments: int = 0
    footers: tuple[str, ...] = ()
    trailing: int = 0
    """Rows that end with separators after their last field."""
    quoted: bool = True
    """Whether fields may be in quotes; otherwise a quote is a character like any other."""


@dataclass
class _Odd:
    """A row with another number of fields."""

    row: int
    start: int
    stop: int
    fields: int
    text: str


def check_rows(path: Path, text: Path, head: Head) -> Shape:
    """Check that every row has as many fields as the header.

    Args:
        path: The file, for messages.
        text: The same in UTF-8.
        head: Where its header is.

    Raises:
        CorruptFileError: If a row has another number of fields (the message names the first such row), or if
            quotes are damaged.
    """
    try:
        return _Check(path, text, head).run()
    except _StrayQuoteError:
        if _starts_with_quote(text, head.separator):
            raise
    return _Check(path, text, head, quoted=False).run()


class _StrayQuoteError(CorruptFileError):
    """A quote inside a field."""


def _starts_with_quote(text: Path, separator: str) -> bool:
    """Whether any field of a file begins with a quote."""
    before, begin = b"\n", separator.encode() + b'"'
    with text.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            chunk = before + chunk
            if begin in chunk or b'\n"' in chunk:
                return True
            before = chunk[-1:]
    return False


class _Check:
    def __init__(self, path: Path, text: Path, head: Head, *, quoted: bool = True) -> None:
        self.path, self.text, self.head, self.quoted = path, text, head, quoted
        self.width = len(head.names)
        self.shape = Shape(quoted=quoted)
        self.odd: list[_Odd] = []
        self.records = -1  # the header is record 0 and no row
        self.last: _Odd | None = None

    def run(self) -> Shape:
        if self.head.start:
            self._cut(np.array([[0, self.head.start]]))
        for base, data in _records(self.path, self.text, self.head.start, quoted=self.quoted):
            self._block(base, data)
            if len(self.odd) > _MOST_ODD:
                raise self._wrong(self.odd[0])
        self._footers()
        self.shape.rows = max(self.records - len(self.odd), 0)
        self.shape.cuts.sort(key=lambda cut: int(cut[0, 0]))
        return self.shape

    def _cut(self, ranges: Positions) -> None:
        if len(ranges):
            self.shape.cuts.append(ranges.astype(np.int64))

    def _block(self, base: int, data: NDArray[np.uint8]) -> None:
        """Check whole rows: `data` begins with a row and ends with a line end."""
        separator = ord(self.head.separator)
        ends, separators = np.flatnonzero(data == _NEWLINE), np.flatnonzero(data == separator)
        quotes = np.flatnonzero(data == _QUOTE) if self.quoted else _NOTHING
        if len(quotes):
            ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
            separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
        starts = np.concatenate(([0], ends[:-1] + 1))
        stops = ends - ((data[np.maximum(ends - 1, 0)] == _RETURN) & (ends > starts))
        counts = np.diff(np.searchsorted(separators, ends), prepend=0)
        blank = stops - starts <= counts  # nothing but separators
        if self.records < 0:
            blank[0] = False
        first = 1 if self.records < 0 else 0  # the header
        wrong = np.flatnonzero((counts != self.width - 1) & ~blank)
        for record in wrong[counts[wrong] == 0][:_MOST_FOUND]:
            blank[record] = not bytes(data[starts[record] : stops[record]]).strip(_WHITE)
        wrong = wrong[~blank[wrong]]
        comment = np.zeros(len(ends), dtype=np.bool_)
        comment[wrong[(data[starts[wrong]] == _HASH) & (wrong >= first)]] = True
        self.shape.comments += int(comment.sum())
        wrong = wrong[~comment[wrong]]
        row = self.records + np.cumsum(~(blank | comment))
        self.records = int(row[-1])
        left_out = np.flatnonzero(blank | comment)
        cuts = [np.stack((starts[left_out], ends[left_out] + 1), axis=1)]
        extra = counts[wrong] - (self.width - 1)
        ending = _trailing(data, stops[wrong], separator, extra)
        fixed = (extra > 0) & (ending >= extra)
        self.shape.trailing += int(np.count_nonzero(fixed[wrong[fixed].searchsorted(first) :])) if first else int(fixed.sum())
        cuts.append(np.stack((stops[wrong] - extra, stops[wrong]), axis=1)[fixed])
        if len(quotes):
            cuts.append(self._quotes(base, data, quotes, separator, starts, row))
        ranges = np.concatenate(cuts) + base
        self._cut(ranges[np.argsort(ranges[:, 0], kind="stable")])
        for record in wrong[~fixed][: _MOST_ODD + 1]:
            self.odd.append(self._record(base, data, int(row[record]), int(starts[record]), int(ends[record]), int(counts[record])))
        good = ~(blank | comment)
        good[wrong[~fixed]] = False
        kept = np.flatnonzero(good)
        if len(kept):
            end = kept[-1]
            self.last = self._record(base, data, int(row[end]), int(starts[end]), int(ends[end]), int(counts[end]))

    @staticmethod
    def _record(base: int, data: NDArray[np.uint8], row: int, start: int, end: int, count: int) -> _Odd:
        text = bytes(data[start : min(end, start + 1000)]).decode("utf-8", errors="replace").strip()
        return _Odd(row, base + start, base + end + 1, count + 1, text)

    def _quotes(
        self, base: int, data: NDArray[np.uint8], quotes: Positions, separator: int, starts: Positions, row: Positions
    ) -> Positions:
        """Spaces between separators and quotes, to leave out; raises on a quote that splits a field."""
        before, after = quotes[0::2], quotes[1::2]
        left, right = data[np.maximum(before - 1, 0)], data[np.minimum(after + 1, len(data) - 1)]
        opens = (before == 0) | (left == separator) | (left == _NEWLINE) | (left == _QUOTE)
        closes = (right == separator) | (right == _NEWLINE) | (right == _RETURN) | (right == _QUOTE)
        if base == self.head.start:
            opens |= before <= 3  # after a byte order mark
        cuts: list[tuple[int, int]] = []
        for pair in np.flatnonzero(~(opens & closes)):
            begin, end = int(before[pair]), int(after[pair])
            front, back = begin, end + 1
            while front > 0 and data[front - 1] == _SPACE:
                front -= 1
            while back < len(data) and data[back] == _SPACE:
                back += 1
            at_start = opens[pair] or front == 0 or data[front - 1] in (separator, _NEWLINE)
            at_end = closes[pair] or data[back] in (separator, _NEWLINE, _RETURN)
            if at_start and at_end:
                cuts.extend(span for span in ((front, begin), (end + 1, back)) if span[0] < span[1])
                continue
            inside = data[begin + 1 : end]
            if at_start or np.any((inside == separator) | (inside == _NEWLINE)):
                record = int(np.searchsorted(starts, begin, side="right")) - 1
                raise _StrayQuoteError(
                    f"{self.path}: {self._place(int(row[record]), base + int(starts[record]))} has a quote inside a field: "
                    "write it twice and put the field in quotes"
                )
        return np.array(cuts, dtype=np.int64).reshape(-1, 2)

    def _footers(self) -> None:
        odd = self.odd
        if odd:
            tail = [each.row for each in odd] == list(range(self.records - len(odd) + 1, self.records + 1))
            if not tail or len(odd) > _MOST_FOOTERS or odd[0].row <= 1 or not all(self._is_footer(each.text) for each in odd):
                raise self._wrong(odd[0])
        elif self.last is not None and self.last.row == self.records > 2 and self._is_total(self.last.text):
            odd = self.odd = [self.last]
        self.shape.footers = tuple(each.text for each in odd)
        for each in odd:
            self._cut(np.array([[each.start, each.stop]]))

    def _cells(self, text: str) -> list[str]:
        return [cell.strip(' "\r') for cell in text.split(self.head.separator)]

    def _is_footer(self, text: str) -> bool:
        """Whether a line with another number of fields is a footer: a word such as Total, or a sentence.

        Where the first column holds several words too, a sentence may be a row that was cut off.
        """
        cells = self._cells(text)
        written = [cell for cell in cells if cell]
        if _FOOTER.fullmatch(written[0]) or _FOOTER.fullmatch(text.strip('" ')):
            return True
        usual = self._cells(self.last.text)[0] if self.last is not None else ""
        return len(cells) == 1 and len(_WORD.findall(cells[0])) >= 2 > len(_WORD.findall(usual))

    def _is_total(self, text: str) -> bool:
        """Whether a row of the usual width is a footer: Total in its first field, and an empty field."""
        cells = self._cells(text)
        return len(cells) > 2 and not all(cells) and _TOTAL.fullmatch(cells[0]) is not None

    def _wrong(self, odd: _Odd) -> CorruptFileError:
        place = self._place(odd.row, odd.start)
        if odd.row <= 0:
            return CorruptFileError(f"{self.path}: {place} has a field without a name: name every column, or leave the separator out")
        if len(self.odd) > _MOST_ODD and all(
            each.row == number and each.fields == self.width + 1 for number, each in enumerate(self.odd, 1)
        ):
            return CorruptFileError(
                f"{self.path}: every row has {odd.fields} fields, but the header has {self.width}: add the name of the first column to the "
                "header if rows begin with a row name (R: col.names = NA), or put numbers with decimal commas in quotes"
            )
        return CorruptFileError(
            f"{self.path}: {place} has {odd.fields} field{'' if odd.fields == 1 else 's'}, but the header has {self.width}: correct the row"
        )

    def _place(self, row: int, position: int) -> str:
        line = _line(self.text, position)
        return f"row {row} (line {line})" if row > 0 else f"the header (line {line})"


def _records(path: Path, text: Path, start: int, *, quoted: bool) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read whole rows: their position in the file, and their bytes. The last one ends with a line end."""
    base, rest = start, b""
    with text.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK_BYTES):
            rest += chunk
            data = np.frombuffer(rest, dtype=np.uint8)
            end = _last_end(data, quoted=quoted)
            if end < 0:
                if len(rest) > _LONGEST_ROW:
                    raise _never_closed(path, text, base)
                continue
            yield base, data[: end + 1]
            base, rest = base + end + 1, rest[end + 1 :]
    if rest:
        if quoted and rest.count(b'"') % 2:
            raise _never_closed(path, text, base)
        yield base, np.frombuffer(rest + b"\n", dtype=np.uint8)


def _last_end(data: NDArray[np.uint8], *, quoted: bool) -> int:
    """The last line end that is not inside quotes, -1 if there is none."""
    quotes = np.flatnonzero(data == _QUOTE) if quoted else _NOTHING
    if not len(quotes):
        return bytes(data).rfind(b"\n")
    ends = np.flatnonzero(data == _NEWLINE)
    if len(quotes):
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return int(ends[-1]) if len(ends) else -1


def _never_closed(path: Path, text: Path, base: int) -> CorruptFileError:
    return CorruptFileError(
        f"{path}: a quote is opened and never closed (line {_line(text, base)}), the file is damaged or truncated: write it again"
    )


def _trailing(data: NDArray[np.uint8], stops: Positions, separator: int, most: Positions) -> Positions:
    """How many of the `most` bytes before `stops` are separators, without a gap."""
    number = np.zeros(len(stops), dtype=np.int64)
    for step in range(1, min(int(most.max(initial=0)), 10_000) + 1):
        number += (number == step - 1) & (stops >= step) & (data[np.maximum(stops - step, 0)] == separator)
    return number


def cleaned(text: Path, shape: Shape) -> TemporaryCopy:
    """Write a copy of a file without the bytes that are left out."""
    copy = TemporaryCopy(".csv")
    cuts = np.concatenate(shape.cuts)
    cuts = cuts[np.argsort(cuts[:, 0], kind="stable")]
    ends = np.maximum.accumulate(cuts[:, 1])  # ranges may overlap
    with text.open("rb") as source, written(), copy.path.open("wb") as target:
        base = 0
        while chunk := source.read(_CHUNK_BYTES):
            first, last = np.searchsorted(ends, base, side="right"), np.searchsorted(cuts[:, 0], base + len(chunk))
            inside = np.clip(cuts[first:last] - base, 0, len(chunk))
            step = np.zeros(len(chunk) + 1, dtype=np.int8)
            np.add.at(step, inside[:, 0], 1)
            np.add.at(step, inside[:, 1], -1)
            target.write(np.frombuffer(chunk, dtype=np.uint8)[np.cumsum(step[:-1], dtype=np.int8) == 0].tobytes())
            base += len(chunk)
    return copy


def with_name(text: Path, start: int, name: str) -> TemporaryCopy:
    """Write a copy of a file whose header, which begins at the byte `start`, has `name` before it."""
    copy = TemporaryCopy(".csv")
    with text.open("rb") as source, written(), copy.path.open("wb") as target:
        target.write(source.read(start) + name.encode())
        while chunk := source.read(_CHUNK_BYTES):
            target.write(chunk)
    return copy


def line_of(row: int, scanned: Path, text: Path, shape: Shape) -> int:
    """The line of a file on which a row begins.

    Args:
        row: The row, from 0.
        scanned: The file without what is left out.
        text: The whole file.
        shape: What is left out.
    """
    left, position = row + 1, 0
    for base, data in _records(scanned, scanned, 0, quoted=shape.quoted):
        ends = np.flatnonzero(data == _NEWLINE)
        quotes = np.flatnonzero(data == _QUOTE) if shape.quoted else _NOTHING
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        if left <= len(ends):
            position = base + int(ends[left - 1]) + 1
            break
        left -= len(ends)
    if shape.cuts:
        cuts = np.concatenate(shape.cuts)
        lengths = cuts[:, 1] - cuts[:, 0]
        position += int(lengths[cuts[:, 0] - (np.cumsum(lengths) - lengths) <= position].sum())
    return _line(text, position)


def _line(text: Path, position: int) -> int:
    line, left = 1, position
    with text.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            line += chunk.count(b"\n")
            left -= len(chunk)
    return line
