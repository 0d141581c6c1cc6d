"""Measure drift: the population stability index (PSI) of each field of live rows against the training rows.

What is special: numeric and categorical fields are binned in the same way, by an array of edges, so that a
live row is binned by one comparison. A missing value (NaN) has a bin of its own. Counts decay exponentially,
so that the index describes the latest rows without storing them. Rule of thumb in credit scoring: below .1 no
change, above .25 a different population (Siddiqi 2006, Credit Risk Scorecards).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import CorruptFileError

BINS = 10
"""Number of bins of a numeric field, with quantiles as edges."""
CODES = 20
"""Number of codes of a categorical field with their own bin; the vocabulary begins with the most frequent
values."""
SCORE = "score"
"""Name of the score among the fields."""
HALF_LIFE = 2_000.0
"""Number of rows after which the weight of a live row has halved."""
LEAST = 500
"""Fewest live rows for an index: with fewer, random differences are too large."""
MODERATE, LARGE = 0.1, 0.25
"""Usual limits of the index: a moderate change from the first on, another population from the second on."""
_FLOOR = 1e-4
"""Smallest share of a bin in the index."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Shares of the training rows in the bins of each field; of the last rows, for fields of the past.

    `to_dict` converts it to JSON.
    """

    names: tuple[str, ...]
    """The fields, and `SCORE` last."""
    edges: tuple[tuple[float, ...], ...]
    """Per field, the increasing borders between bins. The bin of a value is the number of edges at or below
    it."""
    shares: tuple[tuple[float, ...], ...]
    """Per field, the share of each bin; one more than there are edges."""
    missing: tuple[float, ...]
    """Per field, the share of missing values (NaN), which have a bin of their own."""

    @classmethod
    def of(
        cls,
        numeric: Sequence[str],
        categorical: Sequence[str],
        values: NDArray[Any],
        score: NDArray[Any],
        late: Mapping[str, NDArray[Any]] | None = None,
    ) -> Reference:
        """Compute the reference.

        Args:
            numeric: Names of the numeric fields.
            categorical: Names of the categorical fields.
            values: (N, C) training rows, numeric fields first.
            score: (M,) calibrated scores of rows that were not used for training.
            late: (L,) values of numeric fields of the past in the last rows of the table, by name. These
                fields depend on how much past there is, so the training rows are no measure for later ones.
        """
        late = late or {}
        compared = [late.get(name, values[:, place]) for place, name in enumerate(numeric)]
        edges: list[NDArray[Any]] = [_borders(column) for column in compared]
        edges += [np.arange(min(CODES, int(values[:, place].max(initial=0)) + 1)) + 0.5 for place in range(len(numeric), values.shape[1])]
        edges.append(_borders(score))
        columns = [*compared, *(values[:, place] for place in range(len(numeric), values.shape[1])), score]
        found = [_binned(borders, column) for borders, column in zip(edges, columns, strict=True)]
        return cls(
            (*numeric, *categorical, SCORE),
            tuple(tuple(map(float, borders)) for borders in edges),
            tuple(tuple(map(float, bins[:-1])) for bins in found),
            tuple(float(bins[-1]) for bins in found),
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON-serializable dict."""
        return {
            name: {"edges": list(edges), "shares": list(shares)} | ({"missing": missing} if missing else {})
            for name, edges, shares, missing in zip(self.names, self.edges, self.shares, self.missing, strict=True)
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reference:
        """Restore a reference from `to_dict`.

        Raises:
            CorruptFileError: If the content is damaged.
        """
        try:
            edges = tuple(tuple(map(float, field["edges"])) for field in content.values())
            shares = tuple(tuple(map(float, field["shares"])) for field in content.values())
            missing = tuple(float(field.get("missing", 0.0)) for field in content.values())
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"the reference of the training rows is damaged ({error!r}): train the run again") from error
        if any(len(bins) != len(borders) + 1 for bins, borders in zip(shares, edges, strict=True)):
            raise CorruptFileError(
                "the reference of the training rows is damaged, its numbers of bins and edges do not match: train the run again"
            )
        return cls(tuple(content), edges, shares, missing)


def _borders(column: NDArray[Any]) -> Floats:
    """Quantiles of the values that are there, each once."""
    known = column[~np.isnan(column)]
    return np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])) if len(known) else np.zeros(0)


