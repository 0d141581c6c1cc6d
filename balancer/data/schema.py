"""The schema: all that scoring needs to build the same fields from another table.

What is special: whatever is learned (vocabularies, fill values) is learned on training rows only and written as JSON, never pickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.spec import Spec
from balancer.data.timeline import Index
from balancer.errors import InputError


@dataclass(frozen=True)
class Schema:
    """Names and learned tables of the fields of a `TransactionStore`."""

    spec: Spec
    """Roles of the columns."""
    classes: tuple[str, ...]
    """Class names, the negative one first."""
    numeric_fields: tuple[str, ...]
    """Names of the first `num_numeric` columns of `TransactionStore.values`."""
    categorical_fields: tuple[str, ...]
    """Names of the columns after them."""
    vocabularies: dict[str, list[str]]
    """Per categorical field the values seen in training, most frequent first: value i has code i + 1, code 0 is unseen or null."""
    fill: dict[str, float]
    """Per numeric column its training median, which stands for null."""

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each categorical field, code 0 included."""
        return tuple(len(self.vocabularies[name]) + 1 for name in self.categorical_fields)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {
            "spec": self.spec.to_dict(),
            "classes": list(self.classes),
            "numeric_fields": list(self.numeric_fields),
            "categorical_fields": list(self.categorical_fields),
            "vocabularies": {name: list(values) for name, values in self.vocabularies.items()},
            "fill": dict(self.fill),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Schema:
        """The inverse of `to_dict`; raises `InputError` naming the first key that is missing."""
        missing = [key for key in ("spec", "classes", "numeric_fields", "categorical_fields", "vocabularies", "fill") if key not in raw]
        if missing:
            raise InputError(f"the saved schema has no {missing[0]!r}: the run folder is damaged or foreign")
        return cls(
            spec=Spec.from_dict(raw["spec"]),
            classes=tuple(raw["classes"]),
            numeric_fields=tuple(raw["numeric_fields"]),
            categorical_fields=tuple(raw["categorical_fields"]),
            vocabularies={name: list(values) for name, values in raw["vocabularies"].items()},
            fill={name: float(value) for name, value in raw["fill"].items()},
        )


def learn_vocabulary(values: pl.Series, train: NDArray[np.bool_]) -> list[str]:
    """Values of the training rows as text, most frequent first, ties in alphabetical order."""
    counts = values.cast(pl.String).filter(pl.Series(train)).drop_nulls().value_counts(name="n")
    return [str(v) for v in counts.sort(["n", values.name], descending=[True, False])[values.name]]


def encode(values: pl.Series, vocabulary: list[str]) -> Index:
    """(N,) int64: position in `vocabulary`, -1 where null or not in it."""
    enum = pl.Enum(pl.Series(vocabulary, dtype=pl.String))
    return values.cast(pl.String).cast(enum, strict=False).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()


def distinct(values: pl.Series) -> list[str]:
    """Distinct non-null values as text, sorted."""
    return values.cast(pl.String).drop_nulls().unique().sort().to_list()
