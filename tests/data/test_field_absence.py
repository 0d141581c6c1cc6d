"""A field of earlier rows says that there are none, where there are none, and else its value."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from balancer.data.dataset import Dataset
from balancer.data.field_absence import absences
from balancer.data.field_words import FieldWords
from balancer.data.spec import Spec
from tests.data.test_features import SPEC
from tests.data.test_field_words import loaded

WHOLE = replace(SPEC, numeric=("distance",), context=("shop",))


def rows_of(dataset: Dataset) -> list[dict[str, float]]:
    names = (*dataset.schema.numeric_fields, *dataset.schema.categorical_fields)
    return [dict(zip(names, values, strict=True)) for values in dataset.store.values.tolist()]


def of_earlier_rows(name: str) -> bool:
    """Whether a field reads one earlier row at least, by its name."""
    word = ("is_first", "gap_log", "gap_ratio", "habit", "previous", "stage1_highest", "stage1_mean", "amount_to_max", "mean_shift", "_1d")
    return any(part in name for part in word) and not name.startswith("shop")


def test_the_first_row_of_an_entity_says_that_there_is_none_before() -> None:
    dataset = loaded(WHOLE)
    words = FieldWords(dataset.schema)
    firsts = [row for row in rows_of(dataset) if row["is_first"] > 0.5]
    assert len(firsts) > 1
    for row in firsts:
        for name in filter(of_earlier_rows, row):
            assert words.sentence(name, row).startswith("no earlier transaction of this "), name
            assert words.read(name, row)[1] == words.sentence(name, row)
        assert words.sentence("amount_log", row).startswith("amount: ")


@pytest.mark.parametrize("spec", [WHOLE, replace(SPEC, entity=None, context=("shop",)), replace(SPEC, amount=None, context=())])
def test_what_is_said_to_be_missing_is_missing(spec: Spec) -> None:
    """The count that an absence names is that of the rows, and the value of such a field is that of none."""
    dataset = loaded(spec)
    known = set(dataset.schema.numeric_fields)
    listed = absences(dataset.schema)
    assert spec.entity is None or known & set(listed)
    assert {each.count for name in known & set(listed) for each in listed[name]} <= known
    for row in rows_of(dataset):
        for name in known & set(listed):
            for each in listed[name]:
                if each.holds(row):
                    assert round(math.expm1(row[each.count])) < each.least
                    # Without anything to read a field is 0, or the lower limit of a score, or never.
                    assert each.least > 1 or row[name] in (0.0, 1.0, -12.0) or row[name] > 3 or name == "gap_log"


def test_an_earlier_transaction_is_read_as_before() -> None:
    dataset = loaded(WHOLE)
    words = FieldWords(dataset.schema)
    later = [row for row in rows_of(dataset) if round(math.expm1(row["history_count"])) > 3]
    assert later
    for row in later:
        for name in ("previous_amount_log", "gap_log", "stage1_previous_3", "amount_z", "previous_gap_log"):
            assert words.sentence(name, row) == f"{words.words(name)}: {words.value(name, row[name])}"


def test_the_hour_is_said_once_as_the_time_of_the_day() -> None:
    words = FieldWords(loaded(WHOLE).schema)
    angle = 23.25 / 24 * math.tau
    row = {"hour": 23.25, "hour_sin": math.sin(angle), "hour_cos": math.cos(angle), "history_count": 5.0, "count_1d": 2.0}
    row |= {"hour_cos_mean_1d": 0.5 * math.cos(angle), "hour_sin_mean_1d": 0.5 * math.sin(angle)}
    assert {words.sentence(name, row) for name in ("hour", "hour_sin", "hour_cos")} == {"hour of the day: 23:15"}
    usual = {words.sentence(name, row) for name in ("hour_cos_mean_1d", "hour_sin_mean_1d")}
    assert usual == {f"{words.words('hour_cos_mean_1d').removesuffix(' (cosine)')}: 23:15"}
    assert words.read("hour_sin", {"hour_sin": 0.5}) == ("hour of the day (sine)", "0.5")
