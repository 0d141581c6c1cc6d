"""What an analyst reads of a field: one table with a sentence for every kind of field of docs/fields.md.

What is special: a sentence has the value in words and units (`balancer.data.field_words`), and after it what
is usual, where that can be compared. What does not exist is said in place of a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from balancer.data.context_features import FIRST_FRAUD_DAYS
from balancer.data.context_past import ACTIVITY_WINDOWS, LEVEL_WINDOW, RECENT_LABELS
from balancer.data.field_words import FieldWords
from balancer.data.past import VELOCITY
from balancer.data.risk import WINDOW_DAYS
from balancer.data.schema import Schema
from balancer.data.score_memory import LAST, STAGE1_LOGIT, TOP, WINDOWS
from balancer.data.spec import DAY
from balancer.data.words import period, spoken

_ONE = re.compile(r"\{value\} ((?:\w+ ){0,2})(transaction|label|fraud)s")
"""A number of things, of which there is one."""
NEVER = "never before"
"""The text of a time since what never happened."""


@dataclass(frozen=True)
class Template:
    """The sentence of a kind of field.

    `{value}` is its value in words, `{this}` the entity, `{that}` the value of the column, `{kind}` the
    column, `{window}` the length of a window, `{number}` a number.
    """

    text: str
    usual: bool = False
    """Whether what is usual is said too."""
    no: str = ""
    """The sentence of a flag that is not set; `text` is that of one that is."""
    never: str = ""
    """The sentence where it never happened."""


TEMPLATES = {
    STAGE1_LOGIT: Template("score {value} of the first stage of the trees"),
    "amount_log": Template("amount {value}", usual=True),
    "hour": Template("at {value}"),
    "hour_sin": Template("at {value}"),
    "hour_cos": Template("at {value}"),
    "weekday": Template("on a {value}"),
    "is_first": Template("first transaction of {this}", no="not the first transaction of {this}"),
    "gap_log": Template("{value} since the previous transaction of {this}", usual=True),
    "history_count": Template("{value} earlier transactions of {this}"),
    "history_days": Template("{value} since the first transaction of {this}"),
    "previous_gap_log": Template("{value} between the two previous transactions of {this}", usual=True),
    "previous_hour": Template("previous transaction of {this} at {value}"),
    "gap_ratio": Template("{value} the usual time between two transactions of {this}"),
    "hour_habit_all": Template("closeness to the usual hours of {this}: {value}", usual=True),
    "hour_habit_1d": Template("closeness to the hours of {this} in the last day: {value}", usual=True),
    "hour_cos_mean_1d": Template("mean hour of {this} in the last day: {value}"),
    "hour_sin_mean_1d": Template("mean hour of {this} in the last day: {value}"),
    "amount_ratio": Template("amount {value} the usual one of {this}"),
    "amount_z": Template("amount {value} from the usual one of {this}"),
    "previous_amount_log": Template("amount {value} of the previous transaction of {this}", usual=True),
    "amount_to_max": Template("amount {value} the highest earlier one of {this}"),
    "amount_mean_1d": Template("mean amount {value} of {this} in the last day", usual=True),
    "amount_spread_1d": Template("spread {value} of the amounts of {this} in the last day (log)", usual=True),
    "count_{window}": Template("{value} transactions of {this} in the last {window}", usual=True),
    "sum_{window}": Template("amounts of {value} together of {this} in the last {window}", usual=True),
    "mean_shift_{window}": Template("mean amount of {this} in the last {window} {value} that of all its transactions"),
    "stage1_sum_{window}": Template("sum {value} of the earlier scores of {this} in the last {window}", usual=True),
    "stage1_mean_{window}": Template("mean earlier score {value} of {this} in the last {window}", usual=True),
    "stage1_previous_{number}": Template("score {value} of the transaction {number} before this one of {this}", usual=True),
    "stage1_highest_{number}": Template("highest score {value} among the last {number} transactions of {this}", usual=True),
    "COLUMN_used": Template("{value} earlier transactions of {this} with {that}", usual=True),
    "COLUMN_share": Template("{value} of the transactions of {this} with {that}", usual=True),
    "COLUMN_days_since": Template(
        "{value} since the last transaction of {this} with {that}", never="first transaction of {this} with {that}"
    ),
    "COLUMN_amount_ratio": Template("amount {value} the usual one of {this} with {that}"),
    "COLUMN_amount_z": Template("amount {value} from the usual one of {this} with {that}"),
    "previous_COLUMN_amount_ratio": Template("amount of the previous transaction {value} the usual one of {this} with the {kind} of then"),
    "previous_COLUMN_amount_z": Template("amount of the previous transaction {value} from the usual one of {this} with the {kind} of then"),
    "SHOP_fraud_rate_{days}": Template("{that}: {value} fraud in {window} of known labels", usual=True),
    "SHOP_count_{days}": Template("{that}: {value} known labels in {window}", usual=True),
    "SHOP_last_label": Template("{that}: the last known label is fraud", no="{that}: the last known label is not fraud"),
    "SHOP_fraud_share_last_{number}": Template("{that}: {value} fraud in the last {number} known labels", usual=True),
    "SHOP_days_since_fraud": Template("{that}: {value} since the last known fraud", never="{that}: no known fraud"),
    "SHOP_legitimate_since_fraud": Template("{that}: {value} known legitimate transactions since the last known fraud"),
    "SHOP_fraud_run_length": Template("{that}: {value} frauds in a row up to the last known fraud"),
    "SHOP_fraud_run_days": Template("{that}: {value} since the first of the last frauds in a row", never="{that}: no known fraud"),
    "SHOP_first_fraud": Template("{that}: first known fraud within {window}", no="{that}: no first known fraud within {window}"),
    "SHOP_gap_log": Template("{that}: {value} since the previous transaction", usual=True, never="{that}: no earlier transaction"),
    "SHOP_rows_{window}": Template("{that}: {value} transactions in the last {window}", usual=True),
    "SHOP_amount_z_all": Template("amount {value} from the usual one of {that}"),
    "SHOP_level_shift": Template("{that}: mean amount in the last {window} {value} that of all its transactions"),
    "own number": Template("{kind} {value}", usual=True),
    "own category": Template("{kind} {value}", usual=True),
}
"""The sentence of each kind of field; `COLUMN` is a categorical or context column, `SHOP` a context one."""


class ReasonWords:
    """The sentences of the fields of a schema.

    Args:
        schema: The schema of a model.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema, self.fields = schema, FieldWords(schema)

    @cached_property
    def kinds(self) -> Mapping[str, tuple[str, dict[str, str]]]:
        """The kind of each field, a key of `TEMPLATES`, and what its placeholders are but for the values."""
        own = {name: ("own number", {"kind": spoken(column)}) for column, name in self._schema.own_fields.items()}
        categories = self._schema.categorical_columns.items()
        own |= {name: ("own category", {"kind": spoken(column), "column": column}) for name, column in categories}
        return {name: (kind, named) for name, kind, named in _derived(self._schema)} | own

    def sentence(
        self, field: str, row: Mapping[str, float], usual: str | None = None, texts: Mapping[str, str | None] | None = None
    ) -> str:
        """What a field says in a row.

        Args:
            field: Name of the field.
            row: All fields of the row by name.
            usual: What is usual, in words; None where it isn't said.
            texts: Values of the categorical and context columns, to name them.
        """
        kind, named = self.kinds[field]
        template, absent = TEMPLATES[kind], self.fields.absent(field, row)
        column = named.get("column", "")
        that = f"this {spoken(column)}"
        value_text = (texts or {}).get(column)
        shown = that if value_text is None else f"{spoken(column)} {value_text}"
        if absent is not None:
            said = absent.replace(that, shown) if column else absent
            return said.replace("no earlier transaction of", "first transaction of", 1) if said.startswith("no earlier") else said
        value, text = self.value(field, row, texts), template.text
        if template.no and row[field] <= 0.5:
            text = template.no
        if template.never and value == NEVER:
            text = template.never
        if value == "1":
            text = _ONE.sub(r"{value} \1\2", text)
        said = text.format(**named | {"value": value, "that": shown})
        return said if usual is None or usual == value or text in (template.no, template.never) else f"{said}; usually {usual}"

    def value(self, field: str, row: Mapping[str, float], texts: Mapping[str, str | None] | None = None) -> str:
        """The value of a field in a row, in words; a category that the model does not know is named."""
        kind, named = self.kinds[field]
        value = self.fields.read(field, row)[1]
        name = (texts or {}).get(named["column"]) if kind == "own category" else None
        return value if name is None or name == value else f"{name} ({value})"

    def compares(self, field: str) -> bool:
        """Whether what is usual is said of a field."""
        return TEMPLATES[self.kinds[field][0]].usual


