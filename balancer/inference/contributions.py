"""What each field contributes to a detector's score, in log-odds of fraud, and in words.

What is special: with boosted trees the contributions add up to the detector's raw log-odds, on the average
log-odds of the training rows. Each part is explained by what is known of it:

- Boosted trees: Shapley values along the paths of the trees (TreeSHAP, Lundberg et al. 2020).
- What the second stage attributes to the first-stage score is passed on to the fields in proportion to their
    contributions to that score, after the chain rule of Chen, Lundberg and Lee (2022).
- The network: the first-stage score that it adds to, and the change in its own log-odds when a field is
    hidden.

What is passed on never grows: fields that together contribute less than there is to explain leave a rest,
which is shown as the first-stage score, or as the network's own part. A network without trees has no such
sum: its contributions are the changes by hidden fields alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from balancer.data.dataset import Dataset
from balancer.data.field_words import FieldWords
from balancer.inference.attribution import hidden_log_odds
from balancer.inference.decision import NETWORK, STAGE2
from balancer.inference.detector import Detector, Floats, log_odds
from balancer.inference.scoring import score_rows
from balancer.inference.tree_stages import TreeStages, row_folds
from balancer.models import Classifier

AVERAGE, OWN_PART = "(average)", "(network)"
"""Names of the entries that belong to no field."""
WORDS = {AVERAGE: "average of the training rows", OWN_PART: "the network's own part"}
SMALLEST = 1e-9
"""A rest at most this large is rounding, and has no entry."""


@dataclass(frozen=True, eq=False)
class Contributions:
    """Contributions to the log-odds of fraud of n rows."""

    rows: NDArray[np.int64]
    """(n,) store rows."""
    fields: Floats
    """(n, F) contribution of each field of the data set."""
    average: Floats
    """(n,) average log-odds of the training rows, by the trees; 0 for a network alone."""
    own_part: Floats
    """(n,) what hiding single fields of the network does not explain; 0 for a network alone."""
    total: Floats
    """(n,) raw log-odds of the detector, before calibration."""
    adds_up: bool
    """Whether fields, average and own part sum to the total; not for a network alone."""

    def frame(self, dataset: Dataset) -> pl.DataFrame:
        """Tabulate them.

        Args:
            dataset: The data set of the rows.

        Returns:
            Columns `row` (store row), `field` (its name, `AVERAGE` or `OWN_PART`), `value` (text, with a unit
            or as the name of the category), `contribution`, and `words`, what the field says. The rows in
            their order, the average first, then the largest absolute contributions.
        """
        names, words = _names(dataset), FieldWords(dataset.schema)
        columns: dict[str, list[Any]] = {"row": [], "field": [], "value": [], "contribution": [], "words": []}

        def add(row: int, field: str, value: str, contribution: float, shown: str) -> None:
            for column, content in zip(columns.values(), (row, field, value, contribution, shown), strict=True):
                column.append(content)

        for number, row in enumerate(self.rows.tolist()):
            values = dict(zip(names, dataset.store.values[row].tolist(), strict=True))
            if self.adds_up:
                add(row, AVERAGE, "", float(self.average[number]), WORDS[AVERAGE])
            found = [(names[place], float(self.fields[number, place])) for place in range(len(names))]
            if abs(self.own_part[number]) > SMALLEST:
                found.append((OWN_PART, float(self.own_part[number])))
            for name, contribution in sorted(found, key=lambda each: -abs(each[1])):
                shown, value = (WORDS[OWN_PART], "") if name == OWN_PART else words.read(name, values)
                add(row, name, value, contribution, shown)
        return pl.DataFrame(
            columns, schema={"row": pl.Int64, "field": pl.String, "value": pl.String, "contribution": pl.Float64, "words": pl.String}
        )

    def reasons(self, dataset: Dataset, most: int) -> list[str]:
        """Name the strongest contributions towards fraud of each row in words.

        Args:
            dataset: The data set of the rows.
            most: Most contributions of a row; those towards legitimate are not named. Fields that say the
                same are one reason with the sum of their contributions.

        Returns:
            (n,) texts such as `transactions of this card in the last hour: 7 (+2.31); region: r-2 (+0.40)`.
        """
        names, words = _names(dataset), FieldWords(dataset.schema)
        texts = []
        for number, row in enumerate(self.rows.tolist()):
            values = dict(zip(names, dataset.store.values[row].tolist(), strict=True))
            said: dict[str, float] = {}
            # Fields that say the same, such as the sine and the cosine of the hour, are one reason.
            for name, contribution in zip(names, self.fields[number].tolist(), strict=True):
                if abs(contribution) > SMALLEST:
                    text = words.sentence(name, values)
                    said[text] = said.get(text, 0.0) + contribution
            if abs(self.own_part[number]) > SMALLEST:
                said[WORDS[OWN_PART]] = float(self.own_part[number])
            strongest = sorted(said.items(), key=lambda each: -each[1])[:most]
            texts.append("; ".join(f"{text} ({contribution:+.2f})" for text, contribution in strongest if contribution > SMALLEST))
        return texts

    def note(self) -> str:
        """Say in sentences what the contributions of the first row are, and whether they add up."""
        if not self.adds_up:
            return (
                "The change in the log-odds of fraud when the field is present instead of hidden, in all transactions that the network "
                "reads. Contributions of fields with the same information do not add up."
            )
        found = (
            f"Together with the average of the training rows, {self.average[0]:+.2f}, the contributions of all fields add up to "
            f"{self.total[0]:+.2f}: the log-odds of fraud before calibration."
        )
        if abs(self.own_part[0]) > SMALLEST:
            found += " The network's own part is what its fields do not explain when they are hidden one by one."
        return found


def contributions_of(detector: Detector, dataset: Dataset, rows: NDArray[np.int64], *, device: torch.device) -> Contributions:
    """Compute what each field contributes to the raw log-odds of a detector.

    Args:
        detector: A trained detector.
        dataset: The transactions, with filled score fields.
        rows: (n,) store rows to explain. A network needs as many forward passes for each as there are fields.
        device: Where the network is.

    Raises:
        UnsupportedError: A path of a tree has too many fields to compute contributions.
    """
    values = dataset.store.values[rows]
    network = detector.model if detector.members.get(NETWORK, 0.0) > 0 else None
    scores = None if network is None else score_rows(network, dataset, rows, device=device)
    total = detector.logit(scores, values)
    fields, average, own_part = np.zeros(values.shape), np.zeros(len(rows)), np.zeros(len(rows))
    if detector.stages is None:
        assert network is not None
        return Contributions(rows, _by_hiding(network, dataset, rows, device), average, own_part, total, adds_up=False)
    first = _first_stage(detector.stages, dataset, rows)
    base = len(dataset.schema.score_fields)
    weight = detector.members.get(STAGE2, 0.0)
    if weight > 0:
        threads = torch.get_num_threads()
        second: Floats = np.mean([trees.contributions(values, threads=threads) for trees in detector.stages.second], axis=0)
        passed, rest = _passed_on(second[:, 0], first[:, :-1])
        fields[:, 1:] += weight * second[:, 1:-1]
        fields[:, base:] += weight * passed
        fields[:, 0] += weight * rest
        average += weight * second[:, -1]
    if network is not None and scores is not None:
        weight, own = detector.members[NETWORK], log_odds(scores)
        if network.config.margin:
            margin = values[:, 0].astype(np.float64)
            own -= margin
            # The score field is clipped and has single precision: the contributions shrink alike.
            unclipped = first.sum(axis=1)
            factor = weight * np.divide(margin, unclipped, out=np.zeros(len(rows)), where=unclipped != 0)
            fields[:, base:] += factor[:, None] * first[:, :-1]
            average += factor * first[:, -1]
        passed, rest = _passed_on(own, _by_hiding(network, dataset, rows, device))
        fields += weight * passed
        own_part += weight * rest
    return Contributions(rows, fields, average, own_part, total, adds_up=True)


def _first_stage(stages: TreeStages, dataset: Dataset, rows: NDArray[np.int64]) -> Floats:
    """Contributions to the first stage's log-odds (n, B + 1): of the B base fields, and the average.

    As in `TreeStages.first_logit`, an early row is scored by the trees that never saw its entity, and a later
    one by the mean of all.
    """
    store = dataset.store
    values = store.values[rows, len(dataset.schema.score_fields) :]
    folds, early = len(stages.folds), store.time[rows] <= stages.train_end
    fold = row_folds(dataset, folds, rows)
    total = np.zeros((len(rows), values.shape[1] + 1))
    for number, trees in enumerate(stages.folds):
        share = np.where(early, (fold == number).astype(np.float64), 1.0 / folds)
        used = np.flatnonzero(share)
        if len(used):
            total[used] += share[used, None] * trees.contributions(values[used], threads=torch.get_num_threads())
    return total


def _by_hiding(network: Classifier, dataset: Dataset, rows: NDArray[np.int64], device: torch.device) -> Floats:
    """Change (n, F) in the network's own log-odds when a field is present instead of hidden.

    Its own log-odds are those without the first-stage score that they are added to.
    """
    changes = np.empty((len(rows), dataset.store.values.shape[1]))
    for number, row in enumerate(rows.tolist()):
        found = hidden_log_odds(network, dataset, row, device=device)
        if network.config.margin:  # a hidden margin is 0, and all others stay
            place = network.config.numeric_fields.index(network.config.margin)
            margin = np.full(len(found), float(dataset.store.values[row, place]))
            margin[1 + place] = 0.0
            found = found - margin
        changes[number] = found[0] - found[1:]
    return changes


def _passed_on(total: Floats, parts: Floats) -> tuple[Floats, Floats]:
    """Distribute what is to be explained over parts, in proportion to them.

    Args:
        total: (n,) log-odds to explain.
        parts: (n, F) what is known of them by field.

    Returns:
        The parts (n, F), times a factor of at most 1, and the rest (n,): 0 where the parts have the sign of
        the total and reach it together.
    """
    whole = parts.sum(axis=1)
    factor = np.divide(total, whole, out=np.zeros(len(total)), where=whole != 0).clip(0.0, 1.0)
    passed = factor[:, None] * parts
    return passed, total - passed.sum(axis=1)


def _names(dataset: Dataset) -> tuple[str, ...]:
    """Names of the F fields in the order of the store."""
    schema = dataset.schema
    return (*schema.numeric_fields, *schema.categorical_fields)