def _binned(borders: NDArray[Any], column: NDArray[Any]) -> Floats:
    """Share of the values in each bin, and the share of missing ones last."""
    there = ~np.isnan(column)
    counts = np.bincount(np.searchsorted(borders, column[there], side="right"), minlength=len(borders) + 1)
    shares: Floats = np.append(counts, len(column) - there.sum()) / max(1, len(column))
    return shares


@dataclass(frozen=True)
class FieldDrift:
    """Change of one field from the training rows to a table."""

    name: str
    index: float
    """PSI, at least 0."""
    noise: float
    """An index that a table of this size reaches by chance about once in ten thousand times."""
    median: tuple[float, float] | None
    """Median of the training rows, to the border of a bin, and of the table; None without a value."""
    missing: tuple[float, float]
    """Share of missing values in the training rows and in the table."""

    most: tuple[int, float, float] | None = None
    """The bin whose share changed most, with its share in the training rows and in the table."""

    @property
    def notable(self) -> bool:
        """Whether the index is above the usual limit, and above what chance explains."""
        return self.index >= max(MODERATE, self.noise)


def table_drift(reference: Reference, values: NDArray[Any], score: NDArray[Any]) -> list[FieldDrift]:
    """Compare the rows of a table with the training rows.

    Args:
        reference: Shares of the training rows.
        values: (N, C) the fields of the rows, in the order of the reference.
        score: (N,) their calibrated scores.

    Returns:
        The fields and the score, in the order of the reference; none if the table has no row.
    """
    if not len(score):
        return []
    found = []
    for place, name in enumerate(reference.names):
        column = score if name == SCORE and place == values.shape[1] else values[:, place]
        expected = np.append(reference.shares[place], reference.missing[place])
        now = _binned(np.asarray(reference.edges[place], dtype=np.float64), column)
        # N times the index of a sample of N rows is nearly chi-squared; its degrees of freedom: bins less 1.
        free = max(1, int(np.count_nonzero(expected)) - 1)
        noise = (free + 4 * np.sqrt(2.0 * free) + 4) / len(column)
        known = column[~np.isnan(column)]
        borders = reference.edges[place]
        before = None
        if borders and len(known):
            at = int(np.searchsorted(np.cumsum(reference.shares[place]), (1 - reference.missing[place]) / 2))
            before = (float(borders[min(at, len(borders) - 1)]), float(np.median(known)))
        # In a small table an empty bin counts as half a row, so that the logarithm does not make much of it.
        index = float(stability_index(expected, np.where(expected > 0, np.maximum(now, 0.5 / len(column)), now)))
        bin_ = int(np.abs(now - expected)[:-1].argmax())
        most = (bin_, float(expected[bin_]), float(now[bin_]))
        found.append(FieldDrift(name, index, float(noise), before, (reference.missing[place], float(now[-1])), most))
    return found


def stability_index(expected: NDArray[Any], observed: NDArray[Any]) -> Floats:
    """Compute the PSI over the last axis of two arrays of shares; empty bins count as 1e-4."""
    before, now = np.maximum(expected, _FLOOR), np.maximum(observed, _FLOOR)
    index: Floats = ((now - before) * np.log(now / before)).sum(axis=-1)
    return index


class LiveDrift:
    """Counts live rows in the bins of a reference; the weight of older rows decays.

    Args:
        reference: Shares of the training rows.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        width = max(map(len, reference.shares))
        self._edges = np.array([borders + (np.inf,) * (width - 1 - len(borders)) for borders in reference.edges])
        rows = zip(reference.shares, reference.missing, strict=True)
        self._expected = np.array([shares + (0.0,) * (width - len(shares)) + (missing,) for shares, missing in rows])
        self._counts = np.zeros_like(self._expected)
        self._field = np.arange(len(reference.names))
        self.rows = 0
        """Number of rows counted."""

    def add(self, values: NDArray[Any], score: float) -> None:
        """Count a row, given its fields (C,) and its score."""
        row = np.append(values.astype(np.float64), score)
        self._counts *= 0.5 ** (1 / HALF_LIFE)
        bins = np.where(np.isnan(row), self._expected.shape[1] - 1, (self._edges <= row[:, None]).sum(axis=1))
        self._counts[self._field, bins] += 1
        self.rows += 1

    def indices(self) -> dict[str, float]:
        """Return the PSI by field; empty before `LEAST` rows."""
        if self.rows < LEAST:
            return {}
        each = stability_index(self._expected, self._counts / self._counts.sum(axis=1, keepdims=True))
        return dict(zip(self.reference.names, each.tolist(), strict=True))
