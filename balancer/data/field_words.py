"""What every field says in words: its meaning with the names of the columns, and its value with a unit.

What is special: fields are logarithms, cosines and codes, which nobody reads. Here they turn back into
counts, days, amounts and names, so that an explanation can be read by whoever investigates an alarm. All
derived fields are in this module; a numeric column stands for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from balancer.data.context_features import FIRST_FRAUD_DAYS, LABEL_FIELDS
from balancer.data.context_past import ACTIVITY_WINDOWS, LEVEL_WINDOW, RECENT_LABELS
from balancer.data.features import NEVER_DAYS
from balancer.data.field_absence import Absence, absences
from balancer.data.past import VELOCITY
from balancer.data.risk import WINDOW_DAYS
from balancer.data.schema import Schema
from balancer.data.score_memory import LAST, LIMIT, STAGE1_LOGIT, TOP, WINDOWS
from balancer.data.spec import DAY
from balancer.data.words import period, spoken

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_HOURS = ("hour_sin", "hour_cos")
"""Fields that say the hour of the day in another way."""
_MEAN_HOURS = ("hour_cos_mean_1d", "hour_sin_mean_1d")
"""Cosine and sine of the usual hour of the last day."""
_MOST_EXPONENT = 60.0
"""A logarithm is clipped to this before it is turned back, so that no value overflows."""


@dataclass(frozen=True)
class Meaning:
    """What a field says."""

    words: str
    """A fragment of a sentence, such as `transactions of this card in the last hour`."""
    read: Callable[[float], str]
    """Turns the value of the field into text with a unit."""


class FieldWords:
    """The words of every field of a table.

    Args:
        schema: The schema of the table.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    @cached_property
    def meanings(self) -> Mapping[str, Meaning]:
        """The meaning of every field but the categorical ones, by its name."""
        own = {name: Meaning(column, _number) for column, name in self._schema.own_fields.items()}
        return {name: Meaning(words, read) for name, words, read in _derived(self._schema)} | own

    @cached_property
    def _absences(self) -> Mapping[str, tuple[Absence, ...]]:
        return absences(self._schema)

    def read(self, field: str, row: Mapping[str, float]) -> tuple[str, str]:
        """The words of `field` and the text of its value in a row.

        A field that reads earlier rows where there are none has as its value that there are none, and an hour
        is said once as the time of the day, whatever field it is in.

        Args:
            field: Name of the field.
            row: All fields of the row by name.
        """
        absent = self.absent(field, row)
        if absent is not None:
            return self.words(field), absent
        if field in _HOURS and "hour" in row:
            return self.words("hour"), self.value("hour", row["hour"])
        if field in _MEAN_HOURS and all(name in row for name in _MEAN_HOURS):
            cosine, sine = (row[name] for name in _MEAN_HOURS)
            if math.isfinite(cosine) and math.isfinite(sine):
                return self.words(field).partition(" (")[0], _hour(math.atan2(sine, cosine) / math.tau * 24.0)
        return self.words(field), self.value(field, row[field])

    def sentence(self, field: str, row: Mapping[str, float]) -> str:
        """Words and value of `field` in a row in one text; what does not exist is said without the field."""
        absent = self.absent(field, row)
        return ": ".join(self.read(field, row)) if absent is None else absent

    def absent(self, field: str, row: Mapping[str, float]) -> str | None:
        """What does not exist, if `field` reads earlier rows and there are none in a row; else None."""
        return next((each.words for each in self._absences.get(field, ()) if each.holds(row)), None)

    def words(self, field: str) -> str:
        """The meaning of `field`; the name of its column for one without words."""
        found = self.meanings.get(field)
        return self._schema.columns.get(field, field) if found is None else found.words

    def value(self, field: str, value: float) -> str:
        """The `value` of `field` as text: with its unit, or the name of the category."""
        if field in self._schema.vocabularies and field not in self._schema.numeric_fields:
            return self._category(field, value)
        if not math.isfinite(value):
            return "missing"
        found = self.meanings.get(field)
        return _number(value) if found is None else found.read(value)

    def _category(self, field: str, code: float) -> str:
        known = self._schema.vocabularies[field]
        if 1 <= code <= len(known):
            return known[int(code) - 1]
        if code > len(known):
            return "rare or not seen in training"
        return "missing" if self._schema.hash_buckets else "not seen in training"


