"""Whether what comes in still looks like what was trained on: the population stability index (PSI), field by field.

What is special: numbers and categories are binned alike, by a row of edges each, so that a live row is binned by one comparison; and counts fade, so that
the index is of the latest rows and no window of them is kept. Rule of thumb in credit scoring: below .1 nothing, above .25 a different population
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
"""Quantiles of a numeric field."""
CODES = 20
"""Codes of a categorical field that are told apart: the vocabulary begins with the commonest values."""
SCORE = "score"
"""The name under which scores stand beside the fields."""
HALF_LIFE = 2_000.0
"""Rows after which a live row counts for half."""
LEAST = 500
"""Rows before an index is given: fewer than these differ from anything."""
_FLOOR = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Shares of the training rows in the bins of each field; JSON by `to_dict`."""

    names: tuple[str, ...]
    """Fields, and `SCORE` last."""
    edges: tuple[tuple[float, ...], ...]
    """Per field what separates its bins, rising: a value is in as many bins further as edges it reaches."""
    shares: tuple[tuple[float, ...], ...]
    """Per field the share of each bin, one more than edges."""

    @classmethod
    def of(cls, numeric: Sequence[str], categorical: Sequence[str], values: NDArray[Any], score: NDArray[Any]) -> Reference:
        """Of training rows: values (N, C), numeric fields first, and calibrated scores (M,) of rows that were not trained on."""
        edges = [np.unique(np.nanquantile(values[:, place], np.linspace(0, 1, BINS + 1)[1:-1])) for place in range(len(numeric))]
        edges += [np.arange(min(CODES, int(values[:, place].max(initial=0)) + 1)) + 0.5 for place in range(len(numeric), values.shape[1])]
        edges.append(np.unique(np.quantile(score, np.linspace(0, 1, BINS + 1)[1:-1])))
        columns = [*(values[:, place] for place in range(values.shape[1])), score]
        shares = []
        for own, column in zip(edges, columns, strict=True):
            counts = np.bincount(np.searchsorted(own, column, side="right"), minlength=len(own) + 1)
            shares.append(tuple(float(share) for share in counts / max(1, len(column))))
        return cls((*numeric, *categorical, SCORE), tuple(tuple(float(edge) for edge in own) for own in edges), tuple(shares))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            name: {"edges": list(edges), "shares": list(shares)}
            for name, edges, shares in zip(self.names, self.edges, self.shares, strict=True)
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reference:
        """The inverse of `to_dict`; InputError where it is torn."""
        try:
            edges = tuple(tuple(float(edge) for edge in own["edges"]) for own in content.values())
            shares = tuple(tuple(float(share) for share in own["shares"]) for own in content.values())
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(f"the reference of the training rows is torn ({error!r}): train the run again") from error
        if any(len(own) != len(each) + 1 for own, each in zip(shares, edges, strict=True)):
            raise CorruptFileError("the reference of the training rows is torn: it has other numbers of bins than of edges; train the run again")
        return cls(tuple(content), edges, shares)


def stability_index(expected: NDArray[Any], observed: NDArray[Any]) -> Floats:
    """PSI over the last axis of two arrays of shares; empty bins count as 1e-4."""
    wanted, found = np.maximum(expected, _FLOOR), np.maximum(observed, _FLOOR)
    index: Floats = ((found - wanted) * np.log(found / wanted)).sum(axis=-1)
    return index


class LiveDrift:
    """Counts live rows into the bins of a reference; older rows fade.

    Args:
        reference: of the training rows.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        width = max(map(len, reference.shares))
        self._edges = np.array([own + (np.inf,) * (width - 1 - len(own)) for own in reference.edges])
        self._expected = np.array([own + (0.0,) * (width - len(own)) for own in reference.shares])
        self._counts = np.zeros_like(self._expected)
        self._field = np.arange(len(reference.names))
        self.rows = 0
        """Rows seen."""

    def saw(self, values: NDArray[Any], score: float) -> None:
        """Count a row: its fields (C,) and its score."""
        row = np.append(values.astype(np.float64), score)
        self._counts *= 0.5 ** (1 / HALF_LIFE)
        self._counts[self._field, (self._edges <= row[:, None]).sum(axis=1)] += 1
        self.rows += 1

    def indices(self) -> dict[str, float]:
        """PSI by field; nothing before `LEAST` rows."""
        if self.rows < LEAST:
            return {}
        each = stability_index(self._expected, self._counts / self._counts.sum(axis=1, keepdims=True))
        return dict(zip(self.reference.names, each.tolist(), strict=True))
