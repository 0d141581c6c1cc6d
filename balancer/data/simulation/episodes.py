"""Episodes of the simulator: series of related payments, fraudulent or similar to fraud.

What is special: a fraud and its look-alike are two entries of one table (`RECIPES`) and are made by the same
code, so they overlap by design and differ only in degree: a card test and the top-ups of a game, a stolen
card and a shopping spree, a taken-over account and a move of house. The look-alikes are the hard legitimate
rows; nearly all other rows are trivially easy.

The fourth kind of fraud, the compromised merchant, is not an episode of one card: see `compromise`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from balancer.data.simulation.payments import Payments, concatenate, make_payments
from balancer.data.simulation.population import CATEGORY_NAMES, DAY, Ints, World, strata

FRAUD_TYPES = ("legitimate", "card_testing", "stolen_card", "account_takeover", "compromised_merchant")
COMPROMISED = FRAUD_TYPES.index("compromised_merchant")


@dataclass(frozen=True)
class Recipe:
    """The distribution of the payments of one kind of episode."""

    kind: int
    """Index in `FRAUD_TYPES`."""
    size: tuple[int, int]
    """Smallest and largest number of payments."""
    gap: tuple[float, float]
    """Median seconds between payments, and the standard deviation of their logarithm."""
    scale: tuple[float, float]
    """Smallest and largest factor on the usual amount of the card in the category; one factor is drawn per
    episode."""
    categories: dict[str, float]
    """Merchant categories, with weights."""
    online: float
    """Probability that an episode is online (all of its payments that can be)."""
    away: float
    """Probability that an episode happens outside the home region."""
    any_hour: float
    """Probability that an episode begins at a uniformly drawn hour instead of a usual hour of the card."""
    loyalty: float
    """Probability that a payment goes to a favourite merchant."""
    tiny: tuple[float, float] | None = None
    """Range of the amounts, whatever the usual amount of the card, instead of `scale`."""
    finale: float = 0.0
    """With `tiny`: probability that the last payment is a purchase of `scale` in electronics or fashion, some
    minutes later."""

    @property
    def reach(self) -> int:
        """Number of days before the first day on which an episode may begin and still continue."""
        return int(np.ceil(3.0 * self.size[1] * self.gap[0] / DAY))


_SHOP = {"electronics": 3.0, "fashion": 3.0, "household": 2.0, "travel": 1.0, "grocery": 1.0, "fuel": 1.0}
_WEB = {"electronics": 3.0, "fashion": 3.0, "household": 2.0, "travel": 2.0, "digital": 1.0, "entertainment": 1.0, "health": 1.0}
_SMALL = {"digital": 5.0, "entertainment": 2.0, "transport": 1.0}

RECIPES = {
    "card_testing": Recipe(1, (5, 13), (35.0, 0.8), (1.8, 4.5), _SMALL, 1.0, 0.50, 0.7, 0.0, tiny=(1.0, 5.0), finale=0.6),
    "stolen_card": Recipe(2, (3, 9), (1_400.0, 0.9), (2.5, 7.0), {**_SHOP, "cash": 2.0}, 0.15, 0.75, 0.7, 0.02),
    "account_takeover": Recipe(3, (5, 12), (9_000.0, 1.0), (2.5, 5.5), _WEB, 0.95, 0.55, 0.8, 0.02),
    "top_ups": Recipe(0, (2, 6), (180.0, 1.0), (0.7, 1.6), _SMALL, 1.0, 0.05, 0.1, 0.5, tiny=(1.0, 10.0), finale=0.08),
    "spree": Recipe(0, (2, 6), (2_800.0, 0.9), (0.9, 2.8), _SHOP, 0.15, 0.35, 0.05, 0.3),
    "house_move": Recipe(0, (3, 9), (30_000.0, 1.0), (0.9, 2.4), _WEB, 0.8, 0.05, 0.1, 0.3),
}
FRAUD_SHARE = {"card_testing": 0.22, "stolen_card": 0.24, "account_takeover": 0.24}
"""Share of all fraud rows; the rest are frauds of compromised merchants."""
LOOKALIKE_SHARE = {"top_ups": 0.010, "spree": 0.006, "house_move": 0.006}
"""Share of all legitimate rows."""
COMPROMISED_PAYMENTS = (22, 36)
"""Smallest and largest number of payments at a merchant before the compromise is discovered."""
COMPROMISED_DAYS = 35.0
"""Longest time between a payment of such an episode and the payment that the episode was drawn from. It
limits the
    episodes of merchants with few payments."""


def episodes(rng: np.random.Generator, world: World, recipe: Recipe, count: int) -> Payments:
    """Draw exactly `count` payments of a recipe; only the last episode may be cut short.

    The probability that a card has an episode is proportional to its number of payments, so a row of a busy
    card is no more likely to be fraud than a row of an idle one. A card may have several episodes or none.
    Episodes may begin before the first day and continue after the last one; those rows are left out.
    """
    parts: list[Payments] = []
    found = 0
    while found < count or not parts:
        part = _draw(rng, world, recipe, 1 + int(1.1 * (count - found) / np.mean(recipe.size)))
        part = part.take((part.time >= 0.0) & (part.time < world.days * DAY))
        parts.append(part)
        found += len(part)
    return concatenate(parts).take(slice(0, count))


def _draw(rng: np.random.Generator, world: World, recipe: Recipe, number: int) -> Payments:
    rate = np.cumsum(world.cards.rate)
    holder = np.searchsorted(rate, rng.random(number) * rate[-1], side="right").clip(0, len(rate) - 1)
    hour = np.where(rng.random(number) < recipe.any_hour, rng.uniform(0.0, 24.0, number), world.hour(rng, holder))
    begin = (world.day(rng, number, before=recipe.reach) + hour / 24.0) * DAY
    home = world.cards.home[holder]
    where = np.where(rng.random(number) < recipe.away, world.elsewhere(rng, home), home)
    size = rng.integers(recipe.size[0], recipe.size[1] + 1, number)

    episode = np.repeat(np.arange(number), size)
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    last = np.zeros(len(episode), bool)
    last[first + size - 1] = True
    gap = recipe.gap[0] * np.exp(recipe.gap[1] * rng.normal(size=len(episode)))
    category = _draw_categories(rng, recipe.categories, len(episode))
    finale = last & (rng.random(number) < recipe.finale)[episode]
    gap = np.where(finale, rng.lognormal(np.log(2_400.0), 0.8, len(episode)), gap)
    category = np.where(finale, _draw_categories(rng, {"electronics": 1.0, "fashion": 1.0}, len(episode)), category)
    gap[first] = 0.0
    elapsed = np.cumsum(gap)
    elapsed -= elapsed[first][episode]

    payments = make_payments(
        rng,
        world,
        card=holder[episode],
        time=begin[episode] + elapsed,
        category=category,
        online=(rng.random(number) < recipe.online)[episode],
        region=where[episode],
        scale=rng.uniform(*recipe.scale, number)[episode],
        loyalty=recipe.loyalty,
        kind=recipe.kind,
    )
    if recipe.tiny is not None:
        payments.amount[~finale] = rng.uniform(*recipe.tiny, int((~finale).sum()))
    return payments


def _draw_categories(rng: np.random.Generator, weights: dict[str, float], count: int) -> Ints:
    code = np.array([CATEGORY_NAMES.index(name) for name in weights])
    share = np.array(list(weights.values()))
    return np.asarray(rng.choice(code, count, p=share / share.sum()))


def compromise(rng: np.random.Generator, legitimate: Payments, count: int) -> None:
    """Turn exactly `count` legitimate payments into frauds of compromised merchants, in place.

    For some weeks, until the compromise is discovered, every payment at a compromised merchant, or every
    second one, is later reported as fraud. The payments themselves do not change, so only earlier reported
    frauds of the same merchant show it. Merchants are drawn in proportion to their number of payments, and
    the compromise is discovered after a number of payments that does not depend on it, so a payment at a busy
    merchant is no more likely to be fraud.
    """
    order = np.lexsort((legitimate.time, legitimate.merchant))
    merchant, time = legitimate.merchant[order], legitimate.time[order]
    by_time = np.argsort(time)
    number = 2 + count // 20
    chosen = np.zeros(0, np.int64)
    while len(chosen) < count:
        drawn = by_time[(strata(rng, number) * len(order)).astype(np.int64)]  # one payment of each episode, evenly over time
        size = rng.integers(COMPROMISED_PAYMENTS[0], COMPROMISED_PAYMENTS[1] + 1, number)
        offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        row = np.repeat(drawn - rng.integers(0, size), size) + offset
        every, phase = 1 + (rng.random(number) < 0.25), rng.integers(0, 2, number)
        hit = (row >= 0) & (row < len(order)) & ((offset + np.repeat(phase, size)) % np.repeat(every, size) == 0)
        row, centre = row[hit], np.repeat(drawn, size)[hit]
        hit = (merchant[row] == merchant[centre]) & (np.abs(time[row] - time[centre]) < COMPROMISED_DAYS * DAY)
        both = np.concatenate([chosen, order[row[hit]]])
        # Two episodes may overlap at a merchant: keep each payment once, in the order of the episodes.
        chosen = both[np.sort(np.unique(both, return_index=True)[1])]
    legitimate.kind[chosen[:count]] = COMPROMISED