Named = tuple[str, str, Callable[[float], str]]


def _derived(schema: Schema) -> Iterator[Named]:
    """List every derived field that a table with these roles can have: name, words, reader of its value."""
    spec = schema.spec
    yield STAGE1_LOGIT, "first-stage score of the boosted trees", _probability
    yield "amount_log", "amount", _amount
    yield "hour", "hour of the day", _hour
    yield "hour_sin", "hour of the day (sine)", _number
    yield "hour_cos", "hour of the day (cosine)", _number
    yield "weekday", "day of the week", _weekday
    if spec.entity is not None:
        yield from _of_entity(spec.entity)
        for column in dict.fromkeys((*spec.categorical, *spec.context)):
            yield from _of_value(spec.entity, column)
    for column in spec.context:
        yield from _of_context(column)


def _of_entity(entity: str) -> Iterator[Named]:
    """The fields relative to the earlier rows of the entity, and its score memory."""
    this = f"this {spoken(entity)}"
    yield "is_first", f"first transaction of {this}", _flag
    yield "gap_log", f"time since the previous transaction of {this}", _duration
    yield "history_count", f"earlier transactions of {this}", _count
    yield "history_days", f"time since the first transaction of {this}", _days
    yield "previous_gap_log", f"time between the two previous transactions of {this}", _duration
    yield "previous_hour", f"hour of the previous transaction of {this}", _hour
    yield "gap_ratio", f"time since the previous transaction, against the usual time between two of {this}", _times
    yield "hour_habit_all", f"how close the hour is to the usual hours of {this}", _closeness
    yield "hour_habit_1d", f"how close the hour is to those of {this} in the last day", _closeness
    yield "hour_cos_mean_1d", f"usual hour of {this} in the last day (cosine)", _number
    yield "hour_sin_mean_1d", f"usual hour of {this} in the last day (sine)", _number
    yield "amount_ratio", f"amount against the usual amount of {this}", _times
    yield "amount_z", f"amount above the usual amount of {this}", _deviations
    yield "previous_amount_log", f"amount of the previous transaction of {this}", _amount
    yield "amount_to_max", f"amount against the highest earlier amount of {this}", _times
    yield "amount_mean_1d", f"usual amount of {this} in the last day", _amount
    yield "amount_spread_1d", f"spread of the amounts of {this} in the last day (log)", _number
    for window, seconds in VELOCITY.items():
        yield f"count_{window}", f"transactions of {this} in the last {period(seconds)}", _count
        yield f"sum_{window}", f"sum of the amounts of {this} in the last {period(seconds)}", _amount
        yield f"mean_shift_{window}", f"usual amount of {this} in the last {period(seconds)}, against that of all its transactions", _times
        if window in WINDOWS:
            yield f"stage1_sum_{window}", f"sum of the earlier scores of {this} in the last {period(seconds)}", _sum
            yield f"stage1_mean_{window}", f"mean earlier score of {this} in the last {period(seconds)}", _share
    for back in LAST:
        which = "the previous transaction" if back == 1 else f"the transaction {back} before this one"
        yield f"stage1_previous_{back}", f"score of {which} of {this}", _earlier
    for number in TOP:
        yield f"stage1_highest_{number}", f"highest earlier score of {this} among its last {number} transactions", _earlier


def _of_value(entity: str, column: str) -> Iterator[Named]:
    """How the entity used the value of a categorical or context column."""
    this, value = f"this {spoken(entity)}", f"this {spoken(column)}"
    yield f"{column}_used", f"earlier transactions of {this} with {value}", _count
    yield f"{column}_share", f"share of the transactions of {this} with {value}", _share
    yield f"{column}_days_since", f"time since the last transaction of {this} with {value}", _days
    yield f"{column}_amount_ratio", f"amount against the usual amount of {this} with {value}", _times
    yield f"{column}_amount_z", f"amount above the usual amount of {this} with {value}", _deviations
    before, usual = "amount of the previous transaction", f"the usual amount of {this} with the {spoken(column)} of then"
    yield f"previous_{column}_amount_ratio", f"{before}, against {usual}", _times
    yield f"previous_{column}_amount_z", f"{before}, above {usual}", _deviations


