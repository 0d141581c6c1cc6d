"""Every field of a table has words, and its value reads as what it was made from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.field_words import FieldWords, spoken
from balancer.data.score_memory import STAGE1_LOGIT
from balancer.data.spec import Spec
from tests.data.test_features import SPEC, make_table


def loaded(spec: Spec = SPEC, **columns: object) -> Dataset:
    table = make_table(200, 1).with_columns(pl.lit(1.5).alias("distance"), pl.col("shop").alias("till_id"))
    return load_dataset(table.with_columns(**columns), spec, score_fields=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, numeric=("distance",), context=("shop", "till_id")),
        replace(SPEC, entity=None, context=("shop",)),
        replace(SPEC, amount=None, categorical=(), context=()),
        replace(SPEC, entity="till_id", categorical=("kind", "shop"), context=("shop",)),
    ],
)
def test_every_derived_field_has_words_of_its_own(spec: Spec) -> None:
    schema = loaded(spec).schema
    words = FieldWords(schema)
    found = {name: words.words(name) for name in schema.numeric_fields if name not in spec.numeric}
    assert not [name for name, text in found.items() if text == name or "_" in text]
    assert len(set(found.values())) == len(found)
    assert {name: words.words(name) for name in (*spec.numeric, *schema.categorical_fields)} == {
        name: name for name in (*spec.numeric, *schema.categorical_fields)
    }


def test_columns_are_named_in_the_words() -> None:
    words = FieldWords(loaded(replace(SPEC, entity="till_id", context=("shop",))).schema)
    assert words.words("count_1h") == "transactions of this till in the last hour"
    assert words.words("stage1_highest_10") == "highest earlier score of this till among its last 10 transactions"
    assert words.words("shop_rows_7d") == "transactions of this shop in the last 7 days"
    assert words.words("kind_days_since") == "time since the last transaction of this till with this kind"
    assert [spoken(name) for name in ("card_id", "merchant_category", "id", "_id", "_")] == ["card", "merchant category", "id", "id", "_"]


def test_values_read_as_what_they_were_made_from() -> None:
    words = FieldWords(loaded(replace(SPEC, numeric=("distance",))).schema)
    cases = {
        ("count_1h", math.log1p(1204)): "1,204",
        ("amount_log", math.log1p(19.99)): "19.99",
        ("amount_log", -math.log1p(5)): "-5.00",
        ("gap_log", math.log1p(90)): "1.5 minutes",
        ("gap_log", math.log1p(3650 * 86400.0)): "never before",
        ("gap_log", 0.0): "0 seconds",
        ("shop_days_since_fraud", math.log1p(2.5)): "2.5 days",
        ("shop_days_since_fraud", math.log1p(3650.0)): "never before",
        ("shop_fraud_rate_7d", 0.125): "12.5 %",
        ("shop_last_label", 1.0): "yes",
        ("is_first", 0.0): "no",
        ("hour", 23.5): "23:30",
        ("weekday", 0.0): "Monday",
        ("amount_ratio", math.log(3)): "3 times",
        ("amount_z", -math.log1p(2)): "-2 deviations",
        (STAGE1_LOGIT, 0.0): "50 %",
        (STAGE1_LOGIT, -12.0): "0.000614 %",
        ("stage1_previous_1", -12.0): "none, or below 0.001 %",
        ("stage1_previous_1", math.log(3)): "75 %",
        ("stage1_sum_7d", math.log1p(2.5)): "2.5",
        ("hour_habit_all", -0.5): "-0.50 of 1",
        ("distance", 1.5): "1.5",
    }
    assert {key: words.value(key[0], float(np.float32(key[1]))) for key in cases} == cases


def test_odd_values_give_text() -> None:
    schema = loaded(replace(SPEC, numeric=("distance",))).schema
    words = FieldWords(schema)
    for name in schema.numeric_fields:
        assert words.value(name, math.nan) == "missing"
        for value in (-1e30, -1.0, 0.0, 1.0, 1e30):
            assert words.value(name, value)


def test_categories_are_named() -> None:
    other = "rare or not seen in training"
    for buckets, none in ((0, "not seen in training"), (4, "missing")):
        schema = load_dataset(make_table(200, 1), SPEC, hash_buckets=buckets).schema
        words, known = FieldWords(schema), schema.vocabularies["kind"]
        assert [words.value("kind", code) for code in range(1, len(known) + 1)] == known
        assert words.value("kind", 0.0) == none
        assert words.value("kind", len(known) + 1.0) == other
