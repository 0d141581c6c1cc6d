"""Values of a transaction: strict types, one normal form, a limit of amounts, numbers as a table has them."""

from __future__ import annotations

import re
import time
import timeit
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.data.checks import RowCheck, check_number
from balancer.data.dataset import load_dataset
from balancer.data.past import AMOUNT_LIMIT
from balancer.data.roles import resolve_spec
from balancer.data.schema import Schema
from balancer.data.simulation.stream import simulate
from balancer.errors import InputError
from balancer.serving.scoring.parsing import parse_transaction, plan_of
from balancer.serving.scoring.row import Row
from balancer.serving.texts import LONGEST_TEXT, MOST_BYTES, is_text
from balancer.tables.options import ReadOptions
from tests.serving.tools import CARD, LONG_AGO

_TABLE = simulate(rows=4000, seed=1, fraud_rate=0.03)
SCHEMA = load_dataset(_TABLE, resolve_spec(_TABLE, overrides={"gap": "1d"})).schema
POINT = replace(SCHEMA, spec=replace(SCHEMA.spec, read=ReadOptions(decimal=".")))
COMMA = replace(SCHEMA, spec=replace(SCHEMA.spec, read=ReadOptions(decimal=",", null_values=("none given",))))


def read(schema: Schema = SCHEMA, **changes: Any) -> Row:
    return parse_transaction(CARD | changes, schema, "transactions[3]", time.time(), LONG_AGO)


def refused(schema: Schema = SCHEMA, **changes: Any) -> str:
    with pytest.raises(InputError) as error:
        read(schema, **changes)
    return str(error.value)


@pytest.mark.parametrize("column", ["transaction_id", "card_id"])
@pytest.mark.parametrize(
    "value", [True, False, float("nan"), "", " ", None, [], "a\x00", "\ud800", "\x85".join("ab"), "x" * 1001, "\U0001f600" * 501]
)
def test_no_such_value_is_an_id(column: str, value: Any) -> None:
    if column == "transaction_id" and value is None:
        assert len(read(transaction_id=None).id) == 32
        return
    assert refused(**{column: value}).startswith(f"transactions[3]: column {column!r} is ")


def test_equal_ids_are_one() -> None:
    for column, of in (("card_id", lambda row: row.entity), ("transaction_id", lambda row: row.id)):
        assert {of(read(**{column: value})) for value in (3, 3.0, "3", "3.0", " 3\u00a0")} == {"3"}
        assert {of(read(**{column: value})) for value in ("Caf\u00e9", "Cafe\u0301", "Cafe\u0301\u3000")} == {"Caf\u00e9"}
        assert of(read(**{column: "nAn1"})) == "nAn1"
    assert len({read(card_id=value).digest for value in (3, "3.0", 3.0)}) == 1
    assert "a word for a missing value" in refused(card_id="NaN")


@pytest.mark.parametrize(
    "amount", ["1_000", "0x10", "NaN", "", "abc", None, True, float("inf"), "1e999", 1e16, -1e300, 10**400, "1,234", [], "\x00"]
)
def test_no_such_value_is_an_amount(amount: Any) -> None:
    assert refused(amount=amount).startswith("transactions[3]: column 'amount' ")


def test_an_amount_has_a_limit() -> None:
    assert read(amount=AMOUNT_LIMIT).amount == AMOUNT_LIMIT
    assert read(amount=-AMOUNT_LIMIT).amount == -AMOUNT_LIMIT
    assert f"beyond the largest amount, {AMOUNT_LIMIT:g}" in refused(amount=1e308)
    assert "beyond the range of 32-bit floats" in refused(distance_km=1e39)


NUMBER = (
    st.from_regex(r"\A[ ]?[-+]?[0-9]{0,4}([.,][0-9]{0,3}){0,2}(e[-+]?[0-9]{1,2})?[ ]?[%-]?\Z")
    | st.floats(-1e9, 1e9, allow_nan=False).map(repr)
    | st.integers(-(10**14), 10**14).map(str)
    | st.sampled_from(
        [
            "(5)",
            "5 EUR",
            "$ 1,234.50",
            "1.234,5",
            "none given",
            "NA",
            "-",
            "1_0",
            "\u0661",
            "1'000",
            "- 5",
            "\u22125",
            "1e5",
            "infinity",
            "5 %",
        ]
    )
)


