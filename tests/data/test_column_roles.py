"""Roles of columns as a data scientist would set them by hand, by name and values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.data.column_roles import some
from balancer.data.role_names import is_code, is_count, plain_name, rank
from balancer.data.roles import Roles, inferred, resolve_spec
from balancer.data.spec import Spec
from balancer.errors import InputError

ROWS = 2_000
Column = Callable[[np.random.Generator], Any]


def table(**columns: Any) -> pl.DataFrame:
    """A table without entity and with time and label, and further columns."""
    rng = np.random.default_rng(0)
    start = datetime(2024, 1, 1)
    base = {
        "time": [start + timedelta(minutes=13 * row) for row in range(ROWS)],
        "amount": rng.exponential(30, ROWS).round(2),
        "is_fraud": (rng.random(ROWS) < 0.1).astype(int),
    }
    return pl.DataFrame(base | {name: make(rng) if callable(make) else make for name, make in columns.items()})


def roles_of(frame: pl.DataFrame, **flags: Any) -> Roles:
    return inferred(frame, overrides=flags)


def integers(low: int, high: int) -> Column:
    return lambda rng: rng.integers(low, high, ROWS)


def choice(*values: object) -> Column:
    return lambda rng: rng.choice(np.array(values, dtype=object), ROWS).tolist()


def numbered(prefix: str, size: int) -> Column:
    return lambda rng: [f"{prefix}{value}" for value in rng.integers(0, size, ROWS)]


FEATURES: list[tuple[str, Any, str]] = [
    ("f0", integers(-500, 500), "numeric"),
    ("tenure", integers(0, 72), "numeric"),
    ("num_children", integers(0, 5), "numeric"),
    ("age", integers(18, 95), "numeric"),
    ("duration_ms", integers(1000, 2000), "numeric"),
    ("city_pop", integers(100, 10**6), "numeric"),
    ("months_as_customer", integers(0, 480), "numeric"),
    ("zip_count_6h", integers(100, 6000), "numeric"),
    ("level", integers(0, 5), "categorical"),
    ("SeniorCitizen", integers(0, 2), "categorical"),
    ("mcc", integers(5000, 5300), "categorical"),
    ("dst_port", integers(1, 300), "categorical"),
    ("card1", lambda rng: 1000.0 + 7 * rng.integers(0, 300, ROWS), "categorical"),
    ("addr1", lambda rng: [None if value < 30 else float(value) for value in rng.integers(0, 200, ROWS)], "categorical"),
    ("zip", numbered("0123", 10), "categorical"),
    ("institution", lambda rng: 4000 + 37 * rng.integers(0, 100, ROWS), "categorical"),
    ("pan_hash", lambda rng: 10**15 + rng.integers(0, 50, ROWS), "categorical"),
    ("is_online", choice("Y", "N"), "categorical"),
    ("M1", choice("T", "F", None), "categorical"),
    ("checked", choice("OUI", "NON", ""), "categorical"),
    ("flag", lambda rng: rng.random(ROWS) < 0.5, "categorical"),
    ("P_emaildomain", choice("gmail.com", "yahoo.com", "web.de"), "categorical"),
    ("sku", numbered("sku", 300), "categorical"),
    ("score", lambda rng: rng.random(ROWS), "numeric"),
    ("price_text", lambda rng: [f"{value:.2f}".replace(".", ",") for value in 100 * rng.random(ROWS)], "numeric"),
    ("dollars", lambda rng: [f"${value:.2f}" for value in 100 * rng.random(ROWS)], "numeric"),
    ("C1", lambda rng: [None if value == 0 else str(value) for value in rng.poisson(9, ROWS)], "numeric"),
    ("merchant_id", integers(0, 100), "context"),
    ("nameDest", numbered("M", 200), "context"),
]


@pytest.mark.parametrize(("name", "values", "role"), FEATURES, ids=[name for name, _, _ in FEATURES])
def test_features(name: str, values: Any, role: str) -> None:
    roles = roles_of(table(**{name: values}))
    found = {each.name: each.choice for each in roles.columns}[name]
    assert found.role == role
    assert found.reason
    assert name in getattr(roles.spec, role)


LEFT_OUT: list[tuple[str, Any, str]] = [
    ("empty", [None] * ROWS, "empty, or the same in every row"),
    ("country", ["FR"] * ROWS, "empty, or the same in every row"),
    ("row_key", np.arange(ROWS), "different in nearly every row"),
    ("f1", np.arange(ROWS), "different in nearly every row"),
    ("session", [f"s{row}" for row in range(ROWS)], "different in nearly every row"),
    ("birth_date", [date(1970, 1, 1) + timedelta(days=17 * (row % 400)) for row in range(ROWS)], "dates and times of day"),
    ("opened_on", ["2020-01-31", "2021-02-28"] * (ROWS // 2), "dates and times of day"),
    ("comment", lambda rng: [f"paid for {value} things" for value in rng.integers(0, 900, ROWS)], "text or codes with too many"),
    ("last_name", numbered("N", 700), "text or codes with too many"),
    ("insured_zip", integers(10_000, 99_999), "text or codes with too many"),
    ("unix_time", 1_700_000_000 + 60 * np.arange(ROWS), "dates and times of day"),
    ("isFlaggedFraud", integers(0, 2), "a second label"),
    ("fraud_kind", choice("none", "theft"), "a second label"),
    ("chargeback_date", ["", "2024-01-31"] * (ROWS // 2), "a second label"),
    ("target", integers(0, 2), "a second label"),
    ("attack_cat", choice("none", "dos"), "a second label"),
    ("tags", [["a"], ["b"]] * (ROWS // 2), "lists, structures, bytes or durations"),
]


@pytest.mark.parametrize(("name", "values", "note"), LEFT_OUT, ids=[name for name, _, _ in LEFT_OUT])
def test_columns_that_are_left_out_are_said(name: str, values: Any, note: str) -> None:
    roles = roles_of(table(**{name: values}))
    assert name not in roles.spec.columns()
    (line,) = [line for line in roles.notes if line.startswith("left out")]
    assert line.startswith(f"left out, {note}") and line.endswith(f": {name}")


def test_one_note_a_reason() -> None:
    roles = roles_of(table(**{f"x{number}": ["same"] * ROWS for number in range(170)}, extra=integers(0, 90)), numeric=())
    assert list(roles.notes) == [
        "left out, empty, or the same in every row: x0, x1, x2, x3, x4 and 165 more",
        "left out, without a role: extra",
    ]
    assert some(["a"]) == "a"


@pytest.mark.parametrize(
    ("role", "name", "values"),
    [
        *[("label", name, choice("0", "1")) for name in ("isFraud", "Class", "Churn", "target", "y", "default", "fraud_flag", "Fraude")],
        *[("label", name, choice("no", "yes")) for name in ("is_fraudulent", "attack_cat", "TX_FRAUD", "Betrug", "Exited", "FraudFound_P")],
        *[("entity", name, numbered("c", 90)) for name in ("nameOrig", "customerID", "Numéro_carte", "cc_num", "KONTONUMMER", "cliente")],
        *[("amount", name, lambda rng: rng.random(ROWS)) for name in ("TransactionAmt", "Montant", "Betrag", "amt", "value", "TX_AMOUNT")],
        *[("id", name, np.arange(ROWS) + 7) for name in ("TransactionID", "id", "trans_num", "Unnamed: 0", "customerID", "uuid")],
    ],
)
def test_roles_by_name(role: str, name: str, values: Any) -> None:
    base = table(**{name: values}, other=integers(0, 300))
    frame = base.drop("is_fraud" if role == "label" else "amount" if role == "amount" else [])
    assert getattr(resolve_spec(frame), role) == name


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("step", np.arange(ROWS) // 24),
        ("TransactionDT", 86400 + 60 * np.arange(ROWS)),
        ("timestamp", 1.7e9 + np.arange(ROWS)),
        ("unix_time", 10**9 + np.arange(ROWS)),
        ("Date_opération", [f"{1 + row % 28:02}/01/2024 10:{row % 60:02}" for row in range(ROWS)]),
        ("when_it_was", [datetime(2024, 1, 1) + timedelta(hours=row) for row in range(ROWS)]),
        ("zeitpunkt", [f"2024-01-{1 + row % 28:02}T10:00:00Z" for row in range(ROWS)]),
        ("tag", [20240101 + row % 28 for row in range(ROWS)]),
    ],
)
def test_the_time_by_name_or_content(name: str, values: Any) -> None:
    frame = table(**{name: values}, merchant_lag_time=integers(0, 500)).drop("time")
    assert resolve_spec(frame).time == name


def test_a_date_and_a_time_of_day_are_joined() -> None:
    day = [f"2024-01-{1 + row % 28:02}" for row in range(ROWS)]
    clock = [f"{row % 24:02}:15:00" for row in range(ROWS)]
    frame = table(date=day, hour=clock, birth_date=day[::-1]).drop("time")
    roles = inferred(frame)
    assert roles.spec.time == "date+hour"
    reasons = {each.name: each.choice for each in roles.columns}
    assert reasons["hour"].role == "time" and "part of date+hour" in reasons["hour"].reason
    assert resolve_spec(table(booked=day).drop("time")).time == "booked"


def test_without_a_time() -> None:
    frame = table(f0=integers(0, 400)).drop("time")
    roles = inferred(frame)
    assert roles.spec.time is None
    assert "no column looks like a time" in roles.notes[0] and "--split random" in roles.notes[0]
    with pytest.raises(InputError, match=r"no time column was recognised: name it with --time, or give --time none"):
        inferred(frame.with_columns(card_id=pl.int_range(pl.len()) % 90))
    assert resolve_spec(frame.with_columns(card_id=pl.int_range(pl.len()) % 90), overrides={"time": "none"}).time is None


def test_context_needs_a_time() -> None:
    spec = resolve_spec(table(merchant_id=integers(0, 100)).drop("time"))
    assert (spec.context, spec.categorical) == ((), ("merchant_id",))


def test_a_customer_of_one_row_each_is_no_entity() -> None:
    spec = resolve_spec(table(customerID=[f"{row}-X" for row in range(ROWS)], f0=integers(0, 400)))
    assert (spec.entity, spec.id) == (None, "customerID")


def test_the_higher_rank_is_taken_and_equal_ranks_are_ambiguous() -> None:
    assert resolve_spec(table(Class=integers(0, 2), y=integers(0, 2))).label == "is_fraud"
    assert resolve_spec(table(y=integers(0, 2), chargeback=integers(0, 2)).drop("is_fraud")).label == "chargeback"
    with pytest.raises(InputError, match=r"several columns may be the label \(y, default\): name it with --label"):
        resolve_spec(table(y=integers(0, 2), default=integers(0, 2)).drop("is_fraud"))
    assert resolve_spec(table(y=lambda rng: rng.random(ROWS))).numeric == ("y",)
    with pytest.raises(InputError, match="several columns may be the amount"):
        resolve_spec(table(amt=lambda rng: rng.random(ROWS)))
    assert resolve_spec(table(total=integers(0, 900), price=integers(0, 900)).drop("amount")).amount is None


def test_doubts_instead_of_errors() -> None:
    frame = table(y=integers(0, 2), default=integers(0, 2), posted=lambda rng: [datetime(2024, 1, 2)] * ROWS).drop("is_fraud")
    frame = frame.rename({"time": "booked"}).with_columns(pl.col("booked").alias("posted"))
    roles = inferred(frame, doubtful=True)
    assert (roles.spec.time, roles.spec.label) == (None, None)
    starts = ("several columns may be the time (booked", "several columns may be the label (y, ")
    assert len(roles.doubts) == 2 and all(doubt.startswith(start) for doubt, start in zip(roles.doubts, starts, strict=True))


@pytest.mark.parametrize(
    "name", ["prior_fraud_count", "merchant_fraud_rate", "fraud_score_vendor", "chargebacks_last_year", "device_fraud_count"]
)
def test_facts_about_the_past_and_others_are_features(name: str) -> None:
    assert name in resolve_spec(table(**{name: integers(0, 30)})).numeric
    leak = inferred(table(**{name: lambda rng: np.arange(ROWS)}).with_columns((pl.col("is_fraud") * 7 + 1).alias(name)))
    choice_of = {each.name: each.choice for each in leak.columns}[name]
    assert choice_of.role == "" and "separates the classes" in choice_of.reason


@pytest.mark.parametrize("name", ["label_printer", "target_country", "targeted_offer", "device_fraud", "chargebackCount12m"])
def test_words_of_the_label_in_other_names(name: str) -> None:
    assert name in resolve_spec(table(**{name: choice("FR", "DE", "US")})).categorical


@pytest.mark.parametrize("name", ["PotentialFraud", "Betrugsfall", "IsLaundering", "bad"])
def test_a_single_column_of_yes_and_no_that_is_about_fraud_is_the_label(name: str) -> None:
    assert resolve_spec(table(**{name: integers(0, 2)}).drop("is_fraud")).label == name


def test_what_may_be_the_label_is_named() -> None:
    frame = table(fraud_kind=choice("none", "theft"), income=choice("<=50K", ">50K")).drop("is_fraud")
    with pytest.raises(InputError, match=r"name it with --label \(fraud_kind, income\?\)"):
        resolve_spec(frame)
    frame = table(reported_at=["2024-01-31"] * 5 + [""] * (ROWS - 5)).drop("is_fraud")
    with pytest.raises(InputError, match=r"with --label-date \(reported_at\?\)"):
        resolve_spec(frame)


def test_a_date_of_reports_is_offered_as_the_label() -> None:
    frame = table(chargeback_date=["", "2024-01-31"] * (ROWS // 2)).drop("is_fraud")
    with pytest.raises(InputError, match=r"with --label-date \(chargeback_date\?\)"):
        resolve_spec(frame)
    spec = resolve_spec(frame, overrides={"label_date": "chargeback_date"})
    assert (spec.label, spec.label_date) == (None, "chargeback_date")


def test_a_table_without_a_feature_is_refused() -> None:
    with pytest.raises(InputError, match="no column can be a feature: name columns with --numeric or --categorical"):
        resolve_spec(table(country=["FR"] * ROWS).drop("amount"))
    everything = dict.fromkeys(("entity", "amount", "id", "numeric", "categorical", "context"), "none")
    with pytest.raises(InputError, match="no column can be a feature"):
        resolve_spec(table(), overrides={**everything, "time": "time", "label": "is_fraud"})


def test_joined_columns() -> None:
    frame = table(card1=integers(0, 60), addr1=integers(0, 9), f0=integers(0, 400))
    roles = roles_of(frame, entity="card1+addr1")
    assert roles.spec.entity == "card1+addr1" and roles.spec.categorical == ()
    assert {each.name: each.choice.reason for each in roles.columns}["addr1"] == "given, part of card1+addr1"
    with pytest.raises(InputError, match=r"no column 'addr2' for the role entity \(--entity\)"):
        roles_of(frame, entity="card1+addr2")


def test_columns_constant_within_an_entity_are_left_out_where_entities_repeat() -> None:
    card = np.arange(ROWS) % 90
    frame = table(card_id=card, card_type=[("debit", "credit")[each % 2] for each in card], f0=integers(0, 400))
    roles = inferred(frame)
    assert roles.spec.numeric == ("f0",) and roles.spec.categorical == ()
    assert any(line.startswith("left out, the same in all rows of one card_id") for line in roles.notes)
    once = table(card_id=[f"c{row - (row % 9 == 0)}" for row in range(ROWS)], card_type=choice("debit", "credit"))
    assert "card_type" in resolve_spec(once, overrides={"entity": "card_id"}).categorical


def test_earlier_versions_used_no_integers() -> None:
    frame = table(f0=integers(0, 400), sku=numbered("s", 300), channel=choice("web", "pos"), x=lambda rng: rng.random(ROWS))
    spec: Spec = inferred(frame, earlier=True).spec
    assert (spec.numeric, spec.categorical) == (("x",), ("channel",))


def test_a_sampled_table_has_the_roles_of_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    card = np.arange(ROWS) // 7 % 90
    frame = table(
        card_id=card, segment=[f"s{each % 5}" for each in card], f0=integers(0, 400), mcc=integers(5000, 5020), tx_id=np.arange(ROWS)
    )
    whole = resolve_spec(frame)
    for name, value in (("MAX_ROWS", 500), ("_LEAST_ROWS", 100)):
        monkeypatch.setattr(f"balancer.data.examining.{name}", value)
    roles = inferred(frame)
    assert roles.table.sampled and roles.table.sample.height == 500
    assert roles.spec == whole
    assert (whole.entity, whole.id, whole.numeric, whole.categorical) == ("card_id", "tx_id", ("f0",), ("mcc",))


def test_names() -> None:
    assert [plain_name(name) for name in ("Größe (m²)", "№ карты", "XMLHttpID", "  a--b ")] == [
        "grosse_m2",
        "no_карты",
        "xml_http_id",
        "a_b",
    ]
    assert rank("label", "fraud_kind") is None and rank("time", "lifetime") is None
    assert is_code("ProductCD") and is_code("dst_port") and not is_code("num_items") and is_count("customer_age")


@pytest.mark.parametrize("mark", ["X", "1", "true", 1.0, True])
def test_a_flag_that_is_set_or_missing_is_a_feature(mark: Any) -> None:
    card = np.arange(ROWS) % 90
    frame = table(
        card_id=card,
        flag=lambda rng: [mark if value < 0.3 else None for value in rng.random(ROWS)],
        rare=lambda rng: [f"{row % 90}" if value < 0.1 else None for row, value in enumerate(rng.random(ROWS))],
        always=[mark if each < 30 else None for each in card],
        city=lambda rng: [f"c{row % 90 % 7}" if value < 0.9 else None for row, value in enumerate(rng.random(ROWS))],
    )
    roles = inferred(frame)
    used = roles.spec.numeric + roles.spec.categorical
    assert {"flag", "rare"} <= set(used)
    assert "always" not in used and "city" not in used, "they are the same in all rows of a card"


def test_whole_numbers_of_a_float_type_have_a_reason_of_their_own() -> None:
    roles = roles_of(table(level=lambda rng: rng.integers(0, 5, ROWS).astype(float)))
    (level,) = [each.choice for each in roles.columns if each.name == "level"]
    assert (level.role, level.reason) == ("numeric", "numbers with decimals, all whole")