def _of_context(column: str) -> Iterator[Named]:
    """The known labels and the activity of the value of a context column."""
    this = f"this {spoken(column)}"
    for days in WINDOW_DAYS:
        window = f"1 {period(DAY)}" if days == 1 else period(days * DAY)
        yield f"{column}_fraud_rate_{days}d", f"share of fraud in {window} of known labels of {this}", _share
        yield f"{column}_count_{days}d", f"number of labels in {window} of known labels of {this}", _count
    labels = {
        "last_label": (f"last known label of {this} is fraud", _flag),
        **{
            f"fraud_share_last_{number}": (f"share of fraud in the last {number} known labels of {this}", _share)
            for number in RECENT_LABELS[1:]
        },
        "days_since_fraud": (f"time since the last known fraud of {this}", _days),
        "legitimate_since_fraud": (f"known legitimate transactions of {this} since its last known fraud", _count),
        "fraud_run_length": (f"frauds in a row up to the last known fraud of {this}", _count),
        "fraud_run_days": (f"time since the first of the last frauds in a row of {this}", _days),
        f"first_fraud_{FIRST_FRAUD_DAYS}d": (f"first known fraud of {this} within {FIRST_FRAUD_DAYS} days", _flag),
    }
    for name in LABEL_FIELDS:
        yield f"{column}_{name}", *labels[name]
    yield f"{column}_gap_log", f"time since the previous transaction of {this}", _duration
    for window, seconds in ACTIVITY_WINDOWS.items():
        yield f"{column}_rows_{window}", f"transactions of {this} in the last {period(seconds)}", _count
    yield f"{column}_amount_z_all", f"amount above the usual amount of {this}", _deviations
    last = period(ACTIVITY_WINDOWS[LEVEL_WINDOW])
    yield f"{column}_level_shift_{LEVEL_WINDOW}", f"usual amount of {this} in the last {last}, against that of all its transactions", _times


def _number(value: float) -> str:
    return f"{value:.6g}"


def _closeness(value: float) -> str:
    """A mean cosine: 1 for the same hour, -1 for half a day away."""
    return f"{value:.2f} of 1"


def _flag(value: float) -> str:
    return "yes" if value > 0.5 else "no"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _sum(value: float) -> str:
    return f"{math.expm1(min(value, _MOST_EXPONENT)):.3g}"


def _count(value: float) -> str:
    return f"{round(math.expm1(min(value, _MOST_EXPONENT))):,}"


def _amount(value: float) -> str:
    return f"{math.copysign(math.expm1(min(abs(value), _MOST_EXPONENT)), value):,.2f}"


def _times(value: float) -> str:
    """A difference of logarithms, as a factor."""
    return f"{math.exp(max(-_MOST_EXPONENT, min(value, _MOST_EXPONENT))):.3g} times"


def _deviations(value: float) -> str:
    return f"{math.copysign(math.expm1(min(abs(value), _MOST_EXPONENT)), value):+.3g} deviations"


def _probability(value: float) -> str:
    """Log-odds as the probability."""
    return _share(1 / (1 + math.exp(-max(-_MOST_EXPONENT, min(value, _MOST_EXPONENT)))))


def _earlier(value: float) -> str:
    """Log-odds of an earlier transaction; they are the lower limit where there is none."""
    return "none, or below 0.001 %" if value <= -LIMIT else _probability(value)


def _hour(value: float) -> str:
    minutes = round(value * 60) % 1440
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _weekday(value: float) -> str:
    return WEEKDAYS[round(value) % 7]


def _days(value: float) -> str:
    """Log days."""
    return _length(math.expm1(min(value, _MOST_EXPONENT)) * DAY)


def _duration(value: float) -> str:
    """Log seconds."""
    return _length(math.expm1(min(value, _MOST_EXPONENT)))


def _length(seconds: float) -> str:
    """A length of time with the largest unit that gives a number of at least 1."""
    if seconds >= 0.999 * NEVER_DAYS * DAY:
        return "never before"
    for size, unit in ((DAY, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"
