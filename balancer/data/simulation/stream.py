"""Simulate a stream of card payments with four kinds of fraud: the sample data, in any number of rows.

What is special: there is no leak. Earlier simulators revealed fraud by accident: fraud rows with consecutive
numbers, a multiplied amount that shows in its cents, days of fraud without a legitimate payment, one episode
per card, static columns that identify a card. Here all of these are drawn by one rule for all rows, and a
test trains boosted trees on each of those hints alone. What remains are the signals of a real detector:
timing, amounts relative to the habits of the cardholder, places, and the delayed reports about a merchant.
The task is hard: each fraud has a legitimate look-alike (`balancer.data.simulation.episodes`). Look-alikes
are a few per cent of the rows; all other rows are easy. In such data the choice of training rows matters.

The code is vectorised: a million rows take a few seconds on one core.

>>> frame = simulate(8_000, seed=1)
>>> frame.height, frame["is_fraud"].sum()
(8000, 80)
"""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.simulation.episodes import FRAUD_SHARE, FRAUD_TYPES, LOOKALIKE_SHARE, RECIPES, compromise, episodes
from balancer.data.simulation.payments import CHANNELS, Payments, channel_codes, concatenate, distances, everyday, with_cents
from balancer.data.simulation.population import CATEGORY_NAMES, PRODUCTS, REGIONS, World, make_world
from balancer.errors import InputError
from balancer.files import check_writable, write_bytes
from balancer.names import counted

START = datetime(2025, 1, 1)
ROWS_PER_CARD = 80
ROWS_PER_MERCHANT = 80
FEWEST_FRAUDS = 40
FEWEST_DAYS = 30


