"""The schema: all that scoring needs to build the same fields from another table.

What is special: whatever is learned (vocabularies, fill values) is learned on training rows only and written as JSON, never pickled.
Values outside the vocabulary can be hashed into buckets: new merchants then share a few codes that training knows, instead of one.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.spec import Spec
from balancer.data.timeline import Index
from balancer.errors import InputError

RARE = 5
"""With hash buckets, a value of fewer training rows than this is hashed: what unseen values look like is learned from the rare ones."""


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
    """Per categorical field the values seen in training, most frequent first: value i has code i + 1, code 0 is unseen or null. With hash
    buckets rare values are left out, and code 0 is null alone."""
    fill: dict[str, float]
    """Per numeric column its training median, which stands for null."""
    hash_buckets: int = 0
    """Codes per categorical field for values outside its vocabulary, after those of the vocabulary; 0: they have code 0."""

    def __post_init__(self) -> None:
        check_buckets(self.hash_buckets)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each categorical field, code 0 and hash buckets included."""
        return tuple(len(self.vocabularies[name]) + 1 + self.hash_buckets for name in self.categorical_fields)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; without hash buckets the same as before there were any."""
        content: dict[str, Any] = {
            "spec": self.spec.to_dict(),
            "classes": list(self.classes),
            "numeric_fields": list(self.numeric_fields),
            "categorical_fields": list(self.categorical_fields),
            "vocabularies": {name: list(values) for name, values in self.vocabularies.items()},
            "fill": dict(self.fill),
        }
        return content | {"hash_buckets": self.hash_buckets} if self.hash_buckets else content

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
            hash_buckets=raw.get("hash_buckets", 0),
        )


def check_buckets(hash_buckets: int) -> None:
    """Raises `InputError` unless the number of hash buckets can be used; more than a million would leave float32's exact codes."""
    if not isinstance(hash_buckets, int) or isinstance(hash_buckets, bool) or not 0 <= hash_buckets <= 1_000_000:
        raise InputError(f"hash_buckets is {hash_buckets!r}: give a whole number from 0 (no hashing) to 1000000")


def learn_vocabulary(values: pl.Series, train: NDArray[np.bool_], least: int = 1) -> list[str]:
    """Values of at least `least` training rows as text, most frequent first, ties in alphabetical order."""
    counts = values.cast(pl.String).filter(pl.Series(train)).drop_nulls().value_counts(name="n")
    counts = counts.filter(pl.col("n") >= least)
    return [str(v) for v in counts.sort(["n", values.name], descending=[True, False])[values.name]]


def encode(values: pl.Series, vocabulary: list[str]) -> Index:
    """(N,) int64: position in `vocabulary`, -1 where null or not in it."""
    enum = pl.Enum(pl.Series(vocabulary, dtype=pl.String))
    return values.cast(pl.String).cast(enum, strict=False).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()


def field_codes(values: pl.Series, vocabulary: list[str], hash_buckets: int = 0) -> Index:
    """(N,) int64 codes of a categorical field: 0 for null, 1 to V by `vocabulary`, V + 1 + crc32(text) % hash_buckets for other values; 0 for those
    too where there are no buckets. A value has the same code on every machine and in every table.
    """
    codes = encode(values, vocabulary) + 1
    text = values.cast(pl.String)
    other = np.flatnonzero((codes == 0) & text.is_not_null().to_numpy())
    if hash_buckets and len(other):
        texts = text[other]
        names = texts.unique()
        hashed = [len(vocabulary) + 1 + zlib.crc32(name.encode()) % hash_buckets for name in names]
        codes[other] = texts.replace_strict(names, hashed, return_dtype=pl.Int64).to_numpy()
    return codes


class FieldCoder:
    """`field_codes` for one value after another.

    Args:
        schema: vocabularies and hash buckets.
    """

    def __init__(self, schema: Schema) -> None:
        self._codes = {name: {text: code for code, text in enumerate(values, 1)} for name, values in schema.vocabularies.items()}
        self._buckets = schema.hash_buckets

    def code(self, name: str, text: str | None) -> int:
        """Code of the text in the categorical field `name`."""
        if text is None:
            return 0
        known = self._codes[name]
        code = known.get(text, 0)
        return code or (len(known) + 1 + zlib.crc32(text.encode()) % self._buckets if self._buckets else 0)


def distinct(values: pl.Series) -> list[str]:
    """Distinct non-null values as text, sorted."""
    return values.cast(pl.String).drop_nulls().unique().sort().to_list()