@given(NUMBER, st.sampled_from(["", ".", ","]))
@settings(max_examples=300)
def test_a_number_as_text_is_that_of_a_table(text: str, mark: str) -> None:
    schema = {"": SCHEMA, ".": POINT, ",": COMMA}[mark]
    check = RowCheck(2, "error")
    other = ("7,25" if mark == "," else "7.25") + (" %" if "%" in text else "")  # shows the decimal mark in a column
    column = pl.Series("distance_km", [text, other])
    try:
        expected = check_number(column, check, optional=True, read=schema.spec.read)[0]
        alone = check_number(pl.Series("distance_km", [text]), RowCheck(1, "error"), optional=True, read=schema.spec.read)[0]
    except InputError:
        refused(schema, distance_km=text)
        return
    if not mark and "," in text:  # nothing says what it means: in a column the other numbers do
        assert "give it as a number" in refused(schema, distance_km=text)
        return
    if expected == 0 and re.search("[.,]000", text):  # 0,000 is 0 with either mark, so it may be refused too
        return
    if not np.isclose(alone, expected, rtol=1e-12, equal_nan=True):  # its own mark is another than that of the run
        assert "give it as a number" in refused(schema, distance_km=text)
        return
    if check.notes:  # the table takes an infinite number as missing, and says so; a request has nobody to say it to
        assert "not finite" in refused(schema, distance_km=text)
        return
    # Polars divides by 100 with last bits that depend on the other rows of the column.
    np.testing.assert_allclose(read(schema, distance_km=text).numeric["distance_km"], expected, rtol=1e-12 if "%" in text else 0)


@pytest.mark.parametrize(
    ("options", "text", "value"),
    [
        ({}, "12,5", None),
        ({}, "1,250.5", None),
        ({}, "1,250", None),
        ({}, "1.250,5", None),
        ({}, "1,250,000", None),
        ({}, "1.250.000", None),
        ({"thousands": "'"}, "1,250.5", None),
        ({}, "1250.5", 1250.5),
        ({"decimal": ","}, "12,5", 12.5),
        ({"decimal": ","}, "1.250,5", 1250.5),
        ({"decimal": ","}, "1.250", 1250.0),
        ({"decimal": ","}, "12.5", None),
        ({"decimal": ","}, "1,250.5", None),
        ({"thousands": "."}, "1.250,5", 1250.5),
        ({"thousands": "."}, "1250.5", None),
        ({"decimal": "."}, "1,250.5", 1250.5),
        ({"thousands": ","}, "1,250.5", 1250.5),
        ({"decimal": "."}, "12,5", None),
        ({"thousands": "'"}, "1'250.5", 1250.5),
    ],
)
def test_one_value_has_only_the_marks_of_the_run(options: dict[str, str], text: str, value: float | None) -> None:
    schema = replace(SCHEMA, spec=replace(SCHEMA.spec, read=ReadOptions(**options)))
    if value is None:
        message = refused(schema, amount=text)
        assert message.startswith("transactions[3]: column 'amount' ") and "give it as a number" in message
        refused(schema, distance_km=text)
    else:
        row = read(schema, amount=text, distance_km=text)
        assert (row.amount, row.numeric["distance_km"]) == (value, value)


def test_a_truth_value_is_a_number_where_it_may_have_been_one() -> None:
    schema = replace(SCHEMA, fill=SCHEMA.fill | {"distance_km": 0.0})
    assert (read(schema, distance_km=True).numeric, read(schema, distance_km=False).numeric) == ({"distance_km": 1.0}, {"distance_km": 0.0})
    assert "column 'distance_km' is true or false, not a number" in refused(distance_km=True)
    assert read(channel=True).texts["channel"] == "true"


def test_a_joined_key_is_short_enough_for_an_index() -> None:
    from tests.serving.test_values import ROW
    from tests.serving.test_values import SCHEMA as JOINED

    long = "\u4e2d" * 400
    for changes in ({"card": long, "region": long}, {"shop": long, "kind": long}):
        with pytest.raises(InputError, match="together: the text is not a printable text of at most"):
            parse_transaction(ROW | changes, JOINED, "row", time.time(), LONG_AGO)


@given(st.text(st.characters(codec=None), max_size=20))
def test_what_is_stored_is_what_both_databases_store(text: str) -> None:
    printable = not any(ord(each) < 32 or 0x7F <= ord(each) < 0xA0 or 0xD800 <= ord(each) < 0xE000 for each in text)
    assert is_text(text) == printable
    assert is_text("\u00e9" * 1000)
    assert not is_text("\u00e9" * (LONGEST_TEXT + 1))
    assert not is_text("\u4e2d" * (MOST_BYTES // 3 + 1))


def test_a_plan_is_made_once_and_ends_with_its_schema() -> None:
    from balancer.serving.scoring import parsing

    schema = replace(SCHEMA)
    assert plan_of(schema) is plan_of(schema) is not plan_of(SCHEMA)
    key = id(schema)
    del schema
    assert key not in parsing._PLANS


@pytest.mark.parametrize(
    "changes",
    [{}, {"time": 1.78e9}, {"merchant_id": "Caf\u00e9\u00a0Paris"}, {"amount": "19.99", "card_id": 17}],
    ids=["plain", "number", "unicode", "types"],
)
def test_a_transaction_is_parsed_in_microseconds(changes: dict[str, Any]) -> None:
    raw, now = CARD | changes, time.time()
    taken = min(timeit.repeat(lambda: parse_transaction(raw, SCHEMA, "row", now, LONG_AGO), number=100, repeat=5)) / 100
    assert taken < 200e-6, "12 microseconds here; with a data frame it was 400 and more"
