"""The simulator: repeatable, with exact counts, without leaks; each fraud type can be learned from causal
fields."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from balancer.data.simulation.episodes import FRAUD_TYPES
from balancer.data.simulation.stream import simulate, write_simulation
from balancer.errors import InputError

SAMPLE = Path(__file__).parents[3] / "data_samples" / "transactions.parquet"
CHANCE = 0.04
"""Largest random deviation of an area under the curve from .5: test frauds come in about 500 episodes, so its
standard error is .013."""


@pytest.fixture(scope="module")
def stream() -> pl.DataFrame:
    """A large stream with many frauds: more than a sample, because only numbers
    distinguish chance from a leak."""
    frame = simulate(200_000, seed=3, fraud_rate=0.05, labels="types")
    return frame.with_columns(fraud=(pl.col("fraud_type") != "legitimate").cast(pl.Int8))


def trees_auc(values: np.ndarray, label: np.ndarray, *, categorical: list[int] | None = None) -> float:
    """Area under the curve on the last 40 % of rows of boosted trees learned on the first 60 %."""
    cut = int(0.6 * len(label))
    model = HistGradientBoostingClassifier(max_iter=40, early_stopping=False, random_state=0, categorical_features=categorical)
    model.fit(values[:cut], label[:cut])
    return float(roc_auc_score(label[cut:], model.predict_proba(values[cut:])[:, 1]))


def numbers(column: pl.Series) -> pl.Series:
    """The number in an id such as C000017."""
    return column.str.slice(1).cast(pl.Int64)


# ----------------------------------------------------------------------------------------- figures and form


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    first = simulate(10_000, seed=5)
    assert_frame_equal(first, simulate(10_000, seed=5))
    assert not first.equals(simulate(10_000, seed=6))


@pytest.mark.parametrize(("rows", "rate"), [(10_000, 0.01), (12_345, 0.02), (4_000, 0.3)])
def test_rows_and_fraud_rate_are_exact(rows: int, rate: float) -> None:
    frame = simulate(rows, seed=1, fraud_rate=rate)
    assert frame.height == rows
    assert frame["is_fraud"].sum() == round(rows * rate)


def test_columns_have_the_documented_form() -> None:
    frame = simulate(20_000, seed=2, cards=300, days=90)
    text = ["card_id", "merchant_id", "merchant_category", "channel", "region", "card_product"]
    assert frame.schema == {
        "transaction_id": pl.Int64,
        "time": pl.Datetime("us"),
        **dict.fromkeys(text, pl.String),
        "amount": pl.Float64,
        "distance_km": pl.Float64,
        "is_fraud": pl.Int8,
    }
    assert frame.null_count().transpose().sum().item() == 0
    assert frame["transaction_id"].to_list() == list(range(1, 20_001))
    assert frame["time"].is_sorted()
    assert frame["time"].is_between(datetime(2025, 1, 1), datetime(2025, 1, 1) + timedelta(days=90), closed="left").all()
    assert frame["card_id"].n_unique() <= 300
    assert (frame["amount"] >= 1.0).all()
    cents = (frame["amount"] * 100).to_numpy()
    np.testing.assert_allclose(cents, np.round(cents), atol=1e-6)


def test_typed_labels_name_the_same_frauds() -> None:
    binary, typed = simulate(20_000, seed=4), simulate(20_000, seed=4, labels="types")
    assert "is_fraud" not in typed.columns
    assert set(typed["fraud_type"].unique()) == set(FRAUD_TYPES)
    assert ((typed["fraud_type"] != "legitimate") == (binary["is_fraud"] == 1)).all()
    assert_frame_equal(typed.drop("fraud_type"), binary.drop("is_fraud"))


def test_habits_of_a_card_persist(stream: pl.DataFrame) -> None:
    """Amounts, places and merchants of a card repeat themselves from one half of the stream to the other."""
    half = stream.filter(pl.col("fraud") == 0).with_columns(late=pl.col("transaction_id") > stream.height // 2)
    level = (
        half.group_by("card_id", "late").agg(pl.col("amount").log().mean()).pivot(on="late", index="card_id", values="amount").drop_nulls()
    )
    assert np.corrcoef(level["true"], level["false"])[0, 1] > 0.5
    visits = half.select("card_id", "merchant_id").with_columns(repeated=pl.len().over("card_id", "merchant_id") > 1)
    assert visits["repeated"].to_numpy().mean() > 0.5
    assert 0.8 < (half["distance_km"] < 80).to_numpy().mean() < 0.99  # at home, but for journeys


def test_a_hundred_thousand_rows_take_a_tenth_of_the_time_for_a_million() -> None:
    seconds = []
    for rows in (10_000, 100_000):
        begin = time.process_time()  # of this process alone, whatever else the machine does
        simulate(rows, seed=0)
        seconds.append(time.process_time() - begin)
    # Half a second on a fast core. On a slow machine the time may grow twice as fast as the rows.
    assert seconds[1] < max(5.0, 20 * seconds[0])


# -------------------------------------------------------------------------------------------------- no leak


def appearance(values: pl.Series) -> pl.Series:
    """Codes of text by the order in which the values first occur, whatever else the process has read."""
    return values.cast(pl.Enum(values.unique(maintain_order=True))).to_physical()


def hints(frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """What must tell nothing: numbers of rows, cards and merchants, digits, the second, the day, the fixed
    property of a card."""
    cents = (pl.col("amount") * 100).round().cast(pl.Int64) % 100
    day = pl.col("time").dt.date()
    learned = pl.col("transaction_id") <= 0.6 * frame.height
    counts = frame.select("card_product", "card_id").with_columns(usage=pl.len().over("card_id"))
    return {
        "transaction_id": frame.select("transaction_id", digit=pl.col("transaction_id") % 10, parity=pl.col("transaction_id") % 2),
        "cents": frame.select(cents=cents, digit=cents % 10, tens=cents // 10, nickel=cents % 5),
        "row position": frame.select(in_day=pl.int_range(pl.len()).over(day) % 50, in_block=pl.col("transaction_id") % 64),
        "day": frame.select(day=pl.col("time").dt.epoch("d"), of_month=pl.col("time").dt.day()),
        "second": frame.select(second=pl.col("time").dt.second(), microsecond=pl.col("time").dt.microsecond()),
        "card_id": frame.select(numbers(frame["card_id"])),
        "frauds of the card in training": frame.select(pl.col("fraud").filter(learned).mean().over("card_id").fill_null(0)),
        "card_product": counts.select(appearance(counts["card_product"])),
        "usage of the card": counts.select("usage"),
    }


def test_no_forbidden_hint_alone_beats_chance(stream: pl.DataFrame) -> None:
    label = stream["fraud"].to_numpy()
    auc = {name: trees_auc(hint.to_numpy().astype(float), label) for name, hint in hints(stream).items()}
    assert {name: round(value, 3) for name, value in auc.items() if abs(value - 0.5) > CHANCE} == {}


def test_of_two_payments_in_one_second_either_may_come_first(stream: pl.DataFrame) -> None:
    pairs = stream.select("time", "fraud").with_columns(pl.all().shift(-1).name.suffix("_next"))
    pairs = pairs.filter((pl.col("time") == pl.col("time_next")) & (pl.col("fraud") != pl.col("fraud_next")))
    assert pairs.height > 100
    assert abs(pairs["fraud"].to_numpy().mean() - 0.5) < 2.5 * 0.5 / pairs.height**0.5


def test_the_number_of_a_merchant_adds_nothing_to_its_category_and_region(stream: pl.DataFrame) -> None:
    """Compromised merchants excepted: their bad weeks are what delayed labels are for."""
    frame = stream.filter(pl.col("fraud_type") != "compromised_merchant")
    label = frame["fraud"].to_numpy()
    codes = [appearance(frame[name]) for name in ("merchant_category", "channel", "region")]
    known = frame.select(codes).to_numpy().astype(float)
    number = numbers(frame["merchant_id"]).to_numpy()[:, None]
    business = frame.select(pl.len().over("merchant_id")).to_numpy()
    assert trees_auc(np.hstack([known, number, business]), label) < trees_auc(known, label) + 0.02


def test_a_compromised_merchant_shows_in_no_property_of_merchant_or_row(stream: pl.DataFrame) -> None:
    frame = stream.filter(pl.col("fraud_type").is_in(["legitimate", "compromised_merchant"]))
    row = frame.select(
        "amount",
        "distance_km",
        pl.col("time").dt.hour().alias("hour"),
        pl.col("time").dt.weekday().alias("weekday"),
        numbers(frame["merchant_id"]).alias("merchant"),
        pl.len().over("merchant_id").alias("business"),
        *[appearance(frame[name]) for name in ("merchant_category", "channel", "region", "card_product")],
    )
    assert abs(trees_auc(row.to_numpy().astype(float), frame["fraud"].to_numpy()) - 0.5) < 2 * CHANCE


def test_fraud_is_spread_evenly_over_the_stream(stream: pl.DataFrame) -> None:
    rate = stream.group_by(pl.col("transaction_id") * 6 // (stream.height + 1)).agg(pl.col("fraud").mean())["fraud"].to_numpy()
    assert rate.min() > 0.04
    assert rate.max() < 0.06


def test_a_card_goes_on_paying_on_days_of_fraud() -> None:
    """Legitimate payments are as many on a fraud day as on any other day of the same card."""
    frame = simulate(200_000, seed=9, labels="types", cards=400).filter(pl.col("fraud_type") != "compromised_merchant")
    legitimate = pl.col("fraud_type") == "legitimate"
    days = frame.group_by("card_id", pl.col("time").dt.date()).agg(honest=legitimate.sum(), frauds=(~legitimate).sum())
    per_day = days.group_by("card_id").agg(pl.col("honest").sum() / 120)
    bad = days.filter(pl.col("frauds") > 0).join(per_day, on="card_id", suffix="_usual")
    assert bad["honest"].to_numpy().mean() == pytest.approx(bad["honest_usual"].to_numpy().mean(), rel=0.1)


def test_cards_have_several_episodes_or_none(stream: pl.DataFrame) -> None:
    begins = (pl.col("time").diff() > timedelta(days=10)).sum() + 1
    per_card = stream.filter(pl.col("fraud") == 1).group_by("card_id").agg(begins.alias("episodes"))["episodes"].to_numpy()
    assert per_card.max() >= 3
    quiet = simulate(60_000, seed=7).group_by("card_id").agg(pl.col("is_fraud").sum())["is_fraud"].to_numpy()
    assert 0.2 < (quiet == 0).mean() < 0.95


# ---------------------------------------------------------------------------- learnable, and not too easily


@pytest.fixture(scope="module")
def features(stream: pl.DataFrame) -> pl.DataFrame:
    """Causal features by type of hint, beside `fraud_type`."""
    log_amount = pl.col("amount").log()
    earlier = (log_amount.cum_sum() - log_amount) / pl.int_range(pl.len())
    return stream.select(
        "fraud_type",
        "merchant_id",
        "time",
        "distance_km",
        log_amount.alias("log_amount"),
        pl.col("time").diff().over("card_id").dt.total_seconds().cast(pl.Float64).alias("gap"),
        pl.col("time").diff(3).over("card_id").dt.total_seconds().cast(pl.Float64).alias("gap_3"),
        pl.when(pl.int_range(pl.len()).over("card_id", "merchant_category") > 0)
        .then(log_amount - earlier.over("card_id", "merchant_category"))
        .alias("against_habit"),
        pl.int_range(pl.len()).over("card_id", "merchant_id").alias("visits"),
        (pl.col("channel") == "online").cast(pl.Float64).alias("online"),
    )


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("card_testing", ["log_amount", "gap", "gap_3", "online"]),
        ("stolen_card", ["against_habit", "gap", "distance_km"]),
        ("account_takeover", ["against_habit", "gap_3", "visits", "online"]),
    ],
)
def test_each_type_is_learnable_from_what_it_does_but_has_look_alikes(features: pl.DataFrame, kind: str, columns: list[str]) -> None:
    frame = features.filter(pl.col("fraud_type").is_in(["legitimate", kind]))
    label = (frame["fraud_type"] == kind).to_numpy()
    values = frame.select(columns).to_numpy().astype(float)
    assert 0.85 < trees_auc(values, label) < 0.9995


def test_a_compromised_merchant_shows_in_its_delayed_reports(features: pl.DataFrame) -> None:
    """Fraud rate of the merchant 7 to 21 days ago, by a sorted search; brute force in a sample of rows says
    the same."""
    frame = features.filter(pl.col("fraud_type").is_in(["legitimate", "compromised_merchant"]))
    label = (frame["fraud_type"] == "compromised_merchant").to_numpy()
    when = frame["time"].dt.epoch("s").to_numpy().astype(np.int64)
    merchant = numbers(frame["merchant_id"]).to_numpy()
    key = merchant * 10**11 + when
    order = np.argsort(key, kind="stable")
    reports = np.concatenate([[0], np.cumsum(label[order])])
    day = 86_400
    low, high = (np.searchsorted(key[order], merchant * 10**11 + when - age * day) for age in (21, 7))
    risk = (reports[high] - reports[low]) / np.maximum(high - low, 1)
    for row in range(len(label) - 1, len(label) - 2_000, -397):
        same = (merchant == merchant[row]) & (when >= when[row] - 21 * day) & (when < when[row] - 7 * day)
        assert risk[row] == pytest.approx(label[same].mean() if same.any() else 0.0)
    assert roc_auc_score(label, risk) > 0.65
    assert label[risk > 0.5].mean() > 5 * label.mean()


# --------------------------------------------------------------------------------- sample, files, bad input


def test_the_sample_is_what_the_command_makes() -> None:
    frame = pl.read_parquet(SAMPLE)
    assert SAMPLE.stat().st_size < 2_000_000
    assert_frame_equal(frame, simulate(60_000, seed=12, fraud_rate=0.02))


@pytest.mark.parametrize("name", ["made.parquet", "made.csv"])
def test_a_written_file_reads_back(tmp_path: Path, name: str) -> None:
    frame = simulate(4_000, seed=0)
    write_simulation(frame, tmp_path / name)
    back = pl.read_parquet(tmp_path / name) if name.endswith("parquet") else pl.read_csv(tmp_path / name, try_parse_dates=True)
    assert_frame_equal(back, frame, check_dtypes=name.endswith("parquet"))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_target_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    frame = simulate(4_000, seed=0)
    with pytest.raises(InputError, match="missing"):
        write_simulation(frame, tmp_path / "missing" / "made.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(InputError, match=r"folder\.parquet"):
        write_simulation(frame, tmp_path / "folder.parquet")
    with pytest.raises(InputError, match=r"--out .*ends in \.parquet or \.csv"):
        write_simulation(frame, tmp_path / "made.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["folder.parquet"]


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ({"rows": 0}, "--rows is"),
        ({"rows": -5}, "--rows is"),
        ({"rows": 500}, "--rows 500 .* --rows 4000 or more"),
        ({"rows": 10_000, "fraud_rate": 0.0}, "--fraud-rate"),
        ({"rows": 10_000, "fraud_rate": 0.5}, "--fraud-rate"),
        ({"rows": 10_000, "fraud_rate": float("nan")}, "--fraud-rate"),
        ({"rows": 10_000, "days": 7}, "--days"),
        ({"rows": 10_000, "cards": 0}, "--cards"),
        ({"rows": 10_000, "cards": 10_001}, "--cards"),
        ({"rows": 10_000, "seed": -1}, "--seed"),
        ({"rows": 10_000, "labels": "many"}, "--labels"),
    ],
)
def test_bad_figures_name_the_flag(arguments: dict[str, object], flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        simulate(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [{"rows": 4_000}, {"rows": 4_000, "cards": 1}, {"rows": 100, "fraud_rate": 0.49}, {"rows": 4_000, "days": 2_000}]
)
def test_the_smallest_and_oddest_figures_still_work(arguments: dict[str, int]) -> None:
    frame = simulate(seed=0, labels="types", **arguments)
    assert frame.height == arguments["rows"]
    assert set(frame["fraud_type"].unique()) == set(FRAUD_TYPES)
