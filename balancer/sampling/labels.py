"""Class labels as whole numbers or names, encoded as small class codes; a hundred million rows, in pieces.

The commonest class becomes code 0, which policies and hardness treat as the negative class; equally common
classes keep the order of their labels. A row without a label gets -1 and is never drawn. Only the codes are
kept, one to four bytes a row: no sort of all rows and no index of eight bytes each, as
``numpy.unique(return_inverse=True)`` makes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.sampling.inputs import plain

CHUNK = 1 << 20
"""Rows processed at once; it bounds the memory of every pass over the labels."""
WIDE = 1 << 16
"""Whole numbers that lie within a range of this size are counted in a table; others are sorted."""
_SHOWN = 10
MANY_CLASSES = 100
"""Labels with more classes than this are checked for being amounts or numbers of things."""
_ROWS_OF_CODES, _ROWS_OF_IDS = 50, 1000
"""Fewest rows of the average class that pass that check: for classes 0 to K - 1, and for other numbers."""


class LabelCodes:
    """Class codes of the training labels; encodes later labels in the same way.

    Args:
        labels: (N,) whole numbers, booleans, text or bytes. ``None`` (in lists and object arrays) and NaN
            mean no label.
        unlabelled: A value that also means no label, e.g. -1 or ``"unknown"``; None: there is no such value,
            and -1 is a class like any other.
        counted: Where these are the labels of a part of the rows, the sorted classes (K,) and the rows (K,)
            that each has in all parts together; None: those of the labels.

    Raises:
        InputError: The labels are no vector, empty, of another type or of mixed types, or hold fewer than two
            classes.

    >>> coded = LabelCodes(["ok", "fraud", None, "ok"])
    >>> coded.classes, coded.codes.tolist(), coded.counts.tolist()
    (['fraud', 'ok'], [0, 1, -1, 0], [2, 1])
    """

    def __init__(
        self, labels: ArrayLike | Sequence[str], unlabelled: Any = None, counted: tuple[NDArray[Any], NDArray[np.int64]] | None = None
    ) -> None:
        self.unlabelled = unlabelled
        given = _vector(labels, "labels")
        if not len(given):
            raise InputError("labels must be one non-empty vector; give the class of each training row")
        self._sorted, counts = count_labels(given, unlabelled) if counted is None else counted
        if len(self._sorted) < 2:
            held = f"one class only ({self._sorted.tolist()[0]!r})" if len(self._sorted) else "no class, every row is unlabelled"
            raise InputError(f"labels hold {held}; sampling needs at least two")
        self.order: NDArray[np.int64] = np.argsort(-counts, kind="stable")
        """(K,) index into :attr:`classes` of each code."""
        self.rank: NDArray[np.int64] = np.argsort(self.order)
        """(K,) code of each of :attr:`classes`."""
        self.counts: NDArray[np.int64] = counts[self.order]
        """(K,) rows of each code."""
        codes = np.full(len(given), -1, dtype=code_type(len(self._sorted)))
        lookup = _Lookup(self._sorted, self.rank.astype(codes.dtype))
        for place, values, known in self._pieces(given, "labels"):
            codes[place][known] = lookup(values)
        self.codes: NDArray[np.signedinteger[Any]] = codes
        """(N,) code of each row, -1 for one without a label; int8 up to 127 classes."""

    def __repr__(self) -> str:
        """Number of rows, and the rows of each class."""
        names = [repr(name) for name in self._sorted[:_SHOWN].tolist()]
        counts = [f"{name}: {count}" for name, count in zip(names, self.counts[self.rank].tolist(), strict=False)]
        if len(self._sorted) > _SHOWN:
            counts.append(f"... {len(self._sorted)} classes")
        return f"LabelCodes(rows={len(self.codes)}, counts={{{', '.join(counts)}}})"

    @property
    def num_rows(self) -> int:
        """N, number of rows with and without a label."""
        return len(self.codes)

    def codes_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) code of each of ``rows`` (n,), -1 without a label."""
        return self.codes[rows].astype(np.int64)

    @property
    def classes(self) -> list[Any]:
        """The K labels in sorted order, as plain Python values."""
        return list(self._sorted.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of classes and codes; equal for equal labels in the same order."""
        digest = hashlib.blake2b(repr(self.classes).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.codes).data)
        return digest.hexdigest()

    def encode(self, labels: ArrayLike | Sequence[str], name: str) -> NDArray[np.int64]:
        """Encode the labels of other rows.

        Args:
            labels: (n,) labels.
            name: Name of the argument in error messages.

        Returns:
            (n,) codes, -1 without a label.

        Raises:
            InputError: A label is not among the training labels.
        """
        given = _vector(labels, name)
        codes = np.full(len(given), -1, dtype=np.int64)
        for place, values, known in self._pieces(given, name):
            if not len(values):
                continue
            if _family(values) != _family(self._sorted):
                raise InputError(f"{name} holds {_family(values)}, the labels of training are {_family(self._sorted)}; give the same kind")
            found = np.minimum(np.searchsorted(self._sorted, values), len(self._sorted) - 1)
            unseen = self._sorted[found] != values
            if unseen.any():
                shown = ", ".join(repr(c) for c in self.classes[:_SHOWN]) + (", ..." if len(self._sorted) > _SHOWN else "")
                raise InputError(f"class {values[unseen].tolist()[0]!r} of {name} is not among the labels of training ({shown})")
            codes[place][known] = self.rank[found]
        return codes

    def _pieces(self, given: NDArray[Any], name: str) -> Iterator[tuple[slice, NDArray[Any], Any]]:
        """Piece by piece: slice of the rows, their labels, and which of the rows have one."""
        return _labelled_pieces(given, self.unlabelled, name)


def count_labels(labels: ArrayLike | Sequence[str], unlabelled: Any = None, name: str = "labels") -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sorted classes (K,) of ``labels`` (N,), and the rows (K,) of each; K may be 0.

    Raises:
        InputError: The labels are no vector, of another type or of mixed types.
    """
    return _counted(values for _, values, _ in _labelled_pieces(_vector(labels, name), unlabelled, name))


def union_of_classes(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Sorted classes (K,) that occur in any of several parts of a table.

    Raises:
        InputError: Some are numbers and others text.
    """
    found = [classes for classes in parts if len(classes)]
    if len({_family(classes) for classes in found}) > 1:
        raise InputError("labels holds a mix of numbers and text; convert the labels to one kind first")
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _labelled_pieces(given: NDArray[Any], unlabelled: Any, name: str) -> Iterator[tuple[slice, NDArray[Any], Any]]:
    """Piece by piece: slice of the rows, their labels, and which of the rows have one."""
    for place in pieces(len(given)):
        values, known = _typed(given[place], name)
        if unlabelled is not None and len(values):
            marked = np.broadcast_to(np.asarray(values == unlabelled), values.shape)
            if marked.any():
                rows = np.arange(place.stop - place.start)[known]
                values, known = values[~marked], rows[~marked]
        yield place, values, known


class Labels(Protocol):
    """Labels of training rows: those of a :class:`LabelCodes`, or of shards on several ranks."""

    unlabelled: Any
    order: NDArray[np.int64]
    rank: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def classes(self) -> list[Any]:
        """The K labels in sorted order, as plain Python values."""

    @property
    def num_rows(self) -> int:
        """N, number of rows with and without a label."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of classes and codes."""

    def codes_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) code of each of ``rows`` (n,), -1 without a label."""

    def encode(self, labels: ArrayLike | Sequence[str], name: str) -> NDArray[np.int64]:
        """(n,) codes of the labels of other rows."""


def check_classes(labels: Labels) -> None:
    """Refuse values that nearly all differ, and warn of whole numbers that look like amounts or identifiers.

    Raises:
        InputError: There are more than :data:`MANY_CLASSES`, most of them with one row.
    """
    classes, rows = labels.classes, int(labels.counts.sum())
    if len(classes) <= MANY_CLASSES:
        return
    held = f"labels hold {len(classes)} different values in {rows} rows"
    if rows < 2 * len(classes):
        raise InputError(f"{held}, so they are no classes; give the class of each row, or divide a quantity into a few ranges")
    if isinstance(classes[0], (str, bytes)):
        return
    if rows < len(classes) * (_ROWS_OF_CODES if classes == list(range(len(classes))) else _ROWS_OF_IDS):
        text = f"{held}, and each is taken as a class of its own; divide a quantity into a few ranges, give names of classes as text"
        warnings.warn(text, stacklevel=4)


def code_type(num_classes: int) -> type[np.signedinteger[Any]]:
    """Smallest signed integer that holds -1 and ``num_classes`` codes."""
    return np.int8 if num_classes <= 127 else np.int16 if num_classes <= 32767 else np.int32


def count_codes(codes: NDArray[np.integer[Any]], num_classes: int) -> NDArray[np.int64]:
    """(K,) number of rows of each code; -1 is not counted."""
    counts = np.zeros(num_classes + 1, dtype=np.int64)
    for place in pieces(len(codes)):
        counts += np.bincount(codes[place].astype(np.intp) + 1, minlength=num_classes + 1)
    return counts[1:]


def pieces(n: int) -> Iterator[slice]:
    """Slices of at most :data:`CHUNK` rows that together are rows 0 to ``n``."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def _counted(parts: Iterator[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sorted classes (K,) and their number of rows (K,), from pieces of labels.

    Raises:
        InputError: There are both numbers and text.
    """
    table = _CountTable()
    found: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for values in parts:
        if len(values) and not table.add(values):
            found.append(np.unique(values, return_counts=True))
    if len(table.counts):
        found.append((table.classes, table.counts[table.counts > 0]))
    if len({_family(classes) for classes, _ in found}) > 1:
        raise InputError("labels holds a mix of numbers and text; convert the labels to one kind first")
    if not found:
        return np.empty(0), np.empty(0, dtype=np.int64)
    if len(found) == 1:
        return found[0]
    classes, place = np.unique(np.concatenate([classes for classes, _ in found]), return_inverse=True)
    counts = np.zeros(len(classes), dtype=np.int64)
    np.add.at(counts, place, np.concatenate([counts for _, counts in found]))
    return classes, counts


class _CountTable:
    """Counts whole numbers within a range of :data:`WIDE`, which grows as they come."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._low = 0
        self._type: np.dtype[Any] | None = None

    def add(self, values: NDArray[Any]) -> bool:
        """Count ``values`` (n,) with n of at least 1; False, without a change, where they don't fit."""
        if values.dtype.kind not in "iub":
            return False
        low, high = int(values.min()), int(values.max())
        if len(self.counts):
            low, high = min(low, self._low), max(high, self._low + len(self.counts) - 1)
        if high - low >= WIDE or high > np.iinfo(np.int64).max:
            return False
        grown = np.zeros(high - low + 1, dtype=np.int64)
        grown[self._low - low :][: len(self.counts)] = self.counts
        index = values.astype(np.int64)
        index -= low
        self.counts, self._low = grown + np.bincount(index, minlength=len(grown)), low
        self._type = values.dtype if self._type is None else np.result_type(self._type, values.dtype)
        return True

    @property
    def classes(self) -> NDArray[Any]:
        """The numbers that came, sorted, in the type that they came in."""
        return (np.flatnonzero(self.counts) + self._low).astype(self._type)


class _Lookup:
    """The codes of labels that all are among the sorted ``classes`` (K,); ``codes`` (K,) are theirs."""

    def __init__(self, classes: NDArray[Any], codes: NDArray[Any]) -> None:
        self._classes, self._codes = classes, codes
        self._table: NDArray[Any] | None = None
        if classes.dtype.kind in "iub" and int(classes[-1]) - int(classes[0]) < WIDE and int(classes[-1]) <= np.iinfo(np.int64).max:
            self._low = int(classes[0])
            self._table = np.zeros(int(classes[-1]) - self._low + 1, dtype=codes.dtype)
            self._table[classes.astype(np.int64) - self._low] = codes

    def __call__(self, labels: NDArray[Any]) -> NDArray[Any]:
        """(n,) codes of labels (n,)."""
        if self._table is None or labels.dtype.kind not in "iub":
            return np.asarray(self._codes[np.searchsorted(self._classes, labels)])
        index = labels.astype(np.int64)
        index -= self._low
        return np.asarray(self._table[index])


def _vector(labels: Any, name: str) -> NDArray[Any]:
    """``labels`` as one vector; a list becomes objects, so that None and numbers don't become text."""
    values = plain(labels)
    try:
        given = np.asarray(values, dtype=object if isinstance(values, (list, tuple)) else None)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be one vector of classes ({error})") from error
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1:
        remedy = "; give one class a row (argmax(axis=1) of one-hot rows)" if given.ndim == 2 else ""
        raise InputError(f"{name} must be one non-empty vector of classes, not of shape {given.shape}{remedy}")
    return given


def _typed(piece: NDArray[Any], name: str) -> tuple[NDArray[Any], Any]:
    """Labels of a piece as an array of numbers or text, and the rows (slice, mask or index) that have one."""
    known: Any = slice(None)
    if piece.dtype.kind == "O":
        kept = piece.tolist()
        if set(map(type, kept)) - {str, int, bool}:
            known = np.fromiter((not is_missing(value) for value in kept), dtype=bool, count=len(piece))
            kept = piece[known].tolist()
            several = next((value for value in kept if not isinstance(value, (str, bytes)) and hasattr(value, "__len__")), None)
            if several is not None:
                raise InputError(
                    f"{name} holds a row with several classes ({several!r:.60}); give one class a row, and a sampler for each label"
                )
        kinds = {"text" if isinstance(value, str) else "bytes" if isinstance(value, bytes) else "numbers" for value in kept}
        if len(kinds) > 1:
            raise InputError(f"{name} holds a mix of {' and '.join(sorted(kinds))}; convert the labels to one kind first")
        try:
            piece = np.asarray(kept) if kept else np.empty(0, dtype=np.int64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} must be integers or strings ({error}); convert the labels first") from error
    if piece.dtype.kind == "f":
        there = ~np.isnan(piece)
        whole = piece[there]
        if not (np.isfinite(whole) & (whole == np.floor(whole)) & (np.abs(whole.astype(np.float64)) < 2**53)).all():
            raise InputError(f"{name} must be integers or strings, not {piece.dtype} with fractions; convert the labels first")
        if not there.all():
            known = np.arange(len(there))[there] if isinstance(known, slice) else np.flatnonzero(known)[there]
        piece = whole.astype(np.int64)
    if piece.dtype.kind not in "iubUS" or piece.ndim != 1:
        raise InputError(f"{name} must be integers or strings, not {piece.dtype}; convert the labels first")
    return piece, known


def is_missing(value: Any) -> bool:
    """Whether a label is None, NaN, or the NA of pandas (which can't be compared; pandas is not imported)."""
    return (
        value is None
        or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def _family(values: NDArray[Any]) -> str:
    return {"U": "text", "S": "bytes"}.get(values.dtype.kind, "numbers")
