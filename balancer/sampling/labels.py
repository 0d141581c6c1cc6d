"""Class labels as whole numbers or names, encoded as small class codes; a hundred million rows, in pieces.

The commonest class becomes code 0, which policies and hardness treat as the negative class; equally common
classes keep the order of their labels. A row without a label gets -1 and is never drawn. Only the codes are
kept, one to four bytes a row: no sort of all rows and no index of eight bytes each, as
``numpy.unique(return_inverse=True)`` makes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError

CHUNK = 1 << 20
"""Rows processed at once; it bounds the memory of every pass over the labels."""
_SHOWN = 10


class LabelCodes:
    """Class codes of the training labels; encodes later labels in the same way.

    Args:
        labels: (N,) whole numbers, booleans, text or bytes. ``None`` (in lists and object arrays) and NaN
            mean no label.
        unlabelled: A value that also means no label, e.g. -1 or ``"unknown"``; None: there is no such value,
            and -1 is a class like any other.

    Raises:
        InputError: The labels are no vector, empty, of another type or of mixed types, or hold fewer than two
            classes.

    >>> coded = LabelCodes(["ok", "fraud", None, "ok"])
    >>> coded.classes, coded.codes.tolist(), coded.counts.tolist()
    (['fraud', 'ok'], [0, 1, -1, 0], [2, 1])
    """

    def __init__(self, labels: ArrayLike | Sequence[str], unlabelled: Any = None) -> None:
        self.unlabelled = unlabelled
        given = _vector(labels, "labels")
        if not len(given):
            raise InputError("labels must be one non-empty vector; give the class of each training row")
        found = [part for part in (np.unique(values) for _, values, _ in self._pieces(given, "labels")) if len(part)]
        if len({_family(part) for part in found}) > 1:
            raise InputError("labels holds a mix of numbers and text; convert the labels to one kind first")
        self._sorted: NDArray[Any] = np.unique(np.concatenate(found)) if found else np.empty(0)
        if len(self._sorted) < 2:
            held = f"one class only ({self._sorted.tolist()[0]!r})" if found else "no class, every row is unlabelled"
            raise InputError(f"labels hold {held}; sampling needs at least two")
        codes = np.full(len(given), -1, dtype=code_type(len(self._sorted)))
        for place, values, known in self._pieces(given, "labels"):
            codes[place][known] = np.searchsorted(self._sorted, values)
        counts = count_codes(codes, len(self._sorted))
        self.order: NDArray[np.int64] = np.argsort(-counts, kind="stable")
        """(K,) index into :attr:`classes` of each code."""
        self.rank: NDArray[np.int64] = np.argsort(self.order)
        """(K,) code of each of :attr:`classes`."""
        self.counts: NDArray[np.int64] = counts[self.order]
        """(K,) rows of each code."""
        recode = np.append(self.rank, -1).astype(codes.dtype)  # the last element encodes -1
        for place in _places(len(codes)):
            codes[place] = recode[codes[place]]
        self.codes: NDArray[np.signedinteger[Any]] = codes
        """(N,) code of each row, -1 for one without a label; int8 up to 127 classes."""

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
        for place in _places(len(given)):
            values, known = _typed(given[place], name)
            if self.unlabelled is not None and len(values):
                marked = np.broadcast_to(np.asarray(values == self.unlabelled), values.shape)
                if marked.any():
                    rows = np.arange(place.stop - place.start)[known]
                    values, known = values[~marked], rows[~marked]
            yield place, values, known


def code_type(num_classes: int) -> type[np.signedinteger[Any]]:
    """Smallest signed integer that holds -1 and ``num_classes`` codes."""
    return np.int8 if num_classes <= 127 else np.int16 if num_classes <= 32767 else np.int32


def count_codes(codes: NDArray[np.integer[Any]], num_classes: int) -> NDArray[np.int64]:
    """(K,) number of rows of each code; -1 is not counted."""
    counts = np.zeros(num_classes, dtype=np.int64)
    for place in _places(len(codes)):
        piece = codes[place]
        counts += np.bincount(piece[piece >= 0], minlength=num_classes)
    return counts


def _places(n: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def _vector(labels: Any, name: str) -> NDArray[Any]:
    """``labels`` as one vector; a list becomes objects, so that None and numbers don't become text."""
    try:
        given = np.asarray(labels, dtype=object if isinstance(labels, (list, tuple)) else None)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be one vector of classes ({error})") from error
    if given.ndim != 1:
        raise InputError(f"{name} must be one non-empty vector of classes, not of shape {given.shape}")
    return given


def _typed(piece: NDArray[Any], name: str) -> tuple[NDArray[Any], Any]:
    """Labels of a piece as an array of numbers or text, and the rows (slice, mask or index) that have one."""
    known: Any = slice(None)
    if piece.dtype.kind == "O":
        kept = piece.tolist()
        if set(map(type, kept)) - {str, int, bool}:
            known = np.fromiter((not _missing(value) for value in kept), dtype=bool, count=len(piece))
            kept = piece[known].tolist()
        kinds = {"text" if isinstance(value, str) else "bytes" if isinstance(value, bytes) else "numbers" for value in kept}
        if len(kinds) > 1:
            raise InputError(f"{name} holds a mix of {' and '.join(sorted(kinds))}; convert the labels to one kind first")
        piece = np.asarray(kept) if kept else np.empty(0, dtype=np.int64)
    if piece.dtype.kind == "f":
        there = ~np.isnan(piece)
        whole = piece[there]
        if not (np.isfinite(whole) & (whole == np.floor(whole)) & (np.abs(whole) < 2**53)).all():
            raise InputError(f"{name} must be integers or strings, not {piece.dtype} with fractions; convert the labels first")
        if not there.all():
            known = np.arange(len(there))[there] if isinstance(known, slice) else np.flatnonzero(known)[there]
        piece = whole.astype(np.int64)
    if piece.dtype.kind not in "iubUS" or piece.ndim != 1:
        raise InputError(f"{name} must be integers or strings, not {piece.dtype}; convert the labels first")
    return piece, known


def _missing(value: Any) -> bool:
    """Whether a label is None, NaN, or the NA of pandas (which can't be compared; pandas is not imported)."""
    return (
        value is None
        or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def _family(values: NDArray[Any]) -> str:
    return {"U": "text", "S": "bytes"}.get(values.dtype.kind, "numbers")
