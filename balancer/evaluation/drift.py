"""Measure drift: the population stability index (PSI) of each field of live rows against the training rows.

What is special: numeric and categorical fields are binned in the same way, by an array of edges, so that a
live row is binned by one comparison. Counts decay exponentially, so that the index describes the latest rows
without storing them. Rule of thumb in credit scoring: below .1 no change, above .25 a different population
(Siddiqi 2006, Credit Risk Scorecards).
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
_FLOOR = 1e-4
"""Smallest share of a bin in the index."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Shares of the training rows in the bins of each field; `to_dict` converts it to JSON."""

    names: tuple[str, ...]
    """The fields, and `SCORE` last."""
    edges: tuple[tuple[float, ...], ...]
    """Per field, the increasing borders between bins. The bin of a value is the number of edges at or below
    it."""
    shares: tuple[tuple[float, ...], ...]
    """Per field, the share of each bin; one more than there are edges."""

    @classmethod
    def of(cls, numeric: Sequence[str], categorical: Sequence[str], values: NDArray[Any], score: NDArray[Any]) -> Reference:
        """Compute the reference.

        Args:
            numeric: Names of the numeric fields.
            categorical: Names of the categorical fields.
            values: (N, C) training rows, numeric fields first.
            score: (M,) calibrated scores of rows that were not used for training.
        """
        edges = [np.unique(np.nanquantile(values[:, place], np.linspace(0, 1, BINS + 1)[1:-1])) for place in range(len(numeric))]
        edges += [np.arange(min(CODES, int(values[:, place].max(initial=0)) + 1)) + 0.5 for place in range(len(numeric), values.shape[1])]
        edges.append(np.unique(np.quantile(score, np.linspace(0, 1, BINS + 1)[1:-1])))
        columns = [*(values[:, place] for place in range(values.shape[1])), score]
        shares = []
        for borders, column in zip(edges, columns, strict=True):
            counts = np.bincount(np.searchsorted(borders, column, side="right"), minlength=len(borders) + 1)
            shares.append(tuple(float(share) for share in counts / max(1, len(column))))
        return cls((*numeric, *categorical, SCORE), tuple(tuple(map(float, borders)) for borders in edges), tuple(shares))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON-serializable dict."""
        return {
            name: {"edges": list(edges), "shares": list(shares)}
            for name, edges, shares in zip(self.names, self.edges, self.shares, strict=True)
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
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"the reference of the training rows is damaged ({error!r}): train the run again") from error
        if any(len(bins) != len(borders) + 1 for bins, borders in zip(shares, edges, strict=True)):
            raise CorruptFileError(
                "the reference of the training rows is damaged, its numbers of bins and edges do not match: train the run again"
            )
        return cls(tuple(content), edges, shares)


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
        self._expected = np.array([shares + (0.0,) * (width - len(shares)) for shares in reference.shares])
        self._counts = np.zeros_like(self._expected)
        self._field = np.arange(len(reference.names))
        self.rows = 0
        """Number of rows counted."""

    def add(self, values: NDArray[Any], score: float) -> None:
        """Count a row, given its fields (C,) and its score."""
        row = np.append(values.astype(np.float64), score)
        self._counts *= 0.5 ** (1 / HALF_LIFE)
        self._counts[self._field, (self._edges <= row[:, None]).sum(axis=1)] += 1
        self.rows += 1

    def indices(self) -> dict[str, float]:
        """Return the PSI by field; empty before `LEAST` rows."""
        if self.rows < LEAST:
            return {}
        each = stability_index(self._expected, self._counts / self._counts.sum(axis=1, keepdims=True))
        return dict(zip(self.reference.names, each.tolist(), strict=True))
