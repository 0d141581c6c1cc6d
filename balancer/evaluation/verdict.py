"""The verdict on a run for a manager: three sentences and four tiles, in frauds, money and alarms a day.

What is special: the run is compared with the best alternative of its report, at the same number of false
alarms and at the same number of frauds, and a difference inside the noise of the test rows is called no clear
difference. Every run gets sentences, also one without amounts, times, frauds, alarms, or scores of the other
models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from balancer.evaluation.fair_comparison import FEWEST_FRAUDS, FairComparison, compare_fairly
from balancer.evaluation.intervals import NORMAL, Interval
from balancer.evaluation.metrics import alarm_counts
from balancer.evaluation.plain_numbers import daily, in_words, more, share, signed
from balancer.evaluation.report_content import PARTS, TITLES, chance_warning, standard_error
from balancer.names import counted

Outcome = Literal["better", "worse", "mixed", "equal", "chance", "unknown"]
ALTERNATIVES = {
    "none": "the network without sampling",
    "one_to_one": "the network with 1:1 over-sampling",
    "class_weight": "the network with class weights",
}
"""What a baseline is called in a sentence; the others have their title."""
_WORST_KINDS = 3
"""Fewest frauds of a kind for which its share is named."""
UNCLEAR = "no clear difference"


@dataclass(frozen=True)
class Tile:
    """A number with its label, and what explains it."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """What a run is worth. All texts are plain: a page has to escape them."""

    sentences: tuple[str, str, str]
    """What it catches; how it compares with the best alternative; the recommendation."""
    tiles: tuple[Tile, Tile, Tile, Tile]
    outcome: Outcome
    """`better`, `worse`, `equal` or `mixed` against the alternative; `chance` at the level of chance;
    `unknown` where the run can't be compared."""
    basis: str
    """The rows that were counted, and the threshold that they were counted at."""
    recall: float | None
    """Share of the frauds that was caught; None without frauds."""
    precision: float | None
    """Share of the alarms that are fraud; None without alarms."""

    @property
    def recommendation(self) -> str:
        """The last sentence."""
        return self.sentences[2]


@dataclass(frozen=True)
class _Counts:
    """What the run does at the threshold that it uses."""

    caught: int
    missed: int
    false_alarms: int
    days: float | None
    amount_caught: float | None
    amount_missed: float | None
    kinds: Mapping[str, tuple[int, int]]
    """Caught and all frauds by fraud class."""

    @property
    def frauds(self) -> int:
        return self.caught + self.missed

    @property
    def money(self) -> float | None:
        """Share of the amounts of the frauds that was caught; None where it is unknown."""
        if self.amount_caught is None or self.amount_missed is None:
            return None
        whole = self.amount_caught + self.amount_missed
        return self.amount_caught / whole if whole > 0 else None


def best_alternative(report: Mapping[str, Any]) -> str | None:
    """The name of the baseline with the highest average precision; None where there is none."""
    found = {
        name: metrics["average_precision"]
        for name, metrics in report["baselines"].items()
        if name not in PARTS and metrics.get("average_precision") is not None
    }
    return max(found, key=lambda name: found[name]) if found else None


def build_verdict(
    report: Mapping[str, Any],
    decision: Mapping[str, Any],
    *,
    predictions: pl.DataFrame | None,
    scores: pl.DataFrame | None,
    classes: tuple[str, ...],
    amounts: bool,
) -> Verdict:
    """Build the verdict on a run.

    Args:
        report: The content of `report.json`.
        decision: The content of `decision.json`: `threshold`, and `tuned` and `chosen` where a user chose it.
        predictions: The rows of `predictions.parquet`, columns `label, score` and, where there are,
            `time, entity, amount`; None where they are missing: the counts are those of the report.
        scores: The rows of `test_scores.parquet`, in the same order: columns `label, run` and that of the
            alternative; None where they are missing: the models are compared by average precision.
        classes: Names of the classes, the legitimate one first.
        amounts: Whether the table has amounts.
    """
    test, name = report["test"], best_alternative(report)
    other = None if name is None else ALTERNATIVES.get(name, TITLES.get(name, name))
    threshold = float(decision["threshold"])
    if predictions is not None:
        predictions = predictions.with_columns(row=pl.int_range(pl.len())).filter(pl.col("label").is_not_null())
        counts = _count(predictions, threshold, classes, amounts=amounts)
    else:
        counts, threshold = _reported(test), float(test["threshold"])
        decision = {"threshold": threshold}
    basis = _basis(test, decision, counts)
    sentences, outcome, found = _sentences(report, counts, predictions, scores, name, other, threshold, classes, amounts=amounts)
    raised = counts.caught + counts.false_alarms
    return Verdict(
        sentences,
        _tiles(counts, found, other),
        outcome,
        basis,
        counts.caught / counts.frauds if counts.frauds else None,
        counts.caught / raised if raised else None,
    )


