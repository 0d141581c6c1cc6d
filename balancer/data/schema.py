"""The schema: everything that scoring needs to build the same fields from another table.

What is special: vocabularies and fill values are learned on training rows only and are saved as JSON, never
pickled. Values outside the vocabulary can be hashed into buckets: new merchants then share several codes that
the model has trained on, instead of a single one. A schema of an earlier version converts values as that
version did (`Schema.values`), so its model gives the same scores.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.features import ROW_FIELDS
from balancer.data.score_memory import memory_names
from balancer.data.spec import Spec
from balancer.data.timeline import Index
from balancer.errors import InputError
from balancer.tables.options import NORMAL, PLAIN
from balancer.tables.times import TimeForm
from balancer.tables.values import plain_form

RARE = 5
"""Values of a column with hash buckets, or with more than `MANY` values, have a code of their own from this
number of training rows on: the model learns from rare values how to treat unseen ones."""
MANY = 100
"""Number of values in the training rows up to which each has a code, however rare it is."""
MOST_CODES = 1_000
"""Most values with a code of their own, where a column has more than `MANY`."""
OWN = "column:"
"""Prefix of the field of a column, where a derived field has the name of the column."""


@dataclass(frozen=True)
class Schema:
    """Names, vocabularies and fill values of the fields of a `TransactionStore`."""

    spec: Spec
    """Roles of the columns."""
    classes: tuple[str, ...]
    """Class names, the negative one first."""
    numeric_fields: tuple[str, ...]
    """Names of the first `num_numeric` columns of `TransactionStore.values`."""
    categorical_fields: tuple[str, ...]
    """Names of the remaining columns of `TransactionStore.values`."""
    vocabularies: dict[str, list[str]]
    """Per categorical field, the values seen in training, most frequent first. Value i has code i + 1; code 0
    is unseen or null. With hash buckets, rare values are left out and code 0 is null only."""
    fill: dict[str, float]
    """Per field of a numeric column, the median of the training rows. It replaces a missing value, unless the
    field is in `missing`."""
    hash_buckets: int = 0
    """Number of codes per categorical field for values outside the vocabulary; with 0 they have code 0."""
    values: str = PLAIN
    """How categories and keys are compared: by their `NORMAL` form, or `PLAIN` as in earlier versions."""
    missing: tuple[str, ...] = ()
    """Fields of numeric columns with missing values in the training rows; there a missing value stays NaN."""
    columns: dict[str, str] = field(default_factory=dict)
    """Per field that has the prefix `OWN`, its column."""
    time: TimeForm = field(default_factory=TimeForm)
    """How the training table held its times."""
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Per joined name, such as `card1+addr1`, the columns that it is made of."""

    def __post_init__(self) -> None:
        check_buckets(self.hash_buckets)
        if self.values not in (NORMAL, PLAIN):
            raise InputError(f"the form of values is {self.values!r}: use the version of balancer that wrote the run")
        names = (*self.numeric_fields, *self.categorical_fields)
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise InputError(f"two fields of the table have the name {twice!r}: rename the columns that they come from, or leave one out")

    @property
    def past_fields(self) -> frozenset[str]:
        """Numeric fields that depend on earlier rows, and on how many there are."""
        own = {*self.own_fields.values(), *ROW_FIELDS}
        return frozenset(name for name in self.numeric_fields if name not in own)

    @property
    def usual_time(self) -> TimeForm:
        """How times are read when scoring: as in training. Earlier versions took all numbers for seconds."""
        return TimeForm(unit="s") if self.values == PLAIN and not self.time else self.time

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each categorical field, code 0 and hash buckets included."""
        return tuple(len(self.vocabularies[name]) + 1 + self.hash_buckets for name in self.categorical_fields)

    @property
    def categorical_columns(self) -> dict[str, str]:
        """The column of each categorical field, by field."""
        return {name: self.columns.get(name, name) for name in self.categorical_fields}

    @property
    def own_fields(self) -> dict[str, str]:
        """The field of each numeric column, by column."""
        prefixed = {self.columns[name]: name for name in self.numeric_fields if name in self.columns}
        return {column: prefixed.get(column, column) for column in self.spec.numeric}

    def encodes_like(self, other: Schema) -> bool:
        """Whether the values of a table get the same codes, and the same numbers are kept missing."""
        mine, theirs = ((each.vocabularies, each.hash_buckets, each.values, each.missing) for each in (self, other))
        return mine == theirs

    def parts(self, name: str) -> tuple[str, ...]:
        """The columns that make a key: the column itself, or those of a joined key."""
        return self.joined.get(name, (name,))

    @property
    def score_fields(self) -> tuple[str, ...]:
        """Fields that come from the scores of a detector's first stage; the first of `numeric_fields`."""
        known = frozenset(memory_names(True))
        return tuple(takewhile(known.__contains__, self.numeric_fields))

    def without_score_fields(self) -> Schema:
        """The schema of the fields that the first stage reads."""
        return replace(self, numeric_fields=self.numeric_fields[len(self.score_fields) :])

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON-serializable dict, without what has its default as in earlier versions."""
        content: dict[str, Any] = {
            "spec": self.spec.to_dict(),
            "classes": list(self.classes),
            "numeric_fields": list(self.numeric_fields),
            "categorical_fields": list(self.categorical_fields),
            "vocabularies": {name: list(values) for name, values in self.vocabularies.items()},
            "fill": dict(self.fill),
        }
        added = {
            "hash_buckets": self.hash_buckets,
            "values": "" if self.values == PLAIN else self.values,
            "missing": list(self.missing),
            "columns": dict(self.columns),
            "time": {key: value for key, value in vars(self.time).items() if value is not None},
            "joined": {name: list(parts) for name, parts in self.joined.items()},
        }
        return content | {key: value for key, value in added.items() if value}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Schema:
        """Restore a schema from `to_dict`.

        Raises:
            InputError: If a key is missing; the message names it.
        """
        missing = [key for key in ("spec", "classes", "numeric_fields", "categorical_fields", "vocabularies", "fill") if key not in raw]
        if missing:
            raise InputError(f"the saved schema has no {missing[0]!r}: the run folder is damaged or was not written by balancer")
        return cls(
            spec=Spec.from_dict(raw["spec"]),
            classes=tuple(raw["classes"]),
            numeric_fields=tuple(raw["numeric_fields"]),
            categorical_fields=tuple(raw["categorical_fields"]),
            vocabularies={name: list(values) for name, values in raw["vocabularies"].items()},
            fill={name: float(value) for name, value in raw["fill"].items()},
            hash_buckets=raw.get("hash_buckets", 0),
            values=raw.get("values", PLAIN),
            missing=tuple(raw.get("missing", ())),
            columns=dict(raw.get("columns", {})),
            time=TimeForm(**raw.get("time", {})),
            joined={name: tuple(parts) for name, parts in raw.get("joined", {}).items()},
        )


def check_buckets(hash_buckets: int) -> None:
    """Check the number of hash buckets.

    Raises:
        InputError: If it is not a whole number from 0 to a million; codes must be exact in float32.
    """
    if not isinstance(hash_buckets, int) or isinstance(hash_buckets, bool) or not 0 <= hash_buckets <= 1_000_000:
        raise InputError(f"hash_buckets is {hash_buckets!r}: give a whole number from 0 (no hashing) to 1000000")


def learn_vocabulary(values: pl.Series, train: NDArray[np.bool_], least: int = 1, many: int | None = None) -> list[str]:
    """List the values of the training rows, as `choose_vocabulary` does.

    Args:
        values: (N,) values of the column.
        train: (N,) whether a row is a training row.
        least: Fewest training rows of a value.
        many: As for `choose_vocabulary`.
    """
    return choose_vocabulary(count_values(values, train), least, many)


def count_values(values: pl.Series, train: NDArray[np.bool_]) -> pl.DataFrame:
    """Count the training rows of each value that has one: its text, and the number in the column `n`."""
    return plain_form(values).filter(pl.Series(train)).drop_nulls().value_counts(name="n")


def choose_vocabulary(counts: pl.DataFrame, least: int = 1, many: int | None = None) -> list[str]:
    """List the values that get a code of their own.

    Args:
        counts: Training rows of each value that has one (`count_values`).
        least: Fewest training rows of a value.
        many: Number of distinct values above which only the `MOST_CODES` most frequent ones with at least
            `RARE` training rows are listed; None: no limit.

    Returns:
        Values as text, most frequent first, ties in alphabetical order.
    """
    limit, name = many is not None and counts.height > many, counts.columns[0]
    counts = counts.filter(pl.col("n") >= (max(least, RARE) if limit else least))
    found = [str(v) for v in counts.sort(["n", name], descending=[True, False])[name]]
    return found[:MOST_CODES] if limit else found


def encode(values: pl.Series, vocabulary: list[str]) -> Index:
    """Encode values by their position in a vocabulary: (N,) int64, -1 where null or unknown."""
    enum = pl.Enum(pl.Series(vocabulary, dtype=pl.String))
    return plain_form(values).cast(enum, strict=False).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()


def field_codes(values: pl.Series, vocabulary: list[str], hash_buckets: int = 0) -> Index:
    """Encode the values of a categorical field.

    A value has the same code on every machine and in every table.

    Args:
        values: (N,) values of the column, in the form of the schema (`form_of`).
        vocabulary: V values with a code of their own.
        hash_buckets: Number of codes shared by all other values.

    Returns:
        (N,) int64 codes: 0 for null, 1 to V for the vocabulary, V + 1 + crc32(text) % hash_buckets for other
        values. Without hash buckets, other values have code 0 as well.
    """
    codes = encode(values, vocabulary) + 1
    text = plain_form(values)
    other = np.flatnonzero((codes == 0) & text.is_not_null().to_numpy())
    if hash_buckets and len(other):
        texts = text[other]
        names = texts.unique()
        hashed = [_hash_code(name, len(vocabulary), hash_buckets) for name in names]
        codes[other] = texts.replace_strict(names, hashed, return_dtype=pl.Int64).to_numpy()
    return codes


class FieldCoder:
    """Encodes one value at a time, with the same codes as `field_codes`.

    Args:
        schema: Vocabularies and hash buckets.
    """

    def __init__(self, schema: Schema) -> None:
        self._codes = {name: {text: code for code, text in enumerate(values, 1)} for name, values in schema.vocabularies.items()}
        self._buckets = schema.hash_buckets

    def code(self, name: str, text: str | None) -> int:
        """Return the code of `text` in the categorical field `name`; None is null."""
        if text is None:
            return 0
        known = self._codes[name]
        return known.get(text, 0) or (_hash_code(text, len(known), self._buckets) if self._buckets else 0)


def _hash_code(text: str, vocabulary_size: int, hash_buckets: int) -> int:
    return vocabulary_size + 1 + zlib.crc32(text.encode()) % hash_buckets


def distinct(values: pl.Series) -> list[str]:
    """List the distinct non-null values as text, sorted."""
    return plain_form(values).drop_nulls().unique().sort().to_list()


def own_names(numeric: tuple[str, ...], categorical: tuple[str, ...], derived: tuple[str, ...]) -> dict[str, str]:
    """Name the fields of the columns, so that no field has the name of another one.

    Args:
        numeric: Numeric columns.
        categorical: Categorical columns.
        derived: Names of the derived fields that a table with these roles can have.

    Returns:
        The column of each field: first those of the numeric columns, then those of the categorical ones.
    """
    taken, found = set(derived), {}
    for column in (*numeric, *categorical):
        name = column
        while name in taken:
            name = OWN + name
        taken.add(name)
        found[name] = column
    return found
