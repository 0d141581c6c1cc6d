"""Why a transaction got its score: the fields that moved it most, in words, with what is usual.

What is special: contributions are log-odds of the whole detector, by the code that explains runs
(`balancer.inference.contributions`): Shapley values of the trees, and what hiding a field changes for the
network. Nothing is read from the database here, and nothing depends on other rows of a request.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.evaluation.drift import Reference
from balancer.inference.attribution import hidden_in_history
from balancer.inference.contributions import OWN_PART, SMALLEST, WORDS, Contributions, Inputs, explained, hiding_changes
from balancer.inference.decision import NETWORK
from balancer.inference.tree_stages import fold_of, time_folds
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.reasons.reason_words import ReasonWords

QUICK_ROWS = 16
"""Earlier rows up to which the network beside trees is explained too, unless more time is given."""
MOST_NUMBERS = 100_000
"""Earlier rows times fields up to which the network beside trees is explained where more time is given."""
NETWORK_LEFT_OUT = "the network reads so many transactions that its own part of the score is left out"
LEAST = 3
"""Fewest earlier rows of an entity from which its usual values are taken."""
_ATOM = 0.15
"""A bin of the training rows with a larger share is one value, that of its lower border."""

_MOST_WORDS = 16
_WORDS: dict[str, ReasonWords] = {}
"""The words of models by their digest."""

Texts = dict[str, str | None]


@dataclass(frozen=True)
class Reason:
    """A field that moved a score."""

    field: str
    """Its name; `(network)` is the part of the network that no field explains."""
    words: str
    """A sentence, such as `7 transactions of this card in the last hour; usually 1`."""
    value: str
    """Its value in words and units."""
    usual: str | None
    """What is usual; None where it can't be compared, or isn't known."""
    usual_of: str | None
    """Whose usual value that is: `entity`, or `training` for the training rows."""
    contribution: float
    """Log-odds that it adds to the score before calibration; below 0 it lowers the score."""


def explain(
    model: LoadedModel,
    values: NDArray[np.float32],
    *,
    time: float,
    entity: str,
    texts: Texts | None = None,
    earlier: NDArray[np.float32] | None = None,
    read: int | None = None,
    count: int = 5,
    thorough: bool = False,
) -> list[dict[str, Any]]:
    """Name the fields that moved the score of a row most.

    It takes a few milliseconds; the network takes about .1 ms for each earlier row, and is then limited to
    `QUICK_ROWS` of them where there are trees.

    Args:
        model: The model that scored the row.
        values: (C,) its input, score fields included.
        time: Effective time of the row in seconds.
        entity: Name of its entity.
        texts: Values of its categorical and context columns, to name them.
        earlier: (m, C) input of the rows before it, the oldest first, and at least those that the network
            reads. None: they are not at hand, and the network's own part is left out.
        read: How many of them the network reads; None: all. Usual values are those of all.
        count: Most reasons.
        thorough: Whether more time is given to explain the network: up to `MOST_NUMBERS`, a few seconds.

    Returns:
        `Reason`s as JSON, the largest contribution first. Fields that say the same are one reason.
    """
    found = _contributions(model, values, time, entity, _read(earlier, read), thorough)
    if found is None:
        return []
    names, words = _names(model), _words(model)
    row = dict(zip(names, values.tolist(), strict=True))
    merged: dict[str, list[tuple[str, float]]] = {}
    for name, contribution in zip(names, found.fields[0].tolist(), strict=True):
        if abs(contribution) > SMALLEST:
            merged.setdefault(words.sentence(name, row, texts=texts), []).append((name, contribution))
    if abs(found.own_part[0]) > SMALLEST:
        merged[WORDS[OWN_PART]] = [(OWN_PART, float(found.own_part[0]))]
    strongest = sorted(merged.values(), key=lambda same: -abs(sum(each for _, each in same)))[:count]
    reasons = []
    for same in strongest:
        name, total = max(same, key=lambda each: abs(each[1]))[0], sum(each for _, each in same)
        if name == OWN_PART:
            reasons.append(Reason(name, WORDS[OWN_PART], "", None, None, total))
            continue
        usual, usual_of = _usual(model, name, row, earlier) if words.compares(name) else (None, None)
        said = words.sentence(name, row, usual, texts)
        reasons.append(Reason(name, said, words.value(name, row, texts), usual, usual_of, total))
    return [asdict(reason) for reason in reasons]


def leaves_out(model: LoadedModel, read: int, thorough: bool = False) -> bool:
    """Whether `explain` leaves the network's own part out, because it reads many rows and there are trees.

    Args:
        model: The model.
        read: How many earlier rows the network reads.
        thorough: As for `explain`.
    """
    detector = model.detector
    if model.stream is None or detector.stages is None or not detector.members.get(NETWORK, 0.0) > 0:
        return False
    return read > QUICK_ROWS and (not thorough or read * len(_names(model)) > MOST_NUMBERS)


def _contributions(
    model: LoadedModel, values: NDArray[np.float32], time: float, entity: str, earlier: NDArray[np.float32] | None, thorough: bool
) -> Contributions | None:
    """The contributions of one row; None where a network alone lacks its earlier rows."""
    detector, number = model.detector, np.zeros(1, np.int64)
    network = detector.model if model.stream is not None and detector.members.get(NETWORK, 0.0) > 0 else None
    fold = scores = hidden = None
    if detector.stages is not None:
        folds, moment = len(detector.stages.folds), np.array([time])
        fold = time_folds(moment, folds) if model.schema.spec.entity is None else np.array([fold_of(entity, folds)])
    if network is not None and earlier is not None and model.stream is not None and not leaves_out(model, len(earlier), thorough):
        log_odds = hidden_in_history(network, np.concatenate((earlier, values[None])), device=model.stream.device)
        hidden = hiding_changes(network, log_odds, values)[None]
        scores = _probabilities(log_odds[0])
    if detector.stages is None and scores is None:
        return None
    return explained(detector, Inputs(number, values[None], np.array([time]), fold, scores, hidden))


def _read(earlier: NDArray[np.float32] | None, read: int | None) -> NDArray[np.float32] | None:
    """The rows (m, C) before a row that the network reads."""
    return earlier if earlier is None or read is None else earlier[len(earlier) - read :]


def _probabilities(log_odds: float) -> NDArray[np.float64]:
    """Probabilities (1, 2) of legitimate and fraud with these log-odds."""
    fraud = 1.0 / (1.0 + np.exp(-log_odds))
    return np.array([[1.0 - fraud, fraud]])


def _usual(model: LoadedModel, field: str, row: dict[str, float], earlier: NDArray[np.float32] | None) -> tuple[str | None, str | None]:
    """What is usual for a field, in words, and whose it is: the entity's, else that of the training rows."""
    words, names = _words(model).fields, _names(model)
    if field == "amount_log" and row.get("is_first", 1.0) < 0.5 and "amount_ratio" in row:
        return f"about {words.value(field, row[field] - row['amount_ratio'])}", "entity"  # the mean of all its rows
    is_category = field in model.schema.vocabularies and field not in model.schema.numeric_fields
    if earlier is not None and len(earlier) >= LEAST and model.schema.spec.entity is not None:
        column = earlier[:, names.index(field)]
        known = column[np.isfinite(column)]
        if len(known) >= LEAST:
            return words.value(field, _mode(known) if is_category else float(np.median(known))), "entity"
    if is_category:
        return (words.value(field, 1.0), "training") if model.schema.vocabularies[field] else (None, None)
    usual = None if model.reference is None else _training_median(model.reference, field)
    return (None, None) if usual is None else (words.value(field, usual), "training")


def _mode(values: NDArray[np.float32]) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()])


def _training_median(reference: Reference, field: str) -> float | None:
    """The middle value of the training rows, to the border of a bin; None where there is none."""
    if field not in reference.names:
        return None
    place = reference.names.index(field)
    borders, shares = reference.edges[place], reference.shares[place]
    if not borders:
        return None
    middle = int(np.searchsorted(np.cumsum(shares), (1 - reference.missing[place]) / 2))
    if middle < len(shares) and shares[middle] > _ATOM and middle > 0:
        return float(borders[middle - 1])
    return float(borders[min(middle, len(borders) - 1)])


def _names(model: LoadedModel) -> tuple[str, ...]:
    return (*model.schema.numeric_fields, *model.schema.categorical_fields)


def _words(model: LoadedModel) -> ReasonWords:
    """The words of a model; they are kept, since making them takes longer than explaining a row."""
    found = _WORDS.get(model.digest)
    if found is None:
        if len(_WORDS) >= _MOST_WORDS:
            _WORDS.clear()
        found = _WORDS[model.digest] = ReasonWords(model.schema)
    return found
