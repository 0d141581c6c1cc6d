"""The boosted trees of a detector: a first stage by folds of entities, and a second stage on its scores.

What is special: the first stage gives every row of the training period a score by trees that never saw the
row's entity, as it will be for a new row. Later rows get the mean of all folds. Which trees score a row
depends on the row alone, on its time and on the name of its entity, so a table, a stream and the service
agree. The trees are stored in LightGBM's own text format and are never unpickled; LightGBM is not needed
to score.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from balancer.data.dataset import Dataset
from balancer.data.schema import Schema
from balancer.errors import CorruptFileError
from balancer.files import read_json, write_json, write_text
from balancer.trees import TreeEnsemble

TREES_FOLDER = "trees"
STAGES_FILE = "stages.json"
FORMAT = 1
FOLDS = 3
AT_ONCE = 200_000
"""Rows that are scored at once, which limits the memory."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TreeStages:
    """The trees of a detector. The members of a stage are averaged on the scale of log-odds."""

    folds: tuple[TreeEnsemble, ...]
    """First stage: trees by fold, fitted on the entities of the other folds."""
    second: tuple[TreeEnsemble, ...]
    """Second stage: trees on the score fields and all others."""
    train_end: float
    """Time of the last training row, in seconds."""
    kinds: TreeEnsemble | None = None
    """Trees that tell the kinds of fraud apart, where no network does it."""

    @property
    def note(self) -> str | None:
        """What a user should know about the speed; None where the compiled evaluator is used."""
        return self.folds[0].note

    def first_logit(self, values: NDArray[np.float32], time: Floats, fold: NDArray[np.integer]) -> Floats:
        """Log-odds of fraud by the first stage.

        Args:
            values: (n, F) fields without score fields.
            time: (n,) seconds.
            fold: (n,) fold of each row (`fold_of`).

        Returns:
            (n,) float64.
        """
        early = time <= self.train_end
        total, logit = np.zeros(len(time)), np.zeros(len(time))
        for number, trees in enumerate(self.folds):
            wanted = np.flatnonzero(~early | (fold == number))
            for rows in np.array_split(wanted, max(1, -(-len(wanted) // AT_ONCE))):
                # A view of all rows needs no copy.
                raw = trees.raw(values if len(rows) == len(values) else values[rows], threads=torch.get_num_threads())
                total[rows] += raw
                logit[rows] = raw
        return np.where(early, logit, total / len(self.folds))

    def second_logit(self, values: NDArray[np.float32]) -> Floats:
        """Log-odds of fraud (n,) by the second stage, from all fields (n, F)."""
        total = np.zeros(len(values))
        for trees in self.second:
            total += trees.raw(values, threads=torch.get_num_threads())
        return total / len(self.second)

    def kind_shares(self, values: NDArray[np.float32], num_kinds: int) -> Floats:
        """Probability of each kind of fraud (n, num_kinds), given fraud, from all fields (n, F)."""
        if self.kinds is None:
            return np.full((len(values), num_kinds), 1.0 / num_kinds)
        raw = self.kinds.raw(values)
        odds = np.exp(raw - raw.max(axis=1, keepdims=True))
        shares: Floats = odds / odds.sum(axis=1, keepdims=True)
        return shares

    def fill(self, dataset: Dataset) -> None:
        """Compute the score fields of all rows of a data set, in place."""
        base = dataset.without_score_fields()
        dataset.fill_score_fields(self.first_logit(base.store.values, base.store.time, row_folds(base, len(self.folds))))

    def save(self, folder: Path, schema: Schema, fitted: Path) -> None:
        """Write the trees to ``folder``, and then the file that names them.

        Args:
            folder: `TREES_FOLDER` of a run.
            schema: The schema of the run.
            fitted: Folder of the files that these trees were read from.
        """
        folder.mkdir(exist_ok=True)
        named = self._named()
        for name in named:
            write_text(folder / name, (fitted / name).read_text())
        content = {
            "format": FORMAT,
            "train_end": self.train_end,
            "first": [name for name in named if name.startswith("first")],
            "second": [name for name in named if name.startswith("second")],
            "kinds": self.kinds is not None,
            "digests": {name: trees.digest for name, trees in named.items()},
            "fields": digest_of(schema),
        }
        write_json(folder / STAGES_FILE, content)

    def _named(self) -> dict[str, TreeEnsemble]:
        named = {f"first-{number}.txt": trees for number, trees in enumerate(self.folds)}
        named |= {f"second-{number}.txt": trees for number, trees in enumerate(self.second)}
        return named if self.kinds is None else named | {"kinds.txt": self.kinds}

    @classmethod
    def load(cls, folder: Path, schema: Schema) -> TreeStages:
        """Read the trees of a run.

        Args:
            folder: Their folder, `TREES_FOLDER` of a run.
            schema: The schema of the run.

        Raises:
            MissingFileError: A file is missing.
            CorruptFileError: A file is damaged, of another run, or of another program.
        """
        path = folder / STAGES_FILE
        content = read_json(path, what="it names the trees of the detector")
        remedy = "restore the file, or train the run again"
        if content.get("format") != FORMAT:
            raise CorruptFileError(f"{path} has format {content.get('format')!r}, not {FORMAT}: {remedy}")
        first, second, has_kinds, train_end = _named_trees(content, path, remedy)
        if content.get("fields") != digest_of(schema):
            raise CorruptFileError(f"{path} belongs to trees with other fields than schema.json of this run: {remedy}")
        wanted = [(folder / name, content["digests"][name]) for name in (*first, *second, *(("kinds.txt",) if has_kinds else ()))]
        trees = [TreeEnsemble.read(file) for file, _ in wanted]
        columns = len(schema.numeric_fields) + len(schema.categorical_fields)
        base = columns - len(schema.score_fields)
        middle, end = len(first), len(first) + len(second)
        for number, (each, (file, digest)) in enumerate(zip(trees, wanted, strict=True)):
            if each.digest != digest:
                raise CorruptFileError(f"{file} is not the file that {path} names: {remedy}")
            if each.num_features != (base if number < middle else columns):
                raise CorruptFileError(f"{file} has {each.num_features} fields, which are not those of this run: {remedy}")
            if each.num_outputs != (1 if number < end else len(schema.classes) - 1):
                raise CorruptFileError(f"{file} tells {each.num_outputs} classes apart, which are not those of this run: {remedy}")
        return cls(tuple(trees[:middle]), tuple(trees[middle:end]), train_end, trees[end] if has_kinds else None)


def _named_trees(content: Mapping[str, Any], path: Path, remedy: str) -> tuple[list[str], list[str], bool, float]:
    """Files of both stages, whether there are trees of kinds, and the end of the training period, in seconds.

    Raises:
        CorruptFileError: `STAGES_FILE` lacks a value, or has one that can't be.
    """

    def refuse(what: str) -> NoReturn:
        raise CorruptFileError(f"{path} {what}: {remedy}")

    for key, shown in (("first", "list of the first stage"), ("second", "list of the second stage"), ("digests", "digests of the trees")):
        if not isinstance(content.get(key), dict if key == "digests" else list):
            refuse(f"has no {shown}")
    first, second, kinds, train_end = content["first"], content["second"], content.get("kinds"), content.get("train_end")
    if first != [f"first-{number}.txt" for number in range(FOLDS)]:
        refuse(f"does not name first-0.txt to first-{FOLDS - 1}.txt as the first stage, in this order")
    if not second or second != [f"second-{number}.txt" for number in range(len(second))]:
        refuse("does not name second-0.txt and those after it as the second stage, in their order")
    if not isinstance(kinds, bool):
        refuse("does not say whether there are trees for the kinds of fraud")
    if isinstance(train_end, bool) or not isinstance(train_end, float | int) or not math.isfinite(train_end):
        refuse(f"names {train_end!r} as the end of the training period, which is no time in seconds")
    lacking = [name for name in (*first, *second, *(("kinds.txt",) if kinds else ())) if not isinstance(content["digests"].get(name), str)]
    if lacking:
        refuse(f"lacks the digest of {lacking[0]}")
    return first, second, kinds, float(train_end)


def load_stages(run: Path, schema: Schema) -> TreeStages | None:
    """Read the trees of the run folder ``run``; None where its detector has none."""
    return TreeStages.load(run / TREES_FOLDER, schema) if schema.score_fields else None


def digest_of(schema: Schema) -> str:
    """Digest of the names of the fields and of the codes of the categories."""
    digest = hashlib.sha256(repr((schema.numeric_fields, schema.categorical_fields, schema.hash_buckets)).encode())
    digest.update(repr([schema.vocabularies[name] for name in schema.categorical_fields]).encode())
    return digest.hexdigest()


def fold_of(entity: str, folds: int = FOLDS) -> int:
    """Fold of an entity, from its name alone."""
    return int.from_bytes(hashlib.blake2b(entity.encode(), digest_size=8).digest(), "little") % folds


def row_folds(dataset: Dataset, folds: int = FOLDS, rows: NDArray[np.int64] | None = None) -> NDArray[np.int8]:
    """Fold of rows: that of the entity, or of the time where the table has no entity.

    Args:
        dataset: The transactions.
        folds: Number of folds.
        rows: (n,) store rows; None: all.

    Returns:
        (n,) from 0 to ``folds`` - 1.
    """
    store, chosen = dataset.store, slice(None) if rows is None else rows
    if not dataset.entities:
        return time_folds(store.time[chosen], folds)
    entities, place = np.unique(store.entity[chosen], return_inverse=True)
    return np.array([fold_of(dataset.entities[code], folds) for code in entities.tolist()], dtype=np.int8)[place]


def time_folds(time: Floats, folds: int = FOLDS) -> NDArray[np.int8]:
    """Fold (n,) of rows that belong to no entity: a mixture of the bits of the time, in seconds.

    Rows with the same time are in the same fold.
    """
    bits = np.ascontiguousarray(time, dtype=np.float64).view(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of SplitMix64
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return (bits % np.uint64(folds)).astype(np.int8)


def has_every_fold(fold: NDArray[np.int8], fraud: NDArray[np.bool_], folds: int, least: int) -> bool:
    """Whether every fold, and the rows outside it, have at least ``least`` frauds and as many other rows."""
    counts: Sequence[tuple[int, int]] = [
        (int((fraud & (fold == number)).sum()), int((~fraud & (fold == number)).sum())) for number in range(folds)
    ]
    return all(min(pair) >= least for pair in counts)
