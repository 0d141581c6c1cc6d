"""Population of the simulator: cardholders with individual habits, merchants, and a map.

What is special: everything is an array indexed by card or merchant. The three draws that the rest of the
simulator needs (an hour from the daily rhythm of a card, a merchant of a category and region by popularity,
an amount from the habit of a card) are one gather or one binary search for any number of rows. Fraud is not
used here, so no property of a card or a merchant can reveal it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DAY = 86_400.0
REGIONS = 8
ONLINE = REGIONS
"""Region code of web shops."""

# name: (share of payments, median amount, standard deviation of the log amount, share that is paid online)
CATEGORIES: dict[str, tuple[float, float, float, float]] = {
    "grocery": (0.24, 30.0, 0.50, 0.06),
    "fuel": (0.08, 44.0, 0.35, 0.00),
    "restaurant": (0.16, 22.0, 0.45, 0.10),
    "transport": (0.10, 11.0, 0.50, 0.40),
    "fashion": (0.07, 46.0, 0.50, 0.45),
    "electronics": (0.03, 110.0, 0.60, 0.55),
    "household": (0.06, 48.0, 0.55, 0.35),
    "health": (0.05, 26.0, 0.50, 0.15),
    "entertainment": (0.06, 20.0, 0.50, 0.50),
    "digital": (0.07, 8.0, 0.50, 1.00),
    "travel": (0.03, 150.0, 0.60, 0.65),
    "cash": (0.05, 75.0, 0.45, 0.00),
}
CATEGORY_NAMES = tuple(CATEGORIES)
SHARE, MEDIAN, SPREAD, ONLINE_SHARE = (np.array(column) for column in zip(*CATEGORIES.values(), strict=True))
PRODUCTS = ("classic", "gold", "business")
WEEKDAY_WEIGHT = np.array([0.94, 0.95, 0.98, 1.00, 1.12, 1.17, 0.84])  # Monday first
FAVOURITES = 3


@dataclass(frozen=True)
class Cards:
    """C cardholders."""

    home: Ints
    """(C,) home region."""
    place: Floats
    """(C, 2) home in km on the map."""
    product: Ints
    """(C,) code in `PRODUCTS`, fixed for a card; affects its spending, never its risk."""
    rate: Floats
    """(C,) expected number of payments relative to the average card."""
    level: Floats
    """(C, categories) median amount of the card in the category, in currency units."""
    taste: Floats
    """(C, categories) cumulative share of the payments of the card by category."""
    online: Floats
    """(C,) factor on the odds of paying online."""
    peak: Floats
    """(C, 2) hours of the day around which the card pays: at midday and in the evening."""
    evening: Floats
    """(C,) share of payments around the evening peak."""
    trips: Floats
    """(C, T, 2) begin and end of the journeys of the card, in seconds; equal where there is no journey."""
    trip_region: Ints
    """(C, T) region of each journey."""
    favourites: Ints
    """(C, categories, 2, FAVOURITES) favourite merchants of the card: in its home region (0), online (1)."""


@dataclass(frozen=True)
class Merchants:
    """M merchants, sorted by group = category * (REGIONS + 1) + region."""

    category: Ints
    """(M,) code in `CATEGORY_NAMES`."""
    region: Ints
    """(M,) region code; `ONLINE` for a web shop."""
    price: Floats
    """(M,) price level; 1 is usual for the category."""
    place: Floats
    """(M, 2) km on the map."""
    cumulative: Floats
    """(M,) running sum of popularity over all merchants."""
    bounds: Ints
    """(groups + 1,) first merchant of each group."""

    def draw(self, rng: np.random.Generator, category: Ints, region: Ints) -> Ints:
        """Draw (n,) merchants of the given categories and regions (n,), by popularity; no group is empty."""
        group = category * (REGIONS + 1) + region
        edge = np.concatenate([[0.0], self.cumulative])
        low, high = edge[self.bounds[group]], edge[self.bounds[group + 1]]
        found = np.searchsorted(self.cumulative, low + rng.random(len(group)) * (high - low), side="right")
        return np.asarray(np.clip(found, self.bounds[group], self.bounds[group + 1] - 1))


@dataclass(frozen=True)
class World:
    """Cards, merchants and the map of one simulation."""

    cards: Cards
    merchants: Merchants
    centre: Floats
    """(REGIONS, 2) km."""
    weight: Floats
    """(REGIONS,) share of the cardholders."""
    days: int

    def hour(self, rng: np.random.Generator, card: Ints) -> Floats:
        """Draw (n,) hours of the day in [0, 24) from the daily rhythm of each card."""
        which = (rng.random(len(card)) < self.cards.evening[card]).astype(np.int64)
        return np.asarray((self.cards.peak[card, which] + rng.normal(0.0, 2.0, len(card))) % 24.0)

    def day(self, rng: np.random.Generator, count: int, *, before: int = 0) -> Ints:
        """Draw (count,) days from `-before` on, more towards the weekend; unordered but stratified."""
        day = np.arange(-before, self.days)
        weight = np.cumsum(WEEKDAY_WEIGHT[(day + 2) % 7])  # the first day is a Wednesday
        return np.asarray(day[np.searchsorted(weight, strata(rng, count) * weight[-1], side="right").clip(0, len(day) - 1)])

    def elsewhere(self, rng: np.random.Generator, home: Ints) -> Ints:
        """Draw (n,) regions other than `home` (n,), by population."""
        drawn = pick(rng, np.cumsum(self.weight)[None, :], np.zeros(len(home), np.int64))
        return np.where(drawn == home, (drawn + rng.integers(1, REGIONS, len(home))) % REGIONS, drawn)


def strata(rng: np.random.Generator, count: int) -> Floats:
    """Draw (count,) numbers in [0, 1), one in each of `count` equal intervals, in random order."""
    return np.asarray((rng.permutation(count) + rng.random(count)) / count)


def pick(rng: np.random.Generator, cumulative: Floats, row: Ints) -> Ints:
    """Draw a column for each `row` (n,) of a table of cumulative shares; each table row ends in 1."""
    drawn = rng.random(len(row))
    found = np.zeros(len(row), np.int64)
    for column in range(cumulative.shape[1] - 1):
        found += drawn >= cumulative[row, column]
    return found


def make_world(rng: np.random.Generator, *, cards: int, merchants: int, days: int) -> World:
    """Draw a world of cardholders and merchants, at least one merchant per category and region."""
    centre = rng.uniform(0.0, 900.0, (REGIONS, 2))
    weight = rng.dirichlet(np.full(REGIONS, 6.0))
    market = _make_merchants(rng, centre, weight, merchants)
    return World(_make_cards(rng, centre, weight, market, cards, days), market, centre, weight, days)


def _make_merchants(rng: np.random.Generator, centre: Floats, weight: Floats, count: int) -> Merchants:
    category = np.repeat(np.arange(len(CATEGORIES)), REGIONS + 1)
    region = np.tile(np.arange(REGIONS + 1), len(CATEGORIES))
    there = np.where(region == ONLINE, ONLINE_SHARE[category], 1.0 - ONLINE_SHARE[category])
    share = SHARE[category] * there * np.append(weight, 1.0)[region]
    open_group = there > 0.0
    # One merchant per group, and more in proportion to the payments of the group, so that no merchant is very
    # large.
    size = np.where(open_group, 1 + np.round(max(count - int(open_group.sum()), 0) * share / share.sum()), 0).astype(np.int64)
    group = np.repeat(np.arange(len(size)), size)
    total = len(group)
    popularity = rng.lognormal(0.0, 0.35, total)
    place = np.vstack([centre, [[0.0, 0.0]]])[region[group]] + rng.normal(0.0, 12.0, (total, 2))
    return Merchants(
        category=category[group],
        region=region[group],
        price=rng.lognormal(0.0, 0.2, total),
        place=place,
        cumulative=np.cumsum(popularity),
        bounds=np.concatenate([[0], np.cumsum(size)]),
    )


def _make_cards(rng: np.random.Generator, centre: Floats, weight: Floats, market: Merchants, count: int, days: int) -> Cards:
    kinds = len(CATEGORIES)
    home = rng.choice(REGIONS, count, p=weight)
    product = rng.choice(len(PRODUCTS), count, p=[0.7, 0.22, 0.08])
    wealth = rng.lognormal(0.0, 0.35, count) * np.array([1.0, 1.35, 1.7])[product]
    taste = SHARE * rng.gamma(2.5, 1.0, (count, kinds))
    taste = np.cumsum(taste / taste.sum(1, keepdims=True), axis=1)
    # A journey in a quarter of the two-month slots. Journeys that begin before the first day cover the first
    # days.
    slots = max(1, round(days / 60))
    begin = rng.uniform(-10.0, days, (count, slots)) * DAY
    length = np.where(rng.random((count, slots)) < 0.25, rng.uniform(2.0, 11.0, (count, slots)), 0.0) * DAY
    trip_region = (home[:, None] + rng.integers(1, REGIONS, (count, slots))) % REGIONS

    favourites = np.zeros((count, kinds, 2, FAVOURITES), np.int64)
    for kind in range(kinds):
        code = np.full(count, kind)
        for slot in range(FAVOURITES):
            if ONLINE_SHARE[kind] < 1.0:
                favourites[:, kind, 0, slot] = market.draw(rng, code, home)
            if ONLINE_SHARE[kind] > 0.0:
                favourites[:, kind, 1, slot] = market.draw(rng, code, np.full(count, ONLINE))
    return Cards(
        home=home,
        place=centre[home] + rng.normal(0.0, 10.0, (count, 2)),
        product=product,
        rate=rng.gamma(5.0, 0.2, count) + 0.05,
        level=MEDIAN * wealth[:, None] * rng.lognormal(0.0, 0.25, (count, kinds)),
        taste=taste,
        online=rng.lognormal(0.0, 0.6, count),
        peak=np.stack([rng.normal(12.0, 1.8, count), rng.normal(18.5, 1.8, count)], axis=1),
        evening=rng.beta(4.0, 3.0, count),
        trips=np.stack([begin, begin + length], axis=2),
        trip_region=trip_region,
        favourites=favourites,
    )
