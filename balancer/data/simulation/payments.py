"""Payments of the simulator: the form of every row, and the everyday payments of all cards.

What is special: fraud and legitimate rows differ only in the arguments of `make_payments` (time, category,
region, factor on the usual amount). Merchant, channel, distance and cents are drawn by the same code for all
rows, so they cannot reveal fraud by accident.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from balancer.data.simulation.population import CATEGORY_NAMES, DAY, FAVOURITES, ONLINE, ONLINE_SHARE, SPREAD, Floats, Ints, World, pick

CHANNELS = ("chip", "contactless", "online", "atm")
CASH = CATEGORY_NAMES.index("cash")
AWAY_TASTE = np.array([CATEGORY_NAMES.index(name) for name in ("restaurant", "transport", "fashion", "entertainment", "travel", "cash")])


@dataclass(frozen=True)
class Payments:
    """n payments, in no particular order."""

    card: Ints
    time: Floats
    """Seconds since the first midnight."""
    merchant: Ints
    region: Ints
    """Region of the card or, online, of the device."""
    online: NDArray[np.bool_]
    amount: Floats
    """Amount before the cents are set."""
    kind: NDArray[np.int8]
    """Index in `FRAUD_TYPES`; 0 is legitimate."""

    def __len__(self) -> int:
        return len(self.card)

    def take(self, rows: NDArray[np.bool_] | Ints | slice) -> Payments:
        """Select payments by a mask, an index or a slice."""
        return Payments(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def concatenate(parts: list[Payments]) -> Payments:
    """Concatenate payments, in order."""
    return Payments(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Payments)})


def make_payments(
    rng: np.random.Generator,
    world: World,
    *,
    card: Ints,
    time: Floats,
    category: Ints,
    online: NDArray[np.bool_],
    region: Ints,
    scale: Floats,
    loyalty: float | Floats,
    kind: int = 0,
) -> Payments:
    """Draw a merchant and an amount for each of n payments.

    Args:
        rng: Random numbers.
        world: Cards, merchants and map.
        card: (n,) cards.
        time: (n,) seconds since the first midnight.
        category: (n,) merchant categories.
        online: (n,) whether a payment is online. Ignored for a category that can't be paid online, or only
            online.
        region: (n,) regions.
        scale: (n,) factor on the amount that the card usually pays in the category.
        loyalty: Probability that a payment goes to a favourite merchant instead of any merchant of the
            category and region. There are no favourites away from home.
        kind: Index in `FRAUD_TYPES`.
    """
    online = (online & (ONLINE_SHARE[category] > 0.0)) | (ONLINE_SHARE[category] == 1.0)
    any_merchant = world.merchants.draw(rng, category, np.where(online, ONLINE, region))
    # The first favourite is drawn twice as often as the second, the second twice as often as the third.
    rank = np.searchsorted([4 / 7, 6 / 7], rng.random(len(card))).clip(0, FAVOURITES - 1)
    favourite = world.cards.favourites[card, category, online.astype(np.int64), rank]
    loyal = (rng.random(len(card)) < loyalty) & (online | (region == world.cards.home[card]))
    merchant = np.where(loyal, favourite, any_merchant)
    usual = world.cards.level[card, category] * world.merchants.price[merchant]
    amount = usual * np.exp(SPREAD[category] * rng.normal(size=len(card))) * scale
    return Payments(card, time, merchant, region, online, amount, np.full(len(card), kind, np.int8))


def everyday(rng: np.random.Generator, world: World, count: int) -> Payments:
    """Draw `count` everyday payments.

    They follow the daily rhythm, the preferred categories and the favourite merchants of a card, come in
    short series, include journeys and, rarely, a large purchase.
    """
    rate = np.cumsum(world.cards.rate)
    card = np.searchsorted(rate, rng.random(count) * rate[-1], side="right").clip(0, len(rate) - 1)
    time = (world.day(rng, count) + world.hour(rng, card) / 24.0) * DAY
    # Payments come in series: a fifth of them follow another one of the same card within about an hour.
    follower = np.flatnonzero(rng.random(count) < 0.2)
    leader = rng.integers(0, count, len(follower))
    card[follower] = card[leader]
    time[follower] = time[leader] + rng.exponential(2_400.0, len(follower))
    end = world.days * DAY
    time = np.where(time >= end, 2.0 * end - time - 1.0, time)  # reflect, so that the last evening is about as busy as the others

    region = world.cards.home[card].copy()
    for slot in range(world.cards.trips.shape[1]):
        begin, until = world.cards.trips[card, slot, 0], world.cards.trips[card, slot, 1]
        region = np.where((begin <= time) & (time < until), world.cards.trip_region[card, slot], region)
    away = region != world.cards.home[card]

    category = pick(rng, world.cards.taste, card)
    tourist = away & (rng.random(count) < 0.6)
    category = np.where(tourist, rng.choice(AWAY_TASTE, count), category)
    odds = ONLINE_SHARE[category] / (1.0 - np.minimum(ONLINE_SHARE[category], 0.999)) * world.cards.online[card] * np.where(away, 0.5, 1.0)
    online = rng.random(count) < odds / (1.0 + odds)
    scale = np.where(away, 1.25, 1.0) * np.where(rng.random(count) < 0.012, rng.lognormal(1.1, 0.4, count), 1.0)
    return make_payments(
        rng, world, card=card, time=time, category=category, online=online, region=region, scale=scale, loyalty=np.where(online, 0.65, 0.75)
    )


def with_cents(rng: np.random.Generator, amount: Floats) -> Floats:
    """Set the cents as on price tags, by one rule for all rows, so that no digit reveals fraud."""
    tag = rng.choice([0, 99, 95, 50, 90, 49], len(amount), p=[0.35, 0.3, 0.1, 0.1, 0.1, 0.05])
    cents = np.where(rng.random(len(amount)) < 0.5, tag, rng.integers(0, 100, len(amount)))
    whole = np.clip(np.floor(amount), 1.0, 20_000.0)
    return np.asarray(np.round(whole + cents / 100.0, 2))


def channel_codes(rng: np.random.Generator, world: World, payments: Payments) -> Ints:
    """Draw (n,) codes in `CHANNELS`: the smaller the amount, the more often contactless."""
    tapped = rng.random(len(payments)) < 0.85 / (1.0 + (payments.amount / 60.0) ** 2)
    terminal = np.where(world.merchants.category[payments.merchant] == CASH, 3, tapped.astype(np.int64))
    return np.where(payments.online, 2, terminal)


def distances(rng: np.random.Generator, world: World, payments: Payments) -> Floats:
    """Compute (n,) km from the home of the cardholder to the terminal or, online, to the device, rounded to
    0.1.
    """
    device = world.centre[payments.region] + rng.normal(0.0, 12.0, (len(payments), 2))
    at_home = payments.online & (payments.region == world.cards.home[payments.card])
    device = np.where(at_home[:, None], world.cards.place[payments.card] + rng.normal(0.0, 3.0, (len(payments), 2)), device)
    place = np.where(payments.online[:, None], device, world.merchants.place[payments.merchant])
    return np.asarray(np.round(np.hypot(*(place - world.cards.place[payments.card]).T), 1))