def _sentences(
    report: Mapping[str, Any],
    counts: _Counts,
    predictions: pl.DataFrame | None,
    scores: pl.DataFrame | None,
    name: str | None,
    other: str | None,
    threshold: float,
    classes: tuple[str, ...],
    *,
    amounts: bool,
) -> tuple[tuple[str, str, str], Outcome, FairComparison | None]:
    """The sentences, the outcome and the comparison; arguments as of `build_verdict`.

    ``name`` is the alternative in the report and ``other`` in sentences.
    """
    test = report["test"]
    if not counts.frauds:
        first = "The test rows have no fraud, so this run can't be evaluated."
        second = "It can't be compared with an alternative either."
        return (first, second, "No recommendation: evaluate the run on rows with frauds."), "unknown", None
    if chance_warning(test):
        second = f"Its scores are at the level of chance: average precision is {test['average_precision']:.3f}, and "
        second += f"{share(test['positives'] / test['rows'])} of the rows are fraud."
        third = "Not recommended: check the label, the roles of the columns and which class is legitimate."
        return (_caught(counts), second, third), "chance", None
    if name is None or other is None:
        third = "No recommendation: the run has no alternative to compare it with."
        return (_caught(counts), "This run was trained without baselines.", third), "unknown", None
    if not counts.caught + counts.false_alarms:
        second = f"Without an alarm it can't be compared with {other}."
        third = "Not recommended at this threshold: choose a lower one on the page Threshold."
        return (_caught(counts), second, third), "unknown", None
    found = _compared(predictions, scores, name, threshold, classes, amounts=amounts)
    if found is None:
        outcome = _by_average_precision(test, report["baselines"][name])
        second = _without_scores(outcome, test, report["baselines"][name], other)
    else:
        outcome, second = _outcome(found), _difference(found, counts, other)
    return (_caught(counts), second, _recommendation(outcome, other, found, counts)), outcome, found


def _count(rows: pl.DataFrame, threshold: float, classes: tuple[str, ...], *, amounts: bool) -> _Counts:
    """Count alarms of labelled rows."""
    fraud, alarm = (rows["label"] != classes[0]).to_numpy(), (rows["score"] >= threshold).to_numpy()
    timed = "time" in rows.columns and rows["time"].null_count() < rows.height
    time = rows["time"].dt.epoch("us").fill_null(0).to_numpy() / 1e6 if timed else None
    found: dict[str, Any] = alarm_counts(fraud, alarm, time=time, amount=_amounts(rows) if amounts else None)
    kinds = {}
    for kind in classes[1:]:
        of_kind = (rows["label"] == kind).to_numpy()
        kinds[kind] = (int((of_kind & alarm).sum()), int(of_kind.sum()))
    names = ("caught", "missed", "false_alarms", "days", "amount_caught", "amount_missed")
    return _Counts(**{key: found[key] for key in names}, kinds=kinds)


def _amounts(rows: pl.DataFrame) -> np.ndarray:
    """The amounts (n,); one that is unknown counts as 0."""
    return rows["amount"].cast(pl.Float64).fill_null(0.0).fill_nan(0.0).to_numpy()


def _reported(test: Mapping[str, Any]) -> _Counts:
    """The counts that the report has; earlier versions wrote recall and precision only."""
    found = test.get("alarms")
    if found:
        names = ("caught", "missed", "false_alarms", "days", "amount_caught", "amount_missed")
        return _Counts(**{key: found[key] for key in names}, kinds={})
    caught = round((test["recall"] or 0.0) * test["positives"])
    false = round((test["fpr"] or 0.0) * (test["rows"] - test["positives"]))
    return _Counts(caught, test["positives"] - caught, false, None, None, None, {})


