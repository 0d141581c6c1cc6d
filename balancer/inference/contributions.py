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
        found = self.strongest(dataset, most)
        return ["; ".join(f"{text} ({contribution:+.2f})" for text, contribution in row) for row in found]

    def strongest(self, dataset: Dataset, most: int) -> list[list[tuple[str, float]]]:
        """As `reasons`, with a list of texts and contributions for each row, the largest first."""
        names, words = _names(dataset), FieldWords(dataset.schema)
        rows = []
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
            rows.append([each for each in strongest if each[1] > SMALLEST])
        return rows

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
    network = _network_of(detector)
    scores = hidden = fold = None
    if network is not None:
        scores, hidden = score_rows(network, dataset, rows, device=device), _by_hiding(network, dataset, rows, device)
    if detector.stages is not None:
        fold = row_folds(dataset, len(detector.stages.folds), rows)
    return explained(detector, Inputs(rows, values, dataset.store.time[rows], fold, scores, hidden))


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the contributions of n rows are computed from."""

    rows: NDArray[np.int64]
    """(n,) their numbers."""
    values: NDArray[np.float32]
    """(n, F) all fields."""
    time: Floats
    """(n,) seconds."""
    fold: NDArray[np.integer] | None
    """(n,) fold of the first stage; None without trees."""
    scores: NDArray[np.floating] | None
    """(n, K) class probabilities of the network; None without a network, or if its own part is left out."""
    hidden: Floats | None
    """(n, F) change in the network's own log-odds when a field is present instead of hidden; None without
    `scores`."""


def explained(detector: Detector, inputs: Inputs) -> Contributions:
    """Compute what each field contributes to the raw log-odds of a detector.

    Args:
        detector: A trained detector.
        inputs: The rows. Without `scores` a detector with trees and a network is explained by its trees: the
            network's own part is left out, and the total is that of the rest.

    Raises:
        UnsupportedError: A path of a tree has too many fields to compute contributions.
    """
    values, scores = inputs.values, inputs.scores
    network, count = _network_of(detector), len(inputs.values)
    fields, average, own_part = np.zeros(values.shape), np.zeros(count), np.zeros(count)
    if detector.stages is None:
        assert scores is not None and inputs.hidden is not None
        return Contributions(inputs.rows, inputs.hidden, average, own_part, detector.logit(scores, values), adds_up=False)
    assert inputs.fold is not None
    first = first_stage_parts(
        detector.stages, values[:, values.shape[1] - detector.stages.folds[0].num_features :], inputs.time, inputs.fold
    )
    base = values.shape[1] - (first.shape[1] - 1)
    weight = detector.members.get(STAGE2, 0.0)
    if weight > 0:
        threads = torch.get_num_threads()
        second: Floats = np.mean([trees.contributions(values, threads=threads) for trees in detector.stages.second], axis=0)
        passed, rest = _passed_on(second[:, 0], first[:, :-1])
        fields[:, 1:] += weight * second[:, 1:-1]
        fields[:, base:] += weight * passed
        fields[:, 0] += weight * rest
        average += weight * second[:, -1]
    if network is not None:
        weight = detector.members[NETWORK]
        margin = values[:, 0].astype(np.float64) if network.config.margin else np.zeros(count)
        if network.config.margin:
            # The score field is clipped and has single precision: the contributions shrink alike.
            unclipped = first.sum(axis=1)
            factor = weight * np.divide(margin, unclipped, out=np.zeros(count), where=unclipped != 0)
            fields[:, base:] += factor[:, None] * first[:, :-1]
            average += factor * first[:, -1]
        if scores is not None and inputs.hidden is not None:
            passed, rest = _passed_on(log_odds(scores) - margin, inputs.hidden)
            fields += weight * passed
            own_part += weight * rest
        else:
            return Contributions(inputs.rows, fields, average, own_part, fields.sum(axis=1) + average, adds_up=True)
    return Contributions(inputs.rows, fields, average, own_part, detector.logit(scores, values), adds_up=True)


def _network_of(detector: Detector) -> Classifier | None:
    """The network of a detector, if its log-odds depend on it."""
    return detector.model if detector.members.get(NETWORK, 0.0) > 0 else None


def _first_stage(stages: TreeStages, dataset: Dataset, rows: NDArray[np.int64]) -> Floats:
    """Contributions to the first stage's log-odds (n, B + 1) of store rows; see `first_stage_parts`."""
    values = dataset.store.values[rows, len(dataset.schema.score_fields) :]
    return first_stage_parts(stages, values, dataset.store.time[rows], row_folds(dataset, len(stages.folds), rows))


def first_stage_parts(stages: TreeStages, values: NDArray[np.float32], time: Floats, fold: NDArray[np.integer]) -> Floats:
    """Contributions to the first stage's log-odds (n, B + 1): of the B base fields, and the average.

    As in `TreeStages.first_logit`, an early row is scored by the trees that never saw its entity, and a later
    one by the mean of all.

    Args:
        stages: The trees.
        values: (n, B) base fields.
        time: (n,) seconds.
        fold: (n,) fold of each row.
    """
    folds, early = len(stages.folds), time <= stages.train_end
    total = np.zeros((len(values), values.shape[1] + 1))
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
    values = dataset.store.values
    changes = np.empty((len(rows), values.shape[1]))
    for number, row in enumerate(rows.tolist()):
        changes[number] = hiding_changes(network, hidden_log_odds(network, dataset, row, device=device), values[row])
    return changes


def hiding_changes(network: Classifier, log_odds_found: Floats, values: NDArray[np.float32]) -> Floats:
    """Change (F,) in the network's own log-odds of one row when a field is present instead of hidden.

    Args:
        network: A trained classifier.
        log_odds_found: (F + 1,) of `balancer.inference.attribution`.
        values: (F,) the fields of the row.
    """
    if network.config.margin:  # a hidden margin is 0, and all others stay
        place = network.config.numeric_fields.index(network.config.margin)
        margin = np.full(len(log_odds_found), float(values[place]))
        margin[1 + place] = 0.0
        log_odds_found = log_odds_found - margin
    changes: Floats = log_odds_found[0] - log_odds_found[1:]
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
