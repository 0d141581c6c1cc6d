"""A stream of card payments with four kinds of fraud, simulated: the sample data, and as many rows of it as anyone wants to test with.

Special about it: no leak. Everything that earlier simulators let slip (fraud rows numbered together, a multiplied amount that shows in its
cents, days of fraud without a legitimate payment, one episode per card, static columns that remember it) is drawn by one rule for all rows, and a
test lets boosted trees try each of those hints alone. What remains is what a real detector lives on: timing, amounts against the
cardholder's own habit, places, and the delayed reports about a merchant. And it is hard: each fraud has a legitimate look-alike
(:mod:`balancer.data.simulation.episodes`), a few per cent of the rows, while all others are easy. That is where sampling matters.

Vectorised throughout: a million rows take a few seconds on one core.

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
from balancer.files import write_bytes

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
    """Simulate ``rows`` card payments, sorted by time.

    Parameters
    ----------
    rows
        Exact number of rows.
    seed
        The same seed gives the same table (with the same NumPy).
    cards
        Cardholders; ``None`` for about 80 payments each.
    days
        Length of the stream, from 2025-01-01 on.
    fraud_rate
        Exact share of fraud rows, up to rounding: 22, 24, 24 and 30 % of them card testing, stolen cards, account takeover and compromised merchants.
    labels
        ``"binary"`` labels by a column ``is_fraud`` (0 or 1), ``"types"`` by ``fraud_type`` (one of FRAUD_TYPES) in its place.

    Returns
    -------
    polars.DataFrame
        ``transaction_id`` Int64, 1 to ``rows`` in order of time; ``time`` Datetime(us), whole seconds; ``card_id``, ``merchant_id``,
        ``merchant_category``, ``channel``, ``region`` (of the terminal or device), ``card_product`` (fixed for a card) String; ``amount`` Float64,
        positive; ``distance_km`` Float64 from the cardholder's home; and the label, ``is_fraud`` Int8 or ``fraud_type`` String.

    Raises
    ------
    InputError
        When a figure is out of range or too small to hold all fraud types; the text names the flag.
    """
    frauds = _check(rows, seed, cards, days, fraud_rate, labels)
    rng = np.random.default_rng(seed)
    number = cards if cards is not None else max(10, rows // ROWS_PER_CARD)
    world = make_world(rng, cards=number, merchants=rows // ROWS_PER_MERCHANT, days=days)

    stolen = [episodes(rng, world, RECIPES[name], round(frauds * share)) for name, share in FRAUD_SHARE.items()]
    remaining = rows - sum(len(part) for part in stolen)
    lookalikes = [episodes(rng, world, RECIPES[name], round(remaining * share)) for name, share in LOOKALIKE_SHARE.items()]
    legitimate = concatenate([*lookalikes, everyday(rng, world, remaining - sum(len(part) for part in lookalikes))])
    compromise(rng, legitimate, frauds - sum(len(part) for part in stolen))

    payments = concatenate([*stolen, legitimate])
    # Shuffled before a stable sort: of two payments in the same second either may come first.
    shuffled = payments.take(rng.permutation(rows))
    return _frame(rng, world, shuffled.take(np.argsort(np.floor(shuffled.time), kind="stable")), labels)


def write_simulation(frame: pl.DataFrame, path: str | Path) -> None:
    """Write ``frame`` to ``path`` (.parquet, zstd; or .csv): the whole file or nothing.

    Raises
    ------
    InputError
        When the target can't be written, or has another ending; nothing is left behind.
    """
    path = Path(path)
    content = io.BytesIO()
    if path.suffix.lower() == ".parquet":
        frame.write_parquet(content, compression="zstd", compression_level=12)
    elif path.suffix.lower() == ".csv":
        frame.write_csv(content, datetime_format="%Y-%m-%d %H:%M:%S")
    else:
        raise InputError(f"--out {path}: the name of the file must end in .parquet or .csv")
    write_bytes(path, content.getvalue())


def _check(rows: int, seed: int, cards: int | None, days: int, fraud_rate: float, labels: str) -> int:
    """The number of fraud rows, once every figure is in range."""
    if rows <= 0:
        raise InputError(f"--rows must be a positive number of rows, not {rows}; 60000 makes a fair sample")
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, not {seed}")
    if not 0.0 < fraud_rate < 0.5:  # also catches NaN
        raise InputError(f"--fraud-rate must lie between 0 and 0.5, not {fraud_rate}; 0.01 is one per cent")
    if days < FEWEST_DAYS:
        raise InputError(f"--days must be {FEWEST_DAYS} or more, not {days}; a compromised merchant needs weeks to show")
    if labels not in ("binary", "types"):
        raise InputError(f"--labels must be binary or types, not {labels}")
    frauds = round(rows * fraud_rate)
    if frauds < FEWEST_FRAUDS:
        fewest = int(np.ceil(FEWEST_FRAUDS / fraud_rate))
        raise InputError(
            f"--rows {rows} at --fraud-rate {fraud_rate} makes {frauds} frauds, too few for four kinds of fraud; "
            f"give --rows {fewest} or more, or a higher --fraud-rate"
        )
    if cards is not None and not 1 <= cards <= rows:
        raise InputError(f"--cards must lie between 1 and --rows ({rows}), not {cards}")
    return frauds


def _frame(rng: np.random.Generator, world: World, payments: Payments, labels: str) -> pl.DataFrame:
    rows = len(payments)
    merchants = world.merchants
    # Merchants are sorted by category and region; a shuffled number for each hides that, and the cards' numbers mean nothing either.
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