def _compared(
    predictions: pl.DataFrame | None, scores: pl.DataFrame | None, name: str, threshold: float, classes: tuple[str, ...], *, amounts: bool
) -> FairComparison | None:
    """Compare with the alternative row by row; None where the scores are missing or of other rows."""
    if predictions is None or scores is None or not {"run", "label", name} <= set(scores.columns):
        return None
    place = predictions["row"].to_numpy()
    if place[-1] >= scores.height or not (scores["label"].gather(place) == predictions["label"]).fill_null(False).all():
        return None
    both = [scores[column].gather(place).to_numpy() for column in ("run", name)]
    if not all(np.isfinite(each).all() for each in both):
        return None
    entity = predictions["entity"].rank("dense").to_numpy() if "entity" in predictions.columns else None
    return compare_fairly(
        (predictions["label"] != classes[0]).to_numpy(),
        (predictions["score"] >= threshold).to_numpy(),
        *both,
        group=entity,
        amount=_amounts(predictions) if amounts else None,
    )


def _sign(found: Interval) -> int:
    """1 or -1 where a difference is outside the noise, else 0."""
    return 0 if found.interval is None else int(found.interval[0] > 0) - int(found.interval[1] < 0)


def _outcome(found: FairComparison) -> Outcome:
    # The sign of the false alarms is that of the frauds.
    signs = {_sign(found.frauds), _sign(found.money)} - {0}
    return "equal" if not signs else "mixed" if len(signs) > 1 else "better" if 1 in signs else "worse"


def _by_average_precision(test: Mapping[str, Any], other: Mapping[str, Any]) -> Outcome:
    difference, error = test["average_precision"] - other["average_precision"], standard_error(test) or 0.0
    return "equal" if abs(difference) <= NORMAL * error else "better" if difference > 0 else "worse"


# Sentences --------------------------------------------------------------------------------------------------


def _caught(counts: _Counts) -> str:
    """Say what the run catches, and how many false alarms it raises."""
    kinds = f" of {counted(len(counts.kinds), 'kind')}" if len(counts.kinds) > 1 else ""
    if not counts.caught + counts.false_alarms:
        return f"At this threshold the run raises no alarm, so it misses all {counted(counts.frauds, 'fraud')}{kinds} of the test rows."
    text = f"This run catches {in_words(counts.caught, counts.frauds)}{kinds} ({counts.caught:,} of {counts.frauds:,})"
    if counts.money is not None:
        text += f" and {share(counts.money)} of the money at stake"
    text += f", {_with_false_alarms(counts)}"
    known = {kind: each for kind, each in counts.kinds.items() if each[1] >= _WORST_KINDS}
    if len(known) > 1:
        kind = min(known, key=lambda each: known[each][0] / known[each][1])
        text += f"; it catches least of the kind {kind}, {known[kind][0]:,} of {known[kind][1]:,}"
    return text + "."


def _with_false_alarms(counts: _Counts) -> str:
    if not counts.false_alarms:
        return "without a false alarm"
    if counts.days is None:
        return f"with {counted(counts.false_alarms, 'false alarm')} in the test rows"
    rate = counts.false_alarms / counts.days
    return f"with 1 false alarm in {round(1 / rate):,} days" if rate < 0.5 else f"with {daily(rate)} false alarms a day"


def _difference(found: FairComparison, counts: _Counts, other: str) -> str:
    """Compare in frauds, money and false alarms; what is inside the noise has no clear difference."""
    frauds, false, money = found.frauds.value or 0.0, found.false_alarms.value or 0.0, found.money.value
    caught = more(frauds, "fraud")
    saved = None if money is None else _of_the_money(money)
    if counts.days is None:
        raised = more(false, "false alarm")
    else:
        raised = more(false / counts.days, "false alarm", decimals=int(abs(false) < 100 * counts.days)) + " a day"
    at_frauds = f"raises {raised} at the same number of frauds"
    if _outcome(found) == "equal":
        noise = f"{_noise(found.frauds)}" if found.frauds.interval else "too few frauds to tell"
        both = f"{caught} ({noise})" + (f" and {saved}" if saved else "")
        return (
            f"There is no clear difference from {other}, the best alternative: at the same number of false alarms this run catches {both}, "
            f"and it {at_frauds}."
        )
    gained = [f"{caught} ({_noise(found.frauds)})"] if _sign(found.frauds) else []
    gained += [saved] if saved and _sign(found.money) else []
    text = f"Compared with {other}, the best alternative, this run catches {' and '.join(gained)} at the same number of false alarms"
    if _sign(found.frauds):
        text += f", and {at_frauds}"
        return text + ("; in money there is no clear difference." if saved and not _sign(found.money) else ".")
    return text + "; in frauds and false alarms there is no clear difference."