def simulate(
    rows: int,
    *,
    seed: int = 0,
    cards: int | None = None,
    days: int = 120,
    fraud_rate: float = 0.01,
    labels: Literal["binary", "types"] = "binary",
) -> pl.DataFrame:
    """Simulate card payments, sorted by time.

    Args:
        rows: Exact number of rows.
        seed: Random seed; the same seed gives the same table (with the same version of NumPy).
        cards: Number of cardholders; None for about 80 payments each.
        days: Length of the stream, from 2025-01-01 on.
        fraud_rate: Exact share of fraud rows, up to rounding. Of these, 22 % are card testing, 24 % stolen
            cards, 24 % account takeover and 30 % compromised merchants.
        labels: `"binary"`: a column `is_fraud` (0 or 1). `"types"`: a column `fraud_type` (one of
            `FRAUD_TYPES`).

    Returns:
        A frame with the columns `transaction_id` Int64, 1 to `rows` in time order; `time` Datetime(us), whole
        seconds; `card_id`, `merchant_id`, `merchant_category`, `channel`, `region` (of the terminal or
        device) and `card_product` (fixed for a card) String; `amount` Float64, positive; `distance_km`
        Float64 from the home of the cardholder; and the label, `is_fraud` Int8 or `fraud_type` String.

    Raises:
        InputError: If an argument is out of range, or if there would be too few frauds for all types; the
            message names the flag.
    """
    frauds = check_simulation(rows, seed, cards, days=days, fraud_rate=fraud_rate, labels=labels)
    rng = np.random.default_rng(seed)
    number = cards if cards is not None else max(10, rows // ROWS_PER_CARD)
    world = make_world(rng, cards=number, merchants=rows // ROWS_PER_MERCHANT, days=days)

    stolen = [episodes(rng, world, RECIPES[name], round(frauds * share)) for name, share in FRAUD_SHARE.items()]
    remaining = rows - sum(len(part) for part in stolen)
    lookalikes = [episodes(rng, world, RECIPES[name], round(remaining * share)) for name, share in LOOKALIKE_SHARE.items()]
    legitimate = concatenate([*lookalikes, everyday(rng, world, remaining - sum(len(part) for part in lookalikes))])
    compromise(rng, legitimate, frauds - sum(len(part) for part in stolen))

    payments = concatenate([*stolen, legitimate])
    # Shuffled before a stable sort, so that payments of the same second are in random order.
    shuffled = payments.take(rng.permutation(rows))
    return _frame(rng, world, shuffled.take(np.argsort(np.floor(shuffled.time), kind="stable")), labels)


def write_simulation(frame: pl.DataFrame, path: str | Path) -> None:
    """Write a table to a .parquet (zstd) or .csv file, atomically.

    Raises:
        InputError: If the name has another ending.
        UnwritableFileError: If the file can't be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise InputError(f"--out {path}: give a file name that ends in .parquet or .csv")
    check_writable(path, "--out")
    content = io.BytesIO()
    if path.suffix.lower() == ".parquet":
        frame.write_parquet(content, compression="zstd", compression_level=12)
    else:
        frame.write_csv(content, datetime_format="%Y-%m-%d %H:%M:%S")
    write_bytes(path, content.getvalue())


def check_simulation(rows: int, seed: int, cards: int | None, *, days: int = 120, fraud_rate: float = 0.01, labels: str = "binary") -> int:
    """Check the arguments of `simulate` and return the number of fraud rows.

    Raises:
        InputError: An argument is out of range; the message names the flag.
    """
    if rows <= 0:
        raise InputError(f"--rows is {rows}: give a positive number of rows, for example 60000")
    if seed < 0:
        raise InputError(f"--seed is {seed}: give 0 or a larger number")
    if not 0.0 < fraud_rate < 0.5:  # also catches NaN
        raise InputError(f"--fraud-rate is {fraud_rate}: give a number between 0 and 0.5, for example 0.01 for one per cent")
    if days < FEWEST_DAYS:
        raise InputError(f"--days is {days}: give {FEWEST_DAYS} or more, because a compromised merchant is visible only after weeks")
    if labels not in ("binary", "types"):
        raise InputError(f"--labels is {labels}: give binary or types")
    frauds = round(rows * fraud_rate)
    if frauds < FEWEST_FRAUDS:
        fewest = int(np.ceil(FEWEST_FRAUDS / fraud_rate))
        raise InputError(
            f"--rows {rows} at --fraud-rate {fraud_rate} gives {counted(frauds, 'fraud')}, too few for four kinds of fraud: "
            f"give --rows {fewest} or more, or a higher --fraud-rate"
        )
    if cards is not None and not 1 <= cards <= rows:
        raise InputError(f"--cards is {cards}: give a number between 1 and --rows ({rows})")
    return frauds


def _frame(rng: np.random.Generator, world: World, payments: Payments, labels: str) -> pl.DataFrame:
    rows = len(payments)
    merchants = world.merchants
    # Merchants are sorted by category and region; shuffled numbers hide that. The numbers of the cards are
    # shuffled too.
    merchant_number = rng.permutation(len(merchants.category)) + 1
    card_number = rng.permutation(len(world.cards.home)) + 1
    kind = payments.kind
    columns: dict[str, pl.Series] = {
        "transaction_id": pl.Series(np.arange(1, rows + 1)),
        "time": pl.Series(np.datetime64(START, "us") + np.floor(payments.time).astype("timedelta64[s]")),
        "card_id": _names([f"C{number:06d}" for number in card_number], payments.card),
        "merchant_id": _names([f"M{number:05d}" for number in merchant_number], payments.merchant),
        "merchant_category": _names(CATEGORY_NAMES, merchants.category[payments.merchant]),
        "channel": _names(CHANNELS, channel_codes(rng, world, payments)),
        "region": _names([f"R{region + 1}" for region in range(REGIONS)], payments.region),
        "card_product": _names(PRODUCTS, world.cards.product[payments.card]),
        "amount": pl.Series(with_cents(rng, payments.amount)),
        "distance_km": pl.Series(distances(rng, world, payments)),
    }
    if labels == "binary":
        columns["is_fraud"] = pl.Series((kind > 0).astype(np.int8))
    else:
        columns["fraud_type"] = _names(FRAUD_TYPES, kind)
    return pl.DataFrame(columns)


def _names(names: list[str] | tuple[str, ...], code: NDArray[np.integer[Any]]) -> pl.Series:
    return pl.Series(list(names), dtype=pl.String).gather(code.astype(np.uint32))