def _derived(schema: Schema) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Every derived field that a table with these roles can have: name, kind and placeholders."""
    spec = schema.spec
    for name in (STAGE1_LOGIT, "amount_log", "hour", "hour_sin", "hour_cos", "weekday"):
        yield name, name, {}
    if spec.entity is not None:
        this = {"this": f"this {spoken(spec.entity)}"}
        yield from _of_entity(this)
        for column in dict.fromkeys((*spec.categorical, *spec.context)):
            named = this | {"column": column, "kind": spoken(column)}
            for kind in ("used", "share", "days_since", "amount_ratio", "amount_z"):
                yield f"{column}_{kind}", f"COLUMN_{kind}", named
            for kind in ("ratio", "z"):
                yield f"previous_{column}_amount_{kind}", f"previous_COLUMN_amount_{kind}", named
    for column in spec.context:
        yield from _of_context(column)


def _of_entity(this: dict[str, str]) -> Iterator[tuple[str, str, dict[str, str]]]:
    for name in TEMPLATES:
        if "{this}" in TEMPLATES[name].text and "{" not in name and "COLUMN" not in name:
            yield name, name, this
    for window, seconds in VELOCITY.items():
        named = this | {"window": period(seconds)}
        for kind in ("count", "sum", "mean_shift", *(("stage1_sum", "stage1_mean") if window in WINDOWS else ())):
            yield f"{kind}_{window}", f"{kind}_{{window}}", named
    for kind, numbers in (("stage1_previous", LAST), ("stage1_highest", TOP)):
        for number in numbers:
            yield f"{kind}_{number}", f"{kind}_{{number}}", this | {"number": str(number)}


def _of_context(column: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    named = {"column": column, "kind": spoken(column)}
    for days in WINDOW_DAYS:
        window = {"window": "1 day" if days == 1 else period(days * DAY)}
        for kind in ("fraud_rate", "count"):
            yield f"{column}_{kind}_{days}d", f"SHOP_{kind}_{{days}}", named | window
    for kind in (
        "last_label",
        "days_since_fraud",
        "legitimate_since_fraud",
        "fraud_run_length",
        "fraud_run_days",
        "gap_log",
        "amount_z_all",
    ):
        yield f"{column}_{kind}", f"SHOP_{kind}", named
    for number in RECENT_LABELS[1:]:
        yield f"{column}_fraud_share_last_{number}", "SHOP_fraud_share_last_{number}", named | {"number": str(number)}
    yield f"{column}_first_fraud_{FIRST_FRAUD_DAYS}d", "SHOP_first_fraud", named | {"window": f"{FIRST_FRAUD_DAYS} days"}
    for length, seconds in ACTIVITY_WINDOWS.items():
        yield f"{column}_rows_{length}", "SHOP_rows_{window}", named | {"window": period(seconds)}
    last = {"window": period(ACTIVITY_WINDOWS[LEVEL_WINDOW])}
    yield f"{column}_level_shift_{LEVEL_WINDOW}", "SHOP_level_shift", named | last