def _of_the_money(difference: float) -> str:
    size = round(abs(difference))
    return f"{size:,} {'more' if difference > 0 else 'less'} in money" if size else "just as much money"


def _without_scores(outcome: Outcome, test: Mapping[str, Any], metrics: Mapping[str, Any], other: str) -> str:
    """Compare by average precision, which every report has."""
    this, that = test["average_precision"], metrics["average_precision"]
    said = {"equal": "which is no clear difference", "better": "which is clearly higher", "worse": "which is clearly lower"}[outcome]
    return (
        f"Its average precision is {this:.3f} against {that:.3f} of {other}, the best alternative, {said}; an earlier version wrote this "
        "run without the scores of the other models, so frauds and money can't be compared at equal false alarms."
    )


def _recommendation(outcome: Outcome, other: str, found: FairComparison | None, counts: _Counts) -> str:
    if outcome == "better":
        return "Recommended: use this run."
    if outcome == "worse":
        return f"Not recommended: {other} is better on these rows."
    if outcome == "mixed":
        assert found is not None
        more, less = ("frauds", "money") if _sign(found.frauds) > 0 else ("money", "frauds")
        return f"No clear recommendation: this run catches more {more} and {other} more {less}."
    few = " These are too few frauds to tell: evaluate on more." if counts.frauds < FEWEST_FRAUDS else ""
    return f"No clear reason to prefer this run to {other}.{few}"


def _basis(test: Mapping[str, Any], decision: Mapping[str, Any], counts: _Counts) -> str:
    days = "" if counts.days is None else f" of {counted(round(counts.days), 'day')}"
    text = f"Counted on {counted(test['rows'], 'test transaction')}{days}, {counts.frauds:,} of them fraud, at the threshold "
    text += f"{float(decision['threshold']):.4g}"
    tuned, chosen = decision.get("tuned"), decision.get("chosen")
    if tuned is None:
        return text + ", which training tuned on validation rows."
    how = f" ({chosen})" if chosen else ""
    return f"{text}, which was saved on the page Threshold{how}; training tuned {float(tuned):.4g}."


# Tiles ------------------------------------------------------------------------------------------------------


def _tiles(counts: _Counts, found: FairComparison | None, other: str | None) -> tuple[Tile, Tile, Tile, Tile]:
    raised = counts.caught + counts.false_alarms
    of_frauds = f"{share(counts.caught / counts.frauds)} of the frauds" if counts.frauds else "there are no frauds"
    caught = Tile("Frauds caught", f"{counts.caught:,} of {counts.frauds:,}", of_frauds)
    if counts.amount_caught is not None and counts.amount_missed is not None:
        whole = counts.amount_caught + counts.amount_missed
        note = f"{counts.amount_caught:,.0f} of {whole:,.0f} in the currency of the table"
        money = Tile("Money caught", "–" if counts.money is None else share(counts.money), note)
    else:
        precision = share(counts.caught / raised) if raised else "–"
        money = Tile("Right alarms", precision, f"{counts.caught:,} of {counted(raised, 'alarm')} are fraud")
    if counts.days is None:
        false = Tile("False alarms", f"{counts.false_alarms:,}", f"of {counted(raised, 'alarm')} in the test rows")
    else:
        note = f"of {daily(raised / counts.days)} alarms a day"
        false = Tile("False alarms a day", daily(counts.false_alarms / counts.days), note)
    return caught, money, false, _against(found, other)


def _against(found: FairComparison | None, other: str | None) -> Tile:
    label = "Against the best alternative"
    if found is None or found.frauds.value is None:
        return Tile(label, "–", "not compared row by row" if other else "there is no alternative")
    count = round(found.frauds.value)
    if found.frauds.interval is None:
        return Tile(label, UNCLEAR, f"{other}; there are too few frauds to tell")
    if not _sign(found.frauds) and _sign(found.money):
        return Tile(label, f"{signed(found.money.value or 0.0)} in money", f"{_noise(found.money)} at equal false alarms, against {other}")
    value = f"{signed(count)} {'fraud' if abs(count) == 1 else 'frauds'}" if _sign(found.frauds) else UNCLEAR
    return Tile(label, value, f"{_noise(found.frauds)} at equal false alarms, against {other}")


def _noise(found: Interval) -> str:
    assert found.interval is not None
    return f"95 % interval {signed(found.interval[0])} to {signed(found.interval[1])}"
